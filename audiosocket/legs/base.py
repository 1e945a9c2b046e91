"""What a media leg is to the call it carries and to the worker, whichever kind it is."""

from __future__ import annotations

import asyncio
from typing import ClassVar, Protocol

from audiosocket.callspec import DIGITS, MediaFigures
from audiosocket.clock import Clock
from audiosocket.session import Session

MAX_UNSENT_FRAMES = 10
"""Frames for a peer that does not read are dropped beyond 200 ms: late audio is worth less than none."""
BLOCKED_TICKS = 500
"""A peer that takes nothing for 10 s is gone."""


def pressed(digit: str) -> str:
    """The key that Asterisk names, as `DIGITS` has it; empty: it is none."""
    key = digit.upper()
    return key if len(key) == 1 and DIGITS.fullmatch(key) else ""


class MediaLeg(Protocol):
    """One call's audio between Asterisk and this worker. It ticks its session every 20 ms, whatever happens."""

    queue_ticks: ClassVar[int]
    """How long, in the middle, what Asterisk is handed waits there before the caller hears it."""
    leg_uuid: str
    """Empty until it is known."""
    peer: str
    """Asterisk's address, an IP literal."""
    session: Session | None
    """Set by the owner once it knows the call; until then silence is sent."""
    end_reason: str
    """Why the leg ended, an `EndReason`, or `refused`."""
    end_detail: str
    hung_up: bool
    """Whether the peer has said that it hangs up; a connection that ends is not said."""
    closed: asyncio.Future[None]
    """Done when the leg is gone."""

    def hangup(self, reason: str = "leg_closed", detail: str = "") -> None:
        """Ends the leg; harmless when it has ended."""

    def refuse(self, detail: str) -> None:
        """Ends a leg that stands for no call here."""

    def add_figures(self, figures: MediaFigures) -> None:
        """Puts in what only the leg knows."""


class _Timed(Protocol):
    _clock: Clock
    _deadline: asyncio.TimerHandle | None
    """By when it has to be known which leg it is."""
    _ticking: tuple[int, int] | None


def stop_deadline(leg: _Timed) -> None:
    """It is known which leg it is, or not of interest any more."""
    if leg._deadline is not None:
        leg._deadline.cancel()
        leg._deadline = None


def stop_timers(leg: _Timed) -> None:
    """Of a leg that is a connection, and over."""
    stop_deadline(leg)
    if leg._ticking is not None:
        leg._clock.remove(leg._ticking)
        leg._ticking = None


class LegOwner(Protocol):
    """Who is told what happens on a leg. No call may raise."""

    def leg_connected(self, leg: MediaLeg) -> None:
        """A peer has connected; `leg.peer` is its address."""

    def leg_identified(self, leg: MediaLeg, leg_uuid: str) -> None:
        """Which leg it is, is known."""

    def leg_closed(self, leg: MediaLeg) -> None:
        """The leg is gone; `leg.end_reason` and `leg.end_detail` say why. Told exactly once."""
