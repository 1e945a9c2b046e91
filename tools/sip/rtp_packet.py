"""RTP packets (RFC 3550 section 5.1) and telephone events (RFC 4733), as far as a G.711 telephone needs them."""

from __future__ import annotations

import struct
from dataclasses import dataclass

HEADER = struct.Struct("!BBHII")
EVENT = struct.Struct("!BBH")

PT_ULAW = 0
PT_ALAW = 8
PT_EVENT = 101
"""Dynamic; the number that everybody uses for telephone-event."""

EVENT_CODES = {digit: code for code, digit in enumerate("0123456789*#ABCD")}
"""RFC 4733 section 3.2."""


@dataclass(frozen=True, slots=True)
class RtpPacket:
    """One packet as it arrived."""

    arrived_at: float
    """Monotonic seconds, by the kernel's own receive time."""
    sequence: int
    timestamp: int
    ssrc: int
    payload_type: int
    marker: bool
    payload: bytes


@dataclass(frozen=True, slots=True)
class TelephoneEvent:
    """The payload of a telephone-event packet."""

    digit: str
    end: bool
    volume: int
    """Power in -dBm0."""
    duration: int
    """Timestamp units (1/8000 s) since the event's start."""


def encode(payload_type: int, sequence: int, timestamp: int, ssrc: int, payload: bytes, marker: bool = False) -> bytes:
    """One RTP packet without padding, extension or CSRC."""
    return HEADER.pack(0x80, payload_type | (0x80 if marker else 0), sequence, timestamp, ssrc) + payload


def decode(datagram: bytes, arrived_at: float) -> RtpPacket | None:
    """The packet, or None for what is no RTP: too short, another version, or RTCP (payload types 72 to 76)."""
    if len(datagram) < HEADER.size:
        return None
    first, second, sequence, timestamp, ssrc = HEADER.unpack_from(datagram)
    payload_type = second & 0x7F
    if first >> 6 != 2 or 72 <= payload_type <= 76:
        return None
    start = HEADER.size + 4 * (first & 0x0F)
    if first & 0x10:  # header extension: 2 bytes of profile, 2 bytes of length in words
        if len(datagram) < start + 4:
            return None
        start += 4 + 4 * int.from_bytes(datagram[start + 2 : start + 4], "big")
    end = len(datagram) - (datagram[-1] if first & 0x20 else 0)
    if end < start:
        return None
    return RtpPacket(arrived_at, sequence, timestamp, ssrc, payload_type, bool(second & 0x80), datagram[start:end])


def encode_event(digit: str, duration: int, end: bool, volume: int = 10) -> bytes:
    """Payload of a telephone-event packet. Raises ValueError for what is no DTMF digit."""
    if digit not in EVENT_CODES:
        raise ValueError(f"{digit!r} is no DTMF digit: one of {''.join(EVENT_CODES)}")
    return EVENT.pack(EVENT_CODES[digit], (0x80 if end else 0) | volume, duration)


def decode_event(payload: bytes) -> TelephoneEvent:
    """A telephone-event payload. Raises ValueError when it is not 4 bytes long or no DTMF event."""
    if len(payload) != EVENT.size or payload[0] >= len(EVENT_CODES):
        raise ValueError(f"{payload.hex()} is no DTMF event")
    code, flags, duration = EVENT.unpack(payload)
    return TelephoneEvent("0123456789*#ABCD"[code], bool(flags & 0x80), flags & 0x3F, duration)
