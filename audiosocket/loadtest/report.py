"""A load test on the screen, while it runs and when it is done, and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from audiosocket.loadtest.figures import (
    Calls,
    Frames,
    Left,
    Measured,
    Point,
    WorkerUse,
    broken,
    grown,
    growth_mib,
    left_behind,
    remarks,
)
from audiosocket.loadtest.plan import Mode, Plan, Result
from audiosocket.loadtest.ramp import Capacity
from audiosocket.loadtest.sip import LoadResult
from audiosocket.loadtest.statistics import Spread

LINES = 12
"""What a run says of itself where there is no terminal."""
_RAMP_COLUMNS = (
    *("  CALLS", "LOST %", "ALTERED", "P50 MS", "P99 MS", "MAX MS"),
    *("GAP P99", "WORKER %", "MIB", "OWN %", "LIMITS"),
)
Row = tuple[str, str]


class Screen:
    """Tells a person how far a run is: a bar on a terminal, otherwise a line now and then."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(24),
            TimeRemainingColumn(),
            TextColumn("{task.fields[now]}"),
            console=console,
            auto_refresh=False,  # a thread of its own would be in the way of the frames
            transient=True,
        )
        self._task: TaskID | None = None
        self._what = ""
        self._said_at = 0.0

    def begins(self, what: str, seconds: float) -> None:
        self._what, self._said_at = what, 0.0
        if not self._console.is_terminal:
            self._console.print(f"{what}, {seconds:,.0f} s", highlight=False)
            return
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(what, total=seconds, now="")
        self._progress.start()
        self._progress.refresh()

    def point(self, point: Point, seconds: float) -> None:
        p50, p99 = ("-" if value is None else f"{value:.1f}" for value in (point.p50, point.p99))
        now = f"{point.calls:,} calls, round trip {p50}/{p99} ms"
        if point.missing:
            now += f", {point.missing:,} missing"
        if point.cores is not None:
            now += f", worker {100 * point.cores:.0f} %"
        if self._task is not None:
            self._progress.update(self._task, completed=point.at, now=now)
            self._progress.refresh()
        elif seconds > 30 and point.at - self._said_at >= seconds / LINES:
            self._said_at = point.at
            self._console.print(f"  {point.at:7,.0f} s  {now}", highlight=False)

    def quiet(self) -> None:
        """Takes away what is under way."""
        self._progress.stop()


def verdict(plan: Plan, result: Result) -> list[str]:
    """Which of the limits that were asked for are broken, and what was left behind. Pure."""
    calls = result.calls
    found: list[str] = []
    if plan.mode is not Mode.RAMP:
        unwell = sum(calls.failed.values()) + calls.ended_early + calls.silent
        for measured in result.measured:
            found += broken(measured.frames, unwell, plan.limits)
            if plan.mode is Mode.STEADY:
                found += grown(measured)
    elif result.capacity is not None and not result.capacity.held:
        found += result.capacity.why
    if result.left is not None:
        found += left_behind(result.left)
    return found


def show(console: Console, plan: Plan, result: Result, format_named: str) -> None:
    """Figures, remarks and the verdict."""
    if result.steps:
        console.print(_ramp(result))
    elif result.measured:
        console.print(_table(_rows(plan, result, result.measured[0])))
    else:
        console.print("Stopped before anything was measured.")
    if result.left is not None and result.left.moments:
        console.print()
        console.print(_moments(result.left))
    console.print()
    for measured in result.measured[-1:]:
        for text in remarks(measured, format_named):
            console.print(f"note: {text[:1].upper()}{text[1:]}.", highlight=False)
    if result.interrupted:
        console.print("note: It was stopped early; this is what was seen until then.", highlight=False)
    if result.capacity is not None:
        console.print(Text(capacity_in_words(result.capacity), "bold"))
    wrong = verdict(plan, result)
    if result.left is not None and not wrong and not result.interrupted:
        console.print(Text(nothing_left(result.calls, result.left), "bold"))
    _verdict(console, wrong)


def show_sip(console: Console, result: LoadResult, wrong: Sequence[str]) -> None:
    """The same of calls by SIP."""
    rows = [
        ("calls answered and ended by us", f"{result.successful:,}"),
        ("calls that failed", f"{result.failed:,}"),
        *((f"  {why}", f"{count:,}") for why, count in result.failures.items()),
        *((f"  unexpected SIP {code}", f"{count:,}") for code, count in result.sip_codes.items()),
        ("SIP messages sent again", f"{result.retransmissions:,}"),
        ("seconds from first to last", f"{result.seconds:,.1f}"),
    ]
    if spread := result.answer:
        rows.append(("INVITE to 200, p50 / p95 / p99 / max", _ms(spread.p50, spread.p95, spread.p99, spread.max)))
    console.print(_table(rows))
    console.print()
    _verdict(console, wrong)


def capacity_in_words(found: Capacity) -> str:
    """One sentence. Pure."""
    if found.broke is None:
        return f"Capacity: at least {found.held:,} calls; no limit was broken."
    if found.own_limit:
        why = f"At {found.broke:,} the measuring side was the limit: {found.own_limit}"
        return f"Capacity: at least {found.held:,} calls. {why}."
    return f"Capacity: {found.held:,} calls. At {found.broke:,}: {', '.join(found.why)}."


def nothing_left(calls: Calls, left: Left) -> str:
    """The verdict on a churn that is over. Pure."""
    made = calls.attempted - sum(calls.failed.values())
    what = ["no session" if left.sessions == 0 else "", "no descriptor" if left.descriptors_after is not None else ""]
    if left.timers_after is not None:
        what += ["no task", "no timer"]
    listed = ", ".join(word for word in what if word)
    memory = ""
    if left.rss_mib_half is not None and left.rss_mib_end is not None:
        memory = f"; memory {left.rss_mib_half:.1f} MiB half-way, {left.rss_mib_end:.1f} at the end"
    return f"{made:,} of {calls.attempted:,} calls connected. Left behind: {listed or 'not known'}{memory}."


def as_json(about: dict[str, Any], result: Result | LoadResult, wrong: Sequence[str]) -> bytes:
    """Everything, for programs."""
    report = about | {"good": not wrong, "broken": list(wrong), "result": result}
    return msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"


def _verdict(console: Console, wrong: Sequence[str]) -> None:
    for text in wrong:
        console.print(Text.assemble(("Broken: ", "bold red"), f"{text}."))


def _rows(plan: Plan, result: Result, found: Measured) -> Iterator[Row]:
    calls = result.calls
    yield "calls, at once on average" if plan.mode is Mode.CHURN else "calls", f"{found.calls:,}"
    yield "measured", f"{found.seconds:,.1f} s"
    if plan.mode is Mode.CHURN:
        yield "calls made", f"{calls.attempted:,}"
        if calls.set_up:
            spread = calls.set_up
            times = _ms(spread.p50, spread.p95, spread.p99, spread.max)
            yield "connection to first frame back, p50 / p95 / p99 / max", times
        yield "calls of which nothing came back", f"{calls.silent:,}"
    yield "connections that failed", f"{sum(calls.failed.values()):,}"
    for why, count in calls.failed.items():
        yield f"  {why}", f"{count:,}"
    yield "calls that the worker ended", f"{calls.ended_early:,}"
    yield from _frames(found.frames, plan.mode)
    if found.apart is not None:
        yield "calls whose application stalls", f"{found.apart_calls:,}, of which {found.apart_ended:,} were ended"
        yield from (("  " + name, value) for name, value in _frames(found.apart, plan.mode))
    if found.rate_error_percent is not None:
        worst = found.rate_error_worst_percent or 0.0
        rates = f"{found.rate_error_percent:+.4f} / {worst:+.4f} %"
        yield "playing rate against 50 frames a second, median / worst call", rates
    yield from _worker(found.worker, found.calls + found.apart_calls)
    growth = growth_mib(found.points)
    if growth is not None:
        yield "  its memory over the second half", f"{growth:+.1f} MiB"
    for why, count in (result.dropped or {}).items():
        yield f"frames that the worker dropped: {why}", f"{count:,}"
    if result.late_ticks is not None:
        yield "late ticks of the worker", f"{result.late_ticks:,}"
    left = result.left
    if left is not None:
        sessions = "not known: give --status" if left.sessions is None else f"{left.sessions:,}"
        yield "sessions left afterwards", sessions
        if left.descriptors_after is not None:
            yield "descriptors before / after", f"{left.descriptors_before:,} / {left.descriptors_after:,}"
        if left.rss_mib_half is not None and left.rss_mib_end is not None:
            memory = f"{left.rss_mib_half:.1f} / {left.rss_mib_end:.1f} MiB"
            yield "memory half-way / at the end", memory
        if left.tasks_after is not None and left.timers_after is not None:
            yield "tasks before / after", f"{left.tasks_before} / {left.tasks_after}"
            yield "timers before / after", f"{left.timers_before} / {left.timers_after}"
    yield "generator and application", f"{100 * found.own.cores:.0f} % of a core"
    if found.own.rss_mib is not None:
        yield "  their memory before / after", f"{found.own.rss_mib_before:.1f} / {found.own.rss_mib:.1f} MiB"
    if found.own.late:
        yield "clock of the generator, late p99 / max", _ms(found.own.late.p99, found.own.late.max)
    yield "other processes / hypervisor", f"{found.own.others_cores:.2f} / {found.own.stolen_cores:.2f} cores"


def _frames(frames: Frames, mode: Mode) -> Iterator[Row]:
    yield "frames sent", f"{frames.sent:,}"
    yield "  lost", f"{frames.lost:,} ({frames.loss_percent:.3g} %)"
    yield "  altered", f"{frames.altered:,}"
    yield "  out of order or twice", f"{frames.reordered:,}"
    name = "behind the earliest moment" if mode is Mode.BURST else "round trip"
    if frames.delay:
        spread = frames.delay
        yield f"{name}, p50 / p95 / p99 / max", _ms(spread.p50, spread.p95, spread.p99, spread.max)
    if frames.gap:
        yield "between two frames, p99 / p99.9 / max", _ms(frames.gap.p99, frames.gap.p999, frames.gap.max)


def _worker(worker: WorkerUse | None, calls: int) -> Iterator[Row]:
    if worker is None:
        yield "worker's process", "not known: give --pid"
        return
    each = f", {100 * worker.cores / calls:.3f} % a call" if calls else ""
    yield "worker", f"{100 * worker.cores:.0f} % of a core{each}" + (", it has ended" if worker.gone else "")
    yield "worker's memory before / after", f"{worker.rss_mib_before:.1f} / {worker.rss_mib:.1f} MiB"
    if worker.descriptors is not None:
        yield "worker's descriptors before / after", f"{worker.descriptors_before:,} / {worker.descriptors:,}"


def _ramp(result: Result) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2))
    for heading in _RAMP_COLUMNS:
        table.add_column(heading, justify="left" if heading == "LIMITS" else "right")
    for step, found in zip(result.steps, result.measured, strict=True):
        frames, worker = found.frames, found.worker
        delay = frames.delay or Spread(0, 0, 0, 0, 0, 0)
        table.add_row(
            f"{step.calls:,}",
            f"{frames.loss_percent:.3g}",
            f"{frames.altered:,}",
            *(f"{value:.1f}" for value in (delay.p50, delay.p99, delay.max)),
            f"{frames.gap.p99:.1f}" if frames.gap else "-",
            *(("-", "-") if worker is None else (f"{100 * worker.cores:.0f}", f"{worker.rss_mib:.0f}")),
            f"{100 * found.own.cores:.0f}",
            Text("broken", "red") if step.broken else "kept",
        )
    return table


def _moments(left: Left) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2))
    for heading in ("  CALLS BEGUN", "SECONDS", "WORKER MIB", "DESCRIPTORS"):
        table.add_column(heading, justify="right")
    for moment in left.moments:
        mib = "-" if moment.rss_mib is None else f"{moment.rss_mib:.1f}"
        table.add_row(f"{moment.calls:,}", f"{moment.seconds:.1f}", mib, f"{moment.descriptors or '-'}")
    return table


def _table(rows: Iterator[Row] | Sequence[Row]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2))
    table.add_column()
    table.add_column(justify="right")
    for name, value in rows:
        table.add_row(f"  {name}", value)
    return table


def _ms(*values: float) -> str:
    return " / ".join(f"{value:,.1f}" for value in values) + " ms"
