"""What the worker plays by itself: the operator's prompts, and the tone of a call that failed.

Prompts are read when the worker starts and kept in memory, ready for every rate: no disk is in a call's way, and no
resampling in that of the worker's other calls.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from audiosocket.errors import ConfigError
from audiosocket.g711 import alaw_to_pcm, pcm_to_pcm, ulaw_to_pcm
from audiosocket.wire import LINEAR

MAX_PROMPT_BYTES = 16_000_000
"""Of a file: some 16 minutes."""
RATE_HZ = 8000
TONES_HZ = (950, 1400, 1800)
"""The special information tone (ITU-T E.180/Q.35)."""
TONE_SECONDS = 0.33
TONE_AMPLITUDE = 8192
"""-9 dBm0 as G.711 counts; E.180 recommends -10, give or take 5."""

_PCM, _ALAW, _ULAW = 1, 6, 7  # wFormatTag of a WAV file
_DECODERS = {(_PCM, 16): pcm_to_pcm, (_ALAW, 8): alaw_to_pcm, (_ULAW, 8): ulaw_to_pcm}
_REMEDY = "convert it: sox IN.wav -r 8000 -c 1 -b 16 OUT.wav"
_HALF_TAPS = 24
"""Of the low-pass filter behind a change of the rate, per sample of the lower one."""


class Prompts:
    """The prompts of a worker, as frames of 20 ms for any rate that a media leg has."""

    def __init__(self, sounds: Mapping[str, bytes] | None = None) -> None:
        """`sounds`: PCM16 at 8 kHz by name. Frames are made here and now: resampling a minute takes 0.1 s, which later
        would be every call's."""
        self._frames = {("", rate): _cut(special_information_tone(rate), rate) for rate in LINEAR}
        for name, pcm in (sounds or {}).items():
            self._frames |= {(name, rate): _cut(_upsampled(pcm, rate // RATE_HZ), rate) for rate in LINEAR}

    def __contains__(self, name: str) -> bool:
        return (name, RATE_HZ) in self._frames

    def frames(self, name: str, rate_hz: int) -> tuple[bytes, ...]:
        """A prompt as PCM16 at 8000, 16000 or 24000 Hz, the last frame filled up with silence.

        The special information tone takes the place of an empty name and of one that is not here.
        """
        return self._frames[name if name in self else "", rate_hz]


def special_information_tone(rate_hz: int) -> bytes:
    """The three tones, as PCM16."""
    time = np.arange(round(TONE_SECONDS * rate_hz)) / rate_hz
    tones = [TONE_AMPLITUDE * np.sin(2 * np.pi * hz * time) for hz in TONES_HZ]
    return np.round(np.concatenate(tones)).astype("<i2").tobytes()


def _cut(pcm: bytes, rate_hz: int) -> tuple[bytes, ...]:
    size = LINEAR[rate_hz].frame_bytes
    return tuple(pcm[at : at + size].ljust(size, b"\0") for at in range(0, len(pcm), size))


def load_prompts(paths: Mapping[str, Path]) -> Prompts:
    """The prompts in WAV files (mono, 8 kHz; PCM16, A-law or μ-law). Raises `ConfigError` with path and remedy."""
    sounds = {}
    for name, path in paths.items():
        try:
            with path.open("rb") as file:
                data = file.read(MAX_PROMPT_BYTES + 1)
        except OSError as error:
            raise ConfigError(
                f"prompts.{name}: {path}: {error.strerror}: put a WAV file there, or correct the path"
            ) from None
        if len(data) > MAX_PROMPT_BYTES:
            raise ConfigError(f"prompts.{name}: {path}: larger than {MAX_PROMPT_BYTES} bytes: is this the right file?")
        try:
            sounds[name] = decode_wav(data)
        except ValueError as error:
            raise ConfigError(f"prompts.{name}: {path}: {error}") from None
    return Prompts(sounds)


def decode_wav(data: bytes) -> bytes:
    """The audio of a WAV file as PCM16 at 8 kHz. Raises `ValueError`, which says what is wrong and what to do."""
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        raise ValueError(f"no WAV file: {_REMEDY}")
    decode = None
    at = 12
    while at + 8 <= len(data):
        kind, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        body = data[at + 8 : at + 8 + size]
        if kind == b"fmt ":
            fields = ((0, 2), (2, 2), (4, 4), (14, 2))
            tag, channels, rate, bits = (_number(body, place, length) for place, length in fields)
            decode = _DECODERS.get((tag, bits))
            if decode is None or channels != 1 or rate != RATE_HZ:
                raise ValueError(
                    f"format {tag} with {bits} bits, {channels} channel(s) at {rate} Hz: expected PCM of 16 bits, A-law"
                    f" or μ-law, mono at {RATE_HZ} Hz: {_REMEDY}"
                )
        elif kind == b"data" and decode is not None:
            if not body:
                break
            return decode(body)
        at += 8 + size + (size & 1)
    raise ValueError(f"no audio in it: {_REMEDY}")


def _number(body: bytes, place: int, length: int) -> int:
    return int.from_bytes(body[place : place + length], "little")


def _upsampled(pcm: bytes, factor: int) -> bytes:
    """PCM16 at `factor` times its rate: zeros between the samples, then a windowed-sinc low-pass."""
    if factor == 1:
        return pcm
    samples = np.frombuffer(pcm_to_pcm(pcm), "<i2").astype(np.float64)
    spread: NDArray[np.float64] = np.zeros(len(samples) * factor)
    spread[::factor] = samples
    taps = np.arange(-_HALF_TAPS * factor, _HALF_TAPS * factor + 1) / factor
    kernel = np.sinc(taps) * np.hanning(len(taps))
    return np.clip(np.round(np.convolve(spread, kernel, "same")), -32768, 32767).astype("<i2").tobytes()
