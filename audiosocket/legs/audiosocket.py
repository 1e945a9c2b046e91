"""The AudioSocket leg: one TCP connection from Asterisk (its `res_audiosocket` and `chan_audiosocket`).

What binds us (docs/media-leg.md has the measurements): the first frame is sent the instant a connection is accepted,
and one every 20 ms for ever after, because a silent server can freeze the whole PBX; header and payload leave in one
write; only audio and hang-up are ever sent; nothing is queued for a peer that does not read. Until the call is known
silence goes out at 8 kHz, whatever its rate: Asterisk resamples frame by frame.
"""

from __future__ import annotations

import asyncio
import os
import socket
import uuid
from typing import TYPE_CHECKING, ClassVar, cast

import structlog

from audiosocket import reading, wire
from audiosocket.callspec import MediaFigures
from audiosocket.clock import Clock
from audiosocket.compiled import FRAMES, usual
from audiosocket.errors import WireError
from audiosocket.legs.base import BLOCKED_TICKS, MAX_UNSENT_FRAMES, LegOwner, pressed, stop_deadline, stop_timers
from audiosocket.session import Session

UUID_SECONDS = 2.0
"""How long a connection may take to say which call it is."""

log = structlog.get_logger(__name__)


if TYPE_CHECKING or FRAMES is None:

    class LegState:
        """What a frame reads and writes, where nothing is compiled."""

        __slots__ = (
            "_blocked_ticks",
            "_closing",
            "_queued",
            "_read_frames",
            "_socket",
            "_transport",
            "_usual_bytes",
            "_usual_header",
            "_whole",
            "session",
        )

else:
    LegState = FRAMES.AudioSocketLeg


@usual("data_received", "_tick")
class AudioSocketLeg(LegState, asyncio.Protocol):
    """One connection. See `MediaLeg`."""

    queue_ticks: ClassVar[int] = 0

    def __init__(self, clock: Clock, owner: LegOwner) -> None:
        self._clock = clock
        self._owner = owner
        self._decoder = wire.FrameDecoder()
        self._transport: asyncio.Transport | None = None
        self._ticking: tuple[int, int] | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._blocked_ticks = 0
        self._usual_header = b""
        self._usual_bytes = 0
        self._whole = True  # nothing of a frame is left over from the latest read
        self._watched = False
        self._read_frames = 1  # so many of the caller's frames are waited for before they are read
        self._queued = True  # the transport itself may have bytes that wait
        self._socket = -1  # its number while it is open: compiled code writes a frame to it without a detour
        self._closing = False
        self.session: Session | None = None
        self.leg_uuid = ""
        self.peer = ""
        self.ignored_frames = 0
        self.frames_unsent = 0
        self.end_reason = "leg_closed"
        self.end_detail = ""
        self.hung_up = False
        self.closed = asyncio.get_running_loop().create_future()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        connection = transport.get_extra_info("socket")
        if connection is not None:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket = connection.fileno()
        peername = transport.get_extra_info("peername")
        self.peer = str(peername[0]) if peername else ""
        self._transport.write(wire.SILENCE_FRAME)
        self._ticking = self._clock.add(self._tick)
        self._deadline = asyncio.get_running_loop().call_later(UUID_SECONDS, self._no_uuid)
        self._owner.leg_connected(self)

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        session = self.session
        # Nearly always one read is one audio frame, as long as the one before it.
        if data.startswith(self._usual_header) and len(data) == self._usual_bytes and self._whole:
            if session is not None:
                session.caller_audio(data[wire.HEADER_BYTES :])
            return
        try:
            frames = self._decoder.feed(data)
        except WireError as error:
            self.hangup("leg_protocol_error", str(error))
            return
        self._whole = not self._decoder.partial
        if len(frames) == 1 and session is not None and frames[0][0] == session.linear.kind and frames[0][1]:
            if len(data) == wire.HEADER_BYTES + len(frames[0][1]):
                self._usual_header, self._usual_bytes = data[: wire.HEADER_BYTES], len(data)
                self._watch()
            session.caller_audio(frames[0][1])
            return
        self._several(frames)

    def eof_received(self) -> bool:
        return False  # Asterisk closes its side at hang-up; the transport closes ours

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        reading.forget(self._socket)
        self._socket = -1  # the number is another connection's from now on
        if exc is not None and not self.end_detail:
            self.end_detail = f"{type(exc).__name__}: {exc}"
        stop_timers(self)
        self._transport = None
        if not self.closed.done():
            self.closed.set_result(None)
            self._owner.leg_closed(self)

    # For the owner

    def hangup(self, reason: str = "leg_closed", detail: str = "") -> None:
        """Ends the leg towards Asterisk; its channel is then destroyed with cause 16 (normal clearing)."""
        if self._closing:
            return
        self._closing = True
        self.end_reason = reason
        self.end_detail = detail
        stop_timers(self)
        if self._transport is not None:
            if self._transport.get_write_buffer_size() > self._max_unsent_bytes():
                self._transport.abort()  # it does not read: a graceful close would wait for ever
            else:
                self._transport.write(wire.HANGUP_FRAME)
                self._transport.close()

    def refuse(self, detail: str) -> None:
        """Ends a connection that stands for no call here."""
        self.hangup("refused", detail)

    def coalesce(self, on: bool) -> None:
        """From now on a read waits until two of the caller's frames are there (see `audiosocket.coalescing`), where it
        may: not in a recording, nor for frames of more than 20 ms. A caller who pauses is read as before."""
        session, transport = self.session, self._transport
        if session is None or transport is None:
            return
        usual = self._usual_bytes == wire.HEADER_BYTES + session.media_format.frame_bytes
        frames = 2 if on and usual and session.may_coalesce else 1
        connection = transport.get_extra_info("socket")
        if frames == self._read_frames or connection is None:
            return
        # The kernel wakes us for so many bytes (socket(7)), or when the connection ends. Lowered, it does so at once.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, self._usual_bytes * frames if frames > 1 else 1)
        self._read_frames = frames

    def add_figures(self, figures: MediaFigures) -> None:
        """Puts in what only the leg knows."""
        if self.frames_unsent:
            figures.frames_dropped["leg_blocked"] = self.frames_unsent

    # Inside

    def _watch(self) -> None:
        """From now on, frames are mostly usual ones."""
        if not self._watched and self._transport is not None and reading.watch(self._socket, self):
            self._watched = True
            self._transport.pause_reading()

    def _reading_over(self, error: int) -> None:
        """The connection has ended, or failed with the error of that number: what the transport would do."""
        if self._transport is None:
            return
        if error:
            self._failed(OSError(error, os.strerror(error)))
        elif not self.eof_received():
            self._transport.close()

    def _failed(self, error: Exception) -> None:
        if not isinstance(error, OSError):
            log.error("leg_failed", leg_uuid=self.leg_uuid, exc_info=error)
        if not self.end_detail:
            self.end_detail = f"{type(error).__name__}: {error}"
        if self._transport is not None:
            self._transport.abort()

    def _several(self, frames: list[tuple[int, bytes]]) -> None:
        stale = 0
        audio_kind = None if self.session is None else self.session.linear.kind
        beyond = sum(kind == audio_kind for kind, _ in frames) - self._read_frames
        if self.session is not None and beyond > 0:
            stale = self.session.caller_backlog(1 + beyond)
        for kind, payload in frames:
            if self._closing:
                return
            if not self.leg_uuid:
                self._identify(kind, payload)
            elif kind == audio_kind:
                if stale:
                    stale -= 1
                elif self.session is not None and payload:
                    self.session.caller_audio(payload)
            elif audio_kind is None and kind in wire.AUDIO_KINDS:
                continue  # nobody is there yet
            elif kind == wire.KIND_DTMF:
                digit = pressed(payload.decode("ascii", "replace"))
                if self.session is not None and digit:
                    self.session.digit(digit)
                else:
                    self.ignored_frames += 1
            elif kind == wire.KIND_HANGUP:
                self.hung_up = True
                self.hangup("leg_closed", "hang-up frame")
            elif kind == wire.KIND_ERROR:
                self.hangup("leg_protocol_error", f"error frame {payload[:8].hex()}")
            elif kind == wire.KIND_UUID:
                self.hangup("leg_protocol_error", "a second UUID on one connection")
            else:
                # Another sample rate than the one asked for, or a kind of the future: the stream stays readable.
                self.ignored_frames += 1

    def _identify(self, kind: int, payload: bytes) -> None:
        if kind != wire.KIND_UUID:
            self.hangup("leg_protocol_error", f"first frame is of kind 0x{kind:02x}, not a UUID")
            return
        stop_deadline(self)
        self.leg_uuid = str(uuid.UUID(bytes=payload))
        self._owner.leg_identified(self, self.leg_uuid)

    def _tick(self, missed: int) -> None:
        transport = self._transport
        if transport is None or self._closing:
            return
        session = self.session
        self._write(wire.SILENCE_FRAME if session is None else session.tick(missed), missed)
        if self._read_frames > 1 and session is not None and session.caller_late:
            self.coalesce(False)  # what waits may be a frame, or a digit

    def _write(self, data: bytes, missed: int) -> None:
        transport, session = self._transport, self.session
        if transport is None:
            return
        unsent = transport.get_write_buffer_size()
        if unsent and unsent > self._max_unsent_bytes():
            self.frames_unsent += 1
            if session is not None and session.recorder is not None:
                session.recorder.unsent()
            self._blocked_ticks += 1 + missed
            if self._blocked_ticks >= BLOCKED_TICKS:
                self.hangup("leg_silent", "Asterisk has read nothing for 10 s")
            return
        self._blocked_ticks = 0
        self._queued = True
        transport.write(data)

    def _max_unsent_bytes(self) -> int:
        linear = wire.LINEAR[8000] if self.session is None else self.session.linear
        return MAX_UNSENT_FRAMES * len(linear.silence)

    def _no_uuid(self) -> None:
        self._deadline = None
        self.hangup("leg_protocol_error", f"no UUID within {UUID_SECONDS:g} s")
