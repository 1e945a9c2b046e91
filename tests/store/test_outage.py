"""PostgreSQL away, the disk full, processes killed: every record is there in the end, once and as it was last."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import threading
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from ari_app.cli.db import db
from ari_app.errors import StoreUnavailable
from ari_app.store import writer as module
from ari_app.store.calls import CallStore
from ari_app.store.embedded import EmbeddedStores
from ari_app.store.framing import Record
from ari_app.store.records import CallEvent, CallRow
from ari_app.store.spool import Spool, survey
from ari_app.store.writer import RecordWriter
from tests.store.record_source import EVENTS, T0, call_id
from tests.stores import until

pytestmark = pytest.mark.store

MB = 1_000_000


def row(**values) -> CallRow:
    given = {"call_id": str(uuid.uuid4()), "call_sid": uuid.uuid4().hex, "state": "new", "created_at": T0}
    return CallRow(**({"node": "n1", "direction": "inbound"} | given | values))


def event(call: str, seq: int = 0) -> CallEvent:
    return CallEvent(call_id=call, source="controller-1", seq=seq, at=T0, event="arrived")


async def count(pool, table: str) -> int:
    return await pool.fetchval(f"SELECT count(*) FROM {table}")


@asynccontextmanager
async def writing(pool, folder: Path, max_bytes: int = 50 * MB, seconds: float = 5) -> AsyncIterator[RecordWriter]:
    writer = RecordWriter(pool, Spool(folder, max_bytes))
    writer.start()
    try:
        yield writer
    finally:
        await writer.stop(seconds)


@asynccontextmanager
async def postgres_away(servers: EmbeddedStores) -> AsyncIterator[None]:
    await servers.postgres.stop()
    try:
        yield
    finally:
        servers.postgres.start()
        await servers.ready()


async def test_records_go_by_the_disk_and_leave_nothing_there(pool, tmp_path):
    async with writing(pool, tmp_path) as writer:
        rows = [row() for _ in range(200)]
        for first in rows:
            writer.call(first)
            writer.event(event(first.call_id))
            if len(first.call_id) % 7 == 0:
                await asyncio.sleep(0.001)
        assert await writer.replayed(5)
        await writer.barrier()
        assert (writer.depth, writer.spool_bytes, writer.age_seconds) == (0, 0, 0.0)
        assert writer.spool_usable
        assert await count(pool, "calls") == await count(pool, "call_events") == 200
    assert not list(tmp_path.glob("*.spool"))


async def test_what_is_left_on_disk_is_written_by_the_next_before_calls_are_adopted(pool, servers, tmp_path):
    first, talking = row(), row(worker_id="gw/0")
    async with postgres_away(servers):
        async with writing(pool, tmp_path, seconds=0.2) as writer:
            for state in (first, talking):
                writer.call(state)
                writer.event(event(state.call_id))
            await until(lambda: writer.figures.attempts_failed > 0)
            writer.call(replace(first, state="ended", ended_at=T0))
            async with asyncio.timeout(5):
                await writer.barrier()  # safe on this disk: as good as stored
            assert (writer.depth, writer.spool_usable) == (5, True)
            assert writer.spool_bytes > 500
            assert writer.age_seconds > 0
            async with asyncio.timeout(5):
                assert await writer.stop(60) == 0  # lost; and what is safe on disk is not waited for

        async with writing(pool, tmp_path, seconds=0.2) as writer:
            assert not await writer.replayed(5)
            assert writer.depth == 5
            calls = CallStore(pool, lambda: writer.replayed(5))
            with pytest.raises(StoreUnavailable, match="earlier controller are not in PostgreSQL yet"):
                await calls.open_calls("n1")

    async with writing(pool, tmp_path) as writer:
        writer.call(replace(talking, state="talking", connected_at=T0))
        await until(lambda: writer.replayed(0.1))
        [open_call] = await CallStore(pool, lambda: writer.replayed(5)).open_calls("n1")
        assert open_call.call_id == talking.call_id
    assert await count(pool, "calls WHERE state = 'talking'") == await count(pool, "calls WHERE state = 'ended'") == 1
    assert await count(pool, "call_events") == 2


@pytest.mark.timeout(240)
async def test_processes_and_postgres_killed_in_the_middle_lose_and_double_nothing(pool, servers, stores, tmp_path):
    urls = json.dumps({"postgres": stores.postgres, "redis": stores.redis})
    kept: dict[int, int] = {}
    for run in range(1, 9):
        argv = [sys.executable, "-m", "tests.store.record_source", urls, str(tmp_path), str(run)]
        process = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE, env=os.environ)
        assert process.stdout is not None
        kept[run] = await _kept(process.stdout)
        restart = None
        if run % 2:
            # The server's as well, at any moment of a batch.
            await asyncio.sleep(random.uniform(0, 0.1))
            os.kill(servers.postgres.running().pid, signal.SIGKILL)
            restart = asyncio.create_task(_postgres_again(servers))
            await asyncio.sleep(random.uniform(0, 1.5))
        else:
            await asyncio.sleep(random.uniform(0, 0.3))
        process.kill()
        while further := await _kept(process.stdout):
            kept[run] = further
        await process.wait()
        if restart is not None:
            await restart
    async with writing(pool, tmp_path) as writer:
        await until(lambda: writer.replayed(0.1), 30)
        assert writer.spool_damaged == 0
    rows = {each.call_id: each for each in await CallStore(pool).list_calls(limit=100_000)}
    stories = dict(await pool.fetch("SELECT call_id::text, array_agg(seq ORDER BY seq) FROM call_events GROUP BY 1"))
    for run, calls in kept.items():
        assert calls > 0
        for number in range(calls):
            assert rows[call_id(run, number)].ended_at is not None, (run, number)
            assert stories[call_id(run, number)] == list(range(EVENTS))
    # Those that were under way: what was queued before is there as far as it goes.
    assert all(seqs == list(range(len(seqs))) for seqs in stories.values())


async def _kept(output: asyncio.StreamReader) -> int:
    """How many calls the process says are kept, the next time it does; 0 when it has ended."""
    async for line in output:
        if line.startswith(b"kept ") and line.endswith(b"\n"):
            return int(line.split()[1])
    return 0


async def _postgres_again(servers: EmbeddedStores) -> None:
    assert await servers.postgres.exited(5) is not None
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(StoreUnavailable):  # the killed one's children have to be gone
                servers.postgres.start()
                await servers.ready()
                return
            await asyncio.sleep(0.1)


async def test_a_folder_that_cannot_be_used_leaves_records_in_memory_until_it_can(pool, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.1)
    (tmp_path / "spool").write_text("a file in its place")
    async with writing(pool, tmp_path / "spool") as writer:
        writer.call(row())
        assert await writer.replayed(5)
        await writer.barrier()
        assert not writer.spool_usable
        assert await count(pool, "calls") == 1
        (tmp_path / "spool").unlink()
        writer.call(row())
        await until(lambda: writer.spool_usable)
        writer.call(row())
        await writer.barrier()
        assert await count(pool, "calls") == 3


async def test_two_processes_never_write_the_same_spool(pool, tmp_path, monkeypatch):
    left, first = Spool(tmp_path, MB), row()
    left.open()
    left.append([Record("call", 1, msgspec.json.encode(first))], sync=True)
    async with writing(pool, tmp_path) as writer:
        writer.call(replace(first, state="talking"))
        writer.event(event(first.call_id))
        assert not await writer.replayed(0.5)  # its records come first
        assert not writer.spool_usable
        assert await count(pool, "calls") == 0
        left.close()
        assert await writer.replayed(5)
        await writer.barrier()
        assert writer.spool_usable
        assert await count(pool, "calls WHERE state = 'talking'") == 1
    left.open()
    monkeypatch.setattr(module, "BUSY_SECONDS", 0.2)
    async with writing(pool, tmp_path) as writer:
        writer.call(row())
        assert await writer.replayed(5)  # one that does not end is not waited for without end
        await writer.barrier()
        assert await count(pool, "calls") == 2
    left.close()


async def test_a_full_spool_gives_events_up_first_and_keeps_calls_in_memory(pool, servers, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.1)
    async with writing(pool, tmp_path, max_bytes=20_000) as writer:
        async with postgres_away(servers):
            events = calls = 0
            while writer.figures.overflowed == 0:
                writer.event(event(call_id(1, events)))
                events += 1
                await until(lambda: len(writer._queue) == 0 or not writer.spool_usable)
            assert 0.75 * 20_000 < writer.spool_bytes < 0.85 * 20_000
            while writer.spool_usable:
                writer.call(row())
                calls += 1
                await asyncio.sleep(0.001)
            for _ in range(50):  # and beyond it, in memory
                writer.call(row())
                calls += 1
            assert writer.spool_bytes <= 20_000
            assert writer.figures.overflowed == 1
        await writer.barrier()
        await until(lambda: writer.depth == 0)
        assert await count(pool, "calls") == calls
        assert await count(pool, "call_events") == events - 1
        assert writer.spool_bytes == 0
        await until(lambda: writer.spool_usable)


async def test_a_disk_that_refuses_in_the_middle_of_an_outage_loses_nothing(pool, servers, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.1)
    write, refuse = os.write, [False]

    def sometimes(file: int, data: bytes) -> int:
        if refuse[0]:
            write(file, bytes(data)[: len(data) // 2])
            raise OSError(28, "No space left on device")
        return write(file, data)

    rows = [row() for _ in range(300)]
    async with writing(pool, tmp_path) as writer:
        await writer.replayed(5)
        monkeypatch.setattr("ari_app.store.spool.os.write", sometimes)
        async with postgres_away(servers):
            for number, first in enumerate(rows):
                refuse[0] = 100 <= number < 200
                writer.call(first)
                writer.event(event(first.call_id))
                writer.call(replace(first, state="ended", ended_at=T0))
                await asyncio.sleep(0.005)
            assert not refuse[0]
        await until(lambda: writer.depth == 0, 20)
        assert await count(pool, "calls WHERE state = 'ended'") == await count(pool, "call_events") == len(rows)
        assert (writer.figures.overflowed, writer.figures.refused, writer.spool_damaged) == (0, 0, 0)


async def test_what_is_queued_while_the_disk_syncs_is_in_the_file_at_once(pool, servers, tmp_path, monkeypatch):
    syncing, go_on, sync = threading.Event(), threading.Event(), os.fdatasync

    def slowly(file: int) -> None:
        syncing.set()
        go_on.wait(30)
        sync(file)

    async with writing(pool, tmp_path) as writer:
        async with postgres_away(servers):
            writer.call(row())
            await until(lambda: writer.figures.attempts_failed > 0)
            monkeypatch.setattr("ari_app.store.spool.os.fdatasync", slowly)
            writer.call(row())
            await until(syncing.is_set)
            writer.call(row())
            kept = asyncio.create_task(writer.barrier())
            await until(lambda: survey(tmp_path).records == 3)  # a kill would not take it
            assert not kept.done()
            go_on.set()
            async with asyncio.timeout(10):
                await kept
        await until(lambda: writer.depth == 0)
        assert await count(pool, "calls") == 3


async def test_the_spool_of_a_dead_machine_is_looked_at_and_written(pool, stores, tmp_path):
    folder, config = tmp_path / "spool", tmp_path / "node.yml"
    config.write_text(
        f"node: n1\nstate_dir: {tmp_path}\nstore: {{postgres: '{stores.postgres}', redis: '{stores.redis}'}}\n"
    )

    async def ask(*arguments: str) -> tuple[int, str]:
        result = await asyncio.to_thread(CliRunner().invoke, db, ["spool", "-c", str(config), *arguments])
        return result.exit_code, result.output

    spool = Spool(folder, MB)
    spool.open()
    first = row()
    for record in (first, event(first.call_id), replace(first, state="ended", ended_at=T0)):
        kind = "call" if isinstance(record, CallRow) else "event"
        spool.append([Record(kind, 1_700_000_000_000, msgspec.json.encode(record))], sync=True)
    code, said = await ask()
    assert (code, said.splitlines()[0]) == (0, f"3 records (2 states of calls) in {spool.bytes} bytes")
    assert "queued from 2023-11-1" in said
    code, said = await ask("--write")
    assert code == 1
    assert f"process {os.getpid()} has it: a controller that runs writes its own spool" in said
    spool.close()
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / f"{2:016}.spool").write_bytes(b"junk\n" + b"00000000 99 1 e {")
    for _ in range(2):
        code, said = await ask(str(copy), "--write")
        assert code == 0, said
    assert "0 records" in said
    assert await count(pool, "calls WHERE state = 'ended'") == await count(pool, "call_events") == 1
    assert [path.name for path in copy.iterdir() if path.name != "lock"] == ["damaged"]
    config.write_text(f"node: n1\nstore: {{postgres: 'postgresql://x@/x?host={tmp_path}', redis: 'redis://h'}}\n")
    code, said = await ask(str(folder), "--write")
    assert code == 1
    code, said = await ask(str(folder))
    assert "3 records" in said
