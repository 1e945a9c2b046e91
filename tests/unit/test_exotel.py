"""The Exotel dialect, message by message, against what Exotel documents and what known clients rely on."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audiosocket.callspec import MediaFormat
from audiosocket.dialects import open_dialect
from audiosocket.dialects.base import Clear, Digits, Ignored, Mark
from audiosocket.dialects.exotel import ExotelDialect
from audiosocket.errors import ConfigError
from tests.media import call_spec

pytestmark = pytest.mark.unit

SID = call_spec().stream_sid


def test_opening_is_connected_then_start() -> None:
    spec = call_spec(custom_parameters={"agent": "a7"})
    connected, start = ExotelDialect(spec).opening()
    assert json.loads(connected) == {"event": "connected"}
    assert json.loads(start) == {
        "event": "start",
        "sequence_number": "1",
        "stream_sid": SID,
        "start": {
            "stream_sid": SID,
            "call_sid": spec.call_sid,
            "account_sid": "acme1",
            "from": "+919000000001",
            "to": "+918000000002",
            "custom_parameters": {"agent": "a7"},
            "media_format": {"encoding": "base64", "sample_rate": "8000", "bit_rate": "128kbps"},
        },
    }


def test_media_counts_and_times_in_strings() -> None:
    dialect = ExotelDialect(call_spec())
    dialect.opening()
    first, second = json.loads(dialect.media(b"\x01\x02" * 160)), json.loads(dialect.media(bytes(320)))
    assert first == {
        "event": "media",
        "stream_sid": SID,
        "sequence_number": "2",
        "media": {"chunk": "1", "timestamp": "0", "payload": base64.b64encode(b"\x01\x02" * 160).decode()},
    }
    assert second["media"]["chunk"] == "2"
    assert second["media"]["timestamp"] == "20"
    dialect.skip(3)
    assert json.loads(dialect.media(bytes(320)))["media"]["timestamp"] == "100"


def test_one_sequence_for_all_messages() -> None:
    dialect = ExotelDialect(call_spec())
    dialect.opening()
    messages = [dialect.media(bytes(320)), dialect.dtmf("5"), dialect.mark("m"), dialect.stop("callended")]
    decoded = [json.loads(message) for message in messages]
    assert [message["sequence_number"] for message in decoded] == ["2", "3", "4", "5"]
    assert decoded[1]["dtmf"] == {"digit": "5", "duration": "100"}
    assert decoded[2]["mark"] == {"name": "m"}
    assert decoded[3]["stop"] == {
        "call_sid": call_spec().call_sid,
        "account_sid": "acme1",
        "reason": "callended",
    }
    assert all(message["stream_sid"] == SID for message in decoded)


def test_a_message_is_compact_text() -> None:
    dialect = ExotelDialect(call_spec())
    for message in [*dialect.opening(), dialect.media(bytes(320)), dialect.mark('q"\\\n')]:
        assert b" " not in message
        json.loads(message.decode())


@pytest.mark.parametrize(
    "message",
    [
        {"event": "media", "stream_sid": SID, "media": {"payload": "AQI="}},
        {"event": "media", "streamSid": SID, "media": {"payload": "AQI=", "chunk": 1, "timestamp": 20, "track": "x"}},
        {"event": "media", "media": {"payload": "AQI="}},
        {"event": "media", "sequence_number": 7, "extra": [1, {"a": None}], "media": {"payload": "AQI="}},
    ],
)
def test_media_in_every_shape_that_clients_send(message: object) -> None:
    assert ExotelDialect(call_spec()).decode(json.dumps(message).encode()) == b"\x01\x02"


def test_mark_and_clear() -> None:
    dialect = ExotelDialect(call_spec())
    assert dialect.decode(b'{"event":"mark","stream_sid":"x","mark":{"name":"turn-1"}}') == Mark("turn-1")
    assert dialect.decode(b'{"event":"clear","stream_sid":"x"}') == Clear()


def test_a_wrong_stream_sid_is_counted_and_the_message_used() -> None:
    dialect = ExotelDialect(call_spec())
    assert dialect.decode(b'{"event":"media","stream_sid":"node-1","media":{"payload":"AQI="}}') == b"\x01\x02"
    assert dialect.decode(b'{"event":"clear","stream_sid":5}') == Clear()
    assert dialect.oddities == {"wrong_stream_sid": 2}


def test_more_audio_in_a_message_than_the_platform_documents_is_counted_and_played() -> None:
    dialect = ExotelDialect(call_spec())
    for size, counted in ((100_000, {}), (100_002, {"big_payload": 1})):
        audio = bytes(range(1, 251)) * (size // 250) + bytes(size % 250)
        message = b'{"event":"media","media":{"payload":"%b"}}' % base64.b64encode(audio)
        assert dialect.decode(message) == audio
        assert dialect.oddities == counted


def test_digits_for_the_caller_are_read() -> None:
    assert ExotelDialect(call_spec()).decode(b'{"event":"dtmf","dtmf":{"digit":"1"}}') == Digits("1")


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"", "bad_json"),
        (b"{", "bad_json"),
        (b"\xff\xfe", "bad_json"),
        (b'{"event":"clear","stream_sid":' + b"[" * 100_000, "bad_json"),
        (b"null", "bad_shape"),
        (b"[]", "bad_shape"),
        (b"{}", "bad_shape"),
        (b'{"event":5}', "bad_shape"),
        (b'{"event":"media"}', "bad_shape"),
        (b'{"event":"media","media":{}}', "bad_shape"),
        (b'{"event":"media","media":"AQI="}', "bad_shape"),
        (b'{"event":"mark"}', "bad_shape"),
        (b'{"event":"mark","mark":{"name":7}}', "bad_shape"),
        (b'{"event":"media","media":{"payload":"!!!!"}}', "bad_base64"),
        (b'{"event":"media","media":{"payload":"AQI"}}', "bad_base64"),
        (b'{"event":"media","media":{"payload":5}}', "bad_base64"),
        (b'{"event":"dtmf","digit":"1"}', "bad_shape"),
        (b'{"event":"dtmf","dtmf":{"digit":"1p"}}', "bad_shape"),
        (b'{"event":"sing"}', "unknown_event"),
        (b'{"event":"","media":{"payload":"AQI="}}', "unknown_event"),
    ],
)
def test_what_cannot_be_used_is_named(message: bytes, reason: str) -> None:
    assert ExotelDialect(call_spec()).decode(message) == Ignored(reason)


@given(st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
def test_no_message_raises(message: bytes) -> None:
    ExotelDialect(call_spec()).decode(message)


def opened(**options: object) -> dict[str, Any]:
    (_, start) = ExotelDialect(call_spec(dialect_options=options)).opening()
    return json.loads(start)  # type: ignore[no-any-return]


def test_disputed_points_are_switches() -> None:
    assert opened(counters="integer")["sequence_number"] == 1
    assert opened(encoding="raw", bit_rate="128")["start"]["media_format"] == {
        "encoding": "raw",
        "sample_rate": "8000",
        "bit_rate": "128",
    }
    assert opened()["start"]["custom_parameters"] == {}
    assert "custom_parameters" not in opened(empty_custom_parameters="omit")["start"]
    national = opened(number_format="national0")["start"]
    assert (national["from"], national["to"]) == ("09000000001", "08000000002")


@pytest.mark.parametrize(
    ("media_format", "rate", "bit_rates"),
    [
        (MediaFormat.ALAW, "8000", ("128kbps", "128", "16")),
        (MediaFormat.SLIN16, "16000", ("256kbps", "256", "16")),
        (MediaFormat.SLIN24, "24000", ("384kbps", "384", "16")),
    ],
)
@pytest.mark.parametrize("frame_ms", [20, 100])
def test_the_start_message_says_the_rate_of_the_media(
    media_format: MediaFormat, rate: str, bit_rates: tuple[str, str, str], frame_ms: int
) -> None:
    for option, told in zip(("128kbps", "128", "16"), bit_rates, strict=True):
        options = {"bit_rate": option, "frame_ms": frame_ms}
        dialect = ExotelDialect(call_spec(media_format=media_format, dialect_options=options))
        start = json.loads(dialect.opening()[1])["start"]
        assert start["media_format"] == {"encoding": "base64", "sample_rate": rate, "bit_rate": told}
        assert dialect.frame_bytes == int(rate) * 2 * frame_ms // 1000
    dialect.media(bytes(dialect.frame_bytes))
    assert json.loads(dialect.media(bytes(dialect.frame_bytes)))["media"]["timestamp"] == str(frame_ms)


def test_counters_as_integers() -> None:
    dialect = ExotelDialect(call_spec(dialect_options={"counters": "integer"}))
    dialect.opening()
    media = json.loads(dialect.media(bytes(320)))
    assert (media["sequence_number"], media["media"]["chunk"], media["media"]["timestamp"]) == (2, 1, "0")
    assert json.loads(dialect.mark("m"))["sequence_number"] == 3


@pytest.mark.parametrize("query", ["keep", "strip"])
def test_the_query_of_the_url_becomes_custom_parameters(query: str) -> None:
    url = "wss://host/bot?sample-rate=8000&agent=a%207&empty="
    dialect = ExotelDialect(call_spec(url=url, custom_parameters={"own": "1"}, dialect_options={"query": query}))
    start = json.loads(dialect.opening()[1])["start"]
    assert start["custom_parameters"] == {"agent": "a 7", "empty": "", "own": "1"}
    assert dialect.url == (url if query == "keep" else "wss://host/bot")


def test_a_stream_id_from_elsewhere_cannot_break_a_message() -> None:
    dialect = ExotelDialect(call_spec(stream_sid='%s%d"\\'))
    dialect.opening()
    assert json.loads(dialect.media(bytes(320)))["stream_sid"] == '%s%d"\\'


def test_credentials_become_basic_authorization() -> None:
    says = {"User-Agent": "Go-http-client/1.1"}
    assert ExotelDialect(call_spec()).headers() == says
    with_credentials = ExotelDialect(call_spec(credentials="key:token")).headers()
    assert with_credentials == says | {"Authorization": "Basic a2V5OnRva2Vu"}


def test_a_dialect_that_this_worker_lacks() -> None:
    with pytest.raises(ConfigError, match="one of exotel, "):
        open_dialect(call_spec(dialect="morse"))
    with pytest.raises(ConfigError, match="frame_msec"):
        open_dialect(call_spec(dialect_options={"frame_msec": 20}))
