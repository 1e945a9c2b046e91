"""What ARI answers and what its events are about, as far as a call controller reads it.

Field names are those of Asterisk 22's own API description (rest-api/*.json). Unknown fields are ignored, so that a
newer Asterisk is no reason to stop; optional ones have defaults. Times are Unix time in ms.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

from ari_app.domain.ids import BridgeId, ChannelId


class EpochMs(int):
    """A moment as Unix time in ms. Asterisk writes `2026-11-21T02:08:00.365+0000`, which is not RFC 3339."""


class CallerId(msgspec.Struct, frozen=True):
    """Name and number of a party; both may be empty."""

    name: str = ""
    number: str = ""


class DialplanPoint(msgspec.Struct, frozen=True):
    """Where a channel is, or was, in the dialplan."""

    context: str = ""
    exten: str = ""
    priority: int = 0
    app_name: str = ""
    app_data: str = ""
    """Arguments of `app_name`, joined by commas: for `Stasis` the application's name, then its arguments."""


class Channel(msgspec.Struct, frozen=True, kw_only=True):
    """A channel at one moment."""

    id: ChannelId
    name: str
    """`PJSIP/carrier-00000012`: technology, endpoint, serial number."""
    state: str
    """`Ring` (not answered), `Up`, `Down`, `Ringing`, `Busy` and rarer ones."""
    caller: CallerId = CallerId()
    connected: CallerId = CallerId()
    dialplan: DialplanPoint = DialplanPoint()
    created_at_ms: EpochMs = msgspec.field(name="creationtime")
    protocol_id: str = ""
    """Id that the channel's protocol knows the call by: SIP's Call-ID."""
    channelvars: dict[str, str] = {}


class Bridge(msgspec.Struct, frozen=True, kw_only=True):
    """A bridge at one moment."""

    id: BridgeId
    bridge_type: str
    technology: str = ""
    """`simple_bridge` for two parties, `softmix` for more."""
    name: str = ""
    channels: list[ChannelId] = []


class Playback(msgspec.Struct, frozen=True, kw_only=True):
    """Something that is played to a channel or a bridge."""

    id: str
    media_uri: str = ""
    target_uri: str = ""
    """`channel:<id>` or `bridge:<id>`."""
    state: str = ""
    """`queued`, `playing`, `continuing`, `done`, `failed`."""


class RtpStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """RTP and RTCP figures of one channel so far. Jitter and round trip in seconds; None: RTCP has not told."""

    txcount: int
    """Packets sent to the peer."""
    rxcount: int
    txploss: int
    """Packets that the peer says it did not get."""
    rxploss: int
    txjitter: float | None = None
    rxjitter: float | None = None
    rtt: float | None = None
    maxrtt: float | None = None


class BuildSystem(msgspec.Struct, frozen=True, kw_only=True):
    """`system` of `/asterisk/info`."""

    version: str
    entity_id: str = ""


class BuildStatus(msgspec.Struct, frozen=True, kw_only=True):
    """`status` of `/asterisk/info`."""

    started_at_ms: EpochMs = msgspec.field(name="startup_time")


class AsteriskInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Which Asterisk this is, and since when it runs: another start time means that every call of before is gone."""

    system: BuildSystem
    status: BuildStatus


class AsteriskModule(msgspec.Struct, frozen=True, kw_only=True):
    """A module that is loaded."""

    name: str
    status: str


def decode_custom(kind: type[Any], value: Any) -> Any:
    """msgspec `dec_hook`: reads what JSON has no type for. Raises `ValueError`."""
    if kind is EpochMs and isinstance(value, str):
        moment = datetime.fromisoformat(value)
        if moment.tzinfo is None:
            raise ValueError(f"time {value!r} has no offset")
        return EpochMs(round(moment.timestamp() * 1000))
    raise ValueError(f"no reading of {value!r} as {kind.__name__}")
