"""One actor per call: all that changes a call happens in its one task, fed by a bounded inbox.

The actor performs what the state machine asks for and turns outcomes, events of Asterisk, timers and orders into the
machine's triggers. It never decides from memory what Asterisk does: a channel counts as alive until Asterisk says that
it is destroyed. Every point at which a call's set-up or end may be interrupted is to be read in one place, hence the
length of this module.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import assert_never

import structlog

from ari_app.ari.client import AriClient
from ari_app.ari.errors import AriConflict, AriError, AriInvalid, AriMalformed, AriNotFound, AriUnavailable
from ari_app.call import ending
from ari_app.call.machine import OVER, SETTING_UP, Action, CallMachine, State, Trigger
from ari_app.call.routing import Admission, NotAdmitted
from ari_app.controller.spec import call_spec
from ari_app.controller.story import Story, now
from ari_app.domain.hangup import Cause
from ari_app.domain.ids import BridgeId, CallId, ChannelId, LegUuid, bridge_id, media_channel_id, new_leg_uuid
from ari_app.domain.termination import Termination
from ari_app.errors import TrunkbridgeError
from ari_app.fleet.leases import Leases
from ari_app.settings import ControllerSettings
from ari_app.store.present import Present
from ari_app.store.records import CallRow
from audiosocket.callspec import CallReport, WorkerInfo

INBOX_MESSAGES = 128
"""A call has some thirty events in its life; more than this at once is a fault, and is reconciled."""
END_SECONDS = 5.0
"""How long an ended call waits for its channels to be destroyed and for the worker's report."""

log = structlog.get_logger(__name__)


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


@dataclass(frozen=True, slots=True)
class Services:
    """What actors work with; one for all of them."""

    node: str
    ari: AriClient
    leases: Leases
    present: Present
    settings: ControllerSettings
    register: Callable[[ChannelId, CallActor], None]
    """Makes events of a channel reach the actor, from before the channel is created."""


class CallActor:
    """One inbound call. `run` is its task; `tell` and `report` may be called from event handlers, and never block."""

    def __init__(
        self,
        services: Services,
        story: Story,
        caller_channel: ChannelId,
        admission: Admission | NotAdmitted | None,
        state: State = State.NEW,
    ) -> None:
        row = story.row
        self.call_id = CallId(row.call_id)
        self.line = row.trunk or ""
        self.caller_channel = caller_channel
        self.media_channel: ChannelId = media_channel_id(services.node, self.call_id, 0)
        self.bridge: BridgeId = bridge_id(services.node, self.call_id)
        self.machine = CallMachine(state)
        self.media_started = state in (State.BRIDGING, State.TALKING)
        self.lost_messages = 0
        self._lost_unseen = False
        self._services = services
        self._story = story
        self._admission = admission
        self._inbox: asyncio.Queue[Message | CallReport] = asyncio.Queue(INBOX_MESSAGES)
        self._worker: WorkerInfo | None = None
        self._leg_uuid = LegUuid(row.leg_uuid or "")
        self._caller_live = True
        self._media_live = self.media_started
        self._report_due = self.media_started
        self._bridged = state in (State.BRIDGING, State.TALKING)
        self._termination: Termination | None = None
        self._caller_cause: int | None = None
        self._report: CallReport | None = None
        self._deadline = time.monotonic() + services.settings.setup_timeout_seconds
        self._log = log.bind(call_id=self.call_id, trunk=self.line)

    @property
    def worker_id(self) -> str:
        """The media worker that the call holds a lease on; empty when it holds none."""
        return self._story.row.worker_id or ""

    @property
    def row(self) -> CallRow:
        """The call's record as it was written last."""
        return self._story.row

    # From outside

    def tell(self, message: Message) -> None:
        """Queues a message; one that finds the inbox full is counted, and the call is reconciled."""
        self._put(message)

    def report(self, report: CallReport) -> None:
        """Queues the worker's report."""
        self._put(report)

    def adopt(self, max_seconds: int, caller_live: bool, media_live: bool) -> None:
        """Takes over a call that another controller has set up; what of it lives has just been listed."""
        self._caller_live = caller_live
        self._media_live = self.media_started = media_live
        # Why media went while nobody ran is told by the worker's report, which waits to be read.
        self._report_due = media_live or self._story.row.connected_at is not None
        self._bridged = True  # it may be: removing a bridge that is not there is harmless
        elapsed = (now() - (self._story.row.answered_at or self._story.row.created_at)).total_seconds()
        self._deadline = time.monotonic() + max(0.0, max_seconds - elapsed)
        self._story.event("adopted")
        gone = "gone while no controller ran"
        if not caller_live:
            self.tell(Message(Trigger.CALLER_GONE, detail=gone, reason=ending.GONE_UNSEEN))
        elif not media_live:
            self.tell(Message(Trigger.MEDIA_GONE, detail=gone))
        self._log.info("call_adopted", caller_live=caller_live, media_live=media_live)

    async def run(self) -> None:
        """Carries the call to its end. Raises nothing but its own cancellation."""
        try:
            if self.machine.state is State.NEW:
                await self._begin()
            while self.machine.state is not State.ENDED:
                alive = self._caller_live or self._media_live or self._report_due
                if self.machine.state is State.ENDING and not alive:
                    await self._step(Message(Trigger.SETTLED))
                elif self._lost_unseen and self._inbox.empty():
                    await self._look()
                else:
                    await self._handle(await self._next())
        except Exception as error:
            self._log.exception("call_actor_failed")
            if self._termination is None:
                self._termination = ending.of_trigger(
                    Trigger.HANGUP_ORDERED,
                    connected=False,
                    reason="controller_error",
                    detail=f"{type(error).__name__}: {error}",
                )
            await self._contain()

    async def _begin(self) -> None:
        if not isinstance(self._admission, NotAdmitted):
            await self._step(Message(Trigger.ARRIVED))
            return
        try:
            await self._services.ari.subscribe(self.caller_channel)
        except AriError as error:
            self._caller_live = not isinstance(error, AriNotFound)
        await self._step(Message(Trigger.REFUSED))

    def _put(self, message: Message | CallReport) -> None:
        try:
            self._inbox.put_nowait(message)
        except asyncio.QueueFull:
            self.lost_messages += 1
            self._lost_unseen = True
            self._log.error("call_inbox_full", lost=self.lost_messages)

    async def _next(self) -> Message | CallReport:
        try:
            async with asyncio.timeout(max(0.0, self._deadline - time.monotonic())):
                return await self._inbox.get()
        except TimeoutError:
            if self.machine.state in SETTING_UP:
                return Message(Trigger.SETUP_TIMEOUT)
            if self.machine.state is State.ENDING:
                return Message(Trigger.END_TIMEOUT)
            return Message(Trigger.TIME_LIMIT)

    async def _look(self) -> None:
        """Finds out what the messages that found no room may have told: which of the channels are gone."""
        self._lost_unseen = False
        for channel, live, gone in (
            (self.caller_channel, self._caller_live, Trigger.CALLER_GONE),
            (self.media_channel, self._media_live, Trigger.MEDIA_GONE),
        ):
            try:
                if live:
                    await self._services.ari.get_channel(channel)
            except AriNotFound:
                await self._handle(Message(gone, destroyed=channel))
            except AriError as error:
                self._log.warning("channel_not_looked_at", channel=channel, detail=str(error))

    async def _handle(self, message: Message | CallReport) -> None:
        if isinstance(message, CallReport):
            self._take_report(message)
        else:
            if message.destroyed == self.caller_channel:
                self._caller_live = False
                self._caller_cause = message.cause
            elif message.destroyed == self.media_channel:
                self._media_live = False
            await self._step(message)

    async def _step(self, message: Message) -> None:
        """Applies a trigger, performs what follows, and goes on with the outcomes."""
        pending: Message | None = message
        while pending is not None:
            current, pending = pending, None
            step = self.machine.apply(current.trigger)
            if step is None:
                return
            self._conclude(current)
            self._story.transition(step, self._cause(), detail=current.detail, hangup_cause=current.cause)
            for action in step.actions:
                outcome = await self._perform(action)
                if outcome is not None:
                    pending = outcome

    def _cause(self) -> str:
        return self._termination.reason if self._termination is not None and self.machine.state in OVER else ""

    def _conclude(self, message: Message) -> None:
        """The first thing that ends a call is why it ended."""
        if self.machine.state not in OVER or self._termination is not None:
            return
        if message.trigger is Trigger.REFUSED:
            assert isinstance(self._admission, NotAdmitted)
            self._termination = ending.of_refusal(self._admission)
        else:
            self._termination = ending.of_trigger(
                message.trigger,
                connected=self._story.row.connected_at is not None,
                reason=message.reason,
                detail=message.detail,
                cause=message.cause,
            )

    def _take_report(self, report: CallReport) -> None:
        self._report_due = False
        self._report = report
        self._story.reported(report)
        if self._termination is None:
            self._termination = ending.of_report(report)

    # Actions

    async def _perform(self, action: Action) -> Message | None:
        match action:
            case Action.PLACE:
                return await self._place()
            case Action.ANSWER:
                return await self._answer()
            case Action.ATTACH:
                return await self._attach()
            case Action.BRIDGE:
                return await self._bridge()
            case Action.TEAR_DOWN:
                await self._tear_down()
                return None
            case Action.CLOSE:
                await self._close()
                return None
            case _:
                assert_never(action)

    async def _place(self) -> Message:
        admission = self._admission
        assert isinstance(admission, Admission)
        self._leg_uuid = new_leg_uuid(os.urandom)
        row = self._story.row
        try:
            # Without a subscription Asterisk does not tell when the caller's channel is destroyed, only that it left.
            subscribed = asyncio.ensure_future(self._services.ari.subscribe(self.caller_channel))
            try:
                self._worker = await self._services.leases.acquire(self.call_id)
                created_ms = time.time_ns() // 1_000_000
                seconds = self._services.settings.spec_seconds
                spec = call_spec(row, admission, self._leg_uuid, created_ms, seconds)
                await self._services.present.put_spec(spec)
            finally:
                await asyncio.gather(subscribed, return_exceptions=True)
            subscribed.result()
        except (AriInvalid, AriNotFound):
            # Of a subscription to what does not exist Asterisk makes a 422. The tear-down finds out whether it is so.
            return Message(Trigger.CALLER_GONE, detail="gone before it was answered")
        except TrunkbridgeError as error:
            return Message(Trigger.PLACE_FAILED, detail=str(error), reason=error.reason)
        self._story.update(
            state=State.ANSWERING.value,
            worker_id=self._worker.worker_id,
            leg_uuid=self._leg_uuid,
            caller_channel_id=row.caller_channel_id,
        )
        return Message(Trigger.PLACED, detail=self._worker.worker_id)

    async def _answer(self) -> Message | None:
        try:
            await self._services.ari.answer(self.caller_channel)
        except AriNotFound:
            self._caller_live = False
            return Message(Trigger.CALLER_GONE, detail="gone before it was answered")
        except AriConflict:
            return None  # it has left our application: its event says why, or the set-up's time limit ends the call
        except AriError as error:
            return Message(Trigger.ANSWER_FAILED, detail=str(error))
        self._story.update(state=State.ATTACHING.value, answered_at=now())
        return Message(Trigger.ANSWERED)

    async def _attach(self) -> Message | None:
        worker = self._worker
        assert worker is not None
        assert isinstance(self._admission, Admission)
        host = f"[{worker.host}]" if ":" in worker.host else worker.host
        self._services.register(self.media_channel, self)
        self._media_live = self._report_due = True
        try:
            await self._services.ari.external_media(
                self.media_channel,
                host=f"{host}:{worker.port}",
                leg_uuid=self._leg_uuid,
                media_format=self._admission.media_format.value,
            )
        except (AriMalformed, AriUnavailable) as error:
            return Message(Trigger.MEDIA_FAILED, detail=str(error))  # it may exist: it is torn down
        except AriError as error:
            self._media_live = self._report_due = False
            return Message(Trigger.MEDIA_FAILED, detail=str(error))
        return None  # its StasisStart is what counts

    async def _bridge(self) -> Message | None:
        self._bridged = True
        try:
            await self._services.ari.create_bridge(self.bridge)
            try:
                await self._services.ari.add_to_bridge(self.bridge, self.caller_channel, self.media_channel)
            except (AriConflict, AriInvalid):
                return None  # one of the two is gone: its event says which, or the set-up's time limit ends the call
        except AriError as error:
            return Message(Trigger.BRIDGE_FAILED, detail=str(error))
        self._story.update(state=State.TALKING.value, connected_at=now())
        assert isinstance(self._admission, Admission)
        self._deadline = time.monotonic() + self._admission.route.max_seconds
        return Message(Trigger.BRIDGED)

    async def _tear_down(self) -> None:
        self._deadline = time.monotonic() + END_SECONDS
        cause = self._termination.hangup_cause if self._termination is not None else None
        await asyncio.gather(self._hang_up_caller(cause or int(Cause.NORMAL_CLEARING)), self._hang_up_media())

    async def _hang_up_caller(self, cause: int) -> None:
        if self._caller_live:
            try:
                if not await self._services.ari.hangup(self.caller_channel, cause, missing_ok=True):
                    self._caller_live = False
            except AriError as error:
                self._log.warning("hangup_failed", channel=self.caller_channel, detail=str(error))

    async def _hang_up_media(self) -> None:
        if self._media_live:
            try:
                if not await self._services.ari.hangup(self.media_channel, missing_ok=True):
                    self._media_live = False
            except AriError as error:
                self._log.warning("hangup_failed", channel=self.media_channel, detail=str(error))

    async def _close(self) -> None:
        await self._tidy()
        await self._give_back()

    async def _tidy(self) -> None:
        if self._caller_live or self._media_live:
            self._log.error("channels_left", caller=self._caller_live, media=self._media_live)
            await self._tear_down()  # once more: the first request may be what failed
        if self._bridged and not await self._remove_bridge():
            await self._remove_bridge()

    async def _give_back(self) -> None:
        try:
            await self._services.leases.release(self.call_id)
        except TrunkbridgeError as error:
            self._log.warning("lease_left", detail=f"{error}: it expires by itself")
        while not self._inbox.empty():
            late = self._inbox.get_nowait()
            if isinstance(late, CallReport):
                self._take_report(late)
        termination = self._finish()
        self._story.close(State.ENDED.value, termination)
        self._log.info(
            "call_ended",
            result=termination.result.value,
            reason=termination.reason,
            detail=termination.detail,
            hangup_cause=termination.hangup_cause,
        )

    async def _remove_bridge(self) -> bool:
        try:
            await self._services.ari.destroy_bridge(self.bridge, missing_ok=True)
        except AriError as error:
            self._log.warning("bridge_left", bridge=self.bridge, detail=str(error))
            return False
        return True

    def _finish(self) -> Termination:
        found = self._termination or ending.of_nothing(self._report)
        if found.hangup_cause is None and self._caller_cause is not None:
            return Termination(found.result, found.reason, found.detail, self._caller_cause)
        return found

    async def _contain(self) -> None:
        """A fault of ours must not leave a caller in dead air, nor a lease taken."""
        self.machine = CallMachine(State.ENDED)
        for end in (self._tear_down, self._tidy, self._give_back):
            try:
                await end()
            except Exception:
                self._log.exception("call_not_contained")
        if self._story.row.ended_at is None:
            self._story.close(State.ENDED.value, self._finish())
