"""Applications for measurements: an echo that costs little, one that talks in bursts, ones that misbehave. All speak
Exotel's protocol, in this process, on a port of their own."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import picows

from audiosocket.loadtest import marked
from audiosocket.loadtest.generator import Channel

_PAYLOAD = b'"payload":"'
LEAD_SECONDS = 60
"""How far a talker is ahead of its playing, at most."""
BURST_SECONDS = 30
"""What it sends in one go when half its lead has been played."""
PAUSE_SECONDS = 1.0
"""Between the end of an utterance and the next one."""
SMALL_BUFFER_BYTES = 16_384
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


class Utterances(Talker):
    """Says a whole utterance at once, again and again: the next one when that one has been played and a second."""

    def __init__(self, find: Callable[[str], Channel | None], seconds: int) -> None:
        super().__init__()
        self._find, self._seconds = find, seconds

    def started(self) -> None:
        channel = self._find(self.call_sid)
        if channel is not None:
            self._speak(channel)

    def _speak(self, channel: Channel) -> None:
        if not channel.open:
            return
        channel.expect(self._seconds * _FRAMES_PER_SECOND)
        self.burst(channel.number % marked.CALLS_MAX, self._seconds)
        asyncio.get_running_loop().call_later(self._seconds + PAUSE_SECONDS, self._speak, channel)


class Stalling(Echo):
    """An echo that stops reading for a while, again and again, when `stalls` says so of its call."""

    def __init__(self, stalls: Callable[[str], bool], seconds: float) -> None:
        super().__init__()
        self._stalls, self._seconds = stalls, seconds

    def on_ws_connected(self, transport: picows.WSTransport) -> None:
        super().on_ws_connected(transport)
        # A kernel of this machine would keep many seconds for us, and the worker would never see that we stall.
        connection = transport.underlying_transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER_BYTES)

    def started(self) -> None:
        if self._stalls(self.call_sid):
            self._stall()

    def _stall(self) -> None:
        self._turn(lambda transport: transport.pause_reading(), self._go_on)

    def _go_on(self) -> None:
        self._turn(lambda transport: transport.resume_reading(), self._stall)

    def _turn(self, act: Callable[[asyncio.ReadTransport], None], then: Callable[[], None]) -> None:
        if self.transport is not None and not self.transport.is_disconnected:
            act(self.transport.underlying_transport)
            asyncio.get_running_loop().call_later(self._seconds, then)


@asynccontextmanager
async def serve(
    make: Callable[[], Stream], host: str = "127.0.0.1", port: int = 0, tls: ssl.SSLContext | None = None
) -> AsyncIterator[str]:
    """Listens, by default on a free port of loopback; the URL to dial. Raises OSError when it cannot."""
    server = await picows.ws_create_server(lambda request: make(), host, port, ssl=tls)
    shown = f"[{host}]" if ":" in host else host
    try:
        yield f"{'ws' if tls is None else 'wss'}://{shown}:{server.sockets[0].getsockname()[1]}/"
    finally:
        server.close()
        await asyncio.sleep(0)
