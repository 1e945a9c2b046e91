"""Plivo Audio Streaming (`<Stream bidirectional="true">`), as the platform: JSON text messages, μ-law or L16 in base64,
camelCase ids that are UUIDs.

Source: plivo.com/docs/voice-agents/audio-streaming/concepts (audio-streaming-guide, audio-streaming-reference) and
plivo.com/docs/voice/xml/audio-streaming; docs/protocol-plivo.md tells what is documented, what was seen in the code of
clients, and what is chosen here. In short: counters are numbers, timestamps are text, the application's events have
names of their own, a clear is confirmed, and the end of a stream is the end of the WebSocket: there is no stop message.
"""

from __future__ import annotations

import hmac
from base64 import b64encode
from collections.abc import Callable
from datetime import UTC, datetime
from hashlib import sha256
from urllib.parse import parse_qs, quote, urlsplit

import msgspec

from audiosocket import __version__
from audiosocket.callspec import CallSpec
from audiosocket.dialects.app_messages import (
    BAD_SHAPE,
    UNKNOWN_EVENT,
    UNREADABLE,
    AppMessages,
    digits_for_caller,
    unreadable,
)
from audiosocket.dialects.base import (
    AppMessage,
    Clear,
    HttpRequest,
    Ignored,
    Mark,
    Platform,
    StreamEnd,
)
from audiosocket.dialects.media_messages import MediaMessages
from audiosocket.frame_steps import Parts
from audiosocket.g711 import Encoding, ulaw_to_pcm
from audiosocket.settings import PlivoOptions
from audiosocket.wire import FRAME_MS

SAMPLE_RATE = 8000
NONCE_DIGITS = 20
_USER_AGENT = f"trunkbridge/{__version__}"
"""What Plivo's client calls itself is not documented; some front ends refuse a request that says nothing."""

_ENCODINGS = {"audio/x-mulaw": Encoding.ULAW, "audio/x-l16": Encoding.PCM16}
_FRAME_BYTES = {Encoding.ULAW: 160, Encoding.PCM16: 320}
_CLEAR = Clear()
_OTHER_AUDIO = Ignored("content_type")


class _Media(msgspec.Struct):
    payload: bytes  # msgspec decodes base64 while it parses
    contentType: str | None = None
    sampleRate: int | str | None = None


class _AppMessage(msgspec.Struct):
    event: str
    media: _Media | None = None
    name: str | None = None
    dtmf: str | None = None
    streamId: str | None = None


_decode = msgspec.json.Decoder(_AppMessage).decode


class PlivoDialect(AppMessages):
    """One stream. Sequence numbers count all messages, chunks count media alone (both from 1).

    The ids are those of the call spec in the form of UUIDs. The options are those of
    `audiosocket.settings.PlivoOptions`. Raises `ValueError` for one that is not known.
    """

    __slots__ = (
        "_call_id",
        "_content_type",
        "_extra",
        "_messages",
        "_requests",
        "_spec",
        "_to_pcm",
        "encoding",
        "frame_bytes",
        "marks_on_clear",
        "media",
        "skip",
        "url",
    )

    def __init__(self, spec: CallSpec) -> None:
        super().__init__(_uuid(spec.stream_sid))
        options = PlivoOptions.model_validate(spec.dialect_options)
        self._spec = spec
        self._call_id = _uuid(spec.call_sid)
        self._requests = 0
        self._extra = _extra_headers(spec, options)
        # The message with its four values left out.
        sid, extra = (msgspec.json.encode(text) for text in (self.stream_sid, self._extra))
        parts: Parts = (
            b'{"event":"media","sequenceNumber":',
            b',"streamId":%b,"media":{"track":"inbound","timestamp":"' % sid,
            b'","chunk":',
            b',"payload":"',
            b'"},"extra_headers":%b}' % extra,
        )
        self._messages = MediaMessages(parts, FRAME_MS, spec.created_at_ms, time_second=True)
        self.media = self._messages.media
        self.skip = self._messages.skip
        self.usual_sid = None
        self._content_type = options.content_type.partition(";")[0]
        self.encoding = _ENCODINGS[self._content_type]
        self._to_pcm = _TO_PCM[self.encoding]
        self.frame_bytes = _FRAME_BYTES[self.encoding]
        self.marks_on_clear = False  # a checkpoint is answered only when what was before it has been played
        self.url = spec.url

    def headers(self) -> dict[str, str]:
        base = _signed_url(self.url)
        # An application behind HTTP sees http or https, some put ws or wss back.
        return {"User-Agent": _USER_AGENT} | self._signed("http" + base.removeprefix("ws"), base)

    def opening(self) -> list[bytes]:
        number = self._messages.count()
        start = {
            "callId": self._call_id,
            "streamId": self.stream_sid,
            "accountId": self._spec.account_sid,
            "tracks": ["inbound"],
            "mediaFormat": {"encoding": self._content_type, "sampleRate": SAMPLE_RATE},
        }
        message = {"event": "start", "sequenceNumber": number, "start": start, "extra_headers": self._extra}
        return [msgspec.json.encode(message)]

    def dtmf(self, digit: str) -> bytes:
        body = {"track": "inbound", "digit": digit, "timestamp": str(self._messages.next_ms)}
        return self._event("dtmf", dtmf=body, extra_headers=self._extra)

    def mark(self, name: str) -> bytes:
        return self._event("playedStream", name=name)

    def cleared(self) -> bytes:
        return self._event("clearedAudio")

    def stop(self, reason: str) -> bytes:
        return b""

    def decode(self, message: bytes) -> AppMessage:
        try:
            decoded = _decode(message)
        except UNREADABLE as error:
            return unreadable(error)
        if decoded.streamId is not None and decoded.streamId != self.stream_sid:
            self.odd("wrong_stream_sid")
        event = decoded.event
        if event == "playAudio":
            return BAD_SHAPE if decoded.media is None else self._audio(decoded.media)
        if event == "checkpoint":
            return BAD_SHAPE if decoded.name is None else Mark(decoded.name)
        if event == "clearAudio":
            return _CLEAR
        if event == "sendDTMF":
            return digits_for_caller(decoded.dtmf)
        return UNKNOWN_EVENT

    def stream_started(self, at_ms: int) -> HttpRequest | None:
        return self._callback("started", at_ms, {})

    def stream_ended(self, end: StreamEnd, at_ms: int) -> HttpRequest | None:
        if end.error:
            return self._callback("failed", at_ms, {"StatusReason": end.error})
        # A caller who went before the stream was open: nothing was started that could be stopped.
        rest = {"StatusReason": "completed", "Duration": str(round(end.seconds))}
        return self._callback("stopped", at_ms, rest) if end.completed else None

    def _callback(self, event: str, at_ms: int, rest: dict[str, str]) -> HttpRequest | None:
        spec = self._spec
        if not spec.callback_url:
            return None
        form = {
            "CallUUID": self._call_id,
            "StreamID": self.stream_sid,
            "Event": event,
            "Timestamp": datetime.fromtimestamp(at_ms // 1000, UTC).isoformat().replace("+00:00", "Z"),
            **rest,
            "From": spec.caller,
            "To": spec.callee,
            "Direction": spec.direction,
        }
        # A POST is signed with its form: names and values, sorted by name, behind URL and query.
        base = _signed_url(spec.callback_url)
        pairs = "".join(name + form[name] for name in sorted(form))
        headers = self._signed(base + ("." if "?" in base else "?") + pairs)
        return HttpRequest("POST", spec.callback_url, headers, tuple(form.items()))

    def _signed(self, *texts: str) -> dict[str, str]:
        """The headers of a request of which any of `texts` may be what the application takes for signed."""
        spec = self._spec
        if not spec.credentials:
            return {}
        self._requests += 1
        seed = f"{spec.stream_sid}.{spec.created_at_ms}.{self._requests}"
        nonce = str(int.from_bytes(sha256(seed.encode()).digest()))[-NONCE_DIGITS:]
        keys = (hmac.digest(spec.credentials.encode(), f"{text}.{nonce}".encode(), "sha256") for text in texts)
        signatures = ",".join(b64encode(key).decode() for key in keys)
        return {"X-Plivo-Signature-V3": signatures, "X-Plivo-Signature-V3-Nonce": nonce}

    def _audio(self, media: _Media) -> bytes | Ignored:
        """Audio is what its own message says it is; who says nothing sends what the stream has."""
        named, rate = media.contentType, media.sampleRate
        if named == self._content_type and rate == SAMPLE_RATE:
            return self._to_pcm(media.payload)
        name, _, parameter = (named or self._content_type).partition(";")
        encoding = _ENCODINGS.get(name.strip().lower())
        said = rate if rate is not None else parameter.strip().removeprefix("rate=") or SAMPLE_RATE
        if encoding is None or str(said) != str(SAMPLE_RATE):
            return _OTHER_AUDIO
        if encoding is not self.encoding:
            self.odd("other_content_type")
        return _TO_PCM[encoding](media.payload)

    def _event(self, event: str, **rest: object) -> bytes:
        named = {"event": event, "sequenceNumber": self._messages.count(), "streamId": self.stream_sid}
        return msgspec.json.encode(named | rest)


def _as_it_is(payload: bytes) -> bytes:
    return payload


_TO_PCM: dict[Encoding, Callable[[bytes], bytes]] = {Encoding.ULAW: ulaw_to_pcm, Encoding.PCM16: _as_it_is}


def _uuid(digits: str) -> str:
    """32 hex digits in the form of a UUID."""
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def _extra_headers(spec: CallSpec, options: PlivoOptions) -> str:
    parameters = dict(spec.custom_parameters)
    if options.caller_parameter:
        parameters[options.caller_parameter] = spec.caller
    if options.callee_parameter:
        parameters[options.callee_parameter] = spec.callee
    # Applications undo percent signs (the guide's parser does); what would end a value early must not stand in it.
    pairs = [(key, quote(text, safe="+:/@")) for key, text in parameters.items()]
    if options.extra_headers == "pairs":
        return ";".join(f"{key}={text}" for key, text in pairs)
    return "{" + ", ".join(f"X-PH-{key}: {text}" for key, text in pairs) + "}"


def _signed_url(url: str) -> str:
    """What Plivo's libraries rebuild from a URL before they check a signature: scheme, host, path, and the query with
    its pairs decoded and in order."""
    parts = urlsplit(url)
    query = parse_qs(parts.query, keep_blank_values=True)
    pairs = "&".join(f"{key}={text}" for key in sorted(query) for text in sorted(query[key]))
    return f"{parts.scheme}://{parts.netloc}{parts.path or '/'}" + (f"?{pairs}" if pairs else "")


_DOCUMENT = "Plivo Audio Streaming, "
PLIVO = Platform(
    name="plivo",
    title="Plivo",
    open=PlivoDialect,
    account_sid="MA" + "0" * 18,
    signs=True,
    stream_id="streamId",
    media="playAudio",
    mark="checkpoint",
    mark_name="name",
    clear="clearAudio",
    returned="playedStream",
    documents={
        "handshake": "Plivo, audio streaming best practices: a connection that fails is tried twice more",
        "tls": f"{_DOCUMENT}guide: the server accepts wss://",
        "auth": f"{_DOCUMENT}guide: signature validation",
        "start": f"{_DOCUMENT}protocol reference: start",
        "messages": f"{_DOCUMENT}protocol reference: output events",
        "media": f"{_DOCUMENT}protocol reference: playAudio",
        "encoding": f"{_DOCUMENT}protocol reference: contentType and sampleRate are those of the stream",
        "chunk": f"{_DOCUMENT}guide, limits: messages of 64 KB, 16 KB recommended",
        "mark": f"{_DOCUMENT}protocol reference: checkpoint, playedStream",
        "clear": f"{_DOCUMENT}protocol reference: clearAudio",
        "dtmf": f"{_DOCUMENT}protocol reference: dtmf",
        "ids": f"{_DOCUMENT}protocol reference: streamId",
        "close": f"{_DOCUMENT}guide: keepCallAlive",
    },
)
