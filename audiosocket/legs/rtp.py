"""The RTP leg: G.711 between Asterisk (`chan_rtp`) and this worker, for links that lose packets or stall.

A worker has one port. Each leg has a socket of its own on it, connected to the address that the controller named: the
kernel gives it that source's packets and nobody else's, and tells when Asterisk has closed its port (ICMP). What comes
from anywhere else arrives at the port's own socket, where it is counted and dropped.

RTP has no end: a leg ends when the controller says so, when Asterisk's port is closed, or after a long silence.
"""

from __future__ import annotations

import asyncio
import random
import socket
from typing import ClassVar

import structlog

from audiosocket import rtp
from audiosocket.callspec import MediaFigures, MediaFormat
from audiosocket.clock import Clock
from audiosocket.g711 import ALAW_SILENCE, PCM_TO_G711, ULAW_SILENCE
from audiosocket.jitter import JitterBuffer, Ready
from audiosocket.legs.base import LegOwner
from audiosocket.session import GAP_TICKS, STALL_TICKS, Session
from audiosocket.wire import HEADER_BYTES, SILENCE_FRAME

SAMPLES = 160
"""Of 20 ms, which is also what the RTP timestamp advances by."""
SILENT_TICKS = 30_000
"""10 min without a packet. A caller on hold sends none, and Asterisk itself ends his call after `rtp_timeout_hold`."""
DIGIT_TICKS = 10
"""A gap is a digit's if the controller tells of one until 200 ms after it."""
RECEIVE_BYTES = 2048
_ORIGIN = random.getrandbits(32)
"""What timestamps are counted from. Random, as RFC 3550 section 5.1 wants it, and one for all legs."""
READS_PER_WAKE = 64
_FRAME_BYTES = len(SILENCE_FRAME)
_CODECS = {MediaFormat.ULAW: (rtp.PT_ULAW, ULAW_SILENCE), MediaFormat.ALAW: (rtp.PT_ALAW, ALAW_SILENCE)}

log = structlog.get_logger(__name__)


def parse_address(text: str) -> tuple[str, int]:
    """`127.0.0.1:4000` or `[::1]:4000`, as (host, port). Raises `ValueError`."""
    host, sep, port = text.rpartition(":")
    if not (sep and host and port.isascii() and port.isdigit() and 0 < int(port) <= 0xFFFF):
        raise ValueError(f"{text!r} is no IP:PORT")
    return host.strip("[]"), int(port)


class RtpPort:
    """A worker's RTP port, and the sockets of its legs on it."""

    def __init__(self, host: str, port: int) -> None:
        """Listens. Raises `OSError`."""
        self._family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = self._bound(host, port)
        self._host = host
        self.port: int = self._socket.getsockname()[1]
        self.strangers = 0
        """Packets from where no leg is."""
        asyncio.get_running_loop().add_reader(self._socket, self._stray)

    def connect(self, remote: tuple[str, int]) -> socket.socket:
        """A socket on this port for one peer. Raises `OSError`."""
        connected = self._bound(self._host, self.port)
        try:
            connected.connect(remote)
        except OSError:
            connected.close()
            raise
        # Until it was connected, it was anybody's.
        self.strangers += self._drain(connected)
        return connected

    def close(self) -> None:
        """Listens no more."""
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()

    def _bound(self, host: str, port: int) -> socket.socket:
        made = socket.socket(self._family, socket.SOCK_DGRAM)
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            made.setblocking(False)
            made.bind((host, port))
        except OSError:
            made.close()
            raise
        return made

    def _stray(self) -> None:
        self.strangers += self._drain(self._socket)

    @staticmethod
    def _drain(source: socket.socket) -> int:
        for count in range(READS_PER_WAKE):
            try:
                source.recv(1)
            except OSError:
                return count
        return READS_PER_WAKE


class RtpLeg:
    """One call's stream of packets in each direction. See `MediaLeg`."""

    queue_ticks: ClassVar[int] = 0

    def __init__(
        self,
        clock: Clock,
        owner: LegOwner,
        port: RtpPort,
        leg_uuid: str,
        remote: tuple[str, int],
        media_format: MediaFormat,
    ) -> None:
        """Opens the leg towards `remote`. Raises `OSError` when that cannot be reached, `ValueError` for a format that
        is not G.711."""
        if media_format not in _CODECS:
            raise ValueError(f"RTP carries ulaw and alaw, not {media_format}")
        self._payload_type, silence = _CODECS[media_format]
        self._silence = bytes([silence])
        self._silent_payload = self._silence * SAMPLES
        self._encode = PCM_TO_G711[media_format]
        self._clock = clock
        self._owner = owner
        self._jitter = JitterBuffer()
        self._sequence = random.getrandbits(16)
        # Asterisk passes timestamps on: what follows on another leg of the call must not leap on its way to the caller.
        self._timestamp = (_ORIGIN + round(asyncio.get_running_loop().time() * 8000)) & 0xFFFFFFFF
        self._ssrc = random.getrandbits(32)
        self._marker = True
        self._ticks = 0
        self._heard_tick = 0  # of the last packet
        self._passed_tick = 0  # of the last frame that the session was given
        self._burst = 0
        self._frame_bytes = SAMPLES
        self._filled = 0
        self._lost = 0
        self._gap = 0  # missing packets of which it is not known yet whether they were a digit
        self._gap_tick = 0
        self._digits = 0  # of the session's, those that gaps have been told apart by
        self._ignored = 0
        self._unsent = 0
        self.leg_uuid = leg_uuid
        self.peer = remote[0]
        self.session: Session | None = None
        self.end_reason = "leg_closed"
        self.end_detail = ""
        self.hung_up = False
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._socket = port.connect(remote)
        asyncio.get_running_loop().add_reader(self._socket, self._readable)
        self._ticking = clock.add(self._tick)

    # For the owner

    def hangup(self, reason: str = "leg_closed", detail: str = "") -> None:
        if self.closed.done():
            return
        self.end_reason = reason
        self.end_detail = detail
        self._settle_gap()
        self._clock.remove(self._ticking)
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()
        self.closed.set_result(None)
        self._owner.leg_closed(self)

    def refuse(self, detail: str) -> None:
        self.hangup("refused", detail)

    def add_figures(self, figures: MediaFigures) -> None:
        jitter = self._jitter
        figures.caller_frames -= self._filled
        figures.caller_frames_lost += self._lost
        dropped = {
            "late": jitter.late,
            "duplicate": jitter.duplicates,
            "out_of_stream": jitter.leaps,
            "other_payload": self._ignored,
        }
        figures.caller_frames_dropped |= {reason: count for reason, count in dropped.items() if count}
        if self._unsent:
            figures.frames_dropped["leg_blocked"] = self._unsent

    # From Asterisk

    def _readable(self) -> None:
        # Nearly always one wake is one packet; more within a tick or two are read together, for they may be a backlog.
        self._burst += 1
        ready: Ready = []
        for _ in range(1 if self._burst < STALL_TICKS else READS_PER_WAKE):
            try:
                packet = self._socket.recv(RECEIVE_BYTES)
            except (BlockingIOError, InterruptedError):
                break
            except OSError as error:
                self._failed(error)
                return
            taken = self._take(packet)
            if taken:
                ready = ready + taken if ready else taken
        if ready:
            self._pass(ready)

    def _take(self, packet: bytes) -> Ready | None:
        """What may be passed on by a packet; one in order is passed on at once, when it comes alone."""
        if len(packet) <= rtp.HEADER_BYTES or packet[1] & 0x7F != self._payload_type:
            self._ignored += 1
            return None
        payload = packet[rtp.HEADER_BYTES :] if packet[0] == rtp.PLAIN else rtp.payload_of(packet)
        if not payload:
            self._ignored += 1
            return None
        self._heard_tick = self._ticks
        sequence, ssrc = packet[2] << 8 | packet[3], packet[8:12]
        if not self._jitter.in_order(ssrc, sequence):
            return self._jitter.put(ssrc, sequence, payload, self._ticks)
        if self._burst >= STALL_TICKS:
            return [(0, payload)]
        if self.session is not None:
            self._passed_tick = self._ticks
            self.session.caller_audio(payload)
        return None

    def _pass(self, ready: Ready) -> None:
        session = self.session
        if session is None or not ready:
            return
        stale = session.caller_backlog(len(ready))
        for lost, payload in ready[stale:]:
            if lost:
                self._settle_gap()
                self._gap = lost
                self._gap_tick = self._ticks
                quiet = self._ticks - self._passed_tick
                # Of longer gaps the session has made silence by itself.
                silent = min(lost, quiet - 1) if quiet < GAP_TICKS else 0
                for _ in range(silent):
                    self._filled += 1
                    session.caller_audio(self._silence * len(payload))
            self._passed_tick = self._ticks
            session.caller_audio(payload)

    def _settle_gap(self) -> None:
        """Asterisk passes the caller's numbering on, in which a digit's own packets (RFC 4733) leave a gap."""
        if not self._gap:
            return
        told = 0 if self.session is None else self.session.digits
        if told == self._digits:
            self._lost += self._gap
        else:
            self._digits = max(self._digits + 1, told - 1)  # the next one's gap may be yet to come
        self._gap = 0

    # To Asterisk

    def _tick(self, missed: int) -> None:
        self._ticks += 1 + missed
        self._burst = 0
        if self._jitter.waiting:
            self._pass(self._jitter.expire(self._ticks))
        if self._gap and self._ticks - self._gap_tick >= DIGIT_TICKS:
            self._settle_gap()
        session = self.session
        if session is None:
            frames = SILENCE_FRAME
        else:
            frames = session.tick(missed)
            if self.closed.done():
                return
        whole = len(frames) // _FRAME_BYTES
        if missed >= whole:
            self._marker = True  # time has passed for which nothing is sent
        # The timestamp follows the clock: what is skipped is a gap, not a delay.
        timestamp = self._timestamp + (1 + missed - whole) * SAMPLES
        self._timestamp = (self._timestamp + (1 + missed) * SAMPLES) & 0xFFFFFFFF
        if whole == 1:
            self._send(frames, timestamp)
        else:
            for at in range(0, len(frames), _FRAME_BYTES):
                self._send(frames[at : at + _FRAME_BYTES], timestamp)
                timestamp += SAMPLES
        if self._ticks - self._heard_tick >= SILENT_TICKS:
            self.hangup("leg_silent", f"no packet from Asterisk for {SILENT_TICKS // 50} s")

    def _send(self, frame: bytes, timestamp: int) -> None:
        if self.closed.done():
            return
        payload = self._silent_payload if frame == SILENCE_FRAME else self._encode(frame[HEADER_BYTES:])
        self._sequence = (self._sequence + 1) & 0xFFFF
        packet = rtp.encode(self._payload_type, self._sequence, timestamp, self._ssrc, payload, self._marker)
        self._marker = False
        try:
            self._socket.send(packet)
        except OSError as error:
            self._failed(error)

    def _failed(self, error: OSError) -> None:
        if isinstance(error, ConnectionRefusedError):
            self.hangup("leg_closed", "Asterisk has closed its RTP port")
            return
        # A full buffer, a route that is away for a moment: as good as a packet that the network lost.
        self._unsent += 1
        if self.session is not None and self.session.recorder is not None:
            self.session.recorder.unsent()
