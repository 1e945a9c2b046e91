"""The pace at which calls are set up: one after the other, and slowly while the frames of others wait.

A set-up takes a millisecond of the core. A hundred calls in one instant would keep the frames of all that are there
waiting for as long as all of them need, so they begin a millisecond apart; and on a worker that is late the next one
waits for 10 ms, until it has caught up: a hundred a second are always begun.
"""

from __future__ import annotations

import asyncio
from collections import deque

from audiosocket.clock import Clock

APART_SECONDS = 0.001
LATE_SECONDS = 0.01
"""From so late a wake-up on, the worker is taken for late; and so far apart are set-ups then."""


class Pace:
    """See the module's text."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def waiting(self) -> int:
        """Calls that are not being set up yet."""
        return len(self._waiting)

    async def turn(self) -> None:
        """Waits until the next call may be set up, which is the one that asks."""
        if self._timer is None:
            self._next_later()
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        await turn

    def _next_later(self) -> None:
        late = self._clock.lateness_seconds >= LATE_SECONDS
        delay = LATE_SECONDS if late else APART_SECONDS
        self._timer = asyncio.get_running_loop().call_later(delay, self._next)

    def _next(self) -> None:
        self._timer = None
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():  # whoever waited is gone
                turn.set_result(None)
                self._next_later()
                return
