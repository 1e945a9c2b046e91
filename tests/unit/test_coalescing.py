"""When a worker reads two of a caller's frames at a time, and when each again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audiosocket.coalescing import LITTLE_CPU, MUCH_CPU, Coalescing
from audiosocket.overload import WINDOW_SECONDS, Second

pytestmark = pytest.mark.unit

MUCH, LITTLE, BETWEEN = 0.7, 0.3, 0.5


def verdicts(*cpu: float) -> list[bool]:
    rule = Coalescing()
    found = []
    for share in cpu:
        before = rule.on
        changed = rule.see(Second(cpu=share))
        assert changed == (rule.on != before)
        found.append(rule.on)
    return found


def test_it_begins_with_the_first_second_that_takes_much() -> None:
    assert verdicts(LITTLE, BETWEEN, MUCH, BETWEEN) == [False, False, True, True]
    assert verdicts(MUCH_CPU) == [True]


def test_it_ends_when_some_seconds_together_took_little() -> None:
    assert verdicts(MUCH, *[LITTLE] * WINDOW_SECONDS) == [True] * WINDOW_SECONDS + [False]
    assert verdicts(MUCH, *[LITTLE_CPU + 0.01] * 20)[-1]


def test_one_quiet_second_does_not_end_it() -> None:
    assert verdicts(MUCH, *[BETWEEN] * WINDOW_SECONDS, 0.0, *[BETWEEN] * WINDOW_SECONDS)[-1]


@given(st.lists(st.floats(0, 1), max_size=60), st.floats(0.41, 0.59))
def test_what_it_saves_does_not_end_it(before: list[float], after: float) -> None:
    """A worker whose load falls by as much as coalescing saves stays as it is, whichever it is."""
    rule = Coalescing()
    for share in before:
        rule.see(Second(cpu=share))
    for _ in range(WINDOW_SECONDS):
        rule.see(Second(cpu=after))
    settled = rule.on
    for _ in range(3 * WINDOW_SECONDS):
        assert not rule.see(Second(cpu=after))
    assert rule.on == settled
