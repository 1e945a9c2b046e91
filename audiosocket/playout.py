"""The application's audio on its way to the caller: audio and marks in one FIFO, one frame for every tick.

Time here is counted in ticks of 20 ms; the clock that calls `tick` lives outside. Bytes are PCM16 at 8 kHz.

- Audio of any length is accepted, odd lengths included: what does not fill a frame waits for the next piece, and is
  played out with silence behind it only when nothing has come for one tick.
- A mark is due when the last sample before it has been played to its end, that is at the tick after the frame that
  held it; with nothing before it, at once.
- `clear` drops everything that has not been handed out yet.
- The queue is bounded. What does not fit is dropped and counted, never what is already queued.
- After a stall of this process, a live source (an echo, a person, a speech-to-speech model) would stay late for the
  rest of the call, because all that it sends keeps queueing behind the backlog. `note_stall` arms a recovery that
  measures how much deeper the queue stands than before, and works that off within two seconds: silent frames first,
  then by merging two frames into one with a cross-fade. An application that keeps more than `LEAD_FRAMES` ahead has
  chosen its own lead, and nothing of it is dropped.
"""

from __future__ import annotations

from collections import deque

import numpy as np

FRAME_BYTES = 320

LEAD_FRAMES = 10
"""Standing depth (200 ms) over which a queue is a lead that the application chose, not a delay to be worked off."""
WINDOW_TICKS = 25
"""Ticks over which the standing depth is taken."""
SETTLE_TICKS = 5
"""Ticks over which the excess after a stall is taken: short enough to start early, long enough to skip jitter."""
RECOVERY_TICKS = 150
"""How long a recovery may last. Its pace is set for half of it."""
MAX_STALL_FRAMES = 50
"""What of one stall is worked off at most (1 s): beyond it the source itself must have stopped too."""
SILENCE_PEAK = 192
"""Peak of PCM16 (about -45 dBFS) below which a frame may be dropped without being missed."""
UNDERRUN_GAP_TICKS = 10
"""A pause of up to 200 ms inside application audio counts as an underrun; a longer one is the application's pause."""

_FADE_IN = (np.arange(FRAME_BYTES // 2, dtype=np.float32) + 0.5) / (FRAME_BYTES // 2)
_FADE_OUT = 1.0 - _FADE_IN


def _is_silent(frame: bytes) -> bool:
    samples = np.frombuffer(frame, "<i2")
    return int(samples.max(initial=0)) < SILENCE_PEAK and int(samples.min(initial=0)) > -SILENCE_PEAK


def _merge(first: bytes, second: bytes) -> bytes:
    """One frame that begins as `first` and ends as `second`, without a step at either edge."""
    mixed = np.frombuffer(first, "<i2") * _FADE_OUT + np.frombuffer(second, "<i2") * _FADE_IN
    return mixed.astype("<i2").tobytes()


class Playout:
    """See the module's text. Figures are plain attributes that only grow."""

    __slots__ = (
        "_baseline",
        "_budget",
        "_chunks",
        "_excess",
        "_head",
        "_idle_ticks",
        "_marks",
        "_max_bytes",
        "_pace",
        "_position",
        "_previous_min",
        "_pushed",
        "_recovering",
        "_settle",
        "_settle_min",
        "_since_cut",
        "_skip_byte",
        "_waited",
        "_window_min",
        "_window_ticks",
        "cleared_bytes",
        "frames_played",
        "overrun_bytes",
        "peak_bytes",
        "recovered_frames",
        "underruns",
    )

    def __init__(self, max_seconds: float) -> None:
        self._max_bytes = max(FRAME_BYTES, int(max_seconds * 16000) & ~1)
        self._chunks: deque[bytes] = deque()
        self._head = 0  # bytes of the first chunk already taken
        self._pushed = 0  # bytes accepted since the start of the call
        self._position = 0  # bytes played, dropped or cleared since the start of the call
        self._marks: deque[tuple[int, str]] = deque()
        self._skip_byte = False
        self._waited = False
        self._idle_ticks = UNDERRUN_GAP_TICKS + 1
        # Standing depth, in frames: the least of the running window and of the one before it.
        self._window_min = 0
        self._window_ticks = 0
        self._previous_min = 0
        self._recovering = 0
        self._budget = 0
        self._baseline = 0
        self._settle = 0
        self._settle_min = 0
        self._excess = 0
        self._since_cut = 0
        self._pace = RECOVERY_TICKS
        self.frames_played = 0
        self.underruns = 0
        self.overrun_bytes = 0
        self.cleared_bytes = 0
        self.recovered_frames = 0
        self.peak_bytes = 0

    @property
    def depth_bytes(self) -> int:
        """Audio that waits to be played."""
        return self._pushed - self._position

    @property
    def pending_marks(self) -> int:
        """Marks that are not due yet."""
        return len(self._marks)

    def push(self, audio: bytes) -> None:
        """Queues PCM16 of any length. What is over the bound is dropped and counted in `overrun_bytes`."""
        if self._skip_byte and audio:
            # The first half of this sample was dropped at the bound: its second half alone would shift every sample.
            audio = audio[1:]
            self._skip_byte = False
            self.overrun_bytes += 1
        size = len(audio)
        if not size:
            return
        room = self._max_bytes - (self._pushed - self._position)
        if size > room:
            keep = max(0, room - ((self._pushed + room) & 1))
            dropped = size - keep
            self.overrun_bytes += dropped
            self._skip_byte = bool(dropped & 1)
            if not keep:
                return
            audio = audio[:keep]
            size = keep
        if not self._chunks and 0 < self._idle_ticks <= UNDERRUN_GAP_TICKS and self.frames_played:
            self.underruns += 1
        if size < FRAME_BYTES and self._chunks and len(self._chunks[-1]) < FRAME_BYTES:
            # Crumbs are kept as one piece: a queue of minutes must not become millions of objects.
            self._chunks[-1] += audio
        else:
            self._chunks.append(audio)
        self._pushed += size
        depth = self._pushed - self._position
        if depth > self.peak_bytes:
            self.peak_bytes = depth

    def mark(self, name: str) -> bool:
        """Queues a mark behind all audio so far. True when it is due at once: nothing is before it."""
        if self._position >= self._pushed and not self._marks and self._idle_ticks:
            return True
        self._marks.append((self._pushed, name))
        return False

    def clear(self) -> list[str]:
        """Drops all audio that was not handed out; returns the marks that waited, in order."""
        self.cleared_bytes += self._pushed - self._position
        self._chunks.clear()
        self._head = 0
        self._position = self._pushed = self._pushed + (self._pushed & 1)
        self._skip_byte = False
        self._waited = False
        self._recovering = 0
        # What follows a clear is a new utterance, however soon it comes: not an underrun.
        self._idle_ticks = UNDERRUN_GAP_TICKS + 1
        names = [name for _, name in self._marks]
        self._marks.clear()
        return names

    def due_marks(self) -> list[str]:
        """The marks whose audio has been played to its end. To be called at a tick, before `tick`."""
        marks = self._marks
        if not marks or marks[0][0] > self._position:
            return []
        due = []
        while marks and marks[0][0] <= self._position:
            due.append(marks.popleft()[1])
        return due

    def tick(self) -> bytes | None:
        """The next 20 ms of application audio, 320 bytes; None when there is nothing to play."""
        depth = self._pushed - self._position
        frames = depth // FRAME_BYTES
        if frames < self._window_min:
            self._window_min = frames
        self._window_ticks += 1
        if self._window_ticks >= WINDOW_TICKS:
            self._previous_min = self._window_min
            self._window_min = frames
            self._window_ticks = 0
        if self._recovering:
            self._recovering -= 1
        if depth < FRAME_BYTES:
            return self._tick_short(depth)
        self._idle_ticks = 0
        self._waited = False
        self.frames_played += 1
        frame = self._take()
        if self._recovering:
            return self._recover(frame, frames)
        return frame

    def note_stall(self, frames: int) -> None:
        """This process (or the way to Asterisk) stood still for `frames` ticks: see the module's text."""
        standing = min(self._previous_min, self._window_min)
        if not self._recovering:
            if standing > LEAD_FRAMES:
                return
            self._baseline = standing
            self._budget = 0
        self._budget = min(self._budget + min(frames, MAX_STALL_FRAMES), 3 * MAX_STALL_FRAMES)
        self._recovering = RECOVERY_TICKS
        self._settle = 0
        self._excess = 0
        self._since_cut = 0
        self._pace = RECOVERY_TICKS

    def _tick_short(self, depth: int) -> bytes | None:
        if depth and self._waited:
            # Nothing came for a tick: play what there is. An odd last byte is no sample and goes.
            tail = b"".join((self._chunks[0][self._head :], *list(self._chunks)[1:]))
            self._chunks.clear()
            self._head = 0
            self._pushed += self._pushed & 1
            self._position = self._pushed
            self._waited = False
            self._idle_ticks = 0
            self.frames_played += 1
            even = len(tail) & ~1
            return tail[:even] + bytes(FRAME_BYTES - even)
        self._waited = bool(depth)
        self._idle_ticks += 1
        return None

    def _take(self) -> bytes:
        chunks = self._chunks
        chunk = chunks[0]
        head = self._head
        left = len(chunk) - head
        self._position += FRAME_BYTES
        if left > FRAME_BYTES:
            self._head = head + FRAME_BYTES
            return chunk[head : head + FRAME_BYTES]
        chunks.popleft()
        self._head = 0
        if left == FRAME_BYTES:
            return chunk[head:] if head else chunk
        parts = [chunk[head:]]
        wanted = FRAME_BYTES - left
        while True:
            chunk = chunks[0]
            if len(chunk) > wanted:
                parts.append(chunk[:wanted])
                self._head = wanted
                break
            parts.append(chunks.popleft())
            wanted -= len(chunk)
            if not wanted:
                break
        return b"".join(parts)

    def _recover(self, frame: bytes, frames: int) -> bytes:
        # The least depth of the last few ticks is what stands in the queue; jitter above it comes and goes.
        self._settle_min = frames if self._settle == 0 else min(self._settle_min, frames)
        self._settle += 1
        self._since_cut += 1
        if self._settle == SETTLE_TICKS:
            self._settle = 0
            self._excess = self._settle_min - self._baseline - 1
            self._pace = max(2, min(self._pace, 70 // max(1, self._excess)))
            if self._excess > self._budget + LEAD_FRAMES:
                # More than the stall can have left behind: the application sent a whole utterance. Nothing is late.
                self._recovering = self._excess = 0
        if self._excess <= 0 or self._budget <= 0:
            return frame
        merged = False
        while self._can_cut() and _is_silent(frame):
            frame = self._cut()
            merged = True
        # Of speech two frames are merged into one, no more often than needed to be done in time.
        if not merged and self._can_cut() and self._since_cut >= self._pace:
            self._since_cut = 0
            frame = _merge(frame, self._cut())
        return frame

    def _can_cut(self) -> bool:
        return self._excess > 0 and self._budget > 0 and self._pushed - self._position >= FRAME_BYTES

    def _cut(self) -> bytes:
        self._budget -= 1
        self._excess -= 1
        self.recovered_frames += 1
        return self._take()
