"""PostgreSQL and Redis, as this node reaches them."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

import asyncpg
import redis.asyncio

from ari_app.doctor.finding import Finding, bad, good, warning
from ari_app.errors import StoreUnavailable
from ari_app.store.migrate import load_migrations
from ari_app.store.postgres import connect, unavailable
from ari_app.store.present import redis_unavailable
from audiosocket.runtime.stores import open_redis, redis_call
from audiosocket.settings import StoreUrls

SKEW_SECONDS = 0.5
"""A node's clock and a store's may be so far apart: call specs expire by the one and are written by the other."""
SLOW_SECONDS = 0.05
REDIS_VERSION = (6, 2)
POSTGRES_VERSION = 130000


async def postgres(urls: StoreUrls) -> list[Finding]:
    """Reached, new enough, migrated, and its clock."""
    try:
        with unavailable():
            connection = await connect(urls)
            try:
                return await _postgres(connection)
            finally:
                await connection.close()
    except StoreUnavailable as error:
        return [bad("postgresql", str(error), "is store.postgres right, does it run, may this node connect?")]


async def _postgres(connection: asyncpg.Connection) -> list[Finding]:
    began = time.monotonic()
    row = await connection.fetchrow(
        "SELECT current_setting('server_version_num')::int AS version, current_setting('server_version') AS name,"
        " extract(epoch FROM clock_timestamp())::float AS clock, pg_is_in_recovery() AS standby,"
        " to_regclass('schema_migrations') IS NOT NULL AS migrated"
    )
    took = time.monotonic() - began
    found = [_answered("postgresql", f"version {row['name']}", took), _skew("postgresql", row["clock"])]
    if row["version"] < POSTGRES_VERSION:
        found.append(bad("postgresql version", row["name"], "13 or newer"))
    if row["standby"]:
        found.append(
            bad(
                "postgresql role",
                "a standby: it takes no records",
                "name the primary too, and target_session_attrs=read-write",
            )
        )
        return found
    known = len(load_migrations())
    applied = await connection.fetchval("SELECT count(*) FROM schema_migrations") if row["migrated"] else 0
    if applied < known:
        found.append(bad("migrations", f"{applied} of {known}", "trunkbridge db migrate"))
    elif applied > known:
        found.append(bad("migrations", f"{applied}, of which this version knows {known}", "upgrade this node"))
    else:
        found.append(good("migrations", f"all {known}"))
    return found


async def redis_server(urls: StoreUrls) -> list[Finding]:
    """Reached, new enough, forgets nothing by itself, and its clock."""
    client = open_redis(urls)
    try:
        async with redis_call(redis_unavailable):
            began = time.monotonic()
            seconds, microseconds = await client.time()
            took = time.monotonic() - began
            about = await client.info("server")
        found = [
            _answered("redis", f"version {about['redis_version']}", took),
            _skew("redis", seconds + microseconds / 1e6),
        ]
        version = tuple(int(part) for part in about["redis_version"].split(".")[:2])
        if version < REDIS_VERSION:
            found.append(bad("redis version", about["redis_version"], "6.2 or newer"))
        found.append(await _eviction(client))
        return found
    except StoreUnavailable as error:
        return [bad("redis", str(error), "store.redis: is the address right, does it run, may this node connect?")]
    finally:
        await client.aclose()


async def _eviction(client: redis.asyncio.Redis) -> Finding:
    try:
        async with redis_call(redis_unavailable):
            policy = (await client.config_get("maxmemory-policy")).get("maxmemory-policy", "")
    except StoreUnavailable as error:
        return warning("redis eviction", f"not known: {error}", "maxmemory-policy has to be noeviction")
    if policy and policy != "noeviction":
        return bad("redis eviction", f"maxmemory-policy {policy}", "set it to noeviction: leases would vanish")
    return good("redis eviction", policy or "none")


def _answered(name: str, what: str, seconds: float) -> Finding:
    said = f"{what}, answers in {seconds * 1000:.1f} ms"
    if seconds > SLOW_SECONDS:
        return warning(name, said, "each call waits for it several times: bring it nearer")
    return good(name, said)


def _skew(name: str, clock: float) -> Finding:
    seconds = time.time() - clock
    said = f"this node's is {abs(seconds) * 1000:.0f} ms {'ahead' if seconds > 0 else 'behind'}"
    if abs(seconds) > SKEW_SECONDS:
        return bad(f"clock of {name}", said, "keep both in step (chrony): call specs expire too early or too late")
    return good(f"clock of {name}", said)


CHECKS: tuple[Callable[[StoreUrls], Awaitable[list[Finding]]], ...] = (postgres, redis_server)
