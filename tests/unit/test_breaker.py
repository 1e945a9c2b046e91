"""The rule of the circuit breaker."""

from __future__ import annotations

import pytest

from audiosocket.breaker import Breaker, Outcome, Verdict

pytestmark = pytest.mark.unit

OPEN_MS, PROBE_MS = 30_000, 1_000


class Clocked:
    """A breaker that opens at three failures in a row."""

    def __init__(self) -> None:
        self.now_ms = 1_000_000
        self.breaker = Breaker()

    def admit(self) -> Verdict:
        return self.breaker.admit(self.now_ms, PROBE_MS)

    def record(self, outcome: Outcome, probe: bool = False) -> bool:
        return self.breaker.record(outcome, probe, self.now_ms, 3, OPEN_MS)

    def opened(self) -> Clocked:
        assert [self.record(Outcome.BAD) for _ in range(3)] == [False, False, True]
        return self


def test_failures_in_a_row_open_it_and_a_success_between_them_does_not() -> None:
    clocked = Clocked()
    assert not clocked.record(Outcome.BAD)
    assert not clocked.record(Outcome.BAD)
    assert not clocked.record(Outcome.GOOD)
    clocked.opened()
    assert clocked.admit() is Verdict.SUSPENDED


def test_a_caller_who_went_says_nothing() -> None:
    clocked = Clocked()
    clocked.record(Outcome.BAD)
    clocked.record(Outcome.BAD)
    assert not clocked.record(Outcome.NONE)
    assert clocked.admit() is Verdict.DIAL
    assert clocked.record(Outcome.BAD)


def test_after_its_time_one_probe_at_a_time_is_let_through() -> None:
    clocked = Clocked().opened()
    clocked.now_ms += OPEN_MS - 1
    assert clocked.admit() is Verdict.SUSPENDED
    clocked.now_ms += 1
    assert [clocked.admit() for _ in range(3)] == [Verdict.PROBE, Verdict.SUSPENDED, Verdict.SUSPENDED]


def test_a_good_probe_closes_it() -> None:
    clocked = Clocked().opened()
    clocked.now_ms += OPEN_MS
    assert clocked.admit() is Verdict.PROBE
    assert not clocked.record(Outcome.GOOD, probe=True)
    assert [clocked.admit() for _ in range(2)] == [Verdict.DIAL, Verdict.DIAL]
    clocked.opened()  # it counts from nothing again


def test_a_bad_probe_opens_it_for_its_time_again() -> None:
    clocked = Clocked().opened()
    clocked.now_ms += OPEN_MS
    assert clocked.admit() is Verdict.PROBE
    assert clocked.record(Outcome.BAD, probe=True)
    clocked.now_ms += OPEN_MS - 1
    assert clocked.admit() is Verdict.SUSPENDED
    clocked.now_ms += 1
    assert clocked.admit() is Verdict.PROBE


def test_a_probe_whose_caller_went_makes_room_for_the_next() -> None:
    clocked = Clocked().opened()
    clocked.now_ms += OPEN_MS
    clocked.admit()
    clocked.record(Outcome.NONE, probe=True)
    assert clocked.admit() is Verdict.PROBE


def test_a_probe_that_is_never_heard_of_makes_room_after_its_time() -> None:
    clocked = Clocked().opened()
    clocked.now_ms += OPEN_MS
    clocked.admit()
    clocked.now_ms += PROBE_MS - 1
    assert clocked.admit() is Verdict.SUSPENDED
    clocked.now_ms += 1
    assert clocked.admit() is Verdict.PROBE


def test_a_probe_that_is_heard_of_keeps_the_others_waiting() -> None:
    clocked = Clocked().opened()
    clocked.now_ms += OPEN_MS
    assert clocked.admit() is Verdict.PROBE
    for _ in range(5):
        clocked.now_ms += PROBE_MS - 1
        assert clocked.admit() is Verdict.SUSPENDED
        clocked.breaker.renew(clocked.now_ms, PROBE_MS)
    clocked.now_ms += PROBE_MS
    assert clocked.admit() is Verdict.PROBE  # it has not been heard of any more


def test_a_probe_that_is_heard_of_late_does_not_open_what_is_closed() -> None:
    clocked = Clocked().opened()
    clocked.now_ms += OPEN_MS
    clocked.admit()
    clocked.record(Outcome.GOOD, probe=True)
    clocked.breaker.renew(clocked.now_ms, PROBE_MS)
    assert clocked.admit() is Verdict.DIAL


def test_calls_that_were_dialled_before_it_opened_do_not_keep_it_open() -> None:
    clocked = Clocked().opened()
    clocked.now_ms += 20_000
    assert not clocked.record(Outcome.BAD)
    clocked.now_ms += OPEN_MS - 20_000
    assert clocked.admit() is Verdict.PROBE


def test_a_late_success_closes_it() -> None:
    clocked = Clocked().opened()
    clocked.record(Outcome.GOOD)
    assert clocked.admit() is Verdict.DIAL
