"""The Plivo dialect, message by message, against what Plivo documents and what its libraries expect."""

from __future__ import annotations

import base64
import json
import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audiosocket import __version__
from audiosocket.callspec import CallSpec
from audiosocket.dialects import open_dialect
from audiosocket.dialects.base import Clear, Digits, Ignored, Mark, StreamEnd
from audiosocket.dialects.plivo import PlivoDialect
from audiosocket.errors import ConfigError
from audiosocket.g711 import Encoding, pcm_to_ulaw
from tests.media import call_spec
from tools.audio import g711 as formula

pytestmark = pytest.mark.unit

ACCOUNT = "MA" + "5" * 18
STREAM = "0f3c0f3c-0f3c-0f3c-0f3c-0f3c0f3c0f3c"
CALL = "9a1b9a1b-9a1b-9a1b-9a1b-9a1b9a1b9a1b"
BEGAN_MS = 1_705_312_200_000
L16 = {"content_type": "audio/x-l16;rate=8000"}


def spec(**changes: Any) -> CallSpec:
    values = {"dialect": "plivo", "account_sid": ACCOUNT, "url": "wss://app.example/media", "created_at_ms": BEGAN_MS}
    return call_spec(**(values | changes))


def play(payload: bytes, **media: Any) -> bytes:
    return json.dumps({"event": "playAudio", "media": media | {"payload": base64.b64encode(payload).decode()}}).encode()


def test_opening_is_start_alone() -> None:
    (start,) = PlivoDialect(spec(custom_parameters={"userId": "12345", "sessionId": "abc-xyz"})).opening()
    assert json.loads(start) == {
        "event": "start",
        "sequenceNumber": 1,
        "start": {
            "callId": CALL,
            "streamId": STREAM,
            "accountId": ACCOUNT,
            "tracks": ["inbound"],
            "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000},
        },
        "extra_headers": "userId=12345;sessionId=abc-xyz",
    }


def test_messages_as_they_are_on_the_wire() -> None:
    dialect = PlivoDialect(spec(custom_parameters={"a": "1"}))
    sid = STREAM.encode()
    assert dialect.opening() == [
        b'{"event":"start","sequenceNumber":1,"start":{"callId":"%b","streamId":"%b","accountId":"%b",'
        b'"tracks":["inbound"],"mediaFormat":{"encoding":"audio/x-mulaw","sampleRate":8000}},"extra_headers":"a=1"}'
        % (CALL.encode(), sid, ACCOUNT.encode())
    ]
    assert dialect.media(b"\xff" * 160) == (
        b'{"event":"media","sequenceNumber":2,"streamId":"%b","media":{"track":"inbound",'
        b'"timestamp":"1705312200000","chunk":1,"payload":"%b"},"extra_headers":"a=1"}'
        % (sid, base64.b64encode(b"\xff" * 160))
    )
    assert dialect.dtmf("5") == (
        b'{"event":"dtmf","sequenceNumber":3,"streamId":"%b","dtmf":{"track":"inbound","digit":"5",'
        b'"timestamp":"1705312200020"},"extra_headers":"a=1"}' % sid
    )
    assert dialect.mark("greeting") == (
        b'{"event":"playedStream","sequenceNumber":4,"streamId":"%b","name":"greeting"}' % sid
    )
    assert dialect.cleared() == b'{"event":"clearedAudio","sequenceNumber":5,"streamId":"%b"}' % sid
    assert dialect.stop("callended") == b""
    assert not dialect.marks_on_clear


def test_the_place_in_time_of_what_was_dropped_stays() -> None:
    dialect = PlivoDialect(spec())
    dialect.opening()
    dialect.media(bytes(160))
    dialect.skip(3)
    media = json.loads(dialect.media(bytes(160)))
    assert (media["sequenceNumber"], media["media"]["chunk"]) == (3, 2)
    assert media["media"]["timestamp"] == str(BEGAN_MS + 80)


@pytest.mark.parametrize(
    ("options", "written"),
    [
        ({}, "agent=a%3B7;n=%C3%A9%25;from=+919000000001"),
        ({"extra_headers": "braces"}, "{X-PH-agent: a%3B7, X-PH-n: %C3%A9%25, X-PH-from: +919000000001}"),
    ],
)
def test_parameters_are_extra_headers_of_every_message_of_the_caller(options: dict[str, str], written: str) -> None:
    parameters = {"agent": "a;7", "n": "é%"}
    dialect = PlivoDialect(
        spec(custom_parameters=parameters, dialect_options={"caller_parameter": "from"} | options),
    )
    messages = [*dialect.opening(), dialect.media(bytes(160)), dialect.dtmf("1")]
    assert [json.loads(message)["extra_headers"] for message in messages] == [written] * 3


@pytest.mark.parametrize(("options", "empty"), [({}, ""), ({"extra_headers": "braces"}, "{}")])
def test_no_parameters(options: dict[str, str], empty: str) -> None:
    dialect = PlivoDialect(spec(dialect_options=options))
    assert json.loads(dialect.opening()[0])["extra_headers"] == empty


def test_l16_is_pcm_both_ways() -> None:
    dialect = PlivoDialect(spec(dialect_options=L16))
    assert (dialect.encoding, dialect.frame_bytes) == (Encoding.PCM16, 320)
    assert json.loads(dialect.opening()[0])["start"]["mediaFormat"] == {"encoding": "audio/x-l16", "sampleRate": 8000}
    pcm = bytes(range(200))
    assert dialect.decode(play(pcm, contentType="audio/x-l16", sampleRate=8000)) == pcm
    assert dialect.decode(play(pcm)) == pcm
    assert dialect.oddities == {}


def test_mu_law_is_decoded() -> None:
    codes = bytes(range(256))
    decoded = formula.ulaw_decode(codes).tobytes()
    dialect = PlivoDialect(spec())
    assert (dialect.encoding, dialect.frame_bytes) == (Encoding.ULAW, 160)
    for media in (
        {"contentType": "audio/x-mulaw", "sampleRate": 8000},
        {"contentType": "audio/x-mulaw", "sampleRate": "8000"},
        {"contentType": "audio/x-mulaw;rate=8000"},
        {"contentType": "audio/x-mulaw"},
        {"sampleRate": 8000},
        {},
    ):
        assert dialect.decode(play(codes, **media)) == decoded, media
    assert dialect.oddities == {}


def test_audio_is_what_its_message_says_it_is() -> None:
    pcm = bytes(range(200))
    dialect = PlivoDialect(spec())
    assert dialect.decode(play(pcm, contentType="audio/x-l16", sampleRate=8000)) == pcm
    assert dialect.oddities == {"other_content_type": 1}
    wide = PlivoDialect(spec(dialect_options=L16))
    heard = wide.decode(play(pcm_to_ulaw(bytes(320)), contentType="audio/x-mulaw", sampleRate=8000))
    assert heard == bytes(320)


@pytest.mark.parametrize(
    "media",
    [
        {"contentType": "audio/x-l16", "sampleRate": 16000},
        {"contentType": "audio/x-l16;rate=16000"},
        {"contentType": "audio/x-mulaw", "sampleRate": "16000"},
        {"contentType": "audio/mpeg", "sampleRate": 8000},
        {"contentType": "wav"},
    ],
)
def test_audio_that_cannot_be_played_is_counted(media: dict[str, Any]) -> None:
    assert PlivoDialect(spec()).decode(play(bytes(160), **media)) == Ignored("content_type")


@pytest.mark.parametrize(
    ("message", "asked"),
    [
        (
            b'{"event":"checkpoint","streamId":"%b","name":"greeting-complete"}' % STREAM.encode(),
            Mark("greeting-complete"),
        ),
        (b'{"event":"clearAudio","streamId":"%b"}' % STREAM.encode(), Clear()),
        (b'{"event":"sendDTMF","dtmf":"12#"}', Digits("12#")),
        (b'{"event":"playAudio"}', Ignored("bad_shape")),
        (b'{"event":"playAudio","media":{"payload":"%%"}}', Ignored("bad_base64")),
        (b'{"event":"playAudio","media":{"payload":"AAAA","contentType":7}}', Ignored("bad_shape")),
        (b'{"event":"checkpoint"}', Ignored("bad_shape")),
        (b'{"event":"checkpoint","name":7}', Ignored("bad_shape")),
        (b'{"event":"sendDTMF"}', Ignored("bad_shape")),
        (b'{"event":"media","media":{"payload":"AAAA"}}', Ignored("unknown_event")),
        (b'{"event":"stop"}', Ignored("unknown_event")),
        (b"[]", Ignored("bad_shape")),
        (b"{", Ignored("bad_json")),
        (b"\xff", Ignored("bad_json")),
    ],
)
def test_what_the_application_asks_for(message: bytes, asked: object) -> None:
    dialect = PlivoDialect(spec())
    assert dialect.decode(message) == asked
    assert dialect.oddities == {}


def test_another_stream_id_is_counted_and_the_message_used() -> None:
    dialect = PlivoDialect(spec())
    assert dialect.decode(b'{"event":"clearAudio","streamId":"mine"}') == Clear()
    assert dialect.oddities == {"wrong_stream_sid": 1}


@given(
    st.binary()
    | st.recursive(
        st.none() | st.integers() | st.text(),
        lambda inner: st.dictionaries(
            st.sampled_from(["event", "media", "name", "dtmf", "streamId", "payload", "contentType", "sampleRate"]),
            inner,
        ),
    ).map(lambda value: json.dumps(value).encode())
)
def test_decoding_never_raises(message: bytes) -> None:
    PlivoDialect(spec()).decode(message)


@pytest.mark.parametrize(
    ("url", "signatures"),
    [
        (
            "wss://app.example/media",
            "quj3VFdRq/6ayaJKNyLMmB87lHcFmdTyiJyxWCMoy14=,SVdRllACoR9hWdzzK1beQ4lBPRfEHz0ad+/mpwKyag8=",
        ),
        (
            "wss://app.example:8443/media?b=2&a=1%2F2&a=0&c",
            "GHERcrfB6hH+W2iisVybXxmbvffeBzHEbc9jzN7Qp14=,dY3JhXhYv+4q9bU6ZUfiPv5ZjrGElQaca/9n4LVrRdg=",
        ),
        (
            "ws://127.0.0.1:19000",
            "pvkpaNDwPh8K0kNwjOaV+clFBTUZwms86mter2aV8xc=,5YeSSWBIGyTebtsRTrPQ0HIOHw3QSAA5YztDyipUsXo=",
        ),
    ],
)
def test_the_handshake_is_signed(url: str, signatures: str) -> None:
    # Each first signature was accepted by validate_v3_signature of the package `plivo` 4.63.0 for the URL with http in
    # the place of ws, which is what an application sees; each second one is that package's for the URL as it is.
    headers = PlivoDialect(spec(url=url, credentials="hunter2")).headers()
    assert headers == {
        "User-Agent": f"trunkbridge/{__version__}",
        "X-Plivo-Signature-V3": signatures,
        "X-Plivo-Signature-V3-Nonce": "25394204655124100667",
    }


def test_every_attempt_has_a_nonce_of_its_own() -> None:
    dialect = PlivoDialect(spec(credentials="hunter2"))
    nonces = {dialect.headers()["X-Plivo-Signature-V3-Nonce"] for _ in range(10)}
    assert len(nonces) == 10
    assert all(nonce.isdigit() and len(nonce) == 20 for nonce in nonces)


def test_nothing_is_signed_without_a_token() -> None:
    assert PlivoDialect(spec()).headers() == {"User-Agent": f"trunkbridge/{__version__}"}


def test_ids_are_uuids_and_need_not_be() -> None:
    dialect = PlivoDialect(spec(stream_sid=uuid.UUID(STREAM).hex))
    assert dialect.stream_sid == STREAM
    odd = PlivoDialect(spec(stream_sid='%s%d"\\'))
    assert json.loads(odd.media(bytes(160)))["streamId"] == odd.stream_sid


@pytest.mark.parametrize(
    "options", [{"frame_ms": 20}, {"content_type": "audio/x-mulaw"}, {"caller_parameter": "n", "callee_parameter": "n"}]
)
def test_options_that_are_not_known(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="dialect_options of plivo"):
        open_dialect(spec(dialect_options=options))


# Status callbacks

TOLD = "https://crm.example/stream?tenant=a%20b"
STARTED = {
    "CallUUID": CALL,
    "StreamID": STREAM,
    "Event": "started",
    "Timestamp": "2023-11-14T22:13:20Z",
    "From": "+919000000001",
    "To": "+918000000002",
    "Direction": "inbound",
}


@pytest.mark.parametrize(
    ("url", "signature"),
    [
        (TOLD, "8+l2dBugTlEVjhff6SJg4q/AfoG4ZA09Xvurw3cvu5w="),
        ("https://crm.example/stream", "g12QF1wAiw0JK3ckbUKQl+kPP240nt9tAjinMXPKKfU="),
    ],
)
def test_a_stream_s_start_is_told_and_signed(url: str, signature: str) -> None:
    request = PlivoDialect(spec(callback_url=url, credentials="hunter2")).stream_started(1_700_000_000_123)
    assert request is not None
    assert (request.method, request.url, dict(request.form)) == ("POST", url, STARTED)
    # Accepted by validate_v3_signature, as above.
    nonce = "25394204655124100667"
    assert request.headers == {"X-Plivo-Signature-V3": signature, "X-Plivo-Signature-V3-Nonce": nonce}


@pytest.mark.parametrize(
    ("end", "told"),
    [
        (StreamEnd(True, "caller", 4.6), {"Event": "stopped", "StatusReason": "completed", "Duration": "5"}),
        (StreamEnd(False, "platform", 0, "app_refused: 401"), {"Event": "failed", "StatusReason": "app_refused: 401"}),
        (StreamEnd(False, "caller", 0), None),
    ],
)
def test_a_stream_s_end_is_told(end: StreamEnd, told: dict[str, str] | None) -> None:
    request = PlivoDialect(spec(callback_url=TOLD)).stream_ended(end, 1_700_000_000_123)
    assert (request and (dict(request.form), request.headers)) == (told and (STARTED | told, {}))


def test_nobody_is_told_without_a_callback() -> None:
    dialect = PlivoDialect(spec())
    assert dialect.stream_started(0) is None
    assert dialect.stream_ended(StreamEnd(True, "caller", 5), 0) is None
