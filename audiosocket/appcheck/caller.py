"""One scripted call: the gateway's session, dialect, clock and WebSocket, with a virtual caller instead of a media leg.

On a slow network everything between us and the application arrives in bursts, both ways: what we send is held back for
half a second at a time, and we read for a tenth of the time only.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable
from typing import Any

from audiosocket.app_stream import CLOSE_SECONDS, AppStream, Dialler
from audiosocket.appcheck.observe import Observer
from audiosocket.appcheck.trace import AUDIBLE_DBFS, Closing, Ending, Farewell, Handshake, Heard, Refusal, Span, Trace
from audiosocket.appcheck.voice import RATE, Line, Samples, level_dbfs, widened
from audiosocket.callspec import CallSpec
from audiosocket.clock import Clock
from audiosocket.dialects import DIALECTS, open_dialect
from audiosocket.errors import ApplicationError
from audiosocket.session import Session
from audiosocket.wire import HEADER_BYTES

BURST_TICKS = 25
"""A slow network delivers every 500 ms."""
READING_TICKS = 2
"""Of these, the ticks in which we read."""
POLL_SECONDS = 0.01


class VirtualCall:
    """A call that is placed, spoken on and hung up; what happens is written on `trace`."""

    def __init__(self, spec: CallSpec, clock: Clock, trace: Trace) -> None:
        self.trace = trace
        self._spec = spec
        self._clock = clock
        self._line = Line(trace.number)
        self._dialect = dialect = open_dialect(spec)
        self._session = Session(spec, dialect, self._send, self._note)
        rate = spec.media_format.sample_rate
        self._times = rate // RATE
        self._observer = Observer(trace, open_dialect(spec), DIALECTS[spec.dialect], rate)
        self._origin = time.monotonic()
        self._held: list[bytes] = []
        self._ticks = 0
        self._ticked = 0.0
        self._last_audible = -1.0
        self._stream: AppStream | None = None
        self._watch: asyncio.Task[tuple[str, str]] | None = None
        self._handle: tuple[int, int] | None = None

    async def open(self, dialler: Dialler) -> None:
        """Dials once and starts the stream. Raises `ApplicationError`, which is on the trace too."""
        spec = self._spec
        began = time.monotonic()
        try:
            stream = await dialler.dial(
                self._dialect.url,
                self._dialect.headers(),
                spec.connect_timeout_seconds,
                spec.message_max_bytes,
                self,
            )
        except ApplicationError as error:
            self.trace.refusal = Refusal(error.reason, error.detail)
            raise
        self._stream = stream
        self._origin = self.trace.opened_at = time.monotonic()
        self.trace.handshake = _handshake(stream, round((self._origin - began) * 1000, 1))
        self._watch = asyncio.create_task(stream.wait_closed(), name="appcheck-stream")
        self._session.open()
        self._handle = self._clock.add(self._tick)

    # What a caller does

    @property
    def now(self) -> float:
        """Seconds since the WebSocket was open."""
        return round(time.monotonic() - self._origin, 4)

    @property
    def over(self) -> bool:
        """Whether the application has ended the call."""
        return self._watch is None or self._watch.done()

    @property
    def heard_anything(self) -> bool:
        """Whether the application was heard yet."""
        return self._last_audible >= 0

    @property
    def bot_speaking(self) -> bool:
        """Whether the application was heard within the last 200 ms."""
        return self.heard_anything and self.now - self._last_audible < 0.2

    def bot_quiet(self, seconds: float) -> bool:
        """Whether the application has not been heard for so long."""
        return self.now - self._last_audible >= seconds

    def heard_since(self, at: float) -> bool:
        """Whether the application was heard after that time."""
        return self._last_audible > at

    @property
    def speaking(self) -> bool:
        """Whether the caller still speaks."""
        return self._line.speaking

    def speak(self, samples: Samples) -> Span:
        """The caller begins to speak; from when until when."""
        # What leaves at the next tick has been spoken since the last one.
        began = self._ticked
        span = Span(began, round(began + self._line.speak(samples), 4))
        self.trace.said.append(span)
        return span

    def press(self, digit: str) -> None:
        """The caller presses a key."""
        self.trace.digits.append(self.now)
        self._session.digit(digit)

    async def until(self, condition: Callable[[], object], seconds: float) -> bool:
        """Waits for `condition`; False when it did not come about in time, or when the application ended the call."""
        deadline = time.monotonic() + seconds
        while not self.over and time.monotonic() < deadline:
            if condition():
                return True
            await asyncio.sleep(POLL_SECONDS)
        return not self.over and bool(condition())

    async def hang_up(self) -> None:
        """Ends the call as the gateway does when the caller hangs up: `stop`, then a close frame."""
        if self._handle is not None:
            self._clock.remove(self._handle)
            self._handle = None
        if self._stream is None or self._watch is None:
            return
        if self._watch.done():
            self._note_ending()
            return
        self._release()
        began = self.now
        self._session.stop("callended")
        await self._stream.close()
        reason, _ = await self._watch
        seconds = round(self.now - began, 4)
        farewell = Farewell.DROPPED if seconds < CLOSE_SECONDS else Farewell.IGNORED
        self.trace.closing = Closing(began, seconds, Farewell.ANSWERED if reason == "app_closed" else farewell)
        self._sum_up()

    # StreamOwner

    def app_text(self, message: bytes) -> None:
        self._observer.text(message, self.now)
        self._session.app_text(message)

    def app_binary(self) -> None:
        self._observer.binary()
        self._session.ignore("binary")

    def app_blocked(self, blocked: bool) -> None:
        self._session.app_blocked = blocked

    # Inside

    def _tick(self, missed: int) -> None:
        now = self._ticked = self.now
        for _ in range(missed + 1):
            frame = self._line.frame()
            self._session.caller_audio(frame if self._times == 1 else widened(frame, self._times))
        if self.trace.slow:
            self._delay()
        out = self._session.tick(missed)
        silence = self._session.linear.silence
        if out == silence:
            return
        for at in range(0, len(out), len(silence)):
            dbfs = level_dbfs(out[at + HEADER_BYTES : at + len(silence)])
            self.trace.heard.append(Heard(now, dbfs))
            if dbfs >= AUDIBLE_DBFS:
                self._last_audible = now

    def _delay(self) -> None:
        turn = self._ticks % BURST_TICKS
        self._ticks += 1
        if turn == 0:
            self._release()
        elif turn == READING_TICKS:
            self._read(False)

    def _release(self) -> None:
        assert self._stream is not None
        held, self._held = self._held, []
        for message in held:
            self._stream.send(message)
        self._read(True)

    def _read(self, on: bool) -> None:
        assert self._stream is not None
        connection = self._stream.transport.underlying_transport
        if not self.trace.slow or connection.is_closing():
            return
        if on:
            connection.resume_reading()
        else:
            connection.pause_reading()

    def _send(self, message: bytes) -> None:
        assert self._stream is not None
        if b'"event":"media"' not in message[:40]:
            self._observer.sent(message, self.now)
        if self.trace.slow:
            self._held.append(message)
        else:
            self._stream.send(message)

    def _note(self, event: str, detail: dict[str, Any]) -> None:
        # The story that a call record keeps; the trace has more of it.
        return None

    def _note_ending(self) -> None:
        assert self._watch is not None
        if self.trace.ending is None:
            reason, detail = self._watch.result()
            self.trace.ending = Ending(self.now, reason, detail)
            self._sum_up()

    def _sum_up(self) -> None:
        self.trace.seconds = self.now
        self.trace.figures = self._session.figures()


def _handshake(stream: AppStream, milliseconds: float) -> Handshake:
    transport = stream.transport
    headers = transport.response.headers
    days, version = None, ""
    tls = transport.underlying_transport.get_extra_info("ssl_object")
    if tls is not None:
        version = tls.version() or ""
        expires = (tls.getpeercert() or {}).get("notAfter")
        days = None if expires is None else (ssl.cert_time_to_seconds(expires) - time.time()) / 86_400
    return Handshake(
        milliseconds=milliseconds,
        protocol=headers.get("Sec-WebSocket-Protocol", ""),
        extensions=headers.get("Sec-WebSocket-Extensions", ""),
        tls=version,
        certificate_days=days,
    )
