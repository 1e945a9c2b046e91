"""What is kept of a call: one `CallRow`, and a `CallEvent` per transition. Times are aware, in UTC."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import msgspec

from audiosocket.callspec import MediaFigures


class RecordingPart(msgspec.Struct, frozen=True, kw_only=True):
    """One file of a call's recording."""

    recording: str
    """Path on the node of `worker_id`, or URL."""
    worker_id: str
    began_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRow:
    """A call as it stands. The field names are the columns of `calls`."""

    call_id: str
    """UUID."""
    call_sid: str
    """What applications and REST clients know the call by."""
    stream_sid: str | None = None
    node: str
    """PBX node."""
    direction: str
    """`inbound` or `outbound`."""
    trunk: str | None = None
    caller: str | None = None
    callee: str | None = None
    application: str | None = None
    state: str
    caller_channel_id: str | None = None
    worker_id: str | None = None
    leg_uuid: str | None = None
    created_at: datetime
    answered_at: datetime | None = None
    connected_at: datetime | None = None
    """Caller and media bridged."""
    ended_at: datetime | None = None
    """None: the call is open."""
    result: str | None = None
    reason: str | None = None
    detail: str | None = None
    hangup_cause: int | None = None
    """ITU-T Q.850."""
    media: MediaFigures | None = None
    recording: str | None = None
    """Path on the worker's node, or URL; the last of `recordings`."""
    recordings: tuple[RecordingPart, ...] | None = None
    """One after the other: a call that is moved to another worker goes on in another file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallEvent:
    """One transition, or one thing that happened. The field names are the columns of `call_events`."""

    call_id: str
    source: str
    """The run of a process that saw it. With `seq` it names the event: the same event written twice is one."""
    seq: int
    at: datetime
    event: str
    from_state: str | None = None
    to_state: str | None = None
    cause: str | None = None
    detail: dict[str, Any] = field(default_factory=dict)
