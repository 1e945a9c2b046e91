"""Minutes of application audio without a pause: does the worker play exactly 50 frames a second, evenly?"""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass

import numpy as np

from audiosocket.loadtest import machine
from audiosocket.loadtest.applications import BURST_SECONDS, LEAD_SECONDS, Talker, serve
from audiosocket.loadtest.generator import Generator
from audiosocket.loadtest.standalone import StandaloneWorker, difference
from tools.bench.options import Options
from tools.bench.reference_clock import Pauses, ReferenceClock
from tools.bench.report import Outcome, Table, Value, spread

CALLS = 20
MINUTES = 10.0
WARM_SECONDS = 3.0
FRAME_SECONDS = 0.02


def limit_seconds(options: Options) -> float:
    """The longest that it may take."""
    return (options.minutes or MINUTES) * 60 + 60


@dataclass(slots=True)
class _Line:
    """One channel's playing, from one marked frame to a later one."""

    first_at: float
    first: int
    last_at: float
    last: int

    @property
    def error_percent(self) -> float:
        """How much faster (+) or slower (-) than 50 frames a second, by our clock."""
        return ((self.last - self.first) * FRAME_SECONDS / (self.last_at - self.first_at) - 1) * 100


async def run(options: Options) -> Outcome:
    """Play, and compare frames with elapsed time."""
    calls = (options.calls or (CALLS,))[0]
    seconds = (options.minutes or MINUTES) * 60
    cores = machine.two_cores()
    folder = options.folder / "rate_accuracy"
    talkers: list[Talker] = []

    def talker() -> Talker:
        talkers.append(Talker())
        return talkers[-1]

    async with serve(talker) as url:
        worker = StandaloneWorker(folder, url, calls, cores[0] if cores else None)
        await worker.start()
        clock = ReferenceClock(folder, cores[0] if cores else None)
        generator = Generator(worker.port)
        try:
            await generator.start(calls)
            await asyncio.sleep(WARM_SECONDS)
            async with asyncio.TaskGroup() as tasks:
                numbers = {channel.leg_uuid.hex: number for number, channel in enumerate(generator.channels)}
                speaking = [tasks.create_task(_speak(each, numbers[each.call_sid])) for each in talkers]
                await asyncio.sleep(WARM_SECONDS)
                await clock.start()
                before = await worker.counters()
                seen = generator.watch()
                meter = machine.Meter({"worker": worker.pid, "generator": os.getpid()})
                began = time.perf_counter()
                starts = [channel.position() for channel in generator.channels]
                await asyncio.sleep(seconds)
                ends = [channel.position() for channel in generator.channels]
                elapsed = time.perf_counter() - began
                usage = meter.read()
                gaps = np.array(seen.gaps) * 1000
                played = len(seen.arrived)
                counts = (seen.silence, seen.altered, seen.reordered, seen.closed)
                after = await worker.counters()
                await clock.stop()
                for task in speaking:
                    task.cancel()
        finally:
            generator.stop()
            await worker.stop()
            await clock.stop()
    lines = [
        _Line(first_at, first, last_at, last)
        for (first_at, first), (last_at, last) in zip(starts, ends, strict=True)
        if last > first >= 0
    ]
    silence, altered, reordered, closed = counts
    pauses = clock.pauses()
    errors = [line.error_percent for line in lines]
    p50, p99, p999 = spread(gaps, 50, 99, 99.9)
    rows: list[tuple[Value, ...]] = [
        ("channels that played", len(lines)),
        ("seconds", elapsed),
        ("frames due (50 a second, all channels)", round(len(lines) * elapsed / FRAME_SECONDS)),
        ("frames played", played),
        ("frames missing between the first and the last", sum(line.last - line.first for line in lines) - played),
        ("error of the rate, median, %", float(np.median(errors)) if errors else None),
        ("error of the rate, worst channel, %", max(errors, key=abs, default=None)),
        ("gap p50, ms", p50),
        ("gap p99, ms", p99),
        ("gap p99.9, ms", p999),
        ("gap max, ms", float(gaps.max(initial=0.0))),
        ("gaps over 40 ms", int((gaps > 40).sum())),
        ("frames of silence in between", silence),
        ("altered", altered),
        ("out of order or twice", reordered),
        ("late ticks", int(after["playout_late_ticks"] - before["playout_late_ticks"])),
        *((f"underruns: {reason}", count) for reason, count in difference(before, after, "playout_underruns").items()),
        ("channels closed by the worker", closed),
        ("worker, % of a core per call", usage.cores["worker"] * 100 / calls),
        *_noise(pauses, usage),
    ]
    what = f"{seconds / 60:g} minutes of application audio without a pause on {calls} channels"
    notes = [
        f"the application is {LEAD_SECONDS - BURST_SECONDS} to {LEAD_SECONDS} s ahead, in bursts of {BURST_SECONDS} s",
        "a gap or late tick in the company of a pause of the machine is the machine's, not the worker's",
    ]
    if not pauses.ahead_of_all:
        notes.append("the reference clock may not run ahead of other processes here: it counts their turns as pauses")
    return Outcome(what, [Table("rate", ("what", "value"), rows)], notes)


async def _speak(talker: Talker, number: int) -> None:
    talker.burst(number, LEAD_SECONDS)
    while True:
        await asyncio.sleep(BURST_SECONDS)
        talker.burst(number, BURST_SECONDS)


def _noise(pauses: Pauses, usage: machine.Usage) -> list[tuple[Value, ...]]:
    return [
        ("pauses of the machine over 5 ms", pauses.count),
        ("longest pause, ms", pauses.longest_ms),
        ("all pauses together, ms", pauses.total_ms),
        ("cores used by other processes", usage.others),
        ("cores stolen by the hypervisor", usage.stolen),
    ]
