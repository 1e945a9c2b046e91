"""Leases: the policy, and its invariants under any order of events, in a real Redis."""

from __future__ import annotations

import asyncio
import collections
import uuid

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from ari_app.errors import NoCapacity, StoreUnavailable
from ari_app.fleet.leases import Leases
from audiosocket.callspec import KEY_PREFIX, WORKERS_KEY, WorkerInfo, worker_key
from audiosocket.runtime.stores import open_redis
from audiosocket.settings import StoreUrls

pytestmark = pytest.mark.store


def worker(worker_id: str, capacity: int, draining: bool = False) -> WorkerInfo:
    return WorkerInfo(
        worker_id=worker_id,
        node="gw",
        host="127.0.0.1",
        port=9092,
        status_url="http://127.0.0.1:9192",
        capacity=capacity,
        active=0,
        draining=draining,
        version="1",
        started_at_ms=0,
    )


async def announce(client, info: WorkerInfo) -> WorkerInfo:
    await client.set(worker_key(info.worker_id), msgspec.json.encode(info))
    await client.sadd(WORKERS_KEY, info.worker_id)
    return info


async def pass_time(client, milliseconds: int) -> None:
    """As far as leases are concerned, this time goes by."""
    async for key in client.scan_iter(f"{KEY_PREFIX}leases:*"):
        for call_id in await client.zrange(key, 0, -1):
            await client.zincrby(key, -milliseconds, call_id)


@pytest.fixture
def leases(redis_client) -> Leases:
    return Leases(redis_client, 60)


async def test_least_active_per_capacity(leases, redis_client):
    small, large = await announce(redis_client, worker("gw/0", 2)), await announce(redis_client, worker("gw/1", 8))
    chosen = collections.Counter([(await leases.acquire(str(uuid.uuid4()))).worker_id for _ in range(5)])
    assert chosen == {small.worker_id: 1, large.worker_id: 4}
    for _ in range(5):
        await leases.acquire(str(uuid.uuid4()))
    with pytest.raises(NoCapacity) as caught:
        await leases.acquire("one-too-many")
    assert caught.value.reason == "all_full"
    assert await leases.active(["gw/0", "gw/1", "gw/2"]) == {"gw/0": 2, "gw/1": 8, "gw/2": 0}


async def test_equals_take_turns_even_when_each_call_ends_before_the_next(leases, redis_client):
    for index in range(3):
        await announce(redis_client, worker(f"gw/{index}", 5))
    chosen = []
    for _ in range(9):
        chosen.append((await leases.acquire("call")).worker_id)
        assert await leases.release("call")
    assert collections.Counter(chosen) == {"gw/0": 3, "gw/1": 3, "gw/2": 3}


async def test_a_worker_that_does_not_keep_up_is_given_no_call_but_keeps_those_that_it_has(leases, redis_client):
    well, ill = worker("gw/0", 5), worker("gw/1", 5)
    for info in (well, ill):
        await announce(redis_client, info)
    before = {call: (await leases.acquire(call)).worker_id for call in ("one", "two")}
    assert sorted(before.values()) == ["gw/0", "gw/1"]
    await announce(redis_client, msgspec.structs.replace(ill, overloaded=True))
    assert {(await leases.acquire(str(uuid.uuid4()))).worker_id for _ in range(4)} == {"gw/0"}
    with pytest.raises(NoCapacity) as caught:
        await leases.acquire("more")
    assert caught.value.reason == "all_full"
    assert await leases.renew(before) == set()
    await announce(redis_client, ill)
    assert (await leases.acquire("more")).worker_id == "gw/1"


async def test_why_there_is_no_capacity(leases, redis_client):
    async def why():
        with pytest.raises(NoCapacity) as caught:
            await leases.acquire("call")
        return caught.value.reason

    assert await why() == "no_workers"
    await redis_client.sadd(WORKERS_KEY, "gone/0")
    assert await why() == "no_workers"
    await announce(redis_client, worker("gw/0", 5, draining=True))
    assert await why() == "all_draining"
    await announce(redis_client, worker("gw/1", 0))
    assert await why() == "all_full"
    await redis_client.set(worker_key("gw/1"), b"not json")
    assert await why() == "all_draining"


async def test_concurrent_acquires_of_the_last_slot_have_one_winner(leases, redis_client, empty_stores):
    await announce(redis_client, worker("gw/0", 3))
    await leases.acquire("first")
    await leases.acquire("second")
    clients = [open_redis(empty_stores) for _ in range(8)]
    answers = await asyncio.gather(
        *(Leases(client, 60).acquire(f"call-{index}") for index, client in enumerate(clients)), return_exceptions=True
    )
    assert sum(isinstance(answer, WorkerInfo) for answer in answers) == 1
    assert sum(isinstance(answer, NoCapacity) for answer in answers) == 7
    await asyncio.gather(*(client.aclose() for client in clients))


async def test_concurrent_acquires_of_one_call_agree(leases, redis_client):
    for index in range(4):
        await announce(redis_client, worker(f"gw/{index}", 5))
    answers = await asyncio.gather(*(leases.acquire("call") for _ in range(20)))
    assert len({answer.worker_id for answer in answers}) == 1
    assert sum((await leases.active([f"gw/{index}" for index in range(4)])).values()) == 1


async def test_a_lease_that_nobody_renews_ends_by_redis_clock(redis_client):
    brief = Leases(redis_client, 0.15)
    await announce(redis_client, worker("gw/0", 1))
    await brief.acquire("first")
    async with asyncio.timeout(5):
        while True:
            try:
                await brief.acquire("second")
                break
            except NoCapacity:
                await asyncio.sleep(0.01)
    assert await brief.renew({"first": "gw/0", "second": "gw/0"}) == {"first"}
    async with asyncio.timeout(5):  # and no key of it stays behind
        while {key async for key in redis_client.scan_iter(f"{KEY_PREFIX}lease*")} != {
            f"{KEY_PREFIX}lease-turn".encode()
        }:
            await asyncio.sleep(0.05)


async def test_a_call_of_a_dead_worker_gets_another(leases, redis_client):
    await announce(redis_client, worker("gw/0", 1))
    await leases.acquire("call")
    await redis_client.delete(worker_key("gw/0"))
    await announce(redis_client, worker("gw/1", 1))
    assert (await leases.acquire("call")).worker_id == "gw/1"
    assert await leases.active(["gw/0", "gw/1"]) == {"gw/0": 0, "gw/1": 1}


async def test_renewals_rebuild_the_ledger_of_a_redis_that_forgot(leases, redis_client):
    await announce(redis_client, worker("gw/0", 2))
    assert await leases.renew({"a": "gw/0", "b": "gw/0", "c": "gw/0", "d": "gone/0"}) == {"c", "d"}
    assert await leases.active(["gw/0"]) == {"gw/0": 2}
    many = {f"call-{index}": "gw/1" for index in range(1200)}
    await announce(redis_client, worker("gw/1", 1100))
    assert len(await leases.renew(many)) == 100


async def test_without_redis(tmp_path):
    client = open_redis(StoreUrls(postgres="postgresql://x", redis=f"unix://{tmp_path}/none.sock"))
    with pytest.raises(StoreUnavailable, match="Redis cannot be used"):
        await Leases(client, 60).acquire("call")
    await client.aclose()


CALLS = st.sampled_from([f"call-{index}" for index in range(8)])
WORKERS = st.sampled_from(["gw/0", "gw/1", "gw/2"])
LEASE_MS = 60_000


class LeaseMachine(RuleBasedStateMachine):
    """A model of the ledger beside the real one. Time passes only when a rule says so: real time is too short."""

    urls: StoreUrls

    def __init__(self):
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.client = open_redis(self.urls)
        self.leases = Leases(self.client, LEASE_MS / 1000)
        self.do(self.client.flushall())
        self.alive: dict[str, WorkerInfo] = {}
        self.known: dict[str, int] = {}
        self.held: dict[str, tuple[str, int]] = {}  # call: worker, ms left

    def do(self, awaitable):
        return self.loop.run_until_complete(awaitable)

    def teardown(self):
        self.do(self.client.aclose())
        self.loop.close()

    def count(self, worker_id):
        return sum(holder == worker_id for holder, _ in self.held.values())

    @rule(worker_id=WORKERS, capacity=st.integers(1, 3), draining=st.booleans())
    def announce(self, worker_id, capacity, draining):
        capacity = self.known.setdefault(worker_id, capacity)
        self.alive[worker_id] = self.do(announce(self.client, worker(worker_id, capacity, draining)))

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def die(self, data):
        worker_id = data.draw(st.sampled_from(sorted(self.alive)))
        del self.alive[worker_id]
        self.do(self.client.delete(worker_key(worker_id)))

    @rule(call=CALLS)
    def acquire(self, call):
        if call in self.held and self.held[call][0] in self.alive:
            allowed = {self.held[call][0]}
        else:
            self.held.pop(call, None)
            usable = {name: info.capacity for name, info in self.alive.items() if not info.draining}
            free = {name: self.count(name) / size for name, size in usable.items() if self.count(name) < size}
            allowed = {name for name, load in free.items() if load == min(free.values())}
        if allowed:
            chosen = self.do(self.leases.acquire(call)).worker_id
            assert chosen in allowed
            self.held[call] = (chosen, LEASE_MS)
            return
        with pytest.raises(NoCapacity) as caught:
            self.do(self.leases.acquire(call))
        reason = "all_full" if usable else "all_draining" if self.alive else "no_workers"
        assert caught.value.reason == reason

    @rule(pairs=st.dictionaries(CALLS, WORKERS, min_size=1, max_size=4))
    def renew(self, pairs):
        lost = set()
        for call, worker_id in pairs.items():
            mine = self.held.get(call, (worker_id, 0))[0] == worker_id
            room = worker_id in self.alive and self.count(worker_id) < self.alive[worker_id].capacity
            if mine and (call in self.held or room):
                self.held[call] = (worker_id, LEASE_MS)
            else:
                lost.add(call)
        assert self.do(self.leases.renew(pairs)) == lost

    @rule(call=CALLS)
    def release(self, call):
        assert self.do(self.leases.release(call)) == (self.held.pop(call, None) is not None)

    @rule(milliseconds=st.sampled_from([25_000, 61_000]))
    def time_passes(self, milliseconds):
        self.do(pass_time(self.client, milliseconds))
        left = {call: (holder, ms - milliseconds) for call, (holder, ms) in self.held.items()}
        self.held = {call: lease for call, lease in left.items() if lease[1] > 0}

    @invariant()
    def ledger_is_sound(self):
        names = ["gw/0", "gw/1", "gw/2"]
        counts = self.do(self.leases.active(names))
        assert counts == {name: self.count(name) for name in names}
        members = []
        for name in names:
            assert counts[name] <= self.known.get(name, 0)
            members += self.do(self.client.zrange(f"{KEY_PREFIX}leases:{name}", 0, -1))
        assert len(members) == len(set(members)), "a call with two leases"


def test_invariants_hold_in_any_order(empty_stores):
    machine = type("Machine", (LeaseMachine,), {"urls": empty_stores})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
