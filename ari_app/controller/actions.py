"""What an actor does for its call: one method for each action of the state machine.

Each performs requests to Asterisk, Redis and the leases, and gives the trigger that their outcome is, or None when an
event is to come. What of the call lives in Asterisk is kept here: a channel counts as alive until Asterisk says that it
is destroyed.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog
from msgspec.structs import replace

from ari_app.applications import ApplicationSettings
from ari_app.ari.client import AriClient
from ari_app.ari.errors import AriConflict, AriError, AriInvalid, AriMalformed, AriNotFound, AriUnavailable
from ari_app.ari.models import Channel
from ari_app.call.ending import GONE_UNSEEN
from ari_app.call.fork import said
from ari_app.call.machine import AWAY, State, Trigger
from ari_app.call.onward import Onward
from ari_app.call.replacing import Replacements
from ari_app.call.routing import Admission
from ari_app.controller.rtp_leg import RtpLeg
from ari_app.controller.spec import call_spec
from ari_app.controller.story import Story, now
from ari_app.domain.ids import (
    BridgeId,
    CallId,
    ChannelId,
    LegUuid,
    bridge_id,
    media_channel_id,
    new_leg_uuid,
    snoop_channel_id,
)
from ari_app.domain.termination import Termination
from ari_app.errors import StoreUnavailable, TrunkbridgeError
from ari_app.fleet.leases import Leases
from ari_app.settings import ControllerSettings
from ari_app.store.present import Present
from audiosocket.callspec import LegOrder, MediaFormat, WorkerInfo

if TYPE_CHECKING:
    from ari_app.controller.actor import CallActor

TELL_SECONDS = 0.05
"""How long a media channel is kept for its worker to be told that the call is over."""
_HAS_MEDIA = frozenset({State.AWAITING, State.PICKING_UP, State.FORKING, State.BRIDGING, State.TALKING}) | AWAY

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
    media: ChannelId | None = None
    """The media channel that this is about, which may be that of an earlier leg; None: it is about no certain one."""


@dataclass(frozen=True, slots=True)
class Services:
    """What actors work with; one for all of them."""

    node: str
    ari: AriClient
    leases: Leases
    present: Present
    settings: ControllerSettings
    applications: Mapping[str, ApplicationSettings]
    register: Callable[[ChannelId, CallActor], None]
    """Makes events of a channel reach the actor, from before the channel is created."""


class CallActions:
    """The means of one call: its channels, its bridge, its worker."""

    def __init__(
        self, services: Services, story: Story, caller_channel: ChannelId, state: State, *, forks: bool
    ) -> None:
        call_id = CallId(story.row.call_id)
        self.caller_channel = caller_channel
        self.media_channel: ChannelId = media_channel_id(services.node, call_id, 0)
        self.earlier_media: set[ChannelId] = set()
        """Media channels of lost legs that live, to our knowledge."""
        self.replacements = Replacements(0.0 if forks else services.settings.leg_hold_seconds)
        self.snoop_channel: ChannelId = snoop_channel_id(services.node, call_id)
        self.bridge: BridgeId = bridge_id(services.node, call_id)
        self.media_started = state in _HAS_MEDIA
        self.caller_live = True
        self.media_live = self.media_started
        self.report_due = self.media_started
        self.snoop_live = False
        self.listening = False
        """The caller's snoop and the media are bridged."""
        self.lease_returned = False
        self.bridged = self.media_started
        """The bridge may be there: removing one that is not is harmless."""
        self._forks = forks
        self.by_websocket = False
        self.rtp_leg = RtpLeg(call_id, self._send_order, lambda: self._leg_uuid)
        self._services = services
        self._story = story
        self._worker: WorkerInfo | None = None
        self._leg_uuid = LegUuid(story.row.leg_uuid or "")
        self._log = log.bind(call_id=call_id, trunk=story.row.trunk or "")

    def adopt(self, state: State, caller_live: bool, media_live: bool, snoop_live: bool) -> None:
        """Takes over what an earlier controller has set up of a call in `state`."""
        row = self._story.row
        self.caller_live = caller_live
        self.media_live = self.media_started = media_live
        self.snoop_live = snoop_live
        # Why media went while nobody ran is told by the worker's report, which waits to be read.
        self.report_due = media_live or row.connected_at is not None
        self.bridged = True
        if state in AWAY:
            self.lease_returned = state is State.PARTED
            self.report_due = media_live or (state is not State.PARTED and row.media is None)

    def destroyed(self, channel: ChannelId | None) -> None:
        """One of the channels is gone for good."""
        if channel is not None:
            self.earlier_media.discard(channel)
        self.caller_live = self.caller_live and channel != self.caller_channel
        self.media_live = self.media_live and channel != self.media_channel
        self.snoop_live = self.snoop_live and channel != self.snoop_channel

    def unconnected(self, message: Message, state: State) -> Message:
        """The message, or that media has failed, where it tells that Asterisk could not connect a WebSocket leg."""
        if (
            message.destroyed != self.media_channel
            or not self.by_websocket
            or self.media_started
            or state not in (State.ATTACHING, State.RINGING)
        ):
            return message
        self.report_due = False
        return Message(Trigger.MEDIA_FAILED, detail="Asterisk could not connect a WebSocket to the worker")

    def awaits(self, state: State) -> bool:
        """Whether something has yet to go before a call is over, or a fork's stream; true in all other states."""
        stream = self.media_live or self.snoop_live or self.report_due or bool(self.earlier_media)
        match state:
            case State.ENDING:
                return self.caller_live or stream
            case State.UNFORKING:
                return stream
            case _:
                return True

    async def place(self, admission: Admission) -> Message:
        """Takes a lease and writes the call spec."""
        self._leg_uuid = new_leg_uuid(os.urandom)
        row = self._story.row
        try:
            # Without a subscription Asterisk does not tell when the caller's channel is destroyed, only that it left.
            subscribed = asyncio.ensure_future(self._services.ari.subscribe(self.caller_channel))
            try:
                self._worker = await self._services.leases.acquire(CallId(row.call_id))
                created_ms = time.time_ns() // 1_000_000
                seconds = self._services.settings.spec_seconds
                applications = self._services.applications
                spec = call_spec(row, admission, self._leg_uuid, created_ms, seconds, applications, os.urandom)
                hold_seconds = 0.0 if self._forks else self._services.settings.leg_hold_seconds
                await self._services.present.put_spec(replace(spec, leg_hold_seconds=hold_seconds))
            finally:
                await asyncio.gather(subscribed, return_exceptions=True)
            subscribed.result()
        except (AriInvalid, AriNotFound):
            # Of a subscription to what does not exist Asterisk makes a 422. The tear-down finds out whether it is so.
            return Message(Trigger.CALLER_GONE, detail="gone before it was answered")
        except TrunkbridgeError as error:
            return Message(Trigger.PLACE_FAILED, detail=str(error), reason=error.reason)
        self._story.update(
            state=(State.RINGING if admission.held else State.ANSWERING).value,
            worker_id=self._worker.worker_id,
            leg_uuid=self._leg_uuid,
            caller_channel_id=row.caller_channel_id,
        )
        placed = Trigger.PLACED_HELD if admission.held else Trigger.PLACED
        return Message(placed, detail=self._worker.worker_id)

    async def ring(self) -> Message | None:
        """Lets the caller hear ringing. A call that does not ring is no worse for it."""
        try:
            await self._services.ari.ring(self.caller_channel)
        except AriNotFound:
            return self._caller_gone()
        except AriError as error:
            self._log.warning("not_ringing", detail=str(error))
        return None

    async def answer(self) -> Message | None:
        """Answers the caller."""
        try:
            await self._services.ari.answer(self.caller_channel)
        except AriNotFound:
            return self._caller_gone()
        except AriConflict:
            return None  # it has left our application: its event says why, or the set-up's time limit ends the call
        except AriError as error:
            return Message(Trigger.ANSWER_FAILED, detail=str(error))
        state = State.BRIDGING if self.media_started else State.ATTACHING
        self._story.update(state=state.value, answered_at=now())
        return Message(Trigger.ANSWERED)

    async def attach(
        self, actor: CallActor, media_format: MediaFormat, leg_uuid: LegUuid | None = None
    ) -> Message | None:
        """Creates the media channel: RTP where the worker takes it and the format is G.711, a WebSocket where it
        takes that, otherwise AudioSocket.

        `leg_uuid`: of a further leg than the call's first.
        """
        leg_uuid = leg_uuid or self._leg_uuid
        worker = self._worker
        assert worker is not None
        host = f"[{worker.host}]" if ":" in worker.host else worker.host
        self._services.register(self.media_channel, actor)
        self.media_live = self.report_due = True
        by_rtp = self.rtp_leg.choose(worker, media_format)
        ari = self._services.ari
        create: Callable[..., Awaitable[Channel | tuple[Channel, str]]]
        if by_rtp:
            port, create = worker.rtp_port, ari.external_rtp
        elif worker.websocket_port:
            self.by_websocket = True
            port, create = worker.websocket_port, ari.external_websocket
        else:
            port, create = worker.port, ari.external_media
        try:
            created = await create(
                self.media_channel, host=f"{host}:{port}", leg_uuid=leg_uuid, media_format=media_format.value
            )
        except (AriMalformed, AriUnavailable) as error:
            self.report_due = not by_rtp
            return Message(Trigger.MEDIA_FAILED, detail=str(error))  # it may exist: it is torn down
        except AriError as error:
            self.media_live = self.report_due = False
            return Message(Trigger.MEDIA_FAILED, detail=str(error))
        if isinstance(created, tuple):
            return await self._open_leg(leg_uuid, created[1], media_format)
        return None  # its StasisStart is what counts

    async def snoop(self, actor: CallActor) -> Message | None:
        """Creates the channel that listens to the caller."""
        self._services.register(self.snoop_channel, actor)
        self.snoop_live = True
        try:
            await self._services.ari.snoop(self.caller_channel, self.snoop_channel)
        except AriNotFound:
            self.snoop_live = False
            return self._caller_gone()
        except (AriMalformed, AriUnavailable) as error:
            return Message(Trigger.SNOOP_FAILED, detail=str(error))  # it may exist: it is hung up
        except AriError as error:
            self.snoop_live = False
            return Message(Trigger.SNOOP_FAILED, detail=str(error))
        return None  # its StasisStart is what counts

    async def _open_leg(self, leg_uuid: LegUuid, remote: str, media_format: MediaFormat) -> Message | None:
        try:
            if await self.rtp_leg.open(leg_uuid, remote, media_format):
                return None  # its notice that the leg is open is what counts
        except StoreUnavailable as error:
            return Message(Trigger.MEDIA_FAILED, detail=str(error))  # it may have heard
        self.report_due = False
        return Message(Trigger.MEDIA_FAILED, detail="the worker does not hear orders")

    async def end_leg(self) -> None:
        """Tells the worker that the call is over, where it does not learn that from the leg's end."""
        if self.report_due and (self.rtp_leg.used or self.replacements.holds):
            await self.rtp_leg.end()

    async def _send_order(self, order: LegOrder) -> bool:
        return await self._services.present.send_order(self._story.row.worker_id or "", order)

    async def join(self) -> Message | None:
        """Puts media and caller, or the channel that listens to him, into a bridge."""
        self.bridged = True
        beside_media = self.snoop_channel if self._forks else self.caller_channel
        try:
            await self._services.ari.create_bridge(self.bridge)
            try:
                await self._services.ari.add_to_bridge(self.bridge, beside_media, self.media_channel)
            except (AriConflict, AriInvalid):
                if self._forks:
                    raise
                return None  # one of the two is gone: its event says which, or the set-up's time limit ends the call
        except AriError as error:
            return Message(Trigger.BRIDGE_FAILED, detail=str(error))
        if self._forks:
            self.listening = True
            return Message(Trigger.BRIDGED)
        self._story.update(state=State.TALKING.value, connected_at=now())
        self.replacements.carries(time.monotonic())
        return Message(Trigger.BRIDGED)

    async def release(self) -> None:
        """Tells the worker of a held leg that the caller is there; his first audio would tell it too."""
        try:
            await self._send_order(LegOrder(leg_uuid=self._leg_uuid, order="release"))
        except StoreUnavailable as error:
            self._log.warning("release_not_sent", worker=self._story.row.worker_id, detail=str(error))

    async def go_on(self, place: Onward) -> Message:
        """Hands the caller to the dialplan, where he is nobody's here any more, unless his call forks."""
        try:
            if place.variables:
                await self._services.ari.set_variables(self.caller_channel, place.variables)
            await self._services.ari.continue_in_dialplan(
                self.caller_channel, context=place.context, extension=place.extension
            )
        except AriNotFound:
            return self._caller_gone()
        except AriConflict as error:
            return Message(Trigger.CALLER_GONE, detail=f"it has left our application: {error}")
        except AriError as error:
            return Message(Trigger.CONTINUE_FAILED, detail=str(error))
        if not self._forks:
            self.caller_live = False
            return Message(Trigger.CONTINUED, detail=place.where)
        connected_at = now() if self.listening else None
        self._story.update(state=State.FORKED.value, connected_at=connected_at, detail=said(place))
        return Message(Trigger.CONTINUED if self.listening else Trigger.CONTINUED_ALONE, detail=place.where)

    async def watch(self) -> Message | None:
        """Has Asterisk tell of a caller in the dialplan again, to another controller than the one that asked first."""
        try:
            await self._services.ari.subscribe(self.caller_channel)
        except (AriInvalid, AriNotFound):
            return Message(Trigger.CALLER_GONE, reason=GONE_UNSEEN, destroyed=self.caller_channel)
        except AriError as error:
            self._log.warning("caller_not_watched", detail=str(error))
        return None

    async def detach(self) -> None:
        """Hangs up what lives of the stream."""
        await asyncio.gather(self._hang_up_snoop(), self._hang_up_media())

    async def give_stream_back(self, failure: Termination | None) -> None:
        """Gives back what the stream held, while the caller goes on; the record says how the stream has failed."""
        self.report_due = False
        await self.remove_bridge()
        await self.give_lease_back()
        if failure is None:
            self._story.update(state=State.PARTED.value)
        else:
            reason, detail = failure.reason, failure.detail
            self._story.update(state=State.PARTED.value, result=failure.result.value, reason=reason, detail=detail)

    async def send_digits(self, digits: str) -> None:
        """Sends digits to the caller."""
        try:
            await self._services.ari.send_dtmf(self.caller_channel, digits)
        except AriError as error:
            self._log.warning("digits_not_sent", count=len(digits), detail=str(error))

    async def look(self) -> list[Message]:
        """Which of the channels that live to our knowledge are gone."""
        gone = []
        for channel, live, trigger in (
            (self.caller_channel, self.caller_live, Trigger.CALLER_GONE),
            (self.media_channel, self.media_live, Trigger.MEDIA_GONE),
            (self.snoop_channel, self.snoop_live, Trigger.SNOOP_GONE),
            *((channel, True, Trigger.MEDIA_GONE) for channel in sorted(self.earlier_media)),
        ):
            try:
                if live:
                    await self._services.ari.get_channel(channel)
            except AriNotFound:
                media = channel if trigger is Trigger.MEDIA_GONE else None
                gone.append(Message(trigger, destroyed=channel, media=media))
            except AriError as error:
                self._log.warning("channel_not_looked_at", channel=channel, detail=str(error))
        return gone

    async def tear_down(self, cause: int) -> None:
        """Hangs up what lives; the caller with this Q.850 cause."""
        await asyncio.gather(self._hang_up_caller(cause), self._hang_up_media(), self._hang_up_snoop())

    async def tidy(self, cause: int) -> None:
        """Removes what is left in Asterisk."""
        if self.caller_live or self.media_live or self.snoop_live or self.earlier_media:
            self._log.error("channels_left", caller=self.caller_live, media=self.media_live, snoop=self.snoop_live)
            await self.tear_down(cause)  # once more: the first request may be what failed
        await self.remove_bridge()

    async def remove_bridge(self) -> None:
        """Removes the bridge, if it may be there."""
        if self.bridged and not await self._remove_bridge():
            await self._remove_bridge()

    async def give_lease_back(self) -> None:
        """Gives the lease back, once; one that cannot be expires by itself."""
        if self.lease_returned:
            return
        try:
            await self._services.leases.release(CallId(self._story.row.call_id))
        except TrunkbridgeError as error:
            self._log.warning("lease_left", detail=f"{error}: it expires by itself")
        self.lease_returned = True

    def _caller_gone(self) -> Message:
        self.caller_live = False
        return Message(Trigger.CALLER_GONE, detail="gone meanwhile")

    async def _hang_up_caller(self, cause: int) -> None:
        if self.caller_live:
            try:
                if not await self._services.ari.hangup(self.caller_channel, cause, missing_ok=True):
                    self.caller_live = False
            except AriError as error:
                self._log.warning("hangup_failed", channel=self.caller_channel, detail=str(error))

    async def _hang_up_media(self) -> None:
        told = asyncio.ensure_future(self.end_leg())
        await asyncio.gather(told, self._hang_up_legs(told))

    async def _hang_up_legs(self, told: asyncio.Future[None]) -> None:
        # The worker hears of the end before it sees the leg go; but no leg waits for a Redis that does not answer.
        await asyncio.wait((told,), timeout=TELL_SECONDS)
        if self.media_live:
            try:
                if not await self._services.ari.hangup(self.media_channel, missing_ok=True):
                    self.media_live = False
            except AriError as error:
                self._log.warning("hangup_failed", channel=self.media_channel, detail=str(error))
        await self._hang_up_earlier()

    async def _hang_up_earlier(self) -> None:
        for channel in sorted(self.earlier_media):
            try:
                if not await self._services.ari.hangup(channel, missing_ok=True):
                    self.earlier_media.discard(channel)
            except AriError as error:
                self._log.warning("hangup_failed", channel=channel, detail=str(error))

    async def _hang_up_snoop(self) -> None:
        if self.snoop_live:
            try:
                if not await self._services.ari.hangup(self.snoop_channel, missing_ok=True):
                    self.snoop_live = False
            except AriError as error:
                self._log.warning("hangup_failed", channel=self.snoop_channel, detail=str(error))

    async def _remove_bridge(self) -> bool:
        try:
            await self._services.ari.destroy_bridge(self.bridge, missing_ok=True)
        except AriError as error:
            self._log.warning("bridge_left", bridge=self.bridge, detail=str(error))
            return False
        self.bridged = False
        return True
