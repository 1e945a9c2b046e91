"""The worker's registry and the controller's side of the same keys."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
import uuid

import msgspec
import pytest
import pytest_asyncio
from pydantic import SecretStr

from ari_app.errors import NoCapacity, StoreUnavailable
from ari_app.fleet.leases import Leases
from ari_app.store.present import Present
from audiosocket.callspec import SPEC_GRACE_SECONDS, CallReport, CallSpec, EndReason, LegOrder, MediaFigures, WorkerInfo
from audiosocket.errors import ConfigError, SpecRefused, Unavailable
from audiosocket.keys import WORKERS_KEY, report_stream, spec_key, taken_key, worker_key
from audiosocket.registry import Registry, open_registry
from audiosocket.runtime.stores import open_redis, redis_call
from audiosocket.settings import NodeSettings, StoreUrls
from audiosocket.sources import RegistrySource
from tests.stores import until

pytestmark = pytest.mark.store


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def spec(lifetime_ms: int = 15_000, **values) -> CallSpec:
    base = {
        "call_id": str(uuid.uuid4()),
        "leg_uuid": str(uuid.uuid4()),
        "call_sid": "c" * 32,
        "stream_sid": "s" * 32,
        "account_sid": "trunkbridge",
        "application": "echo",
        "url": "wss://example.test/media",
        "caller": "+919000000001",
        "callee": "+918000000002",
        "custom_parameters": {"campaign": "दिवाली"},
        "report_stream": report_stream("n1"),
        "created_at_ms": now_ms(),
        "expires_at_ms": now_ms() + lifetime_ms,
    }
    return CallSpec(**(base | values))


def report(number: int = 0) -> CallReport:
    return CallReport(
        call_id=str(uuid.UUID(int=number)),
        leg_uuid=str(uuid.uuid4()),
        worker_id="gw/0",
        reason=EndReason.LEG_CLOSED,
        started_at_ms=1,
        ended_at_ms=2,
        figures=MediaFigures(caller_frames=number),
    )


def info(worker_id: str = "gw/0") -> WorkerInfo:
    return WorkerInfo(
        worker_id=worker_id,
        node="gw",
        host="127.0.0.1",
        port=9092,
        status_url="http://127.0.0.1:9192",
        capacity=5,
        active=1,
        draining=False,
        version="1",
        started_at_ms=0,
    )


@pytest_asyncio.fixture
async def registry(empty_stores):
    opened = Registry(open_redis(empty_stores))
    yield opened
    await opened.close()


@pytest.fixture
def present(redis_client):
    return Present(redis_client)


async def refused(registry, leg_uuid) -> str:
    with pytest.raises(SpecRefused) as caught:
        await registry.take(leg_uuid)
    return caught.value.why


async def test_a_spec_is_given_out_once_as_it_was_written(registry, present, redis_client):
    announced = spec()
    await present.put_spec(announced)
    assert await registry.take(announced.leg_uuid) == announced
    assert await refused(registry, announced.leg_uuid) == "reused"
    assert not await redis_client.exists(spec_key(announced.leg_uuid))  # it may hold credentials
    left_ms = await redis_client.pttl(taken_key(announced.leg_uuid))
    assert SPEC_GRACE_SECONDS * 1000 < left_ms <= SPEC_GRACE_SECONDS * 1000 + 15_000


async def test_an_unknown_leg(registry):
    assert await refused(registry, str(uuid.uuid4())) == "unknown"


async def test_an_expired_spec_is_refused_as_such_every_time(registry, present):
    late = spec(created_at_ms=now_ms() - 20_000, lifetime_ms=-1)
    await present.put_spec(late)
    assert await refused(registry, late.leg_uuid) == "expired"
    assert await refused(registry, late.leg_uuid) == "expired"


async def test_concurrent_takes_have_one_winner(present, empty_stores):
    announced = spec()
    await present.put_spec(announced)
    registries = [Registry(open_redis(empty_stores)) for _ in range(10)]
    answers = await asyncio.gather(*(each.take(announced.leg_uuid) for each in registries), return_exceptions=True)
    assert answers.count(announced) == 1
    assert sorted(str(answer) for answer in answers if isinstance(answer, SpecRefused)) == ["reused"] * 9
    for each in registries:
        await each.close()


async def test_many_takes_at_once_wait_for_a_connection(registry, present):
    announced = [spec() for _ in range(200)]
    await asyncio.gather(*(present.put_spec(each) for each in announced))
    assert await asyncio.gather(*(registry.take(each.leg_uuid) for each in announced)) == announced


async def test_an_unreadable_spec_is_refused(registry, redis_client):
    payloads = [
        *(b"not json", b"7", b"null", b"{}", b'{"expires_at_ms": 99999999999999}', b'{"expires_at_ms": []}'),
        *(b'{"expires_at_ms": null}', b'{"call_id": "\xff"}', b'{"x": ' + b"[" * 5000),
    ]
    for payload in payloads:
        leg_uuid = str(uuid.uuid4())
        await redis_client.set(spec_key(leg_uuid), payload, px=1000)
        assert await refused(registry, leg_uuid) == "unknown"


async def test_a_worker_is_there_until_it_is_silent_or_leaves(registry, present, redis_client):
    await registry.heartbeat(info("gw/1"))
    await registry.heartbeat(info("gw/0"))
    assert await present.workers() == [info("gw/0"), info("gw/1")]
    assert 0 < await redis_client.pttl(worker_key("gw/0")) <= 3000
    await redis_client.pexpire(worker_key("gw/0"), 1)  # silent
    await until(lambda: _only(present, "gw/1"))
    await registry.deregister("gw/1")
    assert await present.workers() == []
    assert await redis_client.smembers(WORKERS_KEY) == {b"gw/0"}


async def _only(present, worker_id):
    return [each.worker_id for each in await present.workers()] == [worker_id]


async def test_reports_are_kept_and_stored_when_redis_returns(registry, redis_client, servers):
    stream = report_stream("n1")
    await servers.redis.stop()
    try:
        with pytest.raises(Unavailable, match="Redis cannot be used"):
            await registry.take(str(uuid.uuid4()))
        with pytest.raises(Unavailable):
            await registry.heartbeat(info())
        await registry.deregister("gw/0")
        for number in range(50):
            await registry.report(stream, report(number))
    finally:
        servers.redis.start()
        await servers.ready()

    async def all_there():
        return await redis_client.xlen(stream) == 50

    await until(all_there)
    entries = await redis_client.xrange(stream)
    stored = [msgspec.json.decode(fields[b"report"], type=CallReport) for _, fields in entries]
    assert [each.figures.caller_frames for each in stored] == list(range(50))


async def test_close_stores_what_waits(empty_stores, redis_client):
    registry = Registry(open_redis(empty_stores))
    await registry.report("s", report())
    await registry.close()
    assert await redis_client.xlen("s") == 1


async def test_a_redis_that_does_not_answer_is_given_up(registry, present, servers):
    announced = spec()
    await present.put_spec(announced)
    pid = servers.redis.running().pid
    os.kill(pid, signal.SIGSTOP)
    try:
        started = time.monotonic()
        with pytest.raises(Unavailable):
            await registry.take(announced.leg_uuid)
        assert 1.5 < time.monotonic() - started < 2.5
        with pytest.raises(StoreUnavailable):
            await present.workers()
    finally:
        os.kill(pid, signal.SIGCONT)
    await registry.heartbeat(info())


async def test_a_password_is_used_and_never_shown(servers, redis_client):
    await redis_client.config_set("requirepass", "tell-nobody")
    try:
        urls = StoreUrls(postgres="postgresql://x", redis=servers.urls.redis, redis_password=SecretStr("tell-nobody"))
        registry = open_registry(NodeSettings(node="gw", store=urls))
        await registry.heartbeat(info())
        await registry.close()
        for wrong in (None, SecretStr("guess-1234")):
            registry = open_registry(NodeSettings(node="gw", store=urls.model_copy(update={"redis_password": wrong})))
            with pytest.raises(Unavailable) as caught:
                await registry.heartbeat(info())
            assert "guess-1234" not in str(caught.value)
            await registry.close()
    finally:
        async with open_redis(urls) as client:
            await client.config_set("requirepass", "")


async def test_a_cancellation_that_the_client_forgets_is_not_lost():
    begun = asyncio.Event()

    async def reads():
        async with redis_call(Unavailable):
            try:
                begun.set()
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                pass  # as wait_for of Python 3.11 may
        await asyncio.sleep(60)

    task = asyncio.create_task(reads())
    await begun.wait()
    task.cancel()
    done, _ = await asyncio.wait((task,), timeout=5)
    assert done
    assert task.cancelled()


def test_embedded_stores_that_do_not_run(tmp_path):
    with pytest.raises(ConfigError, match="not running"):
        open_registry(NodeSettings(node="gw", store="embedded", state_dir=tmp_path))


async def test_a_draining_worker_is_told_which_calls_it_has_been_given(registry, redis_client):
    draining = msgspec.structs.replace(info(), draining=True)
    assert await registry.heartbeat(draining) == set()
    assert await registry.heartbeat(info()) == set()
    leases = Leases(redis_client, 60)
    for call in ("one", "two"):
        assert (await leases.acquire(call)).worker.worker_id == "gw/0"
    assert await registry.heartbeat(info()) == set()  # nobody asks
    assert await registry.heartbeat(draining) == {"one", "two"}
    with pytest.raises(NoCapacity):
        await leases.acquire("three")
    assert await leases.release("one", 0)
    assert await registry.heartbeat(draining) == {"two"}


async def test_a_worker_is_announced_when_it_hears_orders(registry, redis_client, monkeypatch):
    monkeypatch.setattr("audiosocket.sources.HEARD_SECONDS", 0.05)
    source = RegistrySource(registry)
    with pytest.raises(Unavailable, match="orders cannot be heard"):
        await source.announce(info())
    assert not await redis_client.exists(worker_key("gw/0"))
    heard = []
    listening = asyncio.create_task(source.orders("gw/0", heard.append))
    try:
        async with asyncio.timeout(10):
            await registry.listening.wait()
        assert await source.announce(info()) == set()
        assert await Present(redis_client).send_order("gw/0", LegOrder(leg_uuid="u", order="release"))
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)


async def test_two_workers_with_one_name_are_told_apart(registry, empty_stores, capsys):
    """Somebody copied a node's file to another machine and left `node` as it was."""
    here = msgspec.structs.replace(info(), started_at_ms=1000)
    there = msgspec.structs.replace(info(), started_at_ms=2000, host="10.0.0.8")
    other = Registry(open_redis(empty_stores))
    try:
        await registry.heartbeat(here)
        await registry.heartbeat(here)
        await other.heartbeat(there)  # it may follow one that was killed
        assert "worker_id_used_twice" not in capsys.readouterr().out
        await registry.heartbeat(here)
        assert re.search("worker_id_used_twice .*other=10.0.0.8:9092", capsys.readouterr().out)
        await other.heartbeat(there)
        assert re.search("worker_id_used_twice .*other=127.0.0.1:9092", capsys.readouterr().out)
        await registry.heartbeat(here)  # once is enough
        assert "worker_id_used_twice" not in capsys.readouterr().out
    finally:
        await other.close()


async def test_a_worker_learns_which_of_its_calls_have_been_given_away(registry, redis_client):
    leases = Leases(redis_client, 30)
    for number in range(2):
        await registry.heartbeat(info(f"gw/{number}"))
    held = {}
    for call in ("stays", "moved", "moved-and-over", "back", "over"):
        lease = await leases.acquire(call, exclude=["gw/1"])
        held[call] = lease.token
    held["forgotten"] = 7
    for call in ("moved", "moved-and-over", "back"):
        later = await leases.acquire(call, exclude=["gw/0"])
        if call == "moved-and-over":
            await leases.release(call, later.token)
        elif call == "back":
            await leases.acquire(call, exclude=["gw/1"])
    await leases.release("over", held["over"])
    assert await registry.given_away("gw/0", held) == {"moved", "moved-and-over", "back"}
    older = dict.fromkeys(held, 0)  # of a controller that gave no tokens
    assert await registry.given_away("gw/0", older) == {"moved"}
    assert await registry.given_away("gw/0", {}) == set()


async def test_the_age_of_a_heartbeat(registry, present):
    await registry.heartbeat(info("gw/0"))
    await asyncio.sleep(0.2)
    await registry.heartbeat(info("gw/1"))
    beats = await present.heartbeats()
    assert {worker: each.worker_id for worker, (each, _) in beats.items()} == {"gw/0": "gw/0", "gw/1": "gw/1"}
    assert beats["gw/0"][1] >= 0.2 > 0.0 <= beats["gw/1"][1]
