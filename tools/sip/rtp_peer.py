"""RTP endpoints: the telephones' ends of calls, many in one process.

Every endpoint sends a 20 ms packet per tick, from its first packet to its close, as a telephone does: what it was given
to play, then silence. One ticker drives them all on absolute deadlines, in four groups 5 ms apart, since callers do not
speak in step. Arrival times are the kernel's, so that a busy loop here does not look like jitter of the network.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import time
from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from types import TracebackType

from tools.audio import g711
from tools.audio.pcm import Pcm
from tools.sip import reception, rtp_packet
from tools.sip.rtp_packet import RtpPacket

FRAME_SAMPLES = 160
FRAME_SECONDS = 0.02
GROUPS = 4
RATE = 8000
SO_TIMESTAMPNS = 35  # <asm-generic/socket.h>; the socket module has no name for it
TIMESPEC = struct.Struct("@ll")
DATAGRAM_MAX_BYTES = 2048
READS_PER_WAKE = 64
PAUSE_BETWEEN_DIGITS_FRAMES = 3
END_PACKETS = 3
"""RFC 4733 section 2.5.1.4: the final packet is sent three times."""


class Codec(Enum):
    """G.711, with its static payload type and its name in SDP."""

    ULAW = (rtp_packet.PT_ULAW, "PCMU")
    ALAW = (rtp_packet.PT_ALAW, "PCMA")

    def __init__(self, payload_type: int, sdp_name: str) -> None:
        self.payload_type = payload_type
        self.sdp_name = sdp_name

    def encode(self, samples: Pcm) -> bytes:
        """PCM16 to this codec."""
        return g711.ulaw_encode(samples) if self is Codec.ULAW else g711.alaw_encode(samples)

    def decode(self, payload: bytes) -> Pcm:
        """This codec to PCM16."""
        return g711.ulaw_decode(payload) if self is Codec.ULAW else g711.alaw_decode(payload)

    @property
    def silence(self) -> int:
        """The byte for zero."""
        return g711.ULAW_SILENCE if self is Codec.ULAW else g711.ALAW_SILENCE


class RtpTicker:
    """One clock for many endpoints. Use as `async with RtpTicker() as ticker`."""

    def __init__(self) -> None:
        self._groups: list[list[RtpPeer]] = [[] for _ in range(GROUPS)]
        self._task: asyncio.Task[None] | None = None
        self.late = 0
        """Ticks that came 10 ms or more after their deadline: our own lateness, to be told from the network's."""

    async def __aenter__(self) -> RtpTicker:
        self._task = asyncio.create_task(self._run(), name="rtp-ticker")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        for peer in [peer for group in self._groups for peer in group]:
            peer.close()

    def add(self, peer: RtpPeer) -> None:
        """Tick this endpoint, in the group with the fewest."""
        min(self._groups, key=len).append(peer)

    def remove(self, peer: RtpPeer) -> None:
        """Tick this endpoint no more."""
        for group in self._groups:
            if peer in group:
                group.remove(peer)

    async def _run(self) -> None:
        period = FRAME_SECONDS / GROUPS
        deadline = time.monotonic()
        turn = 0
        while True:
            deadline += period
            now = time.monotonic()
            if deadline > now:
                await asyncio.sleep(deadline - now)
            elif now - deadline > 0.01:
                self.late += 1
                await asyncio.sleep(0)  # others must run even while we are catching up
            turn = (turn + 1) % GROUPS
            for peer in tuple(self._groups[turn]):
                peer.tick()


@dataclass(slots=True)
class Playback:
    """Something to play, and when it was played."""

    encoded: bytes
    done: asyncio.Event = field(default_factory=asyncio.Event)
    started_at: float | None = None
    """Monotonic seconds at which its first packet was sent."""
    ended_at: float | None = None
    """Monotonic seconds at which its last packet was sent."""
    position: int = 0


@dataclass(slots=True)
class _Digit:
    digit: str
    duration: int
    done: asyncio.Event = field(default_factory=asyncio.Event)
    elapsed: int = 0
    timestamp: int = 0


class RtpPeer:
    """One end of one call. Made by `RtpPeer.open`; everything it receives is kept in `packets`."""

    def __init__(self, sock: socket.socket, ticker: RtpTicker, codec: Codec, remote: tuple[str, int] | None) -> None:
        self._socket = sock
        self._ticker = ticker
        self.codec = codec
        self._remote = remote
        self.packets: list[RtpPacket] = []
        """All RTP packets, in order of arrival, telephone events included."""
        self.not_rtp = 0
        """Datagrams that were no RTP packet (RTCP counts here)."""
        self.sent = 0
        self._ssrc = random.getrandbits(32)
        self._sequence = random.getrandbits(16)
        self._timestamp = random.getrandbits(32)
        self._first = True
        self._script: deque[Playback] = deque()
        self._digits: deque[_Digit] = deque()
        self._hold_digits = 0
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock.fileno(), self._readable)
        ticker.add(self)

    @classmethod
    def open(
        cls,
        ticker: RtpTicker,
        host: str = "127.0.0.1",
        codec: Codec = Codec.ULAW,
        remote: tuple[str, int] | None = None,
    ) -> RtpPeer:
        """An endpoint on a free even port of `host`. Without `remote` it is silent until it has received a packet.

        Raises OSError when the address is not this machine's.
        """
        return cls(_even_port_socket(host), ticker, codec, remote)

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens, as SDP names it."""
        host, port = self._socket.getsockname()
        return str(host), int(port)

    @property
    def remote(self) -> tuple[str, int] | None:
        """Where it sends to: given, or learned from the first packet."""
        return self._remote

    def send_to(self, host: str, port: int) -> None:
        """Send there from now on."""
        self._remote = (host, port)

    def close(self) -> None:
        """Stop sending and receiving. What was received stays. May be called twice."""
        if self._socket.fileno() < 0:
            return
        self._ticker.remove(self)
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()

    def play(self, samples: Pcm) -> Playback:
        """Put PCM16 at 8 kHz at the end of the script; between the pieces and after them there is silence.

        The last packet of a piece is filled up with silence.
        """
        encoded = self.codec.encode(samples)
        playback = Playback(encoded + bytes([self.codec.silence]) * (-len(encoded) % FRAME_SAMPLES))
        if encoded:
            self._script.append(playback)
        else:
            playback.done.set()
        return playback

    def send_dtmf(self, digit: str, duration_ms: int = 100) -> asyncio.Event:
        """Press a key: RFC 4733 packets in place of the audio for that long. The event is set when it was released.

        Several digits are sent one after the other, 60 ms apart. Raises ValueError for what is no DTMF digit.
        """
        rtp_packet.encode_event(digit, 0, False)
        frames = max(1, round(duration_ms / (FRAME_SECONDS * 1000)))
        event = _Digit(digit, frames * FRAME_SAMPLES)
        self._digits.append(event)
        return event.done

    def audio(self) -> list[RtpPacket]:
        """The received packets of this endpoint's codec."""
        return [packet for packet in self.packets if packet.payload_type == self.codec.payload_type]

    def received_pcm(self, start: float | None = None, seconds: float | None = None) -> Pcm:
        """What a telephone would have played, PCM16 at 8 kHz: see `reception.by_arrival`.

        `start` is a monotonic time and becomes sample 0 (default: the first packet).
        """
        packets = self.audio()
        if not packets:
            return reception.by_arrival([], 0.0, seconds or 0.0)
        origin = packets[0].arrived_at if start is None else start
        pieces = [(packet.arrived_at, self.codec.decode(packet.payload)) for packet in packets]
        return reception.by_arrival(pieces, origin, seconds)

    def received_pcm_by_timestamp(self) -> Pcm:
        """What was sent, laid out by RTP timestamps, whenever it arrived: see `reception.by_timestamp`."""
        return reception.by_timestamp(
            [(packet.timestamp, self.codec.decode(packet.payload)) for packet in self.audio()]
        )

    def reception(self, start: float | None = None, end: float | None = None) -> reception.Reception:
        """Loss, order and gaps of the audio packets that arrived between two monotonic times (default: all)."""
        return reception.measure(
            [
                packet
                for packet in self.audio()
                if (start is None or packet.arrived_at >= start) and (end is None or packet.arrived_at < end)
            ]
        )

    def tick(self) -> None:
        """Send what is due in these 20 ms. Called by the ticker."""
        if self._remote is None:
            return
        if self._digits and not self._hold_digits:
            self._tick_digit(self._digits[0])
        else:
            self._hold_digits = max(0, self._hold_digits - 1)
            self._send(self.codec.payload_type, self._timestamp, self._next_audio(), marker=self._first)
        self._first = False
        self._timestamp = (self._timestamp + FRAME_SAMPLES) & 0xFFFFFFFF

    def _next_audio(self) -> bytes:
        if not self._script:
            return bytes([self.codec.silence]) * FRAME_SAMPLES
        playback = self._script[0]
        now = time.monotonic()
        if playback.started_at is None:
            playback.started_at = now
        frame = playback.encoded[playback.position : playback.position + FRAME_SAMPLES]
        playback.position += FRAME_SAMPLES
        if playback.position >= len(playback.encoded):
            playback.ended_at = now
            playback.done.set()
            self._script.popleft()
        return frame

    def _tick_digit(self, event: _Digit) -> None:
        # RFC 4733 section 2.5.1: the timestamp is the event's start in all its packets, the duration grows, the marker
        # is on the first one.
        first = event.elapsed == 0
        if first:
            event.timestamp = self._timestamp
        event.elapsed += FRAME_SAMPLES
        end = event.elapsed >= event.duration
        payload = rtp_packet.encode_event(event.digit, event.elapsed, end)
        for repeat in range(END_PACKETS if end else 1):
            self._send(rtp_packet.PT_EVENT, event.timestamp, payload, marker=first and repeat == 0)
        if end:
            self._digits.popleft()
            self._hold_digits = PAUSE_BETWEEN_DIGITS_FRAMES
            event.done.set()

    def _send(self, payload_type: int, timestamp: int, payload: bytes, *, marker: bool) -> None:
        datagram = rtp_packet.encode(payload_type, self._sequence, timestamp, self._ssrc, payload, marker)
        self._sequence = (self._sequence + 1) & 0xFFFF
        try:
            self._socket.sendto(datagram, self._remote or ("", 0))
            self.sent += 1
        except (BlockingIOError, ConnectionRefusedError):
            # A full buffer loses the packet and a closed remote port is reported on the next send: both are what UDP
            # does, and the other end's figures show them.
            pass

    def _readable(self) -> None:
        for _ in range(READS_PER_WAKE):
            try:
                datagram, ancillary, _, source = self._socket.recvmsg(DATAGRAM_MAX_BYTES, 64)
            except BlockingIOError:
                return
            except ConnectionRefusedError:
                continue
            packet = rtp_packet.decode(datagram, _arrival(ancillary))
            if packet is None:
                self.not_rtp += 1
                continue
            self.packets.append(packet)
            if self._remote is None:
                self._remote = source


def _arrival(ancillary: list[tuple[int, int, bytes]]) -> float:
    """The kernel's receive time as monotonic seconds; the present when the kernel gave none."""
    monotonic = time.monotonic()
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == SO_TIMESTAMPNS:
            seconds, nanoseconds = TIMESPEC.unpack(data)
            age: float = time.time() - (seconds + nanoseconds / 1e9)
            return monotonic - max(0.0, age)
    return monotonic


def _even_port_socket(host: str) -> socket.socket:
    # RFC 3550 section 11: RTP on an even port, so that the RTCP that is sent to the next one reaches no other endpoint.
    while True:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
            sock.setblocking(False)
            sock.bind((host, 0))
        except BaseException:
            sock.close()
            raise
        if sock.getsockname()[1] % 2 == 0:
            return sock
        sock.close()
