"""G.711 by its formula (ITU-T G.711, 1988), slow and plain, so that the media plane's tables are measured by something
that shares no code with them."""

from __future__ import annotations

import numpy as np

from tools.audio.pcm import Pcm

ULAW_SILENCE = 0xFF
ALAW_SILENCE = 0xD5

ULAW_BIAS = 132
"""Added to a magnitude so that every segment starts at a power of two (16-bit scale)."""
ULAW_CLIP = 32635


def ulaw_encode(samples: Pcm) -> bytes:
    """PCM16 to mu-law, one byte a sample: sign, 3 bits of segment, 4 bits of step, all inverted."""
    wide = samples.astype(np.int32)
    magnitude = np.minimum(np.abs(wide), ULAW_CLIP) + ULAW_BIAS
    segment = np.floor(np.log2(magnitude)).astype(np.int32) - 7
    step = (magnitude >> (segment + 3)) & 0x0F
    sign = np.where(wide < 0, 0x80, 0x00)
    return bytes((~(sign | segment << 4 | step) & 0xFF).astype(np.uint8))


def ulaw_decode(payload: bytes) -> Pcm:
    """Mu-law to PCM16, shape (len(payload),)."""
    code = ~np.frombuffer(payload, dtype=np.uint8).astype(np.int32) & 0xFF
    segment, step = (code >> 4) & 0x07, code & 0x0F
    magnitude = ((2 * step + 33) << (segment + 2)) - ULAW_BIAS
    return np.where(code & 0x80, -magnitude, magnitude).astype(np.int16)


def alaw_encode(samples: Pcm) -> bytes:
    """PCM16 to A-law, one byte a sample: sign, 3 bits of segment, 4 bits of step, every other bit inverted."""
    wide = samples.astype(np.int32)
    # A-law has 13 bits; its negative half is the ones' complement of the positive one.
    magnitude = np.where(wide >= 0, wide, ~wide) >> 4
    # The two lowest segments share one step size, every further one doubles it.
    segment = np.where(magnitude < 16, 0, np.floor(np.log2(np.maximum(magnitude, 1))).astype(np.int32) - 3)
    step = (magnitude >> np.maximum(segment - 1, 0)) & 0x0F
    sign = np.where(wide >= 0, 0x80, 0x00)
    return bytes(((sign | segment << 4 | step) ^ 0x55).astype(np.uint8))


def alaw_decode(payload: bytes) -> Pcm:
    """A-law to PCM16, shape (len(payload),)."""
    code = np.frombuffer(payload, dtype=np.uint8).astype(np.int32) ^ 0x55
    segment, step = (code >> 4) & 0x07, code & 0x0F
    linear = (step << 4) + 8
    magnitude = np.where(segment == 0, linear, (linear + 0x100) << np.maximum(segment - 1, 0))
    return np.where(code & 0x80, magnitude, -magnitude).astype(np.int16)
