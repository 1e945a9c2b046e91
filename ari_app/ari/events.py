"""Events of a Stasis application, and the one way to read them.

Only the types that a call controller acts on are known; the rest is skipped. Field names and what is optional are from
Asterisk 22's rest-api/events.json; what is said about their order and meaning was observed on 22.10.1.
"""

from __future__ import annotations

import msgspec

from ari_app.ari.models import Bridge, Channel, EpochMs, Playback, decode_custom
from ari_app.errors import RemoteProtocolError

_SHOWN = 60


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """What all events have."""

    application: str
    at_ms: EpochMs = msgspec.field(name="timestamp")
    """Unix time in ms, by Asterisk's clock."""


class ChannelEvent(Event, frozen=True, kw_only=True):
    """An event about one channel."""

    channel: Channel


class StasisStart(ChannelEvent, frozen=True, kw_only=True, tag=True):
    """A channel entered the application: it may be commanded from now on."""

    args: list[str]
    """What the dialplan gave `Stasis()`; for external media the AudioSocket UUID."""
    replace_channel: Channel | None = None


class StasisEnd(ChannelEvent, frozen=True, kw_only=True, tag=True):
    """A channel left the application: hung up, sent back to the dialplan, or moved. For a channel that came through the
    dialplan it is the last event, unless the application subscribed to the channel (`AriClient.subscribe`)."""


class ChannelStateChange(ChannelEvent, frozen=True, kw_only=True, tag=True):
    """A channel's `state` changed."""


class ChannelHangupRequest(ChannelEvent, frozen=True, kw_only=True, tag=True):
    """A channel is about to go: its peer hung up, or somebody on this side asked for it (`soft`). One of the peer's may
    be followed by a soft one of Asterisk's own, so the first tells who it was."""

    cause: int | None = None
    soft: bool = False
    tech_cause: int | None = None
    """The protocol's own code: a SIP status."""

    @property
    def hangup_cause(self) -> int | None:
        """Q.850 value that the peer gave, if it gave one: a SIP caller's BYE without a Reason does not. None for a soft
        hangup, whose `cause` is a bit mask of Asterisk's: 32 is our own DELETE, whatever reason it gave."""
        return None if self.soft else self.cause


class ChannelDestroyed(ChannelEvent, frozen=True, kw_only=True, tag=True):
    """A channel is gone. `cause` is a Q.850 value: 16 however a media server ended its leg, and 0 for a SIP caller who
    hung up outside of a bridge without a reason."""

    cause: int
    cause_txt: str
    tech_cause: int | None = None


class ChannelEnteredBridge(Event, frozen=True, kw_only=True, tag=True):
    """A channel is in a bridge; audio flows."""

    bridge: Bridge
    channel: Channel | None = None


class ChannelLeftBridge(ChannelEvent, frozen=True, kw_only=True, tag=True):
    """A channel is not in a bridge any more. Adding it to the same bridge again shows as left and entered."""

    bridge: Bridge


class ChannelDtmfReceived(ChannelEvent, frozen=True, kw_only=True, tag=True):
    """A caller's digit, at its end."""

    digit: str
    duration_ms: int


class ChannelHold(ChannelEvent, frozen=True, kw_only=True, tag=True):
    """The peer put the call on hold."""

    musicclass: str | None = None


class ChannelUnhold(ChannelEvent, frozen=True, kw_only=True, tag=True):
    """The peer took the call back."""


class BridgeCreated(Event, frozen=True, kw_only=True, tag=True):
    """A bridge exists. Not sent for our own, to which the application is subscribed only after its creation."""

    bridge: Bridge


class BridgeDestroyed(Event, frozen=True, kw_only=True, tag=True):
    """A bridge is gone."""

    bridge: Bridge


class Dial(Event, frozen=True, kw_only=True, tag=True):
    """Progress of an outbound leg, external media included."""

    peer: Channel
    caller: Channel | None = None
    dialstring: str = ""
    dialstatus: str
    """Empty when dialling begins; then `RINGING`, `PROGRESS`, `ANSWER`, `BUSY`, `NOANSWER`, `CONGESTION`, ..."""


class PlaybackFinished(Event, frozen=True, kw_only=True, tag=True):
    """A playback is over; `playback.state` says whether it was heard (`done`) or not (`failed`)."""

    playback: Playback


class ApplicationReplaced(Event, frozen=True, kw_only=True, tag=True):
    """Another connection took the application's name. Asterisk leaves the old one open, and silent."""


KNOWN = (
    StasisStart
    | StasisEnd
    | ChannelStateChange
    | ChannelHangupRequest
    | ChannelDestroyed
    | ChannelEnteredBridge
    | ChannelLeftBridge
    | ChannelDtmfReceived
    | ChannelHold
    | ChannelUnhold
    | BridgeCreated
    | BridgeDestroyed
    | Dial
    | PlaybackFinished
    | ApplicationReplaced
)

UNWANTED = ("ChannelCallerId", "ChannelConnectedLine", "ChannelDialplan", "ChannelVarset")
"""Types that make up a third of the events of a call and that nobody here reads: Asterisk is told not to send them."""


class _TypeOnly(msgspec.Struct):
    type: str


_decoder: msgspec.json.Decoder[Event] = msgspec.json.Decoder(KNOWN, dec_hook=decode_custom)
_type_decoder = msgspec.json.Decoder(_TypeOnly)
_known_names = frozenset(kind.__name__ for kind in KNOWN.__args__)


def decode_event(data: bytes | str) -> Event | None:
    """One event; None for a type that is not known here. Raises `RemoteProtocolError` for anything else."""
    try:
        return _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        # Unknown types are rare, thanks to the filter, and pay for the second look.
        if isinstance(error, msgspec.ValidationError) and _type_of(data) not in _known_names:
            return None
        shown = data[:_SHOWN]
        raise RemoteProtocolError("malformed_event", f"an event cannot be read: {error}: {shown!r}") from None


def _type_of(data: bytes | str) -> str | None:
    """The event's type. A message without one counts as malformed: the name returned is a known one."""
    try:
        return _type_decoder.decode(data).type
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return StasisStart.__name__
