"""How a call ended, told from the first thing that ended it.

What Asterisk and the operator do is told by the trigger; what the application or the worker did is told by the worker's
report, which may come a moment later.
"""

from __future__ import annotations

from ari_app.call.machine import Trigger
from ari_app.call.routing import NotAdmitted
from ari_app.domain.hangup import Cause
from ari_app.domain.termination import Result, Termination, from_media
from audiosocket.callspec import CallReport, EndReason

OUR_FAULT = Cause.SWITCHING_EQUIPMENT_CONGESTION
"""What a trunk is told of our faults: Asterisk makes a SIP 503 of it, after which a carrier may try another way. Of
"temporary failure" it makes a 603, which forbids that."""
GONE_UNSEEN = "gone_unseen"
"""The caller's channel went while nobody watched: whether the caller hung up cannot be known."""

MEDIA_LOST = "media_lost"
"""Media went, and the worker did not say why. When it does so later, the record is corrected."""


def of_trigger(
    trigger: Trigger, *, connected: bool, reason: str = "", detail: str = "", cause: int | None = None
) -> Termination | None:
    """The ending that a trigger stands for; None when only the worker's report can tell.

    `connected`: caller and media had been bridged. `reason`: given with the trigger, where it alone does not say why.
    """
    match trigger:
        case Trigger.CALLER_GONE | Trigger.CALLER_LEFT | Trigger.MEDIA_GONE if reason:
            result = Result.INDETERMINATE if reason == GONE_UNSEEN else Result.SERVER_ERROR
            return Termination(result, reason, detail, cause)
        case Trigger.CALLER_GONE | Trigger.CALLER_LEFT if connected:
            return Termination(Result.SUCCESS, "caller_hangup", detail, cause)
        case Trigger.CALLER_GONE | Trigger.CALLER_LEFT:
            return Termination(Result.CLIENT_ERROR, "caller_cancelled", detail, cause)
        case Trigger.HANGUP_ORDERED if not reason:
            return Termination(Result.SUCCESS, "operator_hangup", detail, int(Cause.NORMAL_CLEARING))
        case Trigger.TIME_LIMIT:
            return Termination(Result.SUCCESS, "time_limit", detail, int(Cause.NORMAL_CLEARING))
        case (
            Trigger.MEDIA_GONE
            | Trigger.REPORTED
            | Trigger.REPORT_TIMEOUT
            | Trigger.CONTINUED
            | Trigger.SETTLED
            | Trigger.END_TIMEOUT
        ):
            return None
        case Trigger.SNOOP_GONE:
            return Termination(Result.SERVER_ERROR, Trigger.SNOOP_FAILED.value, detail, int(OUR_FAULT))
        case _:
            return Termination(Result.SERVER_ERROR, reason or trigger.value, detail, int(cause or OUR_FAULT))


def of_refusal(refusal: NotAdmitted) -> Termination:
    """The ending of a call that was not admitted: for want of room, it is ours; otherwise the request was wrong."""
    full = refusal.reason in ("trunk_full", "node_full", "asterisk_slow", "node_cordoned", "controller_restarted")
    result = Result.SERVER_ERROR if full else Result.CLIENT_ERROR
    return Termination(result, refusal.reason, str(refusal), int(refusal.cause))


def of_report(report: CallReport, *, answered: bool = True) -> Termination | None:
    """The ending that the worker saw; None when it saw only that Asterisk closed the leg."""
    if report.reason is EndReason.LEG_CLOSED:
        return None
    found = from_media(report.reason, report.detail)
    return Termination(found.result, found.reason, found.detail, _cause(found.result, answered))


def of_nothing(report: CallReport | None, *, answered: bool = True, lost: str = "") -> Termination:
    """The ending of a call whose media went without anybody saying why; `lost`: why no other worker took it."""
    cause = _cause(Result.SERVER_ERROR, answered)
    if report is None:
        return Termination(Result.SERVER_ERROR, MEDIA_LOST, lost or "the worker did not report", cause)
    return Termination(Result.SERVER_ERROR, "media_leg_lost", report.detail, cause)


def of_late_report(reason: str, report: CallReport, *, answered: bool) -> Termination | None:
    """The ending of a call that was closed for `reason` without the worker's report, which has come since; None: it
    stays."""
    if reason != MEDIA_LOST:
        return None
    return of_report(report, answered=answered) or of_nothing(report, answered=answered)


def _cause(result: Result, answered: bool) -> int:
    # After the answer the cause goes into the BYE, where a carrier tells good ends from bad ones by it.
    if not answered:
        return int(OUR_FAULT)
    return int(Cause.NORMAL_CLEARING if result is Result.SUCCESS else Cause.NETWORK_OUT_OF_ORDER)
