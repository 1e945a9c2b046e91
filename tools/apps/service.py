"""What both applications share: the server around the calls, counters on /stats, a recording of events, and stopping.

The platform dials `ws://host:port/<anything>`. `GET /stats` answers `{"calls": [...]}`, oldest first.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import signal
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import uvloop
from aiohttp import WSCloseCode, WSMsgType, web

log = logging.getLogger("app")

CALLS_REMEMBERED = 2000
FLUSH_SECONDS = 0.25
MESSAGE_MAX_BYTES = 1 << 20
Message = dict[str, Any]


@dataclass
class CallStats:
    """Counters of one call, as /stats shows them. Times are monotonic seconds."""

    opened_at: float = field(default_factory=time.monotonic)
    first_media_at: float | None = None
    ended_at: float | None = None
    path: str = ""
    """Path and query that the platform dialled."""
    call_sid: str = ""
    stream_sid: str = ""
    start: Message | None = None
    """The start message as it came."""
    frames_received: int = 0
    """Media messages."""
    bytes_received: int = 0
    """Bytes of decoded audio."""
    sequence_breaks: int = 0
    """Messages whose sequence_number was not one more than the one before."""
    media_gap_max_ms: float = 0.0
    """Longest time between two media messages."""
    bytes_sent: int = 0
    marks_sent: list[str] = field(default_factory=list)
    marks_echoed: list[str] = field(default_factory=list)
    turns: int = 0
    barge_ins: int = 0
    digits: str = ""
    stop_reason: str | None = None
    """From the platform's stop message; None when there was none."""
    closed_by: str | None = None
    """`us`, `platform` (close frame) or `lost`."""


class EventLog:
    """Events of all calls: one line of JSON each, `{"at": monotonic seconds, "call": sid, "event": ..., ...}`.

    `add` only remembers; the file is written four times a second by a thread, so that no disk stands in the way of
    audio.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._pending: list[Message] = []

    def add(self, call: str, event: str, /, **detail: object) -> None:
        """Remember an event of the present moment."""
        if self._path is not None:
            self._pending.append({"at": time.monotonic(), "call": call, "event": event, **detail})

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Write in the background, the rest at the end. Raises OSError when the file cannot be written."""
        if self._path is None:
            yield
            return
        await asyncio.to_thread(self._write, [], "w")
        task = asyncio.create_task(self._flush_now_and_then(), name="event-log")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            self._write(self._taken())

    async def _flush_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            if self._pending:
                await asyncio.to_thread(self._write, self._taken())

    def _taken(self) -> list[Message]:
        taken, self._pending = self._pending, []
        return taken

    def _write(self, events: list[Message], mode: str = "a") -> None:
        assert self._path is not None
        with self._path.open(mode) as out:
            out.writelines(json.dumps(event) + "\n" for event in events)


class CallSocket:
    """One call's WebSocket in the platform's protocol: reads, counts, and writes the three messages there are."""

    def __init__(self, socket: web.WebSocketResponse, path: str, events: EventLog) -> None:
        self._socket = socket
        self._events = events
        self._sequence = 0
        self._last_media_at: float | None = None
        self.stats = CallStats(path=path)

    def event(self, what: str, /, **detail: object) -> None:
        """Put an event of this call on record."""
        self._events.add(self.stats.call_sid, what, **detail)

    async def messages(self) -> AsyncIterator[Message]:
        """The platform's messages until either side closes. What is no JSON object is logged and left out."""
        async for frame in self._socket:
            if frame.type is not WSMsgType.TEXT:
                log.warning("call %s: a %s frame is not for us", self.stats.call_sid, frame.type.name)
                continue
            try:
                message = json.loads(frame.data)
                self._count(message)
            except (ValueError, KeyError, TypeError) as error:
                log.warning("call %s: not understood (%r): %.200s", self.stats.call_sid, error, frame.data)
                continue
            yield message

    def _count(self, message: Message) -> None:
        stats = self.stats
        if (number := message.get("sequence_number")) is not None:
            if int(number) != self._sequence + 1:
                stats.sequence_breaks += 1
            self._sequence = int(number)
        match message["event"]:
            case "start":
                stats.start = message
                stats.stream_sid = message["stream_sid"]
                stats.call_sid = message["start"]["call_sid"]
                log.info("call %s: started", stats.call_sid)
                self.event("start", start=message["start"])
            case "media":
                now = time.monotonic()
                stats.frames_received += 1
                stats.bytes_received += _decoded_size(message["media"]["payload"])
                if self._last_media_at is None:
                    stats.first_media_at = now
                else:
                    stats.media_gap_max_ms = max(stats.media_gap_max_ms, (now - self._last_media_at) * 1000)
                self._last_media_at = now
            case "mark":
                stats.marks_echoed.append(message["mark"]["name"])
                self.event("mark_echoed", name=message["mark"]["name"])
            case "dtmf":
                stats.digits += message["dtmf"]["digit"]
                self.event("dtmf", digit=message["dtmf"]["digit"])
            case "stop":
                stats.stop_reason = message["stop"]["reason"]
                self.event("stop", reason=stats.stop_reason)

    async def send_media(self, payload: str) -> None:
        """Send base64 of PCM16. Raises ConnectionResetError when the platform has gone."""
        self.stats.bytes_sent += _decoded_size(payload)
        await self._send({"event": "media", "stream_sid": self.stats.stream_sid, "media": {"payload": payload}})

    async def send_mark(self, name: str) -> None:
        """Ask to be told when everything sent so far has been played. Raises ConnectionResetError."""
        self.stats.marks_sent.append(name)
        self.event("mark_sent", name=name)
        await self._send({"event": "mark", "stream_sid": self.stats.stream_sid, "mark": {"name": name}})

    async def send_clear(self) -> None:
        """Throw away what was sent and is not played yet. Raises ConnectionResetError."""
        self.event("clear")
        await self._send({"event": "clear", "stream_sid": self.stats.stream_sid})

    async def close(self, reason: str, code: int = WSCloseCode.OK) -> None:
        """End the call from our side."""
        if not self._socket.closed:
            self.stats.closed_by = "us"
            self.event("close", reason=reason)
            await self._socket.close(code=code)

    async def _send(self, message: Message) -> None:
        await self._socket.send_str(json.dumps(message, separators=(",", ":")))

    def ended(self) -> None:
        """The socket is gone; note how."""
        if self.stats.closed_by is None:
            self.stats.closed_by = "lost" if self._socket.close_code in (None, 1006) else "platform"
        self.stats.ended_at = time.monotonic()
        self.event("end", closed_by=self.stats.closed_by)
        log.info("call %s: ended by %s", self.stats.call_sid, self.stats.closed_by)


def _decoded_size(payload: str) -> int:
    """Bytes that this base64 text stands for."""
    return len(payload) // 4 * 3 - payload.count("=", -2)


Conversation = Callable[[CallSocket], Awaitable[None]]
"""What an application does with one call, from `connected` to the end of its socket."""


def make_app(handle_call: Conversation, events: EventLog) -> web.Application:
    """The server: WebSockets on any path, counters on /stats."""
    calls: deque[CallStats] = deque(maxlen=CALLS_REMEMBERED)
    sockets: set[web.WebSocketResponse] = set()

    async def stats(_: web.Request) -> web.Response:
        return web.json_response({"calls": [asdict(call) for call in calls]})

    async def serve_call(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(compress=False, max_msg_size=MESSAGE_MAX_BYTES, timeout=2.0)
        await socket.prepare(request)
        sockets.add(socket)
        call = CallSocket(socket, request.path_qs, events)
        calls.append(call.stats)
        try:
            await handle_call(call)
        except ConnectionResetError:
            log.info("call %s: the platform went away while we were talking", call.stats.call_sid)
        finally:
            sockets.discard(socket)
            call.ended()
        return socket

    async def close_calls(_: web.Application) -> None:
        await asyncio.gather(*(socket.close(code=WSCloseCode.GOING_AWAY) for socket in tuple(sockets)))

    app = web.Application()
    app.router.add_get("/stats", stats)
    app.router.add_get("/{path:.*}", serve_call)
    app.on_shutdown.append(close_calls)
    return app


def arguments(description: str, listen: str) -> argparse.ArgumentParser:
    """The options that both applications have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--listen", default=listen, metavar="HOST:PORT", help="default: %(default)s; port 0: any")
    parser.add_argument("--record", type=Path, metavar="FILE", help="write every event as a line of JSON")
    return parser


async def run(handle_call: Conversation, listen: str, record: Path | None) -> None:
    """Serve until SIGTERM or SIGINT. Prints `listening on HOST:PORT` once it does.

    Raises SystemExit for an address that is none or not free, and for a record that cannot be written.
    """
    host, _, port = listen.rpartition(":")
    if not host or not port.isdigit():
        raise SystemExit(f"--listen {listen}: expected HOST:PORT, such as 127.0.0.1:19301")
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    events = EventLog(record)
    runner = web.AppRunner(make_app(handle_call, events), access_log=None, handle_signals=False)
    try:
        async with events.running():
            await runner.setup()
            try:
                await web.TCPSite(runner, host, int(port)).start()
                bound = runner.addresses[0]
                print(f"listening on {bound[0]}:{bound[1]}", flush=True)
                await stop.wait()
            finally:
                await runner.cleanup()
    except OSError as error:
        raise SystemExit(f"cannot run: {error}") from error


def main(handle_call: Conversation, options: argparse.Namespace) -> None:
    """Log to stderr and run."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    uvloop.run(run(handle_call, options.listen, options.record))
