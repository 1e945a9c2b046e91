"""A stand-in for Asterisk's REST interface over loopback, for what the real one does only on a bad day.

Its faults are faults of the transport: late or partial answers, connections that are closed, reset or silent.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from hashlib import sha1
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

USER, PASSWORD, APP = "trunkbridge", "p:ss wörd", "trunkbridge"
_EXPECTED = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()


@dataclass
class Request:
    """A request as it arrived."""

    method: str
    raw_path: str
    query: dict[str, str]
    body: Any
    connection: int
    """Serial number of its TCP connection."""

    @property
    def path(self) -> str:
        return unquote(self.raw_path)


Answer = Callable[[Request, "Connection"], Awaitable[None]]


@dataclass
class Connection:
    """One TCP connection of the client's."""

    number: int
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    pings: int = 0

    async def respond(self, status: int, body: Any = None, *, close: bool = False) -> None:
        content = b"" if body is None else json.dumps(body).encode()
        head = f"HTTP/1.1 {status} Word\r\nContent-type: application/json\r\nContent-Length: {len(content)}\r\n"
        self.writer.write((head + ("Connection: close\r\n" if close else "") + "\r\n").encode() + content)
        await self.writer.drain()

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        self.writer.transport.abort()

    def send_text(self, *texts: str) -> None:
        """Text messages in one write, however many."""
        self.writer.write(b"".join(_frame(0x1, text.encode()) for text in texts))


@dataclass
class FakeAri:
    """Answers each request from the script for its method and path, or with an empty 200."""

    port: int = 0
    requests: list[Request] = field(default_factory=list)
    connections: list[Connection] = field(default_factory=list)
    sockets: list[Connection] = field(default_factory=list)
    """Event WebSockets, in the order in which they were opened."""
    answers_pings: bool = True
    _scripts: dict[tuple[str, str], deque[Answer]] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def script(self, method: str, path: str, *answers: Answer) -> None:
        """What the next requests for `path` (below /ari) are answered; the last answer stays."""
        self._scripts[(method, "/ari" + path)] = deque(answers)

    def seen(self, method: str, path: str) -> list[Request]:
        return [request for request in self.requests if (request.method, request.path) == (method, "/ari" + path)]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(len(self.connections), reader, writer)
        self.connections.append(connection)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while not writer.is_closing():
                await self._one(connection)
        writer.close()

    async def _one(self, connection: Connection) -> None:
        head = (await connection.reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = head.rstrip().split("\r\n")
        method, target, _ = first.split(" ")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        content = await connection.reader.readexactly(int(headers.get("content-length", 0)))
        parts = urlsplit(target)
        query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        body = json.loads(content) if content else None
        request = Request(method, parts.path, query, body, connection.number)
        self.requests.append(request)
        if headers.get("authorization") != _EXPECTED:
            await connection.respond(401, {"message": "Authentication required"})
            return
        script = self._scripts.get((method, request.path))
        if script:
            await (script.popleft() if len(script) > 1 else script[0])(request, connection)
        elif headers.get("upgrade") == "websocket":
            await self._websocket(headers["sec-websocket-key"], connection)
        else:
            await connection.respond(200, {})

    async def _websocket(self, key: str, connection: Connection) -> None:
        accept = base64.b64encode(sha1(key.encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()).decode()
        connection.writer.write(
            f"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Accept: {accept}\r\n\r\n".encode()
        )
        self.sockets.append(connection)
        while True:
            first, second = await connection.reader.readexactly(2)
            length = second & 0x7F
            assert length < 126, "clients send only control frames"
            mask = await connection.reader.readexactly(4)
            payload = bytes(
                byte ^ mask[index % 4] for index, byte in enumerate(await connection.reader.readexactly(length))
            )
            if first & 0x0F == 0x9:
                connection.pings += 1
                if self.answers_pings:
                    connection.writer.write(_frame(0xA, payload))
            elif first & 0x0F == 0x8:
                connection.writer.write(_frame(0x8, payload))
                connection.close()
                return


def _frame(opcode: int, payload: bytes) -> bytes:
    # RFC 6455 5.2: FIN, then the length in 7, 16 or 64 bits; a server does not mask.
    if len(payload) < 126:
        length = bytes([len(payload)])
    elif len(payload) < 65536:
        length = b"\x7e" + len(payload).to_bytes(2, "big")
    else:
        length = b"\x7f" + len(payload).to_bytes(8, "big")
    return bytes([0x80 | opcode]) + length + payload


def says(status: int, body: Any = None) -> Answer:
    """An orderly answer."""

    async def answer(request: Request, connection: Connection) -> None:
        await connection.respond(status, body)

    return answer


def hangs_up(*, reset: bool = False) -> Answer:
    """The connection ends without an answer."""

    async def answer(request: Request, connection: Connection) -> None:
        if reset:
            connection.reset()
        else:
            connection.close()

    return answer


async def never(request: Request, connection: Connection) -> None:
    """No answer at all."""
    await connection.reader.read()


async def half_an_answer(request: Request, connection: Connection) -> None:
    """The connection is reset in the middle of the answer."""
    connection.writer.write(b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n[{"id":')
    await connection.writer.drain()
    connection.reset()


@contextlib.asynccontextmanager
async def fake_ari() -> AsyncIterator[FakeAri]:
    """A running fake; its connections are gone at the end."""
    fake = FakeAri()
    server = await asyncio.start_server(fake.serve, "127.0.0.1", 0)
    fake.port = server.sockets[0].getsockname()[1]
    try:
        yield fake
    finally:
        server.close()
        for connection in fake.connections:
            connection.reset()
        await server.wait_closed()
