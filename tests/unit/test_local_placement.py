"""Placement without Redis: which worker is tried, who is counted, who waits."""

from __future__ import annotations

import msgspec
import pytest

from ari_app.fleet.leases import WAIT_SECONDS, Held
from ari_app.fleet.local import FORGET_SECONDS, SHUN_SECONDS, KnownWorkers, LocalLedger
from audiosocket.callspec import WorkerInfo

pytestmark = pytest.mark.unit

PAIRS = ["main", "east"]


def worker(name: str, **changes: object) -> WorkerInfo:
    base = WorkerInfo(
        worker_id=name,
        node=name.partition("/")[0],
        pair="main",
        host="127.0.0.1",
        port=9092,
        status_url="http://127.0.0.1:9192",
        capacity=10,
        active=0,
        draining=False,
        version="1",
        started_at_ms=0,
    )
    return msgspec.structs.replace(base, **changes)


def known(*workers: WorkerInfo, closed: tuple[str, ...] = ()) -> KnownWorkers:
    found = KnownWorkers()
    found.see(workers, closed, 0.0)
    return found


def best(found: KnownWorkers, calls: dict[str, int], exclude: tuple[str, ...] = (), now: float = 0.0) -> str:
    chosen = found.best(PAIRS, calls, exclude, now)
    return "" if chosen is None else chosen.worker_id


def test_the_least_calls_per_capacity_of_the_own_pair_come_first() -> None:
    found = known(worker("a/0"), worker("a/1", capacity=20), worker("b/0", pair="east"), worker("c/0", pair="west"))
    assert best(found, {"a/0": 2, "a/1": 3}) == "a/1"
    assert best(found, {"a/0": 2, "a/1": 5}) == "a/0"
    assert best(found, {}, ("a/0", "a/1")) == "b/0"
    assert best(found, {}, ("a/0", "a/1", "b/0")) == ""  # of another pair, which is not reached


def test_equals_take_turns() -> None:
    found = known(*(worker(f"a/{index}") for index in range(3)))
    assert {best(found, {}) for _ in range(3)} == {"a/0", "a/1", "a/2"}


def test_one_that_took_no_calls_comes_last_and_a_marked_node_gets_none() -> None:
    draining, away = worker("a/0", draining=True), worker("b/0", pair="east", overloaded=True)
    found = known(draining, away, worker("a/1"), worker("d/0"), closed=("d",))
    assert best(found, {"a/1": 9}) == "a/1"
    assert best(found, {}, ("a/1",)) == "a/0"
    assert best(found, {}, ("a/1", "a/0")) == "b/0"
    assert best(found, {}, ("a/1", "a/0", "b/0")) == ""
    found.shun("a/1", 0.0)
    assert best(found, {}, ("b/0",)) == "a/0"
    assert best(found, {}, ("b/0",), SHUN_SECONDS) == "a/1"


def test_of_a_host_where_a_worker_does_not_answer_the_others_come_after_those_of_other_hosts() -> None:
    found = known(worker("a/0"), worker("a/1"), worker("b/0", pair="east"))
    found.shun("a/0", 0.0)
    assert best(found, {}) == "b/0"
    assert best(found, {}, ("b/0",)) == "a/1"
    assert best(found, {}, ("b/0", "a/1")) == "a/0"
    assert best(found, {"a/1": 1}, (), SHUN_SECONDS) == "a/0"


def test_a_redis_that_lost_its_memory_is_not_believed_at_once() -> None:
    found = known(worker("a/0"), worker("a/1"))
    found.see([worker("a/1", active=4)], (), 1.0)
    assert found.listed("a/1")
    assert not found.listed("a/0")
    assert [info.worker_id for info in found.workers] == ["a/0", "a/1"]
    assert found.get("a/1") == worker("a/1", active=4)
    found.keep(FORGET_SECONDS)
    found.see([worker("a/1")], (), FORGET_SECONDS)
    assert found.get("a/0") is not None
    found.see([worker("a/1")], (), FORGET_SECONDS * 2)
    assert found.get("a/0") is None
    found.meet(worker("a/2"), FORGET_SECONDS)
    assert found.get("a/2") == worker("a/2")


def held(ledger: LocalLedger, **calls: str) -> None:
    ledger.held = {call: Held("a/0", 1, application) for call, application in calls.items()}


def test_calls_are_counted_with_those_of_other_controllers_as_they_were_last() -> None:
    ledger = LocalLedger()
    held(ledger, one="bot", two="bot", three="echo")
    assert ledger.on_workers() == {"a/0": 3}
    ledger.count_elsewhere({"bot": 5, "echo": 0})
    held(ledger, one="bot")
    assert (ledger.of_application("bot"), ledger.of_application("echo")) == (4, 0)
    assert ledger.place("next", "bot", None, 0, 0.0) is None
    assert ledger.place("next", "bot", 5, 0, 0.0) is None
    assert ledger.place("next", "bot", 4, 0, 0.0) == 0


def test_who_waits_is_taken_in_turn_and_loses_his_place_when_he_does_not_ask() -> None:
    ledger = LocalLedger()
    held(ledger, one="bot")
    assert [ledger.place(call, "bot", 1, 2, 0.0) for call in ("two", "three", "four")] == [1, 2, 0]
    held(ledger)
    assert ledger.place("three", "bot", 1, 2, 1.0) == 2
    assert ledger.place("two", "bot", 1, 2, 1.0) is None
    held(ledger, two="bot")
    assert ledger.place("three", "bot", 1, 2, 2.0) == 1
    assert ledger.place("five", "bot", 1, 2, 2.0) == 2
    ledger.leave("three", "bot")
    ledger.leave("nobody", "echo")
    assert ledger.place("five", "bot", 1, 2, 3.0) == 1
    assert ledger.place("six", "bot", 1, 2, 3.0 + WAIT_SECONDS + 0.1) == 1
