"""What Asterisk has, compared with what is known of the calls: on every (re)connection, since missed events never come.

Calls outlive a controller: those that an earlier one left open are adopted. What is ours in Asterisk and belongs to no
call is ended.
"""

from __future__ import annotations

import asyncio

import structlog

from ari_app.ari.client import AriClient
from ari_app.ari.errors import AriError
from ari_app.ari.models import Channel
from ari_app.call.ending import OUR_FAULT
from ari_app.call.fork import fork_place
from ari_app.call.machine import AWAY, State, Trigger
from ari_app.call.routing import Router
from ari_app.controller.live_calls import LiveCalls
from ari_app.controller.messages import Message
from ari_app.domain.ids import ChannelId, Kind, last_legs, parse
from ari_app.errors import StoreUnavailable
from ari_app.settings import Config
from ari_app.store.calls import CallStore
from ari_app.store.records import CallRow

ORPHAN_SECONDS = 2.0
ROUTELESS_SECONDS = 3600
"""How long a call may take whose route is not in the configuration any more."""

_STATES = {state.value: state for state in State}

log = structlog.get_logger(__name__)


class Reconciliation:
    """Compares, adopts and ends, for one PBX node."""

    def __init__(self, config: Config, ari: AriClient, calls: CallStore, router: Router, live: LiveCalls) -> None:
        self._config = config
        self._ari = ari
        self._calls = calls
        self._router = router
        self._live = live
        self._adopted = False

    async def reconcile(self, reason: str) -> None:
        """Compares once; calls whose caller has gone end for `reason`. Raises `AriError`."""
        # Media that is being created right now may be missing from the list without being gone.
        started = {actor.call_id for actor in self._live.actors.values() if actor.media_started}
        snooping = {actor.call_id for actor in self._live.actors.values() if actor.machine.state is State.FORKED}
        channels = {channel.id: channel for channel in await self._ari.list_channels()}
        if not self._adopted:
            await self._adopt(channels)
        for actor in list(self._live.actors.values()):
            if actor.caller_channel not in channels:
                actor.tell(Message(Trigger.CALLER_GONE, reason=reason, destroyed=actor.caller_channel))
            if actor.call_id in started and actor.media_channel not in channels:
                media = actor.media_channel
                actor.tell(Message(Trigger.MEDIA_GONE, destroyed=media, media=media))
            if actor.call_id in snooping and actor.snoop_channel not in channels:
                actor.tell(Message(Trigger.SNOOP_GONE, destroyed=actor.snoop_channel))
        if self._adopted:  # otherwise what belongs to no call may be a call
            self._live.spawn(self._end_orphans(set(channels)))
        log.info("reconciled", calls=len(self._live.actors), channels=len(channels))

    async def end_channel(self, channel: Channel, why: str) -> None:
        """Hangs up what has no business in our application."""
        log.warning("channel_ended", channel=channel.name, why=why)
        try:
            await self._ari.hangup(channel.id, OUR_FAULT, missing_ok=True)
        except AriError as error:
            log.warning("hangup_failed", channel=channel.name, detail=str(error))

    async def _end_orphans(self, listed: set[ChannelId]) -> None:
        """Ends what is ours in Asterisk and belongs to no call.

        Not at once: of a call that arrived during the reconciliation, the event is still on its way to us.
        """
        await asyncio.sleep(ORPHAN_SECONDS)
        try:
            for channel in await self._ari.list_channels():
                if channel.id in listed and channel.id not in self._live.by_channel and self._is_ours(channel):
                    await self.end_channel(channel, "belongs to no call")
            for bridge in await self._ari.list_bridges():
                ours = parse(bridge.id)
                if ours is not None and ours.node == self._config.node and ours.call_id not in self._live.actors:
                    await self._ari.destroy_bridge(bridge.id, missing_ok=True)
        except AriError as error:
            log.warning("orphans_not_ended", detail=f"{error}: tried again after the next reconnection")

    async def _adopt(self, channels: dict[ChannelId, Channel]) -> None:
        """Takes over the calls that an earlier controller of this node left open in the records."""
        try:
            rows = await self._calls.open_calls(self._config.node)
        except StoreUnavailable as error:
            log.error("calls_not_adopted", detail=str(error))
            return
        self._adopted = True
        legs = last_legs(channels)
        for row in rows:
            if row.call_id in self._live.actors:
                continue
            caller = ChannelId(row.caller_channel_id or "")
            channel = channels.get(caller)
            # A caller who was handed to the dialplan is not ours to end, and ours to watch only while his call forks.
            caller_here = channel is not None and self._is_ours(channel)
            state = self._adopted_state(row, in_dialplan=channel is not None and not caller_here)
            actor = self._live.start(row, caller, None, state)
            actor.know_leg(legs.get(actor.call_id))
            for ours in (actor.media_channel, actor.snoop_channel):
                self._live.register(ours, actor)
            if row.state != State.TALKING.value and caller_here:
                # Before the adoption looks for the media: that there is none yet is not why the call ends.
                why = "the controller was restarted while the call was set up or ended"
                actor.tell(Message(Trigger.HANGUP_ORDERED, detail=why, reason="controller_restarted"))
            route = self._router.find(row.trunk or "", row.callee or "")
            seconds = ROUTELESS_SECONDS if route is None else route.max_seconds
            caller_live = caller_here or (channel is not None and state in AWAY)
            media, snoop_live = channels.get(actor.media_channel), actor.snoop_channel in channels
            by_rtp = media is not None and media.name.startswith("UnicastRTP/")
            actor.adopt(seconds, caller_live, media is not None, snoop_live, by_rtp)

    def _adopted_state(self, row: CallRow, *, in_dialplan: bool) -> State:
        """The state that a call is adopted in. The record of a fork may be older than its caller's going on."""
        state = _STATES.get(row.state, State.NEW)
        if state in AWAY or (in_dialplan and fork_place(row.application or "", self._config.applications) is not None):
            return state if state is State.PARTED else State.FORKED
        return State.TALKING if state in (State.NEW, State.ENDING) else state

    def _is_ours(self, channel: Channel) -> bool:
        ours = parse(channel.id)
        if ours is not None:
            return ours.node == self._config.node and ours.kind in (Kind.MEDIA, Kind.SNOOP)
        app = self._config.asterisk.app
        return channel.dialplan.app_name == "Stasis" and channel.dialplan.app_data.split(",")[0] == app
