"""Audio that is cut off ends without a click: measured by the largest step from one sample to the next."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audiosocket import wire
from audiosocket.callspec import MediaFormat
from audiosocket.dialects import open_dialect
from audiosocket.playout import UNDERRUN_GAP_TICKS, Playout
from audiosocket.session import Session
from tests.media import call_spec
from tools.audio.pcm import Pcm

pytestmark = pytest.mark.unit

PEAK = 8000
RATES = (8000, 16000, 24000)
BURST = 5
"""Frames after which a tone of 440 Hz that began at its peak is at its peak again."""


def tone(frames: int, rate: int = 8000, peak: float = PEAK) -> bytes:
    samples = np.arange(frames * rate // 50)
    return np.round(peak * np.cos(2 * np.pi * 440 * samples / rate)).astype("<i2").tobytes()


def own_step(rate: int) -> float:
    """The largest step within the tone itself."""
    return 2 * PEAK * float(np.sin(np.pi * 440 / rate))


def heard(playout: Playout, ticks: int, rate: int = 8000) -> bytes:
    """What a caller gets in so many ticks, as the session puts it together."""
    frames = []
    for _ in range(ticks):
        frame = playout.tick()
        if frame is None:
            frame = playout.take_cut_off() if playout.cut_off else bytes(rate // 25)
        assert len(frame) == rate // 25
        frames.append(frame)
    return b"".join(frames)


def samples(audio: bytes) -> Pcm:
    return np.frombuffer(audio, "<i2").astype(np.int32)


def largest_step(audio: bytes) -> int:
    return int(np.abs(np.diff(samples(audio))).max())


def cut_by_clear(playout: Playout, rate: int) -> bytes:
    playout.push(tone(2 * BURST, rate))
    before = heard(playout, BURST, rate)
    playout.clear()
    return before + heard(playout, 3, rate)


def cut_by_underrun(playout: Playout, rate: int) -> bytes:
    playout.push(tone(BURST, rate))
    before = heard(playout, BURST + 3, rate)
    playout.push(tone(BURST, rate))
    after = heard(playout, BURST + 1, rate)
    assert playout.underruns == 1
    return before + after


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("cut", [cut_by_clear, cut_by_underrun])
@pytest.mark.parametrize("fade_ms", [2, 5, 20])
def test_a_tone_that_is_cut_ends_without_a_step(
    cut: Callable[[Playout, int], bytes], rate: int, fade_ms: float
) -> None:
    assert largest_step(cut(Playout(10, rate), rate)) > 0.9 * PEAK
    # What a linear fade adds to the tone's own steps.
    slope = PEAK / (rate * fade_ms / 1000)
    assert largest_step(cut(Playout(10, rate, fade_ms), rate)) <= own_step(rate) + slope + 2


def test_a_clear_plays_the_beginning_of_what_it_drops_fading_and_no_more() -> None:
    playout = Playout(10, fade_ms=5)
    audio = tone(10)
    playout.push(audio)
    assert heard(playout, 5) == audio[: 5 * 320]
    playout.clear()
    after = samples(heard(playout, 2))
    falling = 1 - (np.arange(40) + 0.5) / 40
    assert np.abs(after[:40] - samples(audio)[800:840] * falling).max() <= 1
    assert not after[40:].any()
    assert playout.cleared_bytes == 5 * 320
    assert playout.frames_played == 5


def test_what_a_clear_drops_may_be_shorter_than_the_fade() -> None:
    for left in (0, 1, 2, 33, 79):
        playout = Playout(10, fade_ms=5)
        playout.push(tone(6)[: 5 * 320 + left])
        before = heard(playout, 5)
        playout.clear()
        assert largest_step(before + heard(playout, 2)) <= own_step(8000) + 202, left


@pytest.mark.parametrize("odd", [1, 7, 319, 321])
def test_a_clear_finds_what_it_drops_in_pieces_of_any_size(odd: int) -> None:
    whole, cut = Playout(10, fade_ms=5), Playout(10, fade_ms=5)
    audio = tone(10)
    whole.push(audio)
    for at in range(0, len(audio), odd):
        cut.push(audio[at : at + odd])
    for playout in (whole, cut):
        heard(playout, 5)
        playout.clear()
    assert any(whole.cut_off)
    assert cut.cut_off == whole.cut_off


def test_what_was_never_heard_has_no_ending() -> None:
    playout = Playout(10, fade_ms=5)
    playout.push(tone(5))
    playout.clear()
    assert not any(heard(playout, 2))
    # Nor has a second clear.
    playout.push(tone(5))
    before = heard(playout, 2)
    playout.clear()
    playout.push(tone(5))
    playout.clear()
    assert largest_step(before + heard(playout, 3)) <= own_step(8000) + 202


def test_an_utterance_right_behind_a_clear_begins_while_the_old_one_fades() -> None:
    playout = Playout(10, fade_ms=5)
    playout.push(tone(10))
    heard(playout, 5)
    playout.clear()
    playout.push(bytes(320) + tone(1))
    after = samples(heard(playout, 2))
    assert np.abs(after[:40]).max() > PEAK / 2
    assert not after[40:160].any()
    assert after[160:].tobytes() == samples(tone(1)).tobytes()
    # Two loud ones are limited, not wrapped.
    for utterance in (b"\xff\x7f", b"\x00\x80"):
        playout = Playout(10, fade_ms=5)
        playout.push(utterance * 1600)
        heard(playout, 5)
        playout.clear()
        playout.push(utterance * 160)
        assert heard(playout, 1) == utterance * 160


@pytest.mark.parametrize("pause", [UNDERRUN_GAP_TICKS, UNDERRUN_GAP_TICKS + 1])
def test_audio_fades_in_after_an_underrun_and_not_after_a_pause(pause: int) -> None:
    playout = Playout(10, fade_ms=5)
    playout.push(tone(BURST))
    assert heard(playout, BURST) == tone(BURST)  # the first utterance is not touched either
    heard(playout, pause)
    playout.push(tone(BURST))
    again = heard(playout, BURST)
    assert again[80:] == tone(BURST)[80:]
    assert (again == tone(BURST)) is (pause > UNDERRUN_GAP_TICKS)
    assert abs(samples(again)[0]) < 200 or pause > UNDERRUN_GAP_TICKS


def test_an_end_within_a_frame_fades_there() -> None:
    playout = Playout(10, fade_ms=5)
    end = 100 + 320 * BURST
    playout.push(tone(BURST + 1)[:end])
    audio = heard(playout, BURST + 3)
    # It waits one tick for more, then what is left is played.
    assert audio[: BURST * 320] == tone(BURST)
    assert largest_step(audio) <= own_step(8000) + 202
    assert any(audio[(BURST + 1) * 320 + 100 :][:80])
    assert not any(audio[(BURST + 1) * 320 + 180 :])


def test_what_is_too_quiet_to_click_is_left_alone() -> None:
    for clears in (True, False):
        playout = Playout(10, fade_ms=5)
        playout.push(tone(10 if clears else BURST, peak=190))
        assert heard(playout, BURST) == tone(BURST, peak=190)
        if clears:
            playout.clear()
        assert not any(heard(playout, 3))


_steps = st.lists(st.one_of(st.integers(1, 1500), st.sampled_from(["mark", "tick", "tick", "clear"])), max_size=60)


@given(_steps, st.sampled_from(RATES))
def test_a_fade_changes_neither_marks_nor_figures(steps: list[object], rate: int) -> None:
    faded, plain = Playout(1, rate, 20), Playout(1, rate)
    audio = np.random.default_rng(1).integers(-9000, 9000, 750).astype("<i2").tobytes()

    def step(playout: Playout, number: int, what: object) -> object:
        if isinstance(what, int):
            return playout.push(audio[:what])
        if what == "mark":
            return playout.mark(str(number))
        if what == "clear":
            return playout.clear()
        due = playout.due_marks()
        frame = playout.tick()
        if playout.cut_off and frame is None:
            playout.take_cut_off()
        return due, frame is None

    for number, what in enumerate(steps):
        assert step(faded, number, what) == step(plain, number, what)
        for figure in ("frames_played", "underruns", "overrun_bytes", "cleared_bytes", "depth_bytes", "peak_bytes"):
            assert getattr(faded, figure) == getattr(plain, figure), figure


@pytest.mark.parametrize("media_format", [MediaFormat.SLIN, MediaFormat.SLIN16, MediaFormat.SLIN24])
def test_a_caller_who_cuts_in_hears_the_fade_in_the_next_frame_and_then_silence(media_format: MediaFormat) -> None:
    spec, rate = call_spec(media_format=media_format, fade_ms=5), media_format.sample_rate
    session = Session(spec, open_dialect(spec), lambda message: None, lambda event, detail: None)
    session.open()
    session.playout.push(tone(2 * BURST, rate))
    linear = wire.LINEAR[rate]
    before = b"".join(session.tick(0)[3:] for _ in range(BURST))
    session.app_text(json.dumps({"event": "clear"}).encode())
    fading, after = session.tick(0), session.tick(0)
    assert fading.startswith(linear.header)
    assert len(fading) == len(linear.silence)
    assert any(fading[3 : 3 + rate // 100])
    assert not any(fading[3 + rate // 100 :])
    assert after == linear.silence
    assert largest_step(before + fading[3:]) <= own_step(rate) + PEAK / (rate * 0.005) + 2
    figures = session.figures()
    assert (figures.frames_played, figures.silence_played, figures.frames_dropped) == (BURST, 2, {"clear": BURST})
    assert figures.app_talk_ms == BURST * 20
