"""What the re-creations share: a socket, a protocol of what was heard and said, and an end."""

from __future__ import annotations

import asyncio
import base64
import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from aiohttp import WSMsgType, web

from tools.audio import g711

BYTES_PER_SECOND = 16_000
"""PCM16 at 8 kHz, which is what most clients' audio is counted in, also where they send mu-law."""

Message = dict[str, Any]


class Gone(Exception):
    """The platform has closed the socket."""


class Client(ABC):
    """One call of one application. `converse` is its handler of a socket; `say`, `interrupt` and `hang_up` are what
    its mind asks for."""

    name: ClassVar[str]
    dialect: ClassVar[str] = "exotel"
    greets: ClassVar[bool] = True
    """Speaks by itself when the stream has started."""
    echoes: ClassVar[bool] = False
    """Says what it hears, and nothing else."""
    clears: ClassVar[bool] = True
    """Empties the platform's queue when it is interrupted."""
    reads_digits: ClassVar[bool] = True
    reads_stop: ClassVar[bool] = True
    hang_up_reason: ClassVar[str] = ""
    """How the worker tells this client's own hang-up; empty: it never hangs up."""
    spec: ClassVar[dict[str, Any]] = {}
    """What its configuration needs besides dialect and URL."""

    def __init__(self, greeting: bytes, distort: Callable[[Message], Message | None] | None = None) -> None:
        self.greeting = greeting
        self.distort = distort
        """Changes a message before the client sees it: a platform that lacks something."""
        self.socket: web.WebSocketResponse
        self.started = False
        self.ended = False
        self.died = ""
        """What it choked on, and the call with it."""
        self.heard = bytearray()
        """PCM16 that its recogniser was given."""
        self.longest_piece = 0
        """Bytes of it that were given in one piece."""
        self.sent = bytearray()
        """PCM16 that it sent."""
        self.events: Counter[str] = Counter()
        """What the platform has sent."""
        self.digits: list[str] = []
        self.marks_sent: list[str] = []
        self.marks_back: list[str] = []
        self.cleared: set[str] = set()
        """Marks that had not come back when it cleared: whether they still come does not matter to most."""
        self.stop: Message | None = None
        self.messages_sent = 0
        self._speaking: asyncio.Task[None] | None = None
        self._tasks: list[asyncio.Task[None]] = []

    # What a test asks for

    async def run(self, socket: web.WebSocketResponse) -> None:
        """Serves one socket, and closes it when the handler returns or raises, as servers do."""
        self.socket = socket
        try:
            await self.converse()
        except Gone:
            pass
        except Exception as error:
            self.died = f"{type(error).__name__}: {error}"
        finally:
            self.ended = True
            for task in (*self._tasks, *([self._speaking] if self._speaking else [])):
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            await socket.close()

    def begin(self, pcm: bytes) -> None:
        """Starts to say something."""
        self._speaking = asyncio.create_task(self.say(pcm), name=f"{self.name} speaks")

    async def interrupt(self) -> None:
        """The caller has spoken into it."""
        if self._speaking is not None:
            self._speaking.cancel()
            await asyncio.gather(self._speaking, return_exceptions=True)
        if self.clears:
            self.cleared |= set(self.marks_sent[len(self.marks_back) :])
            await self.clear()

    async def hang_up(self) -> None:
        """Ends the call in its own way; for those that do."""
        await self.socket.close()

    def marks_problem(self) -> str:
        """What is wrong with the marks by now; of those behind cleared audio nothing is asked."""
        wanted = [name for name in self.marks_sent if name not in self.cleared]
        back = [name for name in self.marks_back if name not in self.cleared]
        return "" if back == wanted else f"{len(wanted)} marks sent, {len(back)} back"

    def ignored(self) -> dict[str, int]:
        """What of its messages the worker counts as of no use."""
        return {}

    # What a client is made of

    @abstractmethod
    async def converse(self) -> None:
        """Its handler of a socket."""

    async def say(self, pcm: bytes) -> None:
        """Sends speech, of clients that have something to say."""
        raise AssertionError(f"{self.name} only listens, or echoes")

    async def clear(self) -> None:
        """Empties the platform's queue, of clients that can be interrupted."""
        raise AssertionError(f"{self.name} clears nothing")

    async def receive(self) -> Message:
        """The next message. Raises `Gone`."""
        while True:
            message = await self.socket.receive()
            if message.type is not WSMsgType.TEXT:
                raise Gone
            told = json.loads(message.data)
            self.events[told["event"]] += 1
            if self.distort is not None:
                told = self.distort(told)
            if told is not None:
                return told

    async def until_gone(self) -> None:
        """Deaf, but connected."""
        while True:
            await self.receive()

    async def send(self, message: Message) -> None:
        if not self.socket.closed:
            self.messages_sent += 1
            await self.socket.send_str(json.dumps(message))

    async def send_audio(self, message: Message, pcm: bytes) -> None:
        """`message` is a media message that lacks its payload."""
        message["media"]["payload"] = base64.b64encode(pcm).decode("ascii")
        self.sent += pcm
        await self.send(message)

    async def send_mark(self, message: Message) -> None:
        self.marks_sent.append(message["mark"]["name"])
        await self.send(message)

    def hear(self, pcm: bytes) -> None:
        self.heard += pcm
        self.longest_piece = max(self.longest_piece, len(pcm))

    def background(self, work: Any, name: str) -> None:
        self._tasks.append(asyncio.create_task(work, name=f"{self.name} {name}"))


class Ulaw:
    """Mixed into a client of Twilio's: mu-law on the wire, PCM16 in the accounts."""

    async def send_audio(self: Any, message: Message, pcm: bytes) -> None:
        message["media"]["payload"] = base64.b64encode(g711.ulaw_encode(np.frombuffer(pcm, "<i2"))).decode("ascii")
        self.sent += pcm
        await self.send(message)

    def hear(self: Any, ulaw: bytes) -> None:
        Client.hear(self, g711.ulaw_decode(ulaw).astype("<i2").tobytes())


def pieces(pcm: bytes, size: int) -> list[bytes]:
    return [pcm[at : at + size] for at in range(0, len(pcm), size)]


def padded(pcm: bytes, multiple: int = 320) -> bytes:
    """Filled up with silence to whole frames, as the platform's documents ask for."""
    return pcm + bytes(-len(pcm) % multiple)


def at_rate(pcm: bytes, rate: int) -> bytes:
    """What an application sends that believes in another rate than 8 kHz."""
    return np.repeat(np.frombuffer(pcm, "<i2"), rate // 8000).tobytes()


def decoded(message: Message) -> bytes:
    return base64.b64decode(message["media"]["payload"])


async def in_real_time(chunks: list[bytes], send: Any, share: float = 1.0) -> None:
    """Sends each chunk, then waits for `share` of the time that it takes to be heard."""
    for chunk in chunks:
        await send(chunk)
        await asyncio.sleep(len(chunk) / BYTES_PER_SECOND * share)
