"""The worker's clock: one timer for all calls, absolute deadlines, a wheel of twenty slots of one millisecond.

Calls are spread over the slots, so that a worker's frames leave evenly and not in one burst every 20 ms. A slot is due
when the loop's monotonic time reaches it; a late wake-up serves every slot that has passed once and tells it how many
turns it has missed. Nothing drifts: deadlines come from the start, not from the last wake-up.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import structlog

SLOTS = 20
SLOT_SECONDS = 0.001
# A timer for "now" or the past makes the loop spin through its other work without sleeping.
_FLOOR_SECONDS = 0.001

Tick = Callable[[int], None]
"""Called with the number of turns that were missed before this one (0 when in time)."""

log = structlog.get_logger(__name__)


def now_ms() -> int:
    """Unix time in ms."""
    return time.time_ns() // 1_000_000


class Clock:
    """Calls `Tick`s every 20 ms until they are removed."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._slots: list[dict[int, Tick]] = [{} for _ in range(SLOTS)]
        self._count = 0
        self._next_key = 0
        self._origin = 0.0
        self._done = 0  # slots served since the origin
        self._joined: dict[int, int] = {}  # ticks added since the last wake-up: slots that were due before them
        self._timer: asyncio.TimerHandle | None = None
        self.errors = 0
        self.max_lateness_seconds = 0.0

    def add(self, tick: Tick) -> tuple[int, int]:
        """Starts calling `tick`, in the emptiest slot; returns the handle for `remove`."""
        slot = min(range(SLOTS), key=lambda index: len(self._slots[index]))
        self._next_key += 1
        self._slots[slot][self._next_key] = tick
        self._count += 1
        if self._timer is None:
            self._origin = self._loop.time()
            self._done = 0
            self._timer = self._loop.call_later(_FLOOR_SECONDS, self._wake)
        else:
            # Calls are accepted in the very turns of the loop that make a wake-up late: what it missed is not theirs.
            self._joined[self._next_key] = int((self._loop.time() - self._origin) / SLOT_SECONDS)
        return slot, self._next_key

    def remove(self, handle: tuple[int, int]) -> None:
        """Stops calling a tick; harmless when it was removed before."""
        slot, key = handle
        if self._slots[slot].pop(key, None) is not None:
            self._count -= 1
            self._joined.pop(key, None)

    def take_max_lateness_seconds(self) -> float:
        """The latest that a wake-up came since this was asked last."""
        worst, self.max_lateness_seconds = self.max_lateness_seconds, 0.0
        return worst

    def behind_seconds(self) -> float:
        """How long ago the next slot was due; 0 while nobody ticks. Seconds, seen from a loop that turns, mean that the
        timer is lost."""
        if not self._count:
            return 0.0
        return max(0.0, self._loop.time() - self._origin - (self._done + 1) * SLOT_SECONDS)

    def _wake(self) -> None:
        if not self._count:
            self._timer = None
            return
        elapsed = self._loop.time() - self._origin
        reached = int(elapsed / SLOT_SECONDS)
        lateness = elapsed - self._done * SLOT_SECONDS
        if lateness > self.max_lateness_seconds:
            self.max_lateness_seconds = lateness
        passed = reached - self._done
        first = self._done
        self._done = reached
        full, rest = divmod(passed, SLOTS)
        joined = self._joined
        for offset in range(min(passed, SLOTS)):
            slot = self._slots[(first + offset) % SLOTS]
            if slot:
                missed = full - 1 + (offset < rest) if full else 0
                for key, tick in list(slot.items()):
                    if key not in slot:
                        continue  # removed by one before it
                    turns = missed
                    if joined and key in joined:
                        turns += min(0, (first + offset - joined[key]) // SLOTS)
                        if turns < 0:
                            continue
                    try:
                        tick(turns)
                    except Exception:
                        # One call's fault is that call's end, never the clock's.
                        self.errors += 1
                        if slot.pop(key, None) is not None:
                            self._count -= 1
                        log.exception("tick_failed")
        if self._joined:
            self._joined = {key: slots for key, slots in self._joined.items() if slots > reached}
        due = self._origin + (self._done + 1) * SLOT_SECONDS
        self._timer = self._loop.call_later(max(_FLOOR_SECONDS, due - self._loop.time()), self._wake)
