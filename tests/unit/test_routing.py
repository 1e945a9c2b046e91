"""Which route takes a call, and which calls are refused before anything is done for them."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ari_app.call.routing import NotAdmitted, Router
from ari_app.controller.spec import call_spec
from ari_app.domain.hangup import Cause
from ari_app.domain.ids import LegUuid
from ari_app.settings import Config
from ari_app.store.records import CallRow
from audiosocket.callspec import MediaFormat
from audiosocket.runtime.config import validate

pytestmark = pytest.mark.unit

SECRET = {"env": "PATH"}  # the one variable that is set everywhere


def config(**changes: Any) -> Config:
    data: dict[str, Any] = {
        "node": "pbx-1",
        "store": "embedded",
        "asterisk": {"ari": {"password": SECRET}, "ami": {"password": SECRET}},
        "trunks": {
            "india": {"identify": ["10.0.0.1"], "codecs": ["alaw", "ulaw"], "country": "IN", "max_calls": 2},
            "britain": {"identify": ["10.0.0.2"], "codecs": ["ulaw"], "country": "GB"},
        },
        "phones": {"desk": {"password": SECRET, "caller_id": "+919000000009"}},
        "applications": {name: {"url": f"ws://{name}/"} for name in ("one", "two", "any", "line")},
        "routes": [
            {"did": "+918000000001", "application": "one"},
            {"did": "+918000000002", "application": "line", "trunks": ["india"]},
            {"did": "+918000000002", "application": "two"},
            {"did": "1000", "application": "two", "media_format": "slin"},
        ],
        "controller": {"max_calls": 10},
    }
    return validate(Config, data | changes, Path("trunkbridge.yml"))


def admit(
    router: Router, line: str, dialled: str, caller: str = "+919000000001", calls: int = 0, on_line: int = 0
) -> str:
    return router.admit(line, dialled, caller, calls, on_line).application_name


# Which route


@pytest.mark.parametrize("dialled", ["+918000000001", "918000000001", "08000000001", "8000000001", "00918000000001"])
def test_a_number_is_found_however_the_trunk_writes_it(dialled: str) -> None:
    admission = Router(config()).admit("india", dialled, "09000000001", 0, 0)
    assert (admission.application_name, admission.callee, admission.caller) == ("one", "+918000000001", "+919000000001")
    assert admission.application.url == "ws://one/"
    assert admission.route.did == "+918000000001"


def test_the_most_particular_route_takes_the_call() -> None:
    routes = [
        {"did": "1000", "application": "one", "trunks": ["india"]},
        {"did": "1000", "application": "two"},
        {"did": "*", "application": "line", "trunks": ["india"]},
        {"did": "*", "application": "any"},
    ]
    router = Router(config(routes=routes))
    assert admit(router, "india", "1000") == "one"
    assert admit(router, "britain", "1000") == "two"
    assert admit(router, "desk", "1000") == "two"
    assert admit(router, "india", "1001") == "line"
    assert admit(router, "britain", "1001") == "any"
    assert admit(router, "desk", "1001") == "any"


def test_a_route_for_some_trunks_holds_for_no_other_and_no_phone() -> None:
    router = Router(config(routes=[{"did": "*", "application": "one", "trunks": ["india"]}]))
    assert admit(router, "india", "1000") == "one"
    for line in ("britain", "desk"):
        with pytest.raises(NotAdmitted) as refused:
            admit(router, line, "1000")
        assert (refused.value.reason, refused.value.cause) == ("unknown_number", Cause.UNALLOCATED_NUMBER)


def test_national_numbers_are_read_as_the_trunks_country_writes_them() -> None:
    routes = [{"did": "+442079460018", "application": "one"}, {"did": "+918000000001", "application": "two"}]
    router = Router(config(routes=routes))
    assert admit(router, "britain", "020 7946 0018") == "one"
    assert admit(router, "desk", "08000000001") == "two"  # phones are at home in India
    with pytest.raises(NotAdmitted):
        admit(router, "india", "02079460018")


# The caller


@pytest.mark.parametrize(
    ("caller", "shown"),
    [
        ("09000000001", "+919000000001"),
        ("+14155550100", "+14155550100"),
        ("anonymous", "anonymous"),
        ("", ""),
        ("x" * 200, "x" * 64),
        ("+", "+"),
    ],
)
def test_a_strange_caller_is_no_reason_to_lose_the_call(caller: str, shown: str) -> None:
    assert Router(config()).admit("india", "8000000001", caller, 0, 0).caller == shown


def test_a_phone_calls_with_its_own_number_whatever_it_says() -> None:
    assert Router(config()).admit("desk", "1000", "+10000000000", 0, 0).caller == "+919000000009"


# The media format


@pytest.mark.parametrize(
    ("line", "dialled", "media_format"),
    [
        ("india", "8000000001", MediaFormat.ALAW),
        ("britain", "+918000000001", MediaFormat.ULAW),
        ("desk", "+918000000001", MediaFormat.ULAW),
        ("india", "1000", MediaFormat.SLIN),
    ],
)
def test_the_media_format_is_the_routes_or_the_trunks_first_codec(
    line: str, dialled: str, media_format: MediaFormat
) -> None:
    assert Router(config()).admit(line, dialled, "", 0, 0).media_format is media_format


@pytest.mark.parametrize("line", ["india", "britain", "desk"])
def test_a_wideband_application_is_sent_signed_linear_at_its_rate(line: str) -> None:
    applications = {"one": {"url": "ws://one/", "sample_rate": 16000}, "two": {"url": "ws://two/?sample-rate=24000"}}
    routes = [{"did": "1000", "application": "one"}, {"did": "1001", "application": "two"}]
    router = Router(config(applications=applications, routes=routes))
    assert router.admit(line, "1000", "", 0, 0).media_format is MediaFormat.SLIN16
    assert router.admit(line, "1001", "", 0, 0).media_format is MediaFormat.SLIN24


def test_the_call_spec_carries_the_rate_and_the_fade() -> None:
    applications = {"one": {"url": "ws://one/", "sample_rate": 16000, "fade_ms": 7.5}, "two": {"url": "ws://two/"}}
    routes = [{"did": "1000", "application": "one"}, {"did": "1001", "application": "two"}]
    router = Router(config(applications=applications, routes=routes))
    row = CallRow(
        call_id="c", call_sid="s", node="pbx-1", direction="inbound", state="new", created_at=datetime.now(UTC)
    )
    admissions = [router.admit("desk", did, "", 0, 0) for did in ("1000", "1001")]
    specs = [call_spec(row, admission, LegUuid("u"), 0, 15, {}, os.urandom) for admission in admissions]
    assert [(spec.media_format, spec.fade_ms) for spec in specs] == [(MediaFormat.SLIN16, 7.5), (MediaFormat.ULAW, 5)]


# Refusals


@pytest.mark.parametrize(
    ("line", "dialled", "calls", "on_line", "reason", "cause"),
    [
        ("nobody", "1000", 0, 0, "unknown_trunk", Cause.CALL_REJECTED),
        ("", "1000", 0, 0, "unknown_trunk", Cause.CALL_REJECTED),
        ("india", "anonymous", 0, 0, "invalid_number", Cause.INVALID_NUMBER_FORMAT),
        ("india", "", 0, 0, "invalid_number", Cause.INVALID_NUMBER_FORMAT),
        ("india", "*", 0, 0, "invalid_number", Cause.INVALID_NUMBER_FORMAT),
        ("india", "8000000009", 0, 0, "unknown_number", Cause.UNALLOCATED_NUMBER),
        ("india", "8000000001", 2, 2, "trunk_full", Cause.NO_CIRCUIT_AVAILABLE),
        ("india", "8000000001", 10, 1, "node_full", Cause.SWITCHING_EQUIPMENT_CONGESTION),
        ("desk", "1000", 11, 0, "node_full", Cause.SWITCHING_EQUIPMENT_CONGESTION),
        # A number that nobody has is that, also on a full trunk: the carrier is not to try again elsewhere.
        ("india", "8000000009", 10, 2, "unknown_number", Cause.UNALLOCATED_NUMBER),
    ],
)
def test_refusals_say_why_and_what_the_trunk_is_told(
    line: str, dialled: str, calls: int, on_line: int, reason: str, cause: Cause
) -> None:
    with pytest.raises(NotAdmitted) as refused:
        admit(Router(config()), line, dialled, calls=calls, on_line=on_line)
    assert (refused.value.reason, refused.value.cause) == (reason, cause)
    assert not refused.value.retryable
    assert len(str(refused.value)) > len(reason)


def test_limits_let_the_last_call_in() -> None:
    router = Router(config())
    assert admit(router, "india", "8000000001", calls=9, on_line=1) == "one"
    assert admit(router, "britain", "+918000000001", calls=9, on_line=9) == "one"  # a trunk without a limit


@given(
    st.one_of(st.text(max_size=80), st.sampled_from(["india", "britain", "desk"])),
    st.one_of(st.text(max_size=80), st.from_regex(r"\+?[0-9]{1,16}", fullmatch=True)),
    st.text(max_size=80),
    st.integers(0, 20),
    st.integers(0, 20),
)
def test_whatever_is_dialled_is_admitted_or_refused(
    line: str, dialled: str, caller: str, calls: int, on_line: int
) -> None:
    router = _ROUTER
    try:
        admission = router.admit(line, dialled, caller, calls, on_line)
    except NotAdmitted as refusal:
        reasons = {"unknown_trunk", "invalid_number", "unknown_number", "trunk_full", "node_full"}
        refused = refusal.reason in reasons
    else:
        refused = False
        assert line in ("india", "britain", "desk")
        assert calls < 10
        assert len(admission.caller) <= 64
        assert router.find(line, admission.callee) is admission.route
    assert refused or admission.application_name in ("one", "two", "line")


_ROUTER = Router(config())
