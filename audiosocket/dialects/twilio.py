"""Twilio Media Streams (`<Connect><Stream>`), as the platform: JSON text messages, μ-law in base64, camelCase ids.

Source: twilio.com/docs/voice/media-streams/websocket-messages and twilio.com/docs/voice/twiml/stream, the signature
from twilio.com/docs/usage/security; docs/protocol-twilio.md tells what is done here message by message. In short:
counters in strings, `streamSid` on every message after `connected`, the rate as an integer, no caller and no callee
but those that the application's parameters carry.
"""

from __future__ import annotations

import hmac
from base64 import b64encode
from datetime import UTC, datetime
from typing import Any

import msgspec

from audiosocket.callspec import CallSpec
from audiosocket.dialects.app_messages import AppMessages
from audiosocket.dialects.base import AppMessage, HttpRequest, Platform, StreamEnd, with_query
from audiosocket.dialects.media_messages import MediaMessages
from audiosocket.frame_steps import Parts
from audiosocket.g711 import Encoding, ulaw_to_pcm
from audiosocket.settings import TwilioOptions
from audiosocket.wire import FRAME_MS

FRAME_BYTES = 160
"""20 ms of μ-law at 8 kHz, which is what Twilio puts into a message."""

_CONNECTED = b'{"event":"connected","protocol":"Call","version":"1.0.0"}'
_MEDIA_FORMAT = {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1}
_USER_AGENT = "Twilio.TmeWs/1.0"
"""What Twilio's client calls itself; applications that serve several platforms on one path look at it."""
_CALLBACK_USER_AGENT = "TwilioProxy/1.1"


class TwilioDialect(AppMessages):
    """One stream. Sequence numbers count all messages after `connected`; chunks count media alone (both from 1).

    The ids are those of the call spec with Twilio's prefixes, `MZ` and `CA`. The options are those of
    `audiosocket.settings.TwilioOptions`. Raises `ValueError` for one that is not known.
    """

    __slots__ = (
        "_call_sid",
        "_messages",
        "_options",
        "_spec",
        "encoding",
        "frame_bytes",
        "marks_on_clear",
        "media",
        "skip",
        "url",
    )

    def __init__(self, spec: CallSpec) -> None:
        super().__init__("MZ" + spec.stream_sid)
        self._options = TwilioOptions.model_validate(spec.dialect_options)
        self._spec = spec
        self._call_sid = "CA" + spec.call_sid
        # The message with its four values left out.
        parts: Parts = (
            b'{"event":"media","sequenceNumber":"',
            b'","media":{"track":"inbound","chunk":"',
            b'","timestamp":"',
            b'","payload":"',
            b'"},"streamSid":%b}' % msgspec.json.encode(self.stream_sid),
        )
        self._messages = MediaMessages(parts, FRAME_MS)
        self.media = self._messages.media
        self.skip = self._messages.skip
        self.encoding = Encoding.ULAW
        self.frame_bytes = FRAME_BYTES
        self.marks_on_clear = True
        self.url = spec.url

    def headers(self) -> dict[str, str]:
        headers = {"User-Agent": _USER_AGENT}
        if self._spec.credentials:
            headers["X-Twilio-Signature"] = _signature(self._spec.credentials, self.url)
        return headers

    def opening(self) -> list[bytes]:
        spec, options = self._spec, self._options
        number = str(self._messages.count())
        parameters = dict(spec.custom_parameters)
        if options.caller_parameter:
            parameters[options.caller_parameter] = spec.caller
        if options.callee_parameter:
            parameters[options.callee_parameter] = spec.callee
        start: dict[str, Any] = {
            "accountSid": spec.account_sid,
            "streamSid": self.stream_sid,
            "callSid": self._call_sid,
            "tracks": ["inbound"],
            "mediaFormat": _MEDIA_FORMAT,
            "customParameters": parameters,
        }
        message = {"event": "start", "sequenceNumber": number, "start": start, "streamSid": self.stream_sid}
        return [_CONNECTED, msgspec.json.encode(message)]

    def dtmf(self, digit: str) -> bytes:
        return self._event("dtmf", {"track": "inbound_track", "digit": digit})

    def mark(self, name: str) -> bytes:
        return self._event("mark", {"name": name})

    def stop(self, reason: str) -> bytes:
        # Twilio gives no reason.
        return self._event("stop", {"accountSid": self._spec.account_sid, "callSid": self._call_sid})

    def decode(self, message: bytes) -> AppMessage:
        asked = super().decode(message)
        return ulaw_to_pcm(asked) if type(asked) is bytes else asked

    def stream_started(self, at_ms: int) -> HttpRequest | None:
        return self._callback("stream-started", at_ms)

    def stream_ended(self, end: StreamEnd, at_ms: int) -> HttpRequest | None:
        if end.error:
            return self._callback("stream-error", at_ms, end.error)
        # A caller who went before the stream was open: nothing was started that could be stopped.
        return self._callback("stream-stopped", at_ms) if end.completed else None

    def _callback(self, event: str, at_ms: int, error: str = "") -> HttpRequest | None:
        spec = self._spec
        if not spec.callback_url:
            return None
        at = datetime.fromtimestamp(at_ms / 1000, UTC)
        form = {
            "AccountSid": spec.account_sid,
            "CallSid": self._call_sid,
            "StreamSid": self.stream_sid,
            "StreamEvent": event,
            "Timestamp": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        }
        if error:
            form["StreamError"] = error
        method = self._options.status_callback_method
        if method == "GET":
            url = signed = with_query(spec.callback_url, form)
            form = {}
        else:
            # A POST is signed with its form: names and values, sorted by name, behind the URL.
            url = spec.callback_url
            signed = url + "".join(name + form[name] for name in sorted(form))
        headers = {"User-Agent": _CALLBACK_USER_AGENT}
        if spec.credentials:
            headers["X-Twilio-Signature"] = _signature(spec.credentials, signed)
        return HttpRequest(method, url, headers, tuple(form.items()))

    def _event(self, event: str, body: dict[str, str]) -> bytes:
        number = str(self._messages.count())
        return msgspec.json.encode(
            {"event": event, "sequenceNumber": number, "streamSid": self.stream_sid, event: body}
        )


def _signature(auth_token: str, signed: str) -> str:
    """What lets the application know who asks; of a handshake, which is a GET, only the URL is signed."""
    return b64encode(hmac.digest(auth_token.encode(), signed.encode(), "sha1")).decode()


_DOCUMENT = "Twilio Media Streams, "
TWILIO = Platform(
    name="twilio",
    title="Twilio",
    open=TwilioDialect,
    account_sid="AC" + "0" * 32,
    signs=True,
    query=False,
    documents={
        "auth": "Twilio, Security: X-Twilio-Signature",
        "start": f"{_DOCUMENT}websocket-messages: connected, start, media",
        "messages": f"{_DOCUMENT}websocket-messages: messages to Twilio",
        "media": f"{_DOCUMENT}websocket-messages: media",
        "encoding": f"{_DOCUMENT}websocket-messages: audio/x-mulaw, 8 kHz, base64, no header",
        "mark": f"{_DOCUMENT}websocket-messages: mark",
        "clear": f"{_DOCUMENT}websocket-messages: clear",
        "dtmf": f"{_DOCUMENT}websocket-messages: dtmf",
        "ids": f"{_DOCUMENT}websocket-messages: streamSid",
        "close": "Twilio, TwiML <Stream>: the next verb",
    },
)
