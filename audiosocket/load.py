"""How much a worker's event loop has to do, measured by itself at little cost: ten wake-ups a second."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import NoReturn

import structlog

from audiosocket.coalescing import Coalescing
from audiosocket.overload import FRAME_SECONDS, Overload, Second

SAMPLE_SECONDS = 0.1
MEASURE_SECONDS = 1.0

log = structlog.get_logger(__name__)


class Load:
    """The load of the loop that `watch` runs in; `last` is its last second."""

    def __init__(self) -> None:
        self.last = Second()
        self._rule = Overload()
        self._coalescing = Coalescing()

    @property
    def overloaded(self) -> bool:
        """See `audiosocket.overload`."""
        return self._rule.overloaded

    @property
    def coalescing(self) -> bool:
        """See `audiosocket.coalescing`."""
        return self._coalescing.on

    async def watch(self, measured: Callable[[], None]) -> NoReturn:
        """Measures, for ever, and calls `measured` after each second."""
        loop = asyncio.get_running_loop()
        while True:
            began, cpu = time.monotonic(), time.thread_time()
            lateness: list[float] = []
            while not lateness or time.monotonic() - began < MEASURE_SECONDS:
                due = loop.time() + SAMPLE_SECONDS
                await asyncio.sleep(SAMPLE_SECONDS)
                lateness.append(max(0.0, loop.time() - due))
            # The writer of recordings has a thread of its own, which may be on another core: it is not counted here.
            self.last = Second(
                cpu=(time.thread_time() - cpu) / (time.monotonic() - began),
                late=sum(late >= FRAME_SECONDS for late in lateness) / len(lateness),
                worst=max(lateness),
            )
            if self._rule.see(self.last):
                told = log.warning if self.overloaded else log.info
                told(
                    "worker_overloaded" if self.overloaded else "worker_keeps_up",
                    cpu=round(self.last.cpu, 2),
                    late=self.last.late,
                    worst_ms=round(self.last.worst * 1000),
                )
            if self._coalescing.see(self.last):
                log.info("frames_coalesced" if self.coalescing else "frames_single", cpu=round(self.last.cpu, 2))
            measured()
