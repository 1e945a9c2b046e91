"""An event loop whose clock moves only while everything waits, and then at once to the next timer.

What is tested against neighbours in the same process is about the order of things, not about how fast a machine is. On
this loop a test whose machine stands still for a second sees nothing of it, one that waits for a minute takes no time,
and every limit is the one of production. Two things at the same virtual time happen in the order in which they were
asked for, always.

For tests whose other side is not in this loop (another process, a thread of its own, a server) it is the wrong one: to
it, their work takes no time. Only what the loop itself has given to a thread is waited for.
"""

from __future__ import annotations

import asyncio
import selectors
import time
from typing import Any
from unittest import mock

BEGINS_AT = 100_000.0
"""The same for every test: what depends on it fails again."""


SETTLE_SECONDS = 0.001


class Deadlock(Exception):
    """Every task waits, and no timer, file or thread is left that could wake one."""


class _Selector(selectors.DefaultSelector):
    """Never waits where time can be moved instead."""

    loop: VirtualTimeLoop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if self.loop.in_threads:
            return super().select(None)  # it wakes the loop when it is done
        if len(self.get_map()) > 1:  # sockets: what was sent on them may be on its way
            ready = super().select(SETTLE_SECONDS)
            if ready:
                return ready
        if timeout is None:
            raise Deadlock(f"nothing will ever happen any more: {sorted(map(repr, asyncio.all_tasks(self.loop)))}")
        self.loop.now += timeout
        return []


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """While it runs, `time.monotonic` is its clock; the calendar's time stays real."""

    def __init__(self) -> None:
        selector = _Selector()
        selector.loop = self
        self.now = BEGINS_AT
        self.in_threads: set[object] = set()
        super().__init__(selector)

    def time(self) -> float:
        return self.now

    def run_forever(self) -> None:
        with mock.patch.multiple(time, monotonic=self.time, monotonic_ns=self._time_ns):
            super().run_forever()

    def _time_ns(self) -> int:
        return round(self.now * 1e9)

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> asyncio.Future[Any]:
        future = super().run_in_executor(executor, func, *args)
        self.in_threads.add(future)
        future.add_done_callback(self.in_threads.discard)
        return future

    async def subprocess_exec(self, *args: Any, **options: Any) -> Any:
        raise RuntimeError("a test that starts processes runs in real time: what they do takes some")

    subprocess_shell = subprocess_exec

    async def shutdown_default_executor(self, *args: Any) -> None:
        self.in_threads.add(self)
        await super().shutdown_default_executor(*args)
