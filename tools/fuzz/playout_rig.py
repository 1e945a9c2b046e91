"""A playout queue beside a plain model of its rules. After every step both must say the same.

Held: bytes in = played + dropped + queued; nothing is played twice or out of order; every frame is whole; the queue is
bounded; a mark comes back once, in order, at the first tick after its audio; what a recovery takes away is no more than
the stalls were, and only silence or by a cross-fade.
"""

from __future__ import annotations

import random

import numpy as np

from audiosocket.playout import MAX_STALL_FRAMES, SILENCE_PEAK, Playout

_NOISE = random.Random(1).randbytes(1 << 20)
_SILENCE = bytes(1 << 20)


class PlayoutRig:
    """`max_seconds` is the queue's bound."""

    def __init__(self, max_seconds: float, sample_rate: int = 8000, fade_ms: float = 0.0) -> None:
        self.playout = Playout(max_seconds, sample_rate, fade_ms)
        self._frame_bytes = sample_rate // 25
        self._fade_bytes = min(2 * round(sample_rate * fade_ms / 1000), self._frame_bytes)
        self._bound = max(self._frame_bytes, int(max_seconds * sample_rate * 2) // 2 * 2)
        self._queue = bytearray()
        self._half_dropped = False
        self._waited = False
        self._idle = True
        self._position = 0  # bytes that have left the queue
        self._waiting: list[tuple[int, str]] = []
        self._source = 0
        self._marks = 0
        self._frames = 0
        self._stalls = 0
        self._pushed = self._played = self._odd = self._overrun = self._cleared = 0

    def push(self, size: int, silent: bool = False) -> None:
        """`size` bytes, of which no two places are alike unless they are `silent`."""
        start = self._source % (len(_NOISE) - size)
        audio = (_SILENCE if silent else _NOISE)[start : start + size]
        self._source += size
        self._pushed += size
        self.playout.push(audio)
        if self._half_dropped and audio:
            audio = audio[1:]
            self._overrun += 1
            self._half_dropped = False
        room = self._bound - len(self._queue)
        kept = audio
        if len(audio) > room:
            kept = audio[: room - (len(self._queue) + room) % 2]  # a whole number of samples
            self._half_dropped = (len(audio) - len(kept)) % 2 == 1
        self._overrun += len(audio) - len(kept)
        self._queue += kept
        self._check()

    def mark(self) -> None:
        """The next mark."""
        self._marks += 1
        name = f"m{self._marks}"
        at_once = self.playout.mark(name)
        assert at_once == (not self._queue and not self._waiting and self._idle)
        if not at_once:
            self._waiting.append((self._position + len(self._queue), name))
        self._check()

    def clear(self) -> None:
        """Everything that waits goes, and all its marks come back."""
        assert self.playout.clear() == [name for _, name in self._waiting]
        self._waiting.clear()
        self._cleared += len(self._queue)
        self._drop_queue()
        self._half_dropped = False
        self._idle = True
        self._check()

    def stall(self, frames: int) -> None:
        """The process stood still."""
        self.playout.note_stall(frames)
        self._stalls += min(frames, MAX_STALL_FRAMES)

    def tick(self) -> bytes | None:
        """20 ms later; the frame that was played."""
        playout = self.playout
        due = [name for position, name in self._waiting if position <= self._position]
        assert playout.due_marks() == due
        del self._waiting[: len(due)]
        recovered = playout.recovered_frames
        frame = playout.tick()
        recovered = playout.recovered_frames - recovered
        if len(self._queue) >= self._frame_bytes:
            assert frame is not None
            self._took(frame, recovered)
        elif self._queue and self._waited:
            assert frame is not None
            even = len(self._queue) // 2 * 2
            faded = even + self._fade_bytes
            self._compare(frame[:even], bytes(self._queue[:even]))
            assert not any(frame[max(faded, self._fade_bytes) :])
            assert len(frame) == self._frame_bytes
            self._played += even
            self._odd += len(self._queue) - even
            self._drop_queue()
        else:
            assert frame is None
            ending = playout.take_cut_off()
            assert len(ending) == self._frame_bytes
            assert not any(ending[self._fade_bytes :])
            assert not playout.cut_off
            self._waited = bool(self._queue)
        self._idle = frame is None
        self._frames += frame is not None
        self._check()
        return frame

    def settle(self) -> None:
        """Plays to the end: nothing may be left behind, no mark either."""
        for _ in range(self.playout.depth_bytes // self._frame_bytes + 4):
            self.tick()
        assert not self._queue
        assert not self._waiting
        assert self.playout.pending_marks == self.playout.depth_bytes == 0

    def _took(self, frame: bytes, recovered: int) -> None:
        size = self._frame_bytes
        assert len(frame) == size
        taken = size * (1 + recovered)
        assert taken <= len(self._queue)
        candidates = [bytes(self._queue[at : at + size]) for at in range(0, taken, size)]
        del self._queue[:taken]
        self._position += taken
        self._played += size
        self._waited = False
        if all(map(_silent, candidates[:-1])):
            self._compare(frame, candidates[-1])
            return
        assert recovered == 1, "only silence is dropped whole"
        first, mixed, second = (
            np.frombuffer(audio, "<i2").astype(int) for audio in (candidates[0], frame, candidates[1])
        )
        between = (np.minimum(first, second) - 1 <= mixed) & (mixed <= np.maximum(first, second) + 1)
        faded = self._fade_bytes // 2 if self._idle else 0
        assert np.all(between[faded:])
        assert faded or abs(mixed[0] - first[0]) <= 1 + abs(second[0] - first[0]) // 100
        assert faded == len(mixed) or abs(mixed[-1] - second[-1]) <= 1 + abs(second[-1] - first[-1]) // 100

    def _compare(self, frame: bytes, expected: bytes) -> None:
        """The same; but audio that begins anew may fade in, and over what was cut off."""
        begin = self._fade_bytes if self._idle else 0
        assert frame[begin:] == expected[begin:]

    def _drop_queue(self) -> None:
        self._position += len(self._queue)
        self._queue.clear()
        self._waited = False

    def _check(self) -> None:
        playout = self.playout
        assert playout.depth_bytes == len(self._queue) <= self._bound
        assert playout.pending_marks == len(self._waiting)
        assert (playout.overrun_bytes, playout.cleared_bytes) == (self._overrun, self._cleared)
        assert playout.frames_played == self._frames
        assert playout.recovered_frames <= self._stalls
        dropped = self._overrun + self._cleared + self._odd + self._frame_bytes * playout.recovered_frames
        assert self._pushed == self._played + dropped + len(self._queue)


def _silent(frame: bytes) -> bool:
    return int(np.abs(np.frombuffer(frame, "<i2").astype(int)).max()) <= SILENCE_PEAK
