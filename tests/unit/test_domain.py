"""Ids, numbers, hangup causes and terminations."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ari_app.domain import ids
from ari_app.domain.hangup import Cause, cause_from_sip, describe, sip_from_cause
from ari_app.domain.ids import CallId, Kind, OurId
from ari_app.domain.numbers import InvalidNumber, normalise
from ari_app.domain.termination import Result, Termination, from_media
from audiosocket.callspec import EndReason

pytestmark = pytest.mark.unit

CALL = CallId("6f1c1f52-3b1e-4a55-9d2e-6f0c70a3c001")

nodes = st.from_regex(r"[a-z0-9][a-z0-9.-]{0,62}", fullmatch=True)
calls = st.uuids(version=4).map(lambda value: CallId(str(value)))


# Numbers


@pytest.mark.parametrize(
    ("dialled", "expected"),
    [
        ("+918000000001", "+918000000001"),
        ("918000000001", "+918000000001"),
        ("08000000001", "+918000000001"),
        ("8000000001", "+918000000001"),
        ("00918000000001", "+918000000001"),
        ("+91 80-0000 0001", "+918000000001"),
        # Ten digits that begin with the country code's digits are a national number all the same.
        ("9180000001", "+919180000001"),
        ("01141234567", "+911141234567"),
        # Toll-free numbers are longer or shorter than a subscriber's.
        ("18001234567", "+9118001234567"),
        ("+14155550100", "+14155550100"),
        ("0014155552671", "+14155552671"),
        ("1000", "1000"),
        ("112", "112"),
        ("01", "01"),
        ("12345678901", "12345678901"),
    ],
)
def test_numbers_as_an_indian_trunk_gives_them(dialled: str, expected: str) -> None:
    assert normalise(dialled, "IN") == expected


@pytest.mark.parametrize(
    ("dialled", "country", "expected"),
    [
        ("020 7946 0018", "GB", "+442079460018"),
        ("(415) 555-2671", "US", "+14155552671"),
        ("14155552671", "US", "+14155552671"),
        # Italy keeps its leading zero.
        ("0669812345", "IT", "+390669812345"),
        # A row of zeros is nobody's number, however the country's plan may be read.
        ("000000", "DE", "000000"),
        ("000000000000000", "DE", "000000000000000"),
    ],
)
def test_numbers_of_other_countries(dialled: str, country: str, expected: str) -> None:
    assert normalise(dialled, country) == expected


@pytest.mark.parametrize(
    ("garbage", "why"),
    [
        ("", "expected digits"),
        ("anonymous", "expected digits"),
        ("+", "7 to 15 digits"),
        ("+91123", "7 to 15 digits"),
        ("+1415555", "has this length"),
        ("+0918000000001", "first is not 0"),
        ("+9990000000", "no country has it"),
        ("*123#", "expected digits"),
        ("1", "expected 2 to 15"),
        ("1" * 16, "expected 2 to 15"),
        ("9" * 400, "400 digits"),
        ("९१८०००००००००१", "expected digits"),
        ("8000000001\n", "expected digits"),
        ("+918000000001;phone-context=x", "7 to 15 digits"),
    ],
)
def test_garbage_is_refused_with_what_and_why(garbage: str, why: str) -> None:
    with pytest.raises(InvalidNumber, match=re.escape(why)) as caught:
        normalise(garbage, "IN")
    assert isinstance(caught.value, ValueError)
    assert caught.value.reason == "invalid_number"
    assert len(str(caught.value)) < 200


def test_an_unknown_country_is_refused() -> None:
    with pytest.raises(InvalidNumber, match="ISO 3166"):
        normalise("8000000001", "XX")


@given(
    st.one_of(st.text(max_size=30), st.from_regex(r"\+?[0-9 ()-]{0,20}", fullmatch=True)),
    st.sampled_from(["IN", "US", "GB", "IT", "DE", "SG"]),
)
def test_normalising_twice_changes_nothing_and_raises_nothing_else(dialled: str, country: str) -> None:
    try:
        once = normalise(dialled, country)
    except InvalidNumber:
        return
    assert re.fullmatch(r"\+[1-9][0-9]{6,14}|[0-9]{2,15}", once)
    assert normalise(once, country) == once


@given(st.from_regex(r"[6-9][0-9]{9}", fullmatch=True))
def test_every_writing_of_an_indian_mobile_number_is_the_same_number(national: str) -> None:
    writings = [national, f"0{national}", f"91{national}", f"+91{national}", f"0091{national}"]
    assert {normalise(writing, "IN") for writing in writings} == {f"+91{national}"}


# Ids


def test_ids_have_the_shape_that_others_rely_on() -> None:
    def bytes_of_one(count: int) -> bytes:
        return b"\x11" * count

    assert ids.new_call_sid(bytes_of_one) == "11111111111141119111111111111111"
    assert ids.new_call_id(bytes_of_one) == "11111111-1111-4111-9111-111111111111"
    assert ids.new_leg_uuid(bytes_of_one) == "11111111-1111-4111-9111-111111111111"
    assert ids.media_channel_id("pbx-1", CALL, 2) == f"tb-pbx-1-m-{CALL}-2"
    assert ids.bridge_id("pbx-1", CALL) == f"tb-pbx-1-b-{CALL}"
    assert ids.snoop_channel_id("pbx-1", CALL) == f"tb-pbx-1-s-{CALL}"


@given(nodes, calls, st.integers(0, ids.MAX_ATTEMPT))
def test_an_id_says_what_it_belongs_to(node: str, call: CallId, attempt: int) -> None:
    media, bridge = ids.media_channel_id(node, call, attempt), ids.bridge_id(node, call)
    assert ids.parse(media) == OurId(node, Kind.MEDIA, call, attempt)
    assert ids.parse(bridge) == OurId(node, Kind.BRIDGE, call, 0)
    assert ids.parse(ids.snoop_channel_id(node, call)) == OurId(node, Kind.SNOOP, call, 0)
    # Asterisk's limit for a unique id.
    assert len(media) < 150


def test_the_last_leg_of_each_call_is_found_among_other_channels() -> None:
    other = CallId("00000000-0000-4000-8000-000000000001")
    legs = [ids.media_channel_id("pbx-1", CALL, attempt) for attempt in (9, 0, 10)]
    others = ["1795226880.12", ids.bridge_id("pbx-1", CALL), ids.snoop_channel_id("pbx-1", CALL)]
    found = ids.last_legs([*legs, ids.media_channel_id("pbx-1", other, 0), *others])
    assert found == {CALL: 10, other: 0}
    assert all(ids.is_media_of(leg, CALL) and not ids.is_media_of(leg, other) for leg in legs)
    assert not any(ids.is_media_of(identifier, CALL) for identifier in others)


@given(nodes, nodes, calls, calls, st.integers(0, ids.MAX_ATTEMPT))
def test_a_node_named_like_an_id_is_still_told_apart(
    node: str, tail: str, inner: CallId, call: CallId, attempt: int
) -> None:
    hostile = f"{node}-m-{inner}-{tail}"[:63]
    assert ids.parse(ids.media_channel_id(hostile, call, attempt)) == OurId(hostile, Kind.MEDIA, call, attempt)
    assert ids.parse(ids.bridge_id(hostile, call)) == OurId(hostile, Kind.BRIDGE, call, 0)


@pytest.mark.parametrize(
    "other",
    [
        "",
        "1795226880.12",
        "tb-",
        f"tb-pbx-m-{CALL}",
        f"tb-pbx-m-{CALL}-01",
        f"tb-pbx-m-{CALL}-12345",
        f"tb-pbx-b-{CALL}-0",
        f"tb-pbx-x-{CALL}",
        f"tb-pbx-s-{CALL}-0",
        f"tb--b-{CALL}",
        f"tb-pbx-b-{CALL.upper()}",
        f"tb-pbx-b-{CALL}\n",
        f"xtb-pbx-b-{CALL}",
    ],
)
def test_ids_of_others_are_not_ours(other: str) -> None:
    assert ids.parse(other) is None


@given(st.text(max_size=120))
def test_any_text_can_be_asked_about(text: str) -> None:
    ids.parse(text)


def test_parts_that_would_not_parse_back_are_refused() -> None:
    with pytest.raises(ValueError, match="node name"):
        ids.bridge_id("PBX 1", CALL)
    with pytest.raises(ValueError, match="call id"):
        ids.bridge_id("pbx", CallId("nope"))
    for attempt in (-1, ids.MAX_ATTEMPT + 1):
        with pytest.raises(ValueError, match="attempt"):
            ids.media_channel_id("pbx", CALL, attempt)


# Hangup causes


def test_causes_are_described() -> None:
    assert describe(17) == "17 user busy"
    assert describe(16) == "16 normal clearing"
    assert describe(0) == "0 no cause given"
    assert describe(200) == "200 unknown cause"


# RFC 3398, from 8.2.6.1 and 7.2.4.1.
@pytest.mark.parametrize(("status", "cause"), [(404, 1), (480, 18), (486, 17), (503, 41), (603, 21), (484, 28)])
def test_sip_failures_have_causes(status: int, cause: int) -> None:
    assert cause_from_sip(status) == Cause(cause)


@pytest.mark.parametrize(("cause", "status"), [(1, 404), (17, 486), (19, 480), (21, 403), (34, 503), (42, 503)])
def test_causes_have_sip_statuses(cause: int, status: int) -> None:
    assert sip_from_cause(cause) == status


def test_what_has_no_counterpart() -> None:
    assert sip_from_cause(Cause.NORMAL_CLEARING) is None
    assert sip_from_cause(99) == 500
    assert [cause_from_sip(status) for status in (100, 180, 200, 302, 487, 700)] == [None] * 6
    # An unlisted status counts as its class' x00; 600 is "busy everywhere".
    assert [cause_from_sip(status) for status in (499, 599, 699)] == [41, 41, 17]


@given(st.integers(-1000, 1000))
def test_the_tables_have_no_holes(number: int) -> None:
    describe(number)
    status = sip_from_cause(number)
    assert status is None or 400 <= status <= 699
    assert (cause_from_sip(number) is not None) == (400 <= number <= 699 and number != 487)


# Terminations


def test_every_ending_of_media_stands_for_a_termination() -> None:
    endings = [from_media(reason) for reason in EndReason]
    assert len({ending.reason for ending in endings}) == len(EndReason)
    assert all(re.fullmatch(r"[a-z_]+", ending.reason) for ending in endings)


@pytest.mark.parametrize(
    ("reason", "result", "name"),
    [
        (EndReason.LEG_CLOSED, Result.SUCCESS, "caller_hangup"),
        (EndReason.APP_CLOSED, Result.SUCCESS, "application_ended"),
        (EndReason.APP_REFUSED, Result.UPSTREAM_ERROR, "application_refused"),
        (EndReason.WORKER_ERROR, Result.SERVER_ERROR, "worker_error"),
    ],
)
def test_whose_matter_an_ending_is(reason: EndReason, result: Result, name: str) -> None:
    assert from_media(reason, "why", 16) == Termination(result, name, "why", 16)


def test_results_are_the_five_that_records_know() -> None:
    assert list(itertools.chain(Result)) == [
        "success",
        "client_error",
        "server_error",
        "upstream_error",
        "indeterminate",
    ]
