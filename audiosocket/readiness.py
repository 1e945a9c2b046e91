"""Whether a worker takes calls, is alive, or drains, and who hears of it: controllers, supervisor, status port."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import structlog

from audiosocket import __version__
from audiosocket.callspec import HEARTBEAT_SECONDS, WorkerInfo
from audiosocket.clock import now_ms
from audiosocket.compiled import STATE as COMPILED
from audiosocket.errors import Unavailable
from audiosocket.runtime.process import notify
from audiosocket.sources import CallSource

if TYPE_CHECKING:
    from audiosocket.worker import Worker, WorkerOptions

OVERDUE_SECONDS = 1.5
"""A worker that has not been able to announce itself for so long asks whether its calls are still its own."""
STALLED_SECONDS = 2.0
"""A clock that is so far behind in a loop that turns has lost its timer: no call hears anything any more."""
CLOSING_SECONDS = 30
"""What the supervisor is asked for again and again while a stop takes its time: enough for a Redis that does not
answer, and in the end for sockets, callbacks, recordings and reports."""

log = structlog.get_logger(__name__)


class Readiness:
    """What one worker says of itself."""

    def __init__(self, worker: Worker, options: WorkerOptions, source: CallSource, *, direct: bool) -> None:
        """`direct`: calls come without Redis too."""
        self._worker = worker
        self._direct = direct
        self._options = options
        self._source = source
        self._started_ms = now_ms()
        self._announcing = asyncio.Lock()
        self._ready = False
        self._announced_at: float | None = None
        self.announced: bool | None = None
        """Whether the last announcement was heard; None: not tried yet."""
        self.given: set[str] = set()
        """Of a draining worker: calls that controllers have given to it, also those that have ended just now."""
        self.drain_until = 0.0
        """When the drain is to be over, by the loop's clock."""

    async def heartbeat(self) -> None:
        """Announces the worker and tells the supervisor, for ever."""
        while True:
            await self.announce()
            self.tell_supervisor()
            await asyncio.sleep(HEARTBEAT_SECONDS)

    def tell_supervisor(self) -> None:
        """Feeds the watchdog, but not for a loop that turns while no call's audio does."""
        worker = self._worker
        ill = self.why_not_alive()
        states = [] if ill else ["WATCHDOG=1"]
        if worker.draining:
            left = max(0.0, self.drain_until - asyncio.get_running_loop().time())
            states.append(f"STATUS=draining: {worker.active} calls left, for at most {left:.0f} s")
            states.append(f"EXTEND_TIMEOUT_USEC={CLOSING_SECONDS * 1_000_000}")
        else:
            why = ill or self.why_not_ready()
            busy = f"{worker.active} of {worker.capacity} calls, {worker.load.last.cpu:.0%} of a core"
            states.append(f"STATUS={busy}{f'; takes no new ones: {why}' if why else ''}")
        notify("\n".join(states))

    async def announce(self) -> None:
        """Tells the controllers what is true now."""
        async with self._announcing:  # what was true before must not be stored after what is true now
            await self._announce_now()

    async def _announce_now(self) -> None:
        options, worker = self._options, self._worker
        info = WorkerInfo(
            worker_id=options.worker_id,
            node=options.node,
            pair=options.pair,
            host=options.advertise,
            port=worker.port,
            status_url=f"http://{options.advertise}:{options.status_port}" if options.status_host else "",
            capacity=worker.capacity,
            active=worker.active,
            draining=worker.draining,
            version=__version__,
            started_at_ms=self._started_ms,
            rtp_port=0 if worker.rtp is None else worker.rtp.port,
            websocket_port=worker.websocket_port,
            overloaded=worker.load.overloaded or bool(self.why_not_alive()),
            cpu_percent=round(worker.load.last.cpu * 100),
            lateness_ms=round(worker.load.last.worst * 1000),
        )
        try:
            self.given = await self._source.announce(info)
        except Unavailable as error:
            if self.announced is not False:
                log.warning("announce_failed", detail=str(error))
            self.announced = False
            self.given = set()  # without Redis no call that comes through it can be known
            if not self._direct:
                return
        else:
            self.announced = True
            await self._look_whose()
        if not self._ready:
            # From here on calls come. A supervisor that restarts one worker after the other goes on to the next now.
            self._ready = True
            listen = f"{options.host}:{worker.port}"
            capacity = worker.capacity
            log.info("worker_ready", worker=options.worker_id, listen=listen, capacity=capacity, compiled=COMPILED)
            notify("READY=1")

    async def _look_whose(self) -> None:
        """After a time in which nobody heard of this worker: its calls may have been given to others."""
        before, self._announced_at = self._announced_at, time.monotonic()
        held = self._worker.held()
        if before is None or self._announced_at - before < OVERDUE_SECONDS or not held:
            return
        try:
            self._worker.give_up(await self._source.given_away(self._options.worker_id, held))
        except Unavailable as error:
            log.warning("calls_not_asked_for", detail=str(error))
            self._announced_at = before  # asked at the next announcement

    def why_not_alive(self) -> str:
        """Why the worker is of no use any more though its loop turns, or nothing."""
        behind = self._worker.clock.behind_seconds()
        return f"the clock stands still since {behind:.0f} s" if behind > STALLED_SECONDS else ""

    @property
    def reachable(self) -> bool:
        """Whether controllers can be told of calls, and answer."""
        return bool(self.announced) or self._direct

    def why_not_ready(self) -> str:
        """Why the worker takes no new calls, or nothing."""
        worker = self._worker
        if worker.draining:
            return "draining"
        if not (self.announced or self._direct):
            return "not announced: Redis does not answer"
        if worker.load.overloaded:
            last = worker.load.last
            return f"overloaded: {last.cpu:.0%} of a core, up to {last.worst * 1000:.0f} ms late"
        if worker.active >= worker.capacity:
            return "full"
        return ""
