"""Between the application's plain TCP connection and picows: whole text messages go to their reader without it.

picows reads until the stream stands between two frames; from then on what arrives comes here. A frame that is a whole
text message is handed on at once, and everything else (fragments, control frames, anything against the protocol) goes
to picows as it came. So do both directions once the stream has begun to end. It pays where it is compiled; otherwise,
and over TLS, all is picows'.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import picows

from audiosocket import reading
from audiosocket.compiled import FRAMES, usual

_CONTINUES = 126
"""From this length on, more bytes of a frame's header tell it (RFC 6455 section 5.2)."""

if TYPE_CHECKING or FRAMES is None:

    class GateState:
        """What a frame reads and writes, where nothing is compiled."""

        __slots__ = (
            "_app_text",
            "_between",
            "_max_bytes",
            "_queued",
            "_reads",
            "_send_otherwise",
            "_sends",
            "_socket",
            "_unsent",
            "_write",
        )

else:
    GateState = FRAMES.Gate


@usual("data_received", "send")
class Gate(GateState, asyncio.Protocol):
    """See the module's text. `_between` says that the stream stands between two frames, `_reads` and `_sends` that the
    usual of a direction may be done here."""

    __slots__ = ("_fail", "_head", "_judge", "_left", "_picows", "_transport")

    def __init__(
        self,
        app_text: Callable[[bytes], None],
        transport: picows.WSTransport,
        send: Callable[[bytes], None],
        judge: Callable[[], None],
        fail: Callable[[Exception], None],
        max_bytes: int,
    ) -> None:
        """`app_text` takes whole text messages, `send` is picows' own, `max_bytes` the longest message that it takes.
        `judge` is called when picows has been handed something, and calls `use`; `fail` when `app_text` has raised."""
        beneath = transport.underlying_transport
        self._app_text = app_text
        self._transport = transport
        self._judge = judge
        self._fail = fail
        self._picows: Any = None
        self._max_bytes = max_bytes
        self._send_otherwise = send
        self._unsent = beneath.get_write_buffer_size
        self._write = beneath.write
        self._socket = -1
        self._between = True
        self._reads = self._sends = False
        self._queued = True  # the transport itself may have bytes that wait
        self._head = b""  # the beginning of a frame's header
        self._left = 0  # bytes of a frame that are still to come

    @property
    def shut(self) -> bool:
        """Whether what arrives still goes to picows first."""
        return self._picows is None

    def take_over(self) -> None:
        """The stream stands between two frames: from now on what arrives comes here."""
        beneath = self._transport.underlying_transport
        connection = beneath.get_extra_info("socket")
        self._picows = beneath.get_protocol()
        self._socket = connection.fileno()
        beneath.set_protocol(self)
        if reading.watch(self._socket, self):
            beneath.pause_reading()

    def use(self, reads: bool, sends: bool) -> None:
        """Which directions are as usual."""
        # Of what is against the protocol picows may have told the application by itself.
        open_ = not self.shut and not self._transport.is_disconnected and not self._transport.is_close_frame_sent
        self._reads = reads and open_
        self._sends = sends and open_

    def send(self, message: bytes) -> None:
        """Sends one text message; without an open connection it does nothing."""
        self._queued = True
        self._send_otherwise(message)

    # asyncio.Protocol

    def data_received(self, data: bytes) -> None:
        self._follow(data)
        self._queued = True
        while data and not self._transport.is_disconnected:
            room = self._picows.get_buffer(-1)
            size = min(len(room), len(data))
            room[:size] = data[:size]
            data = data[size:]
            self._picows.buffer_updated(size)
        self._judge()

    def eof_received(self) -> bool | None:
        ended: bool | None = self._picows.eof_received()
        return ended

    def pause_writing(self) -> None:
        self._picows.pause_writing()

    def resume_writing(self) -> None:
        self._picows.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._reads = self._sends = False
        reading.forget(self._socket)
        self._socket = -1  # the number is another connection's from now on
        self._picows.connection_lost(exc)

    def _reading_over(self, error: int) -> None:
        beneath = self._transport.underlying_transport
        if error:
            beneath.abort()
        elif not self.eof_received():
            beneath.close()

    def _failed(self, error: Exception) -> None:
        self._fail(error)

    def _follow(self, data: bytes) -> None:
        """Finds out whether the stream stands between two frames behind `data`."""
        at = 0
        while at < len(data):
            if self._left:
                taken = min(self._left, len(data) - at)
                self._left -= taken
                at += taken
                continue
            self._head += data[at : at + 1]
            at += 1
            size = _header_bytes(self._head)
            if len(self._head) == size:
                self._left = _payload_bytes(self._head)
                self._head = b""
        self._between = not self._left and not self._head


def _header_bytes(head: bytes) -> int:
    """How long a header is that begins like this."""
    if len(head) < 2:
        return 2
    length = head[1] & 0x7F
    return 2 + (8 if length > _CONTINUES else 2 if length == _CONTINUES else 0) + (4 if head[1] & 0x80 else 0)


def _payload_bytes(head: bytes) -> int:
    """What a whole header says of the length of what follows."""
    length = head[1] & 0x7F
    if length < _CONTINUES:
        return length
    return int.from_bytes(head[2:4] if length == _CONTINUES else head[2:10], "big")
