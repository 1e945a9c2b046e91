"""What a dialect is: the wire format between trunkbridge, as the platform, and one application.

A dialect is pure. It turns frames of audio into messages and messages into what they ask for; the session decides what
then happens, and the application stream carries the bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol
from urllib.parse import urlencode

from audiosocket.callspec import CallSpec
from audiosocket.g711 import Encoding


@dataclass(frozen=True, slots=True)
class Mark:
    """The application wants `name` back when the audio before it has been played."""

    name: str


@dataclass(frozen=True, slots=True)
class Clear:
    """The application wants everything dropped that has not been played."""


@dataclass(frozen=True, slots=True)
class Ignored:
    """A message that asks for nothing; `reason` is a metric label (`bad_json`, `unknown_event`, ...)."""

    reason: str


@dataclass(frozen=True, slots=True)
class Digits:
    """The application wants digits sent to the caller."""

    digits: str


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A request that the platform makes of the application's other servers. Holds secrets: not for logs."""

    method: str
    """`GET` or `POST`."""
    url: str
    """With its query."""
    headers: dict[str, str]
    form: tuple[tuple[str, str], ...] = ()
    """The body of a POST, `application/x-www-form-urlencoded`."""


def with_query(url: str, pairs: Mapping[str, str]) -> str:
    """`url` with `pairs` behind its own query, which stays as it was written: it may be signed."""
    joint = "" if url.endswith(("?", "&")) else "&" if "?" in url else "?"
    return f"{url}{joint}{urlencode(pairs)}"


@dataclass(frozen=True, slots=True)
class StreamEnd:
    """How a stream ended, for the platform's callback."""

    completed: bool
    """False: it failed, `error` says how; or it never began and `ended_by` is the caller: there is no error then."""
    ended_by: Literal["caller", "application", "platform"]
    seconds: float
    error: str = ""
    recording: str = ""


AppMessage = bytes | Mark | Clear | Digits | Ignored
"""A decoded message of the application; `bytes` is its audio as PCM16 at the media format's rate, whatever the
dialect's encoding."""


class Dialect(Protocol):
    """One session's side of a protocol. Messages are UTF-8 JSON text."""

    encoding: Encoding
    """What `media` takes."""
    frame_bytes: int
    """Bytes of it that one media message carries."""
    marks_on_clear: bool
    """Whether marks whose audio was dropped are returned."""
    url: str
    """What is dialled."""
    stream_sid: str
    """The stream's id as the messages give it."""
    usual_sid: bytes | None
    """The same, where the application's media messages are JSON with `event` (`media`), `media.payload` in `encoding`,
    and `stream_sid` or `streamSid` or neither: such a message may then be read without `decode`. None: they are not."""
    oddities: dict[str, int]
    """What the application does against the protocol without harm, counted."""

    def headers(self) -> dict[str, str]:
        """What the WebSocket handshake says besides what RFC 6455 asks for. Holds secrets: not for logs."""

    def opening(self) -> list[bytes]:
        """The messages that come before any media."""

    def media(self, audio: bytes) -> bytes:
        """`frame_bytes` of the caller's audio, in the dialect's `encoding`."""

    def skip(self, frames: int) -> None:
        """`frames` media messages were dropped: their place in time stays."""

    def dtmf(self, digit: str) -> bytes:
        """A digit that the caller pressed."""

    def mark(self, name: str) -> bytes:
        """The audio before the application's mark has been played."""

    def cleared(self) -> bytes:
        """What the application's clear dropped is dropped; empty where the protocol does not say so."""

    def stop(self, reason: str) -> bytes:
        """The stream ends; `reason` is `callended` or `stopped`. Empty where the protocol does not say so."""

    def decode(self, message: bytes) -> AppMessage:
        """A message of the application. Never raises: what cannot be used is `Ignored`."""

    def stream_started(self, at_ms: int) -> HttpRequest | None:
        """What the platform tells at a stream's start (`at_ms`: Unix time in ms); None: nothing, or nobody."""

    def stream_ended(self, end: StreamEnd, at_ms: int) -> HttpRequest | None:
        """What it tells at a stream's end, also of one that could not be opened."""


class UrlLookup(Protocol):
    """How a platform asks for the URL to dial, where an application's own is an http:// or https:// one."""

    def url_request(self, spec: CallSpec, now_ms: int) -> HttpRequest:
        """The question; `now_ms` is Unix time in ms."""

    def url_answer(self, spec: CallSpec, status: int, body: bytes) -> CallSpec:
        """The spec with the URL and the credentials that the answer names. Raises `ValueError`, whose text repeats
        nothing of the answer, since it may hold secrets."""


@dataclass(frozen=True, slots=True)
class Platform:
    """What all streams of a protocol have in common: its entry in the registry (`audiosocket.dialects.DIALECTS`)."""

    name: str
    """The `dialect` of an application."""
    title: str
    """What the platform is called in sentences."""
    open: Callable[[CallSpec], Dialect]
    """Begins one stream. Raises `ValueError` for an option that is not known."""
    account_sid: str
    """The account of calls without a configured application, in the platform's form."""
    documents: dict[str, str]
    """Where the platform's documents speak of a topic of `audiosocket.appcheck.findings`."""
    signs: bool = False
    """Whether a token signs the handshake; where not, it is authorised with `KEY:TOKEN`."""
    query: bool = True
    """Whether the URL may have a query."""
    wideband: bool = False
    """Whether its streams may have 16 and 24 kHz."""
    stream_id: str = "streamSid"
    """The key under which the messages name their stream."""
    media: str = "media"
    """The application's event for audio, and so on."""
    mark: str = "mark"
    mark_name: str = "mark.name"
    clear: str = "clear"
    returned: str = "mark"
    """The event with which a mark comes back."""
    chunk: range | None = None
    """Bytes of audio in a message of the application, where the documents set a least, a most and a unit."""
    url_lookup: UrlLookup | None = None
    """How a URL to dial is asked for, where the platform does."""
