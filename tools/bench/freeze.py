"""A media worker that is stopped and continued under echo calls: how long the calls stay late, and what is lost."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import numpy as np

from audiosocket.loadtest import machine
from audiosocket.loadtest.applications import Echo, serve
from audiosocket.loadtest.generator import Generator, Seen
from audiosocket.loadtest.standalone import StandaloneWorker, difference
from tools.bench.options import Options
from tools.bench.report import Outcome, Table, Value, spread

CALLS = 20
FREEZES = 3
FREEZE_SECONDS = 0.3
BETWEEN_SECONDS = 0.5
WARM_SECONDS = 3.0
BEFORE_SECONDS = 2.0
AFTER_SECONDS = 4.0
SLICE_SECONDS = 0.25
NORMAL_MS = (10.0, 30.0)
"""Half a frame, and a frame and a half: how far the median of a round trip may stay above the one before."""
UNDER_WAY_SECONDS = 1.0


def limit_seconds(options: Options) -> float:
    """The longest that it may take."""
    return 60 + sum(options.calls or (CALLS,)) / 20


async def run(options: Options) -> Outcome:
    """Freeze a worker three times and watch it recover."""
    calls = (options.calls or (CALLS,))[0]
    cores = machine.two_cores()
    async with serve(Echo) as url:
        worker = StandaloneWorker(options.folder / "freeze", url, calls, cores[0] if cores else None)
        await worker.start()
        generator = Generator(worker.port)
        try:
            await generator.start(calls)
            await asyncio.sleep(WARM_SECONDS)
            before = await worker.counters()
            seen = generator.watch()
            meter = machine.Meter({"worker": worker.pid, "generator": os.getpid()})
            began = time.perf_counter()
            await asyncio.sleep(BEFORE_SECONDS)
            first_freeze = time.perf_counter()
            for number in range(FREEZES):
                if number:
                    await asyncio.sleep(BETWEEN_SECONDS)
                await _freeze(worker.pid)
            thawed = time.perf_counter()
            await asyncio.sleep(AFTER_SECONDS + SLICE_SECONDS)
            usage = meter.read()
            generator.quieten()
            await asyncio.sleep(UNDER_WAY_SECONDS)
            after = await worker.counters()
        finally:
            generator.stop()
            await worker.stop()
    normal, slices = _recovery(seen, began, first_freeze, thawed)
    rows: list[tuple[Value, ...]] = [("before", *normal)]
    rows += [(f"{index * SLICE_SECONDS:.2f} s after", *figures) for index, figures in enumerate(slices)]
    lost: list[tuple[Value, ...]] = [
        *(
            (f"p50 within {above:g} ms of the one before, for good, after, s", _back_after(normal[0], slices, above))
            for above in NORMAL_MS
        ),
        ("frames sent", seen.sent),
        ("came back unaltered", seen.returned),
        ("came back altered (two merged into one)", seen.altered),
        ("did not come back", seen.sent - seen.returned - seen.altered),
        *(
            (f"dropped by the worker: {reason}", count)
            for reason, count in difference(before, after, "media_frames_dropped").items()
        ),
        ("late ticks", int(after["playout_late_ticks"] - before["playout_late_ticks"])),
        ("underruns", int(after["playout_underruns"] - before["playout_underruns"])),
        ("channels closed by the worker", seen.closed),
        ("cores used by other processes", usage.others),
        ("cores stolen by the hypervisor", usage.stolen),
    ]
    what = (
        f"{calls} echo calls; the worker is stopped {FREEZES} times for {FREEZE_SECONDS * 1000:g} ms,"
        f" {BETWEEN_SECONDS * 1000:g} ms apart"
    )
    notes = [
        "dropped rx_*: caller to application, tx_*: application to caller; the callers speak without a pause, the"
        " hardest case: nothing can be cut from silence",
    ]
    columns = ("time", "RTT p50 ms", "RTT p95 ms", "frames")
    return Outcome(what, [Table("round trip", columns, rows), Table("frames", ("what", "value"), lost)], notes)


async def _freeze(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    try:
        await asyncio.sleep(FREEZE_SECONDS)
    finally:
        os.kill(pid, signal.SIGCONT)


Figures = tuple[float | None, float | None, int]


def _recovery(seen: Seen, began: float, first_freeze: float, thawed: float) -> tuple[Figures, list[Figures]]:
    """Round trips before the freezes, and in each slice after the last one, by the time of their end."""
    arrived, trips = np.array(seen.arrived), np.array(seen.round_trips) * 1000

    def between(start: float, end: float) -> Figures:
        chosen = trips[(arrived >= start) & (arrived < end)]
        p50, p95 = spread(chosen, 50, 95)
        return p50, p95, len(chosen)

    normal = between(began, first_freeze)
    count = round(AFTER_SECONDS / SLICE_SECONDS)
    slices = [between(thawed + i * SLICE_SECONDS, thawed + (i + 1) * SLICE_SECONDS) for i in range(count)]
    return normal, slices


def _back_after(normal: float | None, slices: list[Figures], above_ms: float) -> float | None:
    """Seconds after which the median stays within `above_ms` of `normal`; None: not in what was seen."""
    back_after = None
    for index in reversed(range(len(slices))):
        p50 = slices[index][0]
        if normal is None or p50 is None or p50 > normal + above_ms:
            break
        back_after = index * SLICE_SECONDS
    return back_after
