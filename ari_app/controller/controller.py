"""The controller of one PBX node: Asterisk's events, workers' reports and operators' orders go to the calls' actors.

The event reader only looks an event's actor up and queues; nothing here waits for Asterisk on its behalf. On every
(re)connection of the event stream what Asterisk has is compared with what is known: missed events are never trusted to
come (`ari_app.controller.reconciliation`). Calls outlive this process: Asterisk keeps talking, and the next controller
adopts what it finds.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress

import structlog

from ari_app.ari.client import AriClient
from ari_app.ari.errors import AriError, AriUnavailable
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
from ari_app.call.ending import GONE_UNSEEN
from ari_app.call.machine import AWAY, OVER, State, Trigger
from ari_app.call.routing import Admission, NotAdmitted, Router
from ari_app.controller.actor import CallActor
from ari_app.controller.late_reports import LateReports
from ari_app.controller.live_calls import LiveCalls
from ari_app.controller.messages import Message, MoveOrder
from ari_app.controller.reconciliation import Reconciliation
from ari_app.controller.story import from_ms
from ari_app.controller.worker_watch import WorkerWatch
from ari_app.domain.hangup import Cause
from ari_app.domain.ids import is_media_of, new_call_id, new_call_sid, parse
from ari_app.errors import TrunkbridgeError
from ari_app.fleet.leases import Leases
from ari_app.settings import Config
from ari_app.store.calls import CallStore
from ari_app.store.present import Command, Present
from ari_app.store.records import CallRow
from ari_app.store.writer import RecordWriter
from audiosocket.callspec import CallNotice, CallReport

PING_SECONDS = 1.0
"""Between two pings of Asterisk, and the longest that one may take."""
REFUSALS = {
    "asterisk_slow": "Asterisk does not answer in time",
    "node_cordoned": "this node is cordoned, or being drained: `trunkbridge nodes resume` takes it back",
    "controller_restarted": "the controller ended in the moment in which the call was set up",
}
"""Why a call gets no actor of its own."""
SETTLE_SECONDS = 1.0
"""How long a controller that is stopped lets calls finish what they are at."""
SETTLE_LOOKS = 50
UNDER_WAY = frozenset(State) - {State.AWAITING, State.TALKING, State.BROKEN, State.FORKED, State.PARTED, State.ENDED}
"""States that a call leaves within a moment, and that the next controller could not take it over in as it is."""

log = structlog.get_logger(__name__)


class Controller:
    """Dispatch; the tasks around it are composed in `ari_app.controller.process`."""

    def __init__(
        self,
        config: Config,
        ari: AriClient,
        leases: Leases,
        present: Present,
        calls: CallStore,
        writer: RecordWriter,
        *,
        marked: Callable[[], bool] = lambda: False,
    ) -> None:
        """`marked`: whether an operator has taken this node out of placement."""
        self._config = config
        self._marked = marked
        self._ari = ari
        self._leases = leases
        self._present = present
        self._router = Router(config)
        self._live = LiveCalls(config, ari, leases, present, writer)
        self.late = LateReports(self._live, calls, writer)
        self._watch = WorkerWatch(self._live, present)
        self._reconciliation = Reconciliation(config, ari, calls, self._router, self._live, self._arrived)
        self._asterisk_started_ms = 0
        self._early: list[CallReport] = []
        self._leaving = False
        self.connected = asyncio.Event()

    @property
    def active(self) -> int:
        """Calls that live."""
        return len(self._live.actors)

    @property
    def live(self) -> LiveCalls:
        """The calls that live, and what there is to count."""
        return self._live

    @property
    def reconciliations(self) -> int:
        """How often Asterisk was compared with the calls."""
        return self._reconciliation.done

    @property
    def adopted(self) -> asyncio.Event:
        """Set when the calls of earlier controllers are known."""
        return self._reconciliation.adopted

    @property
    def why_not_accepting(self) -> str:
        """Why no new call is begun here; empty: calls are."""
        if not self.connected.is_set():
            return "not connected to Asterisk's events"
        if self._ari.breaker.open:
            return "Asterisk does not answer in time"
        if self._marked():
            return "cordoned, or being drained"
        return ""

    # The event stream's callbacks

    def on_event(self, event: Event) -> None:
        """Hands an event to its call. Never waits."""
        if isinstance(event, StasisStart):
            self._stasis_start(event)
        elif isinstance(event, ChannelEvent):
            actor = self._live.by_channel.get(event.channel.id)
            if actor is not None:
                self._channel_event(actor, event)

    async def on_connected(self) -> None:
        """The event stream is (again) connected: compare, adopt, end."""
        info = await self._ari.info()
        while self._ari.breaker.open and not self._ari.breaker.probed(True):
            await self._ari.info()  # as good as probes: nobody waits for those
        restarted = self._asterisk_started_ms not in (0, info.status.started_at_ms)
        self._asterisk_started_ms = info.status.started_at_ms
        if restarted:
            log.warning("asterisk_restarted")
        await self._reconciliation.reconcile("asterisk_restarted" if restarted else GONE_UNSEEN)
        self.connected.set()

    def on_lost(self, _reason: str) -> None:
        """The event stream is lost; calls go on meanwhile."""
        self.connected.clear()

    # Long-running parts

    async def renew_leases(self) -> None:
        """Keeps the leases of live calls, for ever; those of adopted calls at once, for nobody kept them meanwhile."""
        seconds = self._config.controller.lease_seconds
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds / 3):
                await self.adopted.wait()
        while True:
            held = {
                str(actor.call_id): actor.lease
                for actor in self._live.actors.values()
                if actor.worker_id and actor.machine.state not in OVER
            }
            try:
                renewal = await self._leases.renew(held)
            except TrunkbridgeError as error:
                log.warning("leases_not_renewed", detail=str(error), calls=len(held))
            else:
                for call_id, token in renewal.tokens.items():
                    if call_id in self._live.actors:
                        self._live.actors[call_id].learn_lease(token)
                if renewal.lost:
                    self._live.counts["leases_lost"] += len(renewal.lost)
                    log.warning("leases_lost", calls=len(renewal.lost))
            await asyncio.sleep(seconds / 3)

    async def take_early_reports(self) -> None:
        """Hands on, once the calls are adopted that they are about, the reports that came before."""
        await self.adopted.wait()
        early, self._early = self._early, []
        for report in early:
            await self.on_report(report)

    async def end_leftovers(self) -> None:
        """Ends what could not be ended in Asterisk when its call was over, for ever."""
        await self._live.leftovers.run()

    async def watch_asterisk(self) -> None:
        """Asks Asterisk again and again whether it answers, for ever: before callers wait for it, and, when it has not,
        until it does."""
        breaker, known_open = self._ari.breaker, False
        while True:
            await asyncio.sleep(PING_SECONDS)
            is_probe = breaker.open
            try:
                await self._ari.ping(PING_SECONDS)
                answered = True
            except AriError as error:
                answered = not isinstance(error, AriUnavailable)
            if is_probe:
                breaker.probed(answered)
            if breaker.open and not known_open:
                log.error("asterisk_does_not_answer", calls=self.active, now="new calls are refused, live ones go on")
            elif known_open and not breaker.open:
                log.warning("asterisk_answers_again", calls=self.active)
            known_open = breaker.open

    async def watch_workers(self) -> None:
        """Takes the calls of workers that are gone from them, for ever."""
        await self._watch.run()

    async def settle(self) -> None:
        """Lets calls that are being set up or ended get there, for a moment, and begins no other: the next controller
        finds these callers."""
        self._leaving = True
        for _ in range(SETTLE_LOOKS):
            if not any(actor.machine.state in UNDER_WAY for actor in self._live.actors.values()):
                break
            await asyncio.sleep(SETTLE_SECONDS / SETTLE_LOOKS)

    async def stop(self) -> None:
        """Leaves the calls to the next controller: their actors end here, their channels go on."""
        left = len(self._live.actors)
        await self._live.stop()
        if left:
            log.info("calls_left_to_next_controller", calls=left)

    # Events

    def _stasis_start(self, event: StasisStart) -> None:
        channel = event.channel
        actor = self._live.by_channel.get(channel.id)
        if actor is not None:
            if channel.id == actor.media_channel:
                actor.start_media()
            elif channel.id == actor.snoop_channel:
                actor.start_snoop()
            elif is_media_of(channel.id, actor.call_id):
                self._end_channel(channel, "its leg was given up")
            elif actor.machine.state in AWAY:
                self._end_channel(channel, "came back from the dialplan while an application listens to it")
            return
        ours = parse(channel.id)
        if ours is not None:
            if self.adopted.is_set():  # otherwise it may be of a call that is not known yet
                self._end_channel(channel, "of no call")
        elif len(event.args) == 3 and event.args[0] == "inbound":
            if not self._leaving:
                self._arrived(channel, event.args[1], event.args[2])
        else:
            log.warning("unexpected_channel", channel=channel.name, args=event.args)
            self._end_channel(channel, "came without a direction: is the dialplan ours?")

    def _end_channel(self, channel: Channel, why: str) -> None:
        self._live.spawn(self._reconciliation.end_channel(channel, why))

    def _channel_event(self, actor: CallActor, event: ChannelEvent) -> None:
        channel = event.channel.id
        if channel == actor.snoop_channel:
            # It lives no longer than in our application, and nothing is told of it afterwards.
            if isinstance(event, StasisEnd):
                self._live.by_channel.pop(channel, None)
                actor.tell(Message(Trigger.SNOOP_GONE, destroyed=channel))
            return
        is_caller = channel == actor.caller_channel
        gone = Trigger.CALLER_GONE if is_caller else Trigger.MEDIA_GONE
        media = None if is_caller else channel
        if isinstance(event, ChannelDestroyed):
            self._live.by_channel.pop(channel, None)
            # 0 is Asterisk's way to say that nobody gave a cause: a plain BYE of a call that was not bridged.
            actor.tell(Message(gone, event.cause or Cause.NORMAL_CLEARING, destroyed=channel, media=media))
        elif isinstance(event, ChannelHangupRequest):
            # A soft request is ours; the destruction that follows is what counts.
            if not event.soft:
                actor.tell(Message(gone, event.hangup_cause, media=media))
        elif isinstance(event, StasisEnd):
            actor.tell(Message(Trigger.CALLER_LEFT if is_caller else Trigger.MEDIA_GONE, media=media))
        elif isinstance(event, ChannelDtmfReceived):
            self._live.counts["digits"] += 1
            if is_caller:
                actor.digit(event.digit)

    def _arrived(self, channel: Channel, line: str, dialled: str, refusal: str = "") -> None:
        calls_on_line = sum(actor.line == line for actor in self._live.actors.values())
        admission: Admission | NotAdmitted
        try:
            admission = self._router.admit(line, dialled, channel.caller.number, len(self._live.actors), calls_on_line)
        except NotAdmitted as error:
            admission = error
        refusal = refusal or ("asterisk_slow" if self._ari.breaker.open else "node_cordoned" if self._marked() else "")
        if refusal:
            admission = NotAdmitted(refusal, REFUSALS[refusal], Cause.SWITCHING_EQUIPMENT_CONGESTION)
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
        if refusal and isinstance(admission, NotAdmitted):
            self._live.refuse(row, channel.id, admission)  # with one request, which is made in good time
        else:
            self._live.start(row, channel.id, admission)

    # Reports and orders

    async def on_report(self, report: CallReport) -> None:
        """A worker's report; it may come twice."""
        actor = self._live.actors.get(report.call_id)
        if actor is not None:
            actor.report(report)
            return
        if self._live.begun is not None and report.call_id not in self._live.begun:
            self._early.append(report)  # it may be of a call that is not known yet
            return
        await self.late.take(report)

    def on_notice(self, notice: CallNotice) -> None:
        """What a worker says of a call that goes on; of one that has ended it is of no use any more."""
        actor = self._live.actors.get(notice.call_id)
        if notice.event == "leg_lost" and not self.connected.is_set():
            return  # perhaps it is Asterisk that is gone: what is left of its calls is looked at when it is back
        if actor is not None:
            actor.notice(notice)

    async def on_command(self, command: Command) -> None:
        """An operator's order."""
        actor = self._live.actors.get(command.call_id)
        if actor is None:
            log.warning("order_for_no_call", call_id=command.call_id, by=command.by)
            return
        if command.verb == "move":
            log.info("move_ordered", call_id=command.call_id, by=command.by, worker=command.worker)
            actor.move(MoveOrder(command.worker, command.by))
            return
        log.info("hangup_ordered", call_id=command.call_id, by=command.by)
        actor.tell(Message(Trigger.HANGUP_ORDERED, detail=f"by {command.by}"))
