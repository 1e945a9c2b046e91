"""Events as a real Asterisk sent them, and as none should."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ari_app.ari import events
from ari_app.ari.events import (
    ChannelDestroyed,
    ChannelEnteredBridge,
    ChannelHangupRequest,
    Dial,
    Event,
    StasisStart,
    decode_event,
)
from ari_app.ari.models import Channel
from ari_app.errors import RemoteProtocolError

pytestmark = pytest.mark.unit

GOLDEN = Path(__file__).parent.parent / "golden" / "ari"
RECORDED = sorted(GOLDEN.glob("*.json"))
UNREAD = {"ChannelConnectedLine", "ChannelDialplan", "PlaybackStarted"}


def recorded(name: str) -> bytes:
    return (GOLDEN / f"{name}.json").read_bytes()


def decoded(name: str) -> Event:
    event = decode_event(recorded(name))
    assert event is not None
    return event


def wire_fields(event: msgspec.Struct) -> set[str]:
    return {field.encode_name for field in msgspec.structs.fields(event)}


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_what_asterisk_sent_is_read(path: Path) -> None:
    said = json.loads(path.read_bytes())
    event = decode_event(path.read_bytes())
    if said["type"] in UNREAD:
        assert event is None
        return
    assert event is not None
    assert type(event).__name__ == said["type"]
    # A field of ours that is misspelt would stay at its default for ever: those that are there must have been taken.
    assert wire_fields(event) & set(said) == set(said) - {"type", "asterisk_id"} - SKIPPED.get(said["type"], set())
    # As text, too: that is what a text message of a WebSocket is.
    assert decode_event(path.read_text()) == event


SKIPPED = {"Dial": {"forward"}}


def test_a_new_call_is_read_in_full() -> None:
    start = decoded("StasisStart-caller")
    assert isinstance(start, StasisStart)
    assert start.args == ["inbound", "lab-trunk", "918000000001"]
    assert start.at_ms == 1795226880365
    channel = start.channel
    assert (channel.id, channel.state, channel.created_at_ms) == ("near-1", "Ring", 1795226880364)
    assert (channel.caller.name, channel.caller.number) == ("Asha", "09876543210")
    assert (channel.dialplan.exten, channel.dialplan.app_name) == ("918000000001", "Stasis")
    said = json.loads(recorded("StasisStart-caller"))["channel"]
    assert set(said) - {field.encode_name for field in msgspec.structs.fields(Channel)} == {"accountcode", "language"}


def test_a_media_channel_tells_its_uuid() -> None:
    start = decoded("StasisStart-media")
    assert isinstance(start, StasisStart)
    assert start.args == ["8c6d5b3e-0000-4000-8000-000000000001"]


def test_only_the_peers_hangup_has_a_cause() -> None:
    found = {}
    for name in ("theirs", "ours", "sip-bye"):
        event = decoded(f"ChannelHangupRequest-{name}")
        assert isinstance(event, ChannelHangupRequest)
        found[name] = (event.cause, event.soft, event.hangup_cause)
    assert found == {"theirs": (17, False, 17), "ours": (32, True, None), "sip-bye": (None, False, None)}


def test_a_destroyed_channel_tells_why() -> None:
    destroyed = decoded("ChannelDestroyed-caller")
    assert isinstance(destroyed, ChannelDestroyed)
    assert (destroyed.cause, destroyed.cause_txt) == (17, "User busy")


def test_bridges_name_their_channels() -> None:
    entered = decoded("ChannelEnteredBridge")
    assert isinstance(entered, ChannelEnteredBridge)
    assert entered.bridge.id == "b-1"
    assert entered.bridge.channels == ["near-1"]


def test_dialling_tells_its_status() -> None:
    started, answered = decoded("Dial-started"), decoded("Dial-answer")
    assert isinstance(started, Dial)
    assert isinstance(answered, Dial)
    assert (started.dialstatus, answered.dialstatus) == ("", "ANSWER")


def test_what_asterisk_adds_is_no_trouble() -> None:
    said = json.loads(recorded("StasisStart-caller"))
    said["novelty"] = {"deep": [1, 2, 3]}
    said["channel"]["novelty"] = None
    assert decode_event(json.dumps(said)) == decoded("StasisStart-caller")


def test_types_that_nobody_reads_are_skipped() -> None:
    for name in (*events.UNWANTED, "DeviceStateChanged", "SomethingOfNextYear"):
        assert decode_event(json.dumps({"type": name, "application": "a"})) is None


def spoilt(**changes: Any) -> bytes:
    return json.dumps(json.loads(recorded("ChannelDestroyed-media")) | changes).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"pong",
        b"\xff\xfe",
        b'{"type":5}',
        b'{"type":"StasisStart"}',
        b'{"type":"Novelty",',
        b'{"type":"StasisEnd","x":' + b"[" * 100_000,
        recorded("StasisEnd")[:-20],
        spoilt(cause="16"),
        spoilt(channel=None),
        spoilt(timestamp="yesterday"),
        spoilt(timestamp="2026-11-21T02:08:06.303"),
        spoilt(timestamp=0),
    ],
)
def test_what_is_malformed_is_refused_in_few_words(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="an event cannot be read") as caught:
        decode_event(data)
    assert caught.value.reason == "malformed_event"
    # No more of the message than its beginning: it may carry a caller's number.
    assert len(str(caught.value)) < 400


@given(st.one_of(st.binary(max_size=200), st.text(max_size=200)))
def test_no_message_raises_anything_else(data: bytes | str) -> None:
    with contextlib.suppress(RemoteProtocolError):
        decode_event(data)


@given(st.sampled_from(RECORDED), st.data())
def test_no_damage_to_a_message_raises_anything_else(path: Path, data: st.DataObject) -> None:
    message = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(RemoteProtocolError):
        decode_event(bytes(message))
