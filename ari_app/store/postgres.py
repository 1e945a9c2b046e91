"""The connection to PostgreSQL, and which of its errors are the environment's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import asyncpg

from ari_app.errors import StoreUnavailable
from audiosocket.settings import StoreUrls

COMMAND_SECONDS = 10.0
CONNECT_SECONDS = 5.0
POOL_CONNECTIONS = 4


def connect_options(urls: StoreUrls) -> dict[str, object]:
    """Arguments of asyncpg's `connect` and `create_pool`; the password is not part of any text that is shown."""
    options: dict[str, object] = {
        "dsn": urls.postgres,
        "timeout": CONNECT_SECONDS,
        "command_timeout": COMMAND_SECONDS,
        "server_settings": {"application_name": "trunkbridge", "timezone": "UTC"},
    }
    if urls.postgres_password is not None:
        options["password"] = urls.postgres_password.get_secret_value()
    return options


async def open_pool(urls: StoreUrls) -> asyncpg.Pool:
    """A pool that connects on first use: a process starts, and carries calls, while PostgreSQL is away."""
    return await asyncpg.create_pool(min_size=0, max_size=POOL_CONNECTIONS, **connect_options(urls))


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
    except (TimeoutError, OSError, asyncpg.InterfaceError) as error:
        raise StoreUnavailable("postgres", f"PostgreSQL cannot be used: {error or type(error).__name__}") from error
    except asyncpg.PostgresError as error:
        if is_about_the_data(error):
            raise
        raise StoreUnavailable("postgres", f"PostgreSQL refuses: {error} ({error.sqlstate})") from error
