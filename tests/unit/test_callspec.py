"""The contract between controller and worker: it survives the wire, neighbouring versions, and never shows a secret."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audiosocket.callspec import (
    CallReport,
    CallSpec,
    EndReason,
    MediaFigures,
    MediaFormat,
    Milestone,
    WorkerInfo,
    masked_url,
)
from audiosocket.keys import KEY_PREFIX, WORKERS_KEY, report_stream, spec_key, taken_key, worker_key
from tests.media import call_spec

pytestmark = pytest.mark.unit

WORKER = WorkerInfo(
    worker_id="gw/0",
    node="gw",
    host="127.0.0.1",
    port=9092,
    status_url="http://127.0.0.1:9192",
    capacity=250,
    active=3,
    draining=False,
    version="1",
    started_at_ms=5,
)


def report(**changes: Any) -> CallReport:
    values: dict[str, Any] = {
        "call_id": "c",
        "leg_uuid": "l",
        "worker_id": "gw/0",
        "reason": EndReason.APP_LOST,
        "started_at_ms": 1,
        "ended_at_ms": 2,
        "figures": MediaFigures(caller_frames=7, frames_dropped={"clear": 2}),
        "milestones": [Milestone(1, "app_connected", {"ms": 3}), Milestone(2, "ended")],
    }
    return CallReport(**(values | changes))


MESSAGES: list[msgspec.Struct] = [call_spec(credentials="k:t", custom_parameters={"a": "ü"}), report(), WORKER]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_what_is_sent_is_what_arrives(message: msgspec.Struct) -> None:
    assert msgspec.json.decode(msgspec.json.encode(message), type=type(message)) == message


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_keys_of_a_newer_version_are_passed_over(message: msgspec.Struct) -> None:
    data = msgspec.to_builtins(message) | {"of_tomorrow": {"deep": [1]}, "kind": None}
    assert msgspec.convert(data, type=type(message)) == message


def test_the_figures_of_an_older_worker_are_complete_with_zeros() -> None:
    data = msgspec.to_builtins(report())
    del data["figures"]["delay_recovered_ms"], data["figures"]["stalls"], data["milestones"]
    read = msgspec.convert(data, type=CallReport)
    assert (read.figures.caller_frames, read.figures.stalls, read.milestones) == (7, 0, [])


def test_what_may_be_left_out_of_a_spec() -> None:
    required = {
        "call_id", "leg_uuid", "call_sid", "stream_sid", "account_sid", "application", "url", "caller", "callee",
        "report_stream", "created_at_ms", "expires_at_ms",
    }  # fmt: skip
    assert {field.name for field in msgspec.structs.fields(CallSpec) if field.required} == required
    data = {name: 0 if name.endswith("_ms") else "x" for name in required}
    spec = msgspec.convert(data, type=CallSpec)
    assert (spec.dialect, spec.media_format, spec.connect_attempts) == ("exotel", MediaFormat.ULAW, 2)
    for name in required:
        with pytest.raises(msgspec.ValidationError, match=name):
            msgspec.convert({key: value for key, value in data.items() if key != name}, type=CallSpec)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"media_format": "g729"}, "media_format"),
        ({"created_at_ms": "now"}, "created_at_ms"),
        ({"custom_parameters": {"a": 1}}, "custom_parameters"),
        ({"url": None}, "url"),
    ],
)
def test_a_spec_that_is_wrong_is_refused_with_the_place(change: dict[str, Any], where: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=where):
        msgspec.convert(msgspec.to_builtins(call_spec()) | change, type=CallSpec)


def test_messages_are_not_changed_after_they_are_made() -> None:
    for message in MESSAGES:
        with pytest.raises(AttributeError, match="immutable"):
            message.call_id = "other"  # type: ignore[attr-defined]


def test_all_keys_are_in_one_slot_of_a_cluster() -> None:
    keys = [spec_key("u"), taken_key("u"), worker_key("gw/0"), report_stream("pbx"), WORKERS_KEY]
    assert len(set(keys)) == len(keys)
    assert all(key.startswith(KEY_PREFIX) for key in keys)
    assert KEY_PREFIX.count("{") == KEY_PREFIX.count("}") == 1


# Masked URLs


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("wss://bot.example/voice", "wss://bot.example/voice"),
        ("wss://bot.example", "wss://bot.example"),
        ("ws://127.0.0.1:80/a/b?token=x", "ws://127.0.0.1:80/a/b"),
        ("ws://[::1]:80/", "ws://[::1]:80/"),
        ("wss://key:token@bot.example:443/v", "wss://bot.example:443/v"),
        ("wss://key@bot.example/v", "wss://bot.example/v"),
        ("wss://bot.example?token=a/b", "wss://bot.example"),
        ("wss://bot.example?mail=a@b", "wss://bot.example"),
        ("wss://bot.example/v#secret", "wss://bot.example/v"),
        ("wss://bot.example#secret/x", "wss://bot.example"),
        # No URL by the standard, but a password all the same.
        ("wss://key:to/ken@bot.example/v", "wss://***"),
        ("wss://key:1/ken@bot.example/v", "wss://***"),
        ("key:token@bot.example/v?x", "bot.example/v"),
        ("bot.example/v?token=x", "bot.example/v"),
        ("", ""),
        ("://", "://"),
    ],
)
def test_urls_are_shown_without_what_is_secret(url: str, shown: str) -> None:
    assert masked_url(url) == shown


_word = st.text("abcdefghijklmnopqrstuvwxyz0123456789-._~!$&'()*+,;=%", min_size=1, max_size=12)
_secret = _word.map(lambda text: f"SECRET{text}")


@given(
    st.sampled_from(["ws", "wss", "http"]),
    st.none() | st.tuples(_secret, st.none() | _secret),
    st.sampled_from(["bot.example", "127.0.0.1", "[::1]", "b"]),
    st.sampled_from(["", ":1", ":65535"]),
    st.lists(_word, max_size=3),
    st.none() | st.lists(_secret, min_size=1, max_size=3).map("/@?:".join),
    st.none() | _secret,
)
def test_credentials_query_and_fragment_never_appear(
    scheme: str,
    user: tuple[str, str | None] | None,
    host: str,
    port: str,
    path: list[str],
    query: str | None,
    fragment: str | None,
) -> None:
    url = f"{scheme}://"
    if user is not None:
        url += user[0] + (f":{user[1]}" if user[1] is not None else "") + "@"
    url += host + port + "".join(f"/{part}" for part in path)
    url += (f"?{query}" if query is not None else "") + (f"#{fragment}" if fragment is not None else "")
    shown = masked_url(url)
    assert "SECRET" not in shown
    assert shown == f"{scheme}://{host}{port}" + "".join(f"/{part}" for part in path)


@given(st.text(alphabet=st.sampled_from(list("ab:/@?#[]%.0")), max_size=30), st.text(max_size=20))
def test_whatever_is_masked_shows_no_query_and_no_user(odd: str, text: str) -> None:
    for url in (odd, text, f"ws://{odd}", f"ws://{text}"):
        shown = masked_url(url)
        assert not set("?#@") & set(shown)
        assert masked_url(shown) == shown


def test_a_report_with_an_ending_of_a_newer_worker_is_read() -> None:
    report = msgspec.json.encode(
        {
            "call_id": "c",
            "leg_uuid": "l",
            "worker_id": "w/0",
            "reason": "app_of_tomorrow",
            "detail": "it did something new",
            "started_at_ms": 1,
            "ended_at_ms": 2,
            "figures": {"caller_frames": 7},
        }
    )
    read = msgspec.json.decode(report, type=CallReport)
    assert (read.reason, read.detail) == (EndReason.WORKER_ERROR, "it did something new")
    assert read.figures.caller_frames == 7
