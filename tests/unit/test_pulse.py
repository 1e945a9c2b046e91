"""When a holder counts as stopped, and when Asterisk is left alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ari_app.domain.pbx_breaker import FAILURES, PROBES, WINDOW_SECONDS, PbxBreaker
from ari_app.domain.pulse import STALE_SECONDS, Pulse

pytestmark = pytest.mark.unit

STEP = 0.1


def test_who_does_not_beat_is_stale_after_two_seconds_and_not_before() -> None:
    pulse = Pulse()
    looks = [pulse.look("beat 1", number * STEP, STEP) for number in range(40)]
    assert looks.index(True) * STEP == pytest.approx(STALE_SECONDS, abs=1.01 * STEP)
    pulse.forget()
    assert not pulse.look("beat 1", 100, STEP)


def test_who_beats_is_never_stale() -> None:
    pulse = Pulse()
    assert not any(pulse.look(number // 15, number * STEP, STEP) for number in range(1000))


def test_a_watcher_that_stood_still_itself_knows_nothing() -> None:
    pulse = Pulse()
    pulse.look("beat 1", 0, STEP)
    assert not pulse.look("beat 1", 3600, STEP), "the machine was suspended"
    assert not pulse.look("beat 1", 3601, STEP)


@given(st.lists(st.tuples(st.floats(0, 5), st.booleans()), max_size=60))
def test_silence_is_never_longer_than_the_time_since_the_last_beat(looks: list[tuple[float, bool]]) -> None:
    pulse, now, beat, last = Pulse(), 0.0, 0, 0.0
    for gap, beats in looks:
        now += gap
        if beats:
            beat += 1
        seen = pulse.look(beat, now, STEP)
        if beats or (beat == 0 and last == 0.0):
            last = last or now
        if beats:
            last = now
        assert not seen or now - last >= STALE_SECONDS - 1e-6


# The breaker over Asterisk


def test_failures_open_it_and_answered_probes_close_it() -> None:
    breaker = PbxBreaker()
    assert [breaker.record(True, 0.1 * number) for number in range(FAILURES)] == [False] * (FAILURES - 1) + [True]
    assert (breaker.open, breaker.trips) == (True, 1)
    assert not breaker.record(False, 1), "only probes count while it is open"
    assert breaker.open
    assert not breaker.probed(True)
    assert not breaker.probed(False)
    assert [breaker.probed(True) for _ in range(PROBES)] == [False] * (PROBES - 1) + [True]
    assert not breaker.open
    # What was before is forgotten.
    assert not breaker.record(True, 2)


def test_a_few_failures_among_many_answers_do_not_open_it() -> None:
    breaker = PbxBreaker()
    for number in range(1000):
        assert not breaker.record(number % 10 == 0, number / 1000)


def test_failures_far_apart_do_not_open_it() -> None:
    breaker = PbxBreaker()
    for number in range(100):
        assert not breaker.record(True, number * WINDOW_SECONDS / (FAILURES - 1))


def test_a_tripped_one_trips_again() -> None:
    breaker = PbxBreaker()
    for round_ in range(3):
        for number in range(FAILURES):
            breaker.record(True, 100 * round_ + number)
        for _ in range(PROBES):
            breaker.probed(True)
    assert (breaker.open, breaker.trips) == (False, 3)
