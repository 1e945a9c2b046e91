"""The header of a recording: RIFF WAVE, stereo PCM16 (Multimedia Programming Interface 1.0, IBM and Microsoft 1991)."""

from __future__ import annotations

import struct

CHANNELS = 2
SAMPLE_BYTES = 2 * CHANNELS
"""Bytes of one sample of both channels."""
HEADER_BYTES = 44
RATES_HZ = (8000, 16000, 24000)
MAX_DATA_BYTES = 0xFFFF_FFFF - HEADER_BYTES & ~(SAMPLE_BYTES - 1)
"""What the 32 bits of a size can tell: 12.4 hours at 24 kHz, 37 at 8 kHz."""

_HEADER = struct.Struct("<4sI4s4sIHHIIHH4sI")


def header(rate_hz: int, data_bytes: int) -> bytes:
    """The 44 bytes before `data_bytes` of audio."""
    return _HEADER.pack(
        *(b"RIFF", HEADER_BYTES - 8 + data_bytes, b"WAVE", b"fmt ", 16, 1),
        *(CHANNELS, rate_hz, rate_hz * SAMPLE_BYTES, SAMPLE_BYTES, 16, b"data", data_bytes),
    )


def rate_of(found: bytes) -> int | None:
    """The rate in a header of ours, whatever sizes it tells; None when it is not one."""
    for rate_hz in RATES_HZ:
        known = header(rate_hz, 0)
        if len(found) == HEADER_BYTES and found[:4] == known[:4] and found[8:40] == known[8:40]:
            return rate_hz
    return None
