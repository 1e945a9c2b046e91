"""Tones, and recognising them: who is heard is told by a tone's frequency, which survives every codec in the path."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tools.audio.pcm import FULL_SCALE, Pcm

LOWEST_HZ = 50.0
"""Below this there is no telephone audio, only the offset that G.711's even levels can leave."""


def tone(hz: float, seconds: float, rate: int = 8000, level_dbfs: float = -12.0) -> Pcm:
    """A sine of `seconds` whose RMS is `level_dbfs` below a full-scale square wave.

    Raises ValueError for a frequency that the rate cannot carry and for a level that would clip.
    """
    if not 0 < hz < rate / 2:
        raise ValueError(f"a tone of {hz} Hz does not fit a rate of {rate} Hz: choose one between 0 and {rate / 2:g}")
    peak = 10 ** (level_dbfs / 20) * np.sqrt(2)
    if peak > 1:
        raise ValueError(f"a sine of {level_dbfs} dBFS clips: -3.02 or less fits")
    t = np.arange(round(seconds * rate)) / rate
    samples: Pcm = np.round(peak * (FULL_SCALE - 1) * np.sin(2 * np.pi * hz * t)).astype(np.int16)
    return samples


def _spectrum(samples: Pcm, rate: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Frequencies in Hz and the power at each."""
    if len(samples) < rate // 50:
        raise ValueError(f"{len(samples)} samples are too few to hear a tone in: 20 ms ({rate // 50}) at least")
    # Without the mean, or an offset would leak through the window into the whole spectrum.
    power = np.square(np.abs(np.fft.rfft((samples - np.mean(samples)) * np.hanning(len(samples)))))
    hz = np.fft.rfftfreq(len(samples), 1 / rate)
    power[hz < LOWEST_HZ] = 0.0
    return hz, power


def dominant_frequency(samples: Pcm, rate: int = 8000) -> float:
    """Frequency in Hz of the strongest spectral line, 0.0 for silence; resolution is rate / len(samples).

    Raises ValueError for less than 20 ms.
    """
    hz, power = _spectrum(samples, rate)
    strongest = int(np.argmax(power))
    return float(hz[strongest]) if power[strongest] > 0 else 0.0


def tone_share(samples: Pcm, hz: float, rate: int = 8000) -> float:
    """Share (0 to 1) of the energy that lies at `hz`, give or take the width of the analysis window; 0.0 for silence.

    Raises ValueError for less than 20 ms.
    """
    frequencies, power = _spectrum(samples, rate)
    total = float(np.sum(power))
    if total <= 0:
        return 0.0
    # A Hann window's main lobe is two bins to each side; G.711 and clock differences want a little more.
    half_width = max(10.0, 3 * rate / len(samples))
    return float(np.sum(power[np.abs(frequencies - hz) <= half_width])) / total
