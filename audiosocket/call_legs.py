"""The media legs of one call, one after the other: a lost leg is held for a while, and another takes its place.

While there is no leg the session's ticks go on, on the worker's clock: audio of the application that falls into the gap
is dropped as its time passes, marks return in their order, and limits, figures and the recording stay in step.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

from audiosocket.callspec import CallSpec, MediaFigures
from audiosocket.clock import Clock
from audiosocket.legs.base import MediaLeg
from audiosocket.lost_leg import LostLeg
from audiosocket.session import Session

SAID_SO = "the controller said so"


class CallLegs:
    """See the module's text. `gone` is done when the last leg has gone for good; `end_reason` and `end_detail` then say
    why."""

    def __init__(
        self,
        leg: MediaLeg,
        spec: CallSpec,
        clock: Clock,
        reachable: Callable[[], bool],
        lost: Callable[[], None],
        note: Callable[[str, dict[str, Any]], None],
    ) -> None:
        """`lost` tells the controller that a leg is wanted, `reachable` whether it can be told; `note` adds to the
        call's story."""
        self._clock = clock
        self._reachable = reachable
        self._lost = lost
        self._note = note
        self._lost_leg = LostLeg(spec)
        self._session: Session | None = None
        self._past: list[MediaLeg] = []
        self._ticking: tuple[int, int] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.leg = leg
        """The one that is there, or was there last."""
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.end_reason = "leg_closed"
        self.end_detail = ""
        leg.closed.add_done_callback(partial(self._closed, leg))

    @property
    def number(self) -> int:
        """Of the leg that is there, or was there last."""
        return self._lost_leg.number

    @property
    def held(self) -> bool:
        """Whether there is no leg, and one is waited for."""
        return self._lost_leg.held

    def carry(self, session: Session) -> None:
        """From now on there is something to carry."""
        self._session = session
        self.leg.session = session

    def attach(self, leg: MediaLeg, spec: CallSpec) -> str:
        """A further leg of the call, with the spec that it stands for. Returns why it is refused, or nothing."""
        session = self._session
        if session is None or self.gone.done():
            return "not_held"
        if why := self._lost_leg.refuses(spec):
            return why
        before, self.leg = self.leg, leg
        self._past.append(before)
        before.session = None
        before.hangup("leg_closed", "another leg has taken its place")
        self._stop_holding()
        gap_ms = self._lost_leg.replace(spec, session.ticks, session)
        self._note("leg_replaced", {"reason": before.end_reason, "detail": before.end_detail, "gap_ms": gap_ms})
        leg.session = session
        leg.closed.add_done_callback(partial(self._closed, leg))
        return ""

    def lose(self, number: int) -> None:
        """Asterisk's end of leg `number` is gone, which this end may not see."""
        if self.gone.done():
            return
        if self.held:
            self._lost()  # it may have missed it
            return
        if number < self.number:
            return
        self.leg.hangup("leg_closed", "Asterisk's end of it is gone")
        self._lose(self.leg)  # not when it is closed: with a peer that does not read that may take long

    def end(self) -> None:
        """The controller ends the call."""
        self._finish("leg_closed", SAID_SO)
        self.leg.hangup("leg_closed", SAID_SO)

    def close(self) -> None:
        """The call is over."""
        self._finish(self.leg.end_reason, self.leg.end_detail)
        self.leg.hangup(self.leg.end_reason, self.leg.end_detail)
        self.leg.session = None

    def let_go(self) -> None:
        """All is over: nobody is told anything any more."""
        self._session = None
        del self._lost, self._note, self._reachable

    def add_figures(self, figures: MediaFigures) -> None:
        """Puts in what only the legs know."""
        if self._session is not None:
            self._lost_leg.add_figures(figures, self._session)
        self.leg.add_figures(figures)
        for leg in self._past:
            added = MediaFigures()
            leg.add_figures(added)
            figures.caller_frames += added.caller_frames
            figures.caller_frames_lost += added.caller_frames_lost
            for into, more in (
                (figures.caller_frames_dropped, added.caller_frames_dropped),
                (figures.frames_dropped, added.frames_dropped),
            ):
                for reason, count in more.items():
                    into[reason] = into.get(reason, 0) + count

    # Inside

    def _closed(self, leg: MediaLeg, _closed: asyncio.Future[None]) -> None:
        if leg is self.leg and not self.held and not self.gone.done():
            self._lose(leg)

    def _lose(self, leg: MediaLeg) -> None:
        session = self._session
        if session is None or not self._lost_leg.holds(
            leg.end_reason, hung_up=leg.hung_up, reachable=self._reachable()
        ):
            self._finish(leg.end_reason, leg.end_detail)
            return
        leg.session = None
        self._lost_leg.lose(session.ticks, session)
        self._ticking = self._clock.add(partial(self._tick, session))
        self._timer = asyncio.get_running_loop().call_later(self._lost_leg.seconds, self._expired)
        self._lost()

    def _tick(self, session: Session, missed: int) -> None:
        session.tick(missed)
        if session.recorder is not None:
            session.recorder.unsent()

    def _expired(self) -> None:
        reason, detail = self.leg.end_reason, self.leg.end_detail
        self._note("leg_not_replaced", {"reason": reason, "detail": detail, "seconds": self._lost_leg.seconds})
        self._finish(reason, detail)

    def _finish(self, reason: str, detail: str) -> None:
        self._stop_holding()
        if not self.gone.done():
            self.end_reason, self.end_detail = reason, detail
            self.gone.set_result(None)

    def _stop_holding(self) -> None:
        if self._ticking is not None:
            self._clock.remove(self._ticking)
            self._ticking = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
