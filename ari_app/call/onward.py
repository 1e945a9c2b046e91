"""Where a caller goes when the application is done with him: hung up, or on in the dialplan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ari_app.after import FailureAfterSettings
from ari_app.applications import ApplicationSettings
from ari_app.domain.termination import Result, Termination, from_media
from audiosocket.callspec import CallReport, EndReason

AFTER_CONTEXT = "trunkbridge-after-application"
"""The operator's own dialplan."""
TRANSFER_CONTEXT = "trunkbridge-transfer"
"""Dialplan of ours, see asterisk-conf/extensions.conf.j2."""


@dataclass(frozen=True, slots=True)
class Onward:
    """A place in the dialplan at which the caller goes on."""

    reason: str
    """The ending's, when the application has done its part."""
    where: str
    """In words, for the record."""
    context: str
    extension: str
    variables: Mapping[str, str]
    """Channel variables that the place reads."""


def onward(report: CallReport, name: str, applications: Mapping[str, ApplicationSettings]) -> Onward | None:
    """Where the caller goes on after this report of a call to application `name`; None: nowhere, he is hung up.

    An application that has failed is followed by its `fallback.after`, one that ended the stream, or whose
    fallback did, by its `after`. What Asterisk or we ended is followed by nothing.
    """
    application = applications.get(report.application or name)
    if application is None:
        return None
    if from_media(report.reason).result is Result.UPSTREAM_ERROR:
        return place_of(application.fallback.after)
    if report.reason in (EndReason.APP_CLOSED, EndReason.STREAM_LIMIT):
        return place_of(application.after)
    return None


def after_going_on(ended: Termination, place: Onward) -> Termination:
    """The ending of a call whose caller went on: an application that failed has failed all the same."""
    where = f"to {place.where}"
    if ended.result is not Result.SUCCESS:
        return Termination(ended.result, ended.reason, f"{ended.detail}; the caller went on {where}".lstrip("; "))
    return Termination(Result.SUCCESS, place.reason, f"{where}, after {ended.reason}")


def place_of(after: FailureAfterSettings) -> Onward | None:
    """The place that the setting names; None: there is none in the dialplan."""
    if after.extension is not None:
        return Onward("continued", f"extension {after.extension}", AFTER_CONTEXT, after.extension, {})
    if after.transfer is not None:
        transfer = after.transfer
        variables = {
            "TRUNKBRIDGE_TO": transfer.to,
            "TRUNKBRIDGE_TRUNK": transfer.trunk,
            "TRUNKBRIDGE_SECONDS": str(transfer.timeout_seconds),
        }
        return Onward("transferred", f"{transfer.to} on {transfer.trunk}", TRANSFER_CONTEXT, "s", variables)
    return None
