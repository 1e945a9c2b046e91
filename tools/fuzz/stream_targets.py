"""Targets that take streams apart: AudioSocket's frames, a whole leg of them, and a WebSocket's fragments."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import picows

from audiosocket import websocket_media, wire
from audiosocket.app_stream import AppStream
from audiosocket.errors import WireError
from audiosocket.legs.audiosocket import AudioSocketLeg
from tools.fuzz.supply import Supply

# AudioSocket

_KINDS = (wire.KIND_HANGUP, wire.KIND_UUID, wire.KIND_DTMF, wire.KIND_AUDIO, 0x11, 0x42, wire.KIND_ERROR)
_UUID_FRAME_BYTES = wire.HEADER_BYTES + wire.UUID_BYTES
_CALL = wire.encode(wire.KIND_UUID, bytes(range(16))) + wire.SILENCE_FRAME * 3 + wire.encode(wire.KIND_DTMF, b"5")
LEG_SEEDS = (
    b"\x00" + _CALL + wire.HANGUP_FRAME,
    b"\x00" + wire.encode(wire.KIND_UUID, bytes(15)),
    b"\x01\x00\x03\x03\x00\x05\x02" + bytes(300),
    b"\x01\x00" + b"\x03" * 40,
    b"\x01\x12\x01\x00" + b"\x03\x00\x00\x00\x00\x02" * 3 + b"\x03\x04\x02\x04\x04",
    b"\x01\x06\x03\x00\x00\x0e\x00\x06" + b"\xff" * 20,
    b"\x00GET / HTTP/1.1\r\n\r\n",
)


def _stream(supply: Supply) -> bytes:
    """A stream of frames, or of anything."""
    if supply.byte() == 0:
        return supply.rest()
    size = supply.byte()
    plan = Supply(supply.take(size))
    stream = b""
    while plan and len(stream) < 40_000:
        kind = plan.pick(_KINDS)
        length = wire.UUID_BYTES
        if kind != wire.KIND_UUID:
            length = plan.pick((0, 1, 160, 160, 320, plan.number(800), plan.number(11_600)))
        # Payload that looks like another header: whoever loses the boundary reads on without noticing.
        stream += wire.encode(kind, (wire.encode(kind, bytes(length))[: wire.HEADER_BYTES] * 4000)[:length])
    return stream


def _reference_frames(stream: bytes) -> tuple[list[tuple[int, bytes]], int]:
    """All whole frames, and from which byte on the stream is broken (its length and more: it is not)."""
    frames: list[tuple[int, bytes]] = []
    at = 0
    while len(stream) - at >= wire.HEADER_BYTES:
        kind, length = stream[at], int.from_bytes(stream[at + 1 : at + 3], "big")
        if length > wire.MAX_AUDIO_BYTES or (kind == wire.KIND_UUID and length != wire.UUID_BYTES):
            return frames, at + wire.HEADER_BYTES
        end = at + wire.HEADER_BYTES + length
        if end > len(stream):
            break
        frames.append((kind, stream[at + wire.HEADER_BYTES : end]))
        at = end
    return frames, len(stream) + 1


def frames(data: bytes) -> None:
    """`FrameDecoder`: any cut of any bytes gives the frames that are in them, up to where they break."""
    supply = Supply(data)
    stream = _stream(supply)
    expected, broken_at = _reference_frames(stream)
    decoder = wire.FrameDecoder()
    received: list[tuple[int, bytes]] = []
    fed = 0
    for piece in supply.pieces(stream):
        fed += len(piece)
        try:
            received += decoder.feed(piece)
        except WireError:
            assert fed >= broken_at
            assert received == expected[: len(received)]
            return
        assert fed < broken_at
        assert len(decoder.partial) < wire.HEADER_BYTES + wire.MAX_AUDIO_BYTES
    assert received == expected


class _Silent(asyncio.Transport):
    """A connection to nowhere."""

    def write(self, data: Any) -> None:
        pass

    def close(self) -> None:
        pass

    def abort(self) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0


class _Clockless:
    def add(self, tick: Any) -> tuple[int, int]:
        return 0, 0

    def remove(self, handle: Any) -> None:
        pass


@dataclass
class _Call:
    """Owner and session of a leg, in one: what it is told, in order."""

    told: list[object] = field(default_factory=list)
    linear: wire.Linear = wire.LINEAR[8000]

    def leg_connected(self, leg: AudioSocketLeg) -> None:
        pass

    def leg_identified(self, leg: AudioSocketLeg, leg_uuid: str) -> None:
        self.told.append(leg_uuid)

    def leg_closed(self, leg: AudioSocketLeg) -> None:
        self.told.append("closed")

    def caller_backlog(self, frames: int) -> int:
        return 0

    def caller_audio(self, payload: bytes) -> None:
        assert payload
        self.told.append(payload)

    def digit(self, digit: str) -> None:
        assert digit in "0123456789*#ABCD"
        assert len(digit) == 1
        self.told.append(digit)


async def _carry(pieces: list[bytes]) -> list[object]:
    call = _Call()
    leg = AudioSocketLeg(_Clockless(), call)  # type: ignore[arg-type]
    leg.connection_made(_Silent())
    for piece in pieces:
        leg.data_received(piece)
        if leg.leg_uuid:  # who the call is has to be asked: never in the same read
            leg.session = call  # type: ignore[assignment]
    leg.connection_lost(None)
    leg.connection_lost(None)
    assert call.told.count("closed") == 1
    return [*call.told, leg.end_reason, leg.ignored_frames]


_loop = asyncio.new_event_loop()


def leg(data: bytes) -> None:
    """`AudioSocketLeg`: a call is the same however TCP cuts it, its short way for the usual frame included."""
    supply = Supply(data)
    stream = _stream(supply)
    head, rest = stream[:_UUID_FRAME_BYTES], stream[_UUID_FRAME_BYTES:]
    cut = _loop.run_until_complete(_carry([head, *supply.pieces(rest)]))
    whole, broken_at = _reference_frames(stream)
    if broken_at > len(stream):
        framed = [wire.encode(kind, payload) for kind, payload in whole]
        assert cut == _loop.run_until_complete(_carry(framed))


# WebSocket frames

_MAX_MESSAGE = 64
_TYPES = (
    picows.WSMsgType.TEXT,
    picows.WSMsgType.CONTINUATION,
    picows.WSMsgType.BINARY,
    picows.WSMsgType.PING,
    picows.WSMsgType.CLOSE,
)
FRAGMENT_SEEDS = (
    b"\x00\x01\x05hello",
    b"\x00\x00\x03ab\x01\x01\x00\x02cd\x01\x01\x01e",
    b"\x01\x01\x01a",
    b"\x04\x01\x02\x03\xe8" + b"\x00\x01\x01x",
    b"\x02\x00\x01a" + b"\x01\x00\x01b" * 6,
)


@dataclass
class _Frame:
    msg_type: picows.WSMsgType
    fin: bool
    rsv1: bool
    payload: bytes
    rsv2: bool = False
    rsv3: bool = False

    @property
    def payload_size(self) -> int:
        return len(self.payload)

    def get_payload_as_bytes(self) -> bytes:
        return self.payload


@dataclass
class _Socket:
    closes: list[int] = field(default_factory=list)

    @property
    def underlying_transport(self) -> _Socket:
        return self

    is_close_frame_sent = False

    @property
    def is_secure(self) -> bool:
        return True  # everything stays with picows

    def set_write_buffer_limits(self, high: int) -> None:
        pass

    def send(self, kind: picows.WSMsgType, message: bytes) -> None:
        pass

    def send_close(self, code: int) -> None:
        self.closes.append(int(code))

    def send_pong(self, payload: bytes) -> None:
        pass

    def disconnect(self, graceful: bool = True) -> None:
        pass


@dataclass
class Owner:
    """An application's stream told to nobody."""

    messages: list[bytes | None] = field(default_factory=list)
    """A binary one as None."""

    def app_text(self, message: bytes) -> None:
        self.messages.append(message)

    def app_binary(self) -> None:
        self.messages.append(None)

    def app_blocked(self, blocked: bool) -> None:
        pass


def _reference_messages(received: list[_Frame]) -> tuple[list[bytes | None], str]:
    """RFC 6455 section 5.4 with our limits: the messages, a binary one as None, and how the stream ended, if it did."""
    messages: list[bytes | None] = []
    parts: list[bytes] = []
    text = True
    for frame in received:
        kind = frame.msg_type
        if frame.rsv1:
            return messages, "app_protocol_error"
        if kind == picows.WSMsgType.CLOSE:
            return messages, "app_closed"
        if kind == picows.WSMsgType.PING:
            continue
        if (kind == picows.WSMsgType.CONTINUATION) != bool(parts):
            return messages, "app_protocol_error"
        if not parts:
            text = kind == picows.WSMsgType.TEXT
        parts.append(frame.payload)
        # The size of a message in one frame is the library's to limit.
        if len(b"".join(parts)) > _MAX_MESSAGE and not (text and frame.fin and len(parts) == 1):
            return messages, "app_message_too_big"
        if frame.fin:
            messages.append(b"".join(parts) if text else None)
            parts = []
        elif len(parts) > _MAX_MESSAGE // 16:
            return messages, "app_protocol_error"
    return messages, ""


def fragments(data: bytes) -> None:
    """`AppStream`: messages are put together as the RFC says, within the limits, and nothing counts behind the end."""
    supply = Supply(data)
    received = []
    while supply:
        kind, flags = supply.pick(_TYPES), supply.byte()
        received.append(_Frame(kind, bool(flags & 1), flags & 0xF0 == 0xF0, supply.take(supply.byte())))
    owner, connection = Owner(), _Socket()
    stream = AppStream(owner, _MAX_MESSAGE)
    stream.on_ws_connected(connection)  # type: ignore[arg-type]
    for frame in received:
        stream.on_ws_frame(connection, frame)  # type: ignore[arg-type]
    messages, end = _reference_messages(received)
    assert owner.messages == messages
    assert (stream._ending or ("",))[0] == end
    assert len(connection.closes) == (1 if end else 0)


# chan_websocket

EVENT_SEEDS = (
    b'{"event":"MEDIA_START","format":"ulaw","optimal_frame_size":160,'
    b'"channel_variables":{"TRUNKBRIDGE_LEG":"8f11f0a3-09bc-4a8b-beb8-065a13338186"}}',
    b'{"event":"STATUS","queue_length":7,"queue_full":false}',
    b'{"event":"DTMF_END","digit":"#"}',
    b"MEDIA_START format:ulaw",
)


def websocket_events(data: bytes) -> None:
    """What Asterisk may say is an event, or an error that can be shown; the first one names a leg in one form."""
    try:
        leg_uuid, media_format = websocket_media.identify(websocket_media.decode(data))
    except WireError as refused:
        error = str(refused)
    else:
        error = ""
    assert error.isprintable()
    assert len(error) < 500
    if error:
        return
    assert len(leg_uuid) == 36
    assert leg_uuid == leg_uuid.lower()
    assert media_format.frame_bytes in (160, 320, 640, 960)
