"""Many calls on one media worker, which has a core for itself; the generator and the application have the other one."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

from audiosocket.loadtest import machine
from audiosocket.loadtest.applications import Echo, serve
from audiosocket.loadtest.generator import Generator
from audiosocket.loadtest.standalone import StandaloneWorker, difference
from tools.bench.options import Options
from tools.bench.reference_clock import ReferenceClock
from tools.bench.report import Outcome, Table, Value, spread

CALLS = (100, 300, 500)
SECONDS = 20.0
WARM_SECONDS = 3.0
UNDER_WAY_SECONDS = 1.0
"""How long a frame may take to come back before it counts as lost."""
SATURATED = 0.9
"""Cores: a process of one thread that uses more than this has no time left."""
OTHERS = 0.1
"""Cores: from here on other processes are in the way."""

_COLUMNS = (
    "calls",
    "worker cores",
    "% of a core per call",
    "RTT p50 ms",
    "RTT p99 ms",
    "gap p99 ms",
    "gap p99.9 ms",
    "frames sent",
    "lost",
    "altered",
    "reordered",
    "late ticks",
    "RSS MiB",
    "generator cores",
    "others' cores",
    "stolen cores",
    "pauses over 5 ms",
)


def limit_seconds(options: Options) -> float:
    """The longest that it may take."""
    return len(options.calls or CALLS) * ((options.seconds or SECONDS) + 45)


async def run(options: Options) -> Outcome:
    """Measure each number of calls, one after the other, each on a new worker."""
    seconds = options.seconds or SECONDS
    cores = machine.two_cores()
    rows, notes = [], []
    for calls in options.calls or CALLS:
        folder = options.folder / "worker"
        row = await measure(calls, seconds, cores, folder, folder / f"{calls}.prof" if options.profile else None)
        rows.append(tuple(row[column] for column in _COLUMNS))
        generator = row["generator cores"]
        if isinstance(generator, float) and generator > SATURATED:
            notes.append(
                f"{calls} calls: the generator had no time left; RTT, gaps and loss are its own, not the worker's"
            )
        others = row["others' cores"]
        if isinstance(others, float) and others > OTHERS:
            notes.append(f"{calls} calls: other processes took {others:.2f} cores: this row shows their load as well")
        if row["channels closed"]:
            notes.append(f"{calls} calls: the worker closed {row['channels closed']} channels, see worker.log")
        if row["dropped"]:
            notes.append(f"{calls} calls: frames dropped by the worker: {row['dropped']}")
    if cores is None:
        notes.append("one core only: worker and generator disturbed each other")
    if options.profile:
        notes.append("the worker ran under cProfile, which makes it several times slower: read only the .prof files")
    what = f"{seconds:g} s of echoed calls, 20 ms frames, μ-law in, on one worker pinned to a core"
    return Outcome(what, [Table("worker", _COLUMNS, rows)], notes)


async def measure(
    calls: int, seconds: float, cores: tuple[int, int] | None, folder: Path, profile: Path | None = None
) -> dict[str, Value]:
    """One number of calls, by a name for each figure. `cores`: the worker's, and the generator's."""
    own_core = machine.pinned(cores[1]) if cores else contextlib.nullcontext()
    async with serve(Echo) as url:
        worker = StandaloneWorker(folder, url, calls, cores[0] if cores else None, profile)
        await worker.start()
        clock = ReferenceClock(folder, cores[0] if cores else None)
        generator = Generator(worker.port)
        try:
            with own_core, machine.no_garbage_collection():
                await generator.start(calls)
                await asyncio.sleep(WARM_SECONDS)
                await clock.start()
                before = await worker.counters()
                seen = generator.watch()
                meter = machine.Meter({"worker": worker.pid, "generator": os.getpid()})
                await asyncio.sleep(seconds)
                usage = meter.read()
                rss = machine.rss_mib(worker.pid)
                generator.quieten()
                await asyncio.sleep(UNDER_WAY_SECONDS)
                after = await worker.counters()
                await clock.stop()
        finally:
            generator.stop()
            await worker.stop()
            await clock.stop()
    pauses = clock.pauses()
    dropped = difference(before, after, "media_frames_dropped")
    rtt50, rtt99 = spread([trip * 1000 for trip in seen.round_trips], 50, 99)
    gap99, gap999 = spread([gap * 1000 for gap in seen.gaps], 99, 99.9)
    return {
        "calls": calls,
        "worker cores": usage.cores["worker"],
        "% of a core per call": usage.cores["worker"] * 100 / calls,
        "RTT p50 ms": rtt50,
        "RTT p99 ms": rtt99,
        "gap p99 ms": gap99,
        "gap p99.9 ms": gap999,
        "frames sent": seen.sent,
        "lost": seen.sent - seen.returned,
        "altered": seen.altered,
        "reordered": seen.reordered,
        "late ticks": int(after["playout_late_ticks"] - before["playout_late_ticks"]),
        "RSS MiB": rss,
        "generator cores": usage.cores["generator"],
        "others' cores": usage.others,
        "stolen cores": usage.stolen,
        "pauses over 5 ms": pauses.count,
        "channels closed": seen.closed,
        "dropped": ", ".join(f"{count} {reason}" for reason, count in dropped.items()),
    }
