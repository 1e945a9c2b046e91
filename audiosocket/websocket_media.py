"""The text messages of Asterisk's `chan_websocket`, in JSON: its events, and the commands that we use.

Audio travels beside them as binary messages, in the call's media format (docs/media-leg.md tells what was measured).
"""

from __future__ import annotations

import uuid
from typing import Any

import msgspec

from audiosocket.callspec import WEBSOCKET_LEG_VARIABLE, MediaFormat
from audiosocket.errors import WireError
from audiosocket.wire import FRAME_MS

START = "MEDIA_START"
STATUS = "STATUS"
DIGIT = "DTMF_END"
QUEUE_FULL = "MEDIA_XOFF"

FLUSH = b'{"command":"FLUSH_MEDIA"}'
"""Empties Asterisk's queue."""
GET_STATUS = b'{"command":"GET_STATUS"}'


class Event(msgspec.Struct, frozen=True):
    """One event of Asterisk's. Fields that an event does not have are empty."""

    event: str
    digit: str = ""
    queue_length: int = 0
    """Frames that wait in Asterisk (`STATUS`)."""
    format: str = ""
    optimal_frame_size: int = 0
    """Bytes that Asterisk plays in one turn of its timer (`MEDIA_START`)."""
    channel_variables: dict[str, Any] = {}
    error_text: str = ""


_DECODER = msgspec.json.Decoder(Event)


def decode(message: bytes) -> Event:
    """One text message. Raises `WireError` for what is no event in JSON."""
    try:
        return _DECODER.decode(message)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        shown = message[:40].decode("ascii", "backslashreplace")
        raise WireError(f"{shown!r} is no event of chan_websocket in JSON") from None


def identify(event: Event) -> tuple[str, MediaFormat]:
    """Leg and media format that the first event tells. Raises `WireError` for one that no call here begins with."""
    if event.event != START:
        raise WireError(f"the first message is {event.event[:40]!r}, not {START}")
    told = event.channel_variables.get(WEBSOCKET_LEG_VARIABLE)
    try:
        leg_uuid = str(uuid.UUID(str(told)))
    except ValueError:
        raise WireError(f"{START} without a UUID in the channel variable {WEBSOCKET_LEG_VARIABLE}") from None
    try:
        media_format = MediaFormat(event.format)
    except ValueError:
        raise WireError(f"{START} with format {event.format[:40]!r}: expected {', '.join(MediaFormat)}") from None
    if event.optimal_frame_size != media_format.frame_bytes:
        raise WireError(
            f"{START} with {event.optimal_frame_size} bytes a frame of {media_format}: {FRAME_MS} ms are"
            f" {media_format.frame_bytes}"
        )
    return leg_uuid, media_format
