"""A TCP relay between Asterisk and a worker, whose connections the test breaks."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.worker_rig import until

_RESET_AT_CLOSE = struct.pack("ii", 1, 0)


class Link(asyncio.Protocol):
    """One end of a relayed connection; what comes is written to the other."""

    def __init__(self, relay: Relay, other: Link | None = None) -> None:
        self._relay = relay
        self._early: list[bytes] = []
        self.other = other
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.other is None:
            self._relay.accepted(self)
        else:
            for data in self.other._early:
                transport.write(data)
            self.other.other = self

    def data_received(self, data: bytes) -> None:
        if self.other is None or self.other.transport is None:
            self._early.append(data)
        else:
            self.other.transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.close()

    def end(self, *, reset: bool) -> None:
        assert self.transport is not None
        if reset:
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
            self.transport.abort()
        else:
            self.transport.close()


class Relay:
    """Passes what comes to (`host`, `port`) on to (`target`, `port`)."""

    def __init__(self, target: str, port: int) -> None:
        self._target, self._port = target, port
        self._tasks: set[asyncio.Task[None]] = set()
        self.links: list[Link] = []
        """Asterisk's end of every connection so far; its `other` is the worker's."""
        self.refusing = False
        """Whether new connections are ended at once."""

    def accepted(self, link: Link) -> None:
        if self.refusing:
            link.end(reset=True)
            return
        self.links.append(link)
        task = asyncio.create_task(self._connect(link))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, link: Link) -> None:
        onward = Link(self, link)
        await asyncio.get_running_loop().create_connection(lambda: onward, self._target, self._port)

    async def connected(self, count: int) -> None:
        """Waits until so many connections have been made, and the latest is relayed."""
        await until(lambda: len(self.links) == count and self.links[-1].other is not None, f"connection {count}")

    def break_last(self, how: str) -> None:
        """Ends the latest connection: `reset` (RST) or `fin` on both sides, or on one (`reset worker`, `fin
        asterisk`), while the other side is left to hang."""
        self.break_link(self.links[-1], how)

    def break_link(self, link: Link, how: str) -> None:
        """Ends a connection in the same ways."""
        how, _, side = how.partition(" ")
        assert link.other is not None
        for each, name in ((link, "asterisk"), (link.other, "worker")):
            if side in ("", name):
                each.end(reset=how == "reset")
            each.other = Link(self)  # nobody: what still comes from the other side is swallowed


@asynccontextmanager
async def relaying(host: str, target: str, port: int) -> AsyncIterator[Relay]:
    """A relay that runs."""
    relay = Relay(target, port)
    server = await asyncio.get_running_loop().create_server(lambda: Link(relay), host, port)
    try:
        yield relay
    finally:
        server.close()
        for link in relay.links:
            for end in (link, link.other):
                if end is not None and end.transport is not None:
                    end.transport.abort()
        await server.wait_closed()
