"""When the machine stood still: no fault of what is tested, and no measure for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

LOOK_SECONDS = 0.05
LATE_SECONDS = 0.2
"""A wake-up that is so late was kept from running."""


@dataclass
class Standstills:
    """Times in which this process, which plays the callers and hears for them, did not run."""

    found: list[tuple[float, float]] = field(default_factory=list)
    """From when until when (monotonic)."""

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Watches for them during the block."""
        watching = asyncio.create_task(self._watch(), name="standstills")
        try:
            yield
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    def seconds(self, start: float, end: float) -> float:
        """How much of the time between two monotonic times they took."""
        return sum(max(0.0, min(to, end) - max(since, start)) for since, to in self.found)

    async def _watch(self) -> None:
        before = time.monotonic()
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            now = time.monotonic()
            if now - before > LOOK_SECONDS + LATE_SECONDS:
                self.found.append((before, now))
            before = now
