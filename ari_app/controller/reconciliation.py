"""What Asterisk has, compared with what is known of the calls: on every (re)connection, since missed events never come.

Calls outlive a controller: those that an earlier one left open in the records are adopted. While PostgreSQL does not
tell which these are, it is asked again and again; new calls are served meanwhile, and nothing is ended that may be a
call. What is ours in Asterisk and belongs to no call is ended after that.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from datetime import timedelta

import structlog

from ari_app.ari.client import AriClient
from ari_app.ari.errors import AriError
from ari_app.ari.models import Bridge, Channel
from ari_app.call.ending import GONE_UNSEEN, OUR_FAULT
from ari_app.call.fork import fork_place
from ari_app.call.machine import AWAY, State, Trigger
from ari_app.call.routing import Router
from ari_app.controller.actor import CallActor
from ari_app.controller.live_calls import LiveCalls
from ari_app.controller.messages import Message
from ari_app.controller.story import from_ms
from ari_app.domain.ids import BridgeId, CallId, ChannelId, Kind, bridge_id, last_legs, parse
from ari_app.errors import StoreUnavailable
from ari_app.settings import Config
from ari_app.store.calls import CallStore
from ari_app.store.records import CallRow

ORPHAN_SECONDS = 2.0
ADOPT_FIRST_SECONDS = 1.0
"""How long new calls wait for those of an earlier controller to be known: some ms, where PostgreSQL answers."""
ADOPT_PAUSE_SECONDS = 2.0
"""The longest pause before PostgreSQL is asked again."""
ROUTELESS_SECONDS = 14400
"""How long a call may take whose route is not in the configuration any more."""

_STATES = {state.value: state for state in State}

log = structlog.get_logger(__name__)


class Reconciliation:
    """Compares, adopts and ends, for one PBX node."""

    def __init__(
        self,
        config: Config,
        ari: AriClient,
        calls: CallStore,
        router: Router,
        live: LiveCalls,
        arrive: Callable[[Channel, str, str, str], None],
    ) -> None:
        """`arrive` begins the call of a caller's channel, from a line to a number; or refuses it, for a reason."""
        self._config = config
        self._ari = ari
        self._calls = calls
        self._router = router
        self._live = live
        self._arrive = arrive
        self._adoption: asyncio.Task[None] | None = None
        self._late = False
        self.adopted = asyncio.Event()
        """Set when the calls of earlier controllers are known."""
        self.done = 0
        """How often Asterisk was compared with the calls."""

    async def reconcile(self, reason: str) -> None:
        """Compares once; calls whose caller has gone end for `reason`. Raises `AriError`."""
        if not self.adopted.is_set():
            self._adoption = self._adoption or self._live.spawn(self._adopt_until_done())
            await asyncio.wait((self._adoption,), timeout=ADOPT_FIRST_SECONDS)
            self._late = not self.adopted.is_set()
        await self._compare(reason, list(self._live.actors.values()))

    async def _adopt_until_done(self) -> None:
        told = False
        while True:
            try:
                adopted = await self._adopt()
                break
            except (StoreUnavailable, AriError) as error:
                if not told:
                    log.error("calls_not_adopted", detail=f"{error}: tried again until it works; new calls are served")
                told = True
            await asyncio.sleep(random.uniform(0.1, ADOPT_PAUSE_SECONDS))
        log.info("calls_adopted", calls=len(adopted))
        while self._late:
            # Some may have gone before their actors were there to be told.
            try:
                await self._compare(GONE_UNSEEN, adopted)
                break
            except AriError:
                await asyncio.sleep(ADOPT_PAUSE_SECONDS)

    async def _compare(self, reason: str, known: list[CallActor]) -> None:
        # Media that is being created right now may be missing from the list without being gone.
        started = {actor.call_id for actor in known if actor.media_started}
        snooping = {actor.call_id for actor in known if actor.machine.state is State.FORKED}
        channels = {channel.id: channel for channel in await self._ari.list_channels()}
        for actor in known:
            if actor.caller_channel not in channels:
                actor.tell(Message(Trigger.CALLER_GONE, reason=reason, destroyed=actor.caller_channel))
            if actor.call_id in started and actor.media_channel not in channels:
                media = actor.media_channel
                actor.tell(Message(Trigger.MEDIA_GONE, destroyed=media, media=media))
            if actor.call_id in snooping and actor.snoop_channel not in channels:
                actor.tell(Message(Trigger.SNOOP_GONE, destroyed=actor.snoop_channel))
        self.done += 1
        if self.adopted.is_set():  # otherwise what belongs to no call may be a call
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
        """Ends what is ours in Asterisk and belongs to no call; a caller whom an earlier controller was told of and
        did nothing for yet gets his call.

        Not at once: of a call that arrived during the reconciliation, the event is still on its way to us.
        """
        await asyncio.sleep(ORPHAN_SECONDS)
        try:
            for channel in await self._ari.list_channels():
                if channel.id in listed and not self._is_known(channel) and self._is_ours(channel):
                    await self._end_orphan(channel)
            for bridge in await self._ari.list_bridges():
                ours = parse(bridge.id)
                if ours is not None and ours.node == self._config.node and ours.call_id not in self._live.actors:
                    await self._ari.destroy_bridge(bridge.id, missing_ok=True)
        except AriError as error:
            log.warning("orphans_not_ended", detail=f"{error}: tried again after the next reconnection")

    async def _end_orphan(self, channel: Channel) -> None:
        arguments = channel.dialplan.app_data.split(",")
        if parse(channel.id) is None and len(arguments) == 4 and arguments[1] == "inbound":
            _, _, line, dialled = arguments
            since = from_ms(channel.created_at_ms) - timedelta(seconds=1)
            try:
                recorded = await self._calls.knows_caller(self._config.node, channel.id, since)
            except StoreUnavailable:
                recorded = False
            if not recorded and not self._is_known(channel):
                # It came in the moment in which the earlier controller died. One that it answered is past saving.
                log.warning("caller_found", channel=channel.name, state=channel.state)
                self._arrive(channel, line, dialled, "" if channel.state == "Ring" else "controller_restarted")
                return
        await self.end_channel(channel, "belongs to no call")

    def _is_known(self, channel: Channel) -> bool:
        return channel.id in self._live.by_channel or channel.id in self._live.leftovers

    async def _adopt(self) -> list[CallActor]:
        """Takes over the calls that an earlier controller of this node left open in the records.

        Raises `StoreUnavailable`, `AriError`.
        """
        rows = await self._calls.open_calls(self._config.node)
        bridges = {bridge.id: bridge for bridge in await self._ari.list_bridges()}
        channels = {channel.id: channel for channel in await self._ari.list_channels()}
        # From here on nothing is awaited: the events of these channels reach their calls.
        self.adopted.set()
        begun, self._live.begun = self._live.begun or set(), None
        return self._adopt_rows([row for row in rows if row.call_id not in begun], channels, bridges)

    def _adopt_rows(
        self, rows: list[CallRow], channels: dict[ChannelId, Channel], bridges: dict[BridgeId, Bridge]
    ) -> list[CallActor]:
        legs = last_legs(channels)
        adopted = []
        for row in rows:
            caller = ChannelId(row.caller_channel_id or "")
            channel = channels.get(caller)
            # A caller who was handed to the dialplan is not ours to end, and ours to watch only while his call forks.
            caller_here = channel is not None and self._is_ours(channel)
            state = self._adopted_state(row, in_dialplan=channel is not None and not caller_here)
            if row.state == State.QUEUED.value and caller_here and CallId(row.call_id) not in legs:
                names = (row.trunk or "", row.callee or "", row.caller or "", row.application or "")
                admission = self._router.readmit(*names)
                if admission is not None:
                    adopted.append(self._live.start(row, caller, admission, State.QUEUED))
                    self._live.counts["adopted"] += 1
                    continue
            actor = self._live.start(row, caller, None, state)
            actor.know_leg(legs.get(actor.call_id))
            for ours in (actor.media_channel, actor.snoop_channel):
                self._live.register(ours, actor)
            in_set_up = row.state != State.TALKING.value and caller_here
            if in_set_up:
                # Before the adoption looks for the media: that there is none yet is not why the call ends.
                why = "the controller was restarted while the call was set up or ended"
                actor.tell(Message(Trigger.HANGUP_ORDERED, detail=why, reason="controller_restarted"))
            route = self._router.find(row.trunk or "", row.callee or "")
            seconds = ROUTELESS_SECONDS if route is None else route.max_seconds
            caller_live = caller_here or (channel is not None and state in AWAY)
            media, snoop_live = channels.get(actor.media_channel), actor.snoop_channel in channels
            by_rtp = media is not None and media.name.startswith("UnicastRTP/")
            bridge = bridges.get(bridge_id(self._config.node, actor.call_id))
            beside = actor.snoop_channel if state in AWAY else caller
            together = bridge is not None and {beside, actor.media_channel} <= set(bridge.channels)
            actor.adopt(seconds, caller_live, media is not None, snoop_live, by_rtp, together or in_set_up)
            adopted.append(actor)
            self._live.counts["adopted"] += 1
        return adopted

    def _adopted_state(self, row: CallRow, *, in_dialplan: bool) -> State:
        """The state that a call is adopted in. The record of a fork may be older than its caller's going on."""
        state = _STATES.get(row.state, State.NEW)
        if state in AWAY or (in_dialplan and fork_place(row.application or "", self._config.applications) is not None):
            return state if state is State.PARTED else State.FORKED
        return State.TALKING if state in (State.NEW, State.QUEUED, State.ENDING) else state

    def _is_ours(self, channel: Channel) -> bool:
        ours = parse(channel.id)
        if ours is not None:
            return ours.node == self._config.node and ours.kind in (Kind.MEDIA, Kind.SNOOP)
        app = self._config.asterisk.app
        return channel.dialplan.app_name == "Stasis" and channel.dialplan.app_data.split(",")[0] == app
