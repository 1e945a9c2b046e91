"""Turns for work that many calls want at once: what a dead worker's calls ask of Asterisk and of the other workers."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

AT_ONCE = 8
"""Calls that are moved at the same time; Asterisk makes their legs one after the other anyway."""


class Turns:
    """First come, first served. Nothing here waits: whose turn it is, is told."""

    def __init__(self, at_once: int = AT_ONCE) -> None:
        self._free = at_once
        self._waiting: deque[tuple[str, Callable[[], None]]] = deque()
        self._has: set[str] = set()
        self._later: dict[str, asyncio.TimerHandle] = {}

    def ask(self, call_id: str, tell: Callable[[], None], after: float = 0.0) -> None:
        """`tell` is called when it is this call's turn, in not less than `after` seconds. One that it has is over."""
        self.end(call_id)
        if after > 0:
            self._later[call_id] = asyncio.get_running_loop().call_later(after, self._queue, call_id, tell)
        else:
            self._queue(call_id, tell)

    def end(self, call_id: str) -> None:
        """The call's turn is over, or it wants none any more."""
        timer = self._later.pop(call_id, None)
        if timer is not None:
            timer.cancel()
        if call_id in self._has:
            self._has.discard(call_id)
            self._free += 1
        else:
            self._waiting = deque(each for each in self._waiting if each[0] != call_id)
        self._next()

    def _queue(self, call_id: str, tell: Callable[[], None]) -> None:
        self._later.pop(call_id, None)
        self._waiting.append((call_id, tell))
        self._next()

    def _next(self) -> None:
        while self._free and self._waiting:
            call_id, tell = self._waiting.popleft()
            self._free -= 1
            self._has.add(call_id)
            tell()
