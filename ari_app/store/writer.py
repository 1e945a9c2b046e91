"""Call records on their way to PostgreSQL: a bounded queue, and one task that writes it in batches.

Callers never wait, and never fail because of the database. Invariants:
- A record that was queued is written once PostgreSQL can be used: a batch is repeated until it is in, and writing it
  twice changes nothing, so an answer that got lost on the way does no harm.
- An older state of a call never replaces a newer one: one task writes in order, and of several queued states of a call
  only the latest is written. Known facts are not forgotten (null never replaces a value), and an ended call never
  opens again.
- A record that PostgreSQL will never take (see `postgres.is_about_the_data`) is logged, counted and left out; its
  neighbours are written.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import OrderedDict
from dataclasses import dataclass, fields
from typing import Literal

import asyncpg
import msgspec
import structlog

from ari_app.store.postgres import COMMAND_SECONDS, CONNECT_SECONDS, unavailable
from ari_app.store.records import CallEvent, CallRow

QUEUE_ITEMS = 200_000
BATCH_ITEMS = 500
LINGER_SECONDS = 0.05
"""How long the first record of a batch waits for company."""
BACKOFF_FIRST_SECONDS = 0.1
BACKOFF_MAX_SECONDS = 5.0
LOG_EVERY_SECONDS = 30.0

log = structlog.get_logger(__name__)

_CALL_COLUMNS = tuple(field.name for field in fields(CallRow))
_EVENT_COLUMNS = tuple(field.name for field in fields(CallEvent))


def _statement() -> str:
    known = ", ".join(
        f"{name} = COALESCE(excluded.{name}, c.{name})"
        for name in _CALL_COLUMNS
        if name not in ("call_id", "created_at", "state")
    )
    calls, events = ", ".join(_CALL_COLUMNS), ", ".join(_EVENT_COLUMNS)
    # One statement is one transaction and one round trip, and JSON is the cheapest way to hand over many rows.
    return f"""
        WITH e AS (
            INSERT INTO call_events ({events})
            SELECT {events} FROM json_populate_recordset(NULL::call_events, $1::text::json)
            ON CONFLICT DO NOTHING
        )
        INSERT INTO calls AS c ({calls})
        SELECT {calls} FROM json_populate_recordset(NULL::calls, $2::text::json)
        ON CONFLICT (call_id) DO UPDATE SET
            state = CASE WHEN c.ended_at IS NOT NULL AND excluded.ended_at IS NULL THEN c.state ELSE excluded.state END,
            {known}
    """  # noqa: S608 - names of our own fields


_WRITE = _statement()


@dataclass(frozen=True, slots=True)
class _Item:
    seq: int
    queued_at: float
    kind: Literal["call", "event"]
    payload: bytes


@dataclass(slots=True)
class WriterFigures:
    """Counters of one writer; they never decrease."""

    written: int = 0
    refused: int = 0
    """Records that PostgreSQL, or the encoding, will never take."""
    overflowed: int = 0
    """Records that were not queued, because the queue was full."""
    attempts_failed: int = 0
    batches: int = 0


class RecordWriter:
    """Queues `CallRow` and `CallEvent` and writes them behind the caller's back."""

    def __init__(self, pool: asyncpg.Pool, *, queue_items: int = QUEUE_ITEMS) -> None:
        self.figures = WriterFigures()
        self._pool = pool
        self._queue_items = queue_items
        self._encode = msgspec.json.Encoder().encode
        self._seq = 0
        # The key of an event is its number here, of a call its id: a newer state takes the place of the queued one.
        self._queue: OrderedDict[int | str, _Item] = OrderedDict()
        self._in_hand: list[_Item] = []
        self._wake = asyncio.Event()
        self._stopping = False
        self._task: asyncio.Task[None] | None = None
        self._barriers: list[tuple[int, asyncio.Future[None]]] = []
        self._logged: dict[str, float] = {}

    @property
    def depth(self) -> int:
        """Records that are not written yet."""
        return len(self._queue) + len(self._in_hand)

    @property
    def age_seconds(self) -> float:
        """How long the oldest of them has been waiting; 0 when there is none."""
        oldest = self._oldest()
        return 0.0 if oldest is None else time.monotonic() - oldest.queued_at

    def start(self) -> None:
        """Begin to write; needs a running event loop."""
        self._task = asyncio.create_task(self._run(), name="record-writer")

    async def stop(self, deadline_seconds: float) -> int:
        """Write what is queued, for at most `deadline_seconds`; how many records are lost for want of time."""
        self._stopping = True
        self._wake.set()
        if self._task is not None:
            await asyncio.wait((self._task,), timeout=deadline_seconds)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for _, waiter in self._barriers:
            waiter.cancel()
        if self.depth:
            log.error("records_lost", records=self.depth, why="not written before the stop's deadline")
        return self.depth

    def call(self, row: CallRow) -> None:
        """Queue the state of a call; an earlier one that is still queued need not be written any more."""
        self._put(row.call_id, "call", row)

    def event(self, event: CallEvent) -> None:
        """Queue an event."""
        self._put(self._seq + 1, "event", event)

    async def barrier(self) -> None:
        """Returns when all that has been queued up to now is in PostgreSQL (or was refused by it)."""
        if self._oldest() is not None:
            waiter = asyncio.get_running_loop().create_future()
            self._barriers.append((self._seq, waiter))
            await waiter

    def _oldest(self) -> _Item | None:
        return self._in_hand[0] if self._in_hand else next(iter(self._queue.values()), None)

    def _put(self, key: int | str, kind: Literal["call", "event"], record: CallRow | CallEvent) -> None:
        try:
            payload = self._encode(record)
        except (UnicodeError, TypeError, ValueError, OverflowError) as error:
            self.figures.refused += 1
            log.error("record_refused", kind=kind, call_id=record.call_id, why=str(error))
            return
        replaced = self._queue.get(key)
        if replaced is None and self.depth >= self._queue_items:
            self.figures.overflowed += 1
            if self._may_log("overflow"):
                log.error("records_overflow", depth=self.depth, overflowed=self.figures.overflowed)
            return
        self._seq += 1
        # The replaced record's place and age are kept: `barrier` and `age_seconds` rest on the queue being in order.
        seq, queued_at = (replaced.seq, replaced.queued_at) if replaced else (self._seq, time.monotonic())
        self._queue[key] = _Item(seq, queued_at, kind, payload)
        self._wake.set()

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            if len(self._queue) < BATCH_ITEMS and not self._stopping:
                await asyncio.sleep(LINGER_SECONDS)
            while self._queue and len(self._in_hand) < BATCH_ITEMS:
                self._in_hand.append(self._queue.popitem(last=False)[1])
            if not self._queue:
                self._wake.clear()
            if self._in_hand:
                await self._write_until_done(self._in_hand)
                self.figures.batches += 1
                self._in_hand = []
                self._release_barriers()
            if self._stopping:
                if not self._queue:
                    return
                self._wake.set()

    def _release_barriers(self) -> None:
        oldest = self._oldest()
        still = []
        for seq, waiter in self._barriers:
            if oldest is not None and oldest.seq <= seq:
                still.append((seq, waiter))
            elif not waiter.done():
                waiter.set_result(None)
        self._barriers = still

    async def _write_until_done(self, items: list[_Item]) -> None:
        failures = 0
        while True:
            try:
                await self._write(items)
            except asyncpg.PostgresError as error:  # about the data: `unavailable` has turned the others
                await self._isolate(items, error)
                return
            except Exception as error:  # whatever it is, the records are worth another try
                why = str(error)
            else:
                self.figures.written += len(items)
                if failures:
                    log.info("records_flow_again", after_failures=failures, depth=self.depth)
                return
            failures += 1
            self.figures.attempts_failed += 1
            if self._may_log("waiting"):
                log.warning("records_wait", why=why, depth=self.depth, age_seconds=round(self.age_seconds, 1))
            # Full jitter: many controllers do not come back to a restarted server in step.
            ceiling = min(BACKOFF_MAX_SECONDS, BACKOFF_FIRST_SECONDS * 2 ** min(failures, 10))
            await asyncio.sleep(random.uniform(0, ceiling))

    async def _isolate(self, items: list[_Item], error: Exception) -> None:
        if len(items) > 1:
            middle = len(items) // 2
            await self._write_until_done(items[:middle])
            await self._write_until_done(items[middle:])
            return
        self.figures.refused += 1
        about = msgspec.json.decode(items[0].payload)
        log.error("record_refused", kind=items[0].kind, call_id=about["call_id"], why=str(error))

    async def _write(self, items: list[_Item]) -> None:
        events = b",".join(item.payload for item in items if item.kind == "event")
        calls = b",".join(item.payload for item in items if item.kind == "call")
        with unavailable():
            async with asyncio.timeout(CONNECT_SECONDS + COMMAND_SECONDS):
                await self._pool.execute(_WRITE, f"[{events.decode()}]", f"[{calls.decode()}]")

    def _may_log(self, what: str) -> bool:
        now = time.monotonic()
        if now - self._logged.get(what, -LOG_EVERY_SECONDS) < LOG_EVERY_SECONDS:
            return False
        self._logged[what] = now
        return True
