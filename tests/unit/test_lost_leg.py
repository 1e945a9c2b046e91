"""Which losses of a leg a call outlives, which leg takes its place, and what is missing then."""

from __future__ import annotations

import pytest

from audiosocket.callspec import CallSpec, EndReason, MediaFigures, MediaFormat
from audiosocket.dialects import open_dialect
from audiosocket.lost_leg import LostLeg
from audiosocket.session import Session
from tests.media import call_spec

pytestmark = pytest.mark.unit


def held(seconds: float = 5) -> CallSpec:
    return call_spec(leg_hold_seconds=seconds)


def further(number: int, media_format: MediaFormat = MediaFormat.ULAW) -> CallSpec:
    return call_spec(leg_number=number, media_format=media_format)


def session() -> Session:
    spec = held()
    return Session(spec, open_dialect(spec), lambda message: None, lambda event, detail: None)


@pytest.mark.parametrize("reason", [*EndReason, "refused"])
def test_only_a_leg_that_is_lost_is_waited_for(reason: str) -> None:
    lost = reason in ("leg_closed", "leg_protocol_error", "leg_silent")
    assert LostLeg(held()).holds(reason, hung_up=False, reachable=True) is lost


def test_it_is_not_waited_for_what_cannot_come() -> None:
    assert not LostLeg(held()).holds("leg_closed", hung_up=True, reachable=True)
    assert not LostLeg(held()).holds("leg_closed", hung_up=False, reachable=False)
    assert not LostLeg(held(0)).holds("leg_closed", hung_up=False, reachable=True)


def test_a_leg_takes_the_place_of_earlier_ones_only() -> None:
    legs, carried = LostLeg(held()), session()
    assert legs.refuses(further(0)) == "stale", "nobody takes the first leg's place under its own number"
    assert legs.refuses(further(2)) == ""
    legs.replace(further(2), 0, carried)
    assert [legs.refuses(further(number)) for number in (1, 2, 3)] == ["stale", "stale", ""]


def test_a_leg_of_another_format_is_none_of_this_call() -> None:
    assert LostLeg(held()).refuses(further(1, MediaFormat.SLIN16)) == "other_format"


def test_what_is_played_to_nobody_is_no_audio_that_asterisk_was_sent() -> None:
    legs, carried = LostLeg(held()), session()
    carried.open()
    carried.playout.push(b"\x01\x02" * 160 * 10)

    def figures() -> MediaFigures:
        found = carried.figures()
        legs.add_figures(found, carried)
        return found

    for _ in range(3):
        carried.tick(0)
    legs.lose(carried.ticks, carried)
    assert legs.held
    for _ in range(4):
        carried.tick(0)
    now = figures()
    assert (now.frames_played, now.frames_dropped, now.leg_gap_ms) == (3, {"leg_lost": 4}, 0)
    assert legs.replace(further(1), carried.ticks, carried) == 80
    assert not legs.held
    for _ in range(10):
        carried.tick(0)
    now = figures()
    assert (now.frames_played, now.silence_played, now.frames_dropped) == (6, 7, {"leg_lost": 4})
    assert (now.legs_replaced, now.leg_gap_ms) == (1, 80)
    legs.lose(carried.ticks, carried)
    carried.tick(0)
    assert figures().silence_played == 7
    legs.replace(further(2), carried.ticks, carried)
    assert (figures().legs_replaced, figures().leg_gap_ms, figures().silence_played) == (2, 100, 7)


def test_a_leg_may_come_before_the_loss_of_the_other_is_seen() -> None:
    legs, carried = LostLeg(held()), session()
    assert legs.replace(further(1), carried.ticks, carried) == 0
    assert (legs.replaced, legs.gap_ticks, legs.number) == (1, 0, 1)
