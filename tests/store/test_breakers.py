"""Circuit breakers in Redis, shared by workers; notices to the controller and its orders."""

from __future__ import annotations

import asyncio
import os
import signal
import time
import uuid

import msgspec
import pytest
import pytest_asyncio

from ari_app.store.present import Present
from audiosocket.breaker import Outcome, Verdict
from audiosocket.breakers import ANSWER_SECONDS, BreakerDesk, RedisBreakers, breaker_key
from audiosocket.callspec import CallNotice, LegOrder
from audiosocket.errors import Unavailable
from audiosocket.keys import notice_stream, orders_channel, report_stream
from audiosocket.prompts import Prompts
from audiosocket.registry import Registry
from audiosocket.runtime.process import StopSignal
from audiosocket.runtime.stores import open_redis
from audiosocket.sources import RegistrySource
from audiosocket.worker import Worker, WorkerOptions
from tests.media import call_spec
from tests.store.test_registry import info
from tests.stores import until
from tests.worker_rig import Asterisk

pytestmark = pytest.mark.store

KEY = breaker_key("bot", "wss://bot.example/?token=secret")
OPEN_MS, PROBE_MS = 400, 300
DIAL, PROBE, SUSPENDED = Verdict.DIAL, Verdict.PROBE, Verdict.SUSPENDED


@pytest_asyncio.fixture
async def registry(empty_stores):
    opened = Registry(open_redis(empty_stores))
    yield opened
    await opened.close()


@pytest.fixture
def breakers(registry) -> RedisBreakers:
    return registry.breakers


async def admit(breakers: RedisBreakers) -> Verdict:
    return await breakers.admit(KEY, PROBE_MS)


async def record(breakers: RedisBreakers, outcome: Outcome, probe: bool = False) -> bool:
    return await breakers.record(KEY, outcome, probe, 3, OPEN_MS)


async def opened(breakers: RedisBreakers) -> None:
    assert [await record(breakers, Outcome.BAD) for _ in range(3)] == [False, False, True]


def test_a_key_shows_nothing_of_the_url_and_is_in_the_slot_of_all_others():
    assert KEY.startswith("{trunkbridge}:breaker:bot:")
    assert "secret" not in KEY
    assert breaker_key("bot", "wss://spare.example/") != KEY


async def test_it_opens_lets_one_probe_through_and_closes(breakers, redis_client):
    assert await admit(breakers) is DIAL
    await record(breakers, Outcome.BAD)
    await record(breakers, Outcome.BAD)
    await record(breakers, Outcome.GOOD)
    assert not await redis_client.exists(KEY)
    await opened(breakers)
    assert await admit(breakers) is SUSPENDED
    assert not await record(breakers, Outcome.BAD)  # dialled before it opened
    await asyncio.sleep(OPEN_MS / 1000 + 0.02)
    assert sorted(await asyncio.gather(*(admit(breakers) for _ in range(20)))) == [PROBE, *[SUSPENDED] * 19]
    assert not await record(breakers, Outcome.GOOD, probe=True)
    assert await admit(breakers) is DIAL
    assert not await redis_client.exists(KEY)


async def test_a_bad_probe_opens_it_again_and_one_without_outcome_makes_room(breakers):
    await opened(breakers)
    await asyncio.sleep(OPEN_MS / 1000 + 0.02)
    assert await admit(breakers) is PROBE
    await record(breakers, Outcome.NONE, probe=True)
    assert await admit(breakers) is PROBE
    assert await record(breakers, Outcome.BAD, probe=True)
    assert await admit(breakers) is SUSPENDED
    await asyncio.sleep(OPEN_MS / 1000 + 0.02)
    assert await admit(breakers) is PROBE
    assert await admit(breakers) is SUSPENDED
    await asyncio.sleep(PROBE_MS / 1000 + 0.02)  # its worker has died
    assert await admit(breakers) is PROBE


async def test_a_probe_that_goes_on_keeps_the_others_waiting_until_its_worker_dies(breakers, redis_client, monkeypatch):
    monkeypatch.setattr("audiosocket.breakers.PROBE_MARGIN_MS", 60_000)
    desk = BreakerDesk(breakers)
    spec = call_spec(breaker_failures=1, breaker_seconds=0.2, connect_timeout_seconds=0.1, connect_attempts=1)
    key = breaker_key(spec.application, spec.url)
    (await desk.ask(spec)).tell(Outcome.BAD)
    await until(lambda: desk.trips == {"test": 1})
    (await desk.ask(spec)).renew()  # no probe: it says nothing
    await asyncio.sleep(0.22)
    permit = await desk.ask(spec)
    assert permit.granted
    given = int(await redis_client.hget(key, "probe_until"))
    await asyncio.sleep(0.15)
    permit.renew()
    await desk.close()
    assert int(await redis_client.hget(key, "probe_until")) > given
    assert not (await desk.ask(spec)).granted
    permit.renew()
    permit.tell(Outcome.NONE)  # behind what was told before it: others may try at once
    permit.renew()
    await desk.close()
    assert not await redis_client.hexists(key, "probe_until")
    permit = await desk.ask(spec)
    permit.renew()
    permit.tell(Outcome.GOOD)
    await desk.close()
    await breakers.renew(key, PROBE_MS)
    assert not await redis_client.exists(key)


async def test_it_does_not_stay_in_redis_for_ever(breakers, redis_client):
    await record(breakers, Outcome.BAD)
    assert 3_500_000 < await redis_client.pttl(KEY) <= 3_600_000 + OPEN_MS
    await record(breakers, Outcome.BAD)
    await record(breakers, Outcome.BAD)
    assert await redis_client.hget(KEY, "open_until")
    assert await redis_client.pttl(KEY) > 3_500_000


async def test_a_redis_that_does_not_answer_costs_a_call_a_moment_and_no_more(breakers, servers):
    desk = BreakerDesk(breakers)
    spec = call_spec(breaker_failures=1, breaker_seconds=60)
    (await desk.ask(spec)).tell(Outcome.BAD)
    await until(lambda: desk.trips == {"test": 1})
    assert not (await desk.ask(spec)).granted
    pid = servers.redis.running().pid
    os.kill(pid, signal.SIGSTOP)
    try:
        started = time.monotonic()
        permit = await desk.ask(spec)
        assert permit.granted  # as if closed
        assert time.monotonic() - started < ANSWER_SECONDS + 0.5
        permit.tell(Outcome.BAD)
        with pytest.raises(Unavailable):
            await breakers.admit(KEY, PROBE_MS)
        await desk.close()
    finally:
        os.kill(pid, signal.SIGCONT)
    assert not (await desk.ask(spec)).granted
    assert desk.suspended == {"test": 2}


class Node:
    """Two workers in this process that share one Redis."""

    def __init__(self, stores) -> None:
        self.stop = StopSignal()
        prompts = Prompts({"tick": b"\1" * 320})
        self.workers = [
            Worker(
                WorkerOptions(f"gw/{index}", "gw", "127.0.0.1", 0, "127.0.0.1"),
                RegistrySource(Registry(open_redis(stores))),
                prompts,
            )
            for index in range(2)
        ]
        self._running = [asyncio.create_task(worker.run(self.stop)) for worker in self.workers]

    async def call(self, present: Present, index: int) -> None:
        """One call over a worker to an application that refuses, to its end."""
        spec = call_spec(
            call_id=str(uuid.uuid4()),
            leg_uuid=str(uuid.uuid4()),
            url="ws://127.0.0.1:1/",
            connect_attempts=1,
            fallback_prompt="tick",
            breaker_failures=4,
            breaker_seconds=60,
            report_stream=report_stream("n1"),
        )
        await present.put_spec(msgspec.structs.replace(spec, expires_at_ms=time.time_ns() // 1_000_000 + 15_000))
        channel = await Asterisk.connect(self.workers[index].port, spec.leg_uuid)
        await channel.ended()

    async def end(self) -> None:
        self.stop.requested.set()
        await asyncio.gather(*self._running)


async def test_two_workers_leave_an_application_alone_together(empty_stores, redis_client):
    node = Node(empty_stores)
    present = Present(redis_client)
    try:
        await until(lambda: all(worker.port for worker in node.workers))
        for number in range(4):
            await node.call(present, number % 2)
        await until(lambda: sum(worker.breakers.trips.get("test", 0) for worker in node.workers) == 1)
        for index in (0, 1):
            await node.call(present, index)
        assert [worker.breakers.suspended for worker in node.workers] == [{"test": 1}, {"test": 1}]
    finally:
        await node.end()
    entries = await redis_client.xrange(report_stream("n1"))
    reasons = [msgspec.json.decode(fields[b"report"])["reason"] for _, fields in entries]
    assert reasons == ["app_refused"] * 4 + ["app_suspended"] * 2


# Notices and orders


def notice(number: int) -> CallNotice:
    return CallNotice(call_id=str(number), leg_uuid="leg", event="digits", digits="5", at_ms=number)


async def stored_notices(client) -> list[CallNotice]:
    entries = await client.xrange(notice_stream("s"))
    return [msgspec.json.decode(fields[b"notice"], type=CallNotice) for _, fields in entries]


async def test_notices_arrive_in_their_order_beside_the_reports(registry, redis_client):
    for number in range(50):
        registry.notify("s", notice(number))

    async def all_there():
        return await redis_client.xlen(notice_stream("s")) == 50

    await until(all_there)
    assert await stored_notices(redis_client) == [notice(number) for number in range(50)]
    assert not await redis_client.exists("s")


async def test_notices_that_cannot_be_told_are_forgotten(registry, redis_client, servers):
    await servers.redis.stop()
    try:
        registry.notify("s", notice(1))
        await until(lambda: registry.outbox._notifier.done())
    finally:
        servers.redis.start()
        await servers.ready()
    await registry.heartbeat(info())
    registry.notify("s", notice(2))

    async def there():
        return await redis_client.xlen(notice_stream("s")) == 1

    await until(there)


async def test_a_notice_that_waited_for_too_long_is_not_sent(registry, redis_client, servers, monkeypatch):
    monkeypatch.setattr("audiosocket.outbox.NOTICE_SECONDS", 0.5)
    registry.notify("s", notice(0))
    await until(lambda: registry.outbox._notifier.done())
    pid = servers.redis.running().pid
    os.kill(pid, signal.SIGSTOP)
    try:
        registry.notify("s", notice(1))  # under way while Redis stands still
        registry.notify("s", notice(2))
        await asyncio.sleep(1)
    finally:
        os.kill(pid, signal.SIGCONT)
    await until(lambda: registry.outbox._notifier.done())
    registry.notify("s", notice(3))
    await until(lambda: registry.outbox._notifier.done())
    assert await stored_notices(redis_client) == [notice(0), notice(1), notice(3)]


async def ordered(client, heard: list[LegOrder], order: LegOrder) -> None:
    """Publishes until somebody has heard it."""
    before = len(heard)

    async def arrived():
        await client.publish(orders_channel("gw/0"), msgspec.json.encode(order))
        await asyncio.sleep(0.02)
        return len(heard) > before

    await until(arrived)


async def test_orders_are_heard_also_after_redis_was_away(registry, redis_client, servers):
    heard: list[LegOrder] = []
    listening = asyncio.create_task(registry.orders("gw/0", heard.append))
    try:
        await ordered(redis_client, heard, LegOrder(leg_uuid="a", order="release"))
        assert heard[0] == LegOrder(leg_uuid="a", order="release")
        for unreadable in (b"not an order", b'{"leg_uuid": "\xff"}', b'{"x": ' + b"[" * 5000):
            await redis_client.publish(orders_channel("gw/0"), unreadable)
        await redis_client.publish(orders_channel("gw/1"), msgspec.json.encode(heard[0]))
        await servers.redis.stop()
        servers.redis.start()
        await servers.ready()
        await ordered(redis_client, heard, LegOrder(leg_uuid="b", order="release"))
        assert heard[-1].leg_uuid == "b"
        assert {order.leg_uuid for order in heard} == {"a", "b"}
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
