"""How a request to Asterisk's REST interface is made, counted, limited in time, and sent once more.

Every request has one limit for all of it: waiting for a connection of the pool, sending, and reading the answer.

A pooled connection that Asterisk closed in the meantime (`session_keep_alive`, a restart) is found out only by using
it. What may be repeated is then sent once more. A create may, because its id is ours: when the repetition is refused
and the object exists, the first attempt made it. Nothing is repeated after the limit, or when no connection could be
made. (aiohttp repeats GET, PUT and DELETE by itself too, uncounted.)
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote, urlencode

import aiohttp
import msgspec
from yarl import URL

from ari_app.ari.errors import AriError, AriMalformed, AriNotFound, AriUnavailable, from_status
from ari_app.ari.models import decode_custom
from ari_app.domain.pbx_breaker import PbxBreaker

MAX_ANSWER_BYTES = 32 * 1024 * 1024
"""A list of 4,000 channels is 1.5 MB."""

POOL_CONNECTIONS = 64
"""Asterisk's `sessionlimit` must hold these, the events' WebSocket and the operators' (its default is 100)."""

KEEPALIVE_SECONDS = 10.0
"""How long an idle connection is kept: less than Asterisk's `session_keep_alive` of 15 s."""

_ModelT = TypeVar("_ModelT")


class AriTransport:
    """Connections to one Asterisk, for one Stasis application. What `AriClient` asks for goes through `_fetch`,
    `_create`, `_delete`, `_send` and `_counted`, which raise what it says."""

    def __init__(self, base_url: str, username: str, password: str, app: str, timeout_seconds: float = 5.0) -> None:
        """`base_url` is that of Asterisk's HTTP server, `http://127.0.0.1:8088`, with its `prefix` if it has one."""
        self.app = app
        self.requests: Counter[str] = Counter()
        """How requests ended: `ok`, or the error's `reason`. Never decreases."""
        self.timeouts = 0
        """Requests without an answer within their limit."""
        self.breaker = PbxBreaker()
        """Says whether Asterisk is to be left alone; requests are made all the same."""
        self.repeats = 0
        """Requests that were sent a second time because a pooled connection was stale."""
        self._root = base_url.rstrip("/") + "/ari"
        self._timeout_seconds = timeout_seconds
        # aiohttp's own helper for this was renamed between the versions that are supported.
        credentials = base64.b64encode(f"{username}:{password}".encode()).decode()
        self._headers = {"Authorization": f"Basic {credentials}"}
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(limit=POOL_CONNECTIONS, keepalive_timeout=KEEPALIVE_SECONDS)
        self._session = aiohttp.ClientSession(
            connector=connector,
            headers=self._headers,
            timeout=aiohttp.ClientTimeout(total=None),  # ours covers the repetition too
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _fetch(self, path: str, kind: type[_ModelT], query: Mapping[str, str] | None = None) -> _ModelT:
        return decode_answer("GET", path, await self._send("GET", path, query), kind)

    async def _create(
        self, path: str, query: Mapping[str, str], kind: type[_ModelT], existing: Callable[[], Awaitable[_ModelT]]
    ) -> _ModelT:
        sent = 0

        async def attempt() -> bytes:
            nonlocal sent
            sent += 1
            return await self._attempt("POST", path, query, None)

        try:
            return decode_answer("POST", path, await self._counted("POST", path, attempt, repeat=True), kind)
        except (AriMalformed, AriUnavailable):
            raise
        except AriError as refused:
            if sent < 2:
                raise
            try:
                return await existing()
            except AriNotFound:
                raise refused from None

    async def _delete(self, path: str, query: Mapping[str, str] | None, missing_ok: bool) -> bool:
        try:
            await self._send("DELETE", path, query)
        except AriNotFound:
            if not missing_ok:
                raise
            return False
        return True

    async def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        *,
        body: Any = None,
        repeat: bool = True,
        seconds: float | None = None,
    ) -> bytes:
        return await self._counted(
            method, path, lambda: self._attempt(method, path, query, body), repeat=repeat, seconds=seconds
        )

    async def _counted(
        self,
        method: str,
        path: str,
        attempt: Callable[[], Awaitable[_ModelT]],
        *,
        repeat: bool,
        seconds: float | None = None,
    ) -> _ModelT:
        try:
            answer = await self._limited(method, path, attempt, repeat, seconds or self._timeout_seconds)
        except AriError as error:
            self.requests[error.reason] += 1
            self.breaker.record(isinstance(error, AriUnavailable), time.monotonic())
            raise
        self.requests["ok"] += 1
        self.breaker.record(False, time.monotonic())
        return answer

    async def _limited(
        self, method: str, path: str, attempt: Callable[[], Awaitable[_ModelT]], repeat: bool, seconds: float
    ) -> _ModelT:
        try:
            async with asyncio.timeout(seconds):
                try:
                    return await attempt()
                except aiohttp.ClientConnectorError:
                    raise
                except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError, aiohttp.ClientPayloadError):
                    if not repeat:
                        raise
                    self.repeats += 1
                    return await attempt()
        except TimeoutError:
            self.timeouts += 1
            raise AriUnavailable(method, path, 0, f"no answer within {seconds:g} s") from None
        except aiohttp.WSServerHandshakeError as error:
            raise from_status(method, path, error.status, "Asterisk opens no event stream") from None
        except (aiohttp.ClientError, OSError) as error:
            raise AriUnavailable(method, path, 0, str(error) or type(error).__name__) from None

    async def _attempt(self, method: str, path: str, query: Mapping[str, str] | None, body: Any) -> bytes:
        async with self._open().request(method, self._url(path, query), json=body, allow_redirects=False) as response:
            answer = bytearray()
            async for chunk in response.content.iter_any():
                answer += chunk
                if len(answer) > MAX_ANSWER_BYTES:
                    raise AriMalformed(method, path, response.status, f"more than {MAX_ANSWER_BYTES} bytes")
            if not 200 <= response.status < 300:
                raise from_status(method, path, response.status, message_of(bytes(answer), response.reason))
            return bytes(answer)

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError("AriClient is used outside of `async with`")
        return self._session

    def _url(self, path: str, query: Mapping[str, str] | None) -> URL:
        # Asterisk reads '+' in a query as a space and '%2B' as a plus: everything unusual is sent as %XX.
        suffix = "?" + urlencode(query, quote_via=quote, safe="") if query else ""
        return URL(f"{self._root}{path}{suffix}", encoded=True)


def path_of(*segments: str) -> str:
    """A path of these, quoted. Raises `ValueError` for an empty one, or one that would lead elsewhere."""
    if any(segment in ("", ".", "..") for segment in segments):
        raise ValueError(f"an id is empty or a dot: {segments}")
    return "".join("/" + quote(segment, safe="") for segment in segments)


def decode_answer(method: str, path: str, answer: bytes, kind: type[_ModelT]) -> _ModelT:
    """What Asterisk has answered. Raises `AriMalformed`."""
    try:
        return msgspec.json.decode(answer, type=kind, dec_hook=decode_custom)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise AriMalformed(method, path, 200, str(error)) from None


def message_of(answer: bytes, fallback: str | None) -> str:
    """Asterisk's own words: under `message`, of some 500s under `error`."""
    try:
        said = json.loads(answer)
    except (ValueError, RecursionError):
        said = None
    if isinstance(said, dict):
        for key in ("message", "error"):
            if isinstance(said.get(key), str):
                return str(said[key])[:300]
    return fallback or "no message"
