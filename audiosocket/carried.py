"""What a session has carried: its counters, and the figures made of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from audiosocket.callspec import MediaFigures
from audiosocket.compiled import FRAMES
from audiosocket.dialects.base import Dialect
from audiosocket.playout import Playout
from audiosocket.turns import Turns
from audiosocket.wire import FRAME_MS, Linear

if TYPE_CHECKING or FRAMES is None:

    class SessionState:
        """What a session reads and writes for every frame, where nothing is compiled."""

        __slots__ = (
            "_app_samples",
            "_caller_frames",
            "_convert",
            "_filled_frames",
            "_filled_tick",
            "_flowing",
            "_frame_bytes",
            "_gap_ticks",
            "_header",
            "_held_marks",
            "_media",
            "_media_received",
            "_open",
            "_owed",
            "_prompt",
            "_rest",
            "_samples",
            "_send",
            "_sent",
            "_silence_frame",
            "_stall_frames",
            "_stall_tick",
            "_usual_sid",
            "app_blocked",
            "bytes_received",
            "first_audio",
            "held",
            "playout",
            "recorder",
            "silence_played",
            "stalls",
            "ticks",
            "ticks_late",
            "turns",
        )

else:
    SessionState = FRAMES.Session


class Carried(SessionState):
    """The counting part of a session. Counters only grow."""

    __slots__ = (
        "_dialect",
        "_dropped",
        "_ended_bytes",
        "_ignored",
        "clears",
        "digits",
        "linear",
        "marks_received",
        "marks_sent",
        "prompt_played",
    )

    def __init__(self, dialect: Dialect, playout: Playout, turns: Turns, linear: Linear) -> None:
        self._dialect = dialect
        self.playout = playout
        self.turns = turns
        self.linear = linear
        self._caller_frames = 0
        self._dropped: dict[str, int] = {}
        self._ended_bytes = 0  # dropped with their stream
        self._ignored: dict[str, int] = {}
        self._media_received = 0
        self._sent = 0
        self.bytes_received = 0
        self.clears = 0
        self.digits = 0
        self.marks_received = 0
        self.marks_sent = 0
        self.prompt_played = 0
        self.silence_played = 0
        self.stalls = 0
        self.ticks_late = 0

    def ignore(self, reason: str, count: int = 1) -> None:
        """Counts messages that ask for nothing."""
        self._ignored[reason] = self._ignored.get(reason, 0) + count

    def _drop(self, reason: str, frames: int) -> None:
        self._dropped[reason] = self._dropped.get(reason, 0) + frames

    def figures(self) -> MediaFigures:
        """What has been carried so far."""
        figures = self.counters()
        figures.playout_peak_ms = self.playout.peak_ms
        figures.response_ms = self.turns.responses.figures()
        figures.barge_in_ms = self.turns.barge_ins.figures()
        return figures

    def counters(self) -> MediaFigures:
        """The same without what cannot be added up over calls: the peak, and the times of replies."""
        playout, turns, frame_bytes = self.playout, self.turns, self.linear.frame_bytes
        dropped = {
            "overrun": playout.overrun_bytes,
            "clear": playout.cleared_bytes - self._ended_bytes,
            "stream_ended": self._ended_bytes,
        }
        oddities = self._dialect.oddities
        ignored = self._ignored | {reason: self._ignored.get(reason, 0) + count for reason, count in oddities.items()}
        return MediaFigures(
            caller_frames=self._caller_frames,
            caller_frames_dropped=dict(self._dropped),
            app_messages_sent=self._sent,
            app_media_received=self._media_received,
            app_bytes_received=self.bytes_received,
            frames_played=playout.frames_played,
            silence_played=self.silence_played,
            prompt_played=self.prompt_played,
            frames_dropped={reason: -(-size // frame_bytes) for reason, size in dropped.items() if size}
            | ({"late": playout.recovered_frames} if playout.recovered_frames else {}),
            underruns=playout.underruns,
            underruns_stall=playout.stall_underruns,
            marks_received=self.marks_received,
            marks_sent=self.marks_sent,
            clears=self.clears,
            digits=self.digits,
            ignored=ignored,
            ticks_late=self.ticks_late,
            stalls=self.stalls,
            delay_recovered_ms=playout.recovered_frames * FRAME_MS,
            turns=turns.turns,
            unanswered_turns=turns.unanswered,
            interruptions=turns.interruptions,
            barge_ins_ignored=turns.barge_ins_ignored,
            caller_talk_ms=turns.caller_ticks * FRAME_MS,
            app_talk_ms=turns.app_ticks * FRAME_MS,
            both_talk_ms=turns.both_ticks * FRAME_MS,
        )
