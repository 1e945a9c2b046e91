"""How a controller reaches media workers: through Redis, and straight while that is away.

Without Redis a call's worker is chosen by what this controller knows itself (`ari_app.fleet.local`), the call spec and
orders go to the worker's status port, and there it is asked for what it has to tell. Leases taken so have tokens that
Redis, as far as its clock is known here, would have given too; they are in its ledger as soon as it is back.

The same way is gone where Redis is there and knows no worker: one that has lost its memory hears of them all again
within seconds, and the workers themselves know best.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import suppress

import redis.asyncio
import structlog

from ari_app.errors import NoCapacity, NotTaken, StoreUnavailable, Unavailable
from ari_app.fleet.direct import DirectWay
from ari_app.fleet.leases import Held, Lease, Leases, Renewal
from ari_app.fleet.local import KnownWorkers, LocalLedger
from ari_app.fleet.remembered import RememberedWorkers
from ari_app.store.presence import Presence
from ari_app.store.present import Present, redis_unavailable
from audiosocket.callspec import CallNotice, CallReport, CallSpec, LegOrder, WorkerInfo
from audiosocket.keys import mark_key, report_stream
from audiosocket.runtime.stores import redis_call

LOOK_SECONDS = 1.0
"""How often Redis is asked who is there, and how long it may take to answer."""
AWAY_SECONDS = 0.25
"""How often while it is away."""
FRESH_SECONDS = 5.0
"""How long a Redis that is back may know less of the workers than is known here."""
LEFT_SECONDS = 5.0
"""How long a worker may take to find a call spec in Redis: it is asked for it as soon as the media leg is there."""
SILENT_SECONDS = 1.0
"""Between two requests to a worker that does not answer."""

log = structlog.get_logger(__name__)


class Reach:
    """What the leases and the present of one controller share, and the tasks behind them."""

    def __init__(
        self,
        client: redis.asyncio.Redis,
        direct: DirectWay | None,
        node: str,
        pairs: list[str],
        remembered: RememberedWorkers | None = None,
    ) -> None:
        """`direct`: None: without Redis no worker is reached. `pairs`: the node's own, then those of its spill-over.
        `remembered`: where a controller that is started while Redis is away finds the workers."""
        way = "go straight to the workers" if direct else "are refused: give all nodes a cluster_secret"
        self.client = client
        self.direct = direct
        self.pairs = pairs
        self.presence = Presence(way, self.look_now)
        self.known = KnownWorkers()
        self._remembered = remembered
        if remembered is not None:
            self.known.see(remembered.read(), (), time.monotonic())
        self.ledger = LocalLedger()
        self.alone: dict[str, str] = {}
        """Workers that calls were given without Redis, by call id."""
        self.owed: set[str] = set()
        """Calls whose leases could not be given back."""
        self.left: dict[str, tuple[float, CallSpec]] = {}
        """Call specs that were left in Redis a moment ago, by leg, with the monotonic time."""
        self._stream = report_stream(node)
        self._asked: dict[str, asyncio.Task[None]] = {}
        self._due = asyncio.Event()
        self._look_due = asyncio.Event()
        self._ahead_us: int | None = None
        """Of Redis' clock before the monotonic one."""

    def token(self, before: int) -> int:
        """A fencing token as Redis would give it now, greater than `before`."""
        now_us = time.time_ns() // 1000 if self._ahead_us is None else time.monotonic_ns() // 1000 + self._ahead_us
        return max(before + 1, now_us)

    def look_now(self) -> None:
        """Redis does not answer."""
        self._look_due.set()
        self.hear_now()

    def hear_now(self) -> None:
        """There may be a worker more to be heard."""
        self._due.set()

    async def run(
        self,
        leases: ReachedLeases,
        on_report: Callable[[CallReport], Awaitable[None]],
        on_notice: Callable[[CallNotice], None],
    ) -> None:
        """Watches Redis, and hears workers that cannot leave there what they have to tell, for ever."""
        try:
            async with asyncio.TaskGroup() as tasks:
                # Of its own: nobody waits for what a Redis that does not answer takes.
                tasks.create_task(self._watch(leases), name="look")
                while True:
                    for worker in self._unheard():
                        if worker not in self._asked:
                            asking = self._ask(worker, on_report, on_notice)
                            self._asked[worker] = tasks.create_task(asking, name=f"ask {worker}")
                    await self._hand_over_left()
                    await self._waited(self._due, AWAY_SECONDS)
        finally:
            self._asked.clear()

    async def _watch(self, leases: ReachedLeases) -> None:
        while True:
            await self._look(leases)
            await self._hand_over_left()
            await self._waited(self._look_due, AWAY_SECONDS if self.presence.away else LOOK_SECONDS)

    @staticmethod
    async def _waited(due: asyncio.Event, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await due.wait()
        due.clear()

    async def _look(self, leases: ReachedLeases) -> None:
        began = time.monotonic()
        try:
            async with redis_call(redis_unavailable, LOOK_SECONDS):
                seconds, microseconds = await self.client.time()
                self._ahead_us = seconds * 1_000_000 + microseconds - time.monotonic_ns() // 1000
                workers = await Present(self.client).workers()
                nodes = sorted({info.node for info in workers} | {info.node for info in self.known.workers})
                marks = await self.client.mget([mark_key(node) for node in nodes]) if nodes else []
            limited = sorted(self.ledger.limited)
            calls = await leases.active_of_applications(limited) if limited else {}
        except StoreUnavailable as error:
            self.presence.failed(error)
            return
        if self.presence.away:
            self.known.keep(began)
        self.ledger.count_elsewhere(calls)
        closed = [node for node, mark in zip(nodes, marks, strict=True) if mark is not None]
        self.known.see(workers, closed, began)
        if self._remembered is not None:
            self._remembered.write(self.known.workers)
        if self.presence.answered() or self.presence.back_for() < FRESH_SECONDS:
            # One that has lost its memory learns of the leases as soon as it knows the workers again.
            await leases.enter()

    async def _hand_over_left(self) -> None:
        """What was left in a Redis that went at that moment, its workers may not have found there."""
        since = time.monotonic() - LEFT_SECONDS
        self.left = {leg: (at, spec) for leg, (at, spec) in self.left.items() if at > since}
        if self.direct is None or not self.presence.away:
            return
        found, self.left = self.left, {}
        await asyncio.gather(*(self._hand_over(spec, self.direct) for _, spec in found.values()))

    async def _hand_over(self, spec: CallSpec, direct: DirectWay) -> None:
        lease = self.ledger.held.get(spec.call_id)
        worker = None if lease is None else self.known.get(lease.worker_id)
        if worker is not None:
            try:
                await direct.hand_over(worker, spec)
            except (NotTaken, Unavailable) as error:
                log.debug("call_spec_not_handed_over", call_id=spec.call_id, why=str(error))

    def _unheard(self) -> set[str]:
        """Workers of our calls that cannot leave in Redis what they have to tell."""
        if self.direct is None:
            return set()
        away = self.presence.away
        return {worker for worker in self.ledger.on_workers() if away or not self.known.listed(worker)}

    async def _ask(
        self,
        worker_id: str,
        on_report: Callable[[CallReport], Awaitable[None]],
        on_notice: Callable[[CallNotice], None],
    ) -> None:
        run, last = "", 0
        try:
            while worker_id in self._unheard() and (info := self.known.get(worker_id)) is not None:
                assert self.direct is not None
                try:
                    told = await self.direct.told(info, self._stream, run, last)
                except Unavailable as error:
                    log.debug("worker_not_heard", worker=worker_id, why=str(error))
                    await asyncio.sleep(SILENT_SECONDS)
                    continue
                for notice in told.notices:
                    on_notice(notice)
                for report in told.reports:
                    await on_report(report)
                run, last = told.run, told.last
        finally:
            del self._asked[worker_id]


class ReachedLeases(Leases):
    """Leases that are taken without Redis too."""

    def __init__(self, reach: Reach, lease_seconds: float, *, node: str) -> None:
        own, *others = reach.pairs
        super().__init__(reach.client, lease_seconds, node=node, pair=own, spill_over=others)
        self._reach = reach
        self._at = node

    async def acquire(
        self,
        call_id: str,
        *,
        application: str = "",
        limit: int | None = None,
        line_max: int = 0,
        exclude: Collection[str] = (),
    ) -> Lease:
        reach = self._reach
        if limit is not None:
            reach.ledger.limited.add(application)
        asked = super().acquire(call_id, application=application, limit=limit, line_max=line_max, exclude=exclude)
        try:
            lease = await reach.presence.asked(asked)
            reach.alone.pop(call_id, None)
        except StoreUnavailable:
            if reach.direct is None:
                raise
            lease = self._take(call_id, application, limit, line_max, exclude)
        except NoCapacity as refusal:
            forgetful = refusal.reason == "no_workers" or reach.presence.back_for() < FRESH_SECONDS
            if reach.direct is None or not forgetful or refusal.reason == "app_full":
                raise
            try:
                lease = self._take(call_id, application, limit, line_max, exclude)
            except NoCapacity:
                raise refusal from None
        reach.known.meet(lease.worker, time.monotonic())
        reach.ledger.held[call_id] = Held(lease.worker.worker_id, lease.token, application)
        reach.hear_now()
        return lease

    async def leave_queue(self, call_id: str, application: str) -> None:
        self._reach.ledger.leave(call_id, application)
        await self._reach.presence.asked(super().leave_queue(call_id, application))

    async def renew(self, held: Mapping[str, Held]) -> Renewal:
        self._reach.ledger.held.update(held)
        return await self._reach.presence.asked(super().renew(held))

    async def release(self, call_id: str, token: int) -> bool:
        self._reach.ledger.held.pop(call_id, None)
        self._reach.alone.pop(call_id, None)
        try:
            return await self._reach.presence.asked(super().release(call_id, token))
        except StoreUnavailable:
            self._reach.owed.add(call_id)  # given back when Redis is there again, before it would expire by itself
            return False

    async def enter(self) -> None:
        """Enters the leases of all calls into the ledger of a Redis that is back; gives back what is owed."""
        reach = self._reach
        try:
            await reach.presence.asked(super().renew(dict(reach.ledger.held)))
            for call_id in sorted(reach.owed - reach.ledger.held.keys()):
                # Whichever token: what was asked of a frozen Redis it may have done when it woke up.
                await reach.presence.asked(super().release(call_id, 0))
                reach.owed.discard(call_id)
        except StoreUnavailable as error:
            log.warning("leases_not_renewed", detail=str(error))

    def _take(
        self, call_id: str, application: str, limit: int | None, line_max: int, exclude: Collection[str]
    ) -> Lease:
        reach, now = self._reach, time.monotonic()
        before = reach.ledger.held.get(call_id)
        if before is not None and before.worker_id not in exclude and (worker := reach.known.get(before.worker_id)):
            return Lease(worker, before.token, self._at)
        if before is None and application:
            place = reach.ledger.place(call_id, application, limit, line_max, now)
            if place is not None:
                raise NoCapacity("app_full", "the application has as many calls as it may", place)
        chosen = reach.known.best(reach.pairs, reach.ledger.on_workers(), exclude, now)
        if chosen is None:
            raise NoCapacity("no_workers", "Redis is away, and no worker that is known here takes the call")
        token = reach.token(0 if before is None else before.token)
        reach.alone[call_id] = chosen.worker_id
        log.info("lease_taken_alone", call_id=call_id, worker=chosen.worker_id)
        return Lease(chosen, token, self._at)


class ReachedPresent(Present):
    """The present, with the workers reached without Redis too. What needs Redis fails at once while it is away."""

    def __init__(self, reach: Reach) -> None:
        super().__init__(reach.client)
        self._reach = reach

    async def put_spec(self, spec: CallSpec) -> None:
        """As everywhere; raises `NotTaken` besides, where the call's worker is handed the spec straight."""
        reach = self._reach
        lease = reach.ledger.held.get(spec.call_id)
        worker = None if reach.direct is None or lease is None else reach.known.get(lease.worker_id)
        # A worker that Redis did not name may not find there what is left for it.
        if worker is None or reach.alone.get(spec.call_id) != worker.worker_id:
            try:
                await reach.presence.asked(super().put_spec(spec))
                reach.left[spec.leg_uuid] = time.monotonic(), spec
                return
            except StoreUnavailable:
                if worker is None:
                    raise
        assert reach.direct is not None
        try:
            await reach.direct.hand_over(worker, spec)
        except Unavailable as error:
            reach.known.shun(worker.worker_id, time.monotonic())
            raise NotTaken(error.reason, str(error)) from error

    async def workers(self) -> list[WorkerInfo]:
        try:
            return await self._reach.presence.asked(super().workers())
        except StoreUnavailable:
            if self._reach.direct is None:
                raise
            return self._reach.known.workers

    async def heartbeats(self) -> dict[str, tuple[WorkerInfo, float]]:
        return await self._reach.presence.asked(super().heartbeats())

    async def send_order(self, worker_id: str, order: LegOrder) -> bool:
        reach = self._reach
        worker = None if reach.direct is None else reach.known.get(worker_id)
        try:
            heard = await reach.presence.asked(super().send_order(worker_id, order))
        except StoreUnavailable:
            if worker is None:
                raise
        else:
            if heard or worker is None:
                return heard
        assert reach.direct is not None
        try:
            await reach.direct.send_order(worker, order)
        except Unavailable as error:
            log.warning("order_not_sent", worker=worker_id, order=order.order, detail=str(error))
            return False
        return True
