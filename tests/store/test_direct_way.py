"""Controller and worker without Redis between them: what goes straight, and what is put right when Redis is back."""

from __future__ import annotations

import asyncio
import os
import signal
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from ari_app.errors import NoCapacity, NotTaken, StoreUnavailable
from ari_app.fleet.direct import DirectWay
from ari_app.fleet.leases import Leases
from ari_app.fleet.reach import Reach, ReachedLeases, ReachedPresent
from ari_app.fleet.remembered import RememberedWorkers
from audiosocket.callspec import DIRECT_PATH, CallNotice, CallReport, CallSpec, EndReason, LegOrder, Told
from audiosocket.direct_way import BODY_BYTES
from audiosocket.direct_way import DirectWay as WorkersWay
from audiosocket.handed_specs import HandedSpecs
from audiosocket.keys import notice_stream, report_stream
from audiosocket.outbox import Outbox
from audiosocket.registry import Registry
from audiosocket.runtime.process import StopSignal
from audiosocket.runtime.stores import open_redis
from audiosocket.settings import StoreUrls
from audiosocket.sources import RegistrySource
from audiosocket.worker import Worker, WorkerOptions
from tests.media import call_spec
from tests.stores import until
from tests.worker_rig import Application, Asterisk, serving
from tools.asterisk.local import claims_released, free_ports

pytestmark = pytest.mark.store

SECRET = "a secret of the cluster's"
NODE = "pbx-1"


class Side:
    """One controller's side, with a worker that it reaches."""

    def __init__(self, urls: StoreUrls, direct: DirectWay | None, worker: Worker, app: Application) -> None:
        self.redis = open_redis(urls)
        self.reach = Reach(self.redis, direct, NODE, ["main"])
        self.leases = ReachedLeases(self.reach, 30, node=NODE)
        self.present = ReachedPresent(self.reach)
        self.worker = worker
        self.app = app
        self.reports: list[CallReport] = []
        self.notices: list[CallNotice] = []

    async def run(self) -> None:
        async def take(report: CallReport) -> None:
            self.reports.append(report)

        await self.reach.run(self.leases, take, self.notices.append)

    async def place(self, **changes: Any) -> CallSpec:
        """A call that has a worker, which knows of it."""
        now_ms = time.time_ns() // 1_000_000
        spec = call_spec(
            call_id=str(uuid.uuid4()),
            leg_uuid=str(uuid.uuid4()),
            report_stream=report_stream(NODE),
            url=self.app.url,
            created_at_ms=now_ms,
            expires_at_ms=now_ms + 15_000,
            **changes,
        )
        lease = await self.leases.acquire(spec.call_id, application=spec.application)
        assert lease.worker.worker_id == "gw/0"
        await self.present.put_spec(spec)
        return spec

    @asynccontextmanager
    async def cut_off(self, tmp_path: Path) -> AsyncIterator[None]:
        """The controller alone does not reach Redis."""
        nowhere = open_redis(StoreUrls(postgres="postgresql://x", redis=f"unix://{tmp_path}/none.sock"))
        before, self.redis.connection_pool = self.redis.connection_pool, nowhere.connection_pool
        try:
            await until(lambda: self.reach.presence.away)
            yield
        finally:
            self.redis.connection_pool = before
            await nowhere.aclose()

    async def connect(self, spec: CallSpec) -> Asterisk:
        return await Asterisk.connect(self.worker.port, spec.leg_uuid)


@asynccontextmanager
async def sides(urls: StoreUrls, secret: str | None = SECRET, **options: Any) -> AsyncIterator[Side]:
    with claims_released():
        registry = Registry(open_redis(urls))
        (status_port,) = free_ports(1)
        handed = HandedSpecs(50)
        way = None if secret is None else WorkersWay(secret, handed, registry.outbox)
        values = {"worker_id": "gw/0", "node": "gw", "host": "127.0.0.1", "port": 0, "advertise": "127.0.0.1"}
        values |= {"status_host": "127.0.0.1", "status_port": status_port, "capacity": 50, "drain_seconds": 5}
        worker = Worker(WorkerOptions(**(values | options)), RegistrySource(registry, handed), direct=way)
        stop = StopSignal()
        running = asyncio.create_task(worker.run(stop), name="worker")
        async with serving() as app, DirectWay(SECRET) as direct:
            side = Side(urls, None if secret is None else direct, worker, app)
            watching = asyncio.create_task(side.run(), name="reach")
            try:
                await until(lambda: side.reach.known.listed("gw/0") or running.done())
                yield side
            finally:
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)
                await side.redis.aclose()
                app.released.set()
                stop.requested.set()
                stop.at_once.set()
                await running


@asynccontextmanager
async def hung(servers) -> AsyncIterator[None]:
    pid = servers.redis.running().pid
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@asynccontextmanager
async def stopped(servers) -> AsyncIterator[None]:
    await servers.redis.stop()
    try:
        yield
    finally:
        servers.redis.start()
        await servers.ready()


async def leased(client, worker: str = "gw/0") -> int:
    return (await Leases(client, 30).active([worker]))[worker]


async def test_a_whole_call_while_redis_is_gone_and_all_is_put_right_after(empty_stores, servers, redis_client):
    async with sides(empty_stores) as side:
        before = await side.place()
        channel = await side.connect(before)
        await until(lambda: len(side.app.events("start")) == 1)
        await servers.redis.stop()
        try:
            await until(lambda: side.reach.presence.away)
            spec = await side.place(held=True)
            held = side.reach.ledger.held
            assert held[spec.call_id].token > held[before.call_id].token
            second = await side.connect(spec)
            # What the worker has to say at once, the controller hears.
            await until(lambda: any(notice.event == "connected" for notice in side.notices))
            # And the worker hears the controller.
            assert await side.present.send_order("gw/0", LegOrder(leg_uuid=spec.leg_uuid, order="release"))
            with pytest.raises(StoreUnavailable):
                await side.present.send_order("gw/1", LegOrder(leg_uuid="?", order="end"))
            assert await side.present.send_order("gw/0", LegOrder(leg_uuid=before.leg_uuid, order="end"))
            await channel.hang_up()
            await until(lambda: [report.call_id for report in side.reports] == [before.call_id])
            assert side.reports[0].reason is EndReason.LEG_CLOSED
            assert not await side.leases.release(before.call_id, held[before.call_id].token)
            assert side.worker.readiness.why_not_ready() == ""
        finally:
            servers.redis.start()
            await servers.ready()
        await until(lambda: not side.reach.presence.away)
        # The ledger of a Redis that has lost its memory has the call that goes on, under its token, and no other.
        await until(lambda: _one(redis_client), 20)
        renewal = await Leases(redis_client, 30, node=NODE).renew({spec.call_id: held[spec.call_id]})
        assert not renewal.lost
        await second.hang_up()
        await until(lambda: _stored(redis_client, 2), 20)
        assert {notice.event for notice in side.notices} >= {"connected"}


async def _one(client) -> bool:
    return await leased(client) == 1


async def _stored(client, count: int) -> bool:
    entries = await client.xrange(report_stream(NODE))
    return len({msgspec.json.decode(fields[b"report"])["call_id"] for _, fields in entries}) == count


async def test_a_controller_that_does_not_reach_redis_hears_its_workers_which_do(tmp_path, empty_stores, redis_client):
    async with sides(empty_stores) as side:
        async with side.cut_off(tmp_path):
            spec = await side.place(held=True)
            channel = await side.connect(spec)
            await until(lambda: any(notice.event == "connected" for notice in side.notices))
            assert side.worker.readiness.announced
            # What went to Redis, the controller hears all the same: of an RTP leg nothing else would tell of the end.
            await channel.hang_up()
            await until(lambda: [report.call_id for report in side.reports] == [spec.call_id])
            assert await _stored(redis_client, 1)
            assert not await side.leases.release(spec.call_id, 0)
        await until(lambda: not side.reach.presence.away)
        assert await leased(redis_client) == 0


async def test_digits_are_told_once_and_all_else_may_be_told_twice(redis_client):
    outbox, stream = Outbox(redis_client), report_stream(NODE)

    def notify(event: str) -> None:
        outbox.notify(stream, CallNotice(call_id="1", leg_uuid="1", event=event, digits="5", at_ms=1))

    async def stored() -> list[str]:
        entries = await redis_client.xrange(notice_stream(stream))
        return [msgspec.json.decode(fields[b"notice"])["event"] for _, fields in entries]

    async def all_stored() -> bool:
        return await stored() == ["digits", "connected"]

    def events(told: Told) -> list[str]:
        return [notice.event for notice in told.notices]

    notify("digits")
    notify("connected")
    await until(all_stored)
    told = msgspec.json.decode(await outbox.told(stream, "", 0), type=Told)
    assert events(told) == ["connected"]
    asking = asyncio.create_task(outbox.told(stream, told.run, told.last))
    await asyncio.sleep(0)
    notify("digits")
    told = msgspec.json.decode(await asking, type=Told)
    assert events(told) == ["digits"]
    assert await all_stored()
    await outbox.close()


async def test_one_call_waits_for_a_redis_that_hangs_and_the_next_do_not(empty_stores, servers, redis_client):
    async with sides(empty_stores) as side:
        async with hung(servers):
            began = time.monotonic()
            first = await side.place()
            assert time.monotonic() - began < 3
            assert side.reach.presence.away
            began = time.monotonic()
            specs = [await side.place() for _ in range(5)]
            assert not await side.leases.release(first.call_id, 0)
            assert time.monotonic() - began < 1
        await until(lambda: not side.reach.presence.away)

        async def settled() -> bool:
            return await leased(redis_client) == len(specs)

        # What was asked of it while it hung, Redis has done when it woke up: the lease of the first call is given back.
        await until(settled, 20)


async def test_a_call_that_redis_dies_under_before_its_worker_knows_of_it(empty_stores, servers):
    async with sides(empty_stores) as side:
        for how in ("frozen", "gone"):
            spec = await side.place()
            async with hung(servers) if how == "frozen" else stopped(servers):
                channel = await side.connect(spec)
                await until(lambda spec=spec: spec.call_id in side.worker.calls)
                await channel.hang_up()
            await until(lambda: not side.reach.presence.away)
            await until(lambda: side.reach.known.listed("gw/0"))


async def test_a_redis_that_has_just_lost_its_memory_refuses_no_call(empty_stores, servers, redis_client):
    async with sides(empty_stores) as side:
        for _ in range(20):
            await redis_client.flushall()
            await side.place()
        assert not side.reach.presence.away


async def test_the_limit_of_an_application_counts_other_controllers_as_they_were_last(empty_stores, servers):
    async with sides(empty_stores) as side:
        theirs = Leases(side.redis, 30, node="pbx-2")
        for call_id in ("one", "two"):
            await theirs.acquire(call_id, application="bot")
        await side.leases.acquire("three", application="bot", limit=4)
        await until(lambda: side.reach.ledger.of_application("bot") == 3)
        await servers.redis.stop()
        try:
            await until(lambda: side.reach.presence.away)
            await side.leases.acquire("four", application="bot", limit=4)
            with pytest.raises(NoCapacity) as refused:
                await side.leases.acquire("five", application="bot", limit=4, line_max=1)
            assert (refused.value.reason, refused.value.place) == ("app_full", 1)
            await side.leases.release("three", 0)
            await side.leases.acquire("five", application="bot", limit=4, line_max=1)
        finally:
            servers.redis.start()
            await servers.ready()


async def test_a_worker_that_takes_no_call_is_passed_over(empty_stores, servers):
    async with sides(empty_stores, capacity=1) as side:
        await servers.redis.stop()
        try:
            await until(lambda: side.reach.presence.away)
            await side.place()
            with pytest.raises(NotTaken) as refused:
                await side.place()
            assert refused.value.reason == "full"
            with pytest.raises(NoCapacity):
                await side.leases.acquire("call", exclude=["gw/0"])
            side.worker.draining = True
            with pytest.raises(NotTaken) as refused:
                await side.place()
            assert refused.value.reason == "draining"
        finally:
            servers.redis.start()
            await servers.ready()


async def test_a_controller_that_is_started_without_redis_knows_the_workers_of_the_one_before(tmp_path, empty_stores):
    async with sides(empty_stores) as side:
        RememberedWorkers(tmp_path, NODE).write(side.reach.known.workers)
        client = open_redis(StoreUrls(postgres="postgresql://x", redis=f"unix://{tmp_path}/none.sock"))
        reach = Reach(client, side.reach.direct, NODE, ["main"], RememberedWorkers(tmp_path, NODE))
        lease = await ReachedLeases(reach, 30, node=NODE).acquire("call")
        await ReachedPresent(reach).put_spec(call_spec(call_id="call", leg_uuid=str(uuid.uuid4())))
        assert (lease.worker.worker_id, side.worker.draining) == ("gw/0", False)
        await client.aclose()


def test_a_file_of_workers_that_cannot_be_used_is_passed_over(tmp_path):
    path = tmp_path / f"workers-{NODE}.json"
    remembered = RememberedWorkers(tmp_path, NODE)
    assert remembered.read() == []
    for content in (b"", b"{}", b"[7]", b"\xff", b"[" * 10_000):
        path.write_bytes(content)
        assert remembered.read() == []
    path.unlink()
    path.mkdir()
    assert remembered.read() == []
    remembered.write([])
    RememberedWorkers(tmp_path / "none", NODE).write([])


async def test_without_the_secret_new_calls_are_refused_at_once(empty_stores, servers):
    async with sides(empty_stores, secret=None) as side, hung(servers):
        with pytest.raises(StoreUnavailable):
            await side.place()
        began = time.monotonic()
        with pytest.raises(StoreUnavailable, match="Redis is away"):
            await side.place()
        assert time.monotonic() - began < 0.2
        assert "Redis" in side.worker.readiness.why_not_ready() or side.worker.readiness.announced


async def test_reports_that_a_redis_has_lost_are_stored_again(empty_stores, servers, redis_client):
    async with sides(empty_stores) as side:
        spec = await side.place()
        channel = await side.connect(spec)
        await until(lambda: len(side.app.events("start")) == 1)
        await channel.hang_up()
        await until(lambda: _stored(redis_client, 1), 15)
        await redis_client.flushall()
        await until(lambda: _stored(redis_client, 1), 15)


WRONG = [
    ("PUT", "specs", "another", b"{}", 401),
    ("PUT", "specs", "", b"{}", 401),
    ("POST", "orders", "another", b"{}", 401),
    ("GET", "told?stream=s", "another", b"", 401),
    ("PUT", "specs", SECRET, b"{}", 400),
    ("PUT", "specs", SECRET, b"no json", 400),
    ("PUT", "specs", SECRET, b'{"call_id": "\xff"}', 400),
    ("PUT", "specs", SECRET, b"[" * 100_000, 400),
    ("PUT", "specs", SECRET, b" " * (BODY_BYTES + 1), 413),
    ("POST", "orders", SECRET, b'{"leg_uuid": "x", "order": "fly"}', 400),
    ("POST", "orders", SECRET, b'{"leg_uuid": "nobody", "order": "end"}', 204),
    ("GET", "told", SECRET, b"", 400),
    ("GET", "told?stream=s&after=x", SECRET, b"", 400),
    ("GET", "specs", SECRET, b"", 405),
]
"""Method, path, secret and body, and the status that they are answered with."""


async def test_what_is_asked_wrongly_is_refused(empty_stores):
    async with sides(empty_stores) as side, aiohttp.ClientSession() as http:
        info = side.reach.known.get("gw/0")
        for method, path, secret, body, status in WRONG:
            headers = {"Authorization": f"Bearer {secret}"} if secret else {}
            url = f"{info.status_url}{DIRECT_PATH}/{path}"
            with suppress(aiohttp.ClientConnectionError):
                async with http.request(method, url, data=body or None, headers=headers) as answer:
                    assert answer.status == status, (method, path, body[:50])
                    assert SECRET not in await answer.text()


async def test_a_worker_without_the_secret_has_no_such_way(empty_stores):
    async with sides(empty_stores, secret=None) as side, aiohttp.ClientSession() as http:
        info = side.reach.known.get("gw/0")
        async with http.put(f"{info.status_url}{DIRECT_PATH}/specs", headers={"Authorization": "Bearer "}) as answer:
            assert answer.status == 404
