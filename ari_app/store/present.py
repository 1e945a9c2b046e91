"""The control plane's side of Redis, leases apart: call specs, workers, what they report, orders, commands."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from itertools import islice
from typing import Any, Literal

import msgspec
import redis.asyncio
import redis.exceptions
import structlog

from ari_app.errors import StoreUnavailable, Unavailable
from audiosocket.callspec import (
    HEARTBEAT_TTL_MS,
    NOTICE_SECONDS,
    SPEC_GRACE_SECONDS,
    CallNotice,
    CallReport,
    CallSpec,
    LegOrder,
    WorkerInfo,
)
from audiosocket.keys import KEY_PREFIX, WORKERS_KEY, notice_stream, orders_channel, report_stream, spec_key, worker_key
from audiosocket.runtime.stores import T, decoded, listen, pause, redis_call

REPORT_GROUP = "controller"
READ_ITEMS = 100
ACKNOWLEDGE_ITEMS = 1000
BLOCK_SECONDS = 1.0
"""How long one read waits for news; below the client's time limit."""

log = structlog.get_logger(__name__)


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator asks of a controller."""

    verb: Literal["hangup", "move"]
    call_id: str
    by: str
    """Who asked, for the call's story."""
    worker: str = ""
    """For `move`: the worker that is to have the call; empty: any other."""


def commands_channel(node: str) -> str:
    """Channel on which the controller of a PBX node hears commands."""
    return f"{KEY_PREFIX}commands:{node}"


def redis_unavailable(text: str) -> StoreUnavailable:
    """The error of a Redis that cannot be used."""
    return StoreUnavailable("redis", text)


def _field(fields: Mapping[bytes, bytes], name: bytes, kind: type[T]) -> T | None:
    payload = fields.get(name)
    return None if payload is None else decoded(payload, kind)


class Present:
    """Single steps. Every method ends within the time limit of `redis_call` and raises `StoreUnavailable`."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self._redis = client

    async def put_spec(self, spec: CallSpec) -> None:
        """Announce a media leg; to be done before Asterisk dials the worker."""
        lifetime_ms = max(0, spec.expires_at_ms - spec.created_at_ms) + SPEC_GRACE_SECONDS * 1000
        async with redis_call(redis_unavailable):
            await self._redis.set(spec_key(spec.leg_uuid), msgspec.json.encode(spec), px=lifetime_ms)

    async def workers(self) -> list[WorkerInfo]:
        """The media workers that are alive, by id."""
        async with redis_call(redis_unavailable):
            members: Any = await self._redis.smembers(WORKERS_KEY)
            keys = [worker_key(member.decode()) for member in sorted(members)]
            payloads: Any = await self._redis.mget(keys) if keys else []
        found = (decoded(payload, WorkerInfo) for payload in payloads if payload is not None)
        return [info for info in found if info is not None]

    async def worker_ids(self) -> list[str]:
        """The ids of all workers that have announced themselves and not taken it back, dead or alive."""
        async with redis_call(redis_unavailable):
            members: Any = await self._redis.smembers(WORKERS_KEY)
        return sorted(member.decode() for member in members)

    async def forget_workers(self, worker_ids: list[str]) -> None:
        """Strikes dead workers off the list."""
        async with redis_call(redis_unavailable):
            await self._redis.srem(WORKERS_KEY, *worker_ids)

    async def heartbeats(self) -> dict[str, tuple[WorkerInfo, float]]:
        """The workers that are registered, by id, each with the age of its last heartbeat in seconds."""
        async with redis_call(redis_unavailable):
            members: Any = await self._redis.smembers(WORKERS_KEY)
            keys = [worker_key(member.decode()) for member in sorted(members)]
            async with self._redis.pipeline(transaction=False) as pipeline:
                for key in keys:
                    pipeline.get(key)
                    pipeline.pttl(key)
                answers: Any = await pipeline.execute()
        found: dict[str, tuple[WorkerInfo, float]] = {}
        for payload, left_ms in zip(answers[::2], answers[1::2], strict=True):
            info = None if payload is None else decoded(payload, WorkerInfo)
            if info is not None:
                found[info.worker_id] = info, max(0, HEARTBEAT_TTL_MS - left_ms) / 1000
        return found

    async def send_order(self, worker_id: str, order: LegOrder) -> bool:
        """Tell a worker what to do with a leg; whether it listens. One that does not misses it."""
        async with redis_call(redis_unavailable):
            return bool(await self._redis.publish(orders_channel(worker_id), msgspec.json.encode(order)))

    async def send_command(self, node: str, command: Command) -> None:
        """Tell the controller of `node`. Raises `Unavailable` when no controller of that node listens."""
        async with redis_call(redis_unavailable):
            heard = await self._redis.publish(commands_channel(node), msgspec.json.encode(command))
        if not heard:
            raise Unavailable("no_controller", f"no controller of node {node!r} listens: is it running?")


class ReportReader:
    """Reads the reports of a node's calls, each at least once, and what is to be known before their end: once, and only
    what is new since this reader was made, and at most `NOTICE_SECONDS` old.

    A report is acknowledged, and removed, only when `durable` returns after it was handled. What was handed out and
    not acknowledged, for instance because the controller was killed, is handed out again at the next start: handling
    a report twice must change nothing.
    """

    def __init__(self, client: redis.asyncio.Redis, node: str, durable: Callable[[], Awaitable[None]]) -> None:
        """`durable` returns when all that was handled up to now is stored (`RecordWriter.barrier`)."""
        self._redis = client
        self._stream = report_stream(node)
        self._notices = notice_stream(self._stream)
        self._began = time.monotonic()
        self._consumer = node
        self._durable = durable
        self._handled: set[bytes] = set()
        self._to_acknowledge = asyncio.Event()

    async def run(
        self, on_report: Callable[[CallReport], Awaitable[None]], on_notice: Callable[[CallNotice], None]
    ) -> None:
        """Hand every report and every notice on, for ever, each kind in the order in which it was written.

        While Redis is away it waits; what a handler raises ends it.
        """
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._acknowledge(), name="report-acknowledge")
            tasks.create_task(self._read(on_report, on_notice), name="report-read")
            tasks.create_task(self._read_notices(on_notice), name="notice-read")

    async def _read(
        self, on_report: Callable[[CallReport], Awaitable[None]], on_notice: Callable[[CallNotice], None]
    ) -> None:
        failures = 0
        cursor: bytes | None = None  # None: the group may not exist; b">": only what nobody was given yet
        while True:
            try:
                if cursor is None:
                    await self._ensure_group()
                    cursor = b"0"
                entries = await self._fetch(cursor)
            except StoreUnavailable as error:
                if failures == 0:
                    log.warning("reports_unreadable", stream=self._stream, why=str(error))
                failures += 1
                cursor = None  # an answer may have been lost with reports in it: they are pending, ask for those first
                await pause(failures)
                continue
            failures = 0
            for entry_id, fields in entries:
                if entry_id not in self._handled:
                    if (report := _field(fields, b"report", CallReport)) is not None:
                        await on_report(report)
                    elif (notice := _field(fields, b"notice", CallNotice)) is not None:
                        on_notice(notice)  # of a worker one version older
                    self._handled.add(entry_id)
                    self._to_acknowledge.set()
            if cursor != b">":
                cursor = entries[-1][0] if entries else b">"

    async def _read_notices(self, on_notice: Callable[[CallNotice], None]) -> None:
        failures = 0
        last = (0, 0)  # the entry that was read last
        away = True
        while True:
            try:
                if away:
                    now_ms = await self._time_ms()
                    recent_ms = now_ms - round(1000 * min(NOTICE_SECONDS, time.monotonic() - self._began))
                    if not recent_ms <= last[0] <= now_ms:
                        last = (recent_ms, 0)
                    away = False
                async with redis_call(redis_unavailable, BLOCK_SECONDS * 2):
                    answer: Any = await self._redis.xread(
                        {self._notices: f"{last[0]}-{last[1]}"}, count=READ_ITEMS, block=int(BLOCK_SECONDS * 1000)
                    )
            except StoreUnavailable as error:
                if failures == 0:
                    log.warning("notices_unreadable", stream=self._notices, why=str(error))
                failures += 1
                away = True
                await pause(failures)
                continue
            failures = 0
            for entry_id, fields in (entry for _, entries in answer or [] for entry in entries):
                at_ms, _, number = entry_id.decode().partition("-")
                last = int(at_ms), int(number)
                notice = _field(fields, b"notice", CallNotice)
                if notice is not None:
                    on_notice(notice)

    async def _time_ms(self) -> int:
        """Redis' own clock, which entries are numbered by: the hosts' clocks may differ."""
        async with redis_call(redis_unavailable):
            seconds, microseconds = await self._redis.time()
        return seconds * 1000 + microseconds // 1000

    async def _ensure_group(self) -> None:
        async with redis_call(redis_unavailable):
            try:
                await self._redis.xgroup_create(self._stream, REPORT_GROUP, id="0", mkstream=True)
            except redis.exceptions.ResponseError as error:
                if "BUSYGROUP" not in str(error):
                    raise

    async def _fetch(self, cursor: bytes) -> list[tuple[bytes, dict[bytes, bytes]]]:
        """(id, fields) of the next entries; one that was trimmed away meanwhile has no fields."""
        async with redis_call(redis_unavailable, BLOCK_SECONDS * 2):
            answer: Any = await self._redis.xreadgroup(
                REPORT_GROUP,
                self._consumer,
                {self._stream: cursor},
                count=READ_ITEMS,
                block=int(BLOCK_SECONDS * 1000),
            )
        return [(entry_id, fields or {}) for _, entries in answer or [] for entry_id, fields in entries]

    async def _acknowledge(self) -> None:
        failures = 0
        while True:
            await self._to_acknowledge.wait()
            self._to_acknowledge.clear()
            ids = list(islice(self._handled, ACKNOWLEDGE_ITEMS))
            await self._durable()
            try:
                async with redis_call(redis_unavailable), self._redis.pipeline(transaction=True) as pipeline:
                    pipeline.xack(self._stream, REPORT_GROUP, *ids)
                    pipeline.xdel(self._stream, *ids)
                    await pipeline.execute()
            except StoreUnavailable:
                failures += 1
                self._to_acknowledge.set()
                await pause(failures)
                continue
            failures = 0
            self._handled.difference_update(ids)
            if self._handled:
                self._to_acknowledge.set()


class CommandReader:
    """Hears the commands for a node's controller."""

    def __init__(self, client: redis.asyncio.Redis, node: str) -> None:
        self._redis = client
        self._channel = commands_channel(node)

    async def run(self, handle: Callable[[Command], Awaitable[None]]) -> None:
        """Hand every command to `handle`, for ever. While Redis is away none is heard, and the sender is told so."""
        await listen(self._redis, self._channel, Command, handle)
