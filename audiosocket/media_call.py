"""One call on this worker, from the accepted connection to the report: leg, session and applications put together.

One task per call runs `MediaCall.run`; a fault in it ends this call, is counted, and harms no other. The hot path does
not pass through the task: the leg and the stream call the session directly. What comes after what is decided in
`audiosocket.stages`; one application's turn is an `AppStage`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import structlog

from audiosocket.app_stage import AppStage, CallServices, LegEvents
from audiosocket.call_legs import CallLegs
from audiosocket.callspec import (
    CallNotice,
    CallReport,
    CallSpec,
    EndReason,
    LegOrder,
    MediaFigures,
    Milestone,
    NoticeEvent,
    masked_url,
)
from audiosocket.clock import now_ms
from audiosocket.dialects import open_dialect
from audiosocket.errors import ConfigError
from audiosocket.legs.base import MediaLeg
from audiosocket.recording.recordings import BLOCK_MS, Recording
from audiosocket.session import Session, nowhere
from audiosocket.stages import Dial, Ending, Finish, Play, Stages
from audiosocket.wire import FRAME_MS

MAX_MILESTONES = 200
"""Bound of a call's story: an application that clears ten times a second must not fill the store."""
_REPEATED = ("clear", "dtmf", "dtmf_unheard", "digits_to_caller", "leg_replaced")
"""What may come without end, and is told up to that bound. The others have bounds of their own and are always told: a
call that has been cleared for an hour fails like any other."""
TAIL_SECONDS = 0.1
"""Silence behind a prompt, so that its end is not lost in the caller's jitter buffer when the leg is hung up."""

log = structlog.get_logger(__name__)


class MediaCall:
    """One call from its first media leg on. `run` never raises, except for its own cancellation."""

    def __init__(self, leg: MediaLeg, spec: CallSpec, services: CallServices) -> None:
        self.spec = spec
        self.end_reason = EndReason.WORKER_STOPPED
        self._services = services
        self._stages = Stages(spec)
        self._stage: AppStage | None = None
        self._session: Session | None = None
        self._recording: Recording | None = None
        self._last: tuple[AppStage, Ending, int] | None = None
        """Of which stream's end the platform's callback has to tell yet, and when that was (Unix time in ms)."""
        self._closing: set[asyncio.Task[None]] = set()
        self._started_ms = now_ms()
        self._connect_ms = -1
        self._first_audio_ms = -1
        self._setup_app_ms = -1
        self._setup_caller_ms = -1
        self._milestones: list[Milestone] = []
        self._stopping: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()
        self._legs = CallLegs(
            leg, spec, services.clock, services.reachable, lambda: self._notify("leg_lost", ""), self._note
        )
        self._events = LegEvents((self._legs.gone, self._stopping), self._note, self._notify)
        self._log = log.bind(call_id=spec.call_id, application=spec.application)

    def stop(self, reason: EndReason, detail: str = "") -> None:
        """Asks the call to end; `run` then does it in order."""
        if not self._stopping.done():
            self._stopping.set_result(Ending(reason, detail))

    def order(self, order: LegOrder) -> None:
        """What the controller wants of this call."""
        session = self._session
        if order.order == "end":
            self._legs.end()
        elif order.order == "lost":
            self._legs.lose(order.leg_number)
        elif order.order == "release" and session is not None:
            session.release()
        elif order.order == "digits" and session is not None:
            for digit in order.digits:
                session.digit(digit)

    def attach(self, leg: MediaLeg, spec: CallSpec) -> str:
        """Another leg takes the place of a lost one. Returns why it is refused, or nothing."""
        return self._legs.attach(leg, spec)

    def attached(self) -> None:
        """Tells the controller that the leg is open, where Asterisk does not show it."""
        self._notify("attached", "")

    async def run(self, report: Callable[[CallReport], Awaitable[None]]) -> None:
        """Carries the call to its end, then hands its report to `report`."""
        ending = Ending(EndReason.WORKER_STOPPED, "the worker was stopped")
        try:
            ending = await self._carry()
        except ConfigError as error:
            ending = Ending(EndReason.WORKER_ERROR, str(error))
        except Exception as error:
            self._log.exception("call_failed")
            ending = Ending(EndReason.WORKER_ERROR, f"{type(error).__name__}: {error}")
        finally:
            reason, detail = ending.reason, ending.detail
            self.end_reason = reason
            self._note("ended", {"reason": reason.value, "detail": detail})
            self._legs.close()
            if self._recording is not None:
                self._recording.close()
            if self._session is not None:
                self._session.turns.end(self._session.ticks)
            self._leave(ending)
            try:
                await self._end_recording()
            finally:
                self._tell_end()
                summary = self.figures()
                self._log.info(
                    "media_ended",
                    reason=reason.value,
                    detail=detail,
                    failed=self._stages.failed,
                    seconds=round((now_ms() - self._started_ms) / 1000, 1),
                    caller_frames=summary.caller_frames,
                    frames_played=summary.frames_played,
                )
                await report(
                    CallReport(
                        call_id=self.spec.call_id,
                        leg_uuid=self.spec.leg_uuid,
                        lease_token=self.spec.lease_token,
                        worker_id=self._services.worker_id,
                        reason=reason,
                        detail=detail,
                        started_at_ms=self._started_ms,
                        ended_at_ms=now_ms(),
                        figures=summary,
                        milestones=self._milestones,
                        application=self._stages.application,
                        failed=self._stages.failed,
                        recording=self.recording,
                        recorded_at_ms=self._recording.began_at_ms if self._recording and self.recording else 0,
                    )
                )
                # Behind the report: the controller keeps the caller for it, and an application that hangs answers no
                # close.
                if self._closing:
                    await asyncio.wait(self._closing)

    def let_go(self) -> None:
        """To be called when all is over. What refers to the call is no longer referred to by it: it goes at once, and
        with no collection of garbage, for which the frames of all others would wait."""
        self._closing.clear()
        if self._session is not None:
            self._session.let_go()
        self._session = self._last = None
        self._legs.let_go()
        del self._events

    @property
    def recording(self) -> str:
        """Path or URL of the recording; empty: there is none."""
        return "" if self._recording is None else self._recording.where

    def counters(self) -> MediaFigures:
        """What has been carried so far, without times and peaks."""
        figures = MediaFigures() if self._session is None else self._session.counters()
        self._legs.add_figures(figures)
        return figures

    def figures(self) -> MediaFigures:
        """What has been carried so far."""
        figures = MediaFigures() if self._session is None else self._session.figures()
        figures.connect_ms = self._connect_ms
        figures.first_audio_ms = self._first_audio_ms
        figures.setup_app_ms = self._setup_app_ms
        figures.setup_caller_ms = self._setup_caller_ms
        self._legs.add_figures(figures)
        return figures

    def status(self) -> dict[str, Any]:
        """The call as the status endpoint shows it."""
        stage = self._stage
        return {
            "call_id": self.spec.call_id,
            "application": self._stages.application,
            "url": masked_url(self.spec.url if stage is None else stage.spec.url),
            "seconds": round((now_ms() - self._started_ms) / 1000, 1),
            "connected": stage is not None and stage.opened,
            "leg_lost": self._legs.held,
            "playout_ms": 0 if self._session is None else self._session.playout.depth_ms,
            "pending_marks": 0 if self._session is None else self._session.playout.pending_marks,
        }

    # Inside

    async def _carry(self) -> Ending:
        step: Dial | Play | Finish = self._stages.first()
        ending: Ending | None = None
        while True:
            match step:
                case Dial():
                    ending = await self._dial(step, ending)
                case Play():
                    ending = await self._play(step.prompt)
                case Finish():
                    return step.ending
            opened = self._stage is not None and self._stage.opened
            if ending is not None:
                self._leave(ending)
            answered = self._session is None or self._session.answered
            step = self._stages.after(ending, opened=opened, answered=answered)
            # Behind a tone or a prompt the call is over, and a recording whole.
            if isinstance(step, Dial) or (isinstance(step, Play) and self._recording is None):
                self._tell_end()

    async def _dial(self, step: Dial, before: Ending | None) -> Ending:
        # Whoever follows: the leg stays what Asterisk was asked for.
        spec = msgspec.structs.replace(step.spec, media_format=self.spec.media_format)
        dialect = open_dialect(spec)
        times = self._services.turn_times(spec.application)
        session = self._session
        if session is None:
            session = self._session = Session(spec, dialect, nowhere, self._note, times, self._notify)
            self._legs.carry(session)
        else:
            event = "fallback_started" if step.fallback else "next_started"
            self._note(event, {"application": spec.application, "after": before.reason.value if before else ""})
            session.switch(spec, dialect, times)
        if spec.recording and self._recording is None and self._services.recordings is not None:
            begin = self._services.recordings.begin
            # The parts of a call that has been moved have names of their own, wherever they are, that tell their order.
            name = f"{spec.call_sid}-{self.spec.lease_token}" if self.spec.begins else spec.call_sid
            told = self._recording_begun, self._recording_over
            self._recording = begin(name, spec.media_format, *told, self._legs.leg.queue_ticks)
            session.recorder = self._recording.recorder
        self._stage = AppStage(spec, dialect, session, self._events, self._services)
        ending = await self._stage.run()
        if ending is None:
            return self._leg_ending()
        if ending.failure:
            self._note("app_failed", {"reason": ending.reason.value, "detail": ending.detail})
        return ending

    async def _play(self, prompt: str) -> Ending | None:
        """Plays a prompt to its end: None, or what ended the call meanwhile."""
        session = self._session
        assert session is not None
        prompts = self._services.prompts
        if prompt not in prompts:
            self._log.error("prompt_missing", prompt=prompt)
            self._note("prompt_missing", {"prompt": prompt})
            prompt = ""
        frames = prompts.frames(prompt, self.spec.media_format.sample_rate)
        over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._note("prompt_started", {"prompt": prompt, "ms": len(frames) * FRAME_MS})
        session.play(iter(frames), lambda: over.set_result(None))
        if not session.answered:
            self._notify("connected", "")
            self._notify("speaking", "")
        await asyncio.wait((over, *self._events.over), return_when=asyncio.FIRST_COMPLETED)
        if self._events.interrupted:
            return self._leg_ending()
        await asyncio.sleep(TAIL_SECONDS)
        return None

    def _leave(self, ending: Ending) -> None:
        """Ends the stage. Its socket is closed behind the call's back: the caller does not wait for that."""
        if self._stage is not None:
            self._last = self._stage, ending, now_ms()
            self._stage.finish(ending.reason)
            self._closing.add(asyncio.create_task(self._stage.close(), name=f"close {self.spec.call_id}"))
            self._stage = None

    def _tell_end(self) -> None:
        """The platform's callback of the last stream's end: at once, or as soon as it is known whether the recording
        that it names is there."""
        if self._last is None:
            return
        last, self._last = self._last, None
        if self._recording is None or self._recording.known:
            self._told_end(*last)
        else:
            telling = self._tell_end_later(self._recording, *last)
            self._closing.add(asyncio.create_task(telling, name=f"callback {self.spec.call_id}"))

    async def _tell_end_later(self, recording: Recording, stage: AppStage, ending: Ending, at_ms: int) -> None:
        await recording.begun()
        self._told_end(stage, ending, at_ms)

    def _told_end(self, stage: AppStage, ending: Ending, at_ms: int) -> None:
        stage.callbacks.ended(ending.reason, ending.detail, at_ms, self.recording)

    async def _end_recording(self) -> None:
        if self._recording is None:
            return
        await self._recording.closed()
        if self._recording.lost_blocks:
            self._note("recording_incomplete", {"silent_ms": self._recording.lost_blocks * BLOCK_MS})

    def _recording_begun(self) -> None:
        """Told at once: of a worker that is killed it is never told again."""
        if self._session is not None:
            self._notify("recorded", "", self.recording)

    def _recording_over(self, reason: str, detail: str) -> None:
        """The recording has ended before the call: that goes on."""
        if self._session is not None:
            self._session.recorder = None
        self._log.warning("recording_ended", reason=reason, detail=detail)
        self._note("recording_ended", {"reason": reason, "detail": detail})

    def _leg_ending(self) -> Ending:
        if self._legs.gone.done():
            return Ending(EndReason(self._legs.end_reason), self._legs.end_detail)
        return self._stopping.result()

    def _notify(self, event: NoticeEvent, digits: str, recording: str = "") -> None:
        notice = CallNotice(
            call_id=self.spec.call_id,
            leg_uuid=self.spec.leg_uuid,
            event=event,
            digits=digits,
            recording=recording,
            leg_number=self._legs.number,
            media_format=self.spec.media_format,
            at_ms=now_ms(),
        )
        self._services.notify(self.spec, notice)

    def _note(self, event: str, detail: dict[str, Any]) -> None:
        at_ms = now_ms()
        since_arrival = max(0, at_ms - self.spec.arrived_at_ms) if self.spec.arrived_at_ms else -1
        if event == "first_app_audio":
            self._first_audio_ms = at_ms - self._started_ms
            self._setup_app_ms = since_arrival
        elif event == "first_caller_audio":
            self._setup_caller_ms = since_arrival
        elif event == "app_connected" and self._connect_ms < 0:
            self._connect_ms = detail["ms"]
        if len(self._milestones) < MAX_MILESTONES or event not in _REPEATED:
            self._milestones.append(Milestone(at_ms, event, detail))
