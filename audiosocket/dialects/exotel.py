"""Exotel's Voicebot applet (AgentStream), as the platform: JSON text messages, PCM16 in base64, snake_case ids.

Source: developer.exotel.com/docs/agentstream (websocket-protocol, stream-voicebot-applet); where its pages disagree,
docs/protocol-exotel.md says what is done here and why. In short: counters and numbers in strings, `stream_sid` both
on top and inside `start`, `chunk` and `timestamp` on every media message, nothing extra inside `start`.
"""

from __future__ import annotations

from typing import Any

import msgspec

from audiosocket.callspec import CallSpec
from audiosocket.dialects import exotel_http
from audiosocket.dialects.app_messages import AppMessages
from audiosocket.dialects.base import AppMessage, HttpRequest, Platform, StreamEnd
from audiosocket.dialects.exotel_http import basic_authorization, number_shown, passthru
from audiosocket.dialects.media_messages import MediaMessages
from audiosocket.frame_steps import Parts
from audiosocket.g711 import Encoding
from audiosocket.settings import ExotelOptions, query_parameters

_BIT_RATES = {"128kbps": "{}kbps", "128": "{}", "16": "16"}
"""How each `bit_rate` is written at other rates: two of them are kbit/s, `16` is the bits of a sample."""

_USER_AGENT = "Go-http-client/1.1"
"""As Exotel's client was seen to call itself."""
MAX_PAYLOAD_BYTES = 100_000
"""Of a media message of the application's, as documented: more "may time out" at the platform. Here it is played."""

_DTMF_DURATION_MS = "100"
"""Asterisk reports a digit at its end without a length; Exotel's examples show 100 ms."""


class ExotelDialect(AppMessages):
    """One stream. Sequence numbers count all messages after `connected`; chunks count media alone (both from 1).

    The options are those of `audiosocket.settings.ExotelOptions`. Raises `ValueError` for one that is not known.
    """

    __slots__ = (
        "_messages",
        "_options",
        "_rate",
        "_spec",
        "encoding",
        "frame_bytes",
        "marks_on_clear",
        "media",
        "skip",
        "url",
    )

    def __init__(self, spec: CallSpec) -> None:
        super().__init__(spec.stream_sid)
        self._options = options = ExotelOptions.model_validate(spec.dialect_options)
        self._spec = spec
        self._rate = spec.media_format.sample_rate
        quote = b'"' if options.counters == "string" else b""
        # The message with its four values left out.
        parts: Parts = (
            b'{"event":"media","stream_sid":%b,"sequence_number":%b' % (msgspec.json.encode(spec.stream_sid), quote),
            b'%b,"media":{"chunk":%b' % (quote, quote),
            b'%b,"timestamp":"' % quote,
            b'","payload":"',
            b'"}}',
        )
        self._messages = MediaMessages(parts, options.frame_ms)
        self.media = self._messages.media
        self.skip = self._messages.skip
        self.encoding = Encoding.PCM16
        self.frame_bytes = options.frame_ms * self._rate // 1000 * 2
        self.marks_on_clear = options.marks_on_clear == "echo"
        self.url = spec.url if options.query == "keep" else spec.url.partition("?")[0]

    def headers(self) -> dict[str, str]:
        return {"User-Agent": _USER_AGENT} | basic_authorization(self._spec.credentials)

    def opening(self) -> list[bytes]:
        spec, options = self._spec, self._options
        parameters = query_parameters(spec.url) | spec.custom_parameters
        start: dict[str, Any] = {
            "stream_sid": spec.stream_sid,
            "call_sid": spec.call_sid,
            "account_sid": spec.account_sid,
            "from": number_shown(spec.caller, options),
            "to": number_shown(spec.callee, options),
        }
        if parameters or options.empty_custom_parameters == "send":
            start["custom_parameters"] = parameters
        start["media_format"] = {
            "encoding": options.encoding,
            "sample_rate": str(self._rate),
            "bit_rate": _BIT_RATES[options.bit_rate].format(self._rate * 16 // 1000),
        }
        message = {
            "event": "start",
            "sequence_number": self._count(),
            "stream_sid": spec.stream_sid,
            "start": start,
        }
        return [b'{"event":"connected"}', msgspec.json.encode(message)]

    def dtmf(self, digit: str) -> bytes:
        return self._event("dtmf", {"digit": digit, "duration": _DTMF_DURATION_MS})

    def decode(self, message: bytes) -> AppMessage:
        asked = super().decode(message)
        if type(asked) is bytes and len(asked) > MAX_PAYLOAD_BYTES:
            self.odd("big_payload")
        return asked

    def mark(self, name: str) -> bytes:
        return self._event("mark", {"name": name})

    def stop(self, reason: str) -> bytes:
        spec = self._spec
        return self._event("stop", {"call_sid": spec.call_sid, "account_sid": spec.account_sid, "reason": reason})

    def stream_started(self, at_ms: int) -> HttpRequest | None:
        return None

    def stream_ended(self, end: StreamEnd, at_ms: int) -> HttpRequest | None:
        return passthru(self._spec, self._options, end)

    def _event(self, event: str, body: dict[str, str]) -> bytes:
        number = self._count()
        return msgspec.json.encode(
            {"event": event, "sequence_number": number, "stream_sid": self.stream_sid, event: body}
        )

    def _count(self) -> str | int:
        number = self._messages.count()
        return str(number) if self._options.counters == "string" else number


_DOCUMENT = "Exotel AgentStream, "
EXOTEL = Platform(
    name="exotel",
    title="Exotel",
    open=ExotelDialect,
    account_sid="trunkbridge",
    stream_id="stream_sid",
    wideband=True,
    url_lookup=exotel_http,
    chunk=range(3200, MAX_PAYLOAD_BYTES + 1, 320),
    documents={
        "handshake": f"{_DOCUMENT}developer-guide: the handshake is over within 10 s",
        "tls": f"{_DOCUMENT}extension guide: valid public certificate",
        "auth": f"{_DOCUMENT}stream-voicebot-applet: authentication",
        "start": f"{_DOCUMENT}websocket-protocol: connected, start, media",
        "messages": f"{_DOCUMENT}websocket-protocol: messages to Exotel are JSON text",
        "media": f"{_DOCUMENT}websocket-protocol: media",
        "encoding": f"{_DOCUMENT}stream-voicebot-applet: PCM, 16 bits, 8 kHz, little-endian, base64",
        "chunk": f"{_DOCUMENT}stream-voicebot-applet: 3,200 to 100,000 bytes, multiples of 320",
        "mark": f"{_DOCUMENT}websocket-protocol: mark",
        "clear": f"{_DOCUMENT}websocket-protocol: clear",
        "dtmf": f"{_DOCUMENT}websocket-protocol: dtmf",
        "ids": f"{_DOCUMENT}websocket-protocol: stream_sid",
        "close": f"{_DOCUMENT}stream-voicebot-applet: next applet",
    },
)
