"""How a call ended: one result, one short reason, and what there is to say about it.

The result says who has to look: nobody, the caller's side, us, the application or trunk, or nobody can tell.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from audiosocket.callspec import EndReason


class Result(StrEnum):
    """Whose matter an ending is. The values are metric labels and column values: they do not change."""

    SUCCESS = "success"
    """The call did what it was for, and somebody ended it."""
    CLIENT_ERROR = "client_error"
    """What the caller or the trunk asked for could not be: an unknown number, a call that was given up early."""
    SERVER_ERROR = "server_error"
    """Ours: a fault or a stop of the controller, a worker, Asterisk or the link between them."""
    UPSTREAM_ERROR = "upstream_error"
    """The application (or, outbound, the trunk) failed us."""
    INDETERMINATE = "indeterminate"
    """The end was not seen, for instance over a restart of Asterisk."""


@dataclass(frozen=True, slots=True)
class Termination:
    """The end of a call."""

    result: Result
    reason: str
    """snake_case, one of a few dozen: a metric label."""
    detail: str = ""
    """A sentence for people."""
    hangup_cause: int | None = None
    """Q.850 value, where one is known."""


_OF_MEDIA: dict[EndReason, tuple[Result, str]] = {
    # The worker sees only that Asterisk closed the leg. Unless the controller knows better, the caller hung up.
    EndReason.LEG_CLOSED: (Result.SUCCESS, "caller_hangup"),
    EndReason.LEG_PROTOCOL_ERROR: (Result.SERVER_ERROR, "leg_protocol_error"),
    EndReason.LEG_SILENT: (Result.SERVER_ERROR, "leg_silent"),
    EndReason.APP_CLOSED: (Result.SUCCESS, "application_ended"),
    EndReason.APP_LOST: (Result.UPSTREAM_ERROR, "application_lost"),
    EndReason.APP_REFUSED: (Result.UPSTREAM_ERROR, "application_refused"),
    EndReason.APP_TIMEOUT: (Result.UPSTREAM_ERROR, "application_timeout"),
    EndReason.APP_URL_FAILED: (Result.UPSTREAM_ERROR, "application_url_failed"),
    EndReason.APP_SUSPENDED: (Result.UPSTREAM_ERROR, "application_suspended"),
    EndReason.APP_SILENT: (Result.UPSTREAM_ERROR, "application_silent"),
    EndReason.STREAM_LIMIT: (Result.SUCCESS, "stream_limit"),
    EndReason.APP_PROTOCOL_ERROR: (Result.UPSTREAM_ERROR, "application_protocol_error"),
    EndReason.APP_MESSAGE_TOO_BIG: (Result.UPSTREAM_ERROR, "application_message_too_big"),
    EndReason.WORKER_STOPPED: (Result.SERVER_ERROR, "worker_stopped"),
    EndReason.WORKER_ERROR: (Result.SERVER_ERROR, "worker_error"),
}


def from_media(reason: EndReason, detail: str = "", hangup_cause: int | None = None) -> Termination:
    """The ending that a worker's report alone stands for."""
    result, name = _OF_MEDIA[reason]
    return Termination(result, name, detail, hangup_cause)
