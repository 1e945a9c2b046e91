"""When a worker is overloaded, and when it is not any more."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audiosocket.overload import WINDOW_SECONDS, Overload, Second

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


@pytest.mark.parametrize("bad", [FULL, LATE, Second(cpu=0.9), Second(late=0.4)])
def test_five_bad_seconds(bad: Second) -> None:
    assert verdicts(*[bad] * 5) == [False] * 4 + [True]


def test_a_good_second_in_between_is_no_excuse() -> None:
    bad = Second(cpu=0.3, late=0.8, worst=0.1)
    assert verdicts(bad, bad, CALM, bad, bad)[-1]
    assert not any(verdicts(*[CALM] * 5, bad, *[CALM] * 5, bad, *[CALM] * 5))


def test_one_long_pause_is_no_overload() -> None:
    """A frozen machine: one wake-up of the second is ten seconds late."""
    assert not any(verdicts(*[Second(cpu=0.3, late=0.1, worst=10.0)] * 20))


def test_it_recovers_after_five_good_seconds() -> None:
    ill = [FULL] * 5
    assert verdicts(*ill, *[CALM] * 5)[4:] == [True] * 5 + [False]
    assert verdicts(*ill, *[CALM] * 4, LATE, *[CALM] * 5)[4:] == [True] * 10 + [False]


def test_between_the_limits_nothing_changes() -> None:
    assert not any(verdicts(*[BETWEEN] * 50))
    assert all(verdicts(*[LATE] * 5, *[BETWEEN] * 50)[4:])


@given(st.lists(st.sampled_from([CALM, FULL, LATE, BETWEEN]), max_size=200))
def test_a_verdict_rests_on_seconds_of_its_own(seconds: list[Second]) -> None:
    found = [False, *verdicts(*seconds)]
    changes = [0] + [index for index in range(1, len(found)) if found[index] != found[index - 1]]
    for before, after in pairwise(changes):
        assert after - before >= WINDOW_SECONDS
