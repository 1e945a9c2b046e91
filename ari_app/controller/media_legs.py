"""The media legs of one call, of whatever kind: one is made, told to its worker, replaced when it is lost, hung up.

AudioSocket and WebSocket legs differ from an RTP leg in that Asterisk and the worker tell each other about them; what
the controller has to tell of an RTP leg is in `ari_app.controller.rtp_leg`.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import structlog

from ari_app.ari.errors import AriError, AriMalformed, AriUnavailable
from ari_app.ari.models import Channel
from ari_app.call.machine import AWAY, State, Trigger
from ari_app.call.replacing import Replacements
from ari_app.controller.messages import Message
from ari_app.controller.rtp_leg import RtpLeg
from ari_app.controller.services import Services
from ari_app.controller.spec import replacing_spec
from ari_app.controller.story import Story
from ari_app.domain.ids import MAX_ATTEMPT, CallId, ChannelId, LegUuid, media_channel_id, new_leg_uuid
from ari_app.errors import NotTaken, StoreUnavailable
from audiosocket.callspec import CallNotice, LegOrder, MediaFormat, WorkerInfo
from audiosocket.keys import report_stream

if TYPE_CHECKING:
    from ari_app.controller.actor import CallActor

TELL_SECONDS = 0.05
"""How long a media channel is kept for its worker to be told that the call is over."""
_HAS_MEDIA = AWAY | {
    State.AWAITING,
    State.JOINING,
    State.PICKING_UP,
    State.FORKING,
    State.BRIDGING,
    State.TALKING,
}

log = structlog.get_logger(__name__)


class MediaLegs:
    """The legs that a call has had so far; the last of them is there, or is being made."""

    def __init__(self, services: Services, story: Story, state: State, *, forks: bool) -> None:
        call_id = CallId(story.row.call_id)
        self.channel: ChannelId = media_channel_id(services.node, call_id, 0)
        """Of the leg that is there, or is being made."""
        self.started = state in _HAS_MEDIA
        """Whether its channel has entered Stasis."""
        self.live = self.started
        self.report_due = self.started
        """Whether the worker has yet to report."""
        self.earlier: set[ChannelId] = set()
        """Media channels of lost legs that live, to our knowledge."""
        self.replacements = Replacements(0.0 if forks else services.settings.leg_hold_seconds)
        self.by_websocket = False
        self.rtp = RtpLeg(call_id, self._send_order, lambda: self.leg_uuid)
        self.worker: WorkerInfo | None = None
        self.leg_uuid = LegUuid(story.row.leg_uuid or "")
        """Of the call's first leg at its worker, by which that knows it."""
        self.attached_at = 0.0
        """When the leg was asked for, in monotonic seconds."""
        self.heard = True
        """Whether the worker listened when it was told last that its leg is gone."""
        self._media_format = MediaFormat.ULAW
        """What the worker wants the next leg to carry."""
        self._lost_number = 0
        """Up to here, legs are known to be gone."""
        self._services = services
        self._story = story
        self._log = log.bind(call_id=call_id, trunk=story.row.trunk or "")

    def channels(self) -> list[ChannelId]:
        """Those of all legs so far."""
        call_id, node = CallId(self._story.row.call_id), self._services.node
        return [media_channel_id(node, call_id, number) for number in range(self.replacements.number + 1)]

    def know_leg(self, number: int | None) -> None:
        """The leg that an earlier controller has made last; None: Asterisk has none any more, whichever it was."""
        if number is None:
            self._lost_number = MAX_ATTEMPT
            return
        self.replacements.number = number
        self.channel = media_channel_id(self._services.node, CallId(self._story.row.call_id), number)

    def adopt(self, state: State, *, live: bool) -> None:
        """Takes over what an earlier controller has set up of a call in `state`; whether its last leg lives."""
        row = self._story.row
        self.live = self.started = live
        # Why media went while nobody ran is told by the worker's report, which waits to be read.
        self.report_due = live or row.connected_at is not None
        if state in AWAY:
            self.report_due = live or (state is not State.PARTED and row.media is None)

    def is_at(self, worker_id: str, started_at_ms: int) -> bool:
        """Whether this run of a worker has the call, to our knowledge."""
        run = 0 if self.worker is None else self.worker.started_at_ms
        return worker_id == self._story.row.worker_id and run in (0, started_at_ms)

    def destroyed(self, channel: ChannelId | None) -> None:
        """One of the call's channels is gone for good, a leg's or another."""
        if channel is not None:
            self.earlier.discard(channel)
        self.live = self.live and channel != self.channel

    def unconnected(self, message: Message, state: State) -> Message:
        """The message, or that media has failed, where it tells that Asterisk could not connect a WebSocket leg."""
        if (
            message.destroyed != self.channel
            or not self.by_websocket
            or self.started
            or state not in (State.ATTACHING, State.RINGING)
        ):
            return message
        self.report_due = False
        return Message(Trigger.MEDIA_FAILED, detail="Asterisk could not connect a WebSocket to the worker")

    async def attach(
        self, actor: CallActor, media_format: MediaFormat, leg_uuid: LegUuid | None = None
    ) -> Message | None:
        """Creates the media channel: RTP where the worker takes it and the format is G.711, a WebSocket where it
        takes that, otherwise AudioSocket.

        `leg_uuid`: of a further leg than the call's first.
        """
        leg_uuid = leg_uuid or self.leg_uuid
        worker = self.worker
        assert worker is not None
        host = f"[{worker.host}]" if ":" in worker.host else worker.host
        self._services.register(self.channel, actor)
        self.live = self.report_due = True
        self.attached_at = time.monotonic()
        by_rtp = self.rtp.choose(worker, media_format)
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
                self.channel, host=f"{host}:{port}", leg_uuid=leg_uuid, media_format=media_format.value
            )
        except (AriMalformed, AriUnavailable) as error:
            self.report_due = not by_rtp
            return Message(Trigger.MEDIA_FAILED, detail=str(error))  # it may exist: it is torn down
        except AriError as error:
            self.live = self.report_due = False
            return Message(Trigger.MEDIA_FAILED, detail=str(error))
        if isinstance(created, tuple):
            return await self._open_leg(leg_uuid, created[1], media_format)
        return None  # its StasisStart is what counts

    async def release(self) -> None:
        """Tells the worker that the caller hears what it plays; his first audio would tell it too."""
        try:
            await self._send_order(LegOrder(leg_uuid=self.leg_uuid, order="release"))
        except StoreUnavailable as error:
            self._log.warning("release_not_sent", worker=self._story.row.worker_id, detail=str(error))

    async def inquire(self, *, talked: bool) -> None:
        """Tells the worker that the media channel is gone: whether it waits for another leg, or ends the call, or has
        ended it before, is told by what it says then, and that it is dead by its not listening (`heard`)."""
        self.heard = True
        row = self._story.row
        call_id, stream = row.call_id, report_stream(row.node)
        if not (talked and self.replacements.wanted):
            if not (self.report_due and (self.rtp.used or self.replacements.holds)):
                return
            order = LegOrder(leg_uuid=self.leg_uuid, order="end", call_id=call_id, report_stream=stream)
        else:
            order = LegOrder(
                leg_uuid=self.leg_uuid,
                order="lost",
                leg_number=max(self.replacements.number, self._lost_number),
                call_id=call_id,
                report_stream=stream,
            )
        try:
            self.heard = await self._send_order(order)
        except StoreUnavailable as error:
            self._log.warning("loss_not_told", detail=str(error))

    def lost(self, notice: CallNotice) -> None:
        """The worker waits for another leg."""
        self._lost_number = 0
        self._media_format = notice.media_format
        self.replacements.lost(time.monotonic(), notice.leg_number)

    async def replace(self, actor: CallActor) -> Message | None:
        """Creates another media channel for the session that the worker holds; that of the lost leg goes."""
        if not self.replacements.begin(time.monotonic()):
            return Message(Trigger.GIVEN_UP)
        if self.live:
            self.earlier.add(self.channel)
        row = self._story.row
        number = self.replacements.number
        self.channel = media_channel_id(self._services.node, CallId(row.call_id), number)
        self.live = self.started = self.rtp.attached = False
        # First of all, for a third channel in the bridge makes Asterisk mix, and the caller hear himself late.
        await self._hang_up_earlier()
        leg_uuid = new_leg_uuid(os.urandom)
        try:
            self.worker = next(
                (info for info in await self._services.present.workers() if info.worker_id == row.worker_id), None
            )
            if self.worker is None:
                return Message(Trigger.MEDIA_FAILED, detail=f"worker {row.worker_id} is gone")
            created_ms, seconds = time.time_ns() // 1_000_000, self._services.settings.spec_seconds
            spec = replacing_spec(row, leg_uuid, number, self._media_format, created_ms, seconds)
            await self._services.present.put_spec(spec)
        except (StoreUnavailable, NotTaken) as error:
            return Message(Trigger.MEDIA_FAILED, detail=str(error))
        failed = await self.attach(actor, self._media_format, leg_uuid)
        self.report_due = True  # whatever becomes of this leg, the worker holds the session
        return failed

    async def begin_anew(self, worker: WorkerInfo, leg_uuid: LegUuid) -> None:
        """The call is another worker's: what was made for the one before goes, and the next leg has this UUID."""
        if self.live:
            self.earlier.add(self.channel)
        self.replacements.anew()
        self.channel = media_channel_id(self._services.node, CallId(self._story.row.call_id), self.replacements.number)
        self.worker, self.leg_uuid = worker, leg_uuid
        self.live = self.started = self.report_due = self.rtp.attached = self.by_websocket = False
        self._lost_number = 0
        await self._hang_up_earlier()  # first of all, see `replace`

    async def end(self) -> None:
        """Tells the worker that the call is over, where it does not learn that from the leg's end; in time it would
        find out by itself."""
        if self.report_due and (self.rtp.used or self.replacements.holds):
            try:
                await self._send_order(LegOrder(leg_uuid=self.leg_uuid, order="end"))
            except StoreUnavailable as error:
                self._log.warning("end_not_sent", detail=str(error))

    async def hang_up(self) -> None:
        """Hangs up what lives of the legs, and tells the worker where it does not learn it from the leg's end."""
        told = asyncio.ensure_future(self.end())
        await asyncio.gather(told, self._hang_up_legs(told))

    async def _open_leg(self, leg_uuid: LegUuid, remote: str, media_format: MediaFormat) -> Message | None:
        try:
            if await self.rtp.open(leg_uuid, remote, media_format):
                return None  # its notice that the leg is open is what counts
        except StoreUnavailable as error:
            return Message(Trigger.MEDIA_FAILED, detail=str(error))  # it may have heard
        self.report_due = False
        return Message(Trigger.MEDIA_FAILED, detail="the worker does not hear orders")

    async def _hang_up_legs(self, told: asyncio.Future[None]) -> None:
        # The worker hears of the end before it sees the leg go; but no leg waits for a Redis that does not answer.
        await asyncio.wait((told,), timeout=TELL_SECONDS)
        if self.live:
            try:
                if not await self._services.hang_up(self.channel):
                    self.live = False
            except AriError as error:
                self._log.warning("hangup_failed", channel=self.channel, detail=str(error))
        await self._hang_up_earlier()

    async def _hang_up_earlier(self) -> None:
        for channel in sorted(self.earlier):
            try:
                if not await self._services.hang_up(channel):
                    self.earlier.discard(channel)
            except AriError as error:
                self._log.warning("hangup_failed", channel=channel, detail=str(error))

    async def _send_order(self, order: LegOrder) -> bool:
        return await self._services.present.send_order(self._story.row.worker_id or "", order)
