"""Targets of the control plane: what Asterisk and Redis say, and numbers as trunks give them."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec

from ari_app.ami import _channel, _Protocol
from ari_app.ari.errors import AriMalformed
from ari_app.ari.events import Event, decode_event
from ari_app.ari.models import AsteriskInfo, Bridge, Channel, RtpStatistics
from ari_app.ari.transport import decode_answer, message_of
from ari_app.domain.ids import Kind, bridge_id, media_channel_id
from ari_app.domain.ids import parse as parse_id
from ari_app.domain.numbers import InvalidNumber, normalise
from ari_app.errors import RemoteProtocolError
from ari_app.store.present import Command
from audiosocket.runtime.stores import decoded
from tools.fuzz.media_targets import TOKENS
from tools.fuzz.supply import Supply
from tools.fuzz.text_targets import KINDS

_GOLDEN = Path(__file__).parents[2] / "tests" / "golden" / "ari"
_STORED: tuple[type[msgspec.Struct], ...] = (*KINDS, Command)


def reports(data: bytes) -> None:
    """Reports, registrations and commands that somebody left in Redis: read, or passed over."""
    supply = Supply(data)
    kind = supply.pick(_STORED)
    decoded(supply.json(TOKENS), kind)


# ARI

ARI_TOKENS = (
    b'{"type":"StasisStart"', b',"application":"a","timestamp":"2026-11-21T02:08:00.365+0000"', b',"args":[]',
    b',"channel":',
    b'{"id":"1","name":"n","state":"Up","creationtime":"2026-11-21T02:08:00.364+0000"}', b"}", b"{", b"[", b"]", b":",
    b",",
    b'"timestamp"', b'"type"', b'"Dial"', b'"0001-01-01T00:00:00+2359"', b'"9999-12-31T23:59:59-2359"', b'"2026-W01"',
    b"null",
    b"1", b"-1e400", b"9" * 30, b'"ChannelDestroyed"', b'"message"', b'"error"', b'"\\ud800"', b"\xff", b"[" * 2000,
    b'"x"',
)  # fmt: skip
ARI_SEEDS = (
    *(b"\x01" + path.read_bytes() for path in sorted(_GOLDEN.glob("*.json"))),
    b'\x01{"message":"Channel not found"}',
    b'\x01[{"id":"1","name":"n","state":"Up","creationtime":"2026-11-21T02:08:00.364+0000","bridge_type":"mixing"}]',
    bytes((0, 0, 1, 2, 3, 4, 5)),
)
ANSWER_SEEDS = tuple(bytes((kind,)) + seed for kind in range(6) for seed in ARI_SEEDS[-3:])
_MODELS: tuple[type[Any], ...] = (Channel, list[Channel], Bridge, list[Bridge], AsteriskInfo, RtpStatistics)


def ari_events(data: bytes) -> None:
    """Events: one, none for a type that is not known, or `RemoteProtocolError`; as bytes and as text the same."""
    message = Supply(data).json(ARI_TOKENS)
    found: list[Event | str | None] = []
    for form in (message, message.decode("utf-8", "replace")):
        try:
            found.append(decode_event(form))
        except RemoteProtocolError as error:
            found.append(error.reason)
    assert found[0] == found[1] or b"\xff" in message or not _is_utf8(message)


def _is_utf8(message: bytes) -> bool:
    try:
        message.decode()
    except UnicodeDecodeError:
        return False
    return True


def ari_answers(data: bytes) -> None:
    """Answers to requests: an object, or `AriMalformed`; and the text of an error."""
    supply = Supply(data)
    kind = supply.pick(_MODELS)
    message = supply.json(ARI_TOKENS)
    with suppress(AriMalformed):
        decode_answer("GET", "/", message, kind)
    assert len(message_of(message, "Not Found")) <= 300


# AMI

AMI_SEEDS = (
    b"\x00Asterisk Call Manager/11.0.0\r\nResponse: Success\r\nActionID: 1\r\n\r\n",
    "\x00Event: CoreShowChannel\r\nChannel: PJSIP/a-1\r\nCallerIDName: आशा\r\nDuration: 100:02:03\r\n\r\n".encode(),
    b"\x00Event: CoreShowChannel\r\nDuration: " + b"9" * 5000 + b":1\r\n\r\n",
    "\x00Event: CoreShowChannel\r\nDuration: ²\r\n\r\n".encode(),
    "\x05Event: CoreShowChannel\r\nCallerIDName: आशा\r\n\r\n\x30\x01\x00\x02\x31".encode(),
    b"\x00Event: Shutdown\r\n\r\nEvent: X\r\nA: 1\r\nA: 2\r\n\r\n",
    b"\x00Response: Follows\r\nOutput: a\r\nOutput: b\r\n--END COMMAND--\r\n\r\n",
)


async def _hear(pieces: list[bytes]) -> tuple[list[Any], bool]:
    protocol = _Protocol()
    messages: list[Any] = []
    protocol.connection_made(SimpleNamespace(abort=lambda: None, close=lambda: None))
    protocol.factory = SimpleNamespace(
        dispatch=messages.append, connection_lost=lambda exc: None, forgetable_actions=[], awaiting_actions=[]
    )
    protocol.encoding = "utf8"  # as the library's manager sets it
    for piece in pieces:
        protocol.data_received(piece)
    return messages, protocol.lost.done()


_loop = asyncio.new_event_loop()


def ami(data: bytes) -> None:
    """AMI: the same messages however TCP cuts them, and a channel out of each."""
    supply = Supply(data)
    stream = supply.take(max(0, len(data) - supply.byte() % 16))
    cut, lost = _loop.run_until_complete(_hear(list(supply.pieces(stream))))
    if not lost:
        assert [dict(message) for message in _loop.run_until_complete(_hear([stream]))[0]] == list(map(dict, cut))
    for message in cut:
        assert _channel(message).duration_seconds >= 0


# Numbers and ids

NUMBER_SEEDS = tuple(
    b"\x00" + number
    for number in (
        b"+918000000001", b"00918000000001", b"918000000001", b"08000000001", b"8000000001", b"1000", b"112",
        b"anonymous",
        b"(080) 0000-0001", b"+0", b"tb-gw-1-m-6f1c1f52-3b1e-4a55-9d2e-6f0c70a3c001-3",
        b"tb-pbx.1-b-6f1c1f52-3b1e-4a55-9d2e-6f0c70a3c001",
    )
)  # fmt: skip


def numbers(data: bytes) -> None:
    """Numbers: brought to one form, in which they stay,
    or `InvalidNumber`. Ids: taken apart and put together again."""
    supply = Supply(data)
    country = supply.pick(("IN", "DE", "US", "IT", "XX"))
    text = supply.rest().decode("utf-8", "replace")
    try:
        found = normalise(text, country)
    except InvalidNumber:
        pass
    else:
        assert normalise(found, country) == found
    ours = parse_id(text)
    if ours is not None:
        again = (
            media_channel_id(ours.node, ours.call_id, ours.attempt)
            if ours.kind is Kind.MEDIA
            else bridge_id(ours.node, ours.call_id)
        )
        assert again == text
