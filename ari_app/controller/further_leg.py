"""What an actor does for a call whose media leg is lost: another one is made, and put into the same bridge."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from ari_app.ari.errors import AriConflict, AriError, AriInvalid
from ari_app.call.machine import Trigger
from ari_app.controller.actions import CallActions, Message
from ari_app.controller.spec import replacing_spec
from ari_app.domain.ids import MAX_ATTEMPT, CallId, ChannelId, media_channel_id, new_leg_uuid
from ari_app.errors import StoreUnavailable
from audiosocket.callspec import CallNotice, LegOrder, MediaFormat

if TYPE_CHECKING:
    from ari_app.controller.actor import CallActor


class LegActions(CallActions):
    """The means of one call, further legs than the first included."""

    _media_format = MediaFormat.ULAW
    """What the worker wants the next leg to carry."""
    _lost_number = 0
    """Up to here, legs are known to be gone."""

    def media_channels(self) -> list[ChannelId]:
        """Those of all legs so far."""
        call_id, node = CallId(self._story.row.call_id), self._services.node
        return [media_channel_id(node, call_id, number) for number in range(self.replacements.number + 1)]

    def know_leg(self, number: int | None) -> None:
        """The leg that an earlier controller has made last; None: Asterisk has none any more, whichever it was."""
        if number is None:
            self._lost_number = MAX_ATTEMPT
            return
        self.replacements.number = number
        self.media_channel = media_channel_id(self._services.node, CallId(self._story.row.call_id), number)

    async def inquire(self, *, talked: bool) -> None:
        """Tells the worker that the media channel is gone: whether it waits for another leg, or ends the call, or has
        ended it before, is told by what it says then."""
        if not (talked and self.replacements.wanted):
            await self.end_leg()
            return
        try:
            number = max(self.replacements.number, self._lost_number)
            await self._send_order(LegOrder(leg_uuid=self._leg_uuid, order="lost", leg_number=number))
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
        if self.media_live:
            self.earlier_media.add(self.media_channel)
        row = self._story.row
        number = self.replacements.number
        self.media_channel = media_channel_id(self._services.node, CallId(row.call_id), number)
        self.media_live = self.media_started = self.rtp_leg.attached = False
        # First of all, for a third channel in the bridge makes Asterisk mix, and the caller hear himself late.
        await self._hang_up_earlier()
        leg_uuid = new_leg_uuid(os.urandom)
        try:
            self._worker = next(
                (info for info in await self._services.present.workers() if info.worker_id == row.worker_id), None
            )
            if self._worker is None:
                return Message(Trigger.MEDIA_FAILED, detail=f"worker {row.worker_id} is gone")
            created_ms, seconds = time.time_ns() // 1_000_000, self._services.settings.spec_seconds
            spec = replacing_spec(row, leg_uuid, number, self._media_format, created_ms, seconds)
            await self._services.present.put_spec(spec)
        except StoreUnavailable as error:
            return Message(Trigger.MEDIA_FAILED, detail=str(error))
        failed = await self.attach(actor, self._media_format, leg_uuid)
        self.report_due = True  # whatever becomes of this leg, the worker holds the session
        return failed

    async def rejoin(self) -> Message | None:
        """Puts the media channel into the bridge in which the caller waits."""
        try:
            await self._services.ari.add_to_bridge(self.bridge, self.media_channel)
        except (AriConflict, AriInvalid):
            return None  # one of the two is gone: its event says which, or the time limit
        except AriError as error:
            return Message(Trigger.BRIDGE_FAILED, detail=str(error))
        self.replacements.carries(time.monotonic())
        return Message(Trigger.BRIDGED)
