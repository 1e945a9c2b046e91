"""When a lost leg is replaced, and when it is enough."""

from __future__ import annotations

import pytest

from ari_app.call import replacing
from ari_app.call.replacing import Replacements

pytestmark = pytest.mark.unit


def lost(legs: Replacements, now: float) -> float:
    """A loss of the leg that is there; when the next one is due."""
    legs.lost(now, legs.number)
    return legs.due(now)


def test_a_leg_that_carried_the_call_for_a_while_is_replaced_at_once_every_time() -> None:
    legs, now = Replacements(5), 100.0
    for number in range(1, replacing.MAX_LEGS + 1):
        legs.carries(now)
        now += replacing.STEADY_SECONDS
        assert lost(legs, now) == now
        assert legs.begin(now)
        assert legs.number == number
    assert not legs.wanted
    legs.carries(now)
    lost(legs, now + 60)
    assert not legs.begin(now + 60), "a call has its bound"


def test_legs_that_break_at_once_are_made_at_once_only_so_often_and_then_no_more() -> None:
    legs, now = Replacements(5), 100.0
    pauses = []
    while legs.wanted:
        legs.carries(now)
        due = lost(legs, now)
        pauses.append(due - now)
        now = due
        assert legs.begin(now)
    assert pauses[: replacing.AT_ONCE] == [0] * replacing.AT_ONCE
    assert pauses[replacing.AT_ONCE :] == pytest.approx([0.1, 0.2, 0.4, 0.8, 1, 1, 1, 1])
    assert len(pauses) == replacing.MAX_IN_A_ROW
    assert not legs.begin(now)


def test_a_leg_that_could_not_be_made_counts_in_the_row_and_a_good_one_ends_it() -> None:
    legs, now = Replacements(60), 100.0
    lost(legs, now)
    for _ in range(replacing.AT_ONCE):
        assert legs.due(now) == now
        assert legs.begin(now)
    assert legs.due(now) > now
    legs.carries(now)
    now += replacing.STEADY_SECONDS
    assert lost(legs, now) == now


def test_what_has_not_come_about_while_the_worker_waits_is_given_up() -> None:
    legs = Replacements(5)
    lost(legs, 100)
    assert legs.begin(104)
    assert not legs.begin(100 + 5 + replacing.GRACE_SECONDS)
    assert legs.wanted, "of another loss nothing is said by that"
    lost(legs, 200)
    assert legs.begin(200)


def test_zero_seconds_switch_it_off() -> None:
    legs = Replacements(0)
    assert not legs.holds
    assert not legs.wanted
    lost(legs, 100)
    assert not legs.begin(100)


def test_the_worker_knows_how_many_legs_there_have_been() -> None:
    legs = Replacements(5)
    legs.lost(100, 3)
    assert legs.begin(100)
    assert legs.number == 4
    legs.lost(101, 3)
    assert legs.begin(101)
    assert legs.number == 5, "a number is given once"
