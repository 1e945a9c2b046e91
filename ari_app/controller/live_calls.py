"""The calls that live: their actors, whose channel is whose, and the tasks that carry them."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import Coroutine

from ari_app.ari.client import AriClient
from ari_app.call.ending import of_refusal
from ari_app.call.machine import State
from ari_app.call.routing import Admission, NotAdmitted, Router
from ari_app.controller.actor import CallActor
from ari_app.controller.leftovers import Leftovers
from ari_app.controller.services import Services
from ari_app.controller.story import Story
from ari_app.domain.ids import ChannelId
from ari_app.fleet.leases import Leases
from ari_app.settings import Config
from ari_app.store.present import Present
from ari_app.store.records import CallRow
from ari_app.store.writer import RecordWriter

UNREPORTED_CALLS = 1000
"""Calls that ended without their worker's report whose records are kept at hand for it."""


class LiveCalls:
    """Starts calls, and knows each until it has ended."""

    def __init__(self, config: Config, ari: AriClient, leases: Leases, present: Present, writer: RecordWriter) -> None:
        self.leftovers = Leftovers(ari)
        router = Router(config)
        self.services = Services(
            config.node,
            ari,
            leases,
            present,
            config.controller,
            config.applications,
            self.leftovers,
            self.register,
            lambda row: router.readmit(row.trunk or "", row.callee or "", row.caller or "", row.application or ""),
        )
        self._writer = writer
        # Distinguishes this run's events from those of an earlier controller of the same node.
        self._source = f"{config.node}:{time.time_ns() // 1_000_000:x}"
        self._tasks: set[asyncio.Task[None]] = set()
        self.actors: dict[str, CallActor] = {}
        """By call id."""
        self.by_channel: dict[str, CallActor] = {}
        self.unreported: OrderedDict[str, CallRow] = OrderedDict()
        """Records of ended calls that lack their worker's report, by call id."""
        self.counts: Counter[str] = Counter()
        """What has come since the start."""
        self.ended: Counter[tuple[str, ...]] = Counter()
        """Calls that have ended, by result and reason."""
        self.begun: set[str] | None = set()
        """Calls that this run has begun, ended ones included, until the calls of an earlier one are adopted: what
        PostgreSQL says of them may be older."""

    def story(self, row: CallRow) -> Story:
        """Writes to the record of a call."""
        return Story(row, self._source, self._writer)

    def start(
        self, row: CallRow, channel: ChannelId, admission: Admission | NotAdmitted | None, state: State = State.NEW
    ) -> CallActor:
        """Starts the actor of a new call, or of one that is to be adopted in `state`."""
        story = self.story(row)
        actor = CallActor(self.services, story, channel, admission, state)
        self.actors[actor.call_id] = actor
        if self.begun is not None:
            self.begun.add(actor.call_id)
        self.register(channel, actor)
        if state is State.NEW:
            story.update()
        self.counts["calls"] += 1
        self.spawn(self._carry(actor))
        return actor

    def refuse(self, row: CallRow, channel: ChannelId, refusal: NotAdmitted) -> None:
        """Refuses a call without an actor of its own: a record, and a channel to be hung up."""
        ended = of_refusal(refusal)
        story = self.story(row)
        story.event("refused", row.state, State.ENDED.value, ended.reason, detail=ended.detail)
        story.close(State.ENDED.value, ended)
        self.leftovers.hang_up(channel, int(refusal.cause))
        self.counts["calls"] += 1
        self.ended[ended.result.value, ended.reason] += 1
        if self.begun is not None:
            self.begun.add(row.call_id)

    def register(self, channel: ChannelId, actor: CallActor) -> None:
        """Makes events of a channel reach the actor."""
        self.by_channel[channel] = actor

    def spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Has this done, beside the calls."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def stop(self) -> None:
        """Ends all tasks; the channels of the calls go on."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _carry(self, actor: CallActor) -> None:
        try:
            await actor.run()
        finally:
            self.services.turns.end(actor.call_id)
            self.actors.pop(actor.call_id, None)
            if actor.row.ended_at is not None:
                self.ended[actor.row.result or "", actor.row.reason or ""] += 1
            if actor.row.ended_at is not None and actor.row.leg_uuid is not None and actor.row.media is None:
                self.unreported[actor.call_id] = actor.row
                if len(self.unreported) > UNREPORTED_CALLS:
                    self.unreported.popitem(last=False)
            for channel in actor.channels:
                if self.by_channel.get(channel) is actor:
                    del self.by_channel[channel]
