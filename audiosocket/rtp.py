"""RTP packets of the media leg (RFC 3550 section 5.1), as far as G.711 in 20 ms needs them."""

from __future__ import annotations

import struct

HEADER = struct.Struct("!BBHII")
HEADER_BYTES = HEADER.size
PLAIN = 0x80
"""First byte of version 2 without padding, extension and contributing sources: what is nearly always sent."""
MARKER = 0x80
PT_ULAW, PT_ALAW = 0, 8
"""Static payload types (RFC 3551 section 6)."""

_PADDING, _EXTENSION, _SOURCES = 0x20, 0x10, 0x0F


def encode(payload_type: int, sequence: int, timestamp: int, ssrc: int, payload: bytes, marker: bool = False) -> bytes:
    """One packet. `sequence` is taken modulo 2^16, `timestamp` modulo 2^32."""
    second = payload_type | MARKER if marker else payload_type
    return HEADER.pack(PLAIN, second, sequence & 0xFFFF, timestamp & 0xFFFFFFFF, ssrc) + payload


def payload_of(packet: bytes) -> bytes | None:
    """What a packet carries, without header, extension and padding; None for what is no RTP of version 2."""
    size = len(packet)
    if size < HEADER_BYTES or packet[0] >> 6 != 2:
        return None
    first = packet[0]
    start = HEADER_BYTES + 4 * (first & _SOURCES)
    if first & _EXTENSION:
        if size < start + 4:
            return None
        start += 4 + 4 * (packet[start + 2] << 8 | packet[start + 3])
    end = size
    if first & _PADDING:
        if not packet[-1]:
            return None
        end -= packet[-1]
    return packet[start:end] if start <= end else None
