"""What becomes of a call whose media leg is lost: whether it is held, which leg may take its place, what is missing.

A leg is *lost* when it goes and nobody has ended the call: Asterisk's connection breaks, what comes on it cannot be
read, or it carries nothing any more. The end of a call looks just the same on the wire, but the controller tells of
that by itself. So a call whose leg is lost is held until it says so, until another leg comes, or the time is over.

Legs of a call are numbered from 0. One takes the place of any with a lower number, so that a connection that comes late
replaces nothing. Time is the session's, in ticks of 20 ms: they go on while there is no leg.
"""

from __future__ import annotations

from audiosocket.callspec import CallSpec, MediaFigures
from audiosocket.carried import Carried
from audiosocket.wire import FRAME_MS

_LOST = frozenset({"leg_closed", "leg_protocol_error", "leg_silent"})
"""Endings of a leg that are no ending of its call."""


class LostLeg:
    """The losses of one call. Figures only grow."""

    __slots__ = (
        "_app",
        "_base",
        "_format",
        "_prompt",
        "_silence",
        "_since",
        "gap_ticks",
        "number",
        "replaced",
        "seconds",
    )

    def __init__(self, spec: CallSpec) -> None:
        self.seconds = spec.leg_hold_seconds
        self._format = spec.media_format
        self._since = 0
        self._base: tuple[int, int, int] | None = None  # what had been played when the leg went
        self._app = self._prompt = self._silence = 0  # frames that were played to nobody, in gaps that are over
        self.number = spec.leg_number
        """Of the leg that is there, or was there last."""
        self.replaced = 0
        self.gap_ticks = 0
        """Ticks without a leg before another one came."""

    @property
    def held(self) -> bool:
        """Whether the call has no leg, and waits for one."""
        return self._base is not None

    def holds(self, reason: str, *, hung_up: bool, reachable: bool) -> bool:
        """Whether a leg that ended for `reason` is waited for. `hung_up`: its peer has said that it hangs up;
        `reachable`: a controller can be told, and can answer."""
        return self.seconds > 0 and reachable and not hung_up and reason in _LOST

    def lose(self, tick: int, session: Carried) -> None:
        """The leg is gone, the call is held."""
        self._since = tick
        self._base = _played(session)

    def refuses(self, spec: CallSpec) -> str:
        """Why a further leg is none of this call's; empty: it takes the place of the one before."""
        if spec.leg_number <= self.number:
            return "stale"
        return "" if spec.media_format is self._format else "other_format"

    def replace(self, spec: CallSpec, tick: int, session: Carried) -> int:
        """Another leg is there. Returns the gap before it, in ms."""
        self.number = spec.leg_number
        self.replaced += 1
        gap = 0
        if self._base is not None:
            gap = tick - self._since
            self.gap_ticks += gap
            self._app, self._prompt, self._silence = self._unheard(session)
            self._base = None
        return gap * FRAME_MS

    def add_figures(self, figures: MediaFigures, session: Carried) -> None:
        """Puts in what was lost. What was played into a gap has not reached Asterisk."""
        app, prompt, silence = self._unheard(session)
        figures.legs_replaced = self.replaced
        figures.leg_gap_ms = self.gap_ticks * FRAME_MS
        figures.frames_played -= app
        figures.prompt_played -= prompt
        figures.silence_played -= silence
        if app:
            figures.frames_dropped["leg_lost"] = app

    def _unheard(self, session: Carried) -> tuple[int, int, int]:
        """Frames of application, prompt and silence that were played to nobody up to now."""
        if self._base is None:
            return self._app, self._prompt, self._silence
        app, prompt, silence = (now - before for now, before in zip(_played(session), self._base, strict=True))
        return self._app + app, self._prompt + prompt, self._silence + silence


def _played(session: Carried) -> tuple[int, int, int]:
    return session.playout.frames_played, session.prompt_played, session.silence_played
