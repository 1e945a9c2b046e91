"""What a run saw, and what that means. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from audiosocket.loadtest.statistics import Spread

SATURATED_CORES = 0.9
"""A process of one thread that uses more than this has no time left."""
LATE_MS = 10.0
"""A generator whose clock is so late at its 99th percentile measures itself."""
OTHERS_CORES = 0.1
STOLEN_CORES = 0.03
"""From here on others on the machine are in the way."""
SPARE_DESCRIPTORS = 5
"""What a worker opens once and keeps, such as for its status endpoint."""
SPARE_OBJECTS = 5
"""Tasks and timers that may come and go with the asking."""
GROWTH_MIB, GROWTH_SHARE = 10.0, 0.10
"""How much a worker's memory may grow from the middle of a churn to its end: allocators keep some."""
GROWTH_POINTS = 20
"""Fewer moments than these tell nothing of a trend."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a run must keep; None: not asked for."""

    max_loss_percent: float | None = None
    max_p99_ms: float | None = None


@dataclass(frozen=True, slots=True)
class WorkerUse:
    """What the worker's process took."""

    cores: float
    """Processor time per second."""
    rss_mib: float
    """Memory at the end."""
    rss_mib_before: float
    descriptors: int | None
    """At the end; None: the process is another user's."""
    descriptors_before: int | None
    gone: bool = False
    """It has ended meanwhile; what is said of its end is what was seen last."""


@dataclass(frozen=True, slots=True)
class OwnUse:
    """What the measuring side, generator and application, took, and what the machine did meanwhile."""

    cores: float
    late: Spread | None
    """How late its clock woke up."""
    others_cores: float
    stolen_cores: float
    rss_mib: float | None = None
    """Memory at the end."""
    rss_mib_before: float | None = None


@dataclass(frozen=True, slots=True)
class Frames:
    """20 ms frames, from their sending to their coming back, on some channels."""

    sent: int
    returned: int
    """As sent."""
    altered: int
    reordered: int
    silence: int
    delay: Spread | None
    """Round trip; of utterances sent at once, how much later a frame came than it could have been played."""
    gap: Spread | None
    """Between two frames on one channel, silence included."""

    @property
    def lost(self) -> int:
        """Did not come back, not even altered."""
        return max(0, self.sent - self.returned - self.altered)

    @property
    def loss_percent(self) -> float:
        return 100.0 * self.lost / self.sent if self.sent else 0.0


@dataclass(frozen=True, slots=True)
class Point:
    """One moment of a run; times in ms."""

    at: float
    """Seconds since the measuring began."""
    calls: int
    p50: float | None
    p99: float | None
    gap_p99: float | None
    altered: int
    """Since the point before."""
    missing: int | None
    """Frames since the measuring began behind which others came back, but not they; None: the calls change."""
    cores: float | None
    """Of the worker."""
    rss_mib: float | None
    descriptors: int | None
    drift_ms: float | None = None
    """How much later (+) or earlier (-) than 50 frames a second the median channel is played, since the first point."""
    late_ms: float | None = None
    """The latest that this side's own clock woke up since the point before."""
    others_cores: float | None = None
    """Processor time that others on the machine took, the hypervisor included."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One stretch of time."""

    calls: int
    seconds: float
    frames: Frames
    worker: WorkerUse | None
    """None: it is on another machine, or nothing is known of its process."""
    own: OwnUse
    points: list[Point]
    delays: dict[int, int]
    """Frames by their delay, in whole ms, up to the 99.9th percentile."""
    ended_early: int = 0
    """Calls that the worker ended."""
    rate_error_percent: float | None = None
    """How much faster (+) or slower (-) than 50 frames a second the median channel was played."""
    rate_error_worst_percent: float | None = None
    """The same of the channel that was furthest off."""
    apart: Frames | None = None
    """The calls whose application stalls; they are not in `frames`."""
    apart_calls: int = 0
    apart_ended: int = 0
    """Of these, how many the worker ended."""


@dataclass(frozen=True, slots=True)
class Moment:
    """The worker's process when so many calls of a churn had been begun."""

    calls: int
    seconds: float
    rss_mib: float | None
    descriptors: int | None


@dataclass(frozen=True, slots=True)
class Left:
    """What was there before the calls of a churn, and after them."""

    descriptors_before: int | None
    descriptors_after: int | None
    rss_mib_half: float | None
    """Half-way."""
    rss_mib_end: float | None
    sessions: int | None
    """None: there was no status endpoint to ask."""
    tasks_before: int | None = None
    tasks_after: int | None = None
    timers_before: int | None = None
    timers_after: int | None = None
    """asyncio's, on the worker; None: as above."""
    moments: tuple[Moment, ...] = ()
    """Ten of them, after equal numbers of calls."""


@dataclass(slots=True)
class Calls:
    """How calls came about."""

    attempted: int = 0
    failed: dict[str, int] = field(default_factory=dict)
    """Connections that were not made, by reason."""
    ended_early: int = 0
    silent: int = 0
    """Calls of which nothing came back."""
    set_up: Spread | None = None
    """From the connection to the first frame that came back."""

    def fail(self, why: str) -> None:
        """Count a connection that was not made."""
        self.failed[why] = self.failed.get(why, 0) + 1


def broken(frames: Frames, unwell: int, limits: Limits) -> Iterator[str]:
    """Which limits are broken, in words. `unwell`: calls that failed or were ended by the worker."""
    if limits == Limits():
        return
    if unwell:
        yield f"{unwell:,} {'call' if unwell == 1 else 'calls'} failed or ended early"
    if frames.delay is None or not frames.returned:
        yield "no frame came back as it was sent"
        return
    if limits.max_loss_percent is not None and frames.loss_percent > limits.max_loss_percent:
        yield f"{frames.loss_percent:.3g} % of the frames were lost, over {limits.max_loss_percent:g} %"
    if limits.max_p99_ms is not None and frames.delay.p99 > limits.max_p99_ms:
        yield f"round trip p99 {frames.delay.p99:.1f} ms, over {limits.max_p99_ms:g} ms"


def own_limit(own: OwnUse) -> str:
    """Why the measuring side may have been what was measured; empty: it was not."""
    if own.cores > SATURATED_CORES:
        return f"generator and application took {own.cores:.2f} of a core: they had no time left"
    if own.late is not None and own.late.p99 > LATE_MS:
        return f"the generator's own clock was {own.late.p99:.0f} ms late at p99"
    return ""


def remarks(found: Measured, format_named: str) -> Iterator[str]:
    """What one must know to read the figures rightly."""
    frames, own = found.frames, found.own
    limit = own_limit(own)
    if limit:
        yield f"{limit}. Delay, gaps and loss are this side's, not the worker's alone"
    elif own.late is not None and own.late.max > 5 * LATE_MS:
        yield f"the generator's own clock was once {own.late.max:.0f} ms late: the longest times hold that"
    if own.others_cores > OTHERS_CORES:
        yield f"other processes took {own.others_cores:.2f} cores of this machine: the figures hold their load too"
    if own.stolen_cores > STOLEN_CORES:
        yield f"the hypervisor took {own.stolen_cores:.2f} cores away: latency is the machine's too"
    if found.worker is not None and found.worker.cores > SATURATED_CORES:
        yield f"the worker took {found.worker.cores:.2f} of its core: it had no time left"
    if frames.sent and not frames.returned:
        if frames.altered:
            yield f"no frame came back as sent: does the worker expect {format_named}, is the application an echo?"
        else:
            yield "nothing came back: is the application an echo, and did the worker reach it?"


def growth_mib(points: Sequence[Point]) -> float | None:
    """What the worker's memory grew by in the second half of a run, by the line that lies nearest to it; None: too
    little is known."""
    known = [(point.at, point.rss_mib) for point in points[len(points) // 2 :] if point.rss_mib is not None]
    if len(known) < GROWTH_POINTS:
        return None
    mean_at = sum(at for at, _ in known) / len(known)
    mean_mib = sum(mib for _, mib in known) / len(known)
    slope = sum((at - mean_at) * (mib - mean_mib) for at, mib in known) / sum((at - mean_at) ** 2 for at, _ in known)
    return slope * (known[-1][0] - known[0][0])


def grown(found: Measured) -> Iterator[str]:
    """What grew while the number of calls stayed the same, in words."""
    growth, worker = growth_mib(found.points), found.worker
    if worker is None:
        return
    if growth is not None and growth > worker.rss_mib * GROWTH_SHARE + GROWTH_MIB:
        yield f"the worker's memory grew by {growth:.0f} MiB in the second half"
    before, after = worker.descriptors_before, worker.descriptors
    if before is not None and after is not None and after > before + SPARE_DESCRIPTORS:
        yield f"{after} descriptors are open at the end, {before} at the beginning"


def left_behind(left: Left) -> Iterator[str]:
    """What a churn left behind, in words."""
    if left.sessions:
        yield f"{left.sessions} sessions are still on the worker"
    before, after = left.descriptors_before, left.descriptors_after
    if before is not None and after is not None and after > before + SPARE_DESCRIPTORS:
        yield f"{after} descriptors are open, {before} before the first call"
    for what, before, after in (
        ("tasks", left.tasks_before, left.tasks_after),
        ("timers", left.timers_before, left.timers_after),
    ):
        if before is not None and after is not None and after > before + SPARE_OBJECTS:
            yield f"{after} {what} are on the worker, {before} before the first call"
    half, end = left.rss_mib_half, left.rss_mib_end
    if half is not None and end is not None and end > half * (1 + GROWTH_SHARE) + GROWTH_MIB:
        yield f"memory grew from {half:.0f} to {end:.0f} MiB while the number of calls stayed the same"
