"""The application's WebSocket: we are the client (RFC 6455), as the hosted platform is.

picows does framing and masking; the closing handshake, fragments, limits and back-pressure are handled here. No
subprotocol and no extension is offered, pings are answered, redirects are not followed.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Callable
from functools import partial
from typing import Protocol

import picows

from audiosocket.app_connection import GONE_SECONDS, connected, gone, shut_down, was_reset
from audiosocket.app_gate import Gate
from audiosocket.compiled import FRAMES
from audiosocket.errors import ApplicationError
from audiosocket.resolver import Resolver

CLOSE_SECONDS = 2.0
"""How long the application may take to answer our close."""
MAX_UNSENT_BYTES = 131_072
"""Of caller audio as JSON, beside what the kernel holds: beyond it the application is slow, and caller frames are
dropped."""
MAX_UNREAD_BYTES = 4_194_304
"""Answers (marks, confirmed clears, pongs) that may wait for an application that goes on asking and reads none. The
10,000 marks that one may have waiting are less."""
WATCH_SECONDS = 1.0
"""How often it is looked whether the host of one that takes no more is still there."""
_READ_BUFFER_BYTES = 4096
_TEXT = picows.WSMsgType.TEXT  # an attribute of an enumeration costs a look-up a frame
_CLOSE = picows.WSMsgType.CLOSE


class StreamOwner(Protocol):
    """Who is told what comes from the application. Neither call may raise."""

    def app_text(self, message: bytes) -> None:
        """A whole text message."""

    def app_binary(self) -> None:
        """A binary message, which no dialect here uses."""

    def app_blocked(self, blocked: bool) -> None:
        """The socket takes no more, or takes again."""


class AppStream(picows.WSListener):
    """One open WebSocket."""

    def __init__(self, owner: StreamOwner, message_max_bytes: int) -> None:
        self._owner = owner
        self._max_bytes = message_max_bytes
        self._transport: picows.WSTransport | None = None
        self._gate: Gate | None = None
        self._fragments: list[bytes] = []
        self._fragments_bytes = 0
        self._fragments_text = True
        self._close_sent = False
        self._blocked = False
        self._muted = False
        self._faulty = False
        self._ending: tuple[str, str] | None = None
        self._watch: asyncio.TimerHandle | None = None
        self.open = False
        """Whether the handshake was completed; it stays so."""
        self.reset = False
        """Whether the connection was torn down (RST, time-out), and not ended by the application in order (FIN)."""
        self.send: Callable[[bytes], None] = _unsent
        """Sends one text message; without an open connection it does nothing. It is picows' own call, or the
        gate's before it: one step less."""

    @property
    def transport(self) -> picows.WSTransport:
        """The connection beneath, once it is open: its handshake's answer, its certificate."""
        assert self._transport is not None
        return self._transport

    def mute(self) -> None:
        """What the application sends from now on goes to the owner's `app_text` as it is then."""
        self._muted = True
        self._judge()

    async def wait_closed(self) -> tuple[str, str]:
        """Waits for the end of the connection; returns (reason, detail) in the words of `callspec.EndReason`."""
        assert self._transport is not None
        try:
            await self._transport.wait_disconnected()
        except picows.WSProtocolError as error:
            if self._ending is not None:
                return self._ending  # picows reads on behind it: of two close frames the second is a fault to it
            too_big = error.code == picows.WSCloseCode.MESSAGE_TOO_BIG
            return ("app_message_too_big" if too_big else "app_protocol_error", str(error))
        except picows.WSError as error:
            return ("app_protocol_error", str(error))
        except Exception as error:  # raised by our own listener: contained to this call
            return ("worker_error", f"{type(error).__name__}: {error}")
        how = "was reset, or timed out," if self.reset else "ended"
        return self._ending or ("app_lost", f"the connection {how} without a close frame")

    async def close(self) -> None:
        """Our end of the stream: close frame 1000, then the application's answer is awaited for a moment."""
        transport = self._transport
        if transport is None or transport.is_disconnected:
            self._let_go()
            return
        if not self._close_sent:
            self._close_sent = True
            self._judge()
            transport.send_close(picows.WSCloseCode.OK)
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self.wait_closed()
        except TimeoutError:
            pass
        finally:
            # A peer that answered is gone by now; one that does not read would keep a graceful close waiting.
            transport.disconnect(graceful=False)
            self._let_go()

    # picows.WSListener

    def on_ws_connected(self, transport: picows.WSTransport) -> None:
        self._transport = transport
        self.open = True
        self.send = partial(transport.send, _TEXT)
        if FRAMES is not None and not transport.is_secure:
            self._gate = Gate(self._owner.app_text, transport, self.send, self._judge, self._fault, self._max_bytes)
            self.send = self._gate.send
        transport.underlying_transport.set_write_buffer_limits(high=MAX_UNSENT_BYTES)

    def on_ws_frame(self, transport: picows.WSTransport, frame: picows.WSFrame) -> None:
        if self._ending is not None:
            return  # RFC 6455 section 5.5.1: nothing counts behind a close frame, nor behind a fault
        if self._faulty or (transport.is_close_frame_sent and not self._close_sent and frame.msg_type != _CLOSE):
            self._faulty = True  # picows has found a fault, and reads on until the connection is gone
            return
        if self._blocked and transport.underlying_transport.get_write_buffer_size() > MAX_UNREAD_BYTES:
            self._fail("app_protocol_error", 1008, f"it reads nothing: more than {MAX_UNREAD_BYTES} bytes wait for it")
            return
        kind = frame.msg_type
        if frame.rsv1 or frame.rsv2 or frame.rsv3:
            self._fail(
                "app_protocol_error", 1002, "reserved bit set, no extension was agreed on (RFC 6455 section 5.2)"
            )
        elif kind == _TEXT and frame.fin and not self._fragments:
            self._owner.app_text(frame.get_payload_as_bytes())
            if self._gate is not None and self._gate.shut and not frame.tail_size and not self._close_sent:
                self._gate.take_over()
                self._judge()
        elif kind == _CLOSE:
            self._peer_close(transport, frame)
        elif kind == picows.WSMsgType.PING:
            transport.send_pong(frame.get_payload_as_bytes())
        elif kind in (picows.WSMsgType.TEXT, picows.WSMsgType.BINARY, picows.WSMsgType.CONTINUATION):
            self._fragment(kind, frame)

    def on_ws_disconnected(self, transport: picows.WSTransport) -> None:
        self._fragments.clear()
        self._watch_no_more()
        self.reset = self.reset or was_reset(transport.underlying_transport.get_extra_info("socket"))

    def pause_writing(self) -> None:
        self._blocked = True
        self._judge()
        self._owner.app_blocked(True)
        self._look_later()

    def resume_writing(self) -> None:
        self._blocked = False
        self._watch_no_more()
        self._judge()
        self._owner.app_blocked(False)

    # Inside

    def _let_go(self) -> None:
        """Nothing refers to it any more that it refers to: it goes without a collection."""
        self._watch_no_more()
        self.send = _unsent
        self._gate = self._transport = None

    def _look_later(self) -> None:
        # The caller's audio is always under way, so that one whose host is gone soon takes no more.
        self._watch = asyncio.get_running_loop().call_later(WATCH_SECONDS, self._look_after_host)

    def _look_after_host(self) -> None:
        transport = self._transport
        if transport is None or transport.is_disconnected:
            return
        if gone(transport.underlying_transport.get_extra_info("socket")):
            self.reset = True
            if self._ending is None:
                self._ending = ("app_lost", f"no packet of its host's for {GONE_SECONDS:g} s")
            transport.disconnect(graceful=False)
        else:
            self._look_later()

    def _watch_no_more(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    def _judge(self) -> None:
        if self._gate is not None:
            usual = self._ending is None and not self._close_sent
            reads = usual and not self._blocked and not self._muted and not self._fragments
            self._gate.use(reads=reads, sends=usual)

    def _fault(self, error: Exception) -> None:
        if self._ending is None:
            self._ending = ("worker_error", f"{type(error).__name__}: {error}")
        if self._transport is not None:
            self._transport.disconnect(graceful=False)

    def _peer_close(self, transport: picows.WSTransport, frame: picows.WSFrame) -> None:
        code = int.from_bytes(frame.get_payload_as_bytes()[:2], "big") if frame.payload_size >= 2 else 1005
        reason = frame.get_payload_as_bytes()[2:125].decode("utf-8", "replace")
        if self._ending is None:
            self._ending = ("app_closed", f"close code {code}" + (f" {reason!r}" if reason else ""))
        if not self._close_sent:
            self._close_sent = True
            transport.send_close(picows.WSCloseCode.OK)
        self._disconnect(transport)

    def _fragment(self, kind: picows.WSMsgType, frame: picows.WSFrame) -> None:
        starts = kind != picows.WSMsgType.CONTINUATION
        if starts == bool(self._fragments):
            self._fail("app_protocol_error", 1002, "continuation frame out of place (RFC 6455 section 5.4)")
            return
        if starts:
            self._fragments_text = kind == picows.WSMsgType.TEXT
            self._fragments_bytes = 0
        piece = frame.get_payload_as_bytes()
        self._fragments_bytes += len(piece)
        if self._fragments_bytes > self._max_bytes:
            self._fail("app_message_too_big", 1009, f"message over {self._max_bytes} bytes")
            return
        if not frame.fin:
            self._fragments.append(piece)
            if len(self._fragments) > self._max_bytes // 16:
                self._fail("app_protocol_error", 1008, f"message in more than {self._max_bytes // 16} fragments")
            return
        message = b"".join((*self._fragments, piece))
        self._fragments.clear()
        if self._fragments_text:
            self._owner.app_text(message)
        else:
            self._owner.app_binary()

    def _fail(self, reason: str, code: int, detail: str) -> None:
        self._ending = (reason, detail)
        self._fragments.clear()
        if self._transport is not None:
            self._close_sent = True
            self._transport.send_close(picows.WSCloseCode(code))
            self._disconnect(self._transport)

    def _disconnect(self, transport: picows.WSTransport) -> None:
        # Towards one that does not read, what is left to send would hold the end up.
        transport.disconnect(graceful=not self._blocked)


class Dialler:
    """Opens WebSockets to applications; one per worker, for it keeps the TLS context. To be made before there are
    calls: reading the certificate authorities takes as long as one or two frames."""

    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver
        self._tls = ssl.create_default_context()

    async def dial(
        self, url: str, headers: dict[str, str], timeout_seconds: float, message_max_bytes: int, owner: StreamOwner
    ) -> AppStream:
        """One handshake, which says `headers` too. Raises `ApplicationError` (`app_timeout`, `app_refused`,
        `app_protocol_error`)."""
        stream = AppStream(owner, message_max_bytes)
        opened: list[socket.socket] = []

        async def connect(parsed: picows.WSParsedURL) -> socket.socket:
            opened.append(await connected(self._resolver, parsed.host, parsed.port))
            return opened[-1]

        refusal: ApplicationError | None = None
        try:
            async with asyncio.timeout(timeout_seconds):
                await picows.ws_connect(
                    lambda: stream,
                    url,
                    ssl_context=self._tls,
                    websocket_handshake_timeout=timeout_seconds,
                    max_frame_size=message_max_bytes,
                    max_redirects=0,
                    enable_auto_pong=False,  # those that nobody reads are bounded with the rest of what is sent
                    extra_headers=headers,
                    read_buffer_init_size=_READ_BUFFER_BYTES,
                    socket_factory=connect,
                )
            if stream.open:
                opened.clear()
            else:  # picows does not tell a connection that ends in its handshake from one that is open
                refusal = ApplicationError("app_refused", "the connection ended during the WebSocket handshake")
        except (picows.WSError, OSError, ValueError) as error:
            refusal = _refusal(error, timeout_seconds)
            # picows keeps the error, which would keep all frames up to here, and they what they know of the call.
            error.__traceback__ = None
        finally:
            # picows leaves a handshake that was cancelled to its own time limit; the application would meanwhile take
            # it for a call. A shut-down socket ends it at once, whoever holds it.
            for connection in opened:
                shut_down(connection)
        if refusal is not None:
            try:
                raise refusal
            finally:
                del refusal  # it holds this frame
        return stream


def _refusal(error: Exception, timeout_seconds: float) -> ApplicationError:
    """What a handshake's failure means."""
    match error:
        case TimeoutError():
            return ApplicationError("app_timeout", f"no WebSocket within {timeout_seconds:g} s")
        case picows.WSInvalidStatusError():
            status = int(error.response.status) if error.response is not None else 0
            return ApplicationError("app_refused", f"HTTP status {status} instead of 101")
        case ssl.SSLCertVerificationError():
            return ApplicationError("app_refused", f"TLS certificate refused: {error.verify_message}")
        case ssl.SSLError():
            return ApplicationError("app_refused", f"TLS failed: {error.reason or error}")
        case picows.WSInvalidURL() | ValueError():
            # Both may repeat the URL, and it may hold a secret. A ValueError: no port, or no name (IDNA).
            return ApplicationError("app_refused", "the URL's host or port cannot be one: nothing was dialled")
        case picows.WSError():
            return ApplicationError("app_protocol_error", f"handshake: {error}")
        case socket.gaierror():
            return ApplicationError("app_refused", error.strerror or "the host's name cannot be resolved")
        case OSError(errno=int(number)) if number:
            return ApplicationError("app_refused", os.strerror(number))
    return ApplicationError("app_refused", str(error))


def _unsent(message: bytes) -> None:
    """What is sent before the handshake is over."""
