"""A stretch of time under load, looked at once in a while, so that an hour takes no more memory than a minute."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import TypeVar

from audiosocket.loadtest import machine
from audiosocket.loadtest.figures import Frames, Measured, OwnUse, Point, WorkerUse
from audiosocket.loadtest.generator import FRAME_SECONDS, Channel, Generator, Seen, times
from audiosocket.loadtest.plan import Audience, paused
from audiosocket.loadtest.statistics import Times

UNDER_WAY_SECONDS = 1.0
"""How long a frame may take to come back before it counts as lost."""
POINTS_MAX = 600
"""Moments that are kept of a run, however long it is."""
_Value = TypeVar("_Value", int, float)


class WorkerProcess:
    """The worker's process from outside; everything is None when it is not known, or gone."""

    def __init__(self, pid: int | None) -> None:
        self.pid = pid

    def cpu_seconds(self) -> float | None:
        return self._ask(machine.cpu_seconds)

    def rss_mib(self) -> float | None:
        return self._ask(machine.rss_mib)

    def descriptors(self) -> int | None:
        return self._ask(machine.descriptors)

    def _ask(self, ask: Callable[[int], _Value]) -> _Value | None:
        try:
            return None if self.pid is None else ask(self.pid)
        except OSError:
            return None


@dataclass(slots=True)
class _Rate:
    """One channel's playing: a frame that came at its earliest, and a later one."""

    first_at: float
    first: int
    last_at: float
    last: int

    @property
    def frames(self) -> int:
        return self.last - self.first

    @property
    def drift_seconds(self) -> float:
        """How much later than due the last one came."""
        return self.last_at - self.first_at - self.frames * FRAME_SECONDS

    @property
    def error_percent(self) -> float:
        return (self.frames * FRAME_SECONDS / (self.last_at - self.first_at) - 1) * 100


class Measuring:
    """Measures the calls of a generator from its making on."""

    def __init__(self, generator: Generator, pid: int | None, audience: Audience, stop: asyncio.Event) -> None:
        """`pid`: the worker's process, where it is known."""
        self._generator, self._audience, self._stop = generator, audience, stop
        self._worker = WorkerProcess(pid)
        self._before = (self._worker.cpu_seconds(), self._worker.rss_mib(), self._worker.descriptors())
        self._last = self._before
        self._meter = machine.Meter({"own": os.getpid()})
        self._own_rss = machine.rss_mib(os.getpid())
        self._between = machine.Meter({"own": os.getpid()})
        """Since the last look."""
        self._delay, self._gap, self._late = Times(), Times(), Times()
        self._apart_delay, self._apart_gap = Times(), Times()
        self._points: list[Point] = []
        self._ended_before = self._ended(apart=False)
        self._missing_before = self._missing() if generator.channels else None
        self._altered = 0
        self._rates: dict[Channel, _Rate] = {}
        self._watched = [channel for channel in generator.channels if not channel.apart]
        """Whose rate is known in the end; none of calls that come and go."""
        for channel in self._watched:
            channel.take_earliest()
        generator.lateness = times()
        self.seen = generator.watch()
        self._apart = generator.apart
        self._began = self._looked_at = time.perf_counter()

    async def watch(self, seconds: float) -> bool:
        """Looks on for so long; whether it was stopped meanwhile."""
        every = max(1.0, seconds / POINTS_MAX)
        until = self._began + seconds
        stopped = False
        while not stopped and (left := until - time.perf_counter()) > 0:
            # No last moment of a fraction of a second: its percentiles would tell nothing.
            stopped = await paused(self._stop, left if left < 1.5 * every else every)
            self._look(seconds)
        return stopped

    async def result(self, settle: float = UNDER_WAY_SECONDS) -> Measured:
        """Waits for what is under way, and sums up."""
        seconds = time.perf_counter() - self._began
        usage = self._meter.read()
        self._generator.shut()
        self._fold()
        calls = [channel for channel in self._generator.channels if not channel.apart]
        errors = [rate.error_percent for rate in self._rates.values() if rate.frames]
        worker = self._worker_use(seconds)
        await asyncio.sleep(settle)
        self._fold()
        apart = len(self._generator.channels) - len(calls)
        return Measured(
            calls=len(calls),
            seconds=seconds,
            frames=_frames(self.seen, self._delay, self._gap),
            worker=worker,
            own=OwnUse(
                cores=usage.cores["own"],
                late=self._late.spread(),
                others_cores=max(0.0, usage.others - (0.0 if worker is None else worker.cores)),
                stolen_cores=usage.stolen,
                rss_mib=machine.rss_mib(os.getpid()),
                rss_mib_before=self._own_rss,
            ),
            points=self._points,
            delays=self._delay.by_ms(),
            ended_early=self._ended(apart=False) - self._ended_before,
            rate_error_percent=median(errors) if errors else None,
            rate_error_worst_percent=max(errors, key=abs, default=None),
            apart=_frames(self._apart, self._apart_delay, self._apart_gap) if apart else None,
            apart_calls=apart,
            apart_ended=self._ended(apart=True),
        )

    def _look(self, seconds: float) -> None:
        delay, gap, late = self._fold()
        now = time.perf_counter()
        cpu, rss, descriptors = self._worker.cpu_seconds(), self._worker.rss_mib(), self._worker.descriptors()
        cores = None if cpu is None or self._last[0] is None else (cpu - self._last[0]) / (now - self._looked_at)
        one, other = delay.spread(), gap.spread()
        usage, self._between = self._between.read(), machine.Meter({"own": os.getpid()})
        point = Point(
            at=now - self._began,
            calls=sum(channel.open for channel in self._generator.channels),
            p50=None if one is None else one.p50,
            p99=None if one is None else one.p99,
            gap_p99=None if other is None else other.p99,
            altered=self.seen.altered - self._altered,
            missing=None if self._missing_before is None else self._missing() - self._missing_before,
            cores=cores,
            rss_mib=rss,
            descriptors=descriptors,
            drift_ms=self._drift_ms(),
            late_ms=late,
            others_cores=max(0.0, usage.others - (cores or 0.0)) + usage.stolen,
        )
        self._points.append(point)
        self._looked_at, self._altered = now, self.seen.altered
        if cpu is not None:
            self._last = (cpu, rss, descriptors)
        self._audience.point(point, seconds)

    def _drift_ms(self) -> float | None:
        for channel in self._watched:
            found = channel.take_earliest()
            if found is not None:
                rate = self._rates.get(channel)
                if rate is None:
                    self._rates[channel] = _Rate(*found, *found)
                else:
                    rate.last_at, rate.last = found
        drifts = [rate.drift_seconds for rate in self._rates.values() if rate.frames]
        return 1000 * median(drifts) if drifts else None

    def _fold(self) -> tuple[Times, Times, float | None]:
        """Takes what has been seen since the last time into the whole; the same by itself, and how late (ms) our clock
        was."""
        delay, gap = Times(), Times()
        taken = self.seen.take()
        for piece, whole, seconds in ((delay, self._delay, taken[0]), (gap, self._gap, taken[1])):
            piece.add(seconds)
            whole.add(seconds)
        apart_delay, apart_gap = self._apart.take()
        self._apart_delay.add(apart_delay)
        self._apart_gap.add(apart_gap)
        late = self._generator.lateness
        self._late.add(late)
        self._generator.lateness = times()
        return delay, gap, 1000 * max(late) if late else None

    def _worker_use(self, seconds: float) -> WorkerUse | None:
        cpu_before, rss_before, descriptors_before = self._before
        if cpu_before is None or rss_before is None:
            return None
        cpu = self._worker.cpu_seconds()
        if cpu is not None:
            self._last = (cpu, self._worker.rss_mib(), self._worker.descriptors())
        assert self._last[0] is not None
        return WorkerUse(
            cores=(self._last[0] - cpu_before) / seconds,
            rss_mib=self._last[1] or rss_before,
            rss_mib_before=rss_before,
            descriptors=self._last[2],
            descriptors_before=descriptors_before,
            gone=cpu is None,
        )

    def _missing(self) -> int:
        return sum(channel.missing() for channel in self._generator.channels if not channel.apart)

    def _ended(self, *, apart: bool) -> int:
        return sum(channel.ended_by_worker for channel in self._generator.channels if channel.apart is apart)


def _frames(seen: Seen, delay: Times, gap: Times) -> Frames:
    return Frames(
        sent=seen.sent,
        returned=seen.returned,
        altered=seen.altered,
        reordered=seen.reordered,
        silence=seen.silence,
        delay=delay.spread(),
        gap=gap.spread(),
    )
