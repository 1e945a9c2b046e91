"""A media worker in this process, with both of its neighbours played by the test: Asterisk and the application."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import ssl
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import WSMsgType, web

from audiosocket import wire
from audiosocket.breakers import Breakers, MemoryBreakers
from audiosocket.callspec import CallNotice, CallReport, CallSpec, LegOrder, WorkerInfo
from audiosocket.errors import SpecRefused
from audiosocket.prompts import Prompts
from audiosocket.runtime.process import StopSignal
from audiosocket.worker import Worker, WorkerOptions
from tests.media import call_spec

DEADLINE = 10.0


async def until(condition: Callable[[], Any], what: str, seconds: float = DEADLINE) -> Any:
    """Polls until `condition` gives something true; fails with `what` after the deadline."""
    clock = asyncio.get_running_loop().time
    began = clock()
    while True:
        value = condition()
        if value:
            return value
        waited = clock() - began
        if waited > seconds:
            raise AssertionError(f"not within {seconds:g} s: {what}")
        await asyncio.sleep(max(0.005, waited / 50))


class AnnouncedCalls:
    """A call source that keeps specs and reports in memory, as Redis and the controller would."""

    def __init__(self) -> None:
        self.specs: dict[str, CallSpec] = {}
        self.reports: list[CallReport] = []
        self.announced: list[WorkerInfo] = []
        self.notices: list[CallNotice] = []
        self.order: Callable[[LegOrder], None] | None = None
        """Hands an order to the worker."""
        self.breakers: Breakers = MemoryBreakers()
        self.given: set[str] = set()
        """Ids of the calls that are leased to the worker."""
        self.away: set[str] = set()
        """Ids of calls that another worker has."""
        self.not_had: list[str] = []
        """Calls that the worker was asked for and has not had."""
        self.closed = False

    def announce_call(self, **changes: Any) -> CallSpec:
        spec = call_spec(call_id=str(uuid.uuid4()), leg_uuid=str(uuid.uuid4()), **changes)
        self.specs[spec.leg_uuid] = spec
        return spec

    async def take(self, leg_uuid: str, peer: str) -> CallSpec:
        try:
            return self.specs.pop(leg_uuid)
        except KeyError:
            raise SpecRefused("unknown") from None

    async def report(self, spec: CallSpec, report: CallReport) -> None:
        self.reports.append(report)

    def notify(self, spec: CallSpec, notice: CallNotice) -> None:
        self.notices.append(notice)

    def not_here(self, order: LegOrder) -> None:
        self.not_had.append(order.call_id)

    async def orders(self, worker_id: str, handle: Callable[[LegOrder], None]) -> None:
        self.order = handle
        await asyncio.Event().wait()

    async def announce(self, info: WorkerInfo) -> set[str]:
        self.announced.append(info)
        return self.given

    async def given_away(self, worker_id: str, calls: Mapping[str, int]) -> set[str]:
        return self.away & set(calls)

    async def close(self, worker_id: str) -> None:
        self.closed = True


class Asterisk:
    """One AudioSocket connection, as Asterisk makes it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self._decoder = wire.FrameDecoder()
        self.frames: list[bytes] = []
        self.kinds: list[int] = []
        self.times: list[float] = []
        self.hung_up = False
        self._task = asyncio.create_task(self._read(), name="asterisk")

    @classmethod
    async def connect(cls, port: int, leg_uuid: str | None, receive_buffer: int = 0) -> Asterisk:
        connection = socket.socket()
        # As Asterisk does. Otherwise the kernel keeps a frame back until the worker's next one acknowledges the last.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if receive_buffer:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", port))
        channel = cls(*await asyncio.open_connection(sock=connection))
        if leg_uuid is not None:
            channel.send(wire.KIND_UUID, uuid.UUID(leg_uuid).bytes)
        return channel

    def send(self, kind: int, payload: bytes) -> None:
        self.writer.write(wire.encode(kind, payload))

    async def talk(self, frames: int, payload: bytes = b"\x00" * 160) -> None:
        """Sends audio at 20 ms a frame."""
        loop = asyncio.get_running_loop()
        start = loop.time()
        for number in range(frames):
            self.send(wire.KIND_AUDIO, payload)
            await asyncio.sleep(max(0, start + (number + 1) * 0.02 - loop.time()))

    def audio(self) -> list[bytes]:
        """What has been heard that is not silence."""
        return [frame for frame in self.frames if any(frame)]

    async def ended(self) -> None:
        """Waits for the worker to close the connection."""
        async with asyncio.timeout(DEADLINE):
            await self._task

    async def hang_up(self) -> None:
        self.writer.close()
        await asyncio.gather(self._task, self.writer.wait_closed(), return_exceptions=True)

    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while data := await self.reader.read(65536):
                for kind, payload in self._decoder.feed(data):
                    if kind in wire.AUDIO_KINDS:
                        self.frames.append(payload)
                        self.kinds.append(kind)
                        self.times.append(loop.time())
                    else:
                        assert (kind, payload) == (wire.KIND_HANGUP, b"")
                        self.hung_up = True
        except ConnectionResetError:
            pass
        self.writer.close()


class Application:
    """An application's WebSocket server whose behaviour is the test's."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.sockets: list[web.WebSocketResponse] = []
        self.requests: list[web.Request] = []
        self.closed = 0
        self.released = asyncio.Event()
        """Set when the test is over: what a hanging application waits for."""
        self.close_code: int | None = None
        self.url = ""
        self.behave: Callable[[web.WebSocketResponse], Awaitable[None]] | None = None
        self.before_upgrade: Callable[[web.Request], Awaitable[web.StreamResponse | None]] | None = None

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        if self.before_upgrade is not None:
            answer = await self.before_upgrade(request)
            if answer is not None:
                return answer
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        self.sockets.append(socket)
        try:
            if self.behave is not None:
                await self.behave(socket)
            async for message in socket:
                if message.type == WSMsgType.TEXT:
                    self.messages.append(json.loads(message.data))
        finally:
            self.closed += 1
            self.close_code = socket.close_code
        return socket

    def events(self, event: str) -> list[dict[str, Any]]:
        return [message for message in self.messages if message["event"] == event]

    async def say(self, pcm: bytes) -> None:
        await self.send({"event": "media", "media": {"payload": base64.b64encode(pcm).decode()}})

    async def send(self, message: dict[str, Any]) -> None:
        await self.sockets[-1].send_str(json.dumps(message))


class Rig:
    """Worker, application and call source together."""

    def __init__(self, worker: Worker, source: AnnouncedCalls, app: Application, stop: StopSignal) -> None:
        self.worker, self.source, self.app, self.stop = worker, source, app, stop
        self.channels: list[Asterisk] = []

    async def connect(self, leg_uuid: str | None, receive_buffer: int = 0) -> Asterisk:
        """A connection that says it is the leg `leg_uuid`, or says nothing."""
        self.channels.append(await Asterisk.connect(self.worker.port, leg_uuid, receive_buffer))
        return self.channels[-1]

    async def call(self, **changes: Any) -> Asterisk:
        """An announced call whose media leg has connected; the application need not be there yet."""
        spec = self.source.announce_call(**({"url": self.app.url} | changes))
        return await self.connect(spec.leg_uuid)

    async def talking(self, **changes: Any) -> Asterisk:
        """A call whose stream has started."""
        before = len(self.app.events("start"))
        channel = await self.call(**changes)
        await until(lambda: len(self.app.events("start")) > before, "start message")
        return channel

    async def report(self, number: int = 1) -> CallReport:
        """The report of the call that ended as number `number`."""
        await until(lambda: len(self.source.reports) >= number, "call report")
        await until(lambda: not self.worker.calls, "call gone from the worker")
        return self.source.reports[number - 1]


@asynccontextmanager
async def rig(prompts: Prompts | None = None, tls: ssl.SSLContext | None = None, **options: Any) -> AsyncIterator[Rig]:
    """A running worker and application (with `tls`, over wss), stopped in order at the end."""
    async with serving(tls=tls) as app:
        async for rigged in _rigged(app, prompts, options):
            yield rigged


@asynccontextmanager
async def serving(port: int = 0, tls: ssl.SSLContext | None = None) -> AsyncIterator[Application]:
    """An application that listens, with `tls` at a wss:// URL; what still hangs at the end is released."""
    app = Application()
    web_app = web.Application()
    web_app.router.add_get("/bot", app.handle)
    runner = web.AppRunner(web_app, access_log=None, shutdown_timeout=0.2)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, ssl_context=tls).start()
    app.url = f"{'wss' if tls else 'ws'}://127.0.0.1:{runner.addresses[0][1]}/bot"
    try:
        yield app
    finally:
        app.released.set()
        await runner.cleanup()


async def _rigged(app: Application, prompts: Prompts | None, options: dict[str, Any]) -> AsyncIterator[Rig]:
    source = AnnouncedCalls()
    values = {"worker_id": "test/0", "node": "test", "host": "127.0.0.1", "port": 0, "advertise": "127.0.0.1"}
    worker = Worker(WorkerOptions(**(values | {"capacity": 50, "drain_seconds": 5} | options)), source, prompts)
    stop = StopSignal()
    running = asyncio.create_task(worker.run(stop), name="worker")
    rigged = Rig(worker, source, app, stop)
    try:
        await until(lambda: worker.port or running.done(), "worker listening")
        yield rigged
    finally:
        app.released.set()
        for channel in rigged.channels:
            await channel.hang_up()
        stop.requested.set()
        stop.at_once.set()
        await running
        assert not worker.calls
        assert not worker._legs
        assert not worker._tasks
        assert source.closed
