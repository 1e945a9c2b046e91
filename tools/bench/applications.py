"""Applications for measurements: an echo that costs little, and one that never stops talking. Both speak Exotel's
protocol, in this process, on a port of their own."""

from __future__ import annotations

import asyncio
import json
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import picows

from tools.bench import marked

_PAYLOAD = b'"payload":"'
LEAD_SECONDS = 60
"""How far a talker is ahead of its playing, at most."""
BURST_SECONDS = 30
"""What it sends in one go when half its lead has been played."""
_FRAMES_PER_SECOND = 50


class Stream(picows.WSListener):
    """What they have in common."""

    def __init__(self) -> None:
        self.transport: picows.WSTransport | None = None
        self.call_sid = ""
        self._head = b""

    def on_ws_connected(self, transport: picows.WSTransport) -> None:
        self.transport = transport

    def on_ws_frame(self, transport: picows.WSTransport, frame: picows.WSFrame) -> None:
        if frame.msg_type == picows.WSMsgType.TEXT:
            message = frame.get_payload_as_bytes()
            at = message.find(_PAYLOAD)
            if at >= 0:
                self.media(message[at + len(_PAYLOAD) : message.index(b'"', at + len(_PAYLOAD))])
            elif message.startswith(b'{"event":"start"'):
                start = json.loads(message)
                self._head = b'{"event":"media","stream_sid":"%b","media":{"payload":"' % start["stream_sid"].encode()
                self.call_sid = start["start"]["call_sid"]
                self.started()
        elif frame.msg_type == picows.WSMsgType.CLOSE:
            transport.send_close(picows.WSCloseCode.OK)
            transport.disconnect()

    def started(self) -> None:
        """The start message has come."""

    def media(self, payload: bytes) -> None:
        """20 ms of the caller, base64."""

    def say(self, payload: bytes) -> None:
        """Send PCM16, as base64."""
        self.send(self._head + payload + b'"}}')

    def send(self, message: bytes) -> None:
        """Send any message."""
        if self.transport is not None and not self.transport.is_disconnected:
            self.transport.send(picows.WSMsgType.TEXT, message)


class Echo(Stream):
    """Sends every message of the caller's back at once."""

    def media(self, payload: bytes) -> None:
        self.say(payload)


class Talker(Stream):
    """Speaks marked frames without a pause, in bursts far ahead of their playing."""

    def __init__(self) -> None:
        super().__init__()
        self._second = 0

    def burst(self, number: int, seconds: int) -> None:
        """The next `seconds` of the call with this number, one message a second."""
        whose = marked.pcm_whose(number)
        for _ in range(seconds):
            first = self._second * _FRAMES_PER_SECOND
            frames = range(first, first + _FRAMES_PER_SECOND)
            self.say(b64encode(b"".join(whose + marked.PCM_WHICH[frame % marked.NUMBERS] for frame in frames)))
            self._second += 1


@asynccontextmanager
async def serve(make: Callable[[], Stream]) -> AsyncIterator[str]:
    """Listens on a free port of loopback; the URL to dial."""
    server = await picows.ws_create_server(lambda request: make(), "127.0.0.1", 0)
    try:
        yield f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    finally:
        server.close()
        await asyncio.sleep(0)
