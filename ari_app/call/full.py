"""What becomes of a caller whose application is full."""

from __future__ import annotations

from dataclasses import dataclass

from ari_app.call.onward import Onward, place_of
from ari_app.domain.hangup import Cause
from ari_app.limit import LimitSettings, RejectWith

_CAUSES: dict[RejectWith, Cause] = {
    # What Asterisk makes of them before the answer: SIP 486, 503, 480.
    "busy": Cause.USER_BUSY,
    "congestion": Cause.SWITCHING_EQUIPMENT_CONGESTION,
    "unavailable": Cause.SUBSCRIBER_ABSENT,
}


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """Where a caller is sent for whom there is no place; neither: he is hung up with `cause`."""

    application: str | None
    onward: Onward | None
    cause: Cause


def line_max(limit: LimitSettings) -> int:
    """How many may wait for the application; 0: nobody."""
    return limit.queue.max_waiting if limit.when_full == "queue" else 0


def elsewhere(limit: LimitSettings) -> Elsewhere:
    """What follows for a caller who may not wait, or has waited in vain."""
    return Elsewhere(limit.redirect.application, place_of(limit.redirect), _CAUSES[limit.reject_with])
