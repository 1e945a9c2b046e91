"""Real PostgreSQL and Redis for tests: one pair a session, empty for every test."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import asyncpg
import pytest
import pytest_asyncio
import redis.asyncio

from ari_app.store.embedded import EmbeddedStores
from ari_app.store.migrate import migrate
from ari_app.store.postgres import connect_options, open_pool
from audiosocket.runtime.stores import open_redis
from audiosocket.settings import StoreUrls


def _run(awaitable: Awaitable[Any]) -> None:
    # Not asyncio.run: the tests' own event loop stays the current one.
    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(awaitable)
    finally:
        loop.close()


async def until(holds: Callable[[], Any], seconds: float = 10.0) -> None:
    """Returns when `holds()` (or what it awaits) is true; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        value = holds()
        if asyncio.iscoroutine(value):
            value = await value
        if value:
            return
        assert time.monotonic() < deadline, f"not within {seconds} s"
        await asyncio.sleep(0.02)


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedStores]:
    """The servers. Who stops one starts it again."""
    running = EmbeddedStores(tmp_path_factory.mktemp("stores"))
    _run(running.start())
    yield running
    _run(running.stop())


@pytest_asyncio.fixture
async def empty_stores(servers: EmbeddedStores) -> StoreUrls:
    """Servers without a table or a key."""
    connection = await asyncpg.connect(**connect_options(servers.urls))
    await connection.execute("SET client_min_messages = error; DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    await connection.close()
    client = open_redis(servers.urls)
    await client.flushall()
    await client.aclose()
    return servers.urls


@pytest_asyncio.fixture
async def stores(empty_stores: StoreUrls) -> StoreUrls:
    """Servers with the tables of today, empty."""
    await migrate(empty_stores)
    return empty_stores


@pytest_asyncio.fixture
async def pool(stores: StoreUrls) -> AsyncIterator[asyncpg.Pool]:
    opened = await open_pool(stores)
    yield opened
    await opened.close()


@pytest_asyncio.fixture
async def redis_client(empty_stores: StoreUrls) -> AsyncIterator[redis.asyncio.Redis]:
    client = open_redis(empty_stores)
    yield client
    await client.aclose()
