"""One application's turn on a media leg: it is dialled, carries the call, and its stream is ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from audiosocket.app_stream import AppStream, Dialler
from audiosocket.breaker import Outcome
from audiosocket.breakers import BreakerDesk, Permit
from audiosocket.callspec import CallNotice, CallSpec, EndReason, NoticeEvent, masked_url
from audiosocket.clock import Clock
from audiosocket.dialects import open_dialect
from audiosocket.dialects.base import Dialect
from audiosocket.durations import TurnTimes
from audiosocket.errors import ApplicationError
from audiosocket.platform_http import PlatformHttp, StreamCallbacks
from audiosocket.prompts import Prompts
from audiosocket.recording.recordings import Recordings
from audiosocket.session import Session
from audiosocket.settings import is_http
from audiosocket.stages import Ending, of_stream, stop_word
from audiosocket.stream_limits import StreamLimits
from audiosocket.trial import Trial
from audiosocket.wire import FRAME_MS

RETRY_SECONDS = 0.2
"""Pause before the handshake is tried again."""


@dataclass(frozen=True, slots=True)
class CallServices:
    """What the calls of a worker share."""

    worker_id: str
    clock: Clock
    dialler: Dialler
    http: PlatformHttp
    recordings: Recordings | None
    """None: nothing is recorded."""
    prompts: Prompts
    breakers: BreakerDesk
    turn_times: Callable[[str], TurnTimes]
    """By application."""
    notify: Callable[[CallSpec, CallNotice], None]
    """Tells the controller. Returns at once."""
    reachable: Callable[[], bool]
    """Whether the controller can be told."""


@dataclass(frozen=True, slots=True)
class LegEvents:
    """What a stage shares with its call."""

    over: tuple[asyncio.Future[None], asyncio.Future[Ending]]
    """Done when the leg is gone for good, and when the call is to stop."""
    note: Callable[[str, dict[str, Any]], None]
    """Adds to the call's story."""
    notify: Callable[[NoticeEvent, str], None]
    """Tells the controller (`event`, `digits`)."""

    @property
    def interrupted(self) -> bool:
        """Whether the call is over, whatever its application does."""
        return any(future.done() for future in self.over)


class AppStage:
    """See the module's text. It owns its stream, and hands what the application sends to the session."""

    def __init__(
        self, spec: CallSpec, dialect: Dialect, session: Session, events: LegEvents, services: CallServices
    ) -> None:
        self.spec = spec
        self.opened = False
        """Whether the stream has been open."""
        self.app_text: Callable[[bytes], None] = session.app_text
        self.callbacks = StreamCallbacks(services.http, dialect, spec.call_id)
        self._dialect = dialect
        self._session = session
        self._events = events
        self._services = services
        self._stream: AppStream | None = None
        self._finished = False
        self._timer: asyncio.TimerHandle | None = None

    # StreamOwner; `app_text` is the session's own, as long as the stream lasts

    def app_binary(self) -> None:
        if not self._finished:
            self._session.ignore("binary")

    def app_blocked(self, blocked: bool) -> None:
        if not self._finished:
            self._session.app_blocked = blocked

    # For the call

    async def run(self) -> Ending | None:
        """Dials, and carries the stream to its end; None when the call was over first."""
        permit = await self._services.breakers.ask(self.spec)
        if not permit.granted:
            return Ending(EndReason.APP_SUSPENDED, f"suspended for up to {self.spec.breaker_seconds:g} s")
        heard = self._session.bytes_received
        try:
            stream = await self._connect() if await self._resolve() else None
        except ApplicationError as error:
            permit.tell(Outcome.BAD)
            return Ending(EndReason(error.reason), error.detail)
        if stream is None:
            permit.tell(Outcome.NONE)
            return None
        self._stream = stream
        self.opened = True
        self._session.open(stream.send)
        if not self._session.answered:
            self._events.notify("connected", "")
        self.callbacks.started()
        trial = Trial(self.spec, self._session, heard)
        ending = await self._carry(stream, permit, trial)
        permit.tell(trial.ended(self._session, ending))  # unless it has passed, and that is told
        return ending

    def finish(self, reason: EndReason) -> None:
        """The stream is over: the application is told so where it can be, and heard no more."""
        if self._finished:
            return
        self._finished = True
        self.app_text = _unheard
        if self._stream is not None:
            self._stream.mute()
        word = stop_word(reason)
        if word:
            self._session.stop(word)
        self._session.lost()

    async def close(self) -> None:
        """Closes the socket; a slow application may take a moment."""
        if self._stream is not None:
            await self._stream.close()
            self._stream = None

    # Inside

    async def _carry(self, stream: AppStream, permit: Permit, trial: Trial) -> Ending | None:
        reached: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()
        ended = asyncio.ensure_future(stream.wait_closed())
        try:
            self._look(StreamLimits(self.spec, self._session), permit, trial, reached)
            await asyncio.wait((ended, reached, *self._events.over), return_when=asyncio.FIRST_COMPLETED)
            if self._events.interrupted:
                return None
            if ended.done():
                reason, detail = ended.result()
                return of_stream(self.spec, EndReason(reason), detail, reset=stream.reset)
            return reached.result()
        finally:
            ended.cancel()
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def _look(self, limits: StreamLimits, permit: Permit, trial: Trial, reached: asyncio.Future[Ending]) -> None:
        found = limits.look(self._session)
        if trial.passed(self._session):
            permit.tell(Outcome.GOOD)
        else:
            permit.renew()
        if isinstance(found, Ending):
            reached.set_result(found)
        else:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(found * FRAME_MS / 1000, self._look, limits, permit, trial, reached)

    async def _resolve(self) -> bool:
        """Asks for the URL to dial, where it has to be; False when the call ended meanwhile. Raises
        `ApplicationError`."""
        if not is_http(self.spec.url):
            return not self._events.interrupted
        self._events.note("app_url_asked", {"url": masked_url(self.spec.url)})
        resolving = asyncio.ensure_future(self._services.http.resolve(self.spec))
        try:
            await asyncio.wait((resolving, *self._events.over), return_when=asyncio.FIRST_COMPLETED)
            if self._events.interrupted:
                return False
            self.spec = spec = resolving.result()
        finally:
            resolving.cancel()
            await asyncio.gather(resolving, return_exceptions=True)
        self._dialect = open_dialect(spec)
        self._session.adopt(spec, self._dialect)
        self.callbacks = StreamCallbacks(self._services.http, self._dialect, spec.call_id)
        return True

    async def _connect(self) -> AppStream | None:
        """The application's stream; None when the call ended before it was there. Raises `ApplicationError`."""
        self._events.note("app_connecting", {"url": masked_url(self._dialect.url)})
        connecting = asyncio.ensure_future(self._dial())
        try:
            await asyncio.wait((connecting, *self._events.over), return_when=asyncio.FIRST_COMPLETED)
            return None if self._events.interrupted else connecting.result()
        finally:
            if not connecting.done():
                connecting.cancel()
            elif self._events.interrupted and not connecting.cancelled() and connecting.exception() is None:
                # Both came in the same turn of the loop: nobody will use this socket.
                await connecting.result().close()
            del connecting  # its error holds this frame, which is not to hold it

    async def _dial(self) -> AppStream:
        spec = self.spec
        began = time.monotonic()
        for attempt in range(1, spec.connect_attempts + 1):
            try:
                stream = await self._services.dialler.dial(
                    self._dialect.url,
                    self._dialect.headers(),
                    spec.connect_timeout_seconds,
                    spec.message_max_bytes,
                    self,
                )
            except ApplicationError as error:
                failed = {"attempt": attempt, "reason": error.reason, "detail": error.detail}
                self._events.note("app_connect_failed", failed)
                if attempt == spec.connect_attempts:
                    raise
                await asyncio.sleep(RETRY_SECONDS)
            else:
                self._events.note("app_connected", {"attempt": attempt, "ms": round((time.monotonic() - began) * 1000)})
                return stream
        raise AssertionError("a call spec allows at least one attempt")


def _unheard(message: bytes) -> None:
    """What an application sends behind its stream's end."""
