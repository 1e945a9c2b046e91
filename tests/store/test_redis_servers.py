"""Redis behind Sentinels, and as a cluster: everything works there, and works again after a server was lost."""

from __future__ import annotations

import asyncio
import signal
import time
from contextlib import suppress

import pytest

from ari_app.errors import NoCapacity, StoreUnavailable
from ari_app.fleet.leases import Held, Leases
from ari_app.store.present import Present, ReportReader
from audiosocket.callspec import LegOrder
from audiosocket.errors import Unavailable
from audiosocket.keys import report_stream
from audiosocket.registry import Registry
from audiosocket.runtime.stores import open_redis
from audiosocket.settings import StoreUrls
from tests.redis_servers import cluster, watched_by_sentinels
from tests.store.test_registry import info, report, spec
from tests.stores import until

pytestmark = pytest.mark.store

KINDS = {"sentinel": watched_by_sentinels, "cluster": cluster}


async def _at_once() -> None:
    """Whatever was handled is durable."""


@pytest.mark.parametrize("lost", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hung"])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_lost_master_costs_a_moment_and_nothing_else(kind, lost, tmp_path):
    async with KINDS[kind](tmp_path) as (servers, master):
        worker_redis, redis = open_redis(servers.urls), open_redis(servers.urls)
        registry, present, leases = Registry(worker_redis), Present(redis), Leases(redis, 30)
        orders: list[LegOrder] = []
        reports, notices = [], []

        async def beat() -> None:
            while True:
                with suppress(Unavailable):
                    await registry.heartbeat(info())
                await asyncio.sleep(0.2)

        async def take(found) -> None:
            reports.append(found)

        reader = ReportReader(redis, "n1", _at_once)
        tasks = [
            asyncio.create_task(beat()),
            asyncio.create_task(registry.orders("gw/0", orders.append)),
            asyncio.create_task(reader.run(take, notices.append)),
        ]
        try:
            await until(lambda: _worker_there(present))
            await registry.listening.wait()
            await _all_works(registry, present, orders)
            call, other = spec().call_id, spec().call_id
            held = await leases.acquire(call)
            await registry.report(report_stream("n1"), report(1))
            await until(lambda: len(reports) == 1)

            servers.signal(master, lost)
            await registry.report(report_stream("n1"), report(2))
            began = time.monotonic()
            await until(lambda: _leased(leases, other), 60)
            assert time.monotonic() - began > 0.5, "the server that was lost still answers"
            await until(lambda: _worker_there(present), 10)
            # What was there before is there, and every part works against the other server.
            renewal = await leases.renew({call: Held(held.worker.worker_id, held.token)})
            assert not renewal.lost
            assert (await leases.active(["gw/0"]))["gw/0"] == 2
            await until(lambda: 2 in [found.figures.caller_frames for found in reports], 20)
            await until(lambda: _all_works(registry, present, orders), 20)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await registry.close()
            await redis.aclose()


async def _worker_there(present: Present) -> bool:
    try:
        return bool(await present.workers())
    except StoreUnavailable:
        return False


async def _leased(leases: Leases, call_id: str) -> bool:
    try:
        return bool(await leases.acquire(call_id))
    except (StoreUnavailable, NoCapacity):  # the worker's announcement may have expired
        return False


async def _all_works(registry: Registry, present: Present, orders: list[LegOrder]) -> bool:
    announced = spec()
    await present.put_spec(announced)
    assert await registry.take(announced.leg_uuid) == announced
    order = LegOrder(leg_uuid=announced.leg_uuid, order="release")
    # The number of listeners is that of the server that the worker listens on.
    if not await present.send_order("gw/0", order):
        return False
    await until(lambda: order in orders)
    assert not await present.send_order("gw/9", order)
    return True


@pytest.mark.parametrize("url", ["redis+sentinel://{}/present", "redis+cluster://{}"])
async def test_addresses_where_nobody_answers_are_given_up_in_time(url, unused_tcp_port_factory):
    hosts = ",".join(f"127.0.0.1:{unused_tcp_port_factory()}" for _ in range(3))
    client = open_redis(StoreUrls(postgres="postgresql://x", redis=url.format(hosts)))
    began = time.monotonic()
    with pytest.raises(StoreUnavailable, match="Redis cannot be used"):
        await Present(client).workers()
    assert time.monotonic() - began < 2.5
    await client.aclose()


async def test_one_that_hangs_among_those_asked_does_not_keep_the_others_from_being_asked(tmp_path):
    async with watched_by_sentinels(tmp_path) as (servers, _):
        first = int(servers.urls.redis.split(":")[2].split(",")[0])
        servers.signal(first, signal.SIGSTOP)
        client = open_redis(servers.urls)
        assert await Present(client).workers() == []
        await client.aclose()


async def test_several_that_ask_at_once_lose_no_sentinel(tmp_path):
    async with watched_by_sentinels(tmp_path) as (servers, _):
        first = int(servers.urls.redis.split(":")[2].split(",")[0])
        servers.signal(first, signal.SIGSTOP)
        client = open_redis(servers.urls)
        manager = client.connection_pool.sentinel_manager
        known = set(manager.sentinels)
        assert await asyncio.gather(*(Present(client).workers() for _ in range(5))) == [[]] * 5
        assert len(manager.sentinels) == len(known) == 3
        assert set(manager.sentinels) == known
        await client.aclose()
