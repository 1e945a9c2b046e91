"""The addresses of applications' hosts: the system's own resolver (getaddrinfo: /etc/hosts, nsswitch.conf), bounded.

It blocks a thread for as long as it likes, some 10 to 30 s where no name server answers, and cannot be cancelled. So
one name is looked up once at a time, however many calls wait for it, and in threads that nothing else needs.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from typing import Any, TypeVar

from aiohappyeyeballs import AddrInfoType
from aiohttp.abc import AbstractResolver, ResolveResult

KNOWN_SECONDS = 10.0
"""How long an answer is used again. getaddrinfo does not tell how long it may be; a failure is not kept at all."""
LOOKUPS_MAX = 64
"""Names that are looked up at once; the next ones wait for one of these."""

T = TypeVar("T")
_Addresses = Sequence[AddrInfoType]
_Answer = _Addresses | OSError | ValueError


class Resolver(AbstractResolver):
    """One worker's, for WebSockets and for HTTP alike; aiohttp's own cache is to be off."""

    def __init__(self) -> None:
        self._threads = _Threads(LOOKUPS_MAX)
        self._asked: dict[str, asyncio.Future[_Answer]] = {}
        self._known: dict[str, tuple[float, _Addresses]] = {}

    async def addresses(self, host: str, port: int) -> list[AddrInfoType]:
        """Where a TCP connection to `host` may be made. Raises `socket.gaierror`, and `ValueError` for what can be no
        name (IDNA)."""
        loop = asyncio.get_running_loop()
        until, found = self._known.get(host, (0.0, ()))
        if until <= loop.time():
            found = await self._look_up(loop, host)
        return [
            (family, kind, protocol, name, (address[0], port, *address[2:]))
            for family, kind, protocol, name, address in found
        ]

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """The same for aiohttp. Raises `OSError`."""
        return [
            ResolveResult(
                hostname=host,
                host=f"{address[0]}%{address[3]}" if len(address) > 3 and address[3] else address[0],
                port=port,
                family=found,
                proto=protocol,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for found, _, protocol, _, address in await self.addresses(host, port)
            if family in (socket.AF_UNSPEC, found)
        ]

    async def close(self) -> None:
        """Nobody waits any more. Threads that hang are left behind: the process ends without them."""
        for answer in self._asked.values():
            answer.cancel()

    async def _look_up(self, loop: asyncio.AbstractEventLoop, host: str) -> _Addresses:
        asked = self._asked.get(host)
        if asked is None:
            asked = self._asked[host] = loop.run_in_executor(self._threads, _ask, host)
            asked.add_done_callback(lambda answer: self._answered(loop, host, answer))
        answer = await asyncio.shield(asked)  # others may wait for it
        if isinstance(answer, Exception):
            raise type(answer)(*answer.args)  # one for each: an error keeps the frames that it has passed
        return answer

    def _answered(self, loop: asyncio.AbstractEventLoop, host: str, answer: asyncio.Future[_Answer]) -> None:
        del self._asked[host]
        now = loop.time()
        self._known = {name: known for name, known in self._known.items() if known[0] > now}
        if not answer.cancelled() and not isinstance(found := answer.result(), Exception):
            self._known[host] = (now + KNOWN_SECONDS, found)


def _ask(host: str) -> _Answer:
    try:
        return socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, ValueError) as error:
        return error.with_traceback(None)


class _Threads(Executor):
    """A thread for each job, `most` at once. Unlike those of `ThreadPoolExecutor` they do not keep a process from
    ending."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._running = 0
        self._waiting: deque[Callable[[], None]] = deque()

    def submit(self, call: Callable[..., T], /, *args: Any, **named: Any) -> Future[T]:
        future: Future[T] = Future()

        def job() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call(*args, **named))
                except Exception as error:
                    future.set_exception(error)

        with self._lock:
            if self._running == self._most:
                self._waiting.append(job)
                return future
            self._running += 1
        threading.Thread(target=self._work, args=(job,), name="resolver", daemon=True).start()
        return future

    def _work(self, job: Callable[[], None] | None) -> None:
        while job is not None:
            job()
            with self._lock:
                job = self._waiting.popleft() if self._waiting else None
                if job is None:
                    self._running -= 1
