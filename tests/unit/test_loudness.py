"""How loud a frame is, in every media format, and what a line's noise floor makes of noise, tones and speech."""

from __future__ import annotations

import numpy as np
import pytest

from audiosocket.loudness import LEVELS, QUIET, SHARE, NoiseFloor
from tools.audio import g711
from tools.audio.pcm import Pcm
from tools.audio.tones import tone

pytestmark = pytest.mark.unit

FORMATS = ("ulaw", "alaw", "slin")


def encoded(media_format: str, pcm: Pcm) -> bytes:
    """One byte a sample, as the noise floor wants it."""
    if media_format == "slin":
        return pcm.astype("<i2").tobytes()[1::2]
    return g711.ulaw_encode(pcm) if media_format == "ulaw" else g711.alaw_encode(pcm)


def noise(level_dbfs: float, frames: int, seed: int = 1) -> Pcm:
    """Gaussian noise, shape (frames * 160,)."""
    rms = 32768 * 10 ** (level_dbfs / 20)
    samples = np.random.default_rng(seed).normal(0, rms, frames * 160)
    return np.clip(np.round(samples), -32768, 32767).astype(np.int16)


def is_loud(frame: bytes, quiet: bytes) -> bool:
    return len(frame.translate(None, quiet)) * SHARE >= len(frame)


@pytest.mark.parametrize("media_format", FORMATS)
@pytest.mark.parametrize("level", range(0, len(LEVELS), 3))
def test_a_frame_is_at_a_level_that_a_tenth_of_its_samples_reach(media_format: str, level: int) -> None:
    # Half a step of level and half a step of G.711 apart; PCM16 is only told by 256.
    above, below = LEVELS[level] * 1.07 + 16, LEVELS[level] / 1.07 - 16
    if media_format == "slin":
        above, below = np.ceil(LEVELS[level] / 256) * 256 + 1, np.ceil(LEVELS[level] / 256) * 256 - 1
    for sign in (1, -1):
        for count, size, expected in ((16, above, True), (15, above, False), (160, below, False)):
            pcm = np.zeros(160, np.int16)
            pcm[:count] = sign * min(size, 32000)
            assert is_loud(encoded(media_format, pcm), QUIET[media_format][level]) is expected, (sign, count, size)


@pytest.mark.parametrize("media_format", FORMATS)
@pytest.mark.parametrize(("level_dbfs", "loud"), [(-45, False), (-28, True)])
def test_line_noise_of_minus_45_dbfs_is_no_speech_on_a_line_never_heard_before(
    media_format: str, level_dbfs: float, loud: bool
) -> None:
    floor = NoiseFloor(media_format)
    frames = noise(level_dbfs, 500).reshape(-1, 160)
    found = [is_loud(encoded(media_format, frame), floor.quiet_on) for frame in frames]
    assert np.mean(found) == pytest.approx(float(loud), abs=0.01)


@pytest.mark.parametrize("media_format", FORMATS)
@pytest.mark.parametrize("level_dbfs", [-60, -45, -35, -25])
def test_speech_is_told_from_the_noise_of_its_line(media_format: str, level_dbfs: float) -> None:
    floor = NoiseFloor(media_format)
    for at, frame in enumerate(noise(level_dbfs, 400).reshape(-1, 160)):
        floor.look(at, encoded(media_format, frame))
    later = [encoded(media_format, frame) for frame in noise(level_dbfs, 500, 2).reshape(-1, 160)]
    assert not any(is_loud(frame, floor.quiet_on) or is_loud(frame, floor.quiet_off) for frame in later)
    speech = noise(max(-33, level_dbfs + 16), 1, 3)
    assert is_loud(encoded(media_format, speech), floor.quiet_on)


def test_the_floor_falls_at_once_and_rises_after_3_to_6_seconds() -> None:
    floor = NoiseFloor("ulaw")
    silence, loud = encoded("ulaw", np.zeros(160, np.int16)), encoded("ulaw", tone(700, 0.02))
    told = []
    for at in range(0, 1000):
        frame = loud if 250 <= at < 750 else silence
        if floor.look(at, frame):
            told.append(at)
        if at in (249, 399, 751):
            assert is_loud(loud, floor.quiet_on), at
        if at in (550, 749):
            assert not is_loud(loud, floor.quiet_off), at
    assert len(told) == 1
    assert 250 + 150 <= told[0] <= 250 + 300


def test_a_floor_that_rises_without_reaching_speech_is_no_steady_sound() -> None:
    floor = NoiseFloor("ulaw")
    frames = [np.zeros(160, np.int16)] * 300 + list(noise(-52, 900).reshape(-1, 160))
    assert not any(floor.look(at, encoded("ulaw", frame)) for at, frame in enumerate(frames))


def test_the_first_sound_of_a_call_is_taken_for_speech_for_two_seconds_at_most() -> None:
    floor = NoiseFloor("ulaw")
    loud = encoded("ulaw", tone(700, 0.02))
    told = [at for at in range(1000) if floor.look(at, loud)]
    assert told == [100]


def test_one_dip_within_three_seconds_keeps_speech_speech() -> None:
    floor = NoiseFloor("ulaw")
    silence, loud = encoded("ulaw", np.zeros(160, np.int16)), encoded("ulaw", tone(700, 0.02))
    for at in range(3000):
        if at % 90 == 0:
            floor.dip(silence)
        assert not floor.look(at, loud)
        assert is_loud(loud, floor.quiet_off)
