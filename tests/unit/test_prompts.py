"""What the worker plays by itself: which files it takes, and what becomes of them."""

from __future__ import annotations

import struct
import wave
from pathlib import Path

import numpy as np
import pytest

from audiosocket.errors import ConfigError
from audiosocket.prompts import Prompts, decode_wav, load_prompts
from tools.audio import g711 as formula
from tools.audio.tones import dominant_frequency, tone, tone_share

pytestmark = pytest.mark.unit

SPOKEN = tone(440, 1.01)


def riff(tag: int, bits: int, body: bytes, rate: int = 8000, channels: int = 1, extra: bytes = b"") -> bytes:
    """A WAV file; `extra` are chunks before the audio."""
    about = struct.pack("<HHIIHH", tag, channels, rate, rate * channels * bits // 8, channels * bits // 8, bits)
    chunks = b"fmt " + struct.pack("<I", len(about)) + about + extra + b"data" + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks


def test_a_prompt_of_any_common_tool_is_played_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "sorry.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(SPOKEN.astype("<i2").tobytes())
    frames = load_prompts({"sorry": path}).frames("sorry", 8000)
    assert len(frames) == 51
    assert {len(frame) for frame in frames} == {320}
    assert b"".join(frames) == SPOKEN.astype("<i2").tobytes() + bytes(160)  # the last frame is filled up


@pytest.mark.parametrize(
    ("tag", "encode", "decode"),
    [(6, formula.alaw_encode, formula.alaw_decode), (7, formula.ulaw_encode, formula.ulaw_decode)],
)
def test_g711_is_taken_too(tag, encode, decode) -> None:
    coded = encode(SPOKEN)
    listing = b"LIST" + struct.pack("<I", 3) + b"odd\0"  # an odd chunk has a byte of padding
    assert decode_wav(riff(tag, 8, coded, extra=listing)) == decode(coded).astype("<i2").tobytes()


@pytest.mark.parametrize("rate", [16_000, 24_000])
def test_wideband_legs_hear_the_same_at_their_rate(rate: int) -> None:
    frames = Prompts({"sorry": SPOKEN.astype("<i2").tobytes()}).frames("sorry", rate)
    assert {len(frame) for frame in frames} == {rate // 25}
    assert len(frames) == 51
    heard = np.frombuffer(b"".join(frames), "<i2")[:rate]
    assert dominant_frequency(heard, rate) == pytest.approx(440, abs=1)
    assert tone_share(heard, 440, rate) > 0.999  # no image at 7560 Hz
    assert np.abs(heard).max() == pytest.approx(np.abs(SPOKEN).max(), rel=0.05)


@pytest.mark.parametrize("rate", [8000, 16_000, 24_000])
def test_without_a_prompt_the_special_information_tone_is_heard(rate: int) -> None:
    frames = Prompts().frames("", rate)
    assert len(frames) == 50
    heard = np.frombuffer(b"".join(frames), "<i2")
    third = round(0.33 * rate)
    for place, hz in enumerate((950, 1400, 1800)):
        part = heard[place * third : (place + 1) * third]
        assert dominant_frequency(part, rate) == pytest.approx(hz, abs=3)
        assert tone_share(part, hz, rate) > 0.99
    assert not heard[3 * third :].any()


def test_a_prompt_that_is_not_here_is_the_tone() -> None:
    prompts = Prompts({"sorry": bytes(320)})
    assert prompts.frames("closed", 8000) == prompts.frames("", 8000)
    assert "sorry" in prompts
    assert "closed" not in prompts


def test_nothing_is_resampled_during_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = Prompts({"sorry": SPOKEN.astype("<i2").tobytes()})
    monkeypatch.setattr(np, "convolve", None)
    assert all(prompts.frames("sorry", rate) is prompts.frames("sorry", rate) for rate in (8000, 16_000, 24_000))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "no WAV file: convert it: sox"),
        (b"ID3\x03 an mp3 file", "no WAV file"),
        (riff(1, 16, bytes(320), rate=44_100), "1 channel(s) at 44100 Hz: expected PCM of 16 bits, A-law or"),
        (riff(1, 16, bytes(320), channels=2), "2 channel(s)"),
        (riff(1, 8, bytes(320)), "format 1 with 8 bits"),
        (riff(3, 32, bytes(320)), "format 3 with 32 bits"),
        (riff(1, 16, b""), "no audio in it"),
        (riff(1, 16, bytes(320))[:36], "no audio in it"),
        (b"RIFF\0\0\0\0WAVEdata\x02\0\0\0\0\0", "no audio in it"),
    ],
)
def test_what_cannot_be_played_is_named_with_place_and_remedy(tmp_path: Path, data: bytes, expected: str) -> None:
    path = tmp_path / "sorry.wav"
    path.write_bytes(data)
    with pytest.raises(ConfigError) as caught:
        load_prompts({"sorry": path})
    assert str(caught.value).startswith(f"prompts.sorry: {path}: ")
    assert expected in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"prompts.sorry: .*/none.wav: No such file or directory: put a WAV file there"
    ):
        load_prompts({"sorry": tmp_path / "none.wav"})


def test_a_device_or_a_huge_file_is_refused() -> None:
    with pytest.raises(ConfigError, match="prompts.sorry: /dev/zero: larger than 16000000 bytes"):
        load_prompts({"sorry": Path("/dev/zero")})


def test_a_file_cut_short_is_played_as_far_as_it_goes() -> None:
    assert decode_wav(riff(1, 16, bytes(range(1, 101)))[:-11]) == bytes(range(1, 89))
