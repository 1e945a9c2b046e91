"""One actor per call: all that changes a call happens in its one task, fed by a bounded inbox.

The actor turns outcomes, events of Asterisk, the worker's words, timers and orders into the state machine's triggers,
and has the machine's actions performed (`ari_app.controller.actions`). It never decides from memory what Asterisk does:
a channel counts as alive until Asterisk says that it is destroyed.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import assert_never

import structlog

from ari_app.ari.errors import AriError, AriNotFound
from ari_app.call import ending
from ari_app.call.fork import Fork, fork_place
from ari_app.call.machine import AWAY, HELD, OVER, TIMERS, Action, CallMachine, State, Trigger
from ari_app.call.routing import Admission, NotAdmitted
from ari_app.controller.actions import CallActions
from ari_app.controller.limits import Limits
from ari_app.controller.messages import Message, MoveOrder, WorkerGone
from ari_app.controller.moving import Moving
from ari_app.controller.outcome import Outcome
from ari_app.controller.rtp_leg import CallerDigit
from ari_app.controller.services import Services
from ari_app.controller.story import Story, now
from ari_app.controller.waiting import ASK_SECONDS, Waiting
from ari_app.domain.ids import CallId, ChannelId
from ari_app.fleet.leases import Held
from ari_app.store.records import CallRow
from audiosocket.callspec import DIGITS, CallNotice, CallReport

INBOX_MESSAGES = 128
"""A call has some thirty events in its life; more than this at once is a fault, and is reconciled."""
CAUSE_SECONDS = 0.2
"""How long a record is kept open for the cause of a caller's hanging up, where all else of his call has gone before
Asterisk tells it."""

log = structlog.get_logger(__name__)


_Told = Message | CallReport | CallNotice | CallerDigit | WorkerGone | MoveOrder


class CallActor:
    """One inbound call. `run` is its task; `tell`, `report` and `notice` may be called from event handlers, and never
    block."""

    def __init__(
        self,
        services: Services,
        story: Story,
        caller_channel: ChannelId,
        admission: Admission | NotAdmitted | None,
        state: State = State.NEW,
    ) -> None:
        row = story.row
        place = fork_place(row.application or "", services.applications)
        forks = state in AWAY or (state is State.NEW and place is not None)
        self._fork = Fork(place) if forks else None
        self.call_id = CallId(row.call_id)
        self.line = row.trunk or ""
        self.machine = CallMachine(state, forks=forks)
        self.lost_messages = 0
        self._lost_unseen = False
        self._apart = False
        self._services = services
        self._story = story
        self._actions = CallActions(services, story, caller_channel, state, forks=forks)
        self._waiting = Waiting(services, story, self._actions, admission, forks=forks)
        self._legs = self._actions.legs
        self._moving = Moving(services, story, self._actions, self._waiting, forks=forks)
        self.rtp_leg = self._legs.rtp
        self.caller_channel = caller_channel
        """Asterisk's id of the caller's channel; those of the others are ours, whether they exist or not."""
        self.snoop_channel = self._actions.snoop_channel
        self._inbox: asyncio.Queue[_Told] = asyncio.Queue(INBOX_MESSAGES)
        self._first_word = ""
        self._outcome = Outcome(story, caller_channel, admission, self._fork, services.applications)
        self._limits = Limits(services.settings.setup_timeout_seconds, admission, self._legs.replacements)
        self._log = log.bind(call_id=self.call_id, trunk=self.line)

    @property
    def _admission(self) -> Admission | NotAdmitted | None:
        """What the call is for now: a full application may have sent it to another one."""
        return self._waiting.admission

    @property
    def media_channel(self) -> ChannelId:
        """That of the leg that is there, or is being made."""
        return self._legs.channel

    @property
    def channels(self) -> list[ChannelId]:
        """All that the call has had, those of its lost legs included."""
        return [self.caller_channel, self.snoop_channel, *self._legs.channels()]

    @property
    def media_started(self) -> bool:
        """Whether the media channel has entered Stasis."""
        return self._legs.started

    @property
    def worker_id(self) -> str:
        """The media worker that the call holds a lease on; empty when it holds none."""
        return "" if self._actions.lease_returned else self._story.row.worker_id or ""

    @property
    def lease(self) -> Held:
        """The lease that the call holds; without a worker: it holds none."""
        return Held(self.worker_id, self._actions.lease_token, self._story.row.application or "")

    def learn_lease(self, token: int) -> None:
        """The token of the lease that the call was adopted with."""
        if not self._actions.lease_token:
            self._actions.lease_token = token

    @property
    def row(self) -> CallRow:
        """The call's record as it was written last."""
        return self._story.row

    def status(self) -> dict[str, object]:
        """What the status port shows: no numbers, for it asks nobody who he is."""
        row = self._story.row
        return {
            "call_id": row.call_id,
            "state": self.machine.state.value,
            "trunk": row.trunk,
            "application": row.application,
            "worker": self.worker_id or None,
            "created_at": row.created_at,
            "answered_at": row.answered_at,
        }

    # From outside

    def tell(self, message: Message) -> None:
        """Queues a message; one that finds the inbox full is counted, and the call is reconciled."""
        self._put(message)

    def start_media(self) -> None:
        """The media channel has entered Stasis; an RTP leg besides has to be open."""
        self._legs.started = True
        if self.rtp_leg.attached or not self.rtp_leg.used:
            self._put(Message(Trigger.MEDIA_STARTED, media=self.media_channel))

    def digit(self, digit: str) -> None:
        """A key of the caller's, which AudioSocket passes on by itself."""
        if self.rtp_leg.used:
            self._put(CallerDigit(digit))

    def start_snoop(self) -> None:
        """The channel that listens to the caller has entered Stasis."""
        self._put(Message(Trigger.SNOOP_STARTED))

    def report(self, report: CallReport) -> None:
        """Queues the worker's report."""
        self._put(report)

    def notice(self, notice: CallNotice) -> None:
        """Queues what the worker says of the call's own leg while it goes on."""
        if notice.leg_uuid != self._story.row.leg_uuid:
            return
        if notice.event != "attached":
            self._put(notice)
        elif not self.rtp_leg.attached and notice.leg_number == self._legs.replacements.number:
            self.rtp_leg.attached = True
            if self._legs.started:
                self._put(Message(Trigger.MEDIA_STARTED, media=self.media_channel))

    def worker_gone(self, gone: WorkerGone) -> None:
        """Queues that a worker does not answer any more; of another's call nothing follows."""
        if gone.worker_id == self.worker_id:
            self._put(gone)

    def move(self, order: MoveOrder) -> None:
        """Queues that an operator wants the call to be moved."""
        self._put(order)

    def know_leg(self, number: int | None) -> None:
        """Of a call that is to be adopted: the last leg that Asterisk has of it; None: none."""
        self._legs.know_leg(number)

    def adopt(
        self, max_seconds: int, caller_live: bool, media_live: bool, snoop_live: bool, by_rtp: bool, bridged: bool
    ) -> None:
        """Takes over a call that another controller has set up; what of it lives has just been listed, and whether it
        is in the call's bridge."""
        row = self._story.row
        self.rtp_leg.used = by_rtp
        self._actions.adopt(self.machine.state, caller_live, media_live, snoop_live)
        elapsed = (now() - (row.answered_at or row.created_at)).total_seconds()
        self._limits.adopt(max_seconds - elapsed)
        if self._fork is not None:
            self._fork.adopt(row)
        self._story.event("adopted")
        gone = "gone while no controller ran"
        if not caller_live:
            self.tell(Message(Trigger.CALLER_GONE, detail=gone, reason=ending.GONE_UNSEEN))
        elif not media_live:
            self.tell(Message(Trigger.MEDIA_GONE, detail=gone))
        elif self._fork is not None and not snoop_live:
            self.tell(Message(Trigger.SNOOP_GONE, detail=gone))
        elif self.machine.state is not State.PARTED:
            self._apart = not bridged
        self._log.info("call_adopted", caller_live=caller_live, media_live=media_live)

    async def run(self) -> None:
        """Carries the call to its end. Raises nothing but its own cancellation."""
        actions = self._actions
        try:
            gone = None
            if self.machine.state is State.NEW:
                await self._begin()
            elif self.machine.state in AWAY:
                gone = await actions.watch()
            elif self.machine.state is State.QUEUED:
                gone = await self._waiting.resume()
            if gone is not None:
                await self._handle(gone)
            if self._apart and (gone := await actions.mend_bridge()) is not None:
                await self._handle(gone)
            while self.machine.state is not State.ENDED:
                if not actions.awaits(self.machine.state):
                    await self._step(Message(Trigger.SETTLED))
                elif self._lost_unseen and self._inbox.empty():
                    self._lost_unseen = False
                    for seen in await actions.look():
                        await self._handle(seen)
                elif (message := await self._next()) is not None:
                    await self._handle(message)
        except Exception as error:
            self._log.exception("call_actor_failed")
            self._outcome.fail(error, self.machine.state)
            await self._contain()

    async def _begin(self) -> None:
        if not isinstance(self._admission, NotAdmitted):
            await self._step(Message(Trigger.ARRIVED))
            return
        try:
            await self._services.ari.subscribe(self.caller_channel)
        except AriError as error:
            self._actions.caller_live = not isinstance(error, AriNotFound)
        await self._step(Message(Trigger.REFUSED))

    def _put(self, message: _Told) -> None:
        try:
            self._inbox.put_nowait(message)
        except asyncio.QueueFull:
            self.lost_messages += 1
            self._lost_unseen = True
            self._log.error("call_inbox_full", lost=self.lost_messages)

    async def _next(self) -> _Told | None:
        queued = self.machine.state is State.QUEUED
        try:
            async with asyncio.timeout(ASK_SECONDS if queued else max(0.0, self._limits.deadline - time.monotonic())):
                return await self._inbox.get()
        except TimeoutError:
            if self.machine.state is State.REPORTING and await self._moving.worker_dead():
                return Message(Trigger.WORKER_GONE, detail="the worker does not listen")
            return await self._waiting.ask() if queued else Message(TIMERS[self.machine.state])

    async def _handle(self, message: _Told) -> None:
        if isinstance(message, CallReport):
            if self._legs.leg_uuid and message.leg_uuid != self._legs.leg_uuid:
                self._story.left(message)
                return
            self._take_report(message)
            if self.machine.state is State.REPORTING or self.machine.state in HELD:
                await self._step(self._outcome.why())
            elif self.rtp_leg.used:
                # Asterisk does not see that the worker has gone from an RTP leg.
                await self._step(Message(Trigger.MEDIA_GONE))
        elif isinstance(message, CallerDigit):
            if self._talks:
                await self.rtp_leg.pass_digit(message.digit)
        elif isinstance(message, CallNotice):
            await self._take_notice(message)
        elif isinstance(message, WorkerGone):
            if self._legs.is_at(message.worker_id, message.started_at_ms):
                await self._step(Message(Trigger.WORKER_GONE, detail=message.detail))
        elif isinstance(message, MoveOrder):
            reported = self._outcome.report is not None
            if (ordered := self._moving.order(message, self.machine.state, reported=reported)) is not None:
                await self._step(ordered)
        elif message.media is not None and message.media != self.media_channel:
            self._actions.destroyed(message.destroyed)  # of a leg whose place another has taken
        else:
            if message.destroyed == self.caller_channel:
                self._outcome.caller_cause = message.cause
            self._actions.destroyed(message.destroyed)
            await self._step(self._legs.unconnected(message, self.machine.state))

    async def _step(self, message: Message) -> None:
        """Applies a trigger, performs what follows, and goes on with the outcomes."""
        pending: Message | None = message
        while pending is not None:
            reported = self._outcome.report is not None
            current = self._moving.instead(pending, self.machine.state, self._limits, reported=reported)
            pending = None
            step = self.machine.apply(current.trigger)
            if step is None:
                if self.machine.state is State.ENDING and current.reason and self._outcome.termination is None:
                    # It ended for a loss, and this is why there was one.
                    self._outcome.conclude(current, State.ENDING, State.ENDING)
                return
            self._limits.enter(step.target)
            if step.source is State.MOVING:
                self._services.turns.end(self.call_id)
            if current.trigger is Trigger.GIVEN_UP and current.detail:
                self._outcome.lose(current.detail)
            self._outcome.conclude(current, step.source, step.target)
            self._story.transition(step, self._cause(), detail=current.detail, hangup_cause=current.cause)
            for action in step.actions:
                pending = await self._perform(action)
                if pending is not None:
                    break

    def _cause(self) -> str:
        termination = self._outcome.termination
        return termination.reason if termination is not None and self.machine.state in OVER else ""

    def _take_report(self, report: CallReport) -> None:
        self._legs.report_due = False
        self._outcome.take_report(report)

    async def _take_notice(self, notice: CallNotice) -> None:
        if notice.event == "leg_lost":
            # What the worker says in answer to us counts in any case; otherwise it may be about a leg before this one.
            asked = self.machine.state is State.REPORTING
            waits = self._outcome.report is None and self._story.row.connected_at is not None
            if waits and (asked or notice.leg_number >= self._legs.replacements.number):
                self._legs.lost(notice)
                await self._step(Message(Trigger.LEG_LOST, detail=f"leg {notice.leg_number}"))
        elif notice.event == "not_here":
            if self.machine.state is State.REPORTING and self._outcome.report is None:
                self._moving.not_had()
                await self._step(Message(Trigger.WORKER_GONE, detail="the worker has not had the call"))
        elif notice.event == "recorded":
            self._story.recorded(notice)
        elif notice.event == "digits":
            if self._talks and DIGITS.fullmatch(notice.digits):
                await self._actions.send_digits(notice.digits)
        elif isinstance(self._admission, Admission) and self._admission.is_first_word(notice.event):
            self._first_word = notice.event
            await self._step(Message(Trigger.FIRST_WORD, detail=notice.event))

    # Actions

    async def _perform(self, action: Action) -> Message | None:
        actions = self._actions
        match action:
            case Action.PLACE:
                return await self._waiting.place()
            case Action.HOLD:
                return await self._waiting.hold()
            case Action.ANSWER:
                return await actions.answer()
            case Action.RING:
                return await actions.ring()
            case Action.ATTACH:
                assert isinstance(self._admission, Admission)
                return await self._legs.attach(self, self._admission.media_format)
            case Action.LISTEN:
                self._story.update(state=State.AWAITING.value)
                return Message(Trigger.FIRST_WORD, detail=self._first_word) if self._first_word else None
            case Action.SNOOP:
                return await actions.snoop(self)
            case Action.BRIDGE:
                await self._waiting.quiet()
                return await actions.join()
            case Action.RELEASE:
                admission = self._admission
                if isinstance(admission, Admission) and (admission.held or not admission.application.one_way):
                    await self._legs.release()
            case Action.INQUIRE:
                if not self._legs.report_due:
                    return self._outcome.why()
                await self._legs.inquire(talked=self._story.row.connected_at is not None)
                if not self._legs.heard and self._moving.moves.possible:
                    self._limits.unheard()
            case Action.STRAND:
                self._moving.strand(lambda: self.tell(Message(Trigger.MOVE_DUE)))
            case Action.MOVE | Action.REPLACE_WORKER:
                self._first_word = ""
                if action is Action.MOVE:
                    return await self._moving.move(self)
                return await self._moving.replace_worker(self, self._limits)
            case Action.REPLACE:
                return await self._legs.replace(self)
            case Action.REJOIN:
                rejoined = await actions.rejoin()
                if rejoined is not None and rejoined.trigger is Trigger.BRIDGED:
                    self._moving.carried()
                return rejoined
            case Action.CONTINUE:
                place = self._outcome.onward if self._fork is None else self._fork.place
                assert place is not None
                await self._waiting.quiet()
                return await actions.go_on(place)
            case Action.DETACH:
                await actions.detach()
            case Action.GIVE_BACK:
                assert self._fork is not None
                await actions.give_stream_back(self._fork.parted(self._outcome.report))
            case Action.TEAR_DOWN:
                # No caller is kept for a Redis that does not answer.
                await asyncio.gather(self._waiting.leave(), actions.tear_down(self._outcome.hangup_cause()))
            case Action.CLOSE:
                await actions.tidy(self._outcome.hangup_cause())
                await self._give_back()
            case _:
                assert_never(action)
        return None

    async def _give_back(self) -> None:
        await self._waiting.leave()
        await self._actions.give_lease_back()
        await self._take_late()
        termination = self._outcome.final()
        self._story.close(State.ENDED.value, termination)
        self._log.info(
            "call_ended",
            result=termination.result.value,
            reason=termination.reason,
            detail=termination.detail,
            hangup_cause=termination.hangup_cause,
        )

    async def _take_late(self) -> None:
        """What is on its way behind the end: the report, and with which cause the caller's channel went."""
        deadline = asyncio.get_running_loop().time() + CAUSE_SECONDS
        while not self._inbox.empty() or self._outcome.known().hangup_cause is None:
            try:
                async with asyncio.timeout_at(deadline):
                    late = await self._inbox.get()
            except TimeoutError:
                break
            if isinstance(late, CallReport):
                self._take_report(late)
            elif isinstance(late, Message) and late.destroyed == self.caller_channel:
                self._outcome.caller_cause = late.cause

    @property
    def _talks(self) -> bool:
        """Whether caller and application are connected, be it that a leg between them is just being replaced."""
        return self.machine.state is State.TALKING or self.machine.state in HELD

    async def _contain(self) -> None:
        """A fault of ours must not leave a caller in dead air, nor a lease taken."""
        if self.machine.state in AWAY:
            self._actions.caller_live = False  # he is on the telephone with somebody, not with us
        self.machine = CallMachine(State.ENDED)
        cause = self._outcome.hangup_cause()
        for end in (partial(self._actions.tear_down, cause), partial(self._actions.tidy, cause), self._give_back):
            try:
                await end()
            except Exception:
                self._log.exception("call_not_contained")
        if self._story.row.ended_at is None:
            self._story.close(State.ENDED.value, self._outcome.known())
