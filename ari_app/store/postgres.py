"""The connection to PostgreSQL, and which of its errors are the environment's."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import asyncpg

from ari_app.errors import StoreUnavailable
from audiosocket.postgres_url import postgres_hosts
from audiosocket.settings import StoreUrls

COMMAND_SECONDS = 10.0
CONNECT_SECONDS = 5.0
POOL_CONNECTIONS = 4

# asyncpg's InternalClientError: its subclass TargetServerAttributeNotMatched says that a host takes no writes.
_CONNECTION = (TimeoutError, OSError, asyncpg.InterfaceError, asyncpg.InternalClientError)


def connect_options(urls: StoreUrls) -> dict[str, object]:
    """Arguments of asyncpg's `connect`; the password is not part of any text that is shown.

    They hold behind a pooler of transactions (pgbouncer) too: no statement is prepared for later, and only parameters
    are set that such a pooler keeps for each client.
    """
    options: dict[str, object] = {
        "dsn": urls.postgres,
        "timeout": CONNECT_SECONDS,
        "command_timeout": COMMAND_SECONDS,
        "statement_cache_size": 0,
        "server_settings": {"application_name": "trunkbridge", "timezone": "UTC"},
    }
    if "target_session_attrs" not in urls.postgres:
        options["target_session_attrs"] = "read-write"
    if urls.postgres_password is not None:
        options["password"] = urls.postgres_password.get_secret_value()
    return options


async def connect(urls: StoreUrls, **changes: object) -> asyncpg.Connection:
    """A connection to the first of the hosts that takes writes. `changes` go over `connect_options`.

    Each host has its part of `CONNECT_SECONDS`: asyncpg itself would give the first all of it, and one that swallows
    packets would keep the others from being asked.
    """
    options = connect_options(urls) | changes
    hosts = postgres_hosts(urls.postgres)
    if len(hosts) < 2:
        return await asyncpg.connect(**options)
    failures = []
    for host, port in hosts:
        try:
            return await asyncpg.connect(
                **options | {"host": host, "port": port, "timeout": CONNECT_SECONDS / len(hosts)}
            )
        except (*_CONNECTION, asyncpg.PostgresError) as error:
            failures.append(f"{host}:{port}: {str(error) or type(error).__name__}")
    raise StoreUnavailable("postgres", f"PostgreSQL cannot be used: {'; '.join(failures)}")


async def open_pool(urls: StoreUrls) -> asyncpg.Pool:
    """A pool that connects on first use: a process starts, and carries calls, while PostgreSQL is away."""

    async def connect_one(*_arguments: object, **given: object) -> asyncpg.Connection:
        return await connect(urls, **given)

    async def leave(_connection: asyncpg.Connection) -> None:
        """Nothing of ours changes a session, so nothing has to be set back."""

    return await asyncpg.create_pool(min_size=0, max_size=POOL_CONNECTIONS, connect=connect_one, reset=leave)


@asynccontextmanager
async def _connection(pool: asyncpg.Pool) -> AsyncIterator[asyncpg.Connection]:
    """A connection of the pool, which does not return there when it, or its server, was no good."""
    async with pool.acquire() as connection:
        try:
            yield connection
        except asyncpg.PostgresError as error:
            # A server that has become a standby refuses, and its connections would all do so for ever.
            if not is_about_the_data(error):
                connection.terminate()
            raise
        except BaseException:
            connection.terminate()  # asyncpg would wait for the answer before it is used again
            raise


async def execute(pool: asyncpg.Pool, query: str, *values: object) -> str:
    """Run one statement; its status (`DELETE 1`). Raises `StoreUnavailable`; `asyncpg.PostgresError` about the data."""
    with unavailable():
        async with _connection(pool) as connection:
            status: str = await connection.execute(query, *values)
            return status


async def fetch(pool: asyncpg.Pool, query: str, *values: object) -> list[asyncpg.Record]:
    """The rows of one query; raises like `execute`."""
    with unavailable():
        async with _connection(pool) as connection:
            rows: list[asyncpg.Record] = await connection.fetch(query, *values)
            return rows


# PostgreSQL, appendix A: 22 data exception, 23 integrity constraint violation, 54 program limit exceeded. They are
# about the values of one statement. All others (connection, resources, shutdown, locks, a missing table or right)
# would meet the next record as well.
_ABOUT_THE_DATA = ("22", "23", "54")


def is_about_the_data(error: BaseException) -> bool:
    """Whether PostgreSQL refuses these values, and would again."""
    if isinstance(error, asyncpg.PostgresError):
        return (error.sqlstate or "").startswith(_ABOUT_THE_DATA)
    return isinstance(error, (asyncpg.DataError, UnicodeError))


@contextmanager
def unavailable() -> Iterator[None]:
    """Raises `StoreUnavailable` in place of what says that PostgreSQL cannot be used now."""
    try:
        yield
    except _CONNECTION as error:
        raise StoreUnavailable("postgres", f"PostgreSQL cannot be used: {error or type(error).__name__}") from error
    except asyncpg.PostgresError as error:
        if is_about_the_data(error):
            raise
        raise StoreUnavailable("postgres", f"PostgreSQL refuses: {error} ({error.sqlstate})") from error
