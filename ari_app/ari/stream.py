"""The event stream of a Stasis application: connected for ever, and never trusted over a gap.

Asterisk drops a client that does not read for a moment (`websocket_write_timeout`), so reading is all that the reader
does: decode, and hand on to a function that must only enqueue. What happened while there was no connection is lost for
good; calls go on all the same. Hence on every connect `on_connected` looks at what there is (reconciles), and the
events that come meanwhile are held back and handed on, in order, as soon as it is done. Some of what they tell may be
part of what that look has found already.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import aiohttp
import structlog

from ari_app.ari.client import AriClient
from ari_app.ari.errors import AppReplaced, AriUnauthorized
from ari_app.ari.events import UNWANTED, ApplicationReplaced, Event, decode_event
from ari_app.errors import RemoteProtocolError, TrunkbridgeError

HEARTBEAT_SECONDS = 4.0
"""Asterisk sends no pings of its own. A dead connection is noticed after 1.5 times this."""

BACKOFF_FIRST_SECONDS = 0.1
BACKOFF_MAX_SECONDS = 1.0
"""Asterisk is on this machine, and its one controller costs it nothing: a call waits for it to be back."""

STABLE_SECONDS = 10.0
"""A connection that lasted as long resets the backoff: one that ends at once, again and again, does not."""

CLOSE_SECONDS = 1.0

MAX_HELD = 50_000
"""Events held back during one reconcile, some 30 a call. With more, the connection is given up and made anew."""

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class StreamCounters:
    """What the stream has seen. Never decreases."""

    connects: int = 0
    losses: int = 0
    events: int = 0
    """Handed on, or held back to be."""
    unknown: int = 0
    """Messages of a type that nobody reads."""
    malformed: int = 0


class EventStream:
    """Delivers the events of `client.app` until it is cancelled.

    `on_event(event)` is called once for each event, in Asterisk's order; it must return at once.
    `on_connected()` is awaited on every connect, after the event filter was set. When it raises a `TrunkbridgeError`
    (Asterisk did not answer, say) the connection is given up and made anew; anything else ends `run`. It is cancelled
    when the connection is lost before it is done, and called again on the next.
    `on_lost(reason)` is called once for every connection that ended, after its last event.
    """

    def __init__(
        self,
        client: AriClient,
        *,
        on_event: Callable[[Event], None],
        on_connected: Callable[[], Awaitable[None]],
        on_lost: Callable[[str], None],
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self.counters = StreamCounters()
        self.live = False
        """Connected and reconciled: events arrive as they happen."""
        self.moved_at = time.monotonic()
        """When a connection was last made or lost, or tried for: only a live stream may stand still for long."""
        self._client = client
        self._on_event = on_event
        self._on_connected = on_connected
        self._on_lost = on_lost
        self._heartbeat_seconds = heartbeat_seconds
        self._uniform = uniform
        self._held: deque[Event] = deque()

    async def run(self) -> None:
        """Never returns. Raises `AppReplaced` when another process took the application's name (its state must not be
        acted on any more) and `AriUnauthorized` when Asterisk does not accept user and password."""
        failures = 0
        while True:
            started = asyncio.get_running_loop().time()
            reason = await self._connect_once()
            lasted = asyncio.get_running_loop().time() - started
            failures = 0 if lasted >= STABLE_SECONDS else failures + 1
            pause = self._uniform(0.0, backoff_limit(failures))
            _log.warning("ari_events_down", app=self._client.app, reason=reason, retry_seconds=round(pause, 3))
            await asyncio.sleep(pause)

    async def _connect_once(self) -> str:
        """One connection from beginning to end; returns why it ended."""
        self.moved_at = time.monotonic()
        try:
            socket = await self._client.connect_events(self._heartbeat_seconds)
        except AriUnauthorized:
            raise
        except TrunkbridgeError as error:
            return str(error)
        self.counters.connects += 1
        reason = "cancelled"
        try:
            reason = await self._serve(socket)
        except AppReplaced as error:
            reason = error.reason
            raise
        finally:
            self._release()
            self.live = False
            self.moved_at = time.monotonic()
            self.counters.losses += 1
            self._on_lost(reason)
            await _close(socket)
        return reason

    async def _serve(self, socket: aiohttp.ClientWebSocketResponse) -> str:
        reader = asyncio.create_task(self._read(socket), name="ari-events")
        reconcile = asyncio.create_task(self._reconcile(), name="ari-reconcile")
        try:
            await asyncio.wait((reader, reconcile), return_when=asyncio.FIRST_COMPLETED)
            if not reader.done():
                try:
                    await reconcile
                except AriUnauthorized:
                    raise
                except TrunkbridgeError as error:
                    return f"reconcile failed: {error}"
            return await reader
        finally:
            for task in (reader, reconcile):
                task.cancel()
            await asyncio.gather(reader, reconcile, return_exceptions=True)

    async def _reconcile(self) -> None:
        await self._client.set_event_filter(UNWANTED)
        await self._on_connected()
        # No await from here on: nothing can arrive between the last event held back and the first handed on directly.
        self._release()
        self.live = True
        _log.info("ari_events_up", app=self._client.app, connects=self.counters.connects)

    def _release(self) -> None:
        while self._held:
            self._on_event(self._held.popleft())

    async def _read(self, socket: aiohttp.ClientWebSocketResponse) -> str:
        """Receives until the connection ends; returns why."""
        while True:
            message = await socket.receive()
            if message.type in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY):
                self._take(message.data)
                if len(self._held) > MAX_HELD:
                    return f"more than {MAX_HELD} events came before the reconcile was done"
            elif message.type is aiohttp.WSMsgType.ERROR:
                return f"connection failed: {str(message.data) or type(message.data).__name__}"
            else:
                return f"closed by Asterisk ({socket.close_code})"

    def _take(self, data: bytes | str) -> None:
        try:
            event = decode_event(data)
        except RemoteProtocolError as error:
            self.counters.malformed += 1
            _log.warning("ari_event_malformed", error=str(error))
            return
        if event is None:
            self.counters.unknown += 1
        elif isinstance(event, ApplicationReplaced):
            raise AppReplaced(self._client.app)
        else:
            self.counters.events += 1
            if self.live:
                self._on_event(event)
            else:
                self._held.append(event)


def backoff_limit(failures: int) -> float:
    """The longest pause, in seconds, before the next attempt; the pause is anything from 0 to it ("full jitter"), so
    that the attempts are not in step with whatever keeps Asterisk from answering."""
    return float(min(BACKOFF_MAX_SECONDS, BACKOFF_FIRST_SECONDS * 2 ** min(failures, 16)))


async def _close(socket: aiohttp.ClientWebSocketResponse) -> None:
    try:
        async with asyncio.timeout(CLOSE_SECONDS):
            await socket.close()
    except TimeoutError:
        pass  # a peer that does not answer has no say; aiohttp has closed the transport
