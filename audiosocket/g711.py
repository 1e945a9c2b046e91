"""G.711 μ-law and A-law to PCM16, by numpy table look-up (ITU-T G.711)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

ULAW_SILENCE = 0xFF
ALAW_SILENCE = 0xD5


def _ulaw_table() -> NDArray[np.int16]:
    code = ~np.arange(256, dtype=np.int32) & 0xFF
    magnitude = (((code & 0x0F) << 3) + 0x84) << ((code & 0x70) >> 4)
    return np.where(code & 0x80, 0x84 - magnitude, magnitude - 0x84).astype("<i2")


def _alaw_table() -> NDArray[np.int16]:
    code = np.arange(256, dtype=np.int32) ^ 0x55
    segment = (code & 0x70) >> 4
    low = ((code & 0x0F) << 4) + 8
    magnitude = np.where(segment == 0, low, (low + 0x100) << np.maximum(segment - 1, 0))
    return np.where(code & 0x80, magnitude, -magnitude).astype("<i2")


_ULAW = _ulaw_table()
_ALAW = _alaw_table()


def ulaw_to_pcm(data: bytes) -> bytes:
    """n bytes of μ-law as 2n bytes of little-endian PCM16."""
    return _ULAW.take(np.frombuffer(data, np.uint8)).tobytes()


def alaw_to_pcm(data: bytes) -> bytes:
    """n bytes of A-law as 2n bytes of little-endian PCM16."""
    return _ALAW.take(np.frombuffer(data, np.uint8)).tobytes()


def pcm_to_pcm(data: bytes) -> bytes:
    """Signed linear stays what it is; an odd last byte, which is no sample, is cut."""
    return data if not len(data) & 1 else data[:-1]


DECODERS: dict[str, Callable[[bytes], bytes]] = {"slin": pcm_to_pcm, "ulaw": ulaw_to_pcm, "alaw": alaw_to_pcm}
"""Decoder to PCM16 for each media format that Asterisk may send."""
