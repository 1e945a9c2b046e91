"""What a worker asks and tells over HTTP, as the platform does: the URL to dial, and the callbacks of streams.

A call waits for its URL and never for a callback. Callbacks to one host wait in a queue of their own, so that a dead
server costs nobody else's. Redirects are not followed, cookies are not kept, the environment's proxies not used.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlencode

import aiohttp
import structlog
from yarl import URL

from audiosocket import __version__
from audiosocket.callspec import CallSpec, EndReason, masked_url
from audiosocket.clock import now_ms
from audiosocket.dialects import URL_LOOKUPS
from audiosocket.dialects.base import Dialect, HttpRequest
from audiosocket.errors import ApplicationError
from audiosocket.resolver import Resolver
from audiosocket.stream_end import stream_end

ANSWER_MAX_BYTES = 16_384
"""Of the answer that names the URL to dial."""
LOOKUP_RETRY_SECONDS = 0.2
CALLBACK_SECONDS = 15.0
"""How long a callback's answer may take. Exotel documents 15 s and two retries."""
CALLBACK_PAUSES_SECONDS = (1.0, 5.0)
"""Before the first and the second retry."""
CALLBACKS_AT_ONCE = 8
"""To one host."""
CALLBACKS_WAITING_MAX = 1000
"""For one host, those under way included."""
CLOSE_SECONDS = 5.0

log = structlog.get_logger(__name__)


class _NoAnswer(Exception):
    """An exchange failed before there was a status; the text repeats nothing of the URL."""


class _Lane:
    """The callbacks to one host."""

    __slots__ = ("places", "waiting")

    def __init__(self) -> None:
        self.places = asyncio.Semaphore(CALLBACKS_AT_ONCE)
        self.waiting = 0


class PlatformHttp:
    """One worker's HTTP client."""

    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver
        self._session: aiohttp.ClientSession | None = None
        self._lanes: dict[str, _Lane] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False
        self.sent = 0
        """Callbacks that were answered with a status below 400."""
        self.failed = 0
        """Callbacks that were not, after the last retry."""
        self.dropped = 0
        """Callbacks that were never sent, or given up when the worker ended."""

    async def resolve(self, spec: CallSpec) -> CallSpec:
        """The spec with the URL to dial, of one whose URL is to be asked for it.

        `connect_timeout_seconds` is the limit of all attempts together. Raises `ApplicationError` (`app_url_failed`).
        """
        try:
            lookup = URL_LOOKUPS.get(spec.dialect)
            if lookup is None:
                raise ValueError(f"dialect {spec.dialect} has no dynamic URLs")
            request = lookup.url_request(spec, now_ms())
            async with asyncio.timeout(spec.connect_timeout_seconds):
                status, body = await self._ask(request, spec.connect_attempts)
            return lookup.url_answer(spec, status, body)
        except TimeoutError:
            why = f"no answer within {spec.connect_timeout_seconds:g} s"
        except (_NoAnswer, ValueError) as error:
            why = str(error)
        raise ApplicationError("app_url_failed", f"{masked_url(spec.url)}: {why}")

    def deliver(self, request: HttpRequest | None, call_id: str) -> None:
        """Sends a callback in the background; None is none."""
        if request is None:
            return
        host = "/".join(request.url.split("/", 3)[:3])
        lane = self._lanes.setdefault(host, _Lane())
        if self._closing or lane.waiting >= CALLBACKS_WAITING_MAX:
            self.dropped += 1
            log.warning("callback_dropped", url=masked_url(request.url), call_id=call_id, waiting=lane.waiting)
            return
        lane.waiting += 1
        task = asyncio.create_task(self._deliver(host, lane, request, call_id), name=f"callback {call_id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Lets callbacks that are under way end, for at most `CLOSE_SECONDS`, and disconnects."""
        self._closing = True
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=CLOSE_SECONDS)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
            if late:
                self.dropped += len(late)
                log.warning("callbacks_given_up", count=len(late))
        if self._session is not None:
            await self._session.close()

    # Inside

    async def _ask(self, request: HttpRequest, attempts: int) -> tuple[int, bytes]:
        # Only what may be different the next time is tried again: no answer, and the server's own fault.
        for _ in range(attempts - 1):
            try:
                status, body = await self._answer(request)
            except _NoAnswer:
                pass
            else:
                if status < 500:
                    return status, body
            await asyncio.sleep(LOOKUP_RETRY_SECONDS)
        return await self._answer(request)

    async def _answer(self, request: HttpRequest) -> tuple[int, bytes]:
        async with self._exchange(request) as response:
            body = b""
            while len(body) <= ANSWER_MAX_BYTES and (piece := await response.content.read(ANSWER_MAX_BYTES)):
                body += piece
        if len(body) > ANSWER_MAX_BYTES:
            raise ValueError(f"an answer of more than {ANSWER_MAX_BYTES} bytes")
        return response.status, body

    async def _deliver(self, host: str, lane: _Lane, request: HttpRequest, call_id: str) -> None:
        try:
            async with lane.places:
                why = await self._attempt_all(request)
        finally:
            lane.waiting -= 1
            if not lane.waiting:
                self._lanes.pop(host, None)
        if why:
            self.failed += 1
            log.warning("callback_failed", url=masked_url(request.url), call_id=call_id, why=why)
        else:
            self.sent += 1

    async def _attempt_all(self, request: HttpRequest) -> str:
        for pause in (*CALLBACK_PAUSES_SECONDS, None):
            try:
                async with asyncio.timeout(CALLBACK_SECONDS), self._exchange(request) as response:
                    status = response.status
            except TimeoutError:
                why = f"no answer within {CALLBACK_SECONDS:g} s"
            except _NoAnswer as error:
                why = str(error)
            else:
                if status < 400:
                    return ""
                why = f"HTTP status {status}"
                if status < 500:
                    break
            if pause is not None:
                await asyncio.sleep(pause)
        return why

    @asynccontextmanager
    async def _exchange(self, request: HttpRequest) -> AsyncIterator[aiohttp.ClientResponse]:
        """One request, and the beginning of its answer. Raises `_NoAnswer`."""
        headers, body = request.headers, None
        if request.form:
            headers = headers | {"Content-Type": "application/x-www-form-urlencoded"}
            body = urlencode(request.form).encode()
        try:
            # As it is written, for what is signed is what has to arrive.
            url = URL(request.url, encoded=True)
            client = self._client()
            async with client.request(request.method, url, headers=headers, data=body, allow_redirects=False) as answer:
                yield answer
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise _NoAnswer(_what(error)) from None

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                # Calls and lanes bound it: no call waits for another's.
                connector=aiohttp.TCPConnector(limit=0, resolver=self._resolver, use_dns_cache=False),
                timeout=aiohttp.ClientTimeout(total=None),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"User-Agent": f"trunkbridge/{__version__}", "Accept-Encoding": "identity"},
                auto_decompress=False,
            )
        return self._session


class StreamCallbacks:
    """What one stream's callbacks are sent at: its start, and its end."""

    def __init__(self, http: PlatformHttp, dialect: Dialect, call_id: str) -> None:
        self._http = http
        self._dialect = dialect
        self._call_id = call_id
        self._opened_ms = 0

    def started(self) -> None:
        """The WebSocket is open."""
        self._opened_ms = now_ms()
        self._http.deliver(self._dialect.stream_started(self._opened_ms), self._call_id)

    def ended(self, reason: EndReason, detail: str, at_ms: int, recording: str) -> None:
        """The stream was over at `at_ms` (Unix time in ms), or could not be opened."""
        seconds = (at_ms - self._opened_ms) / 1000 if self._opened_ms else None
        end = stream_end(reason, detail, seconds, recording)
        self._http.deliver(self._dialect.stream_ended(end, at_ms), self._call_id)


def _what(error: Exception) -> str:
    """An error without the URL, which aiohttp's own texts may hold."""
    match error:
        case aiohttp.ClientConnectorCertificateError():
            inner = error.certificate_error
            return f"TLS certificate refused: {getattr(inner, 'verify_message', '') or type(inner).__name__}"
        case aiohttp.ClientConnectorSSLError():
            return f"TLS failed: {getattr(error.os_error, 'reason', '') or type(error.os_error).__name__}"
        case aiohttp.ClientConnectorDNSError():
            return "the host's name cannot be resolved"
        case aiohttp.ClientConnectorError():
            return os.strerror(error.os_error.errno) if error.os_error.errno else "cannot be connected"
        case ValueError():
            return "no request can be made of this URL"
        case aiohttp.ClientResponseError():
            return "the answer is no HTTP"
        case aiohttp.ClientPayloadError() | aiohttp.ServerDisconnectedError():
            return "the connection ended before the answer was whole"
        case OSError() if error.errno:
            return os.strerror(error.errno)
        case _:
            return type(error).__name__
