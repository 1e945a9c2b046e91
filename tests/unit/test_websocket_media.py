"""chan_websocket's text messages: what is understood, and that nothing else can do harm."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audiosocket import websocket_media
from audiosocket.callspec import MediaFormat
from audiosocket.errors import WireError

pytestmark = pytest.mark.unit

LEG = "8f11f0a3-09bc-4a8b-beb8-065a13338186"
# As Asterisk 22.10.1 has sent it.
START = (
    b'{"event":"MEDIA_START","connection_id":"tb","channel":"WebSocket/tb/0x7fc568009a80","channel_id":"tb-m-ulaw",'
    b'"format":"ulaw","optimal_frame_size":160,"ptime":20,"channel_variables":{"TRUNKBRIDGE_LEG":'
    b'"8f11f0a3-09bc-4a8b-beb8-065a13338186","MEDIA_WEBSOCKET_CONNECTION_ID":"tb",'
    b'"MEDIA_WEBSOCKET_OPTIMAL_FRAME_SIZE":"160"}}'
)
STATUS = (
    b'{"event":"STATUS","channel_id":"tb-m-ulaw","queue_length":7,"xon_level":800,"xoff_level":900,'
    b'"queue_full":false,"bulk_media":false,"media_paused":false}'
)


def test_events_of_asterisk() -> None:
    assert websocket_media.identify(websocket_media.decode(START)) == (LEG, MediaFormat.ULAW)
    status = websocket_media.decode(STATUS)
    assert (status.event, status.queue_length) == (websocket_media.STATUS, 7)
    digit = websocket_media.decode(b'{"event":"DTMF_END","channel_id":"x","digit":"#"}')
    assert (digit.event, digit.digit) == (websocket_media.DIGIT, "#")


@pytest.mark.parametrize(
    ("media_format", "size"), [("ulaw", 160), ("alaw", 160), ("slin", 320), ("slin16", 640), ("slin24", 960)]
)
def test_a_frame_is_20_ms(media_format: str, size: int) -> None:
    assert MediaFormat(media_format).frame_bytes == size
    start: dict[str, Any] = json.loads(START) | {"format": media_format, "optimal_frame_size": size}
    event = websocket_media.decode(json.dumps(start).encode())
    assert websocket_media.identify(event) == (LEG, MediaFormat(media_format))


@pytest.mark.parametrize("leg", [None, "", 5, "x" * 36, {"a": 1}, LEG + "0"])
def test_a_start_without_a_leg(leg: Any) -> None:
    start = json.loads(START) | {"channel_variables": {"TRUNKBRIDGE_LEG": leg}}
    with pytest.raises(WireError, match="without a UUID in the channel variable TRUNKBRIDGE_LEG"):
        websocket_media.identify(websocket_media.decode(json.dumps(start).encode()))


@pytest.mark.parametrize(
    "text", [b"", b"MEDIA_START format:ulaw", b"[]", b"5", b"{}", b'{"event":1}', b"[" * 3000, b"\xff"]
)
def test_what_is_no_event(text: bytes) -> None:
    with pytest.raises(WireError, match="is no event of chan_websocket in JSON") as caught:
        websocket_media.decode(text)
    assert len(str(caught.value)) < 250


@given(
    st.binary()
    | st.recursive(st.none() | st.text() | st.integers(), lambda x: st.dictionaries(st.text(), x)).map(
        lambda value: json.dumps({"event": "MEDIA_START", "channel_variables": value}).encode()
    )
)
def test_any_message_is_an_event_or_an_error(message: bytes) -> None:
    with contextlib.suppress(WireError):
        websocket_media.identify(websocket_media.decode(message))
