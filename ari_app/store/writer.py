"""Call records on their way to PostgreSQL: onto this machine's disk at once, and from there, in batches, to the server.

Callers never wait, and never fail because of database or disk. Invariants:
- A record that was queued is written once PostgreSQL can be used, by this process or, where there is a spool, by the
  next: a batch is repeated until it is in, and is released from the spool only then. Writing it twice changes nothing
  (an event has its name as primary key, a call's state is merged into its row), so neither an answer that got lost nor
  a process that was killed between the two does harm: that makes it exactly once.
- An older state of a call never replaces a newer one: one task writes in order, and of several states of a call in a
  batch only the latest is written. Known facts are not forgotten (null never replaces a value), and an ended call
  takes from the state of an open one only what it lacks.
- A record that PostgreSQL will never take (see `postgres.is_about_the_data`) is logged, counted and left out; its
  neighbours are written.
- Where the disk does not take records they wait in memory, and go to PostgreSQL after what the disk has. When room
  runs out, on disk or in memory, events are given up first: the last fifth of it is for calls.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, fields

import asyncpg
import msgspec
import structlog

from ari_app.store.framing import MAX_PAYLOAD_BYTES, Kind, Record
from ari_app.store.journal import Journal
from ari_app.store.postgres import COMMAND_SECONDS, CONNECT_SECONDS, execute
from ari_app.store.records import CallEvent, CallRow
from ari_app.store.spool import Spool

QUEUE_ITEMS = 200_000
EVENTS_SHARE = 0.8
"""Of the room in memory and on disk; what is left is for the states of calls."""
BATCH_ITEMS = 500
LINGER_SECONDS = 0.05
"""How long the first record of a batch waits for company."""
BACKOFF_FIRST_SECONDS = 0.1
BACKOFF_MAX_SECONDS = 5.0
SLOW_SECONDS = 1.0
"""A batch that takes as long is waited for as if PostgreSQL were away."""
RETRY_SECONDS = 5.0
"""How often a disk that did not take records is tried again."""
BUSY_RETRY_SECONDS = 0.2
BUSY_SECONDS = 60.0
"""How long records wait, in memory, for another process that has the spool: one that is about to end."""
LOG_EVERY_SECONDS = 30.0

log = structlog.get_logger(__name__)

_CALL_COLUMNS = tuple(field.name for field in fields(CallRow))
_EVENT_COLUMNS = tuple(field.name for field in fields(CallEvent))


def _statement() -> str:
    # An open state that comes after the end is an old one: of a spool that was written once more, say.
    late = "c.ended_at IS NOT NULL AND excluded.ended_at IS NULL"
    known = ", ".join(
        f"{name} = CASE WHEN {late} THEN COALESCE(c.{name}, excluded.{name})"
        f" ELSE COALESCE(excluded.{name}, c.{name}) END"
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
            state = CASE WHEN {late} THEN c.state ELSE excluded.state END,
            {known}
    """  # noqa: S608 - names of our own fields


_WRITE = _statement()


class _CallId(msgspec.Struct):
    call_id: str


@dataclass(frozen=True, slots=True)
class _Item:
    seq: int
    record: Record


@dataclass(slots=True)
class WriterFigures:
    """Counters of one writer; they never decrease."""

    written: int = 0
    refused: int = 0
    """Records that PostgreSQL, or the encoding, will never take."""
    overflowed: int = 0
    """Records that were not queued, because there was no room for them."""
    attempts_failed: int = 0
    batches: int = 0


class RecordWriter:
    """Queues `CallRow` and `CallEvent` and writes them behind the caller's back."""

    def __init__(self, pool: asyncpg.Pool, spool: Spool | None = None, *, queue_items: int = QUEUE_ITEMS) -> None:
        """`spool` becomes the writer's own. Without one, records are in memory alone until they are written."""
        self.figures = WriterFigures()
        self._pool = pool
        self._journal = None if spool is None else Journal(spool)
        self._queue_items = queue_items
        self._encode = msgspec.json.Encoder().encode
        self._seq = 0
        # What is not on disk. The key of an event is its number here, of a call its id: a newer state takes the place
        # of the queued one.
        self._queue: OrderedDict[int | str, _Item] = OrderedDict()
        self._in_hand: list[_Item] = []
        self._wake = asyncio.Event()
        self._wake_disk = asyncio.Event()
        self._wake_sync = asyncio.Event()
        self._away = False
        """PostgreSQL does not take what it is given, or not within `SLOW_SECONDS`."""
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []
        self._waiters: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []
        self._replayed = self._journal is None
        self._logged: dict[str, float] = {}

    @property
    def depth(self) -> int:
        """Records that are not written yet."""
        # What is in hand from the disk is counted there.
        disk = 0 if self._journal is None else self._journal.spool.records
        memory = sum(item.seq > 0 for item in self._in_hand[:1]) * len(self._in_hand)
        return len(self._queue) + memory + disk

    @property
    def age_seconds(self) -> float:
        """How long the oldest of them has been waiting, by the clock of the machine; 0 when there is none."""
        oldest = self._in_hand[0] if self._in_hand else next(iter(self._queue.values()), None)
        return 0.0 if oldest is None else max(0.0, time.time() - oldest.record.at_ms / 1000)

    @property
    def spool_bytes(self) -> int:
        """What the records take of the disk."""
        return 0 if self._journal is None else self._journal.spool.bytes

    @property
    def spool_damaged(self) -> int:
        """Pieces of the spool that were no records, and were set aside."""
        return 0 if self._journal is None else self._journal.spool.damaged

    @property
    def spool_usable(self) -> bool:
        """Whether queued records survive this process."""
        return self._journal is not None and self._journal.usable

    def start(self) -> None:
        """Begin to write; needs a running event loop."""
        self._tasks = [asyncio.create_task(self._run(), name="record-writer")]
        if self._journal is not None:
            self._tasks.append(asyncio.create_task(self._keep(self._journal), name="record-spool"))
            self._tasks.append(asyncio.create_task(self._sync(self._journal), name="record-sync"))
            self._wake_disk.set()

    async def stop(self, deadline_seconds: float) -> int:
        """Write what is queued, for at most `deadline_seconds`; how many records are lost for want of time. What is in
        the spool is not: the next writer has it."""
        self._stopping = True
        self._wake.set()
        self._wake_disk.set()
        if self._tasks:
            # While PostgreSQL is away, a disk that has everything is not to be waited for.
            self._tasks.append(asyncio.create_task(self._until(self._all_kept), name="records-kept"))
            written_or_kept = (self._tasks[0], self._tasks[-1])
            await asyncio.wait(written_or_kept, timeout=deadline_seconds, return_when=asyncio.FIRST_COMPLETED)
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
        for _, waiter in self._waiters:
            waiter.cancel()
        kept = 0
        if self._journal is not None and self._journal.known:
            if self._queue and await self._journal.append([item.record for item in self._queue.values()], sync=True):
                self._queue.clear()
            elif self._journal.usable:
                await self._journal.sync()
            kept = self._journal.spool.records
            await self._journal.close()
        lost = self.depth - kept
        if kept:
            log.warning("records_left_in_spool", records=kept, why="not written before the stop's deadline")
        if lost:
            log.error("records_lost", records=lost, why="not written before the stop's deadline")
        return lost

    def call(self, row: CallRow) -> None:
        """Queue the state of a call; an earlier one that is still queued need not be written any more."""
        self._put(row.call_id, "call", row)

    def event(self, event: CallEvent) -> None:
        """Queue an event."""
        self._put(self._seq + 1, "event", event)

    async def barrier(self) -> None:
        """Returns when all that has been queued up to now is in PostgreSQL (or was refused by it), or, while PostgreSQL
        is away, safe on this machine's disk."""
        seq = self._seq
        await self._until(lambda: not any(0 < item.seq <= seq for item in (*self._in_hand[:1], *self._first())))
        if self._journal is not None:
            spool, end = self._journal.spool, self._journal.spool.appended
            await self._until(lambda: spool.released >= end or (self._away and spool.synced >= end))

    async def replayed(self, seconds: float) -> bool:
        """Waits until PostgreSQL has all that an earlier process left in the spool. False: it has not, because it is
        away, or after so many seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._until(lambda: self._replayed or self._away)
        return self._replayed

    def _all_kept(self) -> bool:
        journal = self._journal
        memory = bool(self._queue) or any(item.seq > 0 for item in self._in_hand[:1])
        return (
            self._away
            and not memory
            and journal is not None
            and journal.usable
            and journal.spool.synced == journal.spool.appended
        )

    def _first(self) -> list[_Item]:
        return [next(iter(self._queue.values()))] if self._queue else []

    async def _until(self, holds: Callable[[], bool]) -> None:
        if not holds():
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append((holds, waiter))
            await waiter

    def _progressed(self) -> None:
        if self._journal is not None and not self._replayed and self._journal.known:
            self._replayed = self._journal.spool.released >= self._journal.found
        still = []
        for holds, waiter in self._waiters:
            if not holds():
                still.append((holds, waiter))
            elif not waiter.done():
                waiter.set_result(None)
        self._waiters = [entry for entry in still if not entry[1].done()]

    def _put(self, key: int | str, kind: Kind, record: CallRow | CallEvent) -> None:
        try:
            payload = self._encode(record)
            if len(payload) > MAX_PAYLOAD_BYTES:
                raise ValueError(f"{len(payload)} bytes: at most {MAX_PAYLOAD_BYTES} are taken")
        except (UnicodeError, TypeError, ValueError, OverflowError) as error:
            self.figures.refused += 1
            log.error("record_refused", kind=kind, call_id=record.call_id, why=str(error))
            return
        replaced = self._queue.get(key)
        if replaced is None and not self._room(kind):
            self.figures.overflowed += 1
            if self._may_log("overflow"):
                log.error(
                    "records_overflow", depth=self.depth, spool_bytes=self.spool_bytes, lost=self.figures.overflowed
                )
            return
        self._seq += 1
        # The replaced record's place and age are kept: `barrier` and `age_seconds` rest on the queue being in order.
        seq, at_ms = (replaced.seq, replaced.record.at_ms) if replaced else (self._seq, time.time_ns() // 1_000_000)
        self._queue[key] = _Item(seq, Record(kind, at_ms, payload))
        self._wake.set()
        self._wake_disk.set()

    def _room(self, kind: Kind) -> bool:
        share = EVENTS_SHARE if kind == "event" else 1.0
        if len(self._queue) + len(self._in_hand) >= self._queue_items * share:
            return False
        # A spool that is full leaves the calls their place in memory.
        spool = None if self._journal is None else self._journal.spool
        return kind == "call" or spool is None or spool.bytes < spool.max_bytes * share

    async def _keep(self, journal: Journal) -> None:
        """Puts what is queued onto the disk, for ever."""
        began = time.monotonic()
        while True:
            await self._wake_disk.wait()
            self._wake_disk.clear()
            if not journal.known and not await journal.open():
                # Who has it writes what is in it, and soon gives it up; otherwise nobody knows what to wait for.
                self._replayed = not journal.busy or time.monotonic() - began > BUSY_SECONDS
            items = list(self._queue.items())
            due = journal.known and (items or not journal.usable)
            if due and await journal.append([item.record for _, item in items], sync=not journal.usable):
                self._wake_sync.set()
                for key, item in items:
                    if self._queue.get(key) is item:
                        del self._queue[key]
            self._wake.set()
            self._progressed()
            if not journal.usable:
                await asyncio.sleep(BUSY_RETRY_SECONDS if journal.busy else RETRY_SECONDS)
                self._wake_disk.set()

    async def _sync(self, journal: Journal) -> None:
        """While PostgreSQL is away, has the disk keep what is on it through a loss of power, for ever."""
        while True:
            await self._wake_sync.wait()
            self._wake_sync.clear()
            if self._away and journal.usable:
                await journal.sync()
                self._progressed()

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self.depth < BATCH_ITEMS and not self._stopping:
                await asyncio.sleep(LINGER_SECONDS)
            from_disk = await self._take()
            if self._in_hand:
                await self._write_until_done([item.record for item in self._in_hand])
                self.figures.batches += 1
                if from_disk and self._journal is not None:
                    await self._journal.release()
                    self._wake_disk.set()
                self._in_hand = []
                self._wake.set()
            self._progressed()
            if self._stopping and not self._in_hand and not self.depth:
                return

    async def _take(self) -> bool:
        """Takes the oldest records in hand; whether they are the disk's."""
        journal = self._journal
        if journal is not None:
            found = await journal.read(BATCH_ITEMS)
            self._in_hand = [_Item(0, record) for record in found]
            # What is being appended may come to be on the disk all the same: only then is it known where it is.
            if found or journal.usable or journal.appending or not self._replayed:
                return bool(found)
        while self._queue and len(self._in_hand) < BATCH_ITEMS:
            self._in_hand.append(self._queue.popitem(last=False)[1])
        return False

    async def _write_until_done(self, records: list[Record]) -> None:
        failures = 0
        slow = asyncio.get_running_loop().call_later(SLOW_SECONDS, self._set_away)
        try:
            while True:
                try:
                    await self._write(records)
                except asyncpg.PostgresError as error:  # about the data: `unavailable` has turned the others
                    self._away = False
                    await self._isolate(records, error)
                    return
                except Exception as error:  # whatever it is, the records are worth another try
                    why = str(error)
                else:
                    self._away = False
                    self.figures.written += len(records)
                    if failures:
                        log.info("records_flow_again", after_failures=failures, depth=self.depth)
                    return
                failures += 1
                self.figures.attempts_failed += 1
                self._set_away()
                if self._may_log("waiting"):
                    log.warning(
                        "records_wait",
                        why=why,
                        depth=self.depth,
                        age_seconds=round(self.age_seconds, 1),
                        spool_bytes=self.spool_bytes,
                    )
                # Full jitter: many controllers do not come back to a restarted server in step.
                ceiling = min(BACKOFF_MAX_SECONDS, BACKOFF_FIRST_SECONDS * 2 ** min(failures, 10))
                await asyncio.sleep(random.uniform(0, ceiling))
        finally:
            slow.cancel()

    def _set_away(self) -> None:
        if not self._away:
            self._away = True
            self._wake_sync.set()  # from now on the disk is all that there is: what is on it has to be safe there
            self._progressed()

    async def _isolate(self, records: list[Record], error: Exception) -> None:
        if len(records) > 1:
            middle = len(records) // 2
            await self._write_until_done(records[:middle])
            await self._write_until_done(records[middle:])
            return
        self.figures.refused += 1
        about = msgspec.json.decode(records[0].payload)
        log.error("record_refused", kind=records[0].kind, call_id=about["call_id"], why=str(error))

    async def _write(self, records: list[Record]) -> None:
        events = b",".join(record.payload for record in records if record.kind == "event")
        # Of one call a statement takes one state.
        latest = {msgspec.json.decode(r.payload, type=_CallId).call_id: r for r in records if r.kind == "call"}
        calls = b",".join(record.payload for record in latest.values())
        async with asyncio.timeout(CONNECT_SECONDS + COMMAND_SECONDS):
            await execute(self._pool, _WRITE, f"[{events.decode()}]", f"[{calls.decode()}]")

    def _may_log(self, what: str) -> bool:
        now = time.monotonic()
        if now - self._logged.get(what, -LOG_EVERY_SECONDS) < LOG_EVERY_SECONDS:
            return False
        self._logged[what] = now
        return True
