"""Logs: every line is JSON, phone numbers are masked wherever they are, and nothing else is."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from audiosocket.runtime import logs
from audiosocket.runtime.logs import mask_number

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leaves the process' logging as it was."""
    level = logging.root.level
    monkeypatch.setattr(logging.root, "handlers", [])
    yield
    logging.root.setLevel(level)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


# Numbers


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("+918000000001", "+9180****01"),
        ("918000000001", "9180****01"),
        ("08000000001", "0800****01"),
        ("9000000001", "9000****01"),
        ("+6591234567", "+6591****67"),
        ("+2901234", "+2901****34"),
        ("no route for +918000000001 on carrier-ulaw", "no route for +9180****01 on carrier-ulaw"),
        (
            "'+918000000001' is no telephone number: no country has it",
            "'+9180****01' is no telephone number: no country has it",
        ),
        ("the caller was +918000000001.", "the caller was +9180****01."),
        ("called 08000000001, then 08000000002: busy", "called 0800****01, then 0800****02: busy"),
        ("sip:+918000000001@198.51.100.1:5060", "sip:+9180****01@198.51.100.1:5060"),
        ("sip:08000000001@198.51.100.1", "sip:0800****01@198.51.100.1"),
        ("tel:08000000001;phone-context=x", "tel:0800****01;phone-context=x"),
        ("from=+918000000001", "from=+9180****01"),
        ("PJSIP/+918000000001-0000001a", "PJSIP/+9180****01-0000001a"),
        ('{"caller":"+918000000001"}', '{"caller":"+9180****01"}'),
    ],
)
def test_numbers_are_masked(text: str, shown: str) -> None:
    assert mask_number(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1000",
        "112",
        "6f1c1f52-3b1e-4a55-9d2e-123456789012",
        "12345678-1234-4234-9234-123456789012",
        "tb-pbx-1-m-12345678-1234-4234-9234-123456789012-0",
        "12345678901234567890123456789012",
        "9a1b9a1b123456789a1b9a1b9a1b9a1b",
        "2026-11-21T02:38:00.123456789Z",
        "2026-11-21T02:38:00.365+0000",
        "2026-11-21T02:38:00+05:30",
        "1795226880.12",
        "pbx-1795226880.123",
        "127.0.0.1:19092",
        "[2001:db8::1234]:65535",
        "192.168.100.200",
        "took 0.123456789 s",
        "local-1:19a2b3c4d5e",
        "PJSIP/carrier-ulaw-00000012",
        "SIP status 486, cause 17",
    ],
)
def test_what_is_no_number_is_left_alone(text: str) -> None:
    assert mask_number(text) == text


@given(
    st.from_regex(r"\+[1-9][0-9]{6,14}", fullmatch=True), st.sampled_from(["{}", "sip:{}@h", "<{}>", "a {}.", "{}:"])
)
def test_no_number_of_the_public_network_is_shown_in_full(number: str, place: str) -> None:
    shown = mask_number(place.format(number))
    assert number not in shown
    assert number[:5] in shown
    assert mask_number(shown) == shown


@given(st.from_regex(r"[0-9]{9,15}", fullmatch=True), st.sampled_from(["{}", "sip:{}@h", "<{}>", "a {}.", "({})"]))
def test_no_national_number_is_shown_in_full(number: str, place: str) -> None:
    assert number not in mask_number(place.format(number))


@given(st.uuids(), st.binary(min_size=16, max_size=16), st.ip_addresses(), st.integers(1, 65535), st.datetimes())
def test_ids_addresses_and_times_are_never_changed(
    uuid: object, sid: bytes, address: object, port: int, at: Any
) -> None:
    for text in (f"{uuid}", f"call {uuid}-0", f"{address}", f"[{address}]:{port}", f"{port}", f"{at.isoformat()}Z"):
        assert mask_number(text) == text
    hexadecimal = sid.hex()
    if not hexadecimal.isdecimal():
        assert mask_number(hexadecimal) == hexadecimal


@given(st.text())
def test_any_text_can_be_masked(text: str) -> None:
    assert len(mask_number(text)) <= len(text) + 3 * len(text)


# Lines


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_every_line_is_json_with_what_belongs_to_it(capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up("gateway@0", "info", "json", mask=True)
    log = structlog.get_logger("test").bind(call_id="12345678-1234-4234-9234-123456789012")
    log.info("call_arrived", caller="+918000000001", text='new\nline "quoted" \x1b[31m \u2028', number=918000000001)
    log.debug("not_shown")
    log.warning("unexpected_channel", args=["inbound", "+918000000001"], detail={"from": ("08000000001", 5)})
    first, second = lines(capsys)
    assert first.pop("timestamp").endswith("Z")
    assert first == {
        "event": "call_arrived",
        "level": "info",
        "process": "gateway@0",
        "call_id": "12345678-1234-4234-9234-123456789012",
        "caller": "+9180****01",
        "text": 'new\nline "quoted" \x1b[31m \u2028',
        "number": 918000000001,
    }
    assert (second["args"], second["detail"]) == (["inbound", "+9180****01"], {"from": ["0800****01", 5]})


def test_the_text_of_an_exception_is_masked(capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up("controller")
    try:
        raise ValueError("'+918000000001' is no telephone number")
    except ValueError:
        structlog.get_logger("test").exception("failed")
    (line,) = lines(capsys)
    assert "ValueError: '+9180****01' is no telephone number" in line["exception"]
    assert "+918000000001" not in json.dumps(line)


def test_masking_is_optional(capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up("controller", mask=False)
    structlog.get_logger("test").info("call_arrived", caller="+918000000001")
    assert lines(capsys)[0]["caller"] == "+918000000001"


@pytest.mark.parametrize(("level", "shown"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_levels(capsys: pytest.CaptureFixture[str], level: str, shown: int) -> None:
    logs.set_up("controller", level)
    log = structlog.get_logger("test")
    for method in (log.debug, log.info, log.warning, log.error):
        method("event")
    assert len(lines(capsys)) == shown


def test_the_console_form_masks_too(capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up("gateway", form="console")
    structlog.get_logger("test").info("call_arrived", caller="+918000000001")
    text = capsys.readouterr().out
    assert "call_arrived" in text
    assert "+9180****01" in text
    assert "\x1b" not in text  # a pipe gets no colours


def test_libraries_warn_and_do_not_chat(capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up("gateway")
    logging.getLogger("some.library").info("chat")
    logging.getLogger("some.library").warning("careful")
    assert capsys.readouterr().err == "WARNING some.library: careful\n"


@given(st.dictionaries(st.sampled_from("abcd"), st.one_of(st.text(), st.binary(), st.floats(), st.dates(), st.none())))
def test_whatever_is_logged_is_one_line_of_json(values: dict[str, Any]) -> None:
    written: list[str] = []
    logs.set_up("x")
    logger = structlog.wrap_logger(
        structlog.PrintLogger(), processors=[*structlog.get_config()["processors"][:-1], _collect(written)]
    )
    logger.info("event", **values)
    (line,) = written
    assert "\n" not in line
    assert json.loads(line)["event"] == "event"


def _collect(written: list[str]) -> Any:
    render = structlog.processors.JSONRenderer()

    def collect(logger: Any, method: str, event: Any) -> Any:
        written.append(str(render(logger, method, event)))
        raise structlog.DropEvent

    return collect
