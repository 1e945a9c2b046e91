"""Ids: which kind is which, how they are made, and how ours are recognised on an Asterisk that has others too.

Media channels, snoop channels and bridges get ids that we choose before they are created, so that no event about them
can come before we know them. The id names the node and the call, so that a controller that has lost everything still
knows, from a list of channels, what each of its own belongs to:

    tb-<node>-m-<call id>-<attempt>     external media channel; a call whose media is re-attached has several
    tb-<node>-b-<call id>               the call's bridge
    tb-<node>-s-<call id>               snoop channel: listens to the caller while he is in the dialplan
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import NewType

ChannelId = NewType("ChannelId", str)
"""Asterisk's unique id of a channel: chosen by Asterisk for a caller, by us for media and snoops."""

BridgeId = NewType("BridgeId", str)

CallId = NewType("CallId", str)
"""UUID (v4) of a call, lower case with dashes."""

LegUuid = NewType("LegUuid", str)
"""UUID (v4) of one media leg: a single-use secret, so never a part of an id that is shown or logged."""

RandomBytes = Callable[[int], bytes]
"""`os.urandom`, or a fake of it: returns as many random bytes as it is asked for."""

MAX_ATTEMPT = 9999


class Kind(StrEnum):
    """What an id of ours stands for."""

    MEDIA = "m"
    BRIDGE = "b"
    SNOOP = "s"


@dataclass(frozen=True, slots=True)
class OurId:
    """An id of ours, taken apart."""

    node: str
    kind: Kind
    call_id: CallId
    attempt: int
    """Of a media channel, from 0; 0 for a bridge and a snoop."""


_UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_NODE = r"[a-z0-9][a-z0-9.-]{0,62}"
# The call id has a fixed shape and the end is anchored, so a node's own dashes cannot be mistaken for ours.
_OURS = re.compile(
    rf"tb-(?P<node>{_NODE})-(?:(?P<kind>[bs])-(?P<single>{_UUID})|m-(?P<media>{_UUID})-(?P<attempt>0|[1-9][0-9]{{0,3}}))"
)
_NODE_ONLY = re.compile(_NODE)
_UUID_ONLY = re.compile(_UUID)


def new_call_id(random_bytes: RandomBytes) -> CallId:
    """A fresh call id."""
    return CallId(str(uuid.UUID(bytes=random_bytes(16), version=4)))


def new_leg_uuid(random_bytes: RandomBytes) -> LegUuid:
    """A fresh UUID for one media leg."""
    return LegUuid(str(uuid.UUID(bytes=random_bytes(16), version=4)))


def new_call_sid(random_bytes: RandomBytes) -> str:
    """A platform-style id as Exotel's: 32 lower-case hex digits, no dashes, no `CA` prefix. Also for stream ids.

    The digits are those of a UUID (v4), for platforms that show it as one.
    """
    return uuid.UUID(bytes=random_bytes(16), version=4).hex


def media_channel_id(node: str, call_id: CallId, attempt: int) -> ChannelId:
    """The id of a call's media channel; `attempt` counts its media legs from 0. Raises `ValueError`."""
    if not 0 <= attempt <= MAX_ATTEMPT:
        raise ValueError(f"attempt {attempt} is not within 0 and {MAX_ATTEMPT}")
    return ChannelId(f"{_stem(node, Kind.MEDIA, call_id)}-{attempt}")


def bridge_id(node: str, call_id: CallId) -> BridgeId:
    """The id of a call's bridge. Raises `ValueError`."""
    return BridgeId(_stem(node, Kind.BRIDGE, call_id))


def snoop_channel_id(node: str, call_id: CallId) -> ChannelId:
    """The id of the channel that listens to a call's caller. Raises `ValueError`."""
    return ChannelId(_stem(node, Kind.SNOOP, call_id))


def parse(identifier: str) -> OurId | None:
    """What an id stands for, or None when it is not one of ours (of any node)."""
    found = _OURS.fullmatch(identifier)
    if found is None:
        return None
    if found["single"] is not None:
        return OurId(found["node"], Kind(found["kind"]), CallId(found["single"]), 0)
    return OurId(found["node"], Kind.MEDIA, CallId(found["media"]), int(found["attempt"]))


def is_media_of(identifier: str, call_id: CallId) -> bool:
    """Whether an id is that of a media channel of this call, whichever of its legs it is."""
    ours = parse(identifier)
    return ours is not None and ours.kind is Kind.MEDIA and ours.call_id == call_id


def last_legs(identifiers: Iterable[str]) -> dict[CallId, int]:
    """By call, the last `attempt` of the media channels among these."""
    found: dict[CallId, int] = {}
    for identifier in identifiers:
        ours = parse(identifier)
        if ours is not None and ours.kind is Kind.MEDIA:
            found[ours.call_id] = max(ours.attempt, found.get(ours.call_id, 0))
    return found


def _stem(node: str, kind: Kind, call_id: CallId) -> str:
    if not _NODE_ONLY.fullmatch(node):
        raise ValueError(f"{node!r} is no node name: 1 to 63 of a-z, 0-9, '.', '-', beginning with a letter or digit")
    if not _UUID_ONLY.fullmatch(call_id):
        raise ValueError(f"{call_id!r} is no call id: a UUID in lower case, with dashes")
    return f"tb-{node}-{kind}-{call_id}"
