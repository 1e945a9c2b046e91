"""One call's media, without IO: caller audio becomes messages, messages become frames for the caller.

The shell calls in (`caller_audio`, `digit`, `app_text`, `tick`), and what has to leave goes out through two callables
given at the start: `send` for messages to the application, `note` for the call's story. A tick is 20 ms on the
worker's clock; time is counted in ticks. Both ways have the sample rate of the call's media format (`linear`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from audiosocket.callspec import CallSpec, MediaFigures
from audiosocket.dialects.base import Clear, Dialect, Ignored, Mark
from audiosocket.durations import TurnTimes
from audiosocket.g711 import CONVERTERS, silent_frame
from audiosocket.playout import Playout
from audiosocket.recording.recorder import Recorder
from audiosocket.turns import Turns
from audiosocket.wire import FRAME_MS, LINEAR

CATCH_UP_FRAMES = 2
"""Frames that a late tick may hand out besides its own: 40 ms, which every jitter buffer holds."""
STALE_FRAMES = 10
"""Of caller audio that arrives in one piece after a stall, what is kept: the latest 200 ms."""
STALL_TICKS = 3
"""From this many missed ticks or backlogged frames on, a stall is noted and its delay worked off."""
GAP_TICKS = 5
"""After 100 ms without a frame from the caller (RTP loss, hold, a digit being pressed) silence takes its place, from
the start of the gap on: applications expect a continuous stream."""
MAX_PENDING_MARKS = 10_000


class Session:
    """See the module's text. `app_blocked` is set by the shell while the application's socket takes no more."""

    __slots__ = (
        "_caller_frames",
        "_convert",
        "_decode",
        "_dialect",
        "_dropped",
        "_frame_bytes",
        "_gap_ticks",
        "_header",
        "_held_marks",
        "_ignored",
        "_instant_mark",
        "_media",
        "_media_received",
        "_note",
        "_open",
        "_rest",
        "_send",
        "_sent",
        "_silence",
        "_silence_frame",
        "_stall_frames",
        "_stall_tick",
        "app_blocked",
        "bytes_received",
        "clears",
        "digits",
        "first_audio",
        "linear",
        "marks_received",
        "marks_sent",
        "playout",
        "recorder",
        "silence_played",
        "stalls",
        "ticks",
        "ticks_late",
        "turns",
    )

    def __init__(
        self,
        spec: CallSpec,
        dialect: Dialect,
        send: Callable[[bytes], None],
        note: Callable[[str, dict[str, Any]], None],
        times: TurnTimes | None = None,
    ) -> None:
        self._dialect = dialect
        self._media = dialect.media
        self._decode = dialect.decode
        rate = spec.media_format.sample_rate
        self._convert = CONVERTERS[dialect.encoding][spec.media_format]
        self._silence = silent_frame(dialect.encoding, rate)
        self.linear = LINEAR[rate]
        self._header = self.linear.header
        self._silence_frame = self.linear.silence
        self._frame_bytes = dialect.frame_bytes
        self._send = send
        self._note = note
        self._open = False
        self._rest = b""
        self._gap_ticks = 0
        self._instant_mark = -1
        self._held_marks: list[str] = []
        self._caller_frames = 0
        self._dropped: dict[str, int] = {}
        self._ignored: dict[str, int] = {}
        self._sent = 0
        self._stall_tick = -GAP_TICKS - 1
        self._stall_frames = 0
        self._media_received = 0
        self.playout = Playout(spec.playout_max_seconds, rate, spec.fade_ms)
        self.recorder: Recorder | None = None
        self.app_blocked = False
        self.bytes_received = 0
        self.clears = 0
        self.digits = 0
        self.first_audio = False
        self.marks_received = 0
        self.marks_sent = 0
        self.silence_played = 0
        self.stalls = 0
        self.ticks = 0
        self.ticks_late = 0
        self.turns = Turns(spec.media_format, times or TurnTimes())

    # From the caller to the application

    def open(self) -> None:
        """The application's WebSocket is open: the stream starts."""
        for message in self._dialect.opening():
            self._emit(message)
        self._open = True
        self._gap_ticks = 0

    def caller_backlog(self, frames: int) -> int:
        """Audio frames have arrived in one piece: how many of them, the oldest, are too old to be passed on."""
        if frames <= STALL_TICKS:
            return 0
        if self.ticks > GAP_TICKS:
            self._note_stall(frames)
        stale = max(0, frames - STALE_FRAMES)
        if stale:
            self._drop("stale", stale)
            self._caller_frames += stale
            if self._open:
                self._dialect.skip(stale)
        return stale

    def caller_audio(self, payload: bytes) -> None:
        """One audio frame from Asterisk, in the call's media format; any length."""
        self._caller_frames += 1
        self._gap_ticks = 0
        if self.recorder is not None:
            self.recorder.heard(payload)
        if not self._open:
            self._drop("before_start", 1)
            return
        turns = self.turns
        if turns.heard is None:
            turns.heard = payload
        else:
            turns.hear_more(payload)
        audio = self._convert(payload)
        if len(audio) == self._frame_bytes and not self._rest:
            self._send_frame(audio)
            return
        # Another ptime than the application's: cut anew, nothing lost.
        self._cut(self._rest + audio)

    def digit(self, digit: str) -> None:
        """A DTMF digit of the caller."""
        self.digits += 1
        self.turns.digit(self.ticks)
        if self._open:
            self._emit(self._dialect.dtmf(digit))
            self._note("dtmf", {})  # not which: it may be part of a card number

    def stop(self, reason: str) -> None:
        """The stream ends from our side; `reason` in the platform's words (`callended`, `stopped`)."""
        if self._open:
            self._emit(self._dialect.stop(reason))
            self._open = False

    # From the application to the caller

    def app_text(self, message: bytes) -> None:
        """A text message of the application. What cannot be used is counted and ignored: the call goes on."""
        asked = self._decode(message)
        if type(asked) is bytes:
            self._media_received += 1
            self.bytes_received += len(asked)
            self.playout.push(asked)
        elif type(asked) is Mark:
            self._mark(asked.name)
        elif type(asked) is Clear:
            self.clears += 1
            self._note("clear", {"dropped_ms": self.playout.depth_ms})
            dropped = self.playout.clear()
            self.turns.cleared()
            if self._dialect.marks_on_clear:
                for name in dropped:
                    self._send_mark(name)
            if self._open:
                self._emit(self._dialect.cleared())
        elif type(asked) is Ignored:
            self.ignore(asked.reason)

    def ignore(self, reason: str) -> None:
        """Counts a message that asks for nothing."""
        self._ignored[reason] = self._ignored.get(reason, 0) + 1

    def tick(self, missed: int) -> bytes:
        """What Asterisk gets now: one frame, or a few after `missed` ticks. Never nothing: that would freeze it."""
        self.ticks += 1
        frames = self._late_tick(missed) if missed else self._tick()
        if self.recorder is not None:
            self.recorder.tick(missed, frames)
        return frames

    def _tick(self) -> bytes:
        playout = self.playout
        if playout.pending_marks or self._held_marks:
            self._due_marks()
        if self._open:
            self._gap_ticks = gap = self._gap_ticks + 1
            if gap >= GAP_TICKS:
                self._fill(GAP_TICKS if gap == GAP_TICKS else 1)
        frame = playout.tick()
        self.turns.tick(self.ticks, frame)
        if frame is None:
            self.silence_played += 1
            if playout.cut_off:
                return self._header + playout.take_cut_off()
            return self._silence_frame
        if not self.first_audio:
            self.first_audio = True
            self._note("first_app_audio", {})
        return self._header + frame

    def _late_tick(self, missed: int) -> bytes:
        self.ticks += missed
        self.ticks_late += 1
        if missed >= STALL_TICKS:
            self._note_stall(missed)
        frames = [self._tick()]
        for _ in range(min(missed, CATCH_UP_FRAMES)):
            # Only audio is worth catching up with; the caller hears silence soon enough.
            if self.playout.depth_bytes < len(self._silence_frame):
                break
            frames.append(self._tick())
        return b"".join(frames)

    def _note_stall(self, frames: int) -> None:
        # A freeze of ours shows twice: as missed ticks and, right after, as a backlog from Asterisk.
        if self.ticks - self._stall_tick <= GAP_TICKS:
            frames, self._stall_frames = max(0, frames - self._stall_frames), max(frames, self._stall_frames)
        else:
            self.stalls += 1
            self._stall_frames = frames
        self._stall_tick = self.ticks
        self.playout.note_stall(frames)

    def _fill(self, frames: int) -> None:
        self._cut(self._rest + self._silence * frames)

    def _cut(self, audio: bytes) -> None:
        size = self._frame_bytes
        whole = len(audio) - len(audio) % size
        for at in range(0, whole, size):
            self._send_frame(audio[at : at + size])
        self._rest = audio[whole:]

    def _send_frame(self, audio: bytes) -> None:
        if self.app_blocked:
            self._drop("app_slow", 1)
            self._dialect.skip(1)
            return
        self._sent += 1
        self._send(self._media(audio))

    def _emit(self, message: bytes) -> None:
        if message:  # some protocols have none for this
            self._sent += 1
            self._send(message)

    def _mark(self, name: str) -> None:
        self.marks_received += 1
        if self.playout.pending_marks + len(self._held_marks) >= MAX_PENDING_MARKS:
            self.ignore("too_many_marks")
        elif self.playout.mark(name):
            # Nothing is before it. One instant echo a tick: an application that answers every echo with a mark (one
            # of Exotel's own samples does) would spin for ever.
            if self._held_marks or self._instant_mark == self.ticks:
                self._held_marks.append(name)
            else:
                self._instant_mark = self.ticks
                self._send_mark(name)

    def _due_marks(self) -> None:
        held, self._held_marks = self._held_marks, []
        for name in held:
            self._send_mark(name)
        for name in self.playout.due_marks():
            self._send_mark(name)

    def _send_mark(self, name: str) -> None:
        self.marks_sent += 1
        if self._open:
            self._emit(self._dialect.mark(name))

    def _drop(self, reason: str, frames: int) -> None:
        self._dropped[reason] = self._dropped.get(reason, 0) + frames

    def figures(self) -> MediaFigures:
        """What has been carried so far."""
        playout, turns, frame_bytes = self.playout, self.turns, self.linear.frame_bytes
        dropped = {"overrun": playout.overrun_bytes, "clear": playout.cleared_bytes}
        return MediaFigures(
            caller_frames=self._caller_frames,
            caller_frames_dropped=dict(self._dropped),
            app_messages_sent=self._sent,
            app_media_received=self._media_received,
            app_bytes_received=self.bytes_received,
            frames_played=playout.frames_played,
            silence_played=self.silence_played,
            frames_dropped={reason: -(-size // frame_bytes) for reason, size in dropped.items() if size}
            | ({"late": playout.recovered_frames} if playout.recovered_frames else {}),
            underruns=playout.underruns,
            marks_received=self.marks_received,
            marks_sent=self.marks_sent,
            clears=self.clears,
            digits=self.digits,
            ignored=self._ignored | self._dialect.oddities,
            ticks_late=self.ticks_late,
            playout_peak_ms=playout.peak_ms,
            stalls=self.stalls,
            delay_recovered_ms=playout.recovered_frames * FRAME_MS,
            turns=turns.turns,
            unanswered_turns=turns.unanswered,
            interruptions=turns.interruptions,
            barge_ins_ignored=turns.barge_ins_ignored,
            response_ms=turns.responses.figures(),
            barge_in_ms=turns.barge_ins.figures(),
            caller_talk_ms=turns.caller_ticks * FRAME_MS,
            app_talk_ms=turns.app_ticks * FRAME_MS,
            both_talk_ms=turns.both_ticks * FRAME_MS,
        )
