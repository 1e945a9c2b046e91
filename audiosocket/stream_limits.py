"""How long a stream may take, and how long its application may be silent. Time is counted in ticks of 20 ms.

Nothing here runs per frame: figures that are kept anyway are looked at once a second, and exactly when a limit may be
reached.
"""

from __future__ import annotations

from audiosocket.callspec import CallSpec, EndReason
from audiosocket.session import Session
from audiosocket.stages import Ending

TICKS_PER_SECOND = 50
LOOK_TICKS = TICKS_PER_SECOND
"""How far apart two looks are at most."""


class StreamLimits:
    """The limits of one stream, which has just been opened.

    - `first_audio_seconds` runs from the stream's start, or from the release of a held caller, to the first frame of
      the application's that is played.
    - `max_silence_seconds` is time in which the application plays nothing and the caller does not talk. The caller's
      talking pauses it; only the application's audio starts it anew. Talk between two looks of which one saw the
      application's audio counts as after that audio: the limit may come up to one look late, never early.
    - `stream_seconds` runs from the stream's start.
    """

    __slots__ = ("_first", "_last", "_limit", "_opened", "_played", "_silence", "_silent", "_spoken", "_talked")

    def __init__(self, spec: CallSpec, session: Session) -> None:
        # An application that only listens is expected to be silent.
        self._first = 0 if spec.one_way else _ticks(spec.first_audio_seconds)
        self._silence = 0 if spec.one_way else _ticks(spec.max_silence_seconds)
        self._limit = _ticks(spec.stream_seconds)
        self._played = session.playout.frames_played
        self._talked = session.turns.caller_ticks
        self._last = session.ticks
        self._silent = 0
        self._spoken = False
        self._opened = session.ticks

    def look(self, session: Session) -> Ending | int:
        """The ending, once a limit is reached; otherwise the ticks (1 at least) until the next look."""
        now = session.ticks
        left = [LOOK_TICKS]
        if self._limit:
            left.append(self._opened + self._limit - now)
            if left[-1] <= 0:
                return Ending(EndReason.STREAM_LIMIT, f"the stream was {_seconds(self._limit)} long")
        if not session.held:
            limit, silent = self._silence_at(session)
            if limit:
                left.append(limit - silent)
                if left[-1] <= 0:
                    what = "silent for" if self._spoken else "no audio within"
                    return Ending(EndReason.APP_SILENT, f"{what} {_seconds(limit)}")
        return min(left)

    def _silence_at(self, session: Session) -> tuple[int, int]:
        """The limit that holds now (0: none), and what of it is used up."""
        now, played, talked = session.ticks, session.playout.frames_played, session.turns.caller_ticks
        if played != self._played:
            self._spoken = True
            self._silent = max(0, session.playout.idle_ticks - (talked - self._talked))
        elif self._spoken:
            # Talk is counted a little behind its time, so that more of it than of time may lie between two looks.
            self._silent = max(0, self._silent + now - self._last - (talked - self._talked))
        self._played, self._talked, self._last = played, talked, now
        return (self._silence, self._silent) if self._spoken else (self._first, now - session.began)


def _ticks(seconds: float) -> int:
    return round(seconds * TICKS_PER_SECOND)


def _seconds(ticks: int) -> str:
    return f"{ticks / TICKS_PER_SECOND:g} s"
