"""The record writer: nothing lost, nothing twice, nothing held up by a record that cannot be written."""

from __future__ import annotations

import asyncio
import random
import uuid
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
import pytest_asyncio

from ari_app.store.calls import CallStore
from ari_app.store.records import CallEvent, CallRow, RecordingPart
from ari_app.store.writer import BATCH_ITEMS, RecordWriter
from audiosocket.callspec import MediaFigures
from tests.stores import until

pytestmark = pytest.mark.store

T0 = datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)


def row(**values) -> CallRow:
    base = {
        "call_id": str(uuid.uuid4()),
        "call_sid": uuid.uuid4().hex,
        "node": "n1",
        "direction": "inbound",
        "state": "ringing",
        "created_at": T0,
    }
    return CallRow(**(base | values))


def event(call_id: str, seq: int = 0, **values) -> CallEvent:
    base = {"call_id": call_id, "source": "controller-1", "seq": seq, "at": T0, "event": "arrived"}
    return CallEvent(**(base | values))


@pytest_asyncio.fixture
async def writer(pool):
    running = RecordWriter(pool)
    running.start()
    yield running
    await running.stop(5)


async def count(pool, table: str) -> int:
    return await pool.fetchval(f"SELECT count(*) FROM {table}")


async def test_every_field_comes_back_as_it_went(writer, pool):
    whole = row(
        stream_sid="s" * 32,
        trunk="bsnl",
        caller="+919000000001",
        callee="+918000000002",
        application='शोध "quoted" \\ \n🎧',
        caller_channel_id="1700000000.1",
        worker_id="gw/0",
        leg_uuid=str(uuid.uuid4()),
        answered_at=T0 + timedelta(seconds=1),
        connected_at=T0 + timedelta(seconds=1.5),
        ended_at=T0 + timedelta(seconds=9),
        state="ended",
        result="success",
        reason="caller_hangup",
        detail="Normal Clearing",
        hangup_cause=16,
        recording="/var/lib/trunkbridge/recordings/2026-01-02/0123.wav",
        recordings=tuple(
            RecordingPart(recording=f"/recordings/{number}.wav", worker_id=f"gw/{number}", began_at=T0)
            for number in range(2)
        ),
        media=MediaFigures(caller_frames=7, frames_dropped={"late": 2}, connect_ms=812),
    )
    told = event(whole.call_id, 3, from_state="a", to_state="b", cause="x", detail={"n": [1, {"k": None}]})
    writer.call(whole)
    writer.event(told)
    await writer.barrier()
    store = CallStore(pool)
    assert await store.get_call(whole.call_id) == whole
    assert await store.events(whole.call_id) == [told]
    assert (writer.depth, writer.age_seconds) == (0, 0.0)


async def test_states_of_a_call_that_wait_together_are_written_as_the_latest(writer, pool):
    first = row()
    for state in ("ringing", "answered", "connected"):
        writer.call(replace(first, state=state))
    assert writer.depth == 1
    await writer.barrier()
    found = await CallStore(pool).get_call(first.call_id)
    assert found is not None
    assert found.state == "connected"
    assert writer.figures.written == 1


async def test_null_forgets_nothing_and_an_ended_call_stays_ended(writer, pool):
    first = row(trunk="bsnl", caller="+919000000001")
    ended = replace(first, state="ended", ended_at=T0, reason="caller_hangup")
    for state in (first, ended, replace(first, state="connected", trunk=None, created_at=T0 + timedelta(days=1))):
        writer.call(state)
        await writer.barrier()
    assert await CallStore(pool).get_call(first.call_id) == ended


async def test_the_same_event_twice_is_one(writer, pool):
    call_id = str(uuid.uuid4())
    for _ in range(2):
        writer.event(event(call_id, 1))
        writer.event(event(call_id, 2))
        writer.event(event(call_id, 1, source="controller-2"))
        await writer.barrier()
    assert await count(pool, "call_events") == 3
    assert writer.figures.refused == 0


class LosingAnswers:
    """A pool whose connections break after the server has committed and before its answer arrives, every other time."""

    def __init__(self, pool) -> None:
        self.pool = pool
        self.lost = 0
        self.calls = 0

    @asynccontextmanager
    async def acquire(self):
        async with self.pool.acquire() as self.connection:
            yield self

    def terminate(self):
        self.connection.terminate()

    async def execute(self, *arguments):
        await self.connection.execute(*arguments)
        self.calls += 1
        if self.calls % 2:
            self.lost += 1
            raise ConnectionResetError("connection lost")


async def test_a_batch_whose_answer_is_lost_is_repeated_without_harm(pool):
    losing = LosingAnswers(pool)
    writer = RecordWriter(losing)
    writer.start()
    rows = [row() for _ in range(5)]
    for first in rows:
        writer.call(first)
        writer.event(event(first.call_id))
        await writer.barrier()
    assert await writer.stop(5) == 0
    assert losing.lost == 5
    assert await count(pool, "calls") == await count(pool, "call_events") == 5
    assert (writer.figures.written, writer.figures.refused) == (10, 0)


async def test_nothing_is_lost_or_doubled_while_postgres_is_restarted_under_load(writer, pool, servers):
    rows = [row() for _ in range(300)]

    async def calls():
        for index, first in enumerate(rows):
            for seq in range(10):
                writer.event(event(first.call_id, seq))
            writer.call(replace(first, state="connected"))
            await asyncio.sleep(0.005)
            writer.call(replace(first, state="ended", ended_at=T0, hangup_cause=index % 100))

    async def restarts():
        await asyncio.sleep(0.3)
        await servers.postgres.stop()
        await asyncio.sleep(0.7)
        assert writer.depth > 0
        assert writer.age_seconds > 0.1
        servers.postgres.start()
        await servers.ready()

    await asyncio.gather(calls(), restarts())
    await writer.barrier()
    assert await count(pool, "calls WHERE state = 'ended' AND hangup_cause IS NOT NULL") == len(rows)
    assert await count(pool, "call_events") == len(rows) * 10
    assert writer.figures.attempts_failed > 0
    assert (writer.figures.refused, writer.figures.overflowed, writer.depth) == (0, 0, 0)


async def test_postgres_killed_in_the_middle_of_commits(writer, pool, servers):
    call_id, total = str(uuid.uuid4()), 0
    for _ in range(4):
        for _ in range(200):
            writer.event(event(call_id, total))
            total += 1
        await asyncio.sleep(random.uniform(0.045, 0.07))  # about when the batch is on its way
        await pool.fetch(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE pid <> pg_backend_pid() AND datname = 'trunkbridge'"
        )
    await writer.barrier()
    assert await count(pool, "call_events") == total


@pytest.mark.parametrize(
    "poison",
    [
        lambda: event(str(uuid.uuid4()), cause="a\0b"),
        lambda: event(str(uuid.uuid4()), seq=2**40),
        lambda: event("not-a-uuid"),
        lambda: row(caller="lone \ud800 surrogate"),
        lambda: row(call_sid="taken"),
        lambda: row(state=None),
    ],
)
async def test_a_record_that_postgres_refuses_does_not_take_its_neighbours_along(writer, pool, poison):
    writer.call(row(call_sid="taken"))
    await writer.barrier()
    good = [row() for _ in range(20)]
    for index, first in enumerate(good):
        if index == 7:
            bad = poison()
            writer.call(bad) if isinstance(bad, CallRow) else writer.event(bad)
        writer.call(first)
        writer.event(event(first.call_id))
    async with asyncio.timeout(5):
        await writer.barrier()
    assert await count(pool, "calls") == 21
    assert await count(pool, "call_events") == 20
    assert writer.figures.refused == 1
    assert writer.figures.written == 41


async def test_missing_tables_are_waited_for(empty_stores, pool, writer):
    await pool.execute("ALTER TABLE call_events RENAME TO away")
    writer.event(event(str(uuid.uuid4())))
    await until(lambda: writer.figures.attempts_failed > 1)
    assert writer.figures.refused == 0
    await pool.execute("ALTER TABLE away RENAME TO call_events")
    await writer.barrier()
    assert await count(pool, "call_events") == 1


async def test_a_full_queue_gives_up_new_events_first_and_then_new_calls(pool):
    writer = RecordWriter(pool, queue_items=10)
    call_id = str(uuid.uuid4())
    for seq in range(15):
        writer.event(event(call_id, seq))
    assert (writer.depth, writer.figures.overflowed) == (8, 7)
    first, second = row(), row()
    for one in (first, second, row()):
        writer.call(one)
    writer.call(replace(first, state="ended", ended_at=T0))  # takes the place of the one before
    assert (writer.depth, writer.figures.overflowed) == (10, 8)
    writer.start()
    assert await writer.stop(5) == 0
    assert [told.seq for told in await CallStore(pool).events(call_id)] == list(range(8))
    assert await count(pool, "calls WHERE state = 'ended'") == 1
    assert await count(pool, "calls") == 2


async def test_an_open_state_that_comes_after_the_end_changes_nothing_but_what_is_lacking(writer, pool):
    first = row(worker_id="gw/0", trunk="bsnl")
    ended = replace(first, state="ended", ended_at=T0, worker_id="gw/1", trunk=None)
    for state in (ended, first):  # as when a copy of a spool is written that is older than what was written since
        writer.call(state)
        await writer.barrier()
    assert await CallStore(pool).get_call(first.call_id) == replace(ended, trunk="bsnl")


async def test_stop_writes_what_waits_and_gives_up_at_its_deadline(pool, servers):
    writer = RecordWriter(pool)
    writer.start()
    first = row()
    writer.call(first)
    assert await writer.stop(5) == 0
    assert await CallStore(pool).get_call(first.call_id) == first

    writer = RecordWriter(pool)
    writer.start()
    await servers.postgres.stop()
    try:
        writer.call(row())
        assert await writer.stop(0.3) == 1
    finally:
        servers.postgres.start()
        await servers.ready()


async def test_barrier_waits_for_a_state_whose_place_a_newer_one_took(pool):
    writer = RecordWriter(pool)
    first = row()
    for seq in range(BATCH_ITEMS):  # the call is the first of the second batch
        writer.event(event(first.call_id, seq))
    writer.call(first)
    waiting = asyncio.create_task(writer.barrier())
    await asyncio.sleep(0)
    writer.call(replace(first, state="ended"))
    assert not waiting.done()
    writer.start()
    await waiting
    assert writer.figures.written == BATCH_ITEMS + 1
    found = await CallStore(pool).get_call(first.call_id)
    assert found is not None
    assert found.state == "ended"
    assert await writer.stop(5) == 0
    assert await count(pool, "call_events") == BATCH_ITEMS
