"""A day of a fleet: half a million calls over twelve pairs, with failures and a rolling upgrade, through the real
placement on a clock that does not wait."""

from __future__ import annotations

import heapq
import random
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from ari_app.store.embedded import EmbeddedStores
from audiosocket.loadtest.picture import Line, Panel, draw
from audiosocket.runtime.stores import open_redis
from tools.bench.day_arrivals import DAY_SECONDS, Arrival, arrivals
from tools.bench.day_fleet import LEASE_SECONDS, RESTART_SECONDS, Fleet
from tools.bench.options import Options
from tools.bench.report import Outcome, Table, Value, spread

CALLS = 500_000
PAIRS, WORKERS, CAPACITY = 12, 4, 110
"""Pairs, workers of each, calls of each worker."""
LIMITS = {"collections": 700}
SEED = 20261121
DRAIN_SECONDS = 900
UPGRADES_AT_ONCE = 4
"""Pairs of which one worker each is drained at a time."""
BUSY = 100
"""With fewer calls up, the spread between pairs says nothing."""


@dataclass(slots=True)
class Plan:
    """What goes wrong when, in seconds of the day; and when the upgrade begins."""

    kills: list[tuple[int, str]] = field(default_factory=list)
    hosts: list[tuple[int, str, int]] = field(default_factory=list)
    """Gateway host, and for how long it is gone."""
    pbx: list[tuple[int, str]] = field(default_factory=list)
    forgets: list[int] = field(default_factory=list)
    upgrade: int | None = None


def plan_of_a_day(fleet: Fleet, seed: int) -> Plan:
    """Twenty-four workers killed, three hosts gone, two PBX nodes restarted, Redis emptied twice, one upgrade."""
    chance = random.Random(seed)
    workers, nodes = sorted(fleet.workers), sorted(fleet.pbx)
    gateways = sorted({worker.info.node for worker in fleet.workers.values()})

    def moment(first: float, last: float) -> int:
        return int(3600 * chance.uniform(first, last))

    return Plan(
        kills=[(moment(9.5, 20.5), chance.choice(workers)) for _ in range(24)],
        hosts=[
            (moment(hour, hour + 2), chance.choice(gateways), seconds)
            for hour, seconds in ((10, 300), (16, 300), (18, 1200))
        ],
        pbx=[(moment(10, 13), chance.choice(nodes)), (moment(16, 20), chance.choice(nodes))],
        forgets=[moment(11, 12), moment(17, 18)],
        upgrade=int(13.5 * 3600),
    )


@dataclass(slots=True)
class Minute:
    """What the picture shows of one."""

    at: int
    placed: int
    refused: int
    loads: dict[str, float]
    """Share of each pair's capacity that is in use; of what takes calls."""


class Day:
    """Lets a fleet live through a day."""

    def __init__(self, fleet: Fleet, plan: Plan, calls: list[Arrival]) -> None:
        self._fleet = fleet
        self._calls = deque(calls)
        self._due: list[tuple[int, int, str, str]] = []
        self._draining: dict[str, int] = {}
        self._to_upgrade: deque[str] = deque()
        self.minutes: list[Minute] = []
        self.upgraded_by = 0
        for second, worker in plan.kills:
            self._plan(second, "kill", worker)
        for second, host, seconds in plan.hosts:
            for worker in self._workers_of(host):
                self._plan(second, "gone", worker)
                self._plan(second + seconds, "start", worker)
        for second, node in plan.pbx:
            self._plan(second, "pbx", node)
        for second in plan.forgets:
            self._plan(second, "forget", "")
        if plan.upgrade is not None:
            self._plan(plan.upgrade, "upgrade", "")

    async def run(self, first: int, last: int, tell: bool = False) -> None:
        """From one second of the day to another, and on until the last call has ended."""
        fleet, began = self._fleet, time.monotonic()
        fleet.second = first
        while fleet.second < last or fleet.calls:
            if not fleet.calls and not self._draining:
                # Nothing happens up to the next of these; who is there says so again before it does.
                coming = self._next()
                if coming > fleet.second:
                    fleet.second = coming
                    fleet.all_new()
                if fleet.second >= last:
                    break
            while self._due and self._due[0][0] <= fleet.second:
                _, _, what, name = heapq.heappop(self._due)
                await self._happens(what, name)
            await self._upgrade()
            await fleet.announce()
            await fleet.end_due()
            arrived = []
            while self._calls and self._calls[0].second <= fleet.second:
                arrived.append(self._calls.popleft())
            await fleet.place(arrived)
            await fleet.renew()
            if fleet.second % 60 == 0:
                await fleet.look()
                self._minute()
            if tell and fleet.second % 3600 == 0:
                print(
                    f"{fleet.second // 3600:02}:00  {len(fleet.calls)} calls up, {fleet.figures.placed} placed,"
                    f" {time.monotonic() - began:.0f} s so far",
                    file=sys.stderr,
                )
            fleet.second += 1
        # What nobody renews ends by itself; nothing of the day may be left then.
        fleet.second += LEASE_SECONDS + 1
        await fleet.look()

    def _next(self) -> int:
        coming = [self._due[0][0]] if self._due else []
        return min([*coming, self._calls[0].second] if self._calls else coming, default=DAY_SECONDS)

    def spreads(self) -> list[float]:
        """Of every busy minute: the load of the fullest pair less that of the emptiest, as shares of their capacity."""
        return [
            max(minute.loads.values()) - min(minute.loads.values())
            for minute in self.minutes
            if len(minute.loads) > 1 and minute.placed and sum(minute.loads.values()) * CAPACITY * WORKERS > BUSY
        ]

    def _plan(self, second: int, what: str, name: str) -> None:
        heapq.heappush(self._due, (second, len(self._due), what, name))

    def _workers_of(self, host: str) -> Iterator[str]:
        return (name for name, worker in self._fleet.workers.items() if worker.info.node == host)

    async def _happens(self, what: str, name: str) -> None:
        fleet = self._fleet
        match what:
            case "kill" | "gone":
                if fleet.workers[name].up:
                    await fleet.kill(name)
                    self._draining.pop(name, None)
                    if what == "kill":
                        self._plan(fleet.second + RESTART_SECONDS, "start", name)
            case "start":
                fleet.start(name)
            case "pbx":
                await fleet.stop_pbx(name)
                self._plan(fleet.second + RESTART_SECONDS, "pbx back", name)
            case "pbx back":
                fleet.pbx[name].up = True
            case "forget":
                await fleet.forget()
            case "upgrade":
                by_turns = sorted(fleet.workers, key=lambda worker_id: (worker_id.rpartition("/")[2], worker_id))
                self._to_upgrade.extend(by_turns)

    async def _upgrade(self) -> None:
        """One worker after the other is drained and restarted, of several pairs at a time."""
        fleet = self._fleet
        for name, until in list(self._draining.items()):
            if not fleet.workers[name].calls or fleet.second >= until:
                del self._draining[name]
                if fleet.workers[name].calls:
                    await fleet.kill(name)
                fleet.workers[name].up = False
                self._plan(fleet.second + RESTART_SECONDS, "start", name)
                self.upgraded_by = fleet.second
        while self._to_upgrade and len(self._draining) < UPGRADES_AT_ONCE:
            name = self._to_upgrade.popleft()
            if fleet.workers[name].up:
                fleet.drain(name)
                self._draining[name] = fleet.second + DRAIN_SECONDS

    def _minute(self) -> None:
        fleet = self._fleet
        calls: dict[str, int] = {}
        room: dict[str, int] = {}
        for worker in fleet.workers.values():
            if worker.up and not worker.info.draining:
                calls[worker.info.pair] = calls.get(worker.info.pair, 0) + len(worker.calls)
                room[worker.info.pair] = room.get(worker.info.pair, 0) + worker.info.capacity
        loads = {pair: calls[pair] / room[pair] for pair in sorted(room)}
        figures = fleet.figures
        self.minutes.append(Minute(fleet.second, figures.placed, sum(figures.refused.values()), loads))


async def run(options: Options) -> Outcome:
    """The whole day, or one of `--calls` calls on as many pairs."""
    calls = options.calls[0] if options.calls else CALLS
    folder = options.folder / "day"
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder) as state:
        async with EmbeddedStores(Path(state)) as stores:
            client = open_redis(stores.urls)
            try:
                fleet = Fleet(client, PAIRS, WORKERS, CAPACITY, LIMITS)
                day = Day(fleet, plan_of_a_day(fleet, SEED), list(arrivals(calls, SEED)))
                began = time.monotonic()
                await day.run(0, DAY_SECONDS, tell=True)
                took = time.monotonic() - began
            finally:
                await client.aclose()
    picture = folder / "day.png"
    draw(picture, f"{calls:,} calls over {PAIRS} pairs", _panels(day))
    return _outcome(fleet, day, calls, took, picture)


def limit_seconds(_options: Options) -> float:
    """A day takes about ten minutes here."""
    return 3600.0


def _panels(day: Day) -> list[Panel]:
    hours = [minute.at / 3600 for minute in day.minutes]
    rates = [
        (after.placed - before.placed) / 60
        for before, after in zip([day.minutes[0], *day.minutes], day.minutes, strict=False)
    ]
    refused = [
        float(after.refused - before.refused)
        for before, after in zip([day.minutes[0], *day.minutes], day.minutes, strict=False)
    ]
    pairs = sorted({pair for minute in day.minutes for pair in minute.loads})
    loads = tuple(
        Line("", [100 * minute.loads[pair] if pair in minute.loads else None for minute in day.minutes])
        for pair in pairs
    )
    spreads = [
        100 * (max(minute.loads.values()) - min(minute.loads.values())) if minute.loads else None
        for minute in day.minutes
    ]
    return [
        Panel("calls placed a second", hours, (Line("", rates),), "h"),
        Panel("% of its capacity that each pair has in use, of the workers that take calls", hours, loads, "h"),
        Panel("fullest pair less emptiest, points", hours, (Line("", spreads),), "h"),
        Panel("calls refused a minute", hours, (Line("", refused),), "h"),
    ]


def _outcome(fleet: Fleet, day: Day, calls: int, took: float, picture: Path) -> Outcome:
    figures = fleet.figures
    p50, p99, most = spread([100 * value for value in day.spreads()], 50, 99, 100)
    rows: list[tuple[Value, ...]] = [
        ("calls", calls),
        ("placed", figures.placed),
        ("inbound, carried by another pair", figures.spilled),
        *((f"refused: {reason}", count) for reason, count in sorted(figures.refused.items())),
        ("moved to another worker", figures.moved),
        *((f"lost: {reason}", count) for reason, count in sorted(figures.lost.items())),
        ("spread between pairs, points, p50", p50),
        ("spread, p99", p99),
        ("spread, most", most),
        ("workers over their capacity", figures.over_capacity),
        ("applications over their limit", figures.over_limit),
        ("two leases for a call", figures.twice),
        ("leases that a renewal found lost", figures.leases_lost),
        ("ledgers compared, and wrong", f"{figures.looked * len(fleet.workers)}, {figures.wrong}"),
        ("leases left at the end", sum(len(worker.calls) for worker in fleet.workers.values())),
        ("upgrade done at, hours", round(day.upgraded_by / 3600, 2)),
        ("took, s", round(took)),
    ]
    return Outcome(
        f"{calls:,} calls of a day over {PAIRS} pairs of {WORKERS} workers of {CAPACITY} calls, seed {SEED}",
        [Table("the day", ("what", "value"), rows)],
        [
            "the spread is that of the share of its capacity that a pair has in use; workers that drain or are gone are"
            " left out",
            f"picture: {picture}",
        ],
    )
