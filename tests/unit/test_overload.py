"""When a worker is overloaded, and when it is not any more."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audiosocket.overload import BUSY_SECONDS, CALM_SECONDS, Overload, Second

pytestmark = pytest.mark.unit

CALM = Second(cpu=0.3)
FULL = Second(cpu=0.95)
LATE = Second(cpu=0.3, late=0.6, worst=0.05)
BETWEEN = Second(cpu=0.85, late=0.3)


def verdicts(*seconds: Second) -> list[bool]:
    rule = Overload()
    found = []
    for second in seconds:
        before = rule.overloaded
        changed = rule.see(second)
        assert changed == (rule.overloaded != before)
        found.append(rule.overloaded)
    return found


@pytest.mark.parametrize("bad", [FULL, LATE, Second(cpu=0.9), Second(late=0.5)])
def test_three_bad_seconds_in_a_row(bad: Second) -> None:
    assert verdicts(bad, bad, CALM, bad, bad, bad) == [False] * 5 + [True]


def test_a_full_core_and_a_late_clock_count_together() -> None:
    assert verdicts(FULL, LATE, FULL)[-1]


def test_one_long_pause_is_no_overload() -> None:
    """A frozen machine: one wake-up of the second is ten seconds late."""
    assert not any(verdicts(*[Second(cpu=0.3, late=0.1, worst=10.0)] * 20))


def test_it_recovers_after_five_good_seconds_in_a_row() -> None:
    ill = [FULL] * 3
    assert verdicts(*ill, *[CALM] * 4, BETWEEN, *[CALM] * 5)[3:] == [True] * 9 + [False]


def test_between_the_limits_nothing_changes() -> None:
    assert not any(verdicts(*[BETWEEN] * 50))
    assert all(verdicts(*[LATE] * 3, *[BETWEEN] * 50)[2:])


@given(st.lists(st.sampled_from([CALM, FULL, LATE, BETWEEN]), max_size=200))
def test_no_verdict_lasts_shorter_than_it_takes_to_change_it(seconds: list[Second]) -> None:
    found = [False, *verdicts(*seconds)]
    changes = [index for index in range(1, len(found)) if found[index] != found[index - 1]]
    for before, after in pairwise(changes):
        assert after - before >= (CALM_SECONDS if found[before] else BUSY_SECONDS)
