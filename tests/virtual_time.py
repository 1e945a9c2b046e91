"""An event loop whose clock moves only while everything waits, and then at once to the next timer.

What is tested against neighbours in the same process is about the order of things, not about how fast a machine is. On
this loop a test whose machine stands still for a second sees nothing of it, one that waits for a minute takes no time,
and every limit is the one of production. Two things at the same virtual time happen in the order in which they were
asked for, always.

Both sides of a socket have to be in this loop. For tests with another process, or a thread of its own, it is the wrong
one: to it, their work takes no time. Only what the loop itself has given to a thread is waited for.
"""

from __future__ import annotations

import asyncio
import selectors
import threading
import time
from collections.abc import Coroutine
from queue import SimpleQueue
from time import sleep
from typing import Any, TypeVar
from unittest import mock

T = TypeVar("T")

BEGINS_AT = 100_000.0
"""The same for every test: what depends on it fails again."""
SPEED = 100
"""How much faster than real time a clock may run that has sockets beside it: within this process the kernel hands over
at once what is sent, or nearly so."""
LAST_WORD_SECONDS = 0.5
"""The longest time that it is given: before a far timer, and where there is none at all."""


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
        if len(self.get_map()) > 1:  # there are more than the loop's own
            really = LAST_WORD_SECONDS if timeout is None else min(timeout / SPEED, LAST_WORD_SECONDS)
            if really < 0.001:  # epoll counts in milliseconds
                sleep(really)
                really = 0
            ready = super().select(really)
            if ready:
                return ready
        if timeout is None:
            raise Deadlock(f"nothing will ever happen any more: {sorted(map(repr, asyncio.all_tasks(self.loop)))}")
        self.loop.now += timeout
        return []


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """While it runs, `time.monotonic` and `time.time_ns` are its clock too; `datetime.now` stays real."""

    def __init__(self) -> None:
        selector = _Selector()
        selector.loop = self
        self.now = BEGINS_AT
        self._began_ns = time.time_ns()
        self.in_threads: set[object] = set()
        super().__init__(selector)

    def time(self) -> float:
        return self.now

    def run_forever(self) -> None:
        clocks = {"monotonic": self.time, "monotonic_ns": self._monotonic_ns, "time_ns": self._time_ns}
        with mock.patch.multiple(time, **clocks, sleep=self._sleep):
            super().run_forever()

    def _monotonic_ns(self) -> int:
        return round(self.now * 1e9)

    def _time_ns(self) -> int:
        return self._began_ns + round((self.now - BEGINS_AT) * 1e9)

    def _sleep(self, seconds: float) -> None:
        if threading.get_ident() == self._thread_id:
            self.now += seconds  # the loop stands still, as its test wants it to
        else:
            sleep(seconds)

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


class WatchedQueue(SimpleQueue[T]):
    """A queue of the loop's to one thread: time stands still until that has done all that it was given. In real time:
    as any other."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._left = 0
        self._given = False
        self._still = False

    def put(self, item: T, block: bool = True, timeout: float | None = None) -> None:
        with self._lock:
            self._left += 1
        self._watch()
        super().put(item)

    def get(self, block: bool = True, timeout: float | None = None) -> T:
        self._done()
        item = super().get(block, timeout)
        self._given = True
        if item is None:
            self._done()  # the thread's end
        return item

    def stand_still(self) -> None:
        """Said on the thread: it waits for what the test will do next, and time goes on meanwhile."""
        self._still = True
        self._loop.call_soon_threadsafe(self._look)

    def go_on(self) -> None:
        """Said by the test before it does that."""
        self._still = False
        self._watch()

    def _watch(self) -> None:
        if self._left and not self._still and isinstance(self._loop, VirtualTimeLoop):
            self._loop.in_threads.add(self)

    def _done(self) -> None:
        if self._given:
            self._given = False
            with self._lock:
                self._left -= 1
            self._loop.call_soon_threadsafe(self._look)

    def _look(self) -> None:
        if (self._still or not self._left) and isinstance(self._loop, VirtualTimeLoop):
            self._loop.in_threads.discard(self)


def run(work: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run` in virtual time."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(work)
