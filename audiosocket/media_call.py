"""One call on this worker, from the accepted connection to the report: leg, session and application put together.

One task per call runs `MediaCall.run`; a fault in it ends this call, is counted, and harms no other. The hot path does
not pass through the task: the leg and the stream call the session directly.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import structlog

from audiosocket.app_stream import AppStream, Dialler
from audiosocket.callspec import CallReport, CallSpec, EndReason, MediaFigures, Milestone, masked_url
from audiosocket.dialects import open_dialect
from audiosocket.dialects.base import Dialect
from audiosocket.durations import TurnTimes
from audiosocket.errors import ApplicationError, ConfigError
from audiosocket.legs.audiosocket import AudioSocketLeg
from audiosocket.platform_http import PlatformHttp, StreamCallbacks
from audiosocket.recording.recordings import BLOCK_MS, Recording, Recordings
from audiosocket.session import Session

RETRY_SECONDS = 0.2
"""Pause before the handshake is tried again."""
MAX_MILESTONES = 200
"""Bound of a call's story: an application that clears ten times a second must not fill the store."""
_ALWAYS_TOLD = ("ended", "recording_ended", "recording_incomplete")

log = structlog.get_logger(__name__)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


class MediaCall:
    """The life of one media leg. `run` never raises, except for its own cancellation."""

    def __init__(
        self,
        leg: AudioSocketLeg,
        spec: CallSpec,
        worker_id: str,
        dialler: Dialler,
        times: TurnTimes,
        http: PlatformHttp,
        recordings: Recordings | None = None,
    ) -> None:
        self.spec = spec
        self.end_reason = EndReason.WORKER_STOPPED
        self._leg = leg
        self._worker_id = worker_id
        self._dialler = dialler
        self._times = times
        self._http = http
        self._callbacks: StreamCallbacks | None = None
        self._recordings = recordings
        self._recording: Recording | None = None
        self._stream: AppStream | None = None
        self._session: Session | None = None
        self._started_ms = _now_ms()
        self._connect_ms = -1
        self._first_audio_ms = -1
        self._milestones: list[Milestone] = []
        self._stopping = asyncio.get_running_loop().create_future()
        self._log = log.bind(call_id=spec.call_id, application=spec.application)

    def stop(self, reason: EndReason, detail: str = "") -> None:
        """Asks the call to end; `run` then does it in order."""
        if not self._stopping.done():
            self._stopping.set_result((reason, detail))

    async def run(self, report: Callable[[CallReport], Awaitable[None]]) -> None:
        """Carries the call to its end, then hands its report to `report`."""
        reason, detail = EndReason.WORKER_STOPPED, "the worker was stopped"
        try:
            reason, detail = await self._carry()
        except ApplicationError as error:
            reason, detail = EndReason(error.reason), error.detail
        except ConfigError as error:
            reason, detail = EndReason.WORKER_ERROR, str(error)
        except Exception as error:
            self._log.exception("call_failed")
            reason, detail = EndReason.WORKER_ERROR, f"{type(error).__name__}: {error}"
        finally:
            self.end_reason = reason
            self._note("ended", {"reason": reason.value, "detail": detail})
            self._leg.hangup(self._leg.end_reason, self._leg.end_detail)
            self._leg.session = None
            if self._recording is not None:
                self._recording.close()
            if self._session is not None:
                self._session.turns.end(self._session.ticks)
            try:
                await self._end_stream(reason)
            finally:
                await self._end_recording()
                if self._callbacks is not None:
                    self._callbacks.ended(reason, detail, self.recording)
                summary = self.figures()
                self._log.info(
                    "media_ended",
                    reason=reason.value,
                    detail=detail,
                    seconds=round((_now_ms() - self._started_ms) / 1000, 1),
                    caller_frames=summary.caller_frames,
                    frames_played=summary.frames_played,
                )
                await report(
                    CallReport(
                        call_id=self.spec.call_id,
                        leg_uuid=self.spec.leg_uuid,
                        worker_id=self._worker_id,
                        reason=reason,
                        detail=detail,
                        started_at_ms=self._started_ms,
                        ended_at_ms=_now_ms(),
                        figures=summary,
                        milestones=self._milestones,
                        recording=self.recording,
                    )
                )

    @property
    def recording(self) -> str:
        """Path or URL of the recording; empty: there is none."""
        return "" if self._recording is None else self._recording.where

    def figures(self) -> MediaFigures:
        """What has been carried so far."""
        figures = MediaFigures() if self._session is None else self._session.figures()
        figures.connect_ms = self._connect_ms
        figures.first_audio_ms = self._first_audio_ms
        if self._leg.frames_unsent:
            figures.frames_dropped["leg_blocked"] = self._leg.frames_unsent
        return figures

    def status(self) -> dict[str, Any]:
        """The call as the status endpoint shows it."""
        return {
            "call_id": self.spec.call_id,
            "application": self.spec.application,
            "url": masked_url(self.spec.url),
            "seconds": round((_now_ms() - self._started_ms) / 1000, 1),
            "connected": self._stream is not None,
            "playout_ms": 0 if self._session is None else self._session.playout.depth_ms,
            "pending_marks": 0 if self._session is None else self._session.playout.pending_marks,
        }

    # StreamOwner, on the hot path

    def app_text(self, message: bytes) -> None:
        assert self._session is not None
        self._session.app_text(message)

    def app_binary(self) -> None:
        assert self._session is not None
        self._session.ignore("binary")

    def app_blocked(self, blocked: bool) -> None:
        if self._session is not None:
            self._session.app_blocked = blocked

    # Inside

    async def _carry(self) -> tuple[EndReason, str]:
        dialect = open_dialect(self.spec)
        self._callbacks = StreamCallbacks(self._http, dialect, self.spec.call_id)
        spec = await self._resolve()
        if spec is None:
            return self._leg_ending()
        if spec is not self.spec:
            dialect = open_dialect(spec)
            self._callbacks = StreamCallbacks(self._http, dialect, spec.call_id)
        session = self._session = Session(spec, dialect, self._send, self._note, self._times)
        self._leg.session = session
        if self.spec.recording and self._recordings is not None:
            self._recording = self._recordings.begin(self.spec.call_sid, self.spec.media_format, self._recording_over)
            session.recorder = self._recording.recorder
        stream = await self._connect(dialect)
        if stream is None:
            return self._leg_ending()
        self._stream = stream
        session.open()
        self._callbacks.started()
        ended = asyncio.ensure_future(stream.wait_closed())
        try:
            await asyncio.wait((ended, self._leg.closed, self._stopping), return_when=asyncio.FIRST_COMPLETED)
            if self._leg.closed.done() or self._stopping.done():
                return self._leg_ending()
            reason, detail = ended.result()
            return EndReason(reason), detail
        finally:
            ended.cancel()

    async def _resolve(self) -> CallSpec | None:
        """The spec with the URL to dial; None when the call ended before it was known. Raises `ApplicationError`."""
        resolving = asyncio.ensure_future(self._http.resolve(self.spec))
        try:
            await asyncio.wait((resolving, self._leg.closed, self._stopping), return_when=asyncio.FIRST_COMPLETED)
            return None if self._leg.closed.done() or self._stopping.done() else resolving.result()
        finally:
            resolving.cancel()
            await asyncio.gather(resolving, return_exceptions=True)

    async def _connect(self, dialect: Dialect) -> AppStream | None:
        """The application's stream; None when the call ended before it was there. Raises `ApplicationError`."""
        self._note("app_connecting", {"url": masked_url(dialect.url)})
        connecting = asyncio.ensure_future(self._dial(dialect))
        try:
            await asyncio.wait((connecting, self._leg.closed, self._stopping), return_when=asyncio.FIRST_COMPLETED)
            if self._leg.closed.done() or self._stopping.done():
                return None
            return connecting.result()
        finally:
            if not connecting.done():
                connecting.cancel()
            elif self._leg.closed.done() or self._stopping.done():
                await self._discard(connecting)

    async def _discard(self, connecting: asyncio.Future[AppStream]) -> None:
        # Both came in the same turn of the loop: nobody will use this socket.
        if not connecting.cancelled() and connecting.exception() is None:
            await connecting.result().close()

    async def _dial(self, dialect: Dialect) -> AppStream:
        spec = self.spec
        began = time.monotonic()
        for attempt in range(1, spec.connect_attempts + 1):
            try:
                stream = await self._dialler.dial(
                    dialect.url, dialect.headers(), spec.connect_timeout_seconds, spec.message_max_bytes, self
                )
            except ApplicationError as error:
                self._note("app_connect_failed", {"attempt": attempt, "reason": error.reason, "detail": error.detail})
                if attempt == spec.connect_attempts:
                    raise
                await asyncio.sleep(RETRY_SECONDS)
            else:
                self._connect_ms = round((time.monotonic() - began) * 1000)
                self._note("app_connected", {"attempt": attempt, "ms": self._connect_ms})
                return stream
        raise AssertionError("a call spec allows at least one attempt")

    def _leg_ending(self) -> tuple[EndReason, str]:
        if self._leg.closed.done():
            return EndReason(self._leg.end_reason), self._leg.end_detail
        reason, detail = self._stopping.result()
        return reason, detail

    async def _end_stream(self, reason: EndReason) -> None:
        if self._stream is None:
            return
        if not reason.value.startswith("app_") and self._session is not None:
            # Exotel's words: `callended` when the call is over, `stopped` when the platform ends the stream.
            stopped = reason in (EndReason.WORKER_STOPPED, EndReason.WORKER_ERROR)
            self._session.stop("stopped" if stopped else "callended")
        await self._stream.close()

    async def _end_recording(self) -> None:
        if self._recording is None:
            return
        await self._recording.closed()
        if self._recording.lost_blocks:
            self._note("recording_incomplete", {"silent_ms": self._recording.lost_blocks * BLOCK_MS})

    def _recording_over(self, reason: str, detail: str) -> None:
        """The recording has ended before the call: that goes on."""
        if self._session is not None:
            self._session.recorder = None
        self._log.warning("recording_ended", reason=reason, detail=detail)
        self._note("recording_ended", {"reason": reason, "detail": detail})

    def _send(self, message: bytes) -> None:
        assert self._stream is not None
        self._stream.send(message)

    def _note(self, event: str, detail: dict[str, Any]) -> None:
        at_ms = _now_ms()
        if event == "first_app_audio":
            self._first_audio_ms = at_ms - self._started_ms
        if len(self._milestones) < MAX_MILESTONES or event in _ALWAYS_TOLD:
            self._milestones.append(Milestone(at_ms, event, detail))
