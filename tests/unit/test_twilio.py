"""The Twilio dialect, message by message, against what Twilio documents and what was seen of real calls."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audiosocket.callspec import CallSpec, MediaFormat
from audiosocket.dialects import open_dialect
from audiosocket.dialects.base import Clear, Ignored, Mark, StreamEnd
from audiosocket.dialects.twilio import TwilioDialect
from audiosocket.errors import ConfigError
from tests.media import call_spec
from tools.audio import g711 as formula

pytestmark = pytest.mark.unit

ACCOUNT = "AC" + "5" * 32
STREAM = "MZ" + "0f3c" * 8
CALL = "CA" + "9a1b" * 8


def spec(**changes: Any) -> CallSpec:
    return call_spec(**({"dialect": "twilio", "account_sid": ACCOUNT, "url": "wss://app.example/media"} | changes))


def test_opening_is_connected_then_start() -> None:
    connected, start = TwilioDialect(spec(custom_parameters={"agent": "a7"})).opening()
    assert json.loads(connected) == {"event": "connected", "protocol": "Call", "version": "1.0.0"}
    assert json.loads(start) == {
        "event": "start",
        "sequenceNumber": "1",
        "start": {
            "accountSid": ACCOUNT,
            "streamSid": STREAM,
            "callSid": CALL,
            "tracks": ["inbound"],
            "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1},
            "customParameters": {"agent": "a7"},
        },
        "streamSid": STREAM,
    }


def test_keys_come_in_the_order_that_was_seen() -> None:
    dialect = TwilioDialect(spec())
    assert dialect.opening()[1] == (
        b'{"event":"start","sequenceNumber":"1","start":{"accountSid":"%b","streamSid":"%b","callSid":"%b",'
        b'"tracks":["inbound"],"mediaFormat":{"encoding":"audio/x-mulaw","sampleRate":8000,"channels":1},'
        b'"customParameters":{}},"streamSid":"%b"}'
        % (ACCOUNT.encode(), STREAM.encode(), CALL.encode(), STREAM.encode())
    )
    assert dialect.media(b"\xff" * 160) == (
        b'{"event":"media","sequenceNumber":"2","media":{"track":"inbound","chunk":"1","timestamp":"0","payload":"%b"},'
        b'"streamSid":"%b"}' % (base64.b64encode(b"\xff" * 160), STREAM.encode())
    )
    assert dialect.stop("callended") == (
        b'{"event":"stop","sequenceNumber":"3","streamSid":"%b","stop":{"accountSid":"%b","callSid":"%b"}}'
        % (STREAM.encode(), ACCOUNT.encode(), CALL.encode())
    )


def test_numbers_of_the_call_are_parameters_where_they_are_wanted() -> None:
    options = {"caller_parameter": "from_number", "callee_parameter": "to_number"}
    dialect = TwilioDialect(spec(dialect_options=options, custom_parameters={"agent": "a7"}))
    assert json.loads(dialect.opening()[1])["start"]["customParameters"] == {
        "agent": "a7",
        "from_number": "+919000000001",
        "to_number": "+918000000002",
    }


def test_media_counts_and_times_in_strings() -> None:
    dialect = TwilioDialect(spec())
    dialect.opening()
    first, second = json.loads(dialect.media(bytes(range(160)))), json.loads(dialect.media(bytes(160)))
    assert first["media"] == {
        "track": "inbound",
        "chunk": "1",
        "timestamp": "0",
        "payload": base64.b64encode(bytes(range(160))).decode(),
    }
    assert (second["media"]["chunk"], second["media"]["timestamp"]) == ("2", "20")
    dialect.skip(3)
    third = json.loads(dialect.media(bytes(160)))
    assert (third["sequenceNumber"], third["media"]["chunk"], third["media"]["timestamp"]) == ("4", "3", "100")


def test_one_sequence_for_all_messages() -> None:
    dialect = TwilioDialect(spec())
    dialect.opening()
    messages = [dialect.media(bytes(160)), dialect.dtmf("5"), dialect.mark("m"), dialect.stop("stopped")]
    decoded = [json.loads(message) for message in messages]
    assert [message["sequenceNumber"] for message in decoded] == ["2", "3", "4", "5"]
    assert decoded[1]["dtmf"] == {"track": "inbound_track", "digit": "5"}
    assert decoded[2]["mark"] == {"name": "m"}
    assert decoded[3]["stop"] == {"accountSid": ACCOUNT, "callSid": CALL}
    assert all(message["streamSid"] == STREAM for message in decoded)


def test_no_message_has_a_key_of_another_platform() -> None:
    dialect = TwilioDialect(spec())
    for message in [*dialect.opening(), dialect.media(bytes(160)), dialect.dtmf("1"), dialect.mark('q"\\\n')]:
        assert b" " not in message
        assert b"_sid" not in message
        json.loads(message.decode())


@pytest.mark.parametrize(
    "message",
    [
        {"event": "media", "streamSid": STREAM, "media": {"payload": "gP8="}},
        {"event": "media", "media": {"payload": "gP8="}},
        {"event": "media", "streamSid": STREAM, "media": {"payload": "gP8=", "track": "outbound", "chunk": 1}},
        {"event": "media", "sequenceNumber": 7, "extra": [1, {"a": None}], "media": {"payload": "gP8="}},
    ],
)
def test_media_in_every_shape_that_clients_send(message: object) -> None:
    dialect = TwilioDialect(spec())
    assert dialect.decode(json.dumps(message).encode()) == b"\x7c\x7d\x00\x00"  # 32124 and 0, as PCM16
    assert dialect.oddities == {}


def test_mark_and_clear() -> None:
    dialect = TwilioDialect(spec())
    assert dialect.decode(b'{"event":"mark","streamSid":"x","mark":{"name":"turn-1"}}') == Mark("turn-1")
    assert dialect.decode(b'{"event":"clear","streamSid":"x"}') == Clear()
    assert dialect.oddities == {"wrong_stream_sid": 2}
    assert dialect.marks_on_clear


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"", "bad_json"),
        (b"\xff\xfe", "bad_json"),
        (b'{"event":"clear","streamSid":' + b"[" * 100_000, "bad_json"),
        (b"[]", "bad_shape"),
        (b'{"event":"media"}', "bad_shape"),
        (b'{"event":"mark","mark":{}}', "bad_shape"),
        (b'{"event":"media","media":{"payload":"!!!!"}}', "bad_base64"),
        (b'{"event":"media","media":{"payload":null}}', "bad_base64"),
        (b'{"event":"stop"}', "unknown_event"),
    ],
)
def test_what_cannot_be_used_is_named(message: bytes, reason: str) -> None:
    assert TwilioDialect(spec()).decode(message) == Ignored(reason)


@given(st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
def test_no_message_raises(message: bytes) -> None:
    TwilioDialect(spec()).decode(message)


@given(st.binary(max_size=700))
def test_the_payload_is_mu_law_by_the_formula(payload: bytes) -> None:
    message = json.dumps({"event": "media", "media": {"payload": base64.b64encode(payload).decode()}})
    pcm = TwilioDialect(spec()).decode(message.encode())
    assert isinstance(pcm, bytes)
    assert np.array_equal(np.frombuffer(pcm, "<i2"), formula.ulaw_decode(payload))


def test_the_handshake_is_signed_with_the_auth_token() -> None:
    # printf %s wss://app.example/media | openssl dgst -sha1 -hmac 0123456789abcdef0123456789abcdef -binary | base64
    dialect = TwilioDialect(spec(credentials="0123456789abcdef0123456789abcdef"))
    assert dialect.headers() == {
        "User-Agent": "Twilio.TmeWs/1.0",
        "X-Twilio-Signature": "DdML9oFgRjYz71JdSm2sZkIN/aM=",
    }
    assert dialect.url == "wss://app.example/media"


def test_without_a_token_nothing_is_signed() -> None:
    assert TwilioDialect(spec()).headers() == {"User-Agent": "Twilio.TmeWs/1.0"}


def test_a_stream_id_from_elsewhere_cannot_break_a_message() -> None:
    dialect = TwilioDialect(spec(stream_sid='%s%d"\\'))
    dialect.opening()
    assert json.loads(dialect.media(bytes(160)))["streamSid"] == 'MZ%s%d"\\'


def test_wideband_media_is_refused() -> None:
    with pytest.raises(ConfigError, match="media format slin16: Twilio's streams have 8000 Hz: use slin, ulaw or alaw"):
        open_dialect(spec(media_format=MediaFormat.SLIN16))


@pytest.mark.parametrize(
    "options", [{"frame_ms": 20}, {"caller_parameter": ""}, {"caller_parameter": "n", "callee_parameter": "n"}]
)
def test_options_that_are_not_known(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="dialect_options of twilio"):
        open_dialect(spec(dialect_options=options))


# Status callbacks

TOLD = "https://crm.example/stream?tenant=a%20b"
AT_MS = 1_700_000_000_123
STARTED = {
    "AccountSid": ACCOUNT,
    "CallSid": CALL,
    "StreamSid": STREAM,
    "StreamEvent": "stream-started",
    "Timestamp": "2023-11-14T22:13:20.123Z",
}


def hmac_sha1(key: bytes, text: bytes) -> bytes:
    """RFC 2104, spelled out."""
    padded = key.ljust(64, b"\0")
    inner = hashlib.sha1(bytes(byte ^ 0x36 for byte in padded) + text).digest()
    return hashlib.sha1(bytes(byte ^ 0x5C for byte in padded) + inner).digest()


def test_a_stream_s_start_is_told_and_signed() -> None:
    request = TwilioDialect(spec(callback_url=TOLD, credentials="hunter2")).stream_started(AT_MS)
    assert request is not None
    assert (request.method, request.url, dict(request.form)) == ("POST", TOLD, STARTED)
    signed = (
        f"{TOLD}AccountSid{ACCOUNT}CallSid{CALL}StreamEventstream-startedStreamSid{STREAM}"
        "Timestamp2023-11-14T22:13:20.123Z"
    )
    assert request.headers == {
        "User-Agent": "TwilioProxy/1.1",
        "X-Twilio-Signature": base64.b64encode(hmac_sha1(b"hunter2", signed.encode())).decode(),
    }


@pytest.mark.parametrize("own", ["", "?tenant=a%20b"])
def test_it_is_told_by_a_get_where_the_application_has_that(own: str) -> None:
    url = f"https://crm.example/stream{own}"
    options = {"status_callback_method": "GET"}
    dialect = TwilioDialect(spec(callback_url=url, credentials="hunter2", dialect_options=options))
    request = dialect.stream_started(AT_MS)
    assert request is not None
    told = (
        f"{url}{'&' if own else '?'}AccountSid={ACCOUNT}&CallSid={CALL}&StreamSid={STREAM}&StreamEvent=stream-started"
        "&Timestamp=2023-11-14T22%3A13%3A20.123Z"
    )
    assert (request.method, request.url, request.form) == ("GET", told, ())
    assert request.headers == {
        "User-Agent": "TwilioProxy/1.1",
        "X-Twilio-Signature": base64.b64encode(hmac_sha1(b"hunter2", told.encode())).decode(),
    }


@pytest.mark.parametrize(
    ("end", "told"),
    [
        (StreamEnd(True, "caller", 5), {"StreamEvent": "stream-stopped"}),
        (StreamEnd(True, "application", 5), {"StreamEvent": "stream-stopped"}),
        (
            StreamEnd(False, "platform", 0, "app_refused: 401"),
            {"StreamEvent": "stream-error", "StreamError": "app_refused: 401"},
        ),
        (StreamEnd(False, "caller", 0), None),
    ],
)
def test_a_stream_s_end_is_told(end: StreamEnd, told: dict[str, str] | None) -> None:
    request = TwilioDialect(spec(callback_url=TOLD)).stream_ended(end, AT_MS)
    if told is None:
        assert request is None
    else:
        assert request is not None
        assert dict(request.form) == STARTED | told
        assert request.headers == {"User-Agent": "TwilioProxy/1.1"}


def test_nobody_is_told_without_a_callback() -> None:
    dialect = TwilioDialect(spec())
    assert dialect.stream_started(AT_MS) is None
    assert dialect.stream_ended(StreamEnd(True, "caller", 5), AT_MS) is None
