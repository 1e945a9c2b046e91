"""The controller of one PBX node: Asterisk's events, workers' reports and operators' orders go to the calls' actors.

The event reader only looks an event's actor up and queues; nothing here waits for Asterisk on its behalf. On every
(re)connection of the event stream what Asterisk has is compared with what is known (`_reconcile`): missed events are
never trusted to come. Calls outlive this process: Asterisk keeps talking, and the next controller adopts what it finds.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter, OrderedDict
from collections.abc import Coroutine

import structlog

from ari_app.ari.client import AriClient
from ari_app.ari.errors import AriError
from ari_app.ari.events import (
    ChannelDestroyed,
    ChannelDtmfReceived,
    ChannelEvent,
    ChannelHangupRequest,
    Event,
    StasisEnd,
    StasisStart,
)
from ari_app.ari.models import Channel
from ari_app.call.ending import GONE_UNSEEN, OUR_FAULT
from ari_app.call.fork import fork_place
from ari_app.call.machine import AWAY, OVER, State, Trigger
from ari_app.call.routing import Admission, NotAdmitted, Router
from ari_app.controller.actor import CallActor
from ari_app.controller.messages import Message
from ari_app.controller.services import Services
from ari_app.controller.story import Story, from_ms, report_events
from ari_app.domain.hangup import Cause
from ari_app.domain.ids import ChannelId, Kind, is_media_of, last_legs, new_call_id, new_call_sid, parse
from ari_app.errors import StoreUnavailable, TrunkbridgeError
from ari_app.fleet.leases import Leases
from ari_app.settings import Config
from ari_app.store.calls import CallStore
from ari_app.store.present import Command, Present
from ari_app.store.records import CallRow
from ari_app.store.writer import RecordWriter
from audiosocket.callspec import CallNotice, CallReport

ORPHAN_SECONDS = 2.0
WATCH_SECONDS = 2.0
"""How often the workers of RTP legs are looked for; one that is missed twice is gone."""
UNREPORTED_CALLS = 1000
"""Calls that ended without their worker's report whose records are kept at hand for it."""
ROUTELESS_SECONDS = 3600
"""How long a call may take whose route is not in the configuration any more."""

_STATES = {state.value: state for state in State}

log = structlog.get_logger(__name__)


class Controller:
    """Dispatch and reconciliation; the tasks around it are composed in `ari_app.controller.process`."""

    def __init__(
        self, config: Config, ari: AriClient, leases: Leases, present: Present, calls: CallStore, writer: RecordWriter
    ) -> None:
        self._config = config
        self._ari = ari
        self._leases = leases
        self._present = present
        self._calls = calls
        self._writer = writer
        self._router = Router(config)
        self._services = Services(
            config.node, ari, leases, present, config.controller, config.applications, self._register
        )
        # Distinguishes this run's events from those of an earlier controller of the same node.
        self._source = f"{config.node}:{time.time_ns() // 1_000_000:x}"
        self._actors: dict[str, CallActor] = {}
        self._by_channel: dict[str, CallActor] = {}
        self._unreported: OrderedDict[str, CallRow] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()
        self._asterisk_started_ms = 0
        self._adopted = False
        self.connected = asyncio.Event()
        self.counts: Counter[str] = Counter()

    @property
    def active(self) -> int:
        """Calls that live."""
        return len(self._actors)

    # The event stream's callbacks

    def on_event(self, event: Event) -> None:
        """Hands an event to its call. Never waits."""
        if isinstance(event, StasisStart):
            self._stasis_start(event)
        elif isinstance(event, ChannelEvent):
            actor = self._by_channel.get(event.channel.id)
            if actor is not None:
                self._channel_event(actor, event)

    async def on_connected(self) -> None:
        """The event stream is (again) connected: compare, adopt, end."""
        info = await self._ari.info()
        restarted = self._asterisk_started_ms not in (0, info.status.started_at_ms)
        self._asterisk_started_ms = info.status.started_at_ms
        if restarted:
            log.warning("asterisk_restarted")
        await self._reconcile("asterisk_restarted" if restarted else GONE_UNSEEN)
        self.connected.set()

    def on_lost(self, _reason: str) -> None:
        """The event stream is lost; calls go on meanwhile."""
        self.connected.clear()

    # Long-running parts

    async def renew_leases(self) -> None:
        """Keeps the leases of live calls, for ever."""
        seconds = self._config.controller.lease_seconds
        while True:
            await asyncio.sleep(seconds / 3)
            held = {
                str(actor.call_id): actor.worker_id
                for actor in self._actors.values()
                if actor.worker_id and actor.machine.state not in OVER
            }
            try:
                lost = await self._leases.renew(held)
            except TrunkbridgeError as error:
                log.warning("leases_not_renewed", detail=str(error), calls=len(held))
            else:
                if lost:
                    log.warning("leases_lost", calls=len(lost))

    async def watch_workers(self) -> None:
        """Ends RTP legs whose worker is gone, for ever: of AudioSocket legs Asterisk sees it, of these nobody does."""
        missed: set[str] = set()
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            actors = [actor for actor in self._actors.values() if actor.rtp_leg.used]
            if not actors:
                continue
            try:
                runs = {info.worker_id: info.started_at_ms for info in await self._present.workers()}
            except StoreUnavailable:
                continue  # of the workers nothing is known, and calls go on
            # A Redis that has just come back knows no worker for a moment.
            gone, missed = missed - set(runs), {actor.worker_id for actor in actors} - set(runs)
            for actor in actors:
                worker, leg = actor.worker_id, actor.rtp_leg
                leg.worker_started_ms = leg.worker_started_ms or runs.get(worker, 0)
                if worker in gone or runs.get(worker, leg.worker_started_ms) != leg.worker_started_ms:
                    actor.tell(Message(Trigger.MEDIA_GONE, detail=f"worker {worker} is gone"))

    async def stop(self) -> None:
        """Leaves the calls to the next controller: their actors end here, their channels go on."""
        left = len(self._actors)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if left:
            log.info("calls_left_to_next_controller", calls=left)

    # Events

    def _stasis_start(self, event: StasisStart) -> None:
        channel = event.channel
        actor = self._by_channel.get(channel.id)
        if actor is not None:
            if channel.id == actor.media_channel:
                actor.start_media()
            elif channel.id == actor.snoop_channel:
                actor.start_snoop()
            elif is_media_of(channel.id, actor.call_id):
                self._spawn(self._end_channel(channel, "its leg was given up"))
            elif actor.machine.state in AWAY:
                why = "came back from the dialplan while an application listens to it"
                self._spawn(self._end_channel(channel, why))
            return
        ours = parse(channel.id)
        if ours is not None:
            self._spawn(self._end_channel(channel, "of no call"))
        elif len(event.args) == 3 and event.args[0] == "inbound":
            self._arrived(channel, event.args[1], event.args[2])
        else:
            log.warning("unexpected_channel", channel=channel.name, args=event.args)
            self._spawn(self._end_channel(channel, "came without a direction: is the dialplan ours?"))

    def _channel_event(self, actor: CallActor, event: ChannelEvent) -> None:
        channel = event.channel.id
        if channel == actor.snoop_channel:
            # It lives no longer than in our application, and nothing is told of it afterwards.
            if isinstance(event, StasisEnd):
                self._by_channel.pop(channel, None)
                actor.tell(Message(Trigger.SNOOP_GONE, destroyed=channel))
            return
        is_caller = channel == actor.caller_channel
        gone = Trigger.CALLER_GONE if is_caller else Trigger.MEDIA_GONE
        media = None if is_caller else channel
        if isinstance(event, ChannelDestroyed):
            self._by_channel.pop(channel, None)
            # 0 is Asterisk's way to say that nobody gave a cause: a plain BYE of a call that was not bridged.
            actor.tell(Message(gone, event.cause or Cause.NORMAL_CLEARING, destroyed=channel, media=media))
        elif isinstance(event, ChannelHangupRequest):
            # A soft request is ours; the destruction that follows is what counts.
            if not event.soft:
                actor.tell(Message(gone, event.hangup_cause, media=media))
        elif isinstance(event, StasisEnd):
            actor.tell(Message(Trigger.CALLER_LEFT if is_caller else Trigger.MEDIA_GONE, media=media))
        elif isinstance(event, ChannelDtmfReceived):
            self.counts["digits"] += 1
            if is_caller:
                actor.digit(event.digit)

    def _arrived(self, channel: Channel, line: str, dialled: str) -> None:
        calls_on_line = sum(actor.line == line for actor in self._actors.values())
        admission: Admission | NotAdmitted
        try:
            admission = self._router.admit(line, dialled, channel.caller.number, len(self._actors), calls_on_line)
        except NotAdmitted as error:
            admission = error
        admitted = isinstance(admission, Admission)
        row = CallRow(
            call_id=new_call_id(os.urandom),
            call_sid=new_call_sid(os.urandom),
            stream_sid=new_call_sid(os.urandom),
            node=self._config.node,
            direction="inbound",
            trunk=line,
            caller=admission.caller if isinstance(admission, Admission) else channel.caller.number[:64],
            callee=admission.callee if isinstance(admission, Admission) else dialled[:64],
            application=admission.application_name if isinstance(admission, Admission) else None,
            state=State.NEW.value,
            caller_channel_id=channel.id,
            created_at=from_ms(channel.created_at_ms),
        )
        log.info(
            "call_arrived", call_id=row.call_id, trunk=line, caller=row.caller, callee=row.callee, admitted=admitted
        )
        self._start(row, channel.id, admission)

    def _start(
        self, row: CallRow, channel: ChannelId, admission: Admission | NotAdmitted | None, state: State = State.NEW
    ) -> CallActor:
        story = Story(row, self._source, self._writer)
        actor = CallActor(self._services, story, channel, admission, state)
        self._actors[actor.call_id] = actor
        self._register(channel, actor)
        if state is State.NEW:
            story.update()
        self.counts["calls"] += 1
        self._spawn(self._carry(actor))
        return actor

    async def _carry(self, actor: CallActor) -> None:
        try:
            await actor.run()
        finally:
            self._actors.pop(actor.call_id, None)
            if actor.row.ended_at is not None and actor.row.leg_uuid is not None and actor.row.media is None:
                self._unreported[actor.call_id] = actor.row
                if len(self._unreported) > UNREPORTED_CALLS:
                    self._unreported.popitem(last=False)
            for channel in actor.channels:
                if self._by_channel.get(channel) is actor:
                    del self._by_channel[channel]

    def _register(self, channel: ChannelId, actor: CallActor) -> None:
        self._by_channel[channel] = actor

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # Reports and orders

    async def on_report(self, report: CallReport) -> None:
        """A worker's report; it may come twice."""
        actor = self._actors.get(report.call_id)
        if actor is not None:
            actor.report(report)
            return
        # The call has ended without waiting for it, or under another controller: its record gets what it lacks.
        for event in report_events(report):
            self._writer.event(event)
        row = self._unreported.pop(report.call_id, None)
        try:
            row = row or await self._calls.get_call(report.call_id)
        except StoreUnavailable as error:
            # Reports of live calls come on the same stream: this one is not worth their waiting.
            log.error("late_report_without_record", call_id=report.call_id, detail=str(error))
            return
        if row is not None and row.ended_at is not None and row.media is None:
            Story(row, self._source, self._writer).reported(report)

    def on_notice(self, notice: CallNotice) -> None:
        """What a worker says of a call that goes on; of one that has ended it is of no use any more."""
        actor = self._actors.get(notice.call_id)
        if notice.event == "leg_lost" and not self.connected.is_set():
            return  # perhaps it is Asterisk that is gone: what is left of its calls is looked at when it is back
        if actor is not None:
            actor.notice(notice)

    async def on_command(self, command: Command) -> None:
        """An operator's order."""
        actor = self._actors.get(command.call_id)
        if actor is None:
            log.warning("order_for_no_call", call_id=command.call_id, by=command.by)
            return
        log.info("hangup_ordered", call_id=command.call_id, by=command.by)
        actor.tell(Message(Trigger.HANGUP_ORDERED, detail=f"by {command.by}"))

    # Reconciliation

    async def _reconcile(self, reason: str) -> None:
        # Media that is being created right now may be missing from the list without being gone.
        started = {actor.call_id for actor in self._actors.values() if actor.media_started}
        snooping = {actor.call_id for actor in self._actors.values() if actor.machine.state is State.FORKED}
        channels = {channel.id: channel for channel in await self._ari.list_channels()}
        if not self._adopted:
            await self._adopt(channels)
        for actor in list(self._actors.values()):
            if actor.caller_channel not in channels:
                actor.tell(Message(Trigger.CALLER_GONE, reason=reason, destroyed=actor.caller_channel))
            if actor.call_id in started and actor.media_channel not in channels:
                media = actor.media_channel
                actor.tell(Message(Trigger.MEDIA_GONE, destroyed=media, media=media))
            if actor.call_id in snooping and actor.snoop_channel not in channels:
                actor.tell(Message(Trigger.SNOOP_GONE, destroyed=actor.snoop_channel))
        if self._adopted:  # otherwise what belongs to no call may be a call
            self._spawn(self._end_orphans(set(channels)))
        log.info("reconciled", calls=len(self._actors), channels=len(channels))

    async def _end_orphans(self, listed: set[ChannelId]) -> None:
        """Ends what is ours in Asterisk and belongs to no call.

        Not at once: of a call that arrived during the reconciliation, the event is still on its way to us.
        """
        await asyncio.sleep(ORPHAN_SECONDS)
        try:
            for channel in await self._ari.list_channels():
                if channel.id in listed and channel.id not in self._by_channel and self._is_ours(channel):
                    await self._end_channel(channel, "belongs to no call")
            for bridge in await self._ari.list_bridges():
                ours = parse(bridge.id)
                if ours is not None and ours.node == self._config.node and ours.call_id not in self._actors:
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
            if row.call_id in self._actors:
                continue
            caller = ChannelId(row.caller_channel_id or "")
            channel = channels.get(caller)
            # A caller who was handed to the dialplan is not ours to end, and ours to watch only while his call forks.
            caller_here = channel is not None and self._is_ours(channel)
            state = self._adopted_state(row, in_dialplan=channel is not None and not caller_here)
            actor = self._start(row, caller, None, state)
            actor.know_leg(legs.get(actor.call_id))
            for ours in (actor.media_channel, actor.snoop_channel):
                self._register(ours, actor)
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

    async def _end_channel(self, channel: Channel, why: str) -> None:
        log.warning("channel_ended", channel=channel.name, why=why)
        try:
            await self._ari.hangup(channel.id, OUR_FAULT, missing_ok=True)
        except AriError as error:
            log.warning("hangup_failed", channel=channel.name, detail=str(error))
