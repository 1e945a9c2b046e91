"""What an actor is told by the controller, by its timers, and by what its own actions come to."""

from __future__ import annotations

from dataclasses import dataclass

from ari_app.call.machine import Trigger
from ari_app.call.onward import Onward
from ari_app.domain.ids import ChannelId


@dataclass(frozen=True, slots=True)
class WorkerGone:
    """A worker does not answer any more."""

    worker_id: str
    started_at_ms: int
    """Which run of it, as Unix time in ms."""
    detail: str


@dataclass(frozen=True, slots=True)
class MoveOrder:
    """An operator wants the call to be moved."""

    worker_id: str
    """To this worker; empty: to any other."""
    by: str


@dataclass(frozen=True, slots=True)
class Message:
    """What an actor is told."""

    trigger: Trigger
    cause: int | None = None
    """Q.850 value, where the event carries one."""
    detail: str = ""
    reason: str = ""
    """The ending's reason, where the trigger alone does not say it."""
    destroyed: ChannelId | None = None
    """This channel is gone for good."""
    place: int = 0
    """Of a call that was not placed: its place in the line of its application, from 1; 0: it has none."""
    onward: Onward | None = None
    """Of a caller whose application is full: where he goes on."""
    media: ChannelId | None = None
    """The media channel that this is about, which may be that of an earlier leg; None: it is about no certain one."""
