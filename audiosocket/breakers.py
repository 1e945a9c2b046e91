"""Circuit breakers in use: kept in Redis, where all workers share them, or in this process.

Calls never wait for one: an answer that does not come in time is taken for "dial", and outcomes are told behind the
call's back.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

import redis.asyncio
import structlog

from audiosocket.breaker import Breaker, Outcome, Verdict
from audiosocket.callspec import CallSpec
from audiosocket.errors import Unavailable
from audiosocket.keys import KEY_PREFIX
from audiosocket.runtime.stores import redis_call
from audiosocket.settings import is_http

ANSWER_SECONDS = 0.25
"""How long a call waits for Redis to say whether it may dial."""
MEMORY_MS = 3_600_000
"""How long a key outlives its last failure."""
PROBE_MARGIN_MS = 5_000
"""What a probe may take beyond the time of its handshakes until it is heard of, and then from one time to the next. Its
outcome may take as long as a caller waits for the first word: nobody is to wait so long for a worker that is dead."""

# All: KEYS: the breaker, a hash of `failures`, `open_until` and `probe_until` (ms of Redis' clock). Redis 6.2
# replicates effects, so that TIME may come first.
_NOW = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function field(name) return tonumber(redis.call('HGET', KEYS[1], name) or '0') end
local open_until = field('open_until')
"""
# ARGV: ms that a probe may take.
_ADMIT = (
    _NOW
    + """
if open_until == 0 then return 'dial' end
if now < open_until or now < field('probe_until') then return 'suspended' end
redis.call('HSET', KEYS[1], 'probe_until', now + ARGV[1])
return 'probe'
"""
)
# ARGV: ms that the probe is given from now on.
_RENEW = (
    _NOW
    + """
if open_until ~= 0 then redis.call('HSET', KEYS[1], 'probe_until', now + ARGV[1]) end
return 0
"""
)
# ARGV: outcome, 1 if it was a probe, failures that open it, ms for which it is then open, ms that the key lives.
_RECORD = (
    _NOW
    + """
if ARGV[1] == 'good' then redis.call('DEL', KEYS[1]) return 0 end
local probe = ARGV[2] == '1'
if probe then redis.call('HDEL', KEYS[1], 'probe_until') end
if ARGV[1] == 'none' or (open_until ~= 0 and not probe) then return 0 end
local failures = redis.call('HINCRBY', KEYS[1], 'failures', 1)
redis.call('PEXPIRE', KEYS[1], ARGV[4] + ARGV[5])
if failures < tonumber(ARGV[3]) then return 0 end
redis.call('HSET', KEYS[1], 'open_until', now + ARGV[4])
return 1
"""
)

log = structlog.get_logger(__name__)


def breaker_key(application: str, url: str) -> str:
    """Key of an application's circuit breaker (hash). The URL, which may hold a token, is not in it."""
    return f"{KEY_PREFIX}breaker:{application}:{hashlib.sha256(url.encode()).hexdigest()[:16]}"


class Breakers(Protocol):
    """Where breakers are kept. All raise `Unavailable` when that cannot be reached."""

    async def admit(self, key: str, probe_ms: int) -> Verdict:
        """See `Breaker.admit`."""

    async def renew(self, key: str, probe_ms: int) -> None:
        """See `Breaker.renew`."""

    async def record(self, key: str, outcome: Outcome, probe: bool, failures: int, open_ms: int) -> bool:
        """See `Breaker.record`."""


class MemoryBreakers:
    """Breakers of this process alone."""

    def __init__(self) -> None:
        self._breakers: dict[str, Breaker] = {}

    async def admit(self, key: str, probe_ms: int) -> Verdict:
        return self._breakers.setdefault(key, Breaker()).admit(_monotonic_ms(), probe_ms)

    async def renew(self, key: str, probe_ms: int) -> None:
        self._breakers.setdefault(key, Breaker()).renew(_monotonic_ms(), probe_ms)

    async def record(self, key: str, outcome: Outcome, probe: bool, failures: int, open_ms: int) -> bool:
        breaker = self._breakers.setdefault(key, Breaker())
        return breaker.record(outcome, probe, _monotonic_ms(), failures, open_ms)


class RedisBreakers:
    """Breakers that all workers of a Redis share."""

    def __init__(self, client: redis.asyncio.Redis, away: Callable[[], bool] = lambda: False) -> None:
        """`away`: whether Redis is known not to answer: then no call waits for it."""
        self._away = away
        self._admit = client.register_script(_ADMIT)
        self._renew = client.register_script(_RENEW)
        self._record = client.register_script(_RECORD)

    async def admit(self, key: str, probe_ms: int) -> Verdict:
        if self._away():
            raise Unavailable("Redis is away")
        async with redis_call(Unavailable, ANSWER_SECONDS):
            answer: Any = await self._admit(keys=[key], args=[probe_ms])
        return Verdict(answer.decode())

    async def renew(self, key: str, probe_ms: int) -> None:
        async with redis_call(Unavailable):
            await self._renew(keys=[key], args=[probe_ms])

    async def record(self, key: str, outcome: Outcome, probe: bool, failures: int, open_ms: int) -> bool:
        async with redis_call(Unavailable):
            answer: Any = await self._record(keys=[key], args=[outcome.value, int(probe), failures, open_ms, MEMORY_MS])
        return bool(answer)


class Permit:
    """One call's leave to dial, or its lack. Whoever was let through tells the outcome once."""

    def __init__(self, desk: BreakerDesk, spec: CallSpec, key: str, verdict: Verdict) -> None:
        self._desk = desk
        self._spec = spec
        self._key = key
        self._verdict = verdict
        self._told = not key or verdict is Verdict.SUSPENDED
        self._renewing: asyncio.Task[None] | None = None

    @property
    def granted(self) -> bool:
        """Whether the application may be dialled."""
        return self._verdict is not Verdict.SUSPENDED

    def renew(self) -> None:
        """What came of it is not known yet. To be called every second or so, and tells those who wait for a probe."""
        if self._told or self._verdict is not Verdict.PROBE:
            return
        if self._renewing is None or self._renewing.done():
            self._renewing = self._desk.renew(self._key)

    def tell(self, outcome: Outcome) -> None:
        """What came of it; only the first counts. Returns at once."""
        if not self._told:
            self._told = True
            self._desk.tell(self._spec, self._key, outcome, self._verdict is Verdict.PROBE, self._renewing)


class BreakerDesk:
    """One worker's use of breakers, with what its metrics count by application."""

    def __init__(self, breakers: Breakers) -> None:
        self._breakers = breakers
        self._tasks: set[asyncio.Task[None]] = set()
        self._away = False
        self.trips: dict[str, int] = {}
        """Times that a failure on this worker has opened a breaker."""
        self.suspended: dict[str, int] = {}
        """Times that an application was not dialled."""

    async def ask(self, spec: CallSpec) -> Permit:
        """Leave to dial `spec.url`; without a breaker, or without an answer, it is granted."""
        if not spec.breaker_failures:
            return Permit(self, spec, "", Verdict.DIAL)
        key = breaker_key(spec.application, spec.url)
        requests = spec.connect_attempts + is_http(spec.url)
        probe_ms = round(spec.connect_timeout_seconds * requests * 1000) + PROBE_MARGIN_MS
        try:
            verdict = await self._breakers.admit(key, probe_ms)
        except Unavailable as error:
            self._unavailable(error)
            verdict = Verdict.DIAL
        else:
            self._away = False
        if verdict is Verdict.SUSPENDED:
            self.suspended[spec.application] = self.suspended.get(spec.application, 0) + 1
        return Permit(self, spec, key, verdict)

    def renew(self, key: str) -> asyncio.Task[None]:
        """Tells in the background that a probe goes on."""
        return self._start(self._renew(key))

    def tell(
        self, spec: CallSpec, key: str, outcome: Outcome, probe: bool, after: asyncio.Task[None] | None = None
    ) -> None:
        """Records an outcome in the background, once `after` is over."""
        self._start(self._record(spec, key, outcome, probe, after))

    async def close(self) -> None:
        """Waits for outcomes that are being recorded; each has a time limit."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _start(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name="breaker")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _renew(self, key: str) -> None:
        try:
            await self._breakers.renew(key, PROBE_MARGIN_MS)
        except Unavailable as error:
            self._unavailable(error)

    async def _record(
        self, spec: CallSpec, key: str, outcome: Outcome, probe: bool, after: asyncio.Task[None] | None
    ) -> None:
        if after is not None:
            await asyncio.wait((after,))
        open_ms = round(spec.breaker_seconds * 1000)
        try:
            opened = await self._breakers.record(key, outcome, probe, spec.breaker_failures, open_ms)
        except Unavailable as error:
            self._unavailable(error)
            return
        self._away = False
        if opened:
            self.trips[spec.application] = self.trips.get(spec.application, 0) + 1
            log.error("application_suspended", application=spec.application, seconds=spec.breaker_seconds)

    def _unavailable(self, error: Unavailable) -> None:
        if not self._away:
            log.warning("breakers_unavailable", why=str(error))
        self._away = True


def _monotonic_ms() -> int:
    return time.monotonic_ns() // 1_000_000
