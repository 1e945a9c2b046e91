"""Embedded servers: how they start, who owns them, and that they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import asyncpg
import pytest

from ari_app.errors import ConfigError, StoreUnavailable
from ari_app.store.embedded import EmbeddedStores
from ari_app.store.postgres import connect_options
from audiosocket.runtime.stores import EmbeddedRecord, is_running, open_redis, read_record, resolve
from audiosocket.settings import NodeSettings, StoreUrls
from tests.stores import until

pytestmark = pytest.mark.store

OWNER = """
import asyncio, pathlib, sys
from ari_app.store.command import serve
asyncio.run(serve(pathlib.Path(sys.argv[1])))
"""


def node(state_dir: Path) -> NodeSettings:
    return NodeSettings(node="n1", state_dir=state_dir, store="embedded")


def owner_process(state_dir: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", OWNER, str(state_dir)], stdout=subprocess.DEVNULL)


async def published(state_dir: Path) -> EmbeddedRecord:
    await until(lambda: read_record(state_dir) is not None, 30)
    record = read_record(state_dir)
    assert record is not None
    return record


async def answers(urls: StoreUrls) -> bool:
    connection = await asyncpg.connect(**connect_options(urls))
    one = await connection.fetchval("SELECT 1")
    await connection.close()
    client = open_redis(urls)
    pong = await client.ping()
    await client.aclose()
    return one == 1 and bool(pong)


async def test_other_processes_find_the_servers_at_one_address_and_the_records_survive(tmp_path):
    with pytest.raises(ConfigError, match="not running: start them with"):
        resolve(node(tmp_path))
    found = []
    for run in range(2):
        async with EmbeddedStores(tmp_path) as stores:
            found.append(resolve(node(tmp_path)))
            assert found[-1] == stores.urls
            assert await answers(found[-1])
            connection = await asyncpg.connect(**connect_options(stores.urls))
            await connection.execute("CREATE TABLE IF NOT EXISTS kept (run int)")
            await connection.execute("INSERT INTO kept VALUES ($1)", run)
            assert await connection.fetchval("SELECT count(*) FROM kept") == run + 1
            await connection.close()
        with pytest.raises(ConfigError, match="not running"):
            resolve(node(tmp_path))
    assert found[0] == found[1]


async def test_a_deep_state_dir_with_an_odd_name(tmp_path):
    state_dir = tmp_path / ("d" * 150) / 'it\'s an, "odd" näme'
    async with EmbeddedStores(state_dir):
        assert await answers(resolve(node(state_dir)))


async def test_only_the_owners_user_reaches_the_sockets(servers):
    connection = await asyncpg.connect(**connect_options(servers.urls))
    directory = Path(await connection.fetchval("SHOW unix_socket_directories"))
    assert await connection.fetchval("SHOW listen_addresses") == ""
    await connection.close()
    assert directory.stat().st_mode & 0o777 == 0o700
    assert servers.urls.redis == f"unix://{directory}/redis.sock"
    async with open_redis(servers.urls) as client:
        assert await client.config_get("port") == {"port": "0"}


async def test_a_second_owner_is_refused_and_harms_nothing(servers):
    with pytest.raises(ConfigError, match=f"run by process {os.getpid()} already"):
        await EmbeddedStores(servers.state_dir).start()
    assert await answers(servers.urls)


async def test_sigterm_ends_owner_and_servers(tmp_path):
    owner = owner_process(tmp_path)
    record = await published(tmp_path)
    owner.send_signal(signal.SIGTERM)
    assert owner.wait(15) == 0
    assert not is_running(record.postgres_process)
    assert not is_running(record.redis_process)
    assert read_record(tmp_path) is None


async def test_servers_end_with_an_owner_that_is_killed_and_the_next_run_starts(tmp_path):
    owner = owner_process(tmp_path)
    record = await published(tmp_path)
    owner.kill()
    owner.wait(5)
    async with EmbeddedStores(tmp_path) as stores:  # at once: the old servers may still be on their way out
        assert not is_running(record.postgres_process)
        assert not is_running(record.redis_process)
        assert await answers(stores.urls)
    owner = owner_process(tmp_path)
    record = await published(tmp_path)
    owner.kill()
    owner.wait(5)
    await until(lambda: not is_running(record.postgres_process) and not is_running(record.redis_process))


async def test_an_owner_killed_in_the_middle_of_initdb_leaves_a_startable_state_dir(tmp_path):
    owner = owner_process(tmp_path)
    await until(lambda: (tmp_path / "postgres.unfinished" / "base").exists(), 30)
    owner.kill()
    owner.wait(5)
    assert not (tmp_path / "postgres").exists()
    async with EmbeddedStores(tmp_path) as stores:
        assert await answers(stores.urls)


async def test_a_process_id_that_was_reused_after_a_reboot_does_not_keep_postgres_from_starting(tmp_path):
    async with EmbeddedStores(tmp_path):
        pid_file = (tmp_path / "postgres" / "postmaster.pid").read_text()
    other = subprocess.Popen(["sleep", "60"], user=(tmp_path / "postgres").stat().st_uid)
    try:
        lines = [str(other.pid), *pid_file.splitlines()[1:]]
        lines[2] = str(int(lines[2]) - 86400)
        (tmp_path / "postgres" / "postmaster.pid").write_text("\n".join(lines) + "\n")
        async with EmbeddedStores(tmp_path) as stores:
            assert await answers(stores.urls)
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


async def test_the_owner_fails_when_a_server_dies(tmp_path):
    async with EmbeddedStores(tmp_path) as stores:
        os.kill(stores.redis.running().pid, signal.SIGKILL)
        error = await stores.wait_failed()
        assert error.reason == "embedded_redis"
        with pytest.raises(ConfigError, match="not running"):
            resolve(node(tmp_path))


async def test_another_postgres_version_is_not_touched(tmp_path):
    (tmp_path / "postgres").mkdir()
    (tmp_path / "postgres" / "PG_VERSION").write_text("16\n")
    with pytest.raises(ConfigError, match="made by PostgreSQL 16"):
        await EmbeddedStores(tmp_path).start()


async def test_a_server_that_cannot_start_is_quoted(tmp_path):
    async with EmbeddedStores(tmp_path):
        pass
    (tmp_path / "postgres" / "postgresql.auto.conf").write_text("nonsense = on\n")
    with pytest.raises(StoreUnavailable, match=r"embedded postgres ended with exit status 1: .*nonsense"):
        await EmbeddedStores(tmp_path).start()
    assert not (tmp_path / "run").exists()


def test_servers_of_ones_own_are_taken_as_given():
    urls = StoreUrls(postgres="postgresql://db/x", redis="redis://cache/0")
    assert resolve(NodeSettings(node="n1", store=urls)) is urls
