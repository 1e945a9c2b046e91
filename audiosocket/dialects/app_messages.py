"""What applications send: media, mark and clear, which are the same JSON in every protocol here but for the spelling of
the stream's id; and `dtmf`, an extension of ours: digits that the caller is to be sent."""

from __future__ import annotations

from typing import Any

import msgspec

from audiosocket.callspec import DIGITS
from audiosocket.dialects.base import AppMessage, Clear, Digits, Ignored, Mark
from audiosocket.frame_steps import media_payload


class _Media(msgspec.Struct):
    payload: bytes  # msgspec decodes base64 while it parses


class _MarkBody(msgspec.Struct):
    name: str


class _DtmfBody(msgspec.Struct):
    """Inside a `dtmf` message: one digit, or several."""

    digit: str | None = None
    digits: str | None = None


class _AppMessage(msgspec.Struct):
    event: str
    media: _Media | None = None
    mark: _MarkBody | None = None
    dtmf: _DtmfBody | None = None
    stream_sid: Any = None
    streamSid: Any = None


_decode = msgspec.json.Decoder(_AppMessage).decode
_CLEAR = Clear()
_BAD_JSON = Ignored("bad_json")
_BAD_BASE64 = Ignored("bad_base64")
BAD_SHAPE = Ignored("bad_shape")
UNKNOWN_EVENT = Ignored("unknown_event")

UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What a decoder of messages raises; a `ValidationError` is a `DecodeError`."""


def unreadable(error: Exception) -> Ignored:
    """What is told of a message that cannot be decoded, or lacks what its event needs."""
    if not isinstance(error, msgspec.ValidationError):
        return _BAD_JSON
    return _BAD_BASE64 if "$.media.payload" in str(error) else BAD_SHAPE


def digits_for_caller(digits: str | None) -> AppMessage:
    """Digits that the caller is to be sent."""
    return Digits(digits) if digits is not None and DIGITS.fullmatch(digits) else BAD_SHAPE


class AppMessages:
    """Reads the messages of the application of one stream."""

    __slots__ = ("oddities", "stream_sid", "usual_sid")

    def __init__(self, stream_sid: str) -> None:
        self.stream_sid = stream_sid
        self.oddities: dict[str, int] = {}
        self.usual_sid: bytes | None = stream_sid.encode()

    def decode(self, message: bytes) -> AppMessage:
        """A message; `bytes` is the payload of a media message as it was sent. Never raises."""
        if self.usual_sid is not None:
            audio = media_payload(message, self.usual_sid)
            if audio is not None:
                return audio
        try:
            decoded = _decode(message)
        except UNREADABLE as error:
            return unreadable(error)
        sid = decoded.stream_sid if decoded.stream_sid is not None else decoded.streamSid
        if sid is not None and sid != self.stream_sid:
            # The platforms ignore the field; a known client sends one of its own making.
            self.odd("wrong_stream_sid")
        event = decoded.event
        if event == "media":
            return BAD_SHAPE if decoded.media is None else decoded.media.payload
        if event == "mark":
            return BAD_SHAPE if decoded.mark is None else Mark(decoded.mark.name)
        if event == "clear":
            return _CLEAR
        if event == "dtmf":
            body = decoded.dtmf or _DtmfBody()
            return digits_for_caller(body.digits if body.digits is not None else body.digit)
        return UNKNOWN_EVENT

    def odd(self, what: str) -> None:
        """Counts what is against the protocol and does no harm."""
        self.oddities[what] = self.oddities.get(what, 0) + 1

    def cleared(self) -> bytes:
        return b""
