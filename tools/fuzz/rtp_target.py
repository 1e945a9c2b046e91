"""A target for the RTP leg: packets of any kind and in any order, and any bytes that are none."""

from __future__ import annotations

import asyncio
import os
import struct
from collections import deque
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from audiosocket import rtp
from audiosocket.callspec import MediaFigures, MediaFormat
from audiosocket.jitter import MAX_LATE, MAX_LOST, WAIT_PACKETS
from audiosocket.legs.rtp import READS_PER_WAKE, RtpLeg
from audiosocket.wire import SILENCE_FRAME
from tools.fuzz.supply import Supply

_SOURCES = (b"\x00\x00\x00\x01", b"\x00\x00\x00\x02")
_STEPS = (1, 1, 1, 1, 2, 0, -1, -2, 3, 4, -99, -100, -101, -102, 2998, 2999, 3000, 3001, 20_000, 0x8000)
"""By how much a packet's number may differ from that of the one before it; 1 is in order."""
_NEVER_READY, _ = os.pipe()
RTP_SEEDS = (
    b"\x00\x00" + b"\x01\x00\x00\x05\x00" * 12,
    b"\xff\xf8" + b"\x01\x00\x00\x05\x00" * 4 + b"\x01\x04\x00\x05\x00\x01\x06\x00\x05\x00" * 4,
    b"\x00\x10" + b"\x01\x00\x00\x05\x00" * 2 + b"\x01\x09\x00\x05\x00\x01\x05\x00\x05\x00" + b"\x05\x00" * 3,
    b"\x00\x10" + b"\x01\x00\x00\x01\x0f\x00" * 3 + b"\x01\x00\x10" * 4 + b"\x05\x01",
    b"\x00\x10\x01\x00\x00\x05\x00\x01\x00\x20\x01\x00\x20\x05\x00\x01\x00\x00",
    b"\x00\x10\x02\x0c\x80\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x01\x02\x0d\xb0" + bytes(12) + b"\x05\x00\x03\x04",
    b"\x00\x10" + b"\x00\x00\x00" * 70 + b"\x05\x00\x05\x03\x05\x00",
)


@dataclass
class _Side:
    """Clock, port, socket, owner and session of a leg, in one."""

    waiting: deque[bytes] = field(default_factory=deque)
    heard: list[bytes] = field(default_factory=list)
    stale: int = 0
    skip: int = 0
    frames: int = 1
    digits: int = 0
    recorder: None = None
    error: OSError | None = None
    sent: list[tuple[int, ...]] = field(default_factory=list)

    # Clock, port, owner

    def add(self, tick: Any) -> tuple[int, int]:
        return 0, 0

    def remove(self, handle: Any) -> None:
        pass

    def connect(self, remote: tuple[str, int]) -> _Side:
        return self

    def leg_closed(self, leg: RtpLeg) -> None:
        pass

    # Socket

    def fileno(self) -> int:
        return _NEVER_READY

    def close(self) -> None:
        pass

    def recv(self, size: int) -> bytes:
        if not self.waiting:
            raise BlockingIOError
        return self.waiting.popleft()[:size]

    def send(self, packet: bytes) -> None:
        if self.error is not None:
            raise self.error
        self.sent.append(struct.unpack("!BBHII", packet[:12]))
        assert len(packet) == 172

    # Session

    def caller_backlog(self, frames: int) -> int:
        assert frames
        stale = min(self.skip, frames - 1)
        self.stale += stale
        return stale

    def caller_audio(self, payload: bytes) -> None:
        assert payload
        self.heard.append(payload)

    def tick(self, missed: int) -> bytes:
        return SILENCE_FRAME * self.frames


def _reference_payload(packet: bytes) -> bytes | None:
    """RFC 3550 section 5.1, step by step."""
    if len(packet) < 12 or packet[0] & 0xC0 != 0x80:
        return None
    body = packet[12:]
    sources = 4 * (packet[0] & 15)
    if len(body) < sources:
        return None
    body = body[sources:]
    if packet[0] & 0x10:
        if len(body) < 4 or len(body) < 4 + 4 * int.from_bytes(body[2:4], "big"):
            return None
        body = body[4 + 4 * int.from_bytes(body[2:4], "big") :]
    if packet[0] & 0x20:
        if not packet[-1] or packet[-1] > len(body):
            return None
        body = body[: -packet[-1]]
    return body


def _packet(supply: Supply, number: int, payload: bytes) -> bytes:
    how = supply.byte()
    first, sources = 0x80, b""
    kind = rtp.PT_ULAW if how & 15 < 13 else rtp.PT_ALAW if how & 15 == 13 else how
    if how & 0xF0 == 0x10:
        first, sources = 0x92, bytes(8)
        payload = b"\xbe\xde\x00\x01" + bytes(4) + payload
    elif how & 0xF0 == 0x30:
        first, payload = 0xA0, payload + b"\x00\x00\x03"
    ssrc = _SOURCES[how >> 5 & 1]
    head = struct.pack("!BBHI", first, kind & 0xFF, number & 0xFFFF, 160 * number & 0xFFFFFFFF)
    return head + ssrc + sources + payload


class _Call:
    """A leg, and what is known of the packets that it was given."""

    def __init__(self, number: int) -> None:
        self.side = _Side()
        side: Any = self.side
        self.leg = RtpLeg(side, side, side, "leg", ("127.0.0.1", 4000), MediaFormat.ULAW)
        self.leg.session = side
        self.given: list[bytes] = []
        self._number = number
        self._made = 0

    def op(self, supply: Supply) -> None:
        match supply.byte() % 8:
            case 0 | 1 as kind:
                self._number += supply.pick(_STEPS)
                self._made += 1
                self._give(_packet(supply, self._number, struct.pack("!I", self._made) * supply.pick((40, 1, 80))))
                if kind:
                    self.leg._readable()
            case 2:
                self._give(supply.take(supply.byte() % 64))
                self.leg._readable()
            case 3:
                self.side.digits += 1
            case 4:
                self.side.skip = supply.byte() % 12
            case 5:
                missed = supply.byte() % 40
                self.side.frames = 1 + min(missed, 2)
                for _ in range(-(-len(self.side.waiting) // READS_PER_WAKE)):
                    self.leg._readable()
                self.leg._tick(missed)
            case 6:
                self.side.error = (None, OSError(), ConnectionRefusedError())[supply.byte() % 3]
            case 7:
                self.leg._readable()

    def _give(self, packet: bytes) -> None:
        self.given.append(packet)
        self.side.waiting.append(packet)

    def hold(self) -> None:
        """What must be true at any time."""
        jitter, side = self.leg._jitter, self.side
        assert len(jitter._held) < WAIT_PACKETS
        assert len(jitter._given_up) <= 2 * MAX_LATE
        assert jitter.waiting == bool(jitter._held)
        silent = sum(payload == b"\xff" * len(payload) for payload in side.heard)
        assert self.leg._filled <= silent  # a payload of the network's own may be silence too
        read = len(self.given) - len(side.waiting)
        kept = len(jitter._held) + (jitter._candidate is not None)
        passed = len(side.heard) - self.leg._filled + side.stale
        counted = jitter.late + jitter.duplicates + jitter.leaps + self.leg._ignored
        assert passed + kept + counted == read, (passed, kept, counted, read)
        assert jitter.lost <= MAX_LOST * read

    def end(self) -> None:
        payloads = {rtp.payload_of(packet) for packet in self.given}
        for packet in self.given:
            assert rtp.payload_of(packet) == _reference_payload(packet)
        assert all(payload in payloads or not payload.strip(b"\xff") for payload in self.side.heard)
        numbers = [number for _, _, number, _, _ in self.side.sent]
        assert all((after - before) & 0xFFFF >= 1 for before, after in pairwise(numbers))
        times = [at for _, _, _, at, _ in self.side.sent]
        assert all(0 < (after - before) & 0xFFFFFFFF < 1 << 31 for before, after in pairwise(times))
        self.leg.hangup()
        figures = MediaFigures(caller_frames=len(self.side.heard))
        self.leg.add_figures(figures)
        assert figures.caller_frames >= 0
        assert figures.caller_frames_lost >= 0


async def _carry(supply: Supply) -> None:
    call = _Call(supply.number(0x10000))
    while supply and not call.leg.closed.done():
        call.op(supply)
        call.hold()
    call.end()


_loop = asyncio.new_event_loop()


def packets(data: bytes) -> None:
    """RTP in any order: every packet is passed on, waits, or is counted as what it is; little waits."""
    _loop.run_until_complete(_carry(Supply(data)))
