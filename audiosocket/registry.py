"""The worker's side of Redis: it takes call specs, announces itself, and leaves reports.

A spec is taken at most once, by one script: the worker that gets it, and the memory that it was taken, are one step.
A take whose answer is lost is not repeated: it may have happened.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import redis.asyncio
import structlog

from audiosocket.breakers import RedisBreakers
from audiosocket.callspec import CallNotice, CallReport, CallSpec, LegOrder, WorkerInfo
from audiosocket.errors import SpecRefused, Unavailable
from audiosocket.keys import lease_key, leases_key, orders_channel, spec_key, taken_key
from audiosocket.outbox import Outbox
from audiosocket.runtime.announcing import Announcement, Announcer, announcement_of
from audiosocket.runtime.stores import REDIS_TIMEOUT_SECONDS, listen, open_redis, redis_call, resolve
from audiosocket.settings import NodeSettings

AWAY_TAKE_SECONDS = 0.25
"""How long a Redis that did not answer last is asked for a call spec: its controller may then try another way."""

# KEYS: spec, taken marker. Runs on Redis 6.2, where scripts replicate their effects, so that TIME may come first.
_TAKE = """
local spec = redis.call('GET', KEYS[1])
if not spec then
    return {redis.call('EXISTS', KEYS[2]) == 1 and 'reused' or 'unknown'}
end
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local readable, fields = pcall(cjson.decode, spec)
local expires_ms = readable and type(fields) == 'table' and tonumber(fields.expires_at_ms)
if expires_ms and expires_ms < now_ms then
    return {'expired'}
end
local rest_ms = math.max(redis.call('PTTL', KEYS[1]), 1)
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[2], '1', 'PX', rest_ms)
return {'taken', spec}
"""

_LEASE = re.compile(r"(\d{1,20}) (\S*) ")
"""See `lease_key`."""

log = structlog.get_logger(__name__)


class Registry:
    """One worker's connection to the controllers. Every call ends within `REDIS_TIMEOUT_SECONDS`."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self._redis = client
        self._take = client.register_script(_TAKE)
        self._announcer = Announcer(client)
        self._announced: dict[str, Announcement] = {}
        self.outbox = Outbox(client)
        self.breakers = RedisBreakers(client, lambda: self.outbox.away)
        self._started_ms = 0
        """Of the worker that this has announced."""
        self._double = ""
        self.listening = asyncio.Event()
        """Set when orders are heard for the first time."""

    async def take(self, leg_uuid: str) -> CallSpec:
        """The call that a media leg stands for, given out once.

        Raises `SpecRefused` (`unknown`, `reused`, `expired`), or `Unavailable` when Redis cannot tell.
        """
        seconds = AWAY_TAKE_SECONDS if self.outbox.away else REDIS_TIMEOUT_SECONDS
        async with redis_call(Unavailable, seconds):
            answer: list[Any] = await self._take(keys=[spec_key(leg_uuid), taken_key(leg_uuid)])
        status = answer[0].decode()
        if status != "taken":
            raise SpecRefused(status)
        try:
            return msgspec.json.decode(answer[1], type=CallSpec)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            log.error("call_spec_unreadable", why=str(error))
            raise SpecRefused("unknown") from error

    async def heartbeat(self, info: WorkerInfo) -> set[str]:
        """Announce the worker for `HEARTBEAT_TTL_MS`. Raises `Unavailable`.

        The answer to one that is draining are the ids of the calls that it has been given. No other call can reach it
        from then on: announcing and asking are one step.
        """
        who = announcement_of(info)
        self._announced[info.worker_id] = who
        try:
            async with redis_call(Unavailable):
                before, given = await self._announcer.announce(who, leases_key(info.worker_id) if info.draining else "")
        except Unavailable:
            self.outbox.redis_away()
            raise
        # An announcement that is gone before its time went with all that was there.
        self.outbox.redis_answers(remembers=before is not None)
        if self._started_ms == info.started_at_ms:
            self._look_for_double(info, before)
        self._started_ms = info.started_at_ms  # what was there before may be of a process that was killed
        return given

    def _look_for_double(self, info: WorkerInfo, before: bytes | None) -> None:
        try:
            other = msgspec.json.decode(before or b"", type=WorkerInfo)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return  # it had expired, or a neighbouring version writes it otherwise
        if other.started_at_ms != info.started_at_ms and self._double != (address := f"{other.host}:{other.port}"):
            self._double = address
            log.error("worker_id_used_twice", worker_id=info.worker_id, other=address, remedy="give each node its name")

    async def given_away(self, worker_id: str, calls: Mapping[str, int]) -> set[str]:
        """Which of these calls (by id, with the tokens of their leases) have a later lease than the worker's. Raises
        `Unavailable`."""
        if not calls:
            return set()
        async with redis_call(Unavailable):
            payloads: Any = await self._redis.mget([lease_key(call_id) for call_id in calls])
        away: set[str] = set()
        for (call_id, token), payload in zip(calls.items(), payloads, strict=True):
            found = _LEASE.match((payload or b"").decode(errors="replace"))
            if found is None:
                continue  # Redis has forgotten it, or an older version's controller wrote it
            known, holder = int(found[1]), found[2]
            if known > token if token else holder not in ("", worker_id):
                away.add(call_id)
        return away

    async def deregister(self, worker_id: str) -> None:
        """Take the announcement back. Without Redis it ends by itself within `HEARTBEAT_TTL_MS`."""
        who = self._announced.pop(worker_id, None)
        if who is None:
            return
        try:
            async with redis_call(Unavailable):
                await self._announcer.withdraw(who)
        except Unavailable as error:
            log.warning("worker_not_deregistered", worker_id=worker_id, why=str(error))

    async def report(self, stream: str, report: CallReport) -> None:
        """Leave a report for the controller that reads `stream`; returns at once, and is repeated until it is stored.

        The oldest report gives way when too many wait.
        """
        self.outbox.report(stream, report)

    def notify(self, stream: str, notice: CallNotice) -> None:
        """Tell the controller that reads `stream`; returns at once. Notices keep their order. One that cannot be stored
        within `NOTICE_SECONDS` is not sent: it would come too late."""
        self.outbox.notify(stream, notice)

    async def orders(self, worker_id: str, handle: Callable[[LegOrder], None]) -> None:
        """Hand every order for a worker to `handle`, for ever. While Redis is away none is heard."""

        async def take_order(order: LegOrder) -> None:
            handle(order)

        await listen(self._redis, orders_channel(worker_id), LegOrder, take_order, self.listening.set)

    async def close(self) -> None:
        """Store the reports that still wait, for a few seconds, and disconnect."""
        await self.outbox.close()
        await self._redis.aclose()


def open_registry(settings: NodeSettings) -> Registry:
    """The registry of a node's store. Raises `ConfigError` when embedded stores are asked for and do not run."""
    return Registry(open_redis(resolve(settings)))
