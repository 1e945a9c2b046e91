"""Migrations: fresh, again, at once, interrupted, changed, and from a newer version."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from ari_app.errors import ConfigError, StoreUnavailable
from ari_app.store.migrate import Migration, load_migrations, migrate
from ari_app.store.postgres import connect_options
from audiosocket.settings import StoreUrls

pytestmark = pytest.mark.store

TWO = [Migration(1, "0001_a.sql", "CREATE TABLE a (x int)"), Migration(2, "0002_b.sql", "CREATE TABLE b (x int)")]


async def fetch(urls, query):
    connection = await asyncpg.connect(**connect_options(urls))
    try:
        return [tuple(row) for row in await connection.fetch(query)]
    finally:
        await connection.close()


async def test_fresh_then_again(empty_stores):
    names = [migration.name for migration in load_migrations()]
    assert names[0] == "0001_calls.sql"
    assert await migrate(empty_stores) == names
    assert await migrate(empty_stores) == []
    assert await fetch(empty_stores, "SELECT count(*) FROM calls") == [(0,)]


async def test_a_later_file_is_applied_alone(empty_stores):
    assert await migrate(empty_stores, TWO[:1]) == ["0001_a.sql"]
    assert await migrate(empty_stores, TWO) == ["0002_b.sql"]


async def test_several_processes_at_once_apply_each_file_once(empty_stores):
    slow = [Migration(1, "0001_a.sql", "CREATE TABLE a (x int); SELECT pg_sleep(0.2)"), TWO[1]]
    applied = await asyncio.gather(*(migrate(empty_stores, slow) for _ in range(5)))
    assert sorted(applied) == [[], [], [], [], ["0001_a.sql", "0002_b.sql"]]


async def test_a_failing_file_leaves_nothing_of_itself(empty_stores):
    broken = [TWO[0], Migration(2, "0002_b.sql", "CREATE TABLE b (x int); SELECT nonsense")]
    with pytest.raises(StoreUnavailable, match="nonsense"):
        await migrate(empty_stores, broken)
    assert await fetch(empty_stores, "SELECT name FROM schema_migrations") == [("0001_a.sql",)]
    assert await fetch(empty_stores, "SELECT to_regclass('b')") == [(None,)]
    assert await migrate(empty_stores, TWO) == ["0002_b.sql"]


async def test_a_changed_file_is_an_error(empty_stores):
    await migrate(empty_stores, TWO)
    changed = [Migration(1, "0001_a.sql", TWO[0].sql + " "), TWO[1]]
    with pytest.raises(ConfigError, match="0001_a.sql differs from what was applied.*restore the file"):
        await migrate(empty_stores, changed)


async def test_a_database_of_a_newer_version_is_an_error(empty_stores):
    await migrate(empty_stores, TWO)
    with pytest.raises(ConfigError, match="has migration 0002_b.sql, which this version does not know: upgrade"):
        await migrate(empty_stores, TWO[:1])


def test_numbers_must_be_complete(tmp_path):
    (tmp_path / "0001_a.sql").write_text("SELECT 1")
    (tmp_path / "0003_c.sql").write_text("SELECT 1")
    with pytest.raises(ConfigError, match="expected number 0002, found 0003_c.sql"):
        load_migrations(tmp_path)


async def test_no_server(tmp_path):
    with pytest.raises(StoreUnavailable, match="PostgreSQL cannot be used"):
        await migrate(StoreUrls(postgres=f"postgresql://x@/x?host={tmp_path}", redis="redis://127.0.0.1"))
