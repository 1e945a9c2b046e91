"""PCM16 mono: the common type, silence, level, and WAV files."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Pcm = NDArray[np.int16]
"""Samples, PCM signed 16-bit, one channel, shape (n,)."""

FULL_SCALE = 32768.0


def silence(seconds: float, rate: int = 8000) -> Pcm:
    """Digital silence, shape (seconds * rate,)."""
    return np.zeros(round(seconds * rate), dtype=np.int16)


def level_dbfs(samples: Pcm) -> float:
    """RMS level in dB relative to a full-scale square wave; -inf for silence and for no samples."""
    if not len(samples):
        return float("-inf")
    rms = float(np.sqrt(np.mean(np.square(samples.astype(np.float64)))))
    return float(20 * np.log10(rms / FULL_SCALE)) if rms else float("-inf")


def write_stereo_wav(path: Path | str, left: Pcm, right: Pcm, rate: int = 8000) -> None:
    """Write two channels of PCM16 as one WAV file; the shorter one is filled up with silence.

    Raises OSError when the file cannot be written.
    """
    frames = np.zeros((max(len(left), len(right)), 2), dtype="<i2")
    frames[: len(left), 0] = left
    frames[: len(right), 1] = right
    with wave.open(str(path), "wb") as out:
        out.setnchannels(2)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes(frames.tobytes())
