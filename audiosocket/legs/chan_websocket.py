"""The WebSocket leg: one connection from Asterisk (its `chan_websocket`), audio in the call's format both ways.

Asterisk has a queue and a clock of its own: one frame leaves for the caller every 20 ms. It is given one frame every
20 ms, so that nothing waits there; what a stall leaves waiting would be late for the rest of the call, so its length is
asked for every second and brought down (docs/media-leg.md has the measurements).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import ClassVar

import picows
import structlog

from audiosocket import websocket_media
from audiosocket.callspec import WEBSOCKET_PATH, WEBSOCKET_SUBPROTOCOL, MediaFigures, MediaFormat
from audiosocket.clock import Clock
from audiosocket.errors import WireError
from audiosocket.g711 import ALAW_SILENCE, PCM_TO_G711, ULAW_SILENCE, pcm_to_pcm
from audiosocket.legs.base import BLOCKED_TICKS, MAX_UNSENT_FRAMES, LegOwner, pressed, stop_deadline, stop_timers
from audiosocket.loudness import UPPER_QUIET
from audiosocket.session import STALL_TICKS, Session
from audiosocket.wire import HEADER_BYTES, LINEAR, MAX_AUDIO_BYTES

START_SECONDS = 2.0
"""How long a connection may take to its upgrade, and then to say which call it is."""
ASK_TICKS = 50
"""How often Asterisk is asked what waits in its queue."""
QUEUED_FRAMES = 1
"""What may wait there before the next frame comes: the two clocks are not in step."""
LATE_FRAMES = 10
"""From 200 ms on, the queue is flushed; less is worked off by leaving out silence."""
MAX_QUEUED_FRAMES = 1000
"""Asterisk takes no more."""
_READ_BUFFER_BYTES = 4096
_SILENCE = {MediaFormat.ULAW: bytes([ULAW_SILENCE]), MediaFormat.ALAW: bytes([ALAW_SILENCE])}
_TEXT = picows.WSMsgType.TEXT  # an attribute of an enumeration costs a look-up a frame
_BINARY = picows.WSMsgType.BINARY
_CLOSE = picows.WSMsgType.CLOSE
_PING = picows.WSMsgType.PING
_PONG = picows.WSMsgType.PONG

log = structlog.get_logger(__name__)


async def listen(host: str, port: int, clock: Clock, owner: LegOwner, backlog: int) -> asyncio.Server:
    """Takes Asterisk's connections; each is a `WebSocketLeg`. Raises `OSError`."""

    def accept(request: picows.WSUpgradeRequest) -> picows.WSUpgradeResponseWithListener:
        path = request.path.decode("ascii", "replace").partition("?")[0]
        if path != WEBSOCKET_PATH:
            return _answer(HTTPStatus.NOT_FOUND, f"Media legs of chan_websocket are taken at {WEBSOCKET_PATH}.\n")
        offered = request.headers.get("Sec-WebSocket-Protocol", "")
        if WEBSOCKET_SUBPROTOCOL not in (name.strip() for name in offered.split(",")):
            return _answer(HTTPStatus.BAD_REQUEST, "Expected Sec-WebSocket-Protocol: media.\n")
        chosen = {"Sec-WebSocket-Protocol": WEBSOCKET_SUBPROTOCOL}
        upgrade = picows.WSUpgradeResponse.create_101_response(extra_headers=chosen)
        return picows.WSUpgradeResponseWithListener(upgrade, WebSocketLeg(clock, owner))

    return await picows.ws_create_server(
        accept,
        host,
        port,
        websocket_handshake_timeout=START_SECONDS,
        enable_auto_pong=False,  # those that nobody reads are bounded
        max_frame_size=MAX_AUDIO_BYTES,
        read_buffer_init_size=_READ_BUFFER_BYTES,
        backlog=backlog,
        reuse_address=True,
    )


def _answer(status: HTTPStatus, text: str) -> picows.WSUpgradeResponseWithListener:
    return picows.WSUpgradeResponseWithListener(
        picows.WSUpgradeResponse.create_error_response(status, text.encode()), None
    )


def _unsent(kind: picows.WSMsgType, message: bytes) -> None:
    """What is sent before the leg is known."""


class WebSocketLeg(picows.WSListener):
    """One connection. See `MediaLeg`."""

    queue_ticks: ClassVar[int] = 1
    __slots__ = (
        "_backlog",
        "_blocked",
        "_blocked_ticks",
        "_burst",
        "_clears",
        "_clock",
        "_closing",
        "_deadline",
        "_encode",
        "_owner",
        "_queued",
        "_send",
        "_silence",
        "_silent_payload",
        "_surplus",
        "_ticking",
        "_transport",
        "_until_asked",
        "closed",
        "end_detail",
        "end_reason",
        "frames_left_out",
        "frames_unsent",
        "hung_up",
        "ignored_messages",
        "leg_uuid",
        "media_format",
        "peer",
        "session",
    )

    def __init__(self, clock: Clock, owner: LegOwner) -> None:
        self._clock = clock
        self._owner = owner
        self._transport: picows.WSTransport | None = None
        self._ticking: tuple[int, int] | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._closing = False
        self._blocked = False
        self._blocked_ticks = 0
        self._burst = 0
        self._backlog: list[bytes] = []
        self._until_asked = ASK_TICKS
        self._queued = 0  # frames that waited in Asterisk when it was asked last
        self._surplus = 0  # of those, the ones that are to go by leaving out silence
        self._clears = 0  # of the session's, when it was told
        self._encode: Callable[[bytes], bytes] = pcm_to_pcm
        self._send: Callable[[picows.WSMsgType, bytes], None] = _unsent
        self._silent_payload = b""
        self._silence = b""  # as the session says it
        self.media_format = MediaFormat.SLIN
        """Of both directions, as Asterisk says; known with `leg_uuid`."""
        self.session: Session | None = None
        self.leg_uuid = ""
        self.peer = ""
        self.ignored_messages = 0
        self.frames_unsent = 0
        self.frames_left_out = 0
        self.end_reason = "leg_closed"
        self.end_detail = ""
        # Asterisk closes for whatever ends its channel: the controller knows whether it was a hang-up.
        self.hung_up = False
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    # picows.WSListener

    def on_ws_connected(self, transport: picows.WSTransport) -> None:
        self._transport = transport
        peername = transport.underlying_transport.get_extra_info("peername")
        self.peer = str(peername[0]) if peername else ""
        self._deadline = asyncio.get_running_loop().call_later(START_SECONDS, self._no_start)
        self._owner.leg_connected(self)

    def on_ws_frame(self, transport: picows.WSTransport, frame: picows.WSFrame) -> None:
        if self._closing:
            return
        kind = frame.msg_type
        if kind == _BINARY and frame.fin:
            session = self.session
            if session is None:
                return  # nobody is there yet
            # Nearly always it is one frame a tick; more within one may be a backlog, and are looked at together.
            self._burst += 1
            if self._burst >= STALL_TICKS:
                self._backlog.append(frame.get_payload_as_bytes())
            elif frame.payload_size:
                session.caller_audio(frame.get_payload_as_bytes())
        elif kind == _TEXT and frame.fin:
            self._text(frame.get_payload_as_bytes())
        elif kind == _CLOSE:
            code = int.from_bytes(frame.get_payload_as_bytes()[:2], "big") if frame.payload_size >= 2 else 1005
            self.hangup("leg_closed", "" if code == picows.WSCloseCode.OK.value else f"close code {code}")
        elif kind == _PING:
            if not self._blocked:
                transport.send_pong(frame.get_payload_as_bytes())
        elif kind != _PONG:
            self.hangup("leg_protocol_error", "a message in fragments, which Asterisk does not send")

    def on_ws_disconnected(self, transport: picows.WSTransport) -> None:
        handshake = transport.close_handshake
        if not self._closing:
            self._closing = True
            if handshake is not None and handshake.sent is not None:  # picows has found a fault of the peer's, or ours
                self.end_reason = "leg_protocol_error"
                self.end_detail = handshake.sent.reason or f"close code {handshake.sent.code.value}"
            else:
                self.end_detail = "the connection ended without a close frame"
        stop_timers(self)
        self._transport = None
        if not self.closed.done():
            self.closed.set_result(None)
            self._owner.leg_closed(self)

    def pause_writing(self) -> None:
        self._blocked = True

    def resume_writing(self) -> None:
        self._blocked = False
        self._blocked_ticks = 0

    # For the owner

    def hangup(self, reason: str = "leg_closed", detail: str = "") -> None:
        """Ends the leg towards Asterisk, whose channel is then destroyed."""
        if self._closing:
            return
        self._closing = True
        self.end_reason = reason
        self.end_detail = detail
        stop_timers(self)
        if self._transport is not None:
            fault = reason == "leg_protocol_error"
            self._transport.send_close(picows.WSCloseCode.PROTOCOL_ERROR if fault else picows.WSCloseCode.OK)
            # Towards one that does not read, what is left to send would hold the end up.
            self._transport.disconnect(graceful=not self._blocked)

    def refuse(self, detail: str) -> None:
        """Ends a connection that stands for no call here."""
        self.hangup("refused", detail)

    def add_figures(self, figures: MediaFigures) -> None:
        """Puts in what only the leg knows."""
        if self.frames_unsent:
            figures.frames_dropped["leg_blocked"] = self.frames_unsent
        if self.frames_left_out:
            figures.frames_dropped["leg_late"] = self.frames_left_out

    # From Asterisk

    def _text(self, message: bytes) -> None:
        try:
            event = websocket_media.decode(message)
            if not self.leg_uuid:
                self._identify(event)
                return
        except WireError as error:
            if self.leg_uuid:
                self.ignored_messages += 1
            else:
                self.hangup("leg_protocol_error", str(error))
            return
        if event.event == websocket_media.STATUS:
            self._queue_is(event.queue_length)
        elif event.event == websocket_media.QUEUE_FULL:
            self._flush()
        elif event.event == websocket_media.DIGIT:
            digit = pressed(event.digit)
            if self.session is not None and digit:
                self.session.digit(digit)
            else:
                self.ignored_messages += 1
        elif event.event == websocket_media.START:
            self.hangup("leg_protocol_error", f"a second {websocket_media.START} on one connection")
        else:
            self.ignored_messages += 1

    def _identify(self, event: websocket_media.Event) -> None:
        self.leg_uuid, self.media_format = websocket_media.identify(event)
        stop_deadline(self)
        size = self.media_format.frame_bytes
        self._encode = PCM_TO_G711.get(self.media_format, pcm_to_pcm)
        self._silent_payload = _SILENCE.get(self.media_format, b"\0") * size
        assert self._transport is not None
        self._transport.underlying_transport.set_write_buffer_limits(high=MAX_UNSENT_FRAMES * size)
        self._silence = LINEAR[self.media_format.sample_rate].silence
        self._send = self._transport.send
        self._ticking = self._clock.add(self._tick)
        self._owner.leg_identified(self, self.leg_uuid)

    def _pass_backlog(self, burst: int) -> None:
        """Judges the frames that have come since the last tick, of which the first have been passed on already."""
        frames, self._backlog = self._backlog, []
        session = self.session
        if session is not None:
            for payload in frames[session.caller_backlog(burst) :]:
                if payload:
                    session.caller_audio(payload)

    # To Asterisk

    def _tick(self, missed: int) -> None:
        if self._backlog:
            self._pass_backlog(self._burst)
        self._burst = 0
        session = self.session
        frames = self._silence if session is None else session.tick(missed)
        if self._closing:
            return
        if self._blocked:
            self._not_read(missed)
            return
        self._until_asked -= 1
        if self._until_asked <= 0:
            self._ask()
        if self._queued > QUEUED_FRAMES:
            self._send_behind(frames)
        elif frames == self._silence:
            self._send(_BINARY, self._silent_payload)
        elif len(frames) == len(self._silence):
            self._send(_BINARY, self._encode(frames[HEADER_BYTES:]))
        else:
            for frame in self._each(frames):
                self._send(_BINARY, self._encode(frame[HEADER_BYTES:]))

    def _each(self, frames: bytes) -> Iterator[bytes]:
        size = len(self._silence)
        return (frames[at : at + size] for at in range(0, len(frames), size))

    def _ask(self) -> None:
        self._until_asked = ASK_TICKS
        self._send(_TEXT, websocket_media.GET_STATUS)

    def _send_behind(self, frames: bytes) -> None:
        """Sends while too much waits in Asterisk: quiet frames are left out, and a `clear` is one of that too."""
        if self.session is not None and self.session.clears != self._clears:
            self._flush()
        for frame in self._each(frames):
            if self._surplus and not frame[HEADER_BYTES + 1 :: 2].translate(None, UPPER_QUIET):
                self._surplus -= 1
                self.frames_left_out += frame != self._silence
            else:
                self._send(_BINARY, self._encode(frame[HEADER_BYTES:]))

    def _not_read(self, missed: int) -> None:
        self.frames_unsent += 1
        if self.session is not None and self.session.recorder is not None:
            self.session.recorder.unsent()
        self._blocked_ticks += 1 + missed
        if self._blocked_ticks >= BLOCKED_TICKS:
            self.hangup("leg_silent", "Asterisk has read nothing for 10 s")

    def _queue_is(self, frames: int) -> None:
        self._queued = frames = max(0, min(frames, MAX_QUEUED_FRAMES))
        if frames > LATE_FRAMES:
            self._flush()
        elif frames > QUEUED_FRAMES:
            self._surplus = frames - 1
            self._clears = 0 if self.session is None else self.session.clears

    def _flush(self) -> None:
        self._send(_TEXT, websocket_media.FLUSH)
        self.frames_left_out += self._queued
        self._queued = self._surplus = 0

    def _no_start(self) -> None:
        self._deadline = None
        self.hangup("leg_protocol_error", f"no {websocket_media.START} within {START_SECONDS:g} s")
