"""What Exotel asks and tells over HTTP: the request for a dynamic URL, its answer, and Passthru, key by key."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audiosocket.callspec import EndReason, MediaFormat
from audiosocket.dialects.base import StreamEnd
from audiosocket.dialects.exotel import ExotelDialect
from audiosocket.dialects.exotel_http import url_answer, url_request
from audiosocket.stream_end import MAX_ERROR_CHARACTERS, stream_end
from tests.media import call_spec

pytestmark = pytest.mark.unit

ARRIVED_MS = 1_700_000_000_000  # Tue, 14 Nov 2023 22:13:20 UTC
ASKED = "https://app.example/where?tenant=a%20b"


def asked(**changes: Any) -> dict[str, list[str]]:
    spec = call_spec(**({"url": ASKED, "arrived_at_ms": ARRIVED_MS} | changes))
    return parse_qs(urlsplit(url_request(spec, ARRIVED_MS + 1500).url).query, keep_blank_values=True)


def test_the_request_for_a_url() -> None:
    spec = call_spec(url=ASKED, arrived_at_ms=ARRIVED_MS, credentials="key:token")
    request = url_request(spec, ARRIVED_MS + 1500)
    assert (request.method, request.form) == ("GET", ())
    assert request.headers == {"Authorization": "Basic a2V5OnRva2Vu"}
    assert request.url == (
        "https://app.example/where?tenant=a%20b"
        "&CallSid=9a1b9a1b9a1b9a1b9a1b9a1b9a1b9a1b"
        "&CallFrom=%2B919000000001&CallTo=%2B918000000002"
        "&Direction=incoming&Created=Wed%2C+15+Nov+2023+03%3A43%3A20&DialCallDuration=0"
        "&StartTime=2023-11-15+03%3A43%3A20&EndTime=1970-01-01+05%3A30%3A00&CallType=call-attempt"
        "&flow_id=test&tenant_id=acme1&From=%2B919000000001&To=%2B918000000002"
        "&CurrentTime=2023-11-15+03%3A43%3A21&AccountSid=acme1&CustomField="
    )


def test_the_request_for_a_url_follows_the_account_s_habits() -> None:
    national = asked(dialect_options={"number_format": "national0"})
    assert [national[key] for key in ("From", "CallFrom", "To", "CallTo")] == [["09000000001"]] * 2 + [
        ["08000000002"]
    ] * 2
    assert asked(direction="outbound")["Direction"] == ["outbound-dial"]
    assert asked(custom_parameters={"CustomField": "order 7"})["CustomField"] == ["order 7"]
    assert asked(arrived_at_ms=0, created_at_ms=ARRIVED_MS)["StartTime"] == ["2023-11-15 03:43:20"]
    assert url_request(call_spec(url=ASKED), 0).headers == {}


@pytest.mark.parametrize(("url", "joined"), [("http://h/p", "?"), ("http://h/p?", ""), ("http://h/p?a=1&", "")])
def test_the_query_is_joined_to_the_url(url: str, joined: str) -> None:
    assert url_request(call_spec(url=url), 0).url.startswith(f"{url}{joined}CallSid=")


@pytest.mark.parametrize(
    ("body", "url", "credentials"),
    [
        (b'{"url": "wss://bot.example/v1"}', "wss://bot.example/v1", ""),
        (b'\xef\xbb\xbf {"url": " wss://bot.example/v1 ", "ttl": 5}\n', "wss://bot.example/v1", ""),
        (b"ws://10.0.0.7:9000/v1?agent=a7\n", "ws://10.0.0.7:9000/v1?agent=a7", ""),
        (b'{"url":"wss://key:to%3Aken@bot.example/v1?agent=a7"}', "wss://bot.example/v1?agent=a7", "key:to:ken"),
        (b'{"url":"WSS://key@Bot.Example/"}', "wss://Bot.Example/", "key:"),
        (b'{"url":"wss://bot.example/v1?sample-rate=8000&a=1&b=2&c=3"}', None, ""),
    ],
)
def test_the_answer_is_dialled(body: bytes, url: str | None, credentials: str) -> None:
    spec = call_spec(url=ASKED, credentials="the:question's")
    answered = url_answer(spec, 200, body)
    assert answered.url == url or url is None
    assert answered.credentials == credentials  # the question's belong to another server
    assert answered.call_id == spec.call_id


def test_an_answered_url_may_ask_for_the_rate_of_the_stream() -> None:
    body = b"wss://bot.example/v1?sample-rate=16000"
    assert url_answer(call_spec(url=ASKED, media_format=MediaFormat.SLIN16), 200, body).url == body.decode()


def test_parameters_of_the_answered_url_reach_the_application() -> None:
    spec = call_spec(url=ASKED, custom_parameters={"campaign": "demo"})
    dialect = ExotelDialect(url_answer(spec, 200, b"wss://bot.example/v1?agent=a7"))
    start = json.loads(dialect.opening()[1])["start"]
    assert start["custom_parameters"] == {"agent": "a7", "campaign": "demo"}
    assert dialect.url == "wss://bot.example/v1?agent=a7"


@pytest.mark.parametrize(
    ("status", "body", "why"),
    [
        (404, b"", "HTTP status 404 instead of 200"),
        (204, b"", "HTTP status 204 instead of 200"),
        (302, b"wss://h/", "HTTP status 302 instead of 200: redirects are not followed"),
        (200, b"", "neither JSON nor a WebSocket URL"),
        (200, b"<html>hunter2</html>", "neither JSON nor a WebSocket URL"),
        (200, b"\xff\xfe", "neither JSON nor a WebSocket URL"),
        (200, b"[" * 5000, "neither JSON nor a WebSocket URL"),
        (200, b"[]", "JSON without a text named url"),
        (200, b'{"URL":"wss://h/"}', "JSON without a text named url"),
        (200, b'{"url":null}', "JSON without a text named url"),
        (200, b'{"url":"https://hunter2/"}', "no ws:// or wss:// URL of printable ASCII"),
        (200, b'{"url":"wss://h/a b"}', "no ws:// or wss:// URL of printable ASCII"),
        (200, b'{"url":"wss://h/\\r\\nX-Evil: 1"}', "no ws:// or wss:// URL of printable ASCII"),
        (200, b'{"url":"wss://"}', "no ws:// or wss:// URL of printable ASCII"),
        (200, b'{"url":"wss://?a=hunter2"}', "the answer's url has no host"),
        (200, b'{"url":"wss://key:hunter2@/"}', "the URL has no host behind its credentials"),
        (200, b'{"url":"wss://key:@//key:hunter2@bot.example/"}', "the URL has no host behind its credentials"),
        (200, b'{"url":"wss://key:]hunter2@[::"}', "host or port of the URL cannot be read"),
        (200, b'{"url":"wss://h:99999/hunter2"}', "host or port of the URL cannot be read"),
        (200, b'{"url":"wss://h/#hunter2"}', "has a #fragment"),
        (200, b"wss://h/" + b"x" * 593, "more than 600 characters"),
        (200, b"wss://h/?sample-rate=16000", "a sample rate of 16000, and the stream has 8000"),
        (200, b"wss://h/?a=1&b=2&c=3", "are 4 parameters together: Exotel allows 3"),
        (200, b"wss://h/?a=" + b"x" * 250, "Exotel allows 256 characters"),
    ],
)
def test_an_answer_that_cannot_be_used(status: int, body: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        url_answer(call_spec(url=ASKED, custom_parameters={"campaign": "demo"}), status, body)
    assert why in str(caught.value)
    assert "hunter2" not in str(caught.value)


@given(st.binary(max_size=300) | st.text(max_size=100).map(lambda text: json.dumps({"url": "ws://" + text}).encode()))
def test_any_answer_is_a_url_or_a_value_error(body: bytes) -> None:
    try:
        answered = url_answer(call_spec(url=ASKED), 200, body)
    except ValueError:
        return
    assert answered.url.startswith(("ws://", "wss://"))
    assert answered.url.isascii()


# Passthru

TOLD = "https://crm.example/passthru?secret=s%2B1"
COMPLETED = StreamEnd(True, "application", 28.4)
HEAD = (
    "https://crm.example/passthru?secret=s%2B1"
    "&CallSid=9a1b9a1b9a1b9a1b9a1b9a1b9a1b9a1b&flow_id=test&Direction=incoming"
    "&From=%2B919000000001&To=%2B918000000002"
)


def told(end: StreamEnd, **changes: Any) -> str:
    dialect = ExotelDialect(call_spec(**({"url": "wss://bot.example/v1?token=t", "callback_url": TOLD} | changes)))
    assert dialect.stream_started(0) is None
    request = dialect.stream_ended(end, 0)
    assert request is not None
    assert (request.method, request.headers, request.form) == ("GET", {}, ())
    return request.url


def test_passthru_with_brackets() -> None:
    assert told(COMPLETED) == (
        HEAD + "&Stream%5BStreamSID%5D=0f3c0f3c0f3c0f3c0f3c0f3c0f3c0f3c&Stream%5BStatus%5D=completed"
        "&Stream%5BDuration%5D=28&Stream%5BRecordingUrl%5D="
        "&Stream%5BStreamUrl%5D=wss%3A%2F%2Fbot.example%2Fv1&Stream%5BDisconnectedBy%5D=bot"
    )


def test_passthru_as_json() -> None:
    url = told(StreamEnd(True, "caller", 3, recording="rec/1.wav"), dialect_options={"passthru": "json"})
    assert url.startswith(HEAD + "&Stream=%7B")
    assert json.loads(parse_qs(urlsplit(url).query)["Stream"][0]) == {
        "StreamSID": "0f3c" * 8,
        "Status": "completed",
        "Duration": "3",
        "RecordingUrl": "rec/1.wav",
        "StreamUrl": "wss://bot.example/v1",
        "DisconnectedBy": "user",
    }


def test_nobody_is_told_without_a_callback() -> None:
    assert ExotelDialect(call_spec()).stream_ended(COMPLETED, 0) is None


@pytest.mark.parametrize(
    ("reason", "detail", "seconds", "status", "by", "error"),
    [
        (EndReason.LEG_CLOSED, "", 5.0, "completed", "user", None),
        (EndReason.APP_CLOSED, "close code 1000", 5.0, "completed", "bot", None),
        (EndReason.STREAM_LIMIT, "", 5.0, "completed", "NA", None),
        (EndReason.WORKER_STOPPED, "stopped", 5.0, "completed", "NA", None),
        (EndReason.APP_LOST, "no close frame", 5.0, "failed", "bot", "app_lost: no close frame"),
        (EndReason.APP_MESSAGE_TOO_BIG, "9 MB", 5.0, "failed", "NA", "app_message_too_big: 9 MB"),
        (EndReason.WORKER_ERROR, "", 5.0, "failed", "NA", "worker_error"),
        (EndReason.LEG_CLOSED, "", None, "cancelled", "user", None),
        (EndReason.APP_REFUSED, "HTTP status 401", None, "failed", "NA", "app_refused: HTTP status 401"),
        (EndReason.WORKER_STOPPED, "stopped", None, "failed", "NA", "worker_stopped: stopped"),
    ],
)
def test_how_a_stream_ended(
    reason: EndReason, detail: str, seconds: float | None, status: str, by: str, error: str | None
) -> None:
    keys = parse_qs(urlsplit(told(stream_end(reason, detail, seconds))).query)
    assert keys["Stream[Status]"] == [status]
    assert keys["Stream[DisconnectedBy]"] == [by]
    assert keys["Stream[Duration]"] == [str(round(seconds or 0))]
    assert keys.get("Stream[Error]") == (None if error is None else [error])
    assert keys.get("Stream[DetailedStatus]") == (None if error is None else [reason.value])


def test_every_ending_can_be_told() -> None:
    for reason in EndReason:
        for seconds in (None, 0.0, 3600.0):
            end = stream_end(reason, "x" * 1000, seconds)
            assert len(end.error) <= MAX_ERROR_CHARACTERS
            assert told(end)
            assert end.completed or end.error or end.ended_by == "caller"
