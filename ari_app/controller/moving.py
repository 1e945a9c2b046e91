"""A call is given to another worker: because its own is gone, because that did not take it, or because an operator says
so. When, and how often, is decided in `ari_app.call.moving`.

The new worker knows nothing of the call: it is told all, under a leg UUID of its own, and opens a new stream to the
application. By that UUID the call knows what is about its present stream; what comes of an earlier one changes nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import structlog
from msgspec.structs import replace as replace_struct

from ari_app.call.machine import State, Trigger
from ari_app.call.moving import PAUSE_SECONDS, UNTAKEN_SECONDS, Moves, without_worker
from ari_app.call.routing import Admission
from ari_app.controller.limits import Limits
from ari_app.controller.messages import Message, MoveOrder
from ari_app.controller.services import Services
from ari_app.controller.spec import call_spec
from ari_app.controller.story import Story
from ari_app.domain.ids import CallId, new_call_sid, new_leg_uuid
from ari_app.errors import NoCapacity, StoreUnavailable, TrunkbridgeError
from ari_app.fleet.leases import Lease
from audiosocket.callspec import LegOrder

if TYPE_CHECKING:
    from ari_app.controller.actions import CallActions
    from ari_app.controller.actor import CallActor
    from ari_app.controller.waiting import Waiting

_TAKEN_UP = frozenset({State.ATTACHING, State.RINGING})
"""States in which a worker is to take the leg."""

log = structlog.get_logger(__name__)


class Moving:
    """The workers that one call has had, and the way to the next."""

    def __init__(
        self, services: Services, story: Story, actions: CallActions, waiting: Waiting, *, forks: bool
    ) -> None:
        self._moves = Moves(services.settings.leg_hold_seconds, resumes=not forks)
        self.ordered: str | None = None
        """The worker that an operator wants, empty: any other; None: the call is moved for want of its own."""
        self._forks = forks
        self._failed: dict[str, int] = {}
        self._lost_at: float | None = None
        self._pause = 0.0
        self._why = ""
        self._no_other = ""
        """Why no other worker took a call that was being set up."""
        self._untaken = False
        self._may_yet = False
        self._services = services
        self._story = story
        self._actions = actions
        self._waiting = waiting
        self._legs = actions.legs
        self._log = log.bind(call_id=story.row.call_id, trunk=story.row.trunk or "")

    @property
    def moves(self) -> Moves:
        """The rules, for the application that the call has now."""
        application = self._services.applications.get(self._story.row.application or "")
        self._moves.resumes = application is not None and application.resume.calls and not self._forks
        return self._moves

    def not_had(self) -> None:
        """The worker lives, and says that it has not had the call."""
        self._untaken = time.monotonic() - self._legs.attached_at < UNTAKEN_SECONDS

    def _lost(self, detail: str) -> None:
        """The worker is gone, or does not take the call, for this reason."""
        self.ordered = None
        self._why = self._why or detail
        if self._lost_at is None:
            self._lost_at = time.monotonic()

    def strand(self, tell: Callable[[], None]) -> None:
        """Queues for a turn, of which `tell` is told."""
        self._services.turns.ask(self._story.row.call_id, tell, self._pause)

    def instead(self, message: Message, state: State, limits: Limits, *, reported: bool) -> Message:
        """The message, or what becomes of it in `state` where another worker may take the call."""
        row = self._story.row
        if state in _TAKEN_UP and message.trigger is Trigger.SETUP_TIMEOUT:
            if not limits.attach_over:
                return message
            message = Message(Trigger.MEDIA_FAILED, detail="the worker did not take the leg")
            self._may_yet = True
        answered, connected = row.answered_at is not None, row.connected_at is not None
        trigger = without_worker(state, message.trigger, answered=answered, connected=connected)
        if trigger is None or reported or not self._may(trigger):
            if message.trigger is Trigger.MEDIA_FAILED and self._no_other not in message.detail:
                # It came while another one was looked for.
                return replace(message, detail=f"{message.detail}; {self._no_other}")
            if message.trigger is not Trigger.WORKER_GONE:
                return message
            failed = Trigger.REPORT_TIMEOUT if state is State.REPORTING else Trigger.MEDIA_GONE
            return replace(message, trigger=Trigger.MEDIA_FAILED if state in _TAKEN_UP else failed)
        self._lost(message.detail or "the worker did not report")
        return replace(message, trigger=trigger)

    def order(self, order: MoveOrder, state: State, *, reported: bool) -> Message | None:
        """What follows from an operator's order; None: nothing."""
        detail = f"by {order.by}"
        if self._admission() is None or not self.moves.possible:
            self._story.event("not_moved", detail=f"{detail}: its application does not resume calls, or is gone")
        elif state is not State.TALKING or reported:
            self._story.event("not_moved", detail=f"{detail}: it is {state}")
        else:
            self.ordered = order.worker_id
            return Message(Trigger.MOVE_ORDERED, detail=detail)
        return None

    async def worker_dead(self) -> bool:
        """Whether nobody listens where the report was to come from. Who dies may have listened a moment before, and who
        is frozen seems to listen."""
        row = self._story.row
        if self._is_gone(row.worker_id):
            return True
        if self._legs.heard and self._legs.report_due and self.moves.possible:
            await self._legs.inquire(talked=row.connected_at is not None)
        return not self._legs.heard

    async def move(self, actor: CallActor) -> Message | None:
        """Gives a call that has been connected to another worker."""
        admission = self._admission()
        assert admission is not None
        ordered = self.ordered is not None
        if not ordered:
            if not self.moves.begin(time.monotonic()):
                return Message(Trigger.GIVEN_UP, detail=self._why)
            self._fail()
        try:
            lease = await self._another()
            spoke = self._story.row.worker_id or "", self._legs.leg_uuid
            await self._begin(lease, admission, resumed=ordered or not self._untaken)
        except TrunkbridgeError as error:
            self._why = f"no other worker: {error}"
            self._pause = PAUSE_SECONDS
            self.ordered = None
            return Message(Trigger.STAYS if ordered else Trigger.MEDIA_FAILED, detail=self._why)
        self._lost_at = self._lost_at or time.monotonic()
        self._pause = 0.0
        self.moves.tried()
        if ordered:
            await self._dismiss(*spoke)
        return await self._legs.attach(actor, admission.media_format)

    async def replace_worker(self, actor: CallActor, limits: Limits) -> Message | None:
        """Gives a call that is being set up to another worker. Where there is none, one that is late may come yet."""
        admission = self._admission()
        assert admission is not None
        may_yet, self._may_yet = self._may_yet, False
        self._fail()
        try:
            await self._begin(await self._another(), admission, resumed=False)
        except TrunkbridgeError as error:
            self.moves.retries_over()
            self._no_other = f"no other worker: {error}"
            if may_yet:
                limits.last_worker()
                return None
            return Message(Trigger.MEDIA_FAILED, detail=f"{self._why}; {self._no_other}")
        self._story.event("worker_replaced", worker=self._story.row.worker_id, why=self._why)
        self._lost_at = None  # it has not been connected, so that this is no move
        return await self._legs.attach(actor, admission.media_format)

    def carried(self) -> None:
        """The leg is in the bridge. Of one that took another's place at the same worker nothing follows."""
        if self._lost_at is None:
            return
        now = time.monotonic()
        self.moves.moved(now, ordered=self.ordered is not None)
        gap_ms = round((now - self._lost_at) * 1000)
        self._story.event("moved", worker=self._story.row.worker_id, moves=self.moves.moves, gap_ms=gap_ms)
        self._log.info("call_moved", worker=self._story.row.worker_id, moves=self.moves.moves, gap_ms=gap_ms)
        self._lost_at = self.ordered = None
        self._untaken = False
        self._why = ""
        self._failed.clear()

    # Inside

    def _may(self, trigger: Trigger) -> bool:
        if self._admission() is None:
            return False
        return self.moves.wanted(time.monotonic()) if trigger is Trigger.WORKER_GONE else self.moves.retry()

    def _admission(self) -> Admission | None:
        """The call's admission; that of an earlier controller's call from its record."""
        if self._waiting.admission is None:
            self._waiting.admission = self._services.readmit(self._story.row)
        found = self._waiting.admission
        return found if isinstance(found, Admission) else None

    def _fail(self) -> None:
        worker = self._story.row.worker_id
        if worker and not self._is_gone(worker):  # such a one is passed over for as long as it is gone
            self._failed[worker] = 0 if self._legs.worker is None else self._legs.worker.started_at_ms

    def _is_gone(self, worker: str | None) -> bool:
        """Whether the run of the worker that has the call is gone. An earlier one may be, and the watch not know yet
        that it was started again."""
        run = self._services.gone.get(worker or "")
        return run is not None and self._legs.is_at(worker or "", run)

    async def _another(self) -> Lease:
        services, row = self._services, self._story.row
        workers = await services.present.workers()
        runs = {info.worker_id: info.started_at_ms for info in workers}
        if self.ordered:
            if self.ordered not in runs:
                raise NoCapacity("no_workers", f"no worker {self.ordered!r} is registered")
            exclude = set(runs) - {self.ordered}
        elif self.ordered is not None:
            exclude = {row.worker_id or ""}
        else:
            # One that has been started again since is another worker.
            exclude = {worker for worker, run in self._failed.items() if run in (0, runs.get(worker, run))}
        gone = services.still_gone(workers)
        exclude |= gone
        call_id = CallId(row.call_id)
        try:
            return await services.leases.acquire(call_id, application=row.application or "", exclude=exclude)
        except NoCapacity:
            # A worker that lives, and has only lost what it was to know of the call, is better than none.
            alone = gone | {worker for worker in self._failed if worker != row.worker_id}
            if self.ordered is not None or not self._untaken or exclude <= alone:
                raise
            return await services.leases.acquire(call_id, application=row.application or "", exclude=alone)

    async def _begin(self, lease: Lease, admission: Admission, *, resumed: bool) -> None:
        """Tells the worker of the call. From then on nothing that an earlier one says counts."""
        services, row = self._services, self._story.row
        leg_uuid = new_leg_uuid(os.urandom)
        row = replace(row, stream_sid=new_call_sid(os.urandom))
        created_ms, seconds = time.time_ns() // 1_000_000, services.settings.spec_seconds
        spec = call_spec(
            row, admission, leg_uuid, created_ms, seconds, services.applications, os.urandom, resumed=resumed
        )
        spec = replace_struct(
            spec,
            leg_hold_seconds=0.0 if self._forks else services.settings.leg_hold_seconds,
            leg_number=self._legs.replacements.number + 1,
            begins=True,
            lease_token=lease.token,
            arrived_at_ms=0 if row.connected_at is not None else spec.arrived_at_ms,
        )
        await services.present.put_spec(spec)
        self._actions.lease_token = lease.token
        await self._legs.begin_anew(lease.worker, leg_uuid)
        self._story.update(worker_id=lease.worker.worker_id, leg_uuid=leg_uuid, stream_sid=row.stream_sid)

    async def _dismiss(self, worker_id: str, leg_uuid: str) -> None:
        """Tells a worker that the call goes on elsewhere. Where it does not hear, it sees its leg go."""
        try:
            await self._services.present.send_order(worker_id, LegOrder(leg_uuid=leg_uuid, order="end"))
        except StoreUnavailable as error:
            self._log.warning("end_not_sent", detail=str(error))
