"""What was seen of one scripted call. Times are seconds from the moment that its WebSocket was open."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from audiosocket.callspec import MediaFigures

AUDIBLE_DBFS = -50.0
"""From this level on, 20 ms of the application's audio are something that a caller hears."""
SPURT_GAP_SECONDS = 0.4
"""A shorter pause does not end what the application is saying."""


@dataclass(frozen=True, slots=True)
class Handshake:
    """How the WebSocket came to be."""

    milliseconds: float
    protocol: str = ""
    """`Sec-WebSocket-Protocol` of the answer."""
    extensions: str = ""
    """`Sec-WebSocket-Extensions` of the answer."""
    tls: str = ""
    """Version of TLS, or nothing."""
    certificate_days: float | None = None
    """How long the certificate is still good."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why there was no WebSocket, in the words of `callspec.EndReason`."""

    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Media:
    """One media message of the application."""

    at: float
    pcm: bytes
    """At 8 kHz."""
    size: int
    """Bytes of its payload, in the dialect's encoding and at the call's rate."""


@dataclass(frozen=True, slots=True)
class Heard:
    """20 ms of the application's audio, played to the caller."""

    at: float
    dbfs: float


@dataclass(frozen=True, slots=True)
class Span:
    """From when until when somebody spoke."""

    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Named:
    """A mark, at the moment that the application sent it or got it back."""

    at: float
    name: str


@dataclass(frozen=True, slots=True)
class Ending:
    """The application ended the connection."""

    at: float
    reason: str
    detail: str


class Farewell(StrEnum):
    """What the application did when we closed."""

    ANSWERED = "answered"
    """It sent a close frame."""
    DROPPED = "dropped"
    """It ended the connection without one."""
    IGNORED = "ignored"
    """It did nothing in time, and we ended the connection."""


@dataclass(frozen=True, slots=True)
class Closing:
    """We ended the call."""

    at: float
    seconds: float
    """Until the connection was gone."""
    farewell: Farewell


@dataclass(slots=True)
class Trace:
    """One call."""

    scenario: str
    stream_sid: str = ""
    """As messages give it."""
    number: int = 0
    """Which of the calls at once."""
    opened_at: float = 0.0
    """Monotonic seconds: what puts the calls of one check into order."""
    slow: bool = False
    """Whether the network was made slow."""
    handshake: Handshake | None = None
    refusal: Refusal | None = None
    media: list[Media] = field(default_factory=list)
    heard: list[Heard] = field(default_factory=list)
    said: list[Span] = field(default_factory=list)
    """By the caller."""
    marks: list[Named] = field(default_factory=list)
    echoes: list[Named] = field(default_factory=list)
    clears: list[float] = field(default_factory=list)
    digits: list[float] = field(default_factory=list)
    unusable: dict[str, int] = field(default_factory=dict)
    """Messages that ask for nothing, by reason."""
    examples: dict[str, str] = field(default_factory=dict)
    """The beginning of the first message of each such reason."""
    events: set[str] = field(default_factory=set)
    """Names of the events that are not the protocol's."""
    foreign_sids: dict[str, int] = field(default_factory=dict)
    """Stream ids other than this stream's, with the number of messages that carried them."""
    misspelt_sids: int = 0
    """Messages that name the stream in another protocol's spelling alone (`streamSid` for `stream_sid`)."""
    misspelt_key: str = ""
    """That spelling."""
    ending: Ending | None = None
    closing: Closing | None = None
    seconds: float = 0.0
    """Length of the call."""
    figures: MediaFigures = field(default_factory=MediaFigures)

    @property
    def audio_bytes(self) -> int:
        """Bytes of audio that the application sent."""
        return sum(len(media.pcm) for media in self.media)

    def spurts(self) -> list[Span]:
        """When the application was heard to speak."""
        found: list[Span] = []
        for frame in self.heard:
            if frame.dbfs < AUDIBLE_DBFS:
                continue
            if found and frame.at - found[-1].end <= SPURT_GAP_SECONDS:
                found[-1] = Span(found[-1].start, round(frame.at + 0.02, 4))
            else:
                found.append(Span(frame.at, round(frame.at + 0.02, 4)))
        return found

    def onset_after(self, at: float) -> float | None:
        """When the application was next heard to begin to speak."""
        return next((spurt.start for spurt in self.spurts() if spurt.start >= at), None)
