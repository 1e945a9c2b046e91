"""How a call comes to a slot of its application's: at once, after waiting in line, or at another application.

The rules are in `ari_app.call.full`; counting, and the line, are Redis' (`ari_app.fleet.leases`). A caller who waits
asks again and again, which keeps his place.
"""

from __future__ import annotations

import dataclasses
import time

import structlog

from ari_app.ari.errors import AriError
from ari_app.call.full import elsewhere
from ari_app.call.machine import State, Trigger
from ari_app.call.routing import Admission, NotAdmitted
from ari_app.controller.actions import CallActions
from ari_app.controller.messages import Message
from ari_app.controller.services import Services
from ari_app.controller.story import Story, now
from ari_app.domain.ids import CallId
from ari_app.errors import TrunkbridgeError
from ari_app.limit import LimitSettings

ASK_SECONDS = 0.3
"""How often a caller who waits asks whether it is his turn."""

log = structlog.get_logger(__name__)


class Waiting:
    """The way of one call to its slot."""

    def __init__(
        self,
        services: Services,
        story: Story,
        actions: CallActions,
        admission: Admission | NotAdmitted | None,
        *,
        forks: bool,
    ) -> None:
        self.admission = admission
        """What the call is for now."""
        self.until = 0.0
        """The monotonic time up to which the caller may wait."""
        self._services = services
        self._story = story
        self._actions = actions
        self._forks = forks
        self._line = ""
        """The application in whose line the caller has a place."""
        self._music = ""
        """What Asterisk plays him."""
        self._log = log.bind(call_id=story.row.call_id, trunk=story.row.trunk or "")

    async def place(self) -> Message:
        """Asks for a slot, at the application that the call is for and at those that it is redirected to."""
        message = await self._actions.place(self._wanted)
        if message.trigger is not Trigger.PLACE_FAILED or message.reason != "app_full" or self._forks:
            return await self._placed(message)
        if message.place:
            self._wait(self._limit.queue.max_seconds)
            return Message(Trigger.QUEUED, detail=f"{self._line}, place {message.place}")
        full = "queue_full" if self._limit.when_full == "queue" else "app_full"
        return await self._leave_for(dataclasses.replace(message, reason=full))

    async def hold(self) -> Message | None:
        """Lets the caller hear what is to be heard while he waits."""
        self._story.update(state=State.QUEUED.value)
        music = self._limit.queue.music_class
        if music is None:
            return None if self._answered else await self._actions.ring()
        if not self._answered:
            failed = await self._actions.answer()
            if failed is None or failed.trigger is not Trigger.ANSWERED:
                return failed
            self._story.update(state=State.QUEUED.value)
        try:
            await self._services.ari.start_music(self._actions.caller_channel, music)
            self._music = music
        except AriError as error:
            self._log.warning("no_hold_audio", music=music, detail=str(error))
        return None

    async def resume(self) -> Message | None:
        """Takes over a caller who has waited under another controller."""
        waited = (now() - self._story.row.created_at).total_seconds()
        self._wait(max(0.0, self._limit.queue.max_seconds - waited))
        self._story.event("adopted")
        return await self.hold()

    async def ask(self) -> Message | None:
        """Asks whether it is the caller's turn; None: not yet. He may come to wait at another application."""
        message = await (self._over() if time.monotonic() >= self.until else self._ask())
        return None if message is not None and message.trigger is Trigger.QUEUED else message

    async def leave(self) -> None:
        """Gives up the caller's place in line; one that cannot be given up is lost by itself."""
        line, self._line = self._line, ""
        if line:
            try:
                await self._services.leases.leave_queue(CallId(self._story.row.call_id), line)
            except TrunkbridgeError as error:
                self._log.warning("line_not_left", detail=str(error))

    async def quiet(self) -> None:
        """Ends what the caller hears."""
        music, self._music = self._music, ""
        if music:
            try:
                await self._services.ari.stop_music(self._actions.caller_channel)
            except AriError as error:
                self._log.warning("hold_audio_not_ended", detail=str(error))

    def _wait(self, seconds: float) -> None:
        self._line = self._wanted.application_name
        self.until = time.monotonic() + seconds

    async def _ask(self) -> Message | None:
        self.admission = dataclasses.replace(self._wanted, answered=self._answered)
        message = await self._actions.place(self._wanted)
        # Of workers that are full, and of a Redis that is away, it is hoped that they are not for long.
        if message.trigger is Trigger.PLACE_FAILED and (message.place or message.reason == "redis"):
            return None
        if message.trigger is Trigger.PLACE_FAILED and message.reason == "app_full":
            self._line = ""  # it was lost, and has no room for him any more
            return await self._leave_for(dataclasses.replace(message, reason="queue_full"))
        return await self._placed(message)

    async def _over(self) -> Message | None:
        await self.leave()
        detail = f"{self._wanted.application_name} had no place for {self._limit.queue.max_seconds:g} s"
        return await self._leave_for(Message(Trigger.QUEUE_TIMEOUT, detail=detail, reason="queue_timeout"))

    async def _placed(self, message: Message) -> Message:
        if message.trigger is Trigger.PLACE_FAILED:
            await self.leave()
            return message
        self._line = ""
        if not self._answered:
            return message
        self._story.update(state=State.ATTACHING.value)
        return dataclasses.replace(message, trigger=Trigger.PLACED_UP)

    async def _leave_for(self, message: Message) -> Message:
        """What follows where there is no place: another application, or how the caller leaves us."""
        there = elsewhere(self._limit)
        if there.application is None:
            trigger = message.trigger if there.onward is None else Trigger.SENT_ON
            return dataclasses.replace(message, trigger=trigger, onward=there.onward, cause=int(there.cause))
        self._story.event("redirected", cause=message.reason, detail=f"to application {there.application}")
        self._story.update(application=there.application)
        application = self._services.applications[there.application]
        self.admission = self._wanted.redirected(there.application, application, answered=self._answered)
        return await self.place()

    @property
    def _wanted(self) -> Admission:
        assert isinstance(self.admission, Admission)
        return self.admission

    @property
    def _limit(self) -> LimitSettings:
        return self._wanted.application.limit

    @property
    def _answered(self) -> bool:
        return self._story.row.answered_at is not None
