"""The playout queue: nothing lost, nothing out of order, marks after their audio, bounds, and delay worked off."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audiosocket.playout import BLAMED_TICKS, HICCUP_FRAMES, RECOVERY_TICKS, Playout
from audiosocket.wire import LINEAR

pytestmark = pytest.mark.unit

FRAME_BYTES = LINEAR[8000].frame_bytes


def noise(size: int, seed: int = 1) -> bytes:
    return np.random.default_rng(seed).integers(1, 255, size, dtype=np.uint8).tobytes()


def tone(frames: int, start: int = 0) -> list[bytes]:
    samples = np.arange(start * 160, (start + frames) * 160)
    wave = (8000 * np.sin(2 * np.pi * 440 * samples / 8000)).astype("<i2").tobytes()
    return [wave[at : at + FRAME_BYTES] for at in range(0, len(wave), FRAME_BYTES)]


def drain(playout: Playout, ticks: int = 10_000) -> bytes:
    played, quiet = [], 0
    for _ in range(ticks):
        playout.due_marks()
        frame = playout.tick()
        if frame is None:
            quiet += 1
            if quiet > 2:
                break
        else:
            quiet = 0
            played.append(frame)
    return b"".join(played)


@given(st.lists(st.integers(1, 2000), min_size=1, max_size=40))
def test_chunks_of_any_size_are_carried_over_without_a_gap(sizes: list[int]) -> None:
    audio = noise(sum(sizes))
    playout = Playout(60)
    at = 0
    for size in sizes:
        playout.push(audio[at : at + size])
        at += size
    played = drain(playout)
    whole = len(audio) & ~1  # an odd last byte is no sample
    assert played[:whole] == audio[:whole]
    assert not any(played[whole:])
    assert len(played) % FRAME_BYTES == 0


@given(
    st.lists(
        st.one_of(st.integers(1, 1500), st.just("mark"), st.just("tick")),
        max_size=60,
    )
)
@settings(max_examples=200)
def test_a_mark_is_due_exactly_when_the_audio_before_it_has_been_played(steps: list[object]) -> None:
    playout = Playout(60)
    pushed = 0
    waiting: list[tuple[int, str]] = []
    returned: list[str] = []
    asked: list[str] = []
    bytes_out = 0

    def tick() -> None:
        nonlocal bytes_out
        for name in playout.due_marks():
            position, expected = waiting.pop(0)
            assert name == expected
            assert playout._position >= position
            returned.append(name)
        frame = playout.tick()
        bytes_out += len(frame or b"")

    for number, step in enumerate(steps):
        if step == "tick":
            tick()
        elif step == "mark":
            name = f"m{number}"
            asked.append(name)
            if playout.mark(name):
                assert not waiting
                assert playout.depth_bytes == 0
                returned.append(name)
            else:
                waiting.append((pushed, name))
        else:
            assert isinstance(step, int)
            playout.push(noise(step))
            pushed += step
    for _ in range(pushed // FRAME_BYTES + 8):
        tick()
    assert returned == asked
    assert playout.pending_marks == 0
    assert playout.depth_bytes == 0


def test_a_mark_waits_until_its_last_frame_has_sounded() -> None:
    playout = Playout(10)
    playout.push(noise(2 * FRAME_BYTES))
    assert not playout.mark("end")
    assert playout.due_marks() == []
    assert playout.tick() is not None
    assert playout.due_marks() == []
    assert playout.tick() is not None
    assert playout.due_marks() == ["end"]


def test_a_mark_with_nothing_before_it_is_due_at_once() -> None:
    assert Playout(10).mark("pre")


def test_clear_drops_everything_and_returns_the_marks_in_order() -> None:
    playout = Playout(10)
    playout.push(noise(5 * FRAME_BYTES))
    playout.mark("a")
    playout.push(noise(FRAME_BYTES))
    playout.mark("b")
    playout.tick()
    assert playout.clear() == ["a", "b"]
    assert playout.tick() is None
    assert playout.cleared_bytes == 5 * FRAME_BYTES
    fresh = noise(FRAME_BYTES, seed=9)
    playout.push(fresh)
    assert playout.tick() == fresh


def test_thirty_seconds_at_once_are_played_in_full() -> None:
    audio = noise(30 * 16000)
    playout = Playout(300)
    playout.push(audio)
    assert drain(playout) == audio
    assert playout.overrun_bytes == 0
    assert playout.peak_bytes == len(audio)


@given(st.lists(st.integers(1, 9000), min_size=1, max_size=30))
def test_the_queue_is_bounded_and_samples_stay_aligned(sizes: list[int]) -> None:
    # Every sample is 0x0102: any shift by one byte would show as 0x0201.
    playout = Playout(1)
    for size in sizes:
        offset = (playout._pushed + playout.overrun_bytes) & 1
        playout.push((b"\x02\x01" * size)[offset : offset + size])
        assert playout.depth_bytes <= 16000
    played = np.frombuffer(drain(playout), "<i2")
    assert set(played.tolist()) <= {0x0102, 0}


def test_crumbs_do_not_become_a_million_objects() -> None:
    playout = Playout(300)
    audio = noise(20_000)
    for byte in audio:
        playout.push(bytes([byte]))
    assert len(playout._chunks) < 200
    assert drain(playout)[: len(audio)] == audio


def test_underruns_are_pauses_inside_audio_only() -> None:
    playout = Playout(10)
    for gap in (3, 50):
        playout.push(noise(FRAME_BYTES))
        playout.tick()
        for _ in range(gap):
            assert playout.tick() is None
    playout.push(noise(FRAME_BYTES))
    assert (playout.underruns, playout.stall_underruns) == (1, 0)


def spoken(playout: Playout, frames: int) -> None:
    """An application that speaks on for so many frames and keeps none ahead."""
    for _ in range(frames):
        playout.push(noise(FRAME_BYTES))
        assert playout.tick() is not None


def underrun(playout: Playout, ticks: int = 2) -> tuple[int, int]:
    """The queue runs dry and audio goes on: underruns so far, and those that are a stall's."""
    while playout.tick() is not None:
        pass
    for _ in range(ticks - 1):
        assert playout.tick() is None
    playout.push(noise(FRAME_BYTES))
    assert playout.tick() is not None
    return playout.underruns, playout.stall_underruns


def test_an_underrun_of_a_stall_does_not_count_against_the_application() -> None:
    playout = Playout(10)
    spoken(playout, 50)
    assert underrun(playout) == (1, 0)
    playout.note_stall(20)
    assert underrun(playout) == (2, 1)
    # As long as its delay is worked off at the cost of speech, and a moment more.
    spoken(playout, RECOVERY_TICKS + BLAMED_TICKS - 10)
    assert underrun(playout) == (3, 2)
    spoken(playout, 10)
    assert underrun(playout) == (4, 2)


def test_a_hiccup_explains_the_underruns_of_half_a_second_and_no_more() -> None:
    playout = Playout(10)
    spoken(playout, 50)
    playout.note_stall(HICCUP_FRAMES)
    assert underrun(playout) == (1, 1)
    spoken(playout, BLAMED_TICKS)
    assert underrun(playout) == (2, 1)


def test_an_underrun_that_began_before_the_stall_was_known_is_the_stalls() -> None:
    playout = Playout(10)
    spoken(playout, 50)
    for _ in range(5):  # the way to Asterisk halts: an echo has nothing to say
        assert playout.tick() is None
    playout.note_stall(5)
    assert underrun(playout) == (1, 1)


@pytest.mark.parametrize("rate", [8000, 16000, 24000])
@pytest.mark.parametrize("size", [1, 2, 20, 79])
def test_a_last_piece_that_is_shorter_than_its_fade_is_played(rate: int, size: int) -> None:
    playout = Playout(10, rate, fade_ms=5)
    playout.push(bytes(rate // 25))
    assert playout.tick() is not None
    for _ in range(3):  # an underrun: what comes fades in
        assert playout.tick() is None
    playout.push(bytes(size))
    assert playout.tick() is None
    assert playout.tick() == bytes(rate // 25)


def live_source(stalls: list[tuple[int, int]], ticks: int, frames: list[bytes]) -> tuple[Playout, list[int]]:
    """A source that delivers a frame a tick; in a stall neither side runs, and its frames then come at once."""
    playout = Playout(300)
    arrived = 0
    depths = []
    stall = dict(stalls)
    late = 0
    for now in range(ticks):
        if now in stall:
            late = stall[now]
            playout.note_stall(late)
        # The backlog of the stall arrives with the frame of this tick.
        for _ in range(1 + late):
            playout.push(frames[arrived % len(frames)])
            arrived += 1
        late = 0
        playout.tick()
        depths.append(playout.depth_bytes // FRAME_BYTES)
    return playout, depths


@pytest.mark.parametrize("kind", ["speech", "silence"])
def test_the_delay_of_three_stalls_is_worked_off_within_two_seconds(kind: str) -> None:
    frames = tone(500) if kind == "speech" else [bytes(FRAME_BYTES)]
    playout, depths = live_source([(200, 15), (215, 15), (230, 15)], 500, frames)
    assert max(depths) >= 14
    assert max(depths[330:]) <= depths[199] + 2  # under 60 ms left two seconds after the last
    assert playout.recovered_frames >= 40


@pytest.mark.parametrize("late", [1, 2])
def test_what_a_hiccup_leaves_standing_goes_with_the_next_silence(late: int) -> None:
    talking, silent = tone(100), [bytes(FRAME_BYTES)]
    frames = (talking * 3)[:230] + silent * 60
    playout, depths = live_source([(100, late)], len(frames), frames)
    assert set(depths[100:229]) == {late}  # speech is left as it is
    assert set(depths[-10:]) == {0}
    assert playout.recovered_frames == late


def test_the_last_frame_of_a_stall_goes_with_silence_too() -> None:
    frames = tone(400) + [bytes(FRAME_BYTES)] * 100
    _, depths = live_source([(100, 15)], len(frames), frames)
    assert set(depths[350:380]) == {1}
    assert set(depths[-10:]) == {0}


def test_a_source_that_is_never_silent_is_late_for_half_a_minute_at_most() -> None:
    frames = tone(2000)
    playout, depths = live_source([(100, 2)], len(frames), frames)
    assert set(depths[100:1400]) == {2}
    assert set(depths[1650:]) == {0}
    assert playout.recovered_frames == 2


def test_a_hiccup_costs_no_more_than_its_frame_of_silence() -> None:
    playout = Playout(300)
    for _ in range(60):
        playout.push(bytes(FRAME_BYTES))
        playout.tick()
    playout.note_stall(1)
    playout.push(bytes(FRAME_BYTES) * 8)  # from now on the application is 160 ms ahead
    for _ in range(300):
        playout.push(bytes(FRAME_BYTES))
        playout.tick()
    assert playout.recovered_frames == 1
    assert playout.depth_bytes == 7 * FRAME_BYTES


def test_a_stall_does_not_cost_an_application_that_keeps_its_own_lead() -> None:
    playout = Playout(300)
    audio = tone(400)
    for frame in audio[:100]:
        playout.push(frame)
    played = []
    for now in range(400):
        if now < 300:
            playout.push(audio[100 + now])
        if now == 50:
            playout.note_stall(15)
        played.append(playout.tick())
    assert b"".join(frame for frame in played if frame) == b"".join(audio)
    assert playout.recovered_frames == 0


def test_a_whole_utterance_after_a_stall_is_not_taken_for_delay() -> None:
    playout = Playout(300)
    for _ in range(60):
        playout.tick()
    playout.note_stall(15)
    audio = tone(300)
    playout.push(b"".join(audio))
    assert drain(playout) == b"".join(audio)


def test_working_off_speech_leaves_no_click() -> None:
    playout, _ = live_source([(100, 15)], 300, tone(500))
    again = Playout(300)
    arrived, played = 0, []
    for now in range(300):
        burst = 16 if now == 100 else 1
        if now == 100:
            again.note_stall(15)
        for _ in range(burst):
            again.push(tone(1, arrived)[0])
            arrived += 1
        played.append(again.tick() or b"")
    samples = np.frombuffer(b"".join(played), "<i2").astype(int)
    # A 440 Hz tone of this level never moves more than about 2,800 between samples; a cut in it would.
    assert again.recovered_frames >= 12
    assert int(np.abs(np.diff(samples)).max()) < 5600
    assert playout.recovered_frames >= 12
