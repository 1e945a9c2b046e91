"""An application that costs next to nothing: it sends each caller a tone of his own, and reads over what he says."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator
from hashlib import sha1
from typing import Any

import numpy as np

from tools.audio.tones import tone

SECONDS = 40


def hz_of(caller: str) -> float:
    """The tone of a caller, by the last two digits of his number."""
    return 400.0 + 20 * int(caller[-2:])


class ToneApplication:
    """The start messages of all streams so far."""

    def __init__(self) -> None:
        self.starts: list[dict[str, Any]] = []
        self._writers: set[asyncio.StreamWriter] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await self._carry(reader, writer)
        writer.close()
        self._writers.discard(writer)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        key = next(
            line.split(":", 1)[1].strip() for line in head.split("\r\n") if line.lower().startswith("sec-websocket-key")
        )
        accept = base64.b64encode(sha1(key.encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()).decode()
        writer.write(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Accept: {accept}\r\n\r\n".encode()
        )
        start: dict[str, Any] = {}
        while start.get("event") != "start":
            start = json.loads(await _message(reader))
        self.starts.append(start)
        samples = tone(hz_of(start["start"]["from"]), 1).tobytes()
        said = json.dumps(
            {
                "event": "media",
                "stream_sid": start["stream_sid"],
                "media": {"payload": base64.b64encode(samples).decode()},
            }
        ).encode()
        # RFC 6455 5.2: a whole text message with a length of 16 bits.
        frame = b"\x81\x7e" + len(said).to_bytes(2, "big") + said
        for _ in range(SECONDS):
            writer.write(frame)
        while await reader.read(1 << 20):
            pass

    def close(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()


async def _message(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readexactly(2)
    length = head[1] & 0x7F
    if length == 126:
        length = int.from_bytes(await reader.readexactly(2), "big")
    mask = np.frombuffer(await reader.readexactly(4), np.uint8)
    payload = np.frombuffer(await reader.readexactly(length), np.uint8)
    return bytes(payload ^ np.resize(mask, length))


@contextlib.asynccontextmanager
async def tone_application() -> AsyncIterator[tuple[ToneApplication, str]]:
    """A running one, and its URL."""
    application = ToneApplication()
    server = await asyncio.start_server(application.serve, "127.0.0.1", 0, limit=1 << 20)
    try:
        yield application, f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    finally:
        server.close()
        application.close()
        await server.wait_closed()
