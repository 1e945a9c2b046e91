"""A fleet whose calls are imagined and whose placement is real: the same scripts, leases and announcements as in
production, against a real Redis, on a clock of its own. It knows itself what each worker carries, and so whether the
ledger is right.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import Counter
from collections.abc import Awaitable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import redis.asyncio
from msgspec.structs import replace

from ari_app.errors import NoCapacity
from ari_app.fleet.leases import Held, Lease, Leases
from ari_app.store.controllers import ControllerInfo, announcement_of_controller
from audiosocket.callspec import WorkerInfo
from audiosocket.runtime.announcing import ANNOUNCE, announcement_of, arguments
from tools.bench.day_arrivals import Arrival

LEASE_SECONDS = 30
RENEW_SECONDS = 10
RESTART_SECONDS = 5
EVERY_SECONDS = 2
"""Between two announcements of a process; in production one, which here would be most of the work."""
AT_ONCE = 16
"""Requests at a time, as of many controllers."""
EPOCH_MS = 1_800_000_000_000
T = TypeVar("T")


@dataclass(slots=True)
class Worker:
    """A media worker: what it has announced, and what it carries in truth."""

    info: WorkerInfo
    calls: set[str] = field(default_factory=set)
    up: bool = True
    news: bool = True
    """Nobody knows it yet, or not like this."""


@dataclass(slots=True)
class Pbx:
    """A PBX node with its controller's view of the leases."""

    info: ControllerInfo
    leases: Leases
    calls: set[str] = field(default_factory=set)
    up: bool = True
    news: bool = True


@dataclass(slots=True)
class Call:
    """A call that is up."""

    arrival: Arrival
    lease: Lease
    ends: int


@dataclass(slots=True)
class Figures:
    """What the day was like."""

    placed: int = 0
    spilled: int = 0
    """Inbound calls that another pair carried."""
    refused: Counter[str] = field(default_factory=Counter)
    moved: int = 0
    """Calls that went to another worker when theirs died."""
    lost: Counter[str] = field(default_factory=Counter)
    """Calls that ended before their time, by reason."""
    over_capacity: int = 0
    """Times that a worker carried more than it may."""
    over_limit: int = 0
    """Times that an application had more calls than it may."""
    twice: int = 0
    """Grants to a call that held a lease elsewhere."""
    leases_lost: int = 0
    """Leases that a renewal found lost."""
    wrong: int = 0
    """Workers whose ledger was not what they carried, when it was looked at."""
    looked: int = 0


class Fleet:
    """Pairs of one PBX node and some workers. `second` is the time; nothing happens by itself."""

    def __init__(
        self,
        client: redis.asyncio.Redis,
        pairs: int,
        workers: int,
        capacity: int,
        limits: dict[str, int],
    ) -> None:
        """`workers` of each pair, of `capacity` calls each; `limits`: calls at once by application."""
        self.second = 0
        self.calls: dict[str, Call] = {}
        self.figures = Figures()
        self.forgetful_until = 0
        """Up to this second the ledger is being rebuilt."""
        self._client = client
        self._limits = limits
        self._script = ""
        self._of_application: Counter[str] = Counter()
        self._ending: list[tuple[int, str]] = []
        self._slots = asyncio.Semaphore(AT_ONCE)
        self.workers: dict[str, Worker] = {}
        self.pbx: dict[str, Pbx] = {}
        names = [f"pair-{number:02}" for number in range(1, pairs + 1)]
        for number, name in enumerate(names):
            spill_over = [names[(number + step) % pairs] for step in (1, 2) if pairs > step]
            node, gateway = f"pbx-{number + 1:02}", f"gw-{number + 1:02}"
            leases = Leases(client, LEASE_SECONDS, node=node, pair=name, spill_over=spill_over, clock=self.now)
            self.pbx[node] = Pbx(_controller(node, name, workers * capacity), leases)
            for index in range(workers):
                info = _worker(f"{gateway}/{index}", gateway, name, capacity)
                self.workers[info.worker_id] = Worker(info)

    def now(self) -> int:
        """Unix time in ms."""
        return EPOCH_MS + self.second * 1000

    # What happens in a second

    async def announce(self) -> None:
        """Every process that is up says so, every other second; who is new, at once."""
        turn = self.second % EVERY_SECONDS
        who = [
            announcement_of(replace(one.info, active=len(one.calls)))
            for number, one in enumerate(self.workers.values())
            if one.up and (number % EVERY_SECONDS == turn or one.news)
        ] + [
            announcement_of_controller(replace(one.info, calls=len(one.calls)))
            for number, one in enumerate(self.pbx.values())
            if one.up and (number % EVERY_SECONDS == turn or one.news)
        ]
        for process in self._processes():
            process.news = not process.up
        self._script = self._script or await self._client.script_load(ANNOUNCE)
        async with self._client.pipeline(transaction=False) as pipeline:
            for one in who:
                pipeline.evalsha(self._script, 1, one.key, *arguments(one, self.now()))
            await pipeline.execute()

    async def place(self, arrivals: Iterable[Arrival]) -> None:
        """Calls come, all at once."""
        await asyncio.gather(*(self._limited(self._place(one)) for one in arrivals))

    async def end_due(self) -> None:
        """The calls whose time is over end."""
        due = []
        while self._ending and self._ending[0][0] <= self.second:
            ends, call_id = heapq.heappop(self._ending)
            call = self.calls.get(call_id)
            if call is not None and call.ends == ends:
                due.append(call)
        await asyncio.gather(*(self._limited(self._end(call)) for call in due))

    async def renew(self) -> None:
        """The controllers whose turn it is renew the leases of their calls."""
        for number, pbx in enumerate(self.pbx.values()):
            if pbx.up and pbx.calls and (self.second + number) % RENEW_SECONDS == 0:
                held = {call_id: self._held(self.calls[call_id]) for call_id in pbx.calls}
                self.figures.leases_lost += len((await pbx.leases.renew(held)).lost)

    async def look(self) -> None:
        """Compares the ledger with the truth."""
        figures = self.figures
        if self.second < self.forgetful_until:
            return
        leases = next(iter(self.pbx.values())).leases
        active = await leases.active(list(self.workers))
        figures.looked += 1
        figures.wrong += sum(active[name] != len(worker.calls) for name, worker in self.workers.items())

    # What goes wrong, and what is done on purpose

    async def kill(self, worker_id: str) -> None:
        """A worker dies; each of its calls goes to another one, where there is room."""
        worker = self.workers[worker_id]
        worker.up = False
        moving = [self.calls[call_id] for call_id in worker.calls]
        # Those that died just before count as alive for a moment yet, but controllers know that they are gone.
        gone = [name for name, one in self.workers.items() if not one.up]
        await asyncio.gather(*(self._limited(self._move(call, worker_id, gone)) for call in moving))

    def start(self, worker_id: str) -> None:
        """A worker that was dead, or stopped, is there again."""
        worker = self.workers[worker_id]
        worker.up = True
        worker.info = replace(worker.info, draining=False, started_at_ms=self.now())

    def drain(self, worker_id: str) -> None:
        """A worker is to be restarted: it takes no new calls."""
        worker = self.workers[worker_id]
        worker.info = replace(worker.info, draining=True)
        worker.news = True

    async def stop_pbx(self, node: str) -> None:
        """An Asterisk ends, and its calls with it; their leases go back when its controller finds that out."""
        pbx = self.pbx[node]
        pbx.up = False
        ended = [self.calls[call_id] for call_id in pbx.calls]
        self.figures.lost["pbx_restarted"] += len(ended)
        await asyncio.gather(*(self._limited(self._end(call)) for call in ended))

    async def forget(self) -> None:
        """Redis loses its memory."""
        await self._client.flushall()
        self.all_new()
        self.forgetful_until = self.second + RENEW_SECONDS + 2

    def all_new(self) -> None:
        """Nobody is known any more: all have to say that they are there."""
        for process in self._processes():
            process.news = True

    def _processes(self) -> Iterator[Worker | Pbx]:
        yield from self.workers.values()
        yield from self.pbx.values()

    # One call

    async def _place(self, arrival: Arrival) -> None:
        limit = self._limits.get(arrival.application)
        try:
            if arrival.inbound:
                # A carrier gives its calls to the nodes in turn, and tries another one when the first does not answer.
                nodes = [one for one in self.pbx.values() if one.up]
                pbx = nodes[hash(arrival.second) % len(nodes)]
                lease = await pbx.leases.acquire(arrival.call_id, application=arrival.application, limit=limit)
                self.figures.spilled += lease.worker.pair != pbx.info.pair
            else:
                any_of_them = next(iter(self.pbx.values())).leases
                lease = await any_of_them.acquire_outbound(
                    arrival.call_id, application=arrival.application, limit=limit
                )
        except NoCapacity as error:
            self.figures.refused[error.reason] += 1
            return
        self.figures.placed += 1
        call = Call(arrival, lease, self.second + arrival.seconds)
        self.calls[arrival.call_id] = call
        self._of_application[arrival.application] += 1
        self.pbx[lease.node].calls.add(arrival.call_id)
        heapq.heappush(self._ending, (call.ends, arrival.call_id))
        if limit is not None and self.second >= self.forgetful_until:
            self.figures.over_limit += self._of_application[arrival.application] > limit
        self._carry(call)

    async def _move(self, call: Call, dead: str, gone: list[str]) -> None:
        call_id, application = call.arrival.call_id, call.arrival.application
        pbx = self.pbx[call.lease.node]
        try:
            lease = await pbx.leases.acquire(call_id, application=application, exclude=gone)
        except NoCapacity:
            self.figures.lost["no_worker_left"] += 1
            await self._end(call)
            return
        self.figures.twice += lease.worker.worker_id == dead or lease.token <= call.lease.token
        self.workers[dead].calls.discard(call_id)
        call.lease = lease
        self.figures.moved += 1
        self._carry(call)

    async def _end(self, call: Call) -> None:
        call_id = call.arrival.call_id
        pbx = self.pbx[call.lease.node]
        await pbx.leases.release(call_id, call.lease.token)
        pbx.calls.discard(call_id)
        self.workers[call.lease.worker.worker_id].calls.discard(call_id)
        del self.calls[call_id]
        self._of_application[call.arrival.application] -= 1

    def _carry(self, call: Call) -> None:
        worker = self.workers[call.lease.worker.worker_id]
        worker.calls.add(call.arrival.call_id)
        self.figures.over_capacity += len(worker.calls) > worker.info.capacity

    def _held(self, call: Call) -> Held:
        return Held(call.lease.worker.worker_id, call.lease.token, call.arrival.application, call.lease.node)

    async def _limited(self, work: Awaitable[T]) -> T:
        async with self._slots:
            return await work


def _worker(worker_id: str, node: str, pair: str, capacity: int) -> WorkerInfo:
    return WorkerInfo(
        worker_id=worker_id,
        node=node,
        pair=pair,
        host="10.0.0.1",
        port=9092,
        status_url="",
        capacity=capacity,
        active=0,
        draining=False,
        version="simulated",
        started_at_ms=EPOCH_MS,
    )


def _controller(node: str, pair: str, capacity: int) -> ControllerInfo:
    return ControllerInfo(
        node=node,
        instance="0",
        pair=pair,
        role="active",
        accepting=True,
        calls=0,
        capacity=capacity,
        version="simulated",
        started_at_ms=EPOCH_MS,
    )
