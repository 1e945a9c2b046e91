"""Where PostgreSQL and Redis are, and a Redis client whose every call has a time limit, and which can be listened to.

`store: embedded` means servers that another process on this machine runs under `state_dir`; it leaves their addresses
and process ids in `stores.json`.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import msgspec
import redis.asyncio
import structlog
from redis.asyncio.client import PubSub
from redis.asyncio.connection import BlockingConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from audiosocket.errors import ConfigError, Unavailable
from audiosocket.runtime.redis_address import read_address
from audiosocket.runtime.redis_master import open_pool
from audiosocket.settings import NodeSettings, StoreUrls

STORES_FILE = "stores.json"

REDIS_TIMEOUT_SECONDS = 2.0

REDIS_CONNECTIONS = 32
"""Connections of one client; who finds all in use waits for one."""

LISTEN_SECONDS = 1.0
"""How long a message is waited for before Redis is asked whether it is still there."""
BACKOFF_FIRST_SECONDS = 0.1
BACKOFF_MAX_SECONDS = 2.0

log = structlog.get_logger(__name__)

T = TypeVar("T", bound=msgspec.Struct)


class RunningProcess(msgspec.Struct, frozen=True):
    """A process that cannot be confused with a later one of the same id."""

    pid: int
    started_ticks: int
    """Clock ticks from boot to its start, proc(5) `starttime`."""


class EmbeddedRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What `stores.json` holds."""

    postgres: str
    redis: str
    owner: RunningProcess
    postgres_process: RunningProcess
    redis_process: RunningProcess


def started_ticks(pid: int) -> int | None:
    """When process `pid` started, in clock ticks since boot; None when it has ended (a zombie has)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The second field is a name in brackets that may itself hold brackets and spaces.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in ("Z", "X") else int(fields[19])


def is_running(process: RunningProcess) -> bool:
    """Whether that very process still runs."""
    return started_ticks(process.pid) == process.started_ticks


def read_record(state_dir: Path) -> EmbeddedRecord | None:
    """The `stores.json` of `state_dir`; None when there is none, or none that can be read."""
    try:
        return msgspec.json.decode((state_dir / STORES_FILE).read_bytes(), type=EmbeddedRecord)
    except (FileNotFoundError, msgspec.MsgspecError):
        return None
    except OSError as error:
        raise ConfigError(f"{state_dir / STORES_FILE}: {error.strerror}: run as the user that owns it") from None


def resolve(settings: NodeSettings) -> StoreUrls:
    """The servers that `settings.store` stands for.

    Raises `ConfigError` when embedded stores are asked for and do not run.
    """
    if isinstance(settings.store, StoreUrls):
        return settings.store
    record = read_record(settings.state_dir)
    if record is None or not (is_running(record.postgres_process) and is_running(record.redis_process)):
        raise ConfigError(
            f"{settings.state_dir}: the embedded stores are not running:"
            " start them with `trunkbridge stores CONFIG` or `make run`"
        )
    return StoreUrls(postgres=record.postgres, redis=record.redis)


def open_redis(urls: StoreUrls, timeout_seconds: float = REDIS_TIMEOUT_SECONDS) -> redis.asyncio.Redis:
    """A client that connects on first use. Waiting for a connection, connecting, and a command's answer are each
    limited to `timeout_seconds`; `redis_call` limits their sum.

    Nothing is repeated behind the caller's back: after a lost answer only the caller knows whether a second try is
    harmless.
    """
    options: dict[str, Any] = {
        "socket_timeout": timeout_seconds,
        "socket_connect_timeout": timeout_seconds,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,  # the shape of answers would otherwise depend on the client's version
    }
    if urls.redis_password is not None:
        options["password"] = urls.redis_password.get_secret_value()
    bounds: dict[str, Any] = {"max_connections": REDIS_CONNECTIONS, "timeout": timeout_seconds}
    address = read_address(urls.redis)
    if address.kind == "server":
        pool = BlockingConnectionPool.from_url(urls.redis, **bounds, **options)
    else:
        if urls.redis_sentinel_password is not None:
            bounds["sentinel_password"] = urls.redis_sentinel_password.get_secret_value()
        pool = open_pool(address, options, bounds, timeout_seconds)
    return redis.asyncio.Redis.from_pool(pool)


@asynccontextmanager
async def redis_call(
    unavailable: Callable[[str], Exception], timeout_seconds: float = REDIS_TIMEOUT_SECONDS
) -> AsyncIterator[None]:
    """Commands that together end within `timeout_seconds`; whatever goes wrong raises what `unavailable` makes."""
    task = asyncio.current_task()
    assert task is not None
    try:
        async with asyncio.timeout(timeout_seconds):
            cancelled = task.cancelling()
            yield
            if task.cancelling() > cancelled:
                # redis-py sends inside wait_for, and that of Python 3.11 forgets a cancellation that comes together
                # with what it waits for: the task would go on for ever.
                raise asyncio.CancelledError
    except (RedisError, OSError, TimeoutError) as error:
        text = str(error) or f"no answer within {timeout_seconds:g} s"
        raise unavailable(f"Redis cannot be used: {text}") from error


async def pause(failures: int) -> None:
    """Waits before Redis is tried again after so many failures: at random, up to `BACKOFF_MAX_SECONDS`."""
    await asyncio.sleep(random.uniform(0, min(BACKOFF_MAX_SECONDS, BACKOFF_FIRST_SECONDS * 2 ** min(failures, 10))))


def decoded(payload: bytes, kind: type[T]) -> T | None:
    """JSON that somebody has left in Redis; None, and a line in the log, when it is no `kind`."""
    try:
        return msgspec.json.decode(payload, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        log.error("unreadable", kind=kind.__name__, why=str(error))
        return None


async def listen(
    client: redis.asyncio.Redis,
    channel: str,
    kind: type[T],
    handle: Callable[[T], Awaitable[None]],
    heard: Callable[[], None] = lambda: None,
) -> NoReturn:
    """Hands every message of a channel to `handle`, for ever. While Redis is away none is heard; `heard` is called
    each time from when on they are again."""
    failures = 0
    while True:
        try:
            async with client.pubsub() as listener:
                async with redis_call(Unavailable):
                    await listener.subscribe(channel)
                heard()
                failures = 0
                while True:
                    payload = await _next_message(listener)
                    message = None if payload is None else decoded(payload, kind)
                    if message is not None:
                        await handle(message)
        except Unavailable as error:
            if failures == 0:
                log.warning("channel_unheard", channel=channel, why=str(error))
            await pause(failures)
            failures += 1


async def _next_message(listener: PubSub) -> bytes | None:
    """A message, or None after `LISTEN_SECONDS` of proven silence. Raises `Unavailable`."""
    async with redis_call(Unavailable, LISTEN_SECONDS * 2):
        message = await listener.get_message(ignore_subscribe_messages=True, timeout=LISTEN_SECONDS)
        if message is not None:
            return _payload(message)
        # Silence is the rule here, and does not tell a quiet Redis from one that cannot be reached.
        await listener.ping()
    async with redis_call(Unavailable, LISTEN_SECONDS * 2):
        message = await listener.get_message(ignore_subscribe_messages=True, timeout=LISTEN_SECONDS)
    if message is None:
        raise Unavailable("no answer to a ping")
    return _payload(message)


def _payload(message: dict[str, Any]) -> bytes | None:
    return message["data"] if message["type"] == "message" else None
