"""The contract between controller and media worker: what a call is, and what is reported back.

The controller writes a `CallSpec` to Redis under the media leg's UUID before Asterisk dials the worker. The worker
takes it once, carries the call, and appends one `CallReport` to the stream that the spec names. Workers announce
themselves with a `WorkerInfo` that expires unless it is renewed.

Everything here is JSON on the wire (msgspec), tolerant of unknown keys, so that a controller and a worker of
neighbouring versions work together during a rolling upgrade.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Any, Literal

import msgspec

SPEC_GRACE_SECONDS = 300
"""How long a spec's key, and the memory of its having been taken, outlives the spec: `expired` and `reused` are told
apart from `unknown` for this long."""

NOTICE_SECONDS = 5.0
"""How long a `CallNotice` has a meaning: an older one is neither sent nor read."""

WEBSOCKET_PATH = "/media"
"""Where a worker takes legs of Asterisk's `chan_websocket`."""
WEBSOCKET_SUBPROTOCOL = "media"
"""What Asterisk offers there."""
WEBSOCKET_LEG_VARIABLE = "TRUNKBRIDGE_LEG"
"""Channel variable with such a leg's UUID: Asterisk tells all variables in its first message."""

HEARTBEAT_SECONDS = 1.0
"""How often a worker renews its `WorkerInfo`."""

HEARTBEAT_TTL_MS = 3000
"""How long a `WorkerInfo` lives without being renewed: a dead worker is noticed within this time."""

DIRECT_PATH = "/private"
"""Below it, on the status ports of workers that have a `cluster_secret`, controllers reach them while Redis is away:
`PUT specs`, `POST orders`, `GET told?stream=STREAM&run=RUN&after=NUMBER`; the secret is the bearer token of
each request."""

TOLD_SECONDS = 5.0
"""How long a worker that has nothing to tell keeps a `GET told` waiting."""


class MediaFormat(StrEnum):
    """The format that Asterisk was asked for on the media leg; what it is sent back is always signed linear at the same
    rate (slin at 8 kHz, slin16, slin24)."""

    SLIN = "slin"
    ULAW = "ulaw"
    ALAW = "alaw"
    SLIN16 = "slin16"
    SLIN24 = "slin24"

    @property
    def sample_rate(self) -> int:
        """In Hz, for both directions."""
        return _RATES[self]

    @property
    def frame_bytes(self) -> int:
        """Of 20 ms as Asterisk sends them: G.711 has one byte a sample, signed linear two."""
        return self.sample_rate // 50 * (1 if self in _G711 else 2)


WIDEBAND = {16000: MediaFormat.SLIN16, 24000: MediaFormat.SLIN24}
"""What Asterisk is asked for at a sample rate (Hz) that is not 8 kHz."""
_G711 = (MediaFormat.ULAW, MediaFormat.ALAW)
_RATES = dict.fromkeys(MediaFormat, 8000) | {form: rate for rate, form in WIDEBAND.items()}


class EndReason(StrEnum):
    """Why a media session ended, as the worker saw it."""

    LEG_CLOSED = "leg_closed"
    """Asterisk closed the media leg: the caller hung up, or the controller ended the call (it knows which)."""
    LEG_PROTOCOL_ERROR = "leg_protocol_error"
    LEG_SILENT = "leg_silent"
    """The media leg carried nothing and could not be written to for longer than the limit."""
    APP_CLOSED = "app_closed"
    """The application closed its WebSocket (with a close frame, or as `close_without_frame` allows)."""
    APP_LOST = "app_lost"
    """The application's connection ended without a close frame (process death, reset)."""
    APP_REFUSED = "app_refused"
    """The application could not be connected: refused, unreachable, TLS failure, or an HTTP status other than 101."""
    APP_TIMEOUT = "app_timeout"
    """The application did not finish the WebSocket handshake in time."""
    APP_URL_FAILED = "app_url_failed"
    """The HTTP request that gives the application's URL failed, or what it answered is no URL."""
    APP_SUSPENDED = "app_suspended"
    """The application was not dialled: its circuit breaker is open."""
    APP_SILENT = "app_silent"
    """The application sent no audio for longer than `first_audio_seconds` or `max_silence_seconds`."""
    STREAM_LIMIT = "stream_limit"
    """The stream was as long as it may be (`stream_seconds`)."""
    APP_PROTOCOL_ERROR = "app_protocol_error"
    APP_MESSAGE_TOO_BIG = "app_message_too_big"
    WORKER_STOPPED = "worker_stopped"
    """The worker was stopped and its drain time was over."""
    WORKER_ERROR = "worker_error"
    """A fault of ours, contained to this call."""

    @classmethod
    def _missing_(cls, value: object) -> EndReason:
        # A newer worker's word: its report is not to be lost for it. The detail says what happened.
        return cls.WORKER_ERROR


class CallSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One media leg of one call, as the worker needs it."""

    call_id: str
    """UUID of the call: its primary key in PostgreSQL."""
    leg_uuid: str
    """UUID (v4) that Asterisk sends on the media leg: a single-use secret, new for every leg."""
    call_sid: str
    """The platform-style id that the application sees: 32 lower-case hex digits."""
    stream_sid: str
    account_sid: str
    application: str
    """Name of the application in the configuration."""
    url: str
    """WebSocket URL of the application; its query may carry tokens: shown only through `masked_url`."""
    credentials: str = ""
    """What the handshake is authorised with, or nothing: `KEY:TOKEN` for HTTP Basic (exotel), the token that signs it
    (plivo, twilio). Never logged, never reported."""
    dialect: str = "exotel"
    dialect_options: dict[str, Any] = {}
    caller: str
    """The application's `from`."""
    callee: str
    """The application's `to`."""
    custom_parameters: dict[str, str] = {}
    media_format: MediaFormat = MediaFormat.ULAW
    connect_timeout_seconds: float = 10.0
    connect_attempts: int = 2
    playout_max_seconds: float = 300.0
    fade_ms: float = 5.0
    """How long application audio takes to fade out where it is cut off, and in after an underrun; 0: it does not."""
    message_max_bytes: int = 1_048_576
    close_without_frame: Literal["failure", "end"] = "failure"
    """What it means that the application ends its connection without a close frame; a reset is a failure."""
    direction: str = "inbound"
    """Of the call: `inbound` or `outbound`."""
    one_way: bool = False
    """The application only listens: it is sent no marks and no digits, and what it sends is ignored."""
    held: bool = False
    """The caller has not been answered: nothing is played until a `release` order or the caller's first frame."""
    joining_seconds: float = 0.0
    """The leg is put into the bridge when the worker has it, and what is played before is heard by nobody: how long
    nothing is played for want of a `release` order and of a frame of the caller's; 0: the leg is joined."""
    first_audio_seconds: float = 0.0
    """How long the application may take to its first audio, from the stream's start or its release; 0: for ever."""
    max_silence_seconds: float = 0.0
    """How long the application may then be silent while the caller is silent too; 0: for ever."""
    stream_seconds: float = 0.0
    """The longest that a stream may take; 0: for ever."""
    fallback_url: str = ""
    """Dialled when the application has failed; same dialect and options."""
    fallback_prompt: str = ""
    """Name of a prompt of the worker's, played when nothing else is left; empty: the three tones of a call that failed,
    unless the caller is still held."""
    fallback_tone: bool = True
    """Whether the tones are played; false: the caller goes on elsewhere."""
    breaker_failures: int = 0
    """Failures in a row after which the application is not dialled for `breaker_seconds`; 0: it always is."""
    breaker_seconds: float = 0.0
    digits_to_caller: bool = False
    """Whether the application may send digits to the caller."""
    callback_url: str = ""
    """Where the platform tells about the stream's end: Exotel's Passthru, Twilio's statusCallback."""
    recording: bool = False
    leg_hold_seconds: float = 0.0
    """How long the call is held when its leg is lost, for another one to come; 0: it ends with its leg."""
    leg_number: int = 0
    """Over 0: this leg takes the place of an earlier one of the call, whose session goes on. Of the call the spec then
    says no more than who it is."""
    begins: bool = False
    """The call has been given to another worker: it begins there, and with it a session, whatever its leg's number."""
    lease_token: int = 0
    """Of the lease under which the worker has the call: it only grows, so that of two workers the one with the greater
    is right. 0: there is none."""
    next: CallSpec | None = None
    """Takes over on the same media leg when the application has ended the stream."""
    arrived_at_ms: int = 0
    """Unix time in ms at which the controller was told of the call, by its clock: some ms after the INVITE, more where
    the caller had to wait for a controller. 0: not known."""
    report_stream: str
    created_at_ms: int
    """Unix time in ms."""
    expires_at_ms: int
    """Unix time in ms after which the worker refuses the spec."""


class Milestone(msgspec.Struct, frozen=True):
    """One event of the media session, for the call's story."""

    at_ms: int
    """Unix time in ms."""
    event: str
    detail: dict[str, Any] = {}


class MediaFigures(msgspec.Struct, kw_only=True):
    """What one media session carried. Frames are 20 ms; counters never decrease."""

    caller_frames: int = 0
    """Frames that Asterisk sent us."""
    caller_frames_lost: int = 0
    """Frames missing in the caller's numbering, which only an RTP leg shows: lost before Asterisk or after it."""
    caller_frames_dropped: dict[str, int] = {}
    """Frames from the caller that did not reach the application, by reason."""
    app_messages_sent: int = 0
    app_media_received: int = 0
    app_bytes_received: int = 0
    """Bytes of application audio, decoded to PCM16."""
    frames_played: int = 0
    """Frames of application audio sent to Asterisk."""
    silence_played: int = 0
    """Frames of silence sent to Asterisk while the application had nothing to play."""
    prompt_played: int = 0
    """Frames of a prompt, or of the tone of a failed call, sent to Asterisk."""
    frames_dropped: dict[str, int] = {}
    """Frames of application audio that were not played, by reason."""
    underruns: int = 0
    """Times the queue ran dry in the middle of application audio."""
    underruns_stall: int = 0
    """Those that came of a stall of this process or of the way to Asterisk; all others are the application's."""
    marks_received: int = 0
    marks_sent: int = 0
    clears: int = 0
    digits: int = 0
    ignored: dict[str, int] = {}
    """Messages of the application that were counted and ignored, by reason."""
    ticks_late: int = 0
    """Ticks that came 20 ms or more after their deadline."""
    playout_peak_ms: int = 0
    """The deepest that the playout queue was."""
    connect_ms: int = -1
    """From the first dial to the WebSocket being open; -1: never open."""
    first_audio_ms: int = -1
    """From the media leg's accept to the first application frame played; -1: none."""
    setup_app_ms: int = -1
    """From `arrived_at_ms` to the first application frame played, silent or not; -1: none. Where controller and worker
    are on two hosts, what their clocks differ by is part of it; less than 0 is told as 0."""
    setup_caller_ms: int = -1
    """In the same way to the first frame of the caller's audio, silent or not, that goes to the application; -1: none.
    """
    stalls: int = 0
    """Times that this process or the way to Asterisk stood still for 60 ms or more."""
    legs_replaced: int = 0
    """Times that another leg took the place of one that was lost."""
    leg_gap_ms: int = 0
    """Time without a leg before another one came, all together."""
    delay_recovered_ms: int = 0
    """Delay of stalls that was worked off (see docs/media-leg.md)."""
    turns: int = 0
    """Times that the caller has said something. This and what follows is defined in docs/response-time.md."""
    unanswered_turns: int = 0
    """Turns after which the application was silent for more than 2 s until the caller spoke again or the call ended."""
    interruptions: int = 0
    """Times that the application began to speak while the caller was speaking."""
    barge_ins_ignored: int = 0
    """Times that the caller spoke into the application's audio and it went on all the same."""
    response_ms: dict[str, int] = {}
    """From the end of the caller's speech to the first audible application frame played: `count`, `p50`, `p95`, `p99`,
    `max`; empty: no turn was answered."""
    barge_in_ms: dict[str, int] = {}
    """From the start of the caller's speech during application audio to the end of that audio, in the same way."""
    caller_talk_ms: int = 0
    app_talk_ms: int = 0
    both_talk_ms: int = 0
    """Time in which both talked; it is part of the two above."""

    @property
    def underruns_app(self) -> int:
        """Times the queue ran dry because the application was late."""
        return self.underruns - self.underruns_stall


class CallReport(msgspec.Struct, frozen=True, kw_only=True):
    """The end of one media session, sent once by the worker."""

    call_id: str
    leg_uuid: str
    """Of the leg with which the worker got the call."""
    lease_token: int = 0
    """As in `CallSpec`."""
    worker_id: str
    reason: EndReason
    detail: str = ""
    """Human sentence: close code, HTTP status, exception text."""
    started_at_ms: int
    ended_at_ms: int
    figures: MediaFigures
    milestones: list[Milestone] = []
    application: str = ""
    """The application that carried the stream last: another than the call's own after `next`."""
    failed: bool = False
    """Whether the application had failed, whatever the caller then heard in its place."""
    recording: str = ""
    """Where the recording is, in the gateway's words (docs/recording.md); empty: there is none."""
    recorded_at_ms: int = 0
    """When it began; 0: there is none."""


DIGITS = re.compile(r"[0-9*#A-D]{1,32}")
"""What a caller may be sent at once: keys of a telephone."""

NoticeEvent = Literal["attached", "connected", "speaking", "digits", "leg_lost", "not_here", "recorded"]


class CallNotice(msgspec.Struct, frozen=True, kw_only=True):
    """What the controller is told while the call goes on, on `notice_stream`."""

    call_id: str
    leg_uuid: str
    event: NoticeEvent
    """`attached`: the RTP leg is open; `connected`: the application's stream is, or what stands in for it is heard;
    `speaking`: it is to be heard (a prompt is both at once); `digits`: it wants `digits` sent to the caller;
    `leg_lost`: leg `leg_number` is gone, and the call is held for another one, in `media_format`; `not_here`: it was
    asked for a call that it has not had; `recorded`: the file `recording` has been begun."""
    digits: str = ""
    recording: str = ""
    """As in `CallReport`."""
    leg_number: int = 0
    media_format: MediaFormat = MediaFormat.ULAW
    at_ms: int


class LegOrder(msgspec.Struct, frozen=True, kw_only=True):
    """What a controller asks of the worker that carries a leg."""

    leg_uuid: str
    """Of the leg with which the worker got the call, but for `open`: of the leg that is to be opened."""
    order: Literal["release", "open", "digits", "lost", "end"]
    """`release`: the caller has been answered and is bridged. `lost`: Asterisk's end of leg `leg_number` is gone, and
    the call goes on. `end`: the call is over. For RTP legs besides, which Asterisk itself says nothing about: `open`:
    Asterisk sends from `remote`, in `media_format`; `digits`: the caller pressed `digits`."""
    leg_number: int = 0
    call_id: str = ""
    report_stream: str = ""
    """Given with `lost` and `end` where a worker that has not had the call is to say so, beside this stream."""
    remote: str = ""
    """`IP:PORT`, IPv6 in brackets."""
    media_format: MediaFormat = MediaFormat.ULAW
    digits: str = ""


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker has to tell the controller that reads one report stream, and cannot read it now: what Redis has not
    taken yet, and what it took in the last seconds. Of all but digits the controller may hear there once more."""

    run: str
    """Distinguishes this run of the worker; numbers begin anew with each."""
    last: int
    """Number of the newest thing said; asking again with it acknowledges all that is here."""
    notices: list[CallNotice] = []
    reports: list[CallReport] = []


class WorkerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A media worker's registration and load, renewed every `HEARTBEAT_SECONDS`."""

    worker_id: str
    """`<node>/<index>`."""
    node: str
    pair: str = "main"
    host: str
    """IP literal that Asterisk dials."""
    port: int
    status_url: str
    """`http://host:port` of the worker's status endpoint: `/calls`, `/metrics`, `/healthz`, `/readyz`."""
    capacity: int
    active: int
    draining: bool
    version: str
    started_at_ms: int
    rtp_port: int = 0
    """UDP port on `host` for RTP legs; 0: this worker takes none."""
    websocket_port: int = 0
    """TCP port on `host` for legs of `chan_websocket`; 0: this worker takes none."""
    overloaded: bool = False
    """It does not keep its 20 ms: it is given no new calls."""
    cpu_percent: int = 0
    """Of a core, used by its event loop in the last second."""
    lateness_ms: int = 0
    """The latest wake-up of its event loop in the last second."""


_AUTHORITY = re.compile(r"[^/?#]*")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.%]*\]|[^:\[\]]*)(:[0-9]*)?")


def masked_url(url: str) -> str:
    """The URL without credentials, query and fragment, fit for logs, records and screens.

    What cannot be told apart from a password (`ws://user:pass/word@host/`) is shown as `***`.
    """
    scheme, sep, rest = url.partition("://") if "://" in url else ("", "", url)
    authority = _AUTHORITY.match(rest)
    assert authority is not None
    host = authority[0].rpartition("@")[2]
    path = re.split(r"[?#]", rest[authority.end() :], maxsplit=1)[0]
    if scheme and not scheme.isalpha():
        return "***"
    if "@" in path or not _HOST.fullmatch(host):
        return f"{scheme}{sep}***"
    return f"{scheme}{sep}{host}{path}"
