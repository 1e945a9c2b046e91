"""What an actor does for its call: one method for each action of the state machine.

Each performs requests to Asterisk, Redis and the leases, and gives the trigger that their outcome is, or None when an
event is to come. What of the call lives in Asterisk is kept here: a channel counts as alive until Asterisk says that it
is destroyed. The media legs have a module of their own (`ari_app.controller.media_legs`).
"""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING

import structlog
from msgspec.structs import replace

from ari_app.ari.errors import AriConflict, AriError, AriInvalid, AriMalformed, AriNotFound, AriUnavailable
from ari_app.call.ending import GONE_UNSEEN
from ari_app.call.fork import said
from ari_app.call.full import line_max
from ari_app.call.machine import AWAY, State, Trigger
from ari_app.call.onward import Onward
from ari_app.call.routing import Admission
from ari_app.controller.media_legs import MediaLegs
from ari_app.controller.messages import Message
from ari_app.controller.services import Services
from ari_app.controller.spec import call_spec
from ari_app.controller.story import Story, now
from ari_app.domain.hangup import Cause
from ari_app.domain.ids import (
    BridgeId,
    CallId,
    ChannelId,
    bridge_id,
    new_leg_uuid,
    snoop_channel_id,
)
from ari_app.domain.termination import Termination
from ari_app.errors import NoCapacity, NotTaken, TrunkbridgeError
from ari_app.fleet.direct import SILENT

if TYPE_CHECKING:
    from ari_app.controller.actor import CallActor

SILENT_WORKERS = 3
"""After so many that do not answer a call is refused: this host is cut off, and each of them has taken a second."""

log = structlog.get_logger(__name__)


class CallActions:
    """The means of one call: its channels, its bridge, its worker."""

    def __init__(
        self, services: Services, story: Story, caller_channel: ChannelId, state: State, *, forks: bool
    ) -> None:
        call_id = CallId(story.row.call_id)
        self.caller_channel = caller_channel
        self.legs = MediaLegs(services, story, state, forks=forks)
        self.snoop_channel: ChannelId = snoop_channel_id(services.node, call_id)
        self.bridge: BridgeId = bridge_id(services.node, call_id)
        self.caller_live = True
        self.snoop_live = False
        self.listening = False
        """The caller's snoop and the media are bridged."""
        self.lease_token = 0
        """Of the lease that the call has; 0: not known, as of a call that was adopted."""
        self.lease_returned = False
        self.bridged = self.legs.started
        """The bridge may be there: removing one that is not is harmless."""
        self._subscribed = False
        self._forks = forks
        self._services = services
        self._story = story
        self._log = log.bind(call_id=call_id, trunk=story.row.trunk or "")

    def adopt(self, state: State, caller_live: bool, media_live: bool, snoop_live: bool) -> None:
        """Takes over what an earlier controller has set up of a call in `state`."""
        self.caller_live = caller_live
        self.legs.adopt(state, live=media_live)
        self.snoop_live = snoop_live
        self.bridged = True
        if state in AWAY:
            self.lease_returned = state is State.PARTED

    def destroyed(self, channel: ChannelId | None) -> None:
        """One of the channels is gone for good."""
        self.legs.destroyed(channel)
        self.caller_live = self.caller_live and channel != self.caller_channel
        self.snoop_live = self.snoop_live and channel != self.snoop_channel

    def awaits(self, state: State) -> bool:
        """Whether something has yet to go before a call is over, or a fork's stream; true in all other states."""
        stream = self.legs.live or self.snoop_live or self.legs.report_due or bool(self.legs.earlier)
        match state:
            case State.ENDING:
                return self.caller_live or stream
            case State.UNFORKING:
                return stream
            case _:
                return True

    async def place(self, admission: Admission) -> Message:
        """Takes a lease and writes the call spec."""
        self.legs.leg_uuid = new_leg_uuid(os.urandom)
        row = self._story.row
        try:
            subscribed = asyncio.ensure_future(self._subscribe())
            try:
                await self._place(admission)
            finally:
                await asyncio.gather(subscribed, return_exceptions=True)
            subscribed.result()
        except (AriInvalid, AriNotFound):
            # Of a subscription to what does not exist Asterisk makes a 422. The tear-down finds out whether it is so.
            return Message(Trigger.CALLER_GONE, detail="gone before it was answered")
        except NoCapacity as error:
            return Message(Trigger.PLACE_FAILED, detail=str(error), reason=error.reason, place=error.place)
        except TrunkbridgeError as error:
            return Message(Trigger.PLACE_FAILED, detail=str(error), reason=error.reason)
        assert self.legs.worker is not None
        self._story.update(
            state=(State.RINGING if admission.held else State.ANSWERING).value,
            worker_id=self.legs.worker.worker_id,
            leg_uuid=self.legs.leg_uuid,
            caller_channel_id=row.caller_channel_id,
        )
        placed = Trigger.PLACED_HELD if admission.held else Trigger.PLACED
        return Message(placed, detail=self.legs.worker.worker_id)

    async def _subscribe(self) -> None:
        # Without it Asterisk does not tell when the caller's channel is destroyed, only that it left.
        if not self._subscribed:
            await self._services.ari.subscribe(self.caller_channel)
            self._subscribed = True

    async def _place(self, admission: Admission) -> None:
        row, services = self._story.row, self._services
        limit, refused = admission.application.limit, list[str]()
        gone = services.still_gone(await services.present.workers()) if services.gone else set[str]()
        silent = 0
        while True:
            lease = await services.leases.acquire(
                row.call_id,
                application=admission.application_name,
                limit=limit.calls,
                line_max=line_max(limit),
                exclude=(*gone, *refused),
            )
            self.legs.worker, self.lease_token = lease.worker, lease.token
            created_ms, seconds = time.time_ns() // 1_000_000, services.settings.spec_seconds
            applications = services.applications
            spec = call_spec(row, admission, self.legs.leg_uuid, created_ms, seconds, applications, os.urandom)
            hold_seconds = 0.0 if self._forks else services.settings.leg_hold_seconds
            try:
                return await services.present.put_spec(
                    replace(spec, leg_hold_seconds=hold_seconds, lease_token=lease.token)
                )
            except NotTaken as error:
                self._log.warning("call_not_taken", worker=lease.worker.worker_id, why=error.reason)
                refused.append(lease.worker.worker_id)
                silent += error.reason == SILENT
                if silent >= SILENT_WORKERS:
                    raise NoCapacity("no_workers", f"{silent} do not answer: {error}") from error

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
        if self.legs.started and not self._forks:
            self._connected(answered_at=now())
        else:
            state = State.BRIDGING if self.legs.started else State.ATTACHING
            self._story.update(state=state.value, answered_at=now())
        return Message(Trigger.ANSWERED)

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

    async def join(self) -> Message | None:
        """Puts media and caller, or the channel that listens to him, into a bridge. A caller who has not been answered
        hears his ringing there: Asterisk sends him no audio before the answer."""
        before, self.bridged = self.bridged, True
        beside_media = self.snoop_channel if self._forks else self.caller_channel
        try:
            try:
                await self._services.ari.create_bridge(self.bridge)
            except AriConflict:
                if not before:
                    raise
            try:
                await self._services.ari.add_to_bridge(self.bridge, beside_media, self.legs.channel)
            except (AriConflict, AriInvalid):
                if self._forks:
                    raise
                return None  # one of the two is gone: its event says which, or the set-up's time limit ends the call
        except AriError as error:
            return Message(Trigger.BRIDGE_FAILED, detail=str(error))
        if self._forks:
            self.listening = True
            return Message(Trigger.BRIDGED)
        if self._story.row.answered_at is not None:
            self._connected()
        return Message(Trigger.BRIDGED)

    async def rejoin(self) -> Message | None:
        """Puts the media channel into the bridge in which the caller waits."""
        try:
            await self._services.ari.add_to_bridge(self.bridge, self.legs.channel)
        except (AriConflict, AriInvalid):
            return None  # one of the two is gone: its event says which, or the time limit
        except AriError as error:
            return Message(Trigger.BRIDGE_FAILED, detail=str(error))
        self.legs.replacements.carries(time.monotonic())
        return Message(Trigger.BRIDGED)

    async def mend_bridge(self) -> Message | None:
        """Puts into the bridge what an earlier controller has made for it and left beside it."""
        beside_media = self.snoop_channel if self._forks else self.caller_channel
        try:
            with suppress(AriConflict):  # it is there
                await self._services.ari.create_bridge(self.bridge)
            await self._services.ari.add_to_bridge(self.bridge, beside_media, self.legs.channel)
        except (AriConflict, AriInvalid):
            return None  # one of the two is gone: its event says which
        except AriError as error:
            return Message(Trigger.MEDIA_GONE, detail=f"not put into the bridge again: {error}")
        self._story.event("bridge_mended")
        return None

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
        await asyncio.gather(self._hang_up_snoop(), self.legs.hang_up())

    async def give_stream_back(self, failure: Termination | None) -> None:
        """Gives back what the stream held, while the caller goes on; the record says how the stream has failed."""
        self.legs.report_due = False
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
            (self.legs.channel, self.legs.live, Trigger.MEDIA_GONE),
            (self.snoop_channel, self.snoop_live, Trigger.SNOOP_GONE),
            *((channel, True, Trigger.MEDIA_GONE) for channel in sorted(self.legs.earlier)),
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
        await asyncio.gather(self._hang_up_caller(cause), self.legs.hang_up(), self._hang_up_snoop())

    async def tidy(self, cause: int) -> None:
        """Removes what is left in Asterisk."""
        if self.caller_live or self.legs.live or self.snoop_live or self.legs.earlier:
            self._log.error("channels_left", caller=self.caller_live, media=self.legs.live, snoop=self.snoop_live)
            await self.tear_down(cause)  # once more: the first request may be what failed
            live = [(self.caller_channel, self.caller_live), (self.snoop_channel, self.snoop_live)]
            live += [(self.legs.channel, self.legs.live), *((channel, True) for channel in self.legs.earlier)]
            for channel in [channel for channel, lives in live if lives]:
                is_caller = channel == self.caller_channel
                self._services.leftovers.hang_up(channel, cause if is_caller else int(Cause.NORMAL_CLEARING))
        await self.remove_bridge()
        if self.bridged:
            self._services.leftovers.remove_bridge(self.bridge)

    async def remove_bridge(self) -> None:
        """Removes the bridge, if it may be there."""
        if self.bridged and not await self._remove_bridge():
            await self._remove_bridge()

    async def give_lease_back(self) -> None:
        """Gives the lease back, once; one that cannot be expires by itself."""
        if self.lease_returned:
            return
        try:
            await self._services.leases.release(self._story.row.call_id, self.lease_token)
        except TrunkbridgeError as error:
            self._log.warning("lease_left", detail=f"{error}: it expires by itself")
        self.lease_returned = True

    def _connected(self, **more: datetime) -> None:
        self._story.update(state=State.TALKING.value, connected_at=now(), **more)
        self.legs.replacements.carries(time.monotonic())

    def _caller_gone(self) -> Message:
        self.caller_live = False
        return Message(Trigger.CALLER_GONE, detail="gone meanwhile")

    async def _hang_up_caller(self, cause: int) -> None:
        if self.caller_live:
            try:
                if not await self._services.hang_up(self.caller_channel, cause):
                    self.caller_live = False
            except AriError as error:
                self._log.warning("hangup_failed", channel=self.caller_channel, detail=str(error))

    async def _hang_up_snoop(self) -> None:
        if self.snoop_live:
            try:
                if not await self._services.hang_up(self.snoop_channel):
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
