"""What Exotel asks and tells over HTTP: which URL to dial, and how a stream ended (Passthru).

Source: support.exotel.com on the Passthru applet, with its extension for streaming, and developer.exotel.com on the
Voicebot applet's dynamic URL, whose request no page describes; docs/protocol-exotel.md says what is done here and why.
"""

from __future__ import annotations

import re
from base64 import b64encode
from datetime import datetime, timedelta, timezone

import msgspec

from audiosocket.callspec import CallSpec
from audiosocket.dialects.base import HttpRequest, StreamEnd, with_query
from audiosocket.settings import (
    MAX_URL_CHARACTERS,
    ExotelOptions,
    check_parameters,
    check_rate,
    query_parameters,
    split_credentials,
    split_url,
)

_INDIA = "+91"
_INDIAN_TIME = timezone(timedelta(hours=5, minutes=30))
_NOT_ENDED = "1970-01-01 05:30:00"
"""The `EndTime` of a call that goes on: time 0, in Indian time."""
_DIRECTIONS = {"inbound": "incoming", "outbound": "outbound-dial"}
_DISCONNECTED_BY = {"caller": "user", "application": "bot", "platform": "NA"}
_WEBSOCKET_URL = re.compile(r"wss?://[!-~]+", re.IGNORECASE)


def basic_authorization(credentials: str) -> dict[str, str]:
    """RFC 7617, of `KEY:TOKEN`; nothing of nothing."""
    return {"Authorization": "Basic " + b64encode(credentials.encode()).decode()} if credentials else {}


def number_shown(number: str, options: ExotelOptions) -> str:
    """A number as the account of the application gets it."""
    if options.number_format == "national0" and number.startswith(_INDIA):
        return "0" + number.removeprefix(_INDIA)
    return number


def url_request(spec: CallSpec, now_ms: int) -> HttpRequest:
    """The GET that asks for the URL to dial: the keys of an applet's request, behind those of the URL itself."""
    options = ExotelOptions.model_validate(spec.dialect_options)
    arrived = datetime.fromtimestamp((spec.arrived_at_ms or spec.created_at_ms) / 1000, _INDIAN_TIME)
    now = datetime.fromtimestamp(now_ms / 1000, _INDIAN_TIME)
    caller, callee = number_shown(spec.caller, options), number_shown(spec.callee, options)
    pairs = {
        "CallSid": spec.call_sid,
        "CallFrom": caller,
        "CallTo": callee,
        "Direction": _DIRECTIONS.get(spec.direction, spec.direction),
        "Created": arrived.strftime("%a, %d %b %Y %H:%M:%S"),
        "DialCallDuration": "0",
        "StartTime": arrived.strftime("%Y-%m-%d %H:%M:%S"),
        "EndTime": _NOT_ENDED,
        "CallType": "call-attempt",
        "flow_id": spec.application,
        "tenant_id": spec.account_sid,
        "From": caller,
        "To": callee,
        "CurrentTime": now.strftime("%Y-%m-%d %H:%M:%S"),
        "AccountSid": spec.account_sid,
        "CustomField": spec.custom_parameters.get("CustomField", ""),
    }
    return HttpRequest("GET", with_query(spec.url, pairs), basic_authorization(spec.credentials))


def url_answer(spec: CallSpec, status: int, body: bytes) -> CallSpec:
    """See `UrlLookup`: 200, and `{"url": "wss://..."}` or the bare URL."""
    if status != 200:
        redirected = ": redirects are not followed" if 300 <= status < 400 else ""
        raise ValueError(f"HTTP status {status} instead of 200{redirected}")
    answered = _answered_url(body)
    if not _WEBSOCKET_URL.fullmatch(answered):
        raise ValueError("the answer's url is no ws:// or wss:// URL of printable ASCII")
    url, credentials = split_credentials(answered)
    parts = split_url(url)
    if not parts.hostname:
        raise ValueError("the answer's url has no host")
    if parts.fragment:
        raise ValueError("the answer's url has a #fragment, which a WebSocket URL has not")
    if len(url) > MAX_URL_CHARACTERS:
        raise ValueError(f"the answer's url has more than {MAX_URL_CHARACTERS} characters")
    check_rate(url, spec.media_format.sample_rate)
    check_parameters(query_parameters(url) | spec.custom_parameters)
    return msgspec.structs.replace(spec, url=url, credentials=credentials)


def _answered_url(body: bytes) -> str:
    try:
        text = body.decode("utf-8-sig").strip()
        if text[:2].lower() == "ws":
            return text
        answer = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ValueError("the answer is neither JSON nor a WebSocket URL") from None
    url = answer.get("url") if isinstance(answer, dict) else None
    if not isinstance(url, str):
        raise ValueError("the answer is JSON without a text named url")
    return url.strip()


def passthru(spec: CallSpec, options: ExotelOptions, end: StreamEnd) -> HttpRequest | None:
    """The GET that tells how a stream ended; None where nobody is told."""
    if not spec.callback_url:
        return None
    cancelled = not end.completed and end.ended_by == "caller"
    stream = {
        "StreamSID": spec.stream_sid,
        "Status": "completed" if end.completed else "cancelled" if cancelled else "failed",
        "Duration": str(round(end.seconds)),
        "RecordingUrl": end.recording,
        "StreamUrl": spec.url.partition("?")[0],
        "DisconnectedBy": _DISCONNECTED_BY[end.ended_by],
    }
    if end.error:
        stream["Error"] = end.error
        stream["DetailedStatus"] = end.error.partition(":")[0]
    pairs = {
        "CallSid": spec.call_sid,
        "flow_id": spec.application,
        "Direction": _DIRECTIONS.get(spec.direction, spec.direction),
        "From": number_shown(spec.caller, options),
        "To": number_shown(spec.callee, options),
    }
    if options.passthru == "json":
        pairs["Stream"] = msgspec.json.encode(stream).decode()
    else:
        pairs |= {f"Stream[{key}]": value for key, value in stream.items()}
    return HttpRequest("GET", with_query(spec.callback_url, pairs), {})
