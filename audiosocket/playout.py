"""The application's audio on its way to the caller: audio and marks in one FIFO, one frame for every tick.

Time here is counted in ticks of 20 ms; the clock that calls `tick` lives outside. Bytes are PCM16 at the rate that the
queue was made for.

- Audio of any length is accepted, odd lengths included: what does not fill a frame waits for the next piece, and is
  played out with silence behind it only when nothing has come for one tick.
- A mark is due when the last sample before it has been played to its end, that is at the tick after the frame that
  held it; with nothing before it, at once.
- `clear` drops everything that has not been handed out yet.
- What is cut off in the middle of a sound fades out within `fade_ms`, for a step would be heard as a click: after a
  `clear` the first of what was dropped, when the queue has run dry its last sample. Nothing is kept for it: the tick
  that has nothing to play finds it in `cut_off`, and it is no audio to any mark or figure. Audio that goes on within
  `UNDERRUN_GAP_TICKS` fades in. The start of an utterance is never touched.
- The queue is bounded. What does not fit is dropped and counted, never what is already queued.
- After a stall of this process, a live source (an echo, a person, a speech-to-speech model) would stay late for the
  rest of the call, because all that it sends keeps queueing behind the backlog. `note_stall` arms a recovery that
  measures how much deeper the queue stands than before, and works that off within two seconds: silent frames first,
  then by merging two frames into one with a cross-fade. What a hiccup of a frame or two leaves standing, and the last
  frame of a longer stall, goes with the next silence, or is merged when half a minute has brought none. An application
  that keeps more than `LEAD_FRAMES` ahead has chosen its own lead, and nothing of it is dropped.
"""

from __future__ import annotations

from collections import deque
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from audiosocket.compiled import FRAMES, usual
from audiosocket.wire import FRAME_MS

LEAD_FRAMES = 10
"""Standing depth (200 ms) over which a queue is a lead that the application chose, not a delay to be worked off."""
WINDOW_TICKS = 25
"""Ticks over which the standing depth is taken."""
SETTLE_TICKS = 5
"""Ticks over which the excess after a stall is taken: short enough to start early, long enough to skip jitter."""
RECOVERY_TICKS = 150
"""How long frames may be merged after a stall. The pace is set for half of it."""
PATIENT_TICKS = 1500
"""How long silence is then waited for, to drop what still stands: 30 s. Where none comes, speech is merged after all:
many a hiccup would make a second of delay of a source that is never silent."""
IMPATIENT_TICKS = 100
"""The last of them, in which that is done."""
HICCUP_FRAMES = 2
"""A stall of up to 40 ms is no reason to touch speech, and no more than this is dropped while silence is waited for."""
MAX_STALL_FRAMES = 50
"""What of one stall is worked off at most (1 s): beyond it the source itself must have stopped too."""
SILENCE_PEAK = 192
"""Peak of PCM16 (about -45 dBFS) below which a frame may be dropped without being missed, and a step not be heard."""
UNDERRUN_GAP_TICKS = 10
"""A pause of up to 200 ms inside application audio counts as an underrun; a longer one is the application's pause."""
BLAMED_TICKS = 25
"""After a stall an underrun is the stall's while speech is merged for it (3 s) and for so long behind that; after a
hiccup for so long."""


@cache
def _rising(samples: int) -> NDArray[np.float32]:
    """The weights of a fade-in; those of a fade-out are what is left to 1."""
    return ((np.arange(samples) + 0.5) / max(1, samples)).astype(np.float32)


def _is_silent(frame: bytes) -> bool:
    samples = np.frombuffer(frame, "<i2")
    return int(samples.max(initial=0)) < SILENCE_PEAK and int(samples.min(initial=0)) > -SILENCE_PEAK


def _merge(first: bytes, second: bytes) -> bytes:
    """One frame that begins as `first` and ends as `second`, without a step at either edge."""
    rising = _rising(len(first) // 2)
    mixed = np.frombuffer(first, "<i2") * (1 - rising) + np.frombuffer(second, "<i2") * rising
    return mixed.astype("<i2").tobytes()


def _faded_out(played: bytes, dropped: bytes, samples: int) -> bytes:
    """So many samples of `dropped` while they fade out; where it ends the last sample of both is held."""
    held = np.full(samples, int.from_bytes((played + dropped)[-2:], "little", signed=True), np.float32)
    given = np.frombuffer(dropped[: 2 * samples], "<i2")
    held[: len(given)] = given
    return (held * (1 - _rising(samples))).astype("<i2").tobytes()


def _faded_in(frame: bytes, samples: int) -> bytes:
    head = np.frombuffer(frame[: 2 * samples], "<i2")  # of a last piece there may be less
    head = head * _rising(samples)[: len(head)]
    return head.astype("<i2").tobytes() + frame[2 * samples :]


def _mixed(frame: bytes, ending: bytes) -> bytes:
    both = np.frombuffer(frame[: len(ending)], "<i2").astype(np.int32) + np.frombuffer(ending, "<i2")
    head: NDArray[np.int32] = np.clip(both, -0x8000, 0x7FFF)
    return head.astype("<i2").tobytes() + frame[len(ending) :]


if TYPE_CHECKING or FRAMES is None:

    class PlayoutState:
        """What a piece of audio and a tick read and write, where nothing is compiled."""

        __slots__ = (
            "_baseline",
            "_budget",
            "_chunks",
            "_excess",
            "_fade_samples",
            "_frame_bytes",
            "_head",
            "_idle_ticks",
            "_last",
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
            "cut_off",
            "frames_played",
            "marks",
            "peak_bytes",
            "recovered_frames",
            "stall_underruns",
            "underruns",
        )

else:
    PlayoutState = FRAMES.Playout


@usual(
    "push",
    "tick",
    "note_stall",
    BLAMED_TICKS=BLAMED_TICKS,
    HICCUP_FRAMES=HICCUP_FRAMES,
    IMPATIENT_TICKS=IMPATIENT_TICKS,
    LEAD_FRAMES=LEAD_FRAMES,
    MAX_STALL_FRAMES=MAX_STALL_FRAMES,
    PATIENT_TICKS=PATIENT_TICKS,
    RECOVERY_TICKS=RECOVERY_TICKS,
    SETTLE_TICKS=SETTLE_TICKS,
    SILENCE_PEAK=SILENCE_PEAK,
    UNDERRUN_GAP_TICKS=UNDERRUN_GAP_TICKS,
    WINDOW_TICKS=WINDOW_TICKS,
)
class Playout(PlayoutState):
    """See the module's text. Figures are plain attributes that only grow."""

    __slots__ = (
        "cleared_bytes",
        "overrun_bytes",
    )

    def __init__(self, max_seconds: float, sample_rate: int = 8000, fade_ms: float = 0.0) -> None:
        self._frame_bytes = sample_rate * FRAME_MS // 1000 * 2
        self.serve(max_seconds, fade_ms)
        self._chunks: deque[bytes] = deque()
        self._head = 0  # bytes of the first chunk already taken
        self._pushed = 0  # bytes accepted since the start of the call
        self._position = 0  # bytes played, dropped or cleared since the start of the call
        self.marks: deque[tuple[int, str]] = deque()  # not due yet: where each stands, and its name
        self._skip_byte = False
        self._waited = False
        self._idle_ticks = UNDERRUN_GAP_TICKS + 1
        self._last = b""  # the frame that was handed out last
        self.cut_off = b""  # the faded samples of what was cut off, for the next tick
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
        self.stall_underruns = 0  # of them, those that come of a stall and not of the application
        self.overrun_bytes = 0
        self.cleared_bytes = 0
        self.recovered_frames = 0
        self.peak_bytes = 0

    @property
    def depth_bytes(self) -> int:
        """Audio that waits to be played."""
        return self._pushed - self._position

    @property
    def depth_ms(self) -> int:
        """The same in ms."""
        return self.depth_bytes * FRAME_MS // self._frame_bytes

    @property
    def peak_ms(self) -> int:
        """The deepest that the queue was, in ms."""
        return self.peak_bytes * FRAME_MS // self._frame_bytes

    @property
    def idle_ticks(self) -> int:
        """Ticks since the last frame of audio; a few before the first one."""
        return self._idle_ticks

    @property
    def pending_marks(self) -> int:
        """Marks that are not due yet."""
        return len(self.marks)

    def serve(self, max_seconds: float, fade_ms: float) -> None:
        """The bound and the fades of the application whose audio is queued from now on."""
        samples_per_second = self._frame_bytes * 500 // FRAME_MS
        self._max_bytes = max(self._frame_bytes, int(max_seconds * samples_per_second * 2) & ~1)
        self._fade_samples = min(round(samples_per_second * fade_ms / 1000), self._frame_bytes // 2)

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
        depth = self._pushed - self._position + size
        if depth > self._max_bytes:
            room = self._max_bytes - depth + size
            keep = max(0, room - ((self._pushed + room) & 1))
            dropped = size - keep
            self.overrun_bytes += dropped
            self._skip_byte = bool(dropped & 1)
            if not keep:
                return
            audio = audio[:keep]
            depth += keep - size
            size = keep
        if not self._chunks and 0 < self._idle_ticks <= UNDERRUN_GAP_TICKS and self.frames_played:
            self.underruns += 1
            if self._recovering > PATIENT_TICKS - BLAMED_TICKS:
                self.stall_underruns += 1
        if size < self._frame_bytes and self._chunks and len(self._chunks[-1]) < self._frame_bytes:
            # Crumbs are kept as one piece: a queue of minutes must not become millions of objects.
            self._chunks[-1] += audio
        else:
            self._chunks.append(audio)
        self._pushed += size
        if depth > self.peak_bytes:
            self.peak_bytes = depth

    def mark(self, name: str) -> bool:
        """Queues a mark behind all audio so far. True when it is due at once: nothing is before it."""
        if self._position >= self._pushed and not self.marks and self._idle_ticks:
            return True
        self.marks.append((self._pushed, name))
        return False

    def clear(self) -> list[str]:
        """Drops all audio that was not handed out; returns the marks that waited, in order."""
        if not self._idle_ticks:
            self.cut_off = self._ending(self._last, self._front(2 * self._fade_samples))
        self.cleared_bytes += self._pushed - self._position
        self._chunks.clear()
        self._head = 0
        self._position = self._pushed = self._pushed + (self._pushed & 1)
        self._skip_byte = False
        self._waited = False
        self._recovering = 0
        # What follows a clear is a new utterance, however soon it comes: not an underrun.
        self._idle_ticks = UNDERRUN_GAP_TICKS + 1
        names = [name for _, name in self.marks]
        self.marks.clear()
        return names

    def due_marks(self) -> list[str]:
        """The marks whose audio has been played to its end. To be called at a tick, before `tick`."""
        marks = self.marks
        if not marks or marks[0][0] > self._position:
            return []
        due = []
        while marks and marks[0][0] <= self._position:
            due.append(marks.popleft()[1])
        return due

    def tick(self) -> bytes | None:
        """The next 20 ms of application audio; None when there is nothing to play but what is in `cut_off`."""
        size = self._frame_bytes
        depth = self._pushed - self._position
        frames = depth // size
        if frames < self._window_min:
            self._window_min = frames
        self._window_ticks += 1
        if self._window_ticks >= WINDOW_TICKS:
            self._previous_min = self._window_min
            self._window_min = frames
            self._window_ticks = 0
        if self._recovering:
            self._recovering -= 1
        if depth < size:
            return self._tick_short(depth)
        self.frames_played += 1
        if not self._head and len(self._chunks[0]) == size:
            self._position += size
            frame = self._chunks.popleft()
        else:
            frame = self._take()
        if self._recovering:
            frame = self._recover(frame, frames)
        if self._idle_ticks:
            frame = self._resume(frame)
        self._last = frame
        return frame

    def take_cut_off(self) -> bytes:
        """What is in `cut_off`, with silence behind it: 20 ms. There is nothing in it afterwards."""
        ending, self.cut_off = self.cut_off, b""
        return ending + bytes(self._frame_bytes - len(ending))

    def note_stall(self, frames: int) -> None:
        """This process (or the way to Asterisk) stood still for `frames` ticks: see the module's text."""
        standing = min(self._previous_min, self._window_min)
        if not self._recovering:
            if standing > LEAD_FRAMES:
                return
            self._baseline = standing
            self._budget = 0
        self._budget = min(self._budget + min(frames, MAX_STALL_FRAMES), 3 * MAX_STALL_FRAMES)
        if frames <= HICCUP_FRAMES:
            if self._recovering > PATIENT_TICKS:
                return  # part of a longer one
            self._recovering = PATIENT_TICKS
        else:
            self._recovering = PATIENT_TICKS + RECOVERY_TICKS
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
            self.frames_played += 1
            even = len(tail) & ~1
            frame = self._resume(tail[:even] + self._ending(tail[:even], b""))
            self._last = frame = frame[: self._frame_bytes].ljust(self._frame_bytes, b"\0")
            return frame
        if not self._idle_ticks:
            self.cut_off = self._ending(self._last, b"")
        self._waited = depth > 0
        self._idle_ticks += 1
        return None

    def _ending(self, played: bytes, dropped: bytes) -> bytes:
        """What is still to be heard of a sound that stops after `played`; `dropped` would have come next."""
        ending = _faded_out(played, dropped, self._fade_samples)
        return b"" if _is_silent(ending) else ending

    def _resume(self, frame: bytes) -> bytes:
        """The first frame after a tick that had nothing to play, or after a `clear`."""
        if self.cut_off:
            frame, self.cut_off = _mixed(frame, self.cut_off), b""
        elif self._idle_ticks <= UNDERRUN_GAP_TICKS:
            frame = _faded_in(frame, self._fade_samples)
        self._idle_ticks = 0
        self._waited = False
        return frame

    def _front(self, size: int) -> bytes:
        """What would be played next, without taking it: so many bytes, or fewer; whole samples."""
        front, head = b"", self._head
        for chunk in self._chunks:
            if len(front) >= size:
                break
            front += chunk[head : head + size]
            head = 0
        return front[: min(size, len(front) & ~1)]

    def _take(self) -> bytes:
        size = self._frame_bytes
        chunks = self._chunks
        chunk = chunks[0]
        head = self._head
        left = len(chunk) - head
        self._position += size
        if left > size:
            self._head = head + size
            return chunk[head : head + size]
        chunks.popleft()
        self._head = 0
        if left == size:
            return chunk[head:] if head else chunk
        parts = [chunk[head:]]
        wanted = size - left
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
        patient = self._recovering <= PATIENT_TICKS
        self._settle_min = frames if self._settle == 0 else min(self._settle_min, frames)
        self._settle += 1
        self._since_cut += 1
        if self._settle >= (WINDOW_TICKS if patient else SETTLE_TICKS):
            self._settle = 0
            self._excess = self._settle_min - self._baseline - (not patient)
            self._pace = max(2, min(self._pace, 70 // max(1, self._excess)))
            if self._excess > self._budget + LEAD_FRAMES:
                # More than the stall can have left behind: the application sent a whole utterance. Nothing is late.
                self._recovering = self._excess = 0
            if patient:
                self._budget = min(self._budget, HICCUP_FRAMES)
        if self._excess <= 0 or self._budget <= 0:
            return frame
        merged = False
        while self._can_cut() and _is_silent(frame):
            frame = self._cut()
            merged = True
        # Of speech two frames are merged into one, no more often than needed to be done in time.
        waits = IMPATIENT_TICKS < self._recovering <= PATIENT_TICKS
        if not (merged or waits) and self._can_cut() and self._since_cut >= self._pace:
            self._since_cut = 0
            frame = _merge(frame, self._cut())
        return frame

    def _can_cut(self) -> bool:
        return self._excess > 0 and self._budget > 0 and self._pushed - self._position >= self._frame_bytes

    def _cut(self) -> bytes:
        self._budget -= 1
        self._excess -= 1
        self.recovered_frames += 1
        return self._take()
