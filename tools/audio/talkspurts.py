"""Finding who spoke when, by energy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tools.audio.pcm import FULL_SCALE, Pcm


@dataclass(frozen=True, slots=True)
class Talkspurt:
    """A stretch of sound between two pauses, in seconds from the first sample."""

    start_seconds: float
    end_seconds: float

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return self.end_seconds - self.start_seconds


def talkspurts(
    samples: Pcm,
    rate: int = 8000,
    *,
    threshold_dbfs: float = -40.0,
    frame_ms: int = 10,
    pause_ms: int = 300,
    shortest_ms: int = 30,
) -> list[Talkspurt]:
    """Stretches whose frames are at `threshold_dbfs` (RMS) or above, in order, to the precision of `frame_ms`.

    A pause shorter than `pause_ms` does not end a talkspurt (people breathe); one that lasts less than `shortest_ms`
    is a click and is left out.
    """
    frame = rate * frame_ms // 1000
    whole = len(samples) // frame
    if not whole:
        return []
    rms = np.sqrt(np.mean(np.square(samples[: whole * frame].reshape(whole, frame).astype(np.float64)), axis=1))
    loud = np.flatnonzero(rms >= FULL_SCALE * 10 ** (threshold_dbfs / 20))
    if not len(loud):
        return []
    breaks = np.flatnonzero(np.diff(loud) * frame_ms > pause_ms)
    firsts = loud[np.concatenate(([0], breaks + 1))]
    lasts = loud[np.concatenate((breaks, [len(loud) - 1]))]
    seconds = frame_ms / 1000
    spurts = [Talkspurt(float(a) * seconds, float(b + 1) * seconds) for a, b in zip(firsts, lasts, strict=True)]
    return [spurt for spurt in spurts if spurt.seconds * 1000 >= shortest_ms]
