"""How a call ends, as far as it is known: from what ended it, the worker's report, and the caller's own hanging up.

The rules are in `ari_app.call.ending`, `onward` and `fork`; here is what of one call they are applied to.
"""

from __future__ import annotations

from collections.abc import Mapping

from ari_app.applications import ApplicationSettings
from ari_app.call import ending
from ari_app.call.fork import Fork
from ari_app.call.machine import AWAY, OVER, State, Trigger
from ari_app.call.onward import Onward, after_going_on, onward, place_of
from ari_app.call.routing import Admission, NotAdmitted
from ari_app.controller.messages import Message
from ari_app.controller.story import Story
from ari_app.domain.hangup import Cause
from ari_app.domain.ids import ChannelId
from ari_app.domain.termination import Result, Termination
from audiosocket.callspec import CallReport


class Outcome:
    """The ending of one call."""

    def __init__(
        self,
        story: Story,
        caller_channel: ChannelId,
        admission: Admission | NotAdmitted | None,
        fork: Fork | None,
        applications: Mapping[str, ApplicationSettings],
    ) -> None:
        self._story = story
        self._caller_channel = caller_channel
        self._admission = admission
        self._fork = fork
        self._applications = applications
        self.termination: Termination | None = None
        """Why the call ends; None: nothing has ended it yet."""
        self.caller_cause: int | None = None
        """Q.850 value with which the caller's channel has gone."""
        self.report: CallReport | None = None
        self.onward: Onward | None = None
        """Where the caller goes on, once the report has said that he does."""
        self._lost = ""

    def conclude(self, message: Message, source: State, target: State) -> None:
        """`message` has moved the call. The first thing that ends a call is why it ended; that the caller goes on is
        said in addition."""
        if message.trigger is Trigger.SENT_ON:
            self.onward = message.onward
            self.termination = ending.of_trigger(
                Trigger.PLACE_FAILED,
                connected=False,
                reason=message.reason,
                detail=message.detail,
                cause=message.cause,
            )
        if target not in OVER:
            if self._fork is not None:
                self._fork.moved(target, message.trigger, message.reason, message.detail)
            return
        if message.trigger is Trigger.CONTINUED:
            assert self.onward is not None
            self.termination = after_going_on(self.known(), self.onward)
        elif message.trigger is Trigger.CONTINUE_FAILED and self._cut_short():
            self.termination = None
        if self.termination is not None:
            return
        if message.trigger is Trigger.REFUSED:
            assert isinstance(self._admission, NotAdmitted)
            self.termination = ending.of_refusal(self._admission)
        elif self._fork and source in AWAY and message.destroyed == self._caller_channel and not message.reason:
            self.termination = self._fork.left_there(message.cause)
        else:
            self.termination = ending.of_trigger(
                message.trigger,
                connected=self._story.row.connected_at is not None or (self._fork is not None and self._fork.gone_on),
                reason=message.reason,
                detail=message.detail,
                cause=message.cause,
            )

    def fail(self, error: Exception, state: State) -> None:
        """A fault of ours ends the call in `state`."""
        if self.termination is None or (state not in OVER and self._cut_short()):
            self.termination = ending.of_trigger(
                Trigger.HANGUP_ORDERED,
                connected=False,
                reason="controller_error",
                detail=f"{type(error).__name__}: {error}",
            )

    def take_report(self, report: CallReport) -> None:
        """What the worker says of the call."""
        self.report = report
        self._story.reported(report)
        if self.termination is None and self._fork is None:
            self.termination = ending.of_report(report, answered=self._answered)

    def lose(self, detail: str) -> None:
        """The worker is gone, and no other one has taken the call."""
        self._lost = detail

    def why(self) -> Message:
        """What follows from the report, or from there being none."""
        name = self._story.row.application or ""
        if self.report is not None:
            self.onward = onward(self.report, name, self._applications)
        elif self._lost and name in self._applications:
            self.onward = place_of(self._applications[name].fallback.after)
        return Message(Trigger.REPORTED if self.onward is None else Trigger.GOES_ON)

    def known(self) -> Termination:
        """The ending as far as it is known."""
        found = self.termination or ending.of_nothing(self.report, answered=self._answered, lost=self._lost)
        if found.hangup_cause is None and self.caller_cause is not None:
            return Termination(found.result, found.reason, found.detail, self.caller_cause)
        return found

    def final(self) -> Termination:
        """The ending that goes into the record."""
        found = self.known()
        return found if self._fork is None else self._fork.ended(found, self.report)

    def hangup_cause(self) -> int:
        """The Q.850 value that the caller is hung up with."""
        return self.known().hangup_cause or int(Cause.NORMAL_CLEARING)

    def _cut_short(self) -> bool:
        """Whether the application did its part, and the caller did not get where he was to go on."""
        return self.onward is not None and self.known().result is Result.SUCCESS

    @property
    def _answered(self) -> bool:
        return self._story.row.answered_at is not None
