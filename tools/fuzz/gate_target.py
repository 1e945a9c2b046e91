"""A target for what an application may send over its TCP connection: any bytes, cut anywhere, into picows and the gate.

The connection is the worker's own, from behind the handshake on: picows parses, `AppStream` puts messages together, and
where the steps of a frame are compiled `Gate` takes over and reads a real socket.
"""

from __future__ import annotations

import asyncio
import socket
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha1
from typing import Any

import picows

from audiosocket import reading
from audiosocket.app_stream import AppStream
from tools.fuzz.stream_targets import Owner
from tools.fuzz.supply import Supply

_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG = 0, 1, 2, 8, 9, 10
_OPCODES = (_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG)
_FIN, _MASKED = 0x80, 0x80
_CONTROL_BYTES = 125
_CLOSE_CODES = frozenset(code.value for code in picows.WSCloseCode)
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_FAULTS = ("app_protocol_error", "app_message_too_big")
_ONE_READ = 65_536
"""Bytes that compiled code takes from a socket at once."""
_LIMITS = (100, 300, 70_000)
"""Of a message: so that each form of a frame's length occurs below and above one."""
_FIRST_BYTES = (0x81, 0x81, 0x81, 0x01, 0x00, 0x80, 0x82, 0x02, 0x89, 0x8A, 0x88, 0xC1, 0x83, 0x09, 0xA0, 0xD9)
_SIZES = (0, 1, 2, 17, 60, 99, 100, 101, 125, 126, 127, 299, 300, 301, 65_535, 65_536, 70_000, 70_001)
_PATTERNS = (b"a", b"\x81\x05", b"\x03\xe8ok", b"\x81\x7e\x00", b"\xff", b"\x88\x02\x03\xe8")
GATE_SEEDS = (
    b"\x00\x01\x81\x05hello\x81\x03abc\x88\x02\x03\xe8",
    b"\x01\x01\x01\x03ab\x01\x89\x02hi\x80\x03cdex\x81\x7e\x00\x80" + b"x" * 128,
    b"\x00\x02\x09\x81\x05hello\x81\x01" + b"\x01\x01\x01\x02\x00\x04" * 4,
    b"\x00\x02\x0c\x81\x05hello\x89\x02hi\x01" + b"\x07\x01\x02\x02\x07\x00",
    b"\x00\x02\x0c\x81\x01a\x81\x7e\x00\x05hello\x01\x00\x09\x00",
    b"\x00\x02\x0a\x81\x01a\x81\x7e\x80\x00\x81\x01a\x01\x00\x07\x00\x03\x00",
    b"\x00\x02\x08\x88\x02\x03\xe8\x88\x02\x03\xe8",
    b"\x02\x00\x0c\x00\x03\x00\x00\x02\x10\x00\x00\x05\x01\x06\x02\x03",
    b"\x02\x00\x06\x00\x0f\x00\x00\x0e\x00" + b"\x05\x00" * 8,
    b"\x01\x00\x09\x03\x02\x00\x05\x02\x00\x04\x02\x00" + bytes(range(30)),
)
"""What limit, how the stream is made, the stream, how it is cut and what happens between two reads."""


class _Loop(asyncio.SelectorEventLoop):
    """A loop whose connections are the target's."""

    connect: Callable[[Any], asyncio.Transport]

    async def create_connection(  # type: ignore[override]
        self, factory: Any, *args: Any, **options: Any
    ) -> Any:
        protocol = factory()
        return self.connect(protocol), protocol


_here, _there = socket.socketpair()
for _end in (_here, _there):
    _end.setblocking(False)


class _Socket:
    """Our end of the pair, for all that TCP has and it has not."""

    def fileno(self) -> int:
        return _here.fileno()

    def setsockopt(self, *option: int) -> None:
        pass

    def getsockopt(self, level: int, option: int, size: int = 0) -> Any:
        return bytes(size) if size else 0


class _Connection(asyncio.Transport):
    """A transport as asyncio's, with an application at the other end."""

    def __init__(self, protocol: Any) -> None:
        super().__init__({"socket": _Socket()})
        self._protocol = protocol
        self.written = b""
        self.paused = self.over = False
        protocol.connection_made(self)

    def set_protocol(self, protocol: Any) -> None:
        self._protocol = protocol

    def get_protocol(self) -> Any:
        return self._protocol

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def write(self, data: Any) -> None:
        self.written += bytes(data)

    def pause_reading(self) -> None:
        self.paused = True

    def close(self) -> None:
        if not self.over:
            self.over = True
            asyncio.get_running_loop().call_soon(lambda: self._protocol.connection_lost(None))

    abort = close

    def arrive(self, data: bytes) -> None:
        """Bytes from the application, in one read."""
        while data and not self.over:
            if self.paused:  # compiled code reads the socket
                size = _there.send(data)
                for _ in range(0, size, _ONE_READ):
                    reading._POLLS[asyncio.get_running_loop()].read()
            else:
                room = self._protocol.get_buffer(-1)
                size = min(len(room), len(data))
                room[:size] = data[:size]
                self._protocol.buffer_updated(size)
            data = data[size:]


@dataclass
class _Read:
    """What a stream is, by RFC 6455 and our limits."""

    messages: list[tuple[int, bytes | None]] = field(default_factory=list)
    """Each with the number of bytes of the stream behind which it is whole."""
    pings: list[bytes] = field(default_factory=list)
    ends: frozenset[str] = frozenset()
    """How it may be told to have ended; empty: it has not."""
    ended_at: int = 1 << 62


def _reference(stream: bytes, limit: int) -> _Read:
    read = _Read()
    parts: list[bytes] = []
    text = True

    def end(at: int, *reasons: str) -> _Read:
        # picows looks one frame ahead: of two faults either may be told.
        more = _FAULTS if at < len(stream) and reasons[0] in _FAULTS else ()
        read.ended_at, read.ends = at, frozenset((*reasons, *more))
        return read

    at = 0
    while len(stream) - at >= 2:
        first, second = stream[at : at + 2]
        opcode, length, head = first & 15, second & 127, 2
        control = opcode >= _CLOSE
        if opcode not in _OPCODES or second & _MASKED or (control and not (first & _FIN and length <= _CONTROL_BYTES)):
            return end(at + 2, "app_protocol_error")
        if length > _CONTROL_BYTES:
            least, more = (126, 2) if length == 126 else (65_536, 8)
            head += more
            if len(stream) - at < head:
                break
            length = int.from_bytes(stream[at + 2 : at + head], "big")
            if length < least or length >> 63:  # not the shortest form (section 5.2)
                return end(at + head, "app_protocol_error")
        if length > limit and not control:
            return end(at + head, "app_message_too_big")
        if len(stream) - at - head < length:
            break
        payload = stream[at + head : at + head + length]
        at += head + length
        if opcode == _CLOSE:
            code = int.from_bytes(payload[:2], "big") if length > 1 else 1005
            if first & 0x70:
                return end(at, "app_protocol_error")
            if length != 1 and (code >= 3000 or code in _CLOSE_CODES) and _is_text(payload[2:]):
                return end(at, "app_closed")
            # Behind one that cannot be read another may come before the connection is gone.
            return end(at, "app_protocol_error", "app_closed")
        if first & 0x70:
            return end(at, "app_protocol_error")
        if control:
            read.pings += [payload] * (opcode == _PING)
            continue
        if (opcode == _CONTINUATION) != bool(parts):
            return end(at, "app_protocol_error")
        text = opcode == _TEXT if not parts else text
        parts.append(payload)
        if sum(map(len, parts)) > limit:
            return end(at, "app_message_too_big")
        if first & _FIN:
            read.messages.append((at, b"".join(parts) if text else None))
            parts = []
        elif len(parts) > limit // 16:
            return end(at, "app_protocol_error")
    return read


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _stream(supply: Supply) -> bytes:
    """A stream of frames, right or wrong, or of anything."""
    how_made = supply.byte() % 3
    if how_made:
        return supply.rest() if how_made == 1 else supply.take(supply.byte())
    stream = b""
    plan = Supply(supply.take(supply.byte()))
    while plan and len(stream) < 200_000:
        first, size = plan.pick(_FIRST_BYTES), plan.pick(_SIZES)
        how = plan.byte()
        form = 0 if how < 200 else how % 3
        if form == 0 and size < 126:
            length = bytes((size,))
        elif form < 2 and size < 65_536:
            length = b"\x7e" + size.to_bytes(2, "big")
        else:
            length = b"\x7f" + size.to_bytes(8, "big")
        if how in (190, 191):
            length = bytes((length[0] | _MASKED,)) + length[1:] + b"mask"
        pattern = _PATTERNS[how % len(_PATTERNS)]
        stream += bytes((first,)) + length + (pattern * (size // len(pattern) + 1))[:size]
    return stream


def _sent() -> Iterator[tuple[int, bytes]]:
    """The frames that have been sent to the application: opcode and payload."""
    data = b""
    with suppress(BlockingIOError):
        while True:
            data += _there.recv(1 << 20)
    at = 0
    while at < len(data):
        first, second = data[at : at + 2]
        assert first & 0xF0 == _FIN
        assert second & _MASKED
        assert second & 127 <= _CONTROL_BYTES
        key, payload = data[at + 2 : at + 6], data[at + 6 : at + 6 + (second & 127)]
        yield first & 15, bytes(byte ^ key[place & 3] for place, byte in enumerate(payload))
        at += 6 + len(payload)


async def _open(stream: AppStream, limit: int, glued: bytes) -> _Connection:
    """The handshake, with `glued` in the read of its answer."""

    def connect(protocol: Any) -> asyncio.Transport:
        connection = _Connection(protocol)
        key = next(line for line in connection.written.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key:"))
        accept = b64encode(sha1(key.split()[1] + _GUID, usedforsecurity=False).digest())
        answer = b"HTTP/1.1 101 OK\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " + accept
        connection.arrive(answer + b"\r\n\r\n" + glued)
        made.append(connection)
        return connection

    made: list[_Connection] = []
    _loop.connect = connect
    # As `Dialler.dial` has it.
    options: dict[str, Any] = {"max_redirects": 0, "enable_auto_pong": False, "read_buffer_init_size": 4096}
    await picows.ws_connect(lambda: stream, "ws://127.0.0.1/", max_frame_size=limit, use_aiofastnet=False, **options)
    return made[0]


async def _carry(supply: Supply) -> None:
    limit = supply.pick(_LIMITS)
    whole = _stream(supply)
    expected = _reference(whole, limit)
    owner = Owner()
    stream = AppStream(owner, limit)
    pieces = supply.pieces(whole)
    piece = next(pieces, b"")
    connection = await _open(stream, limit, piece)
    fed = told = 0
    while True:
        fed += len(piece)
        # What is whole has been told by now, but what a fault in the same read lies behind.
        due = sum(at <= fed for at, _ in expected.messages)
        assert owner.messages == [message for _, message in expected.messages[: len(owner.messages)]]
        assert due >= len(owner.messages) >= (due if fed < expected.ended_at else told)
        told = len(owner.messages)
        code = supply.byte()
        if code & 3 == 1:
            stream.pause_writing()
        elif code & 3 == 2:
            stream.resume_writing()
        if code & 4:
            await asyncio.sleep(0)
        piece = next(pieces, b"")
        if connection.over or not piece:
            break
        connection.arrive(piece)
    connection.close()
    reason, _ = await stream.wait_closed()
    assert reason in (expected.ends if fed >= expected.ended_at else ("app_lost",)), (reason, expected.ends)
    with suppress(BlockingIOError):
        while True:
            _here.recv(1 << 20)  # what came behind the end
    sent = [*_sent()]
    pongs = [payload for opcode, payload in sent if opcode == _PONG]
    assert pongs == expected.pings[: len(pongs)]
    if fed < expected.ended_at and fed == len(whole):
        assert len(pongs) == len(expected.pings)
    assert any(opcode == _CLOSE for opcode, _ in sent) == (fed >= expected.ended_at)


_loop = _Loop()


def gate(data: bytes) -> None:
    """What an application sends, byte by byte: the messages, answers and end that RFC 6455 and our limits say."""
    _loop.run_until_complete(_carry(Supply(data)))
