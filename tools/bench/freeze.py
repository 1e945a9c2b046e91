"""A media worker that is stopped and continued under echo calls: how long the calls stay late, and what is lost."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Sequence

import numpy as np

from audiosocket.loadtest import machine
from audiosocket.loadtest.applications import Echo, serve
from audiosocket.loadtest.generator import Channel, Generator, Seen, times
from audiosocket.loadtest.standalone import StandaloneWorker, difference
from tools.bench.options import Options
from tools.bench.reference_clock import ReferenceClock
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
BACK_WITHIN_SECONDS = 2.0
"""What is promised of every call."""
CALM_MS = 45.0
"""Two ticks and a little: calls whose median is above it before the first freeze are late already."""
CALM_WITHIN_SECONDS = 20.0


def limit_seconds(options: Options) -> float:
    """The longest that it may take."""
    return 110 + (options.calls or (CALLS,))[0] / 20


async def run(options: Options) -> Outcome:
    """Freeze a worker three times and watch it recover."""
    calls = (options.calls or (CALLS,))[0]
    cores = machine.two_cores()
    folder = options.folder / "freeze"
    own_core = machine.pinned(cores[1]) if cores else contextlib.nullcontext()
    machine.allow_descriptors(2 * calls + 200)
    async with serve(Echo) as url:
        worker = StandaloneWorker(folder, url, calls, cores[0] if cores else None)
        await worker.start()
        clock = ReferenceClock(folder, cores[0] if cores else None)
        generator = Generator(worker.port)
        try:
            with own_core, machine.no_garbage_collection():
                await generator.start(calls)
                await asyncio.sleep(WARM_SECONDS)
                await _calm(generator)
                await clock.start()
                before = await worker.counters()
                generator.watch()
                each = [_apart(channel) for channel in generator.channels]
                generator.lateness = times()
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
                late_ms = 1000 * max(generator.lateness)
                generator.quieten()
                await asyncio.sleep(UNDER_WAY_SECONDS)
                after = await worker.counters()
                await clock.stop()
        finally:
            generator.stop()
            await worker.stop()
            await clock.stop()
    seen = _together(each)
    seen.sent = generator.seen.sent
    normal, slices = _recovery(seen, began, first_freeze, thawed)
    recoveries = [_recovery(one, began, first_freeze, thawed) for one in each]
    worst = [_worst(each, thawed + index * SLICE_SECONDS) for index in range(len(slices))]
    rows: list[tuple[Value, ...]] = [("before", normal[0], normal[1], None, normal[2])]
    rows += [
        (f"{index * SLICE_SECONDS:.2f} s after", p50, p95, worst[index], count)
        for index, (p50, p95, count) in enumerate(slices)
    ]
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
        *((f"underruns: {reason}", count) for reason, count in difference(before, after, "playout_underruns").items()),
        ("channels closed by the worker", seen.closed),
        ("generator, cores", usage.cores["generator"]),
        ("generator's own clock, latest, ms", late_ms),
        ("pauses of the machine over 5 ms", clock.pauses().count),
        ("longest pause, ms", clock.pauses().longest_ms),
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
        f"a call is back when its own median of each quarter of a second stays within {NORMAL_MS[-1]:g} ms of its"
        f" median before, or of {CALM_MS:g} ms where it was late before",
    ]
    columns = ("time", "RTT p50 ms", "RTT p95 ms", "worst call's p50", "frames")
    tables = [
        Table("round trip", columns, rows),
        Table("each call by itself", ("what", "value"), _calls(recoveries)),
        Table("frames", ("what", "value"), lost),
    ]
    return Outcome(what, tables, notes)


async def _calm(generator: Generator) -> None:
    """Waits until what the setting up of so many calls has left behind is gone, or a while."""
    deadline = time.monotonic() + CALM_WITHIN_SECONDS
    while time.monotonic() < deadline:
        seen = generator.watch()
        await asyncio.sleep(1.0)
        if seen.round_trips and float(np.median(seen.round_trips)) * 1000 <= CALM_MS:
            return


def _calls(recoveries: Sequence[tuple[Figures, list[Figures]]]) -> list[tuple[Value, ...]]:
    """How long calls took, and the verdict; for each call its figures before, and in the slices after."""
    back = [
        _back_after(None if normal[0] is None else min(normal[0], CALM_MS), slices, NORMAL_MS[-1])
        for normal, slices in recoveries
    ]
    before = [normal[0] for normal, _ in recoveries if normal[0] is not None]
    at_end = [slices[-1][0] for _, slices in recoveries if slices[-1][0] is not None]
    known = [seconds for seconds in back if seconds is not None]
    late = len(back) - sum(seconds <= BACK_WITHIN_SECONDS for seconds in known)
    p50, p99, worst = spread(known, 50, 99, 100)
    late_before = sum(ms > CALM_MS for ms in before)
    verdict = f"broken by {late} calls" if late else "kept"
    if late and late_before:
        verdict += f"; {late_before} were late before: run it again on a calmer machine"
    return [
        ("calls", len(recoveries)),
        (f"late (over {CALM_MS:g} ms) before the first freeze already", late_before),
        ("median before, worst call, ms", max(before, default=None)),
        ("median at the end, worst call, ms", max(at_end, default=None)),
        ("back after, median call, s", p50),
        ("back after, p99 of the calls, s", p99),
        ("back after, worst call, s", worst if len(known) == len(back) else None),
        (f"calls not back within {BACK_WITHIN_SECONDS:g} s", late),
        (f"calls not back within {AFTER_SECONDS:g} s", len(back) - len(known)),
        (f"verdict: every call within {BACK_WITHIN_SECONDS:g} s", verdict),
    ]


def _apart(channel: Channel) -> Seen:
    """What comes back on this channel alone, from now on."""
    channel.seen = Seen()
    return channel.seen


def _together(each: Sequence[Seen]) -> Seen:
    whole = Seen()
    for one in each:
        whole.arrived += one.arrived
        whole.round_trips += one.round_trips
        whole.returned += one.returned
        whole.altered += one.altered
        whole.closed += one.closed
    return whole


def _worst(each: Sequence[Seen], start: float) -> float | None:
    """The highest of the calls' medians in a slice, in ms."""
    medians = []
    for seen in each:
        arrived, trips = np.array(seen.arrived), np.array(seen.round_trips)
        chosen = trips[(arrived >= start) & (arrived < start + SLICE_SECONDS)]
        if len(chosen):
            medians.append(1000 * float(np.median(chosen)))
    return max(medians, default=None)


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
