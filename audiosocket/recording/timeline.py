"""A recording's two channels on one axis of time: where the caller's frames lie beside the application's.

Time is counted in samples from the first tick. What was handed to Asterisk at a tick lies at that tick's place, 20 ms
each, whatever the caller does. A frame of the caller lies where it arrived, less the jitter of its way: frames are laid
end to end for as long as the least delayed of the next 200 ms fits its place to within 10 ms.

- Where none of them fits any more, because frames were lost or the caller's clock is slow, silence comes before the
  frame; where they come too early (a fast clock, a backlog), what is too much is cut off. So both sides stay together
  for as long as the call lasts, and a loss is silence in its own place.
- To know the next 200 ms, what is given out is some 400 ms behind what was put in, until `finish`.
- What nobody put in (blocks that were lost on their way here) is silence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from audiosocket.callspec import MediaFormat
from audiosocket.g711 import alaw_to_pcm, pcm_to_pcm, ulaw_to_pcm
from audiosocket.wire import FRAME_MS, HEADER_BYTES

TICKS_A_SECOND = 1000 // FRAME_MS
LOOK_AHEAD_TICKS = 10
"""200 ms: the jitter that is taken for jitter. What is late for longer was lost."""
HOLD_TICKS = 2 * LOOK_AHEAD_TICKS + 1
"""How far behind the audio is given out: a frame is decided on after the look-ahead, and its place is no further before
its arrival than that and the tolerance."""
TOLERANCE_TICKS = 0.5
LONG_GAP_TICKS = TICKS_A_SECOND
"""Over a gap of more than this nothing is carried: the place of what follows is all that is known."""

_DECODERS: dict[str, Callable[[bytes], bytes]] = {"ulaw": ulaw_to_pcm, "alaw": alaw_to_pcm}

Samples = NDArray[np.int16]
Stretch = tuple[int, bytes]
"""A position in samples, and the interleaved PCM16 of both channels from there on."""


@dataclass(frozen=True, slots=True)
class Block:
    """Some ticks of a call in a row, as they came."""

    first_tick: int
    sent: list[bytes]
    """What Asterisk got, one AudioSocket frame for each tick (or a few in one piece, for as many ticks)."""
    heard: list[bytes]
    """The payloads from the caller."""
    heard_at: list[float]
    """When each of them arrived, in seconds."""
    origin: float
    """When tick 0 was, on the same clock."""


class Timeline:
    """See the module's text. Stretches come in order and never overlap."""

    def __init__(self, media_format: MediaFormat) -> None:
        self.rate_hz = media_format.sample_rate
        self._tick = self.rate_hz // TICKS_A_SECOND
        self._look_ahead = LOOK_AHEAD_TICKS * self._tick
        self._tolerance = int(TOLERANCE_TICKS * self._tick)
        self._decode = _DECODERS.get(media_format, pcm_to_pcm)
        self._width = 1 if media_format in _DECODERS else 2
        self._written = 0
        self._end = 0  # of the application's side
        self._right: list[Samples] = []
        self._left: list[tuple[int, Samples]] = []
        # Frames of the caller whose place is not decided yet.
        self._arrivals: list[int] = []
        self._payloads: list[bytes] = []
        self._cursor = 0  # where the next of them would follow the one before it
        self._begun = False

    @property
    def end(self) -> int:
        """Where the audio put in ends."""
        return self._end

    def add(self, block: Block) -> list[Stretch]:
        """Puts in the next block; gives out what is settled by it."""
        first = block.first_tick * self._tick
        settled: list[Stretch] = []
        if first - self._end > LONG_GAP_TICKS * self._tick:
            settled += self.finish()
            self._written = self._end = first
            self._left.clear()
            self._right.clear()
        elif first > self._end:
            self._right.append(np.zeros(first - self._end, np.int16))
        if block.sent:
            frames = np.frombuffer(b"".join(block.sent), np.uint8).reshape(-1, HEADER_BYTES + 2 * self._tick)
            self._right.append(frames[:, HEADER_BYTES:].copy().view("<i2").ravel())
            self._end = first + len(frames) * self._tick
        for payload, at in zip(block.heard, block.heard_at, strict=True):
            self._payloads.append(payload[: len(payload) - len(payload) % self._width])
            self._arrivals.append(round((at - block.origin) * self.rate_hz))
        self._place(self._end - self._look_ahead)
        return settled + self._give(self._end - HOLD_TICKS * self._tick)

    def finish(self) -> list[Stretch]:
        """Gives out all that is left."""
        self._place(None)
        return self._give(self._end)

    def _place(self, until: int | None) -> None:
        """Decides on the frames that arrived up to `until`, or on all of them."""
        arrivals, payloads = self._arrivals, self._payloads
        ready = len(arrivals) if until is None else sum(at <= until for at in arrivals)
        if not ready:
            return
        starts = list(accumulate((len(payload) // self._width for payload in payloads), initial=0))
        # How late each frame is for its place, had they all been laid end to end from 0 on.
        late = [at - start for at, start in zip(arrivals, starts, strict=False)]
        if self._begun and max(abs(min(late) - self._cursor), abs(max(late) - self._cursor)) <= self._tolerance:
            self._lay(payloads[:ready])
        else:
            self._place_each(ready, starts, late)
        del arrivals[:ready], payloads[:ready]

    def _place_each(self, ready: int, starts: list[int], late: list[int]) -> None:
        seen = 0
        for index in range(ready):
            start = starts[index]
            while seen < len(late) and starts[seen] - start < self._look_ahead:
                seen += 1
            payload = self._payloads[index]
            away = min(late[index : max(seen, index + 1)]) + start - self._cursor
            if abs(away) > self._tolerance or not self._begun:
                self._begun = True
                self._cursor += max(0, away)
                payload = payload[max(0, -away) * self._width :]
            self._lay([payload])

    def _lay(self, payloads: list[bytes]) -> None:
        samples = np.frombuffer(self._decode(b"".join(payloads)), "<i2")
        self._left.append((self._cursor, samples))
        self._cursor += len(samples)

    def _give(self, end: int) -> list[Stretch]:
        start, count = self._written, end - self._written
        if count <= 0:
            return []
        both = np.zeros((count, 2), "<i2")
        right = np.concatenate(self._right)
        both[:, 1] = right[:count]
        self._right = [right[count:]]
        kept = []
        for at, samples in self._left:
            low, high = max(at, start), min(at + len(samples), end)
            if low < high:
                both[low - start : high - start, 0] = samples[low - at : high - at]
            if at + len(samples) > end:
                kept.append((at, samples))
        self._left = kept
        self._written = end
        self._cursor = max(self._cursor, end)
        return [(start, both.tobytes())]
