"""A fork: an application that only listens hears the caller while he goes on in the dialplan (`one_way` and `after`).

The call is as long as the caller's own; its stream may end before. A stream that has failed makes the call a failure
all the same, as an application does whose caller goes on after it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ari_app.applications import ApplicationSettings
from ari_app.call import ending
from ari_app.call.machine import State, Trigger
from ari_app.call.onward import Onward, place_of
from ari_app.domain.termination import Result, Termination
from ari_app.store.records import CallRow
from audiosocket.callspec import CallReport


def fork_place(name: str, applications: Mapping[str, ApplicationSettings]) -> Onward | None:
    """Where the callers of application `name` go on at once; None: it does not fork."""
    application = applications.get(name)
    return place_of(application.after) if application is not None and application.forks else None


def said(place: Onward) -> str:
    """Where the caller went on, for the record."""
    return f"the caller went on to {place.where}"


class Fork:
    """What is known of one forked call: where its caller is, and how its stream fares."""

    __slots__ = ("_broken", "_failure", "_gone_on", "place")

    def __init__(self, place: Onward | None) -> None:
        self.place = place
        """None: of an earlier controller's call, whose application does not fork any more."""
        self._gone_on = ""
        self._broken: tuple[Trigger, str, str] | None = None
        self._failure: Termination | None = None

    @property
    def gone_on(self) -> bool:
        """Whether the caller has been handed to the dialplan."""
        return bool(self._gone_on)

    def adopt(self, row: CallRow) -> None:
        """Learns from the record what an earlier controller knew."""
        self._gone_on = row.detail or ("the caller went on" if self.place is None else said(self.place))
        if row.result is not None:
            self._failure = Termination(Result(row.result), row.reason or "")

    def moved(self, state: State, trigger: Trigger, reason: str, detail: str) -> None:
        """The call has come to `state` by `trigger`. The first thing that breaks the stream is what counts."""
        going_on = trigger in (Trigger.CONTINUED, Trigger.CONTINUED_ALONE)
        if going_on and self.place is not None:
            self._gone_on = said(self.place)
        elif state in (State.CONTINUING, State.UNFORKING) and trigger is not Trigger.BRIDGED and self._broken is None:
            self._broken = (trigger, reason, detail)

    def parted(self, report: CallReport | None) -> Termination | None:
        """How the stream has failed, now that all of it is gone and the caller still there, with the record's words;
        None: it has ended in order."""
        self._failure = self._failed(report, outlived=True)
        return None if self._failure is None else self._joint(self._failure)

    def left_there(self, cause: int | None) -> Termination:
        """The ending of a caller of whom nobody said that he hung up: his call has ended where he went on."""
        return Termination(Result.SUCCESS, "continued" if self.place is None else self.place.reason, "", cause)

    def ended(self, caller: Termination, report: CallReport | None) -> Termination:
        """The ending of the call, from its caller's."""
        failure = self._failure or self._failed(report, outlived=False)
        if failure is not None and self._gone_on and caller.result is Result.SUCCESS:
            return self._joint(replace(failure, hangup_cause=caller.hangup_cause))
        return self._joint(caller)

    def _failed(self, report: CallReport | None, *, outlived: bool) -> Termination | None:
        found = None if report is None else ending.of_report(report)
        if found is not None and found.result is not Result.SUCCESS:
            return found  # what we saw may be no more than what follows from it
        trigger, reason, detail = self._broken or (Trigger.MEDIA_GONE, "", "")
        if trigger is not Trigger.MEDIA_GONE and (outlived or trigger is not Trigger.SNOOP_GONE):
            return ending.of_trigger(trigger, connected=False, reason=reason, detail=detail)
        # The snoop goes with its caller, and the media leg with both: that alone is no failure.
        return ending.of_nothing(report) if found is None and outlived else None

    def _joint(self, ended: Termination) -> Termination:
        return replace(ended, detail="; ".join(text for text in (ended.detail, self._gone_on) if text))
