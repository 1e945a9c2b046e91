"""A small voice bot with good manners, and switches that spoil one of them each."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from aiohttp import WSMsgType, web

from audiosocket.g711 import pcm_to_ulaw
from tools.audio.tones import tone

QUIET_FRAMES = 10
SPEECH_RMS = 400


@dataclass(frozen=True)
class Manners:
    """What the bot does; as it stands, everything is right."""

    status: int = 101
    speaks: bool = True
    hears: bool = True
    greets: float = 1.6
    chunk: int = 3200
    event: str = "media"
    binary: bool = False
    payload: str = "base64"
    """`base64`, `broken`, `ulaw`."""
    sid: str | None = None
    """What it sends instead of the stream's id."""
    marks: bool = True
    mark_name: Any = "turn"
    returns_marks: bool = False
    clears: bool = True
    talks_after_clear: bool = False
    closes_at: str = ""
    """Event at which it falls over."""
    answers_close: bool = True
    global_socket: bool = False
    """The classic: the state of the latest call, for all calls."""
    patience: float = 0.001
    """Seconds between two messages of audio, above 0: more slowly than it is played."""


@dataclass
class Server:
    """What all calls of an application share."""

    latest: list[web.WebSocketResponse] = field(default_factory=list)
    released: asyncio.Event = field(default_factory=asyncio.Event)


class Bot:
    """One call."""

    def __init__(self, socket: web.WebSocketResponse, manners: Manners, server: Server) -> None:
        self.socket, self.manners, self.server = socket, manners, server
        self.sid = ""
        self.rate = 8000
        self.awaiting = False
        self.loud = self.quiet = 0
        self.heard = False

    async def run(self) -> None:
        async for message in self.socket:
            if message.type is not WSMsgType.TEXT:
                continue
            content = json.loads(message.data)
            event = content["event"]
            if event == self.manners.closes_at:
                await self.socket.close(code=1011)
                return
            if event == "start":
                self.sid = content["stream_sid"]
                self.rate = int(content["start"]["media_format"]["sample_rate"])
                await self.say(self.manners.greets, 500)
            elif event == "media":
                await self.hear(np.frombuffer(base64.b64decode(content["media"]["payload"]), "<i2"))
            elif event == "mark":
                self.awaiting = False
                if self.manners.returns_marks:
                    await self.send({"event": "mark", "mark": content["mark"]})
            elif event == "dtmf":
                await self.say(0.3, 900)

    async def hear(self, samples: np.ndarray[Any, Any]) -> None:
        if not self.manners.hears:
            return
        loud = float(np.sqrt(np.mean(np.square(samples.astype(float))))) > SPEECH_RMS
        self.loud = self.loud + 1 if loud else 0
        self.quiet = 0 if loud else self.quiet + 1
        if self.loud == 3:
            self.heard = True
            if self.awaiting and self.manners.clears:
                self.awaiting = False
                await self.send({"event": "clear"})
                if self.manners.talks_after_clear:
                    await asyncio.sleep(0.1)
                    await self.say(0.4, 500)
        if self.heard and self.quiet == QUIET_FRAMES:
            self.heard = False
            await self.say(0.4, 700)

    async def say(self, seconds: float, hertz: float) -> None:
        manners = self.manners
        if not manners.speaks:
            return
        audio = tone(hertz, seconds, self.rate).astype("<i2").tobytes()
        if manners.payload == "ulaw":
            # A tone is too regular to be told apart when it is misread; a voice is not.
            audio = pcm_to_ulaw(voice(seconds))
        for at in range(0, len(audio), manners.chunk):
            piece = audio[at : at + manners.chunk]
            payload = base64.b64encode(piece).decode() if manners.payload != "broken" else "*" + piece[:8].hex()
            if manners.binary:
                await self.socket.send_bytes(piece)
            else:
                await self.send({"event": manners.event, "media": {"payload": payload}})
            await asyncio.sleep(manners.patience)
        if manners.marks:
            self.awaiting = True
            await self.send({"event": "mark", "mark": {"name": manners.mark_name}})

    async def send(self, message: dict[str, Any]) -> None:
        socket = self.server.latest[-1] if self.manners.global_socket else self.socket
        if not socket.closed:
            sid = {} if self.manners.global_socket else {"stream_sid": self.manners.sid or self.sid}
            await socket.send_str(json.dumps(message | sid))


def voice(seconds: float) -> bytes:
    """PCM16 of noise that is as smooth as a voice: each sample much like the one before."""
    noise = np.random.default_rng(5).normal(0, 1, int(seconds * 8000))
    smooth = np.convolve(noise, np.ones(8) / 8, "same")
    return np.asarray(3000 * smooth / smooth.std()).clip(-30000, 30000).astype("<i2").tobytes()


@asynccontextmanager
async def bot(manners: Manners, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """The application, listening; its URL."""
    server = Server()

    async def serve(request: web.Request) -> web.StreamResponse:
        if manners.status != 101:
            return web.Response(status=manners.status)
        socket = web.WebSocketResponse(autoclose=False) if not manners.answers_close else web.WebSocketResponse()
        await socket.prepare(request)
        server.latest.append(socket)
        if manners.closes_at == "upgrade":
            await socket.close()
        elif not manners.answers_close:
            await server.released.wait()
        else:
            with suppress(ConnectionResetError):
                await Bot(socket, manners, server).run()
        return socket

    app = web.Application()
    app.router.add_get("/bot", serve)
    async with serving(app, tls) as url:
        try:
            yield url
        finally:
            server.released.set()


@asynccontextmanager
async def serving(app: web.Application, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """The URL of `/bot` on a free port."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
    try:
        yield f"{'wss' if tls else 'ws'}://127.0.0.1:{runner.addresses[0][1]}/bot"
    finally:
        await runner.cleanup()
