"""What is asked of a load test."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from audiosocket.loadtest.figures import Calls, Left, Limits, Measured, Point
from audiosocket.loadtest.ramp import Capacity, Step

NO_LIMITS = Limits()
RAMP_LIMITS = Limits(max_loss_percent=0.1, max_p99_ms=100.0)
"""Where no others are given: a loss or a delay that callers begin to notice."""


class Mode(StrEnum):
    """What the calls do."""

    STEADY = "steady"
    RAMP = "ramp"
    BURST = "burst"
    SLOW = "slow"
    CHURN = "churn"


@dataclass(frozen=True, slots=True)
class Plan:
    """One load test. Times in seconds."""

    mode: Mode
    calls: int
    """At once; churn: no more than these."""
    seconds: float
    """How long it is measured; ramp: each step."""
    rate: float
    """Calls set up in a second."""
    hold: float = 2.0
    """Churn: how long a call lasts."""
    step: int = 50
    """Ramp: how many calls more each time."""
    utterance: int = 10
    """Burst: seconds of audio that the application sends at once."""
    slow_percent: float = 20.0
    """Slow: of the calls, those whose application stalls."""
    stall: float = 3.0
    """Slow: how long it reads nothing, and how long it reads then."""
    slin: bool = False
    """Frames are PCM16 instead of μ-law."""
    limits: Limits = NO_LIMITS


@dataclass(frozen=True, slots=True)
class Target:
    """The worker."""

    host: str
    port: int
    pid: int | None
    """Its process, where it is known."""
    status: str = ""
    """HOST:PORT of its status endpoint, where there is one."""


@dataclass(slots=True)
class Result:
    """What a load test saw, filled while it runs, so that something is known when it is stopped."""

    measured: list[Measured] = field(default_factory=list)
    """Ramp: one for each step."""
    calls: Calls = field(default_factory=Calls)
    steps: list[Step] = field(default_factory=list)
    capacity: Capacity | None = None
    left: Left | None = None
    dropped: dict[str, int] | None = None
    """Frames that the worker says it dropped, by reason; None: there was no status endpoint to ask."""
    late_ticks: int | None = None
    interrupted: bool = False


class Audience(Protocol):
    """Who is told how far it is."""

    def begins(self, what: str, seconds: float) -> None:
        """Something that takes so long."""

    def point(self, point: Point, seconds: float) -> None:
        """Where it is after so many seconds."""


async def paused(stop: asyncio.Event, seconds: float) -> bool:
    """Waits so long, or until `stop`; whether it was stopped."""
    try:
        async with asyncio.timeout(max(0.0, seconds)):
            await stop.wait()
    except TimeoutError:
        return stop.is_set()
    return True
