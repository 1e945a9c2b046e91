"""The two channels of a recording: nothing moves against the other side, whatever the way from the caller does."""

from __future__ import annotations

import io
import wave

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audiosocket import wire
from audiosocket.callspec import MediaFormat
from audiosocket.g711 import alaw_to_pcm, ulaw_to_pcm
from audiosocket.recording import wav
from audiosocket.recording.recorder import BLOCK_TICKS, Recorder
from audiosocket.recording.timeline import Block, Stretch, Timeline

pytestmark = pytest.mark.unit

FRAME = 160
"""Samples of 20 ms at 8 kHz."""
START = 1000.0
"""When tick 0 is, in these tests."""


def audio_frame(samples: np.ndarray) -> bytes:
    return wire.encode(wire.KIND_AUDIO, samples.astype("<i2").tobytes())


def both(stretches: list[Stretch], samples: int = 0) -> np.ndarray:
    """The file that the stretches make: left and right, holes as silence."""
    end = max([samples, *(at + len(audio) // 4 for at, audio in stretches)])
    file = np.zeros((end, 2), np.int16)
    last = 0
    for at, audio in stretches:
        assert at >= last, "stretches overlap, or go back"
        part = np.frombuffer(audio, "<i2").reshape(-1, 2)
        file[at : at + len(part)] = part
        last = at + len(part)
    return file


def recorded(arrivals: list[tuple[float, np.ndarray]], ticks: int) -> np.ndarray:
    """A call of `ticks` in slin, with silence from the application; arrivals in seconds from tick 0, in order."""
    timeline = Timeline(MediaFormat.SLIN)
    found: list[Stretch] = []
    waiting = list(arrivals)
    for first in range(0, ticks, BLOCK_TICKS):
        count = min(BLOCK_TICKS, ticks - first)
        heard: list[tuple[float, np.ndarray]] = []
        while waiting and waiting[0][0] < (first + count) * 0.02:
            heard.append(waiting.pop(0))
        found += timeline.add(
            Block(
                first,
                [wire.SILENCE_FRAME] * count,
                [samples.astype("<i2").tobytes() for _, samples in heard],
                [START + at for at, _ in heard],
                START,
            )
        )
    return both(found + timeline.finish())[:, 0]


def numbered(count: int, size: int = FRAME) -> list[np.ndarray]:
    """Frames whose every sample tells its place in the caller's audio: no sample is 0."""
    return list((np.arange(count * size) % 30000 + 1).reshape(count, size).astype(np.int16))


@given(st.lists(st.floats(0, 0.08), min_size=60, max_size=160), st.sampled_from([80, 160, 320]))
def test_jitter_of_the_way_leaves_no_trace(jitter: list[float], size: int) -> None:
    per_200_ms = 1600 // size
    frames = numbered(len(jitter) // per_200_ms * per_200_ms, size)
    at, arrivals = 0.0, []
    for number, frame in enumerate(frames):
        # The way is disturbed in the first half of every 200 ms; what is late holds up what comes behind it.
        late = jitter[number] if number % per_200_ms < per_200_ms // 2 else 0.0
        at = max(at, 0.013 + number * size / 8000 + late)
        arrivals.append((at, frame))
    left = recorded(arrivals, round(at / 0.02) + 30)
    (places,) = np.nonzero(left)
    assert places[0] == round(0.013 * 8000)
    assert np.array_equal(left[places[0] : places[-1] + 1], np.concatenate(frames))


@given(
    st.integers(1, 24),
    st.sets(st.integers(10, 90), max_size=20),
    st.lists(st.floats(0, 0.004), min_size=100, max_size=100),
)
def test_a_lost_frame_is_silence_in_its_own_place(phase_ms: int, lost: set[int], jitter: list[float]) -> None:
    frames = numbered(100)
    arrivals = [
        (phase_ms / 1000 + number * 0.02 + jitter[number], frame)
        for number, frame in enumerate(frames)
        if number not in lost
    ]
    left = recorded(arrivals, 150)
    for number, frame in enumerate(frames):
        (found,) = np.nonzero(left == frame[80])
        if number in lost:
            assert not len(found)
        else:
            expected = (phase_ms / 1000 + number * 0.02) * 8000 + 80
            assert abs(found[0] - expected) <= 0.0145 * 8000, number


@pytest.mark.parametrize("skew", [300e-6, -300e-6])
def test_an_hour_with_a_clock_of_its_own_stays_within_20_ms(skew: float) -> None:
    jitter = np.random.default_rng(1).exponential(0.002, 180_100)
    timeline = Timeline(MediaFormat.SLIN)
    # In order, as TCP has it.
    at = np.maximum.accumulate(0.01 + np.arange(180_100) * 0.02 * (1 + skew) + jitter)
    worst, last = 0.0, 0
    for first in range(0, 180_000, 6_000):  # two minutes, of which the last second is looked at
        for begin in range(first, first + 6_000, BLOCK_TICKS):
            upto = int(np.searchsorted(at, (begin + BLOCK_TICKS) * 0.02))
            heard = [np.full(FRAME, 1 + number % 30_000, "<i2").tobytes() for number in range(last, upto)]
            block = Block(begin, [wire.SILENCE_FRAME] * BLOCK_TICKS, heard, list(START + at[last:upto]), START)
            last = upto
            stretches = timeline.add(block)
        ((position, audio),) = stretches
        left = np.frombuffer(audio, "<i2")[::2]
        steps = np.nonzero(np.diff(left) == 1)[0]
        assert len(steps) >= 10
        for step in steps:
            number = int(left[step + 1]) - 1 + (position // FRAME // 30_000) * 30_000
            number += 30_000 * round((position / FRAME - number) / 30_000)
            due = (0.01 + number * 0.02 * (1 + skew)) * 8000
            worst = max(worst, abs(position + step + 1 - due) / 8000)
    assert worst <= 0.020


def test_a_backlog_after_a_stall_ends_where_it_arrived() -> None:
    frames = numbered(100)
    # Frames 30 to 54 come at once at the end of a stall; of those the session passes on the latest ten.
    arrivals = [(0.01 + n * 0.02, frames[n]) for n in range(30)]
    arrivals += [(0.01 + 54 * 0.02, frames[n]) for n in range(45, 55)]
    arrivals += [(0.01 + n * 0.02, frames[n]) for n in range(55, 100)]
    left = recorded(arrivals, 120)
    for number in (10, 29, 45, 54, 55, 99):
        (found,) = np.nonzero(left == frames[number][0])
        assert abs(found[0] - (80 + number * FRAME)) <= 0.0101 * 8000, number
    assert not left[80 + 31 * FRAME : 80 + 44 * FRAME].any()


def test_a_flood_is_cut_and_not_carried_along() -> None:
    flood = [(0.5, frame) for frame in numbered(400)]
    after = [(1.5, np.full(FRAME, 31_000))]
    left = recorded([*flood, *after], 200)
    (found,) = np.nonzero(left == 31_000)
    assert abs(found[0] - 1.5 * 8000) <= 0.0101 * 8000


@pytest.mark.parametrize("media_format", list(MediaFormat))
def test_both_sides_are_what_was_sent_and_heard(media_format: MediaFormat) -> None:
    rate = media_format.sample_rate
    size = rate // 50
    rng = np.random.default_rng(1)
    width = 1 if media_format in ("ulaw", "alaw") else 2
    heard = [rng.bytes(size * width) for _ in range(70)]
    sent = [rng.integers(-30_000, 30_000, size) for _ in range(70)]
    blocks: list[Block] = []
    clock = [START]
    recorder = Recorder(rate, blocks.append, lambda: clock[0])
    for number in range(70):
        recorder.tick(0, audio_frame(sent[number]))
        recorder.heard(heard[number])
        clock[0] += 0.02
    recorder.flush()
    timeline = Timeline(media_format)
    file = both([stretch for block in blocks for stretch in timeline.add(block)] + timeline.finish())
    decode = {"ulaw": ulaw_to_pcm, "alaw": alaw_to_pcm}.get(media_format, lambda data: data)
    assert len(blocks) == 3
    assert np.array_equal(file[:, 0], np.frombuffer(decode(b"".join(heard)), "<i2"))
    assert np.array_equal(file[:, 1], np.concatenate(sent))


def test_what_is_not_written_yet_is_less_than_a_second_at_any_time() -> None:
    """It is what a worker that is killed loses."""
    timeline = Timeline(MediaFormat.SLIN)
    written = 0
    clock = [START]

    def write(block: Block) -> None:
        nonlocal written
        for at, audio in timeline.add(block):
            written = at + len(audio) // 4

    recorder = Recorder(8000, write, lambda: clock[0])
    missing = []
    for number in range(1, 501):
        recorder.tick(0, audio_frame(np.full(FRAME, number)))
        recorder.heard(bytes(320))
        clock[0] += 0.02
        missing.append(number * FRAME - written)
    # Up to the next tick it is 20 ms more, at 8 samples a millisecond.
    assert (min(missing[100:]) / 8, (max(missing) + FRAME) / 8) == (440, 940)


def test_what_waits_in_asterisk_is_laid_where_it_is_heard() -> None:
    """A caller who hears a frame 20 ms after it was sent, and says something at once."""
    blocks: list[Block] = []
    clock = [START]
    recorder = Recorder(8000, blocks.append, lambda: clock[0], queue_ticks=1)
    for number in range(60):
        clock[0] = START + number * 0.02
        recorder.tick(0, audio_frame(np.full(FRAME, number)))
        recorder.heard(np.full(FRAME, number - 1, "<i2").tobytes())
    recorder.flush()
    timeline = Timeline(MediaFormat.SLIN)
    file = both([stretch for block in blocks for stretch in timeline.add(block)] + timeline.finish())
    assert np.array_equal(file[: 59 * FRAME, 0], file[: 59 * FRAME, 1])


def test_half_a_sample_is_cut_and_shifts_nothing() -> None:
    frames = numbered(20)
    timeline = Timeline(MediaFormat.SLIN)
    heard = [frame.astype("<i2").tobytes() + b"\x7f" for frame in frames]
    at = [START + number * 0.02 for number in range(20)]
    stretches = timeline.add(Block(0, [wire.SILENCE_FRAME] * 20, heard, at, START)) + timeline.finish()
    assert np.array_equal(both(stretches)[:, 0], np.concatenate(frames))


@given(st.lists(st.integers(0, 300), min_size=5, max_size=60))
def test_a_frame_lies_at_its_tick_whatever_was_missed(missed: list[int]) -> None:
    missed[0] = 0
    blocks: list[Block] = []
    clock = [START]
    recorder = Recorder(8000, blocks.append, lambda: clock[0])
    places: dict[int, int] = {}
    tick = -1
    for number, skipped in enumerate(missed):
        tick += 1 + skipped
        clock[0] = START + tick * 0.02
        caught_up = min(skipped, number % 3)
        values = [1 + 3 * number + index for index in range(1 + caught_up)]
        for index, value in enumerate(values):
            places[value] = tick - caught_up + index
        recorder.tick(skipped, b"".join(audio_frame(np.full(FRAME, value)) for value in values))
    recorder.flush()
    assert recorder.ticks == tick + 1
    timeline = Timeline(MediaFormat.SLIN)
    right = both([s for block in blocks for s in timeline.add(block)] + timeline.finish(), (tick + 1) * FRAME)[:, 1]
    assert len(right) == (tick + 1) * FRAME
    expected = np.zeros(tick + 1, np.int16)
    for value, at in places.items():
        expected[at] = value
    assert np.array_equal(right, np.repeat(expected, FRAME))


@given(st.sets(st.integers(0, 11)))
def test_lost_blocks_are_silence_and_move_nothing(lost: set[int]) -> None:
    frames = numbered(12 * BLOCK_TICKS)
    timeline = Timeline(MediaFormat.SLIN)
    stretches: list[Stretch] = []
    for number in range(12):
        first = number * BLOCK_TICKS
        own = frames[first : first + BLOCK_TICKS]
        at = [START + (first + index) * 0.02 for index in range(BLOCK_TICKS)]
        block = Block(first, [audio_frame(f) for f in own], [f.astype("<i2").tobytes() for f in own], at, START)
        if number not in lost:
            stretches += timeline.add(block)
    file = both(stretches + timeline.finish(), 12 * BLOCK_TICKS * FRAME)
    for number in range(12):
        part = slice(number * BLOCK_TICKS * FRAME, (number + 1) * BLOCK_TICKS * FRAME)
        expected = np.zeros(BLOCK_TICKS * FRAME) if number in lost else np.concatenate(frames)[part]
        assert np.array_equal(file[part, 1], expected), number
        assert np.array_equal(file[part, 0], expected), number


def test_what_asterisk_did_not_take_is_silence() -> None:
    blocks: list[Block] = []
    recorder = Recorder(8000, blocks.append, lambda: START)
    recorder.tick(0, audio_frame(np.full(FRAME, 5)))
    recorder.tick(0, audio_frame(np.full(FRAME, 6)))
    recorder.unsent()
    recorder.flush()
    right = both(Timeline(MediaFormat.SLIN).add(blocks[0]) or [(0, bytes(4))])
    assert not right.any()
    timeline = Timeline(MediaFormat.SLIN)
    file = both(timeline.add(blocks[0]) + timeline.finish())
    assert [set(part) for part in file[:, 1].reshape(2, -1)] == [{5}, {0}]


def test_a_call_without_a_tick_leaves_nothing() -> None:
    blocks: list[Block] = []
    recorder = Recorder(8000, blocks.append, lambda: START)
    recorder.heard(b"\xff" * 160)
    recorder.flush()
    assert not blocks
    assert not Timeline(MediaFormat.ULAW).finish()


@given(st.sampled_from([8000, 16000, 24000]), st.integers(0, 1000))
def test_the_header_is_one_that_others_read(rate: int, samples: int) -> None:
    data = bytes(range(4)) * samples
    with wave.open(io.BytesIO(wav.header(rate, len(data)) + data)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (2, 2, rate)
        assert file.readframes(samples + 1) == data
    assert wav.rate_of(wav.header(rate, len(data))) == rate
    assert wav.rate_of(wav.header(rate, 0)[:-1]) is None
    assert wav.rate_of(b"X" + wav.header(rate, 0)[1:]) is None
    assert wav.rate_of(wav.header(rate, 0).replace(b"\x02\x00", b"\x01\x00", 1)) is None


def test_four_hours_at_24_khz_fit_into_a_file() -> None:
    assert 4 * 3600 * 24_000 * wav.SAMPLE_BYTES < wav.MAX_DATA_BYTES / 3
    assert wav.MAX_DATA_BYTES % wav.SAMPLE_BYTES == 0
    assert len(wav.header(24_000, wav.MAX_DATA_BYTES)) == wav.HEADER_BYTES


def test_a_worker_whose_every_tick_is_late_keeps_no_call_in_memory() -> None:
    blocks: list[Block] = []
    recorder = Recorder(8000, blocks.append, lambda: START)
    recorder.tick(0, wire.SILENCE_FRAME)
    for _ in range(1000):
        recorder.tick(1, wire.SILENCE_FRAME * 2)  # the one that was missed is caught up with: nothing is skipped
    recorder.flush()
    assert max(len(block.sent) for block in blocks) <= BLOCK_TICKS
    assert recorder.ticks == 2001
    end = 0
    for block in blocks:
        assert block.first_tick == end
        end += sum(map(len, block.sent)) // len(wire.SILENCE_FRAME)
    assert end == 2001
