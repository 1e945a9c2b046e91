"""The invariants of the leases, whatever happens and whoever stops after any step: a model of the ledger is moved
beside the real one, and compared with it after each step.

A client that dies, and one that never hears an answer, are the same to Redis: it hears no more of them. So what a
client knows is only what it was told, and any holder that there ever was may come back with what it knew then.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from ari_app.errors import NoCapacity
from ari_app.fleet.leases import WAIT_SECONDS, Held, Lease
from audiosocket.callspec import HEARTBEAT_TTL_MS
from audiosocket.keys import KEY_PREFIX, mark_key
from audiosocket.runtime.announcing import announcement_of
from audiosocket.runtime.stores import open_redis
from audiosocket.settings import StoreUrls
from tests.store.fleet import LEASE_MS, Fleet

pytestmark = pytest.mark.store

WORKERS = {"gw-a/0": ("a", 2), "gw-a/1": ("a", 1), "gw-b/0": ("b", 2), "gw-c/0": ("c", 1)}
"""Worker to pair and capacity."""
PBX = {"pbx-a": ("a", 3), "pbx-b": ("b", 2)}
"""PBX node to pair and capacity."""
SPILL_OVER = ["b", "c"]
LIMITS: dict[str, int | None] = {"bot": 2, "free": None}
NODES = ["gw-a", "gw-b", "gw-c", "pbx-a", "pbx-b"]
LINE_MAX = 2

CALLS = st.sampled_from([f"call-{index}" for index in range(6)])
APPLICATIONS = st.sampled_from(sorted(LIMITS))


@dataclass(frozen=True)
class Record:
    """What the ledger keeps of a call."""

    token: int
    held: Held | None = None
    """None: it was given back."""
    ends: int = 0


@dataclass
class Model:
    """The ledger as it should be."""

    now: int
    records: dict[str, Record] = field(default_factory=dict)
    workers: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Announced: until when, and as what (`ready`, `draining`, `overloaded`)."""
    pbx: dict[str, tuple[int, bool, int]] = field(default_factory=dict)
    """Announced: until when, whether it accepts, calls."""
    marks: set[str] = field(default_factory=set)
    lines: dict[str, dict[str, int]] = field(default_factory=dict)
    """Application to its waiting calls in their order, each until when."""

    def lease(self, call: str) -> Held | None:
        record = self.records.get(call)
        return record.held if record and record.ends > self.now else None

    def leases(self, **of: str) -> int:
        """Live leases with these fields (of `Held`)."""
        live = filter(None, map(self.lease, self.records))
        return sum(all(getattr(held, name) == value for name, value in of.items()) for held in live)

    def alive(self, worker: str) -> bool:
        return worker in self.workers and self.workers[worker][0] > self.now

    def takes_calls(self, worker: str) -> bool:
        return self.alive(worker) and self.workers[worker][1] == "ready" and node_of(worker) not in self.marks

    def load(self, worker: str) -> float:
        return self.leases(worker_id=worker) / WORKERS[worker][1]

    def eligible(self, pairs: list[str], exclude: set[str]) -> set[str]:
        """The workers that a call of these pairs may be given: the least loaded."""
        found = [
            worker
            for worker, (pair, _) in WORKERS.items()
            if pair in pairs and worker not in exclude and self.takes_calls(worker) and self.load(worker) < 1
        ]
        return {worker for worker in found if self.load(worker) == min(map(self.load, found))}

    def why_not(self, exclude: set[str]) -> str:
        """Of an inbound call, which all pairs may carry."""
        others = [worker for worker in WORKERS if self.alive(worker) and worker not in exclude]
        drained = [w for w in others if self.workers[w][1] == "draining" or node_of(w) in self.marks]
        return "no_workers" if not others else "all_draining" if drained == others else "all_full"

    def outbound(self, exclude: set[str]) -> set[tuple[str, str]]:
        """PBX nodes and workers that an outbound call may be given."""
        loads: dict[tuple[str, str], float] = {}
        for node, (pair, capacity) in PBX.items():
            ends, accepts, calls = self.pbx.get(node, (0, False, 0))
            busy = max(calls, self.leases(node=node)) / capacity
            if ends <= self.now or not accepts or node in self.marks or node in exclude or busy >= 1:
                continue
            usable = [worker for worker in WORKERS if WORKERS[worker][0] == pair and self.takes_calls(worker)]
            # The calls of a worker that has taken its registration back count until their leases end.
            counted = usable + [w for w in WORKERS if WORKERS[w][0] == pair and w not in self.workers]
            active = sum(self.leases(worker_id=worker) for worker in counted)
            for worker in self.eligible([pair], exclude):
                loads[node, worker] = max(busy, active / sum(WORKERS[name][1] for name in usable))
        return {chosen for chosen, load in loads.items() if load == min(loads.values())}

    def ask(self, call: str, application: str, waits: bool) -> int | None:
        """Asks for a slot of an application. The place in its line if it is to be refused, 0: without one; None: the
        slot may be had."""
        limit, lease = LIMITS[application], self.lease(call)
        if limit is None or (lease and lease.application == application):
            return None
        line = self.lines[application] = {c: e for c, e in self.lines.get(application, {}).items() if e > self.now}
        ahead = list(line).index(call) if call in line else len(line)
        refused = limit - self.leases(application=application) <= ahead
        if call in line or (refused and waits and ahead < LINE_MAX):
            line[call] = self.now + int(WAIT_SECONDS * 1000)
        return ahead + (call in line) * 1 if refused and call in line else 0 if refused else None


def node_of(worker: str) -> str:
    return worker.partition("/")[0]


class LeaseMachine(RuleBasedStateMachine):
    urls: StoreUrls

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.client = open_redis(self.urls)
        self.do(self.client.flushall())
        self.fleet = Fleet(self.client)
        self.leases = self.fleet.leases("pbx-a", "a", SPILL_OVER)
        self.model = Model(self.fleet.now_ms)
        self.running: dict[str, str] = {}
        """Workers whose heartbeats come, and as what."""
        self.controlling: dict[str, tuple[bool, int]] = {}
        """PBX nodes whose controllers' heartbeats come: whether they accept, and calls."""
        self.known: dict[str, set[Held]] = {}
        """What any client was ever told about the lease of a call."""
        self.newest = 0
        self.regranted = False
        for worker in WORKERS:
            self.worker_heartbeat(worker, "ready")
        for node in PBX:
            self.controller_heartbeat(node, True, 0)

    def do(self, awaitable):
        return self.loop.run_until_complete(awaitable)

    def teardown(self) -> None:
        self.do(self.client.aclose())
        self.loop.close()

    # Those around the ledger

    @rule(worker=st.sampled_from(sorted(WORKERS)), state=st.sampled_from(["ready", "ready", "draining", "overloaded"]))
    def worker_heartbeat(self, worker, state):
        self.running[worker] = state
        pair, capacity = WORKERS[worker]
        flags = {"draining": state == "draining", "overloaded": state == "overloaded"}
        self.do(self.fleet.worker(worker, capacity, pair=pair, **flags))
        self.model.workers[worker] = self.model.now + HEARTBEAT_TTL_MS, state

    @precondition(lambda self: self.running)
    @rule(data=st.data(), in_order=st.booleans())
    def worker_stops(self, data, in_order):
        worker = data.draw(st.sampled_from(sorted(self.running)))
        del self.running[worker]
        if in_order and worker in self.model.workers:
            pair, capacity = WORKERS[worker]
            info = self.do(self.fleet.worker(worker, capacity, pair=pair))
            self.do(self.fleet.announcer.withdraw(announcement_of(info)))
            del self.model.workers[worker]

    @rule(node=st.sampled_from(sorted(PBX)), accepts=st.booleans(), calls=st.integers(0, 2))
    def controller_heartbeat(self, node, accepts, calls):
        self.controlling[node] = accepts, calls
        pair, capacity = PBX[node]
        self.do(self.fleet.pbx(node, capacity, pair=pair, accepting=accepts, calls=calls))
        self.model.pbx[node] = self.model.now + HEARTBEAT_TTL_MS, accepts, calls

    @rule(node=st.sampled_from(sorted(PBX)))
    def controller_stops(self, node):
        self.controlling.pop(node, None)

    @rule(node=st.sampled_from(NODES), mark=st.booleans())
    def mark(self, node, mark):
        if mark:
            self.do(self.client.set(mark_key(node), "cordoned"))
            self.model.marks.add(node)
        else:
            self.do(self.client.delete(mark_key(node)))
            self.model.marks.discard(node)
        self.time_passes(1000)

    @rule(milliseconds=st.sampled_from([2000, 25_000, LEASE_MS + 1000]))
    def time_passes(self, milliseconds):
        """Whose heartbeats come is announced again."""
        self.fleet.now_ms = self.model.now = self.model.now + milliseconds
        for worker, state in self.running.items():
            self.worker_heartbeat(worker, state)
        for node, (accepts, calls) in self.controlling.items():
            self.controller_heartbeat(node, accepts, calls)

    @rule()
    def redis_loses_its_memory(self):
        self.do(self.client.flushall())
        self.model = Model(self.model.now)
        self.fleet.now_ms = self.model.now = self.model.now + 1

    # Clients

    def granted(self, call, lease: Lease, application: str, heard: bool) -> None:
        """A new lease."""
        assert lease.token > self.newest
        self.newest = lease.token
        held = Held(lease.worker.worker_id, lease.token, application, lease.node)
        self.model.records[call] = Record(lease.token, held, self.model.now + LEASE_MS)
        self.model.lines.get(application, {}).pop(call, None)
        if heard:
            self.known.setdefault(call, set()).add(held)

    @rule(
        call=CALLS,
        application=APPLICATIONS,
        outbound=st.booleans(),
        waits=st.booleans(),
        exclude=st.sets(st.sampled_from([*WORKERS, *PBX]), max_size=2),
        heard=st.booleans(),
    )
    def acquire(self, call, application, outbound, waits, exclude, heard):
        ask = self.leases.acquire_outbound if outbound else self.leases.acquire
        asked = ask(
            call,
            application=application,
            limit=LIMITS[application],
            line_max=LINE_MAX if waits else 0,
            exclude=exclude,
        )
        held = self.model.lease(call)
        if held and held.worker_id not in exclude and self.model.alive(held.worker_id):
            lease = self.do(asked)
            assert (lease.worker.worker_id, lease.token, lease.node) == (held.worker_id, held.token, held.node)
            self.model.records[call] = replace(self.model.records[call], ends=self.model.now + LEASE_MS)
            return
        place = self.model.ask(call, application, waits)
        own = self.model.eligible(["a"], exclude)
        inbound = {("pbx-a", worker) for worker in own or self.model.eligible(SPILL_OVER, exclude)}
        allowed = self.model.outbound(exclude) if outbound else inbound
        if place is None and allowed:
            lease = self.do(asked)
            assert (lease.node, lease.worker.worker_id) in allowed
            self.granted(call, lease, application, heard)
            return
        with pytest.raises(NoCapacity) as caught:
            self.do(asked)
        if place is not None:
            assert (caught.value.reason, caught.value.place) == ("app_full", place)
        elif not outbound:
            assert caught.value.reason == self.model.why_not(exclude)

    @precondition(lambda self: any(map(self.model.lease, self.model.records)))
    @rule(data=st.data(), waits=st.booleans(), heard=st.booleans())
    def move(self, data, waits, heard):
        """A call that has a lease is to have another worker."""
        call = data.draw(st.sampled_from(sorted(filter(self.model.lease, self.model.records))))
        held = self.model.lease(call)
        self.acquire(call, held.application or "bot", False, waits, {held.worker_id}, heard)

    @precondition(lambda self: self.stale())
    @rule(data=st.data())
    def stale_holder(self, data):
        """Who held a lease before it was moved comes back: nothing comes of it."""
        call, held = data.draw(st.sampled_from(self.stale()))
        if data.draw(st.booleans()):
            assert (self.do(self.leases.renew({call: held}))).lost == {call}
        else:
            assert not self.do(self.leases.release(call, held.token))

    def stale(self):
        """Calls under leases that are not the newest."""
        return [
            (call, held)
            for call, all_held in sorted(self.known.items())
            for held in sorted(all_held, key=lambda held: held.token)
            if call in self.model.records and held.token < self.model.records[call].token
        ]

    @rule(call=CALLS, application=APPLICATIONS)
    def leave_queue(self, call, application):
        self.do(self.leases.leave_queue(call, application))
        self.model.lines.get(application, {}).pop(call, None)

    @rule(data=st.data(), calls=st.lists(CALLS, min_size=1, max_size=4, unique=True))
    def renew(self, data, calls):
        """By whoever held, or holds, these calls; one that has just adopted a call knows no token."""
        adopting = [Held(worker, 0, "bot", "pbx-a") for worker in WORKERS]
        told = {
            call: data.draw(
                st.sampled_from(sorted(self.known.get(call, set()), key=lambda held: held.token) + adopting)
            )
            for call in calls
        }
        renewal = self.do(self.leases.renew(told))
        for call, held in told.items():
            token = renewal.tokens.get(call, 0) if not held.token else held.token
            if self.renews(call, held):
                assert call not in renewal.lost
                before = self.model.lease(call)
                if before is None or before.token != token:
                    self.regranted = True
                    before = replace(held, token=token)
                    if not held.token:
                        assert token > self.newest
                        self.newest = token
                self.model.records[call] = Record(token, before, self.model.now + LEASE_MS)
                self.known.setdefault(call, set()).add(before)
            else:
                assert call in renewal.lost

    def renews(self, call, held) -> bool:
        record, lease = self.model.records.get(call), self.model.lease(call)
        if record and record.held is None and record.token >= held.token:
            return False
        if record and 0 < held.token < record.token:
            return False
        if lease and held.token in (0, lease.token):
            return lease.worker_id == held.worker_id
        if lease:
            self.model.records[call] = replace(record, ends=0)
        room = self.model.leases(worker_id=held.worker_id) < WORKERS[held.worker_id][1]
        return self.model.alive(held.worker_id) and room

    @rule(call=CALLS, data=st.data())
    def release(self, call, data):
        tokens = sorted({held.token for held in self.known.get(call, set())} | {0})
        token = data.draw(st.sampled_from(tokens))
        record, lease = self.model.records.get(call), self.model.lease(call)
        had = lease is not None and token in (0, lease.token)
        assert self.do(self.leases.release(call, token)) == had
        if record is None or token == 0 or token >= record.token:
            self.model.records[call] = Record(token or (record.token if record else 0))

    # What holds after every step

    @invariant()
    def the_ledger_is_as_it_should_be(self):
        names = {
            "leases:": ("worker_id", WORKERS),
            "node-leases:": ("node", PBX),
            "app-leases:": ("application", LIMITS),
        }
        sets = [(kind, name, key) for kind, (name, keys) in names.items() for key in keys]
        # What has expired is removed by whichever script comes next.
        counts = self.do(self.leases.active(list(WORKERS)))
        assert counts == {worker: self.model.leases(worker_id=worker) for worker in WORKERS}
        pipeline = self.client.pipeline(transaction=False)
        for kind, _, key in sets:
            if kind == "leases:":
                pipeline.zrange(KEY_PREFIX + kind + key, 0, -1)
            else:
                pipeline.smembers(KEY_PREFIX + kind + key)
        for (kind, name, key), found in zip(sets, self.do(pipeline.execute()), strict=True):
            held = {call: self.model.lease(call) for call in self.model.records}
            live = {call for call, lease in held.items() if lease and getattr(lease, name) == key}
            assert {call.decode() for call in found} == live, f"{kind}{key}"
        ends = self.do(self.client.zrange(f"{KEY_PREFIX}lease-ends", 0, -1, withscores=True))
        assert {call.decode(): int(at) for call, at in ends} == {
            call: record.ends for call, record in self.model.records.items() if self.model.lease(call)
        }

    @invariant()
    def nothing_is_above_its_bound(self):
        for worker, (_, capacity) in WORKERS.items():
            assert self.model.leases(worker_id=worker) <= capacity
        for application, limit in LIMITS.items():
            assert limit is None or self.regranted or self.model.leases(application=application) <= limit


@pytest.mark.timeout(300)
def test_invariants_hold_whatever_happens(empty_stores):
    machine = type("Machine", (LeaseMachine,), {"urls": empty_stores})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=100, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
