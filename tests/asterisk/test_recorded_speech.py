"""Talkspurts of people's voices: what the worker hears of Asterisk's prompts, against a detector that shares nothing
with it."""

from __future__ import annotations

import numpy as np
import pytest

from audiosocket.durations import TurnTimes
from audiosocket.turns import Turns
from tools.asterisk.install import AsteriskInstall
from tools.audio import g711
from tools.audio.speech import prompt
from tools.audio.talkspurts import talkspurts

pytestmark = pytest.mark.asterisk

FRAME = 160
REPLY_TICKS = 75
TELEPHONE_LEVEL = 0.5
"""The prompts are louder than people on the telephone."""


@pytest.mark.parametrize("media_format", ["ulaw", "alaw"])
@pytest.mark.parametrize("noise_dbfs", [-60, -50])
def test_the_end_of_speech_is_where_another_detector_finds_it(
    asterisk_install: AsteriskInstall, media_format: str, noise_dbfs: float
) -> None:
    names = sorted(path.stem for path in asterisk_install.sounds.glob("conf-*"))
    encode = g711.ulaw_encode if media_format == "ulaw" else g711.alaw_encode
    random = np.random.default_rng(7)
    errors = []
    for name in names:
        voice = np.array(prompt(asterisk_install.sounds, name)) * TELEPHONE_LEVEL
        line = np.concatenate((np.zeros(4000), voice, np.zeros(20_000)))
        line = line[: len(line) // FRAME * FRAME]
        line += random.normal(0, 32768 * 10 ** (noise_dbfs / 20), len(line))
        heard = np.round(line).astype(np.int16)
        expected = talkspurts(heard, threshold_dbfs=-45, frame_ms=20, pause_ms=200, shortest_ms=60)
        codes = encode(heard)
        end = round(expected[-1].end_seconds * 50)
        turns = Turns(media_format, TurnTimes())
        for at in range(1, len(codes) // FRAME + 1):
            turns.heard = codes[(at - 1) * FRAME : at * FRAME]
            turns.tick(at, b"\x00\x40" * FRAME if at >= end + REPLY_TICKS else None)
        assert turns.turns == turns.responses.count == 1, name
        errors.append(REPLY_TICKS * 20 - turns.responses.figures()["max"])
        talk = sum(spurt.seconds for spurt in expected)
        assert turns.caller_ticks / 50 == pytest.approx(talk, abs=0.1 + 0.15 * talk), name
    assert len(errors) > 30
    assert abs(np.median(errors)) <= 20
    assert np.mean(np.abs(errors) <= 40) > 0.8
    assert np.percentile(np.abs(errors), 95) <= 120
