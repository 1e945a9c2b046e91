"""A stretch of echoed calls against any process that listens for AudioSocket, and what it cost that process."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass

import numpy as np

from audiosocket.loadtest import machine
from audiosocket.loadtest.generator import Generator
from tools.bench.report import Value, spread
from tools.bench.worker import SATURATED, UNDER_WAY_SECONDS, WARM_SECONDS

LATE_MS = 10.0
"""A generator whose clock is so late at its 99th percentile measures itself."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """What was seen. Times in ms."""

    calls: int
    cores: float
    """Processor time per second of the process that is measured."""
    rtt_p50: float | None
    rtt_p99: float | None
    gap_p99: float | None
    sent: int
    lost: int
    altered: int
    closed: int
    """Channels that the other side ended."""
    rss_mib: float
    rss_mib_before: float
    """Before the first call."""
    own_cores: float
    """Of generator and application."""
    own_late_p99: float
    """How late the generator's clock woke up."""
    others: float
    stolen: float

    @property
    def percent_a_call(self) -> float:
        """% of one core, per call."""
        return 100 * self.cores / self.calls

    @property
    def loss_percent(self) -> float:
        return 100 * self.lost / self.sent if self.sent else 0.0

    @property
    def kib_a_call(self) -> float:
        """Memory that a call has added."""
        return 1024 * (self.rss_mib - self.rss_mib_before) / self.calls

    def doubts(self) -> list[str]:
        """Why its figures may not be those of the process that was measured."""
        found = []
        if self.own_cores > SATURATED or self.own_late_p99 > LATE_MS:
            found.append(
                f"the generator took {self.own_cores:.2f} of its core, and was {self.own_late_p99:.0f} ms late at p99:"
                " times and loss are its own too"
            )
        return found


async def echoed(generator: Generator, pid: int, calls: int, seconds: float) -> Stretch:
    """Set `calls` up on a generator that has none, let them speak, and watch for `seconds`. Hangs nothing up.

    Raises OSError when a call is not taken, or the process is gone."""
    before = machine.rss_mib(pid)
    await generator.start(calls)
    await asyncio.sleep(WARM_SECONDS)
    seen = generator.watch()
    generator.lateness = type(generator.lateness)("d")
    meter = machine.Meter({"measured": pid, "own": os.getpid()})
    await asyncio.sleep(seconds)
    usage = meter.read()
    late = np.array(generator.lateness) * 1000
    rss = machine.rss_mib(pid)
    generator.quieten()
    await asyncio.sleep(UNDER_WAY_SECONDS)
    rtt50, rtt99 = spread([trip * 1000 for trip in seen.round_trips], 50, 99)
    (gap99,) = spread([gap * 1000 for gap in seen.gaps], 99)
    return Stretch(
        calls=calls,
        cores=usage.cores["measured"],
        rtt_p50=rtt50,
        rtt_p99=rtt99,
        gap_p99=gap99,
        sent=seen.sent,
        lost=max(0, seen.sent - seen.returned - seen.altered),
        altered=seen.altered,
        closed=seen.closed,
        rss_mib=rss,
        rss_mib_before=before,
        own_cores=usage.cores["own"],
        own_late_p99=spread(late, 99)[0] or 0.0,
        others=usage.others,
        stolen=usage.stolen,
    )


def cells(stretch: Stretch) -> tuple[Value, ...]:
    """The figures that tables show, as `COLUMNS` names them."""
    return (
        stretch.cores,
        stretch.percent_a_call,
        stretch.rtt_p50,
        stretch.rtt_p99,
        stretch.gap_p99,
        stretch.sent,
        stretch.lost,
        stretch.altered,
        stretch.rss_mib,
        stretch.kib_a_call,
        stretch.own_cores,
        stretch.others + stretch.stolen,
    )


COLUMNS = (
    "cores",
    "% a call",
    "RTT p50",
    "p99 ms",
    "gap p99",
    "sent",
    "lost",
    "altered",
    "MiB",
    "KiB a call",
    "generator",
    "others",
)
"""% of one core; times in ms; processor time of generator and others (stolen included) in cores."""
