"""What applications send: media, mark and clear, which are the same JSON in every protocol here but for the spelling of
the stream's id."""

from __future__ import annotations

from typing import Any

import msgspec

from audiosocket.dialects.base import AppMessage, Clear, Ignored, Mark


class _Media(msgspec.Struct):
    payload: bytes  # msgspec decodes base64 while it parses


class _MarkBody(msgspec.Struct):
    name: str


class _AppMessage(msgspec.Struct):
    event: str
    media: _Media | None = None
    mark: _MarkBody | None = None
    stream_sid: Any = None
    streamSid: Any = None


_decode = msgspec.json.Decoder(_AppMessage).decode
_CLEAR = Clear()
_BAD_JSON = Ignored("bad_json")
_BAD_BASE64 = Ignored("bad_base64")
_BAD_SHAPE = Ignored("bad_shape")
_UNKNOWN_EVENT = Ignored("unknown_event")


class AppMessages:
    """Reads the messages of the application of one stream."""

    __slots__ = ("_stream_sid", "oddities")

    def __init__(self, stream_sid: str) -> None:
        self._stream_sid = stream_sid
        self.oddities: dict[str, int] = {}

    def decode(self, message: bytes) -> AppMessage:
        """A message; `bytes` is the payload of a media message as it was sent. Never raises."""
        try:
            decoded = _decode(message)
        except msgspec.ValidationError as error:
            return _BAD_BASE64 if "$.media.payload" in str(error) else _BAD_SHAPE
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return _BAD_JSON
        sid = decoded.stream_sid if decoded.stream_sid is not None else decoded.streamSid
        if sid is not None and sid != self._stream_sid:
            # The platforms ignore the field; a known client sends one of its own making.
            self.oddities["wrong_stream_sid"] = self.oddities.get("wrong_stream_sid", 0) + 1
        event = decoded.event
        if event == "media":
            return _BAD_SHAPE if decoded.media is None else decoded.media.payload
        if event == "mark":
            return _BAD_SHAPE if decoded.mark is None else Mark(decoded.mark.name)
        if event == "clear":
            return _CLEAR
        return _UNKNOWN_EVENT
