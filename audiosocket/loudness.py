"""How loud a frame is, for nearly nothing: the level that one sample in ten reaches, and the noise floor of a line.

The measure is a quantile, not a power: a frame is at a level when a tenth of its samples are at it or above. That takes
one `bytes.translate` that deletes the quiet samples, 0.2 to 0.3 µs for 20 ms of G.711, where a power by numpy takes 2.2
to 3.5 µs; and a click of less than 2 ms is nothing. In the Gaussian noise of a line the level lies 4.3 dB over the RMS,
in a sine 3 dB. G.711 is measured as it came; PCM16 by the upper byte of a sample, which is coarse (steps of 256).

Levels are in samples of PCM16 and stand in steps of 1.5 dB: `LEVELS[k]`. A noise floor is a `k`, -1 below them all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from audiosocket.compiled import FRAMES
from audiosocket.g711 import alaw_to_pcm, ulaw_to_pcm

LEVELS = tuple(96 * 2 ** (k / 4) for k in range(34))
"""From 96 (the noise of a line at -55 dBFS) up to 29,000."""
SHARE = 10
"""One sample in so many reaches the level of a frame."""
LEAST_ON, LEAST_OFF = 8, 6
"""Speech is never quieter than 384 at its start (noise of -43 dBFS), 272 when it goes on (-46 dBFS)."""
STEPS = {"ulaw": (6, 4), "alaw": (6, 4), "slin": (8, 6)}
"""Over the noise floor: 9 dB for speech to start, 6 dB to go on; 3 dB more where the measure is coarse."""
FIRST_WINDOW_TICKS, WINDOW_TICKS = 100, 150
"""Least levels are taken over 2 s at first, then over 3 s."""

UPPER_QUIET = b"\x00\xff"
"""The upper bytes of PCM16 samples below 256, which is the level of a sine of -45 dBFS and of noise of -46 dBFS."""


def _quiet(magnitudes: NDArray[np.int32]) -> tuple[bytes, ...]:
    return tuple(bytes(np.flatnonzero(magnitudes < level).tolist()) for level in LEVELS)


def _quiet_codes(decoded: bytes) -> tuple[bytes, ...]:
    return _quiet(np.abs(np.frombuffer(decoded, "<i2").astype(np.int32)))


_UPPER = np.arange(256, dtype=np.int32)
QUIET: dict[str, tuple[bytes, ...]] = {
    "ulaw": _quiet_codes(ulaw_to_pcm(bytes(range(256)))),
    "alaw": _quiet_codes(alaw_to_pcm(bytes(range(256)))),
    "slin": _quiet(np.where(_UPPER < 128, _UPPER, 255 - _UPPER) << 8),
}
"""For each media format and level the bytes that stand for samples below it; of slin the upper ones."""
REACH = {
    name: bytes(sum(byte not in below for below in levels) for byte in range(256)) for name, levels in QUIET.items()
}
"""The same by byte: how many levels it reaches."""


if TYPE_CHECKING or FRAMES is None:

    class NoiseFloorState:
        """What is read for every frame, where nothing is compiled."""

        __slots__ = ("_least", "_off", "_on", "_reach", "_window_end")

else:
    NoiseFloorState = FRAMES.NoiseFloor


class NoiseFloor(NoiseFloorState):
    """What a line sounds like while nobody speaks: the least level within the last 3 to 6 s.

    Speech has gaps and leaves the floor where it is. Noise, a tone or music on hold that lasts becomes the floor after
    3 to 6 s, at the beginning of a call after 2 s. `quiet_on` and `quiet_off` are what to delete from a frame to see
    whether speech starts or goes on. Frames have one byte a sample, time is in ticks of 20 ms.
    """

    __slots__ = ("_before", "_floor", "_quiet", "_steps", "quiet_off", "quiet_on")

    def __init__(self, media_format: str) -> None:
        self._quiet = QUIET[media_format]
        self._reach = REACH[media_format]
        self._steps = STEPS[media_format]
        self._before = LEAST_ON - 1  # as noisy as a line may be whose noise is never speech, until it is known better
        self._least = len(LEVELS)
        self._window_end = 0
        self._settle(self._before)

    def look(self, at: int, frame: bytes) -> bool:
        """Takes a frame into account. True when all that has been taken for speech lately was a steady sound."""
        if not self._window_end:
            self._window_end = at + FIRST_WINDOW_TICKS
        self.dip(frame)
        if at < self._window_end:
            return False
        self._window_end = at + WINDOW_TICKS
        self._before, self._least = self._least, len(LEVELS)
        steady = self._before > self._floor and self._before >= self._off
        self._settle(self._before)
        return steady

    def dip(self, frame: bytes) -> None:
        """Takes a frame into account that is quieter than those around it."""
        above = self._least
        if above < 0 or (above < len(LEVELS) and self._reaches(frame, above)):
            return
        low, high = 0, above
        while low < high:
            middle = (low + high) // 2
            if self._reaches(frame, middle):
                low = middle + 1
            else:
                high = middle
        self._least = low - 1
        if self._least < self._floor:
            self._settle(self._least)

    def _reaches(self, frame: bytes, level: int) -> bool:
        return len(frame.translate(None, self._quiet[level])) * SHARE >= len(frame)

    def _settle(self, floor: int) -> None:
        self._floor = floor
        on, off = self._steps
        loudest = len(LEVELS) - 1
        self._off = max(LEAST_OFF, min(floor + off, loudest))
        self._on = max(LEAST_ON, min(floor + on, loudest))
        self.quiet_on = self._quiet[self._on]
        self.quiet_off = self._quiet[self._off]
