"""Targets of the media plane's rules: the dialects' messages, playout, session."""

from __future__ import annotations

import json
from base64 import b64decode
from typing import Any

from audiosocket.appcheck.observe import Observer
from audiosocket.appcheck.trace import Trace
from audiosocket.callspec import CallSpec, MediaFormat
from audiosocket.dialects import DIALECTS, open_dialect
from audiosocket.dialects.base import AppMessage, Clear, Digits, Ignored, Mark
from tools.fuzz.playout_rig import PlayoutRig
from tools.fuzz.session_rig import SessionRig
from tools.fuzz.supply import Supply


def call_spec(dialect: str = "exotel", **changes: Any) -> CallSpec:
    """A call with harmless values."""
    values: dict[str, Any] = {
        "call_id": "6f1c1f52-3b1e-4a55-9d2e-6f0c70a3c001",
        "leg_uuid": "0b8f3c3e-4c8e-4d57-8d5b-3e5b8b7f1001",
        "call_sid": "9a1b" * 8,
        "stream_sid": "0f3c" * 8,
        "account_sid": "acme1",
        "application": "fuzz",
        "url": "ws://127.0.0.1:1/",
        "dialect": dialect,
        "caller": "+919000000001",
        "callee": "+918000000002",
        "report_stream": "reports",
        "created_at_ms": 0,
        "expires_at_ms": 2**50,
    }
    return CallSpec(**(values | changes))


# Messages

TOKENS = (
    b'{"event":"playAudio"', b',"media":{"payload":"AQI="', b',"contentType":"audio/x-', b'l16"', b'mulaw;rate=8000"',
    b',"sampleRate":8000', b'{"event":"checkpoint","name":', b'"streamId"',
    b'{"event":"media","media":{"payload":"', b'AQID', b'"}}', b'{"event":"mark","mark":{"name":"',
    b'{"event":"clear"',
    b"}", b"{", b'"', b":", b",", b"[", b"]", b"null", b"true", b"1", b"-0.5e", b"1e999", b"9" * 40, b'"event"',
    b'"media"',
    b'"mark"', b'"clear"', b'"dtmf"', b'"payload"', b'"name"', b'"stream_sid"', b'"streamSid"', b'"digit"', b"AQI=",
    b"A===",
    b"\\u0000", b"\\ud83d\\ude00", b"\\ud800", b"\\", b"\xff", b"\xe0\xa4\x85", b" ", b"\n", b"[" * 2000,
    b'{"a":' * 500,
)  # fmt: skip
_MESSAGES = (
    b'{"event":"media","stream_sid":"x","media":{"payload":"AQI=","chunk":1,"timestamp":"20"}}',
    b'{"event":"mark","streamSid":"MZ","mark":{"name":"turn-1"}}',
    b'{"event":"clear","stream_sid":5}',
    b'{"event":"dtmf","dtmf":{"digit":"1"}}',
    b'{"event":"media","media":{"payload":"!!!!"}}',
    b'{"event":"mark","mark":{"name":"a","more":[1e999]}}',
    b'{"event":"playAudio","streamId":"x","media":{"contentType":"audio/x-mulaw","sampleRate":8000,"payload":"gP8="}}',
    b'{"event":"playAudio","media":{"contentType":" Audio/X-L16;rate=8000","payload":"AQIDBA=="}}',
    b'{"event":"checkpoint","name":"turn-1"}',
    b'{"event":"clearAudio"}',
    b'{"event":"sendDTMF","dtmf":"12#"}',
)
MESSAGE_SEEDS = (
    *(b"\x01" + message for message in _MESSAGES),
    bytes((0, 8, 9, 10)),
    bytes((0, 11, 9, 10)),
    bytes((0, 0, 1, 2, 3, 5, 10)),
)
OBSERVER_SEEDS = tuple(dialect + seed for seed in MESSAGE_SEEDS for dialect in (b"\x00", b"\x01", b"\x02"))
_REASONS = frozenset({"bad_json", "bad_shape", "bad_base64", "unknown_event", "content_type"})
_NAMES = sorted(DIALECTS)


def _decoded(dialect: str, message: bytes, **options: object) -> AppMessage:
    found = open_dialect(call_spec(dialect, dialect_options=options)).decode(message)
    match found:
        case Ignored(reason):
            assert reason in _REASONS
        case Mark(text) | Digits(text):
            text.encode()
        case bytes():
            assert len(found) <= 2 * len(message)
        case Clear():
            pass
    return found


def exotel(data: bytes) -> None:
    """The Exotel dialect's `decode`: never raises, and audio is what the payload holds."""
    message = Supply(data).json(TOKENS)
    found = _decoded("exotel", message)
    if isinstance(found, bytes):
        try:
            said = json.loads(message)
        except (ValueError, RecursionError):
            return  # bytes that are no UTF-8, in a place that nobody reads
        assert b64decode(said["media"]["payload"]) == found


def twilio(data: bytes) -> None:
    """The Twilio dialect's `decode`: every byte of the payload is a sample."""
    message = Supply(data).json(TOKENS)
    found, linear = _decoded("twilio", message), _decoded("exotel", message)
    assert type(found) is type(linear)
    if isinstance(found, bytes) and isinstance(linear, bytes):
        assert len(found) == 2 * len(linear)
    else:
        assert found == linear


def plivo(data: bytes) -> None:
    """The Plivo dialect's `decode`: never raises; every byte of μ-law is a sample, L16 is what it is."""
    supply = Supply(data)
    message = supply.json(TOKENS)
    for content_type in ("audio/x-mulaw;rate=8000", "audio/x-l16;rate=8000"):
        found = _decoded("plivo", message, content_type=content_type)
        if isinstance(found, bytes):
            try:
                said = json.loads(message)["media"]
            except (ValueError, RecursionError):
                return
            sent = b64decode(said["payload"])
            named = str(said.get("contentType") or content_type).lower()
            assert len(found) == (2 if "mulaw" in named else 1) * len(sent)


def observer(data: bytes) -> None:
    """What appcheck puts on record of a message: any message."""
    supply = Supply(data)
    platform = DIALECTS[supply.pick(_NAMES)]
    dialect = open_dialect(call_spec(platform.name))
    watched = Observer(Trace("fuzz"), dialect, platform)
    for opening in dialect.opening():
        watched.sent(opening, 0.0)
    watched.text(supply.json(TOKENS), 1.0)


# Machines

_APP_AUDIO = bytes(1 + (index * 37) % 250 for index in range(3000))

MACHINE_SEEDS = (
    bytes((0, 0, 0, 0, 0, 2)) + bytes((2, 2, 0, 4, 0, 2, 11, 1, 3, 3)) * 2,
    bytes((2, 1, 0, 2)) + bytes((2, 2, 0, 4, 0, 2, 11, 1, 3, 3)) * 2,
    bytes((1, 0, 2)) + bytes((0, 9, 0, 2, 5, 3, 8, 40, 9, 1, 10, 1, 7, 0, 99, 10, 0, 6, 30)) * 4,
    bytes(64),
    bytes(range(256)),
    # A caller who is silent, a process that stands still, and then he speaks.
    bytes((*range(27), 29, 0, 137, *range(29, 58), 226, *range(58, 256))),
    b"\x00\x05\x01\x00\x02\x40\x01\x03\x03\x03\x03" * 8,
    b"\x01\x02" + b"\x00\x03\x20\x03" * 30 + b"\x06\x20" + b"\x03" * 60,
    b"\x02\x07\x00\x06\x40\x01\x02\x03\x02\x03\x04\x0f\x05" * 6,
)


def playout(data: bytes) -> None:
    """The playout queue, under any order of what may happen to it."""
    supply = Supply(data)
    rate, fade_ms = supply.pick((8000, 8000, 16000, 24000)), supply.pick((5.0, 0.0, 20.0))
    rig = PlayoutRig(supply.pick((0.0, 0.1, 0.33337, 2.0, 20.0)), rate, fade_ms)
    while supply:
        match supply.byte() % 8:
            case 0 | 1:
                rig.push(supply.number(2000), silent=bool(supply.byte() & 1))
            case 2:
                for _ in range(supply.byte() % 24):
                    rig.push(320, silent=False)
            case 3:
                for _ in range(1 + supply.byte() % 16):
                    rig.tick()
            case 4:
                rig.tick()
            case 5:
                rig.mark()
            case 6:
                rig.stall(supply.byte())
            case _:
                if supply.byte() & 1:
                    rig.clear()
    rig.settle()


_NARROW = (MediaFormat.ULAW, MediaFormat.ALAW, MediaFormat.SLIN)


def session(data: bytes) -> None:
    """A session of either dialect, under any order of what caller, application and clock may do."""
    supply = Supply(data)
    dialect = supply.pick(("exotel", "twilio", "plivo"))
    options: dict[str, object] = {}
    if dialect == "plivo":
        options = {"content_type": supply.pick(("audio/x-mulaw;rate=8000", "audio/x-l16;rate=8000"))}
    if dialect == "exotel":
        options = {
            "frame_ms": supply.pick((20, 40, 60, 80, 100)),
            "marks_on_clear": supply.pick(("echo", "drop")),
            "counters": supply.pick(("string", "integer")),
        }
    rig = SessionRig(
        call_spec(
            dialect,
            dialect_options=options,
            media_format=supply.pick(tuple(MediaFormat) if dialect == "exotel" else _NARROW),
            playout_max_seconds=supply.pick((0.1, 1.0, 300.0)),
        )
    )
    while supply:
        match supply.byte() % 12:
            case 0 | 1:
                rig.app_audio(_APP_AUDIO[: supply.number(3000)])
            case 2:
                rig.app_mark()
            case 3 | 4:
                rig.tick()
            case 5:
                for _ in range(supply.byte() % 16):
                    rig.tick()
            case 6:
                rig.tick(supply.byte())
            case 7:
                rig.caller_audio(1 + supply.number(700))
            case 8:
                rig.caller_burst(1 + supply.byte() % 64)
            case 9:
                rig.digit(supply.pick("0123456789*#ABCD"))
            case 10:
                rig.block(bool(supply.byte() & 1))
            case _:
                if supply.byte() & 1:
                    rig.app_clear()
                else:
                    rig.app_garbage(supply.take(supply.byte()))
    rig.settle()
