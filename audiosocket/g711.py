"""G.711 μ-law and A-law to PCM16 and back, by table look-up (ITU-T G.711)."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from audiosocket.frame_steps import look_up

ULAW_SILENCE = 0xFF
ALAW_SILENCE = 0xD5


class Encoding(StrEnum):
    """How audio is written in an application's messages."""

    PCM16 = "pcm16"
    """Two bytes a sample, little-endian."""
    ULAW = "ulaw"
    """One byte a sample, always at 8 kHz."""


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


def _to_ulaw_table() -> NDArray[np.uint8]:
    """The code of every sample, where a negative one stands at its two's complement: indices are uint16."""
    sample = np.arange(0x10000, dtype=np.uint16).view(np.int16).astype(np.int32)
    magnitude = np.minimum(np.abs(sample), 0x7F7B) + 0x84
    _, bits = np.frexp(magnitude)
    segment = bits - 8
    code = (segment << 4) | ((magnitude >> (segment + 3)) & 0x0F) | np.where(sample < 0, 0x80, 0)
    return np.asarray(~code & 0xFF, np.uint8)


def _to_alaw_table() -> NDArray[np.uint8]:
    """As `_to_ulaw_table`; A-law's negative half is the ones' complement of the positive one."""
    sample = np.arange(0x10000, dtype=np.uint16).view(np.int16).astype(np.int32)
    magnitude = np.where(sample < 0, ~sample, sample) >> 4
    _, bits = np.frexp(magnitude)
    segment = np.maximum(bits - 4, 0)  # the two lowest segments have steps of one size
    code = (segment << 4) | ((magnitude >> np.maximum(segment - 1, 0)) & 0x0F) | np.where(sample < 0, 0, 0x80)
    return np.asarray(code ^ 0x55, np.uint8)


_ULAW = _ulaw_table()
_ALAW = _alaw_table()
_TO_ULAW = _to_ulaw_table()
_TO_ALAW = _to_alaw_table()
_ULAW_SAMPLES = _ULAW.tobytes()
_ALAW_SAMPLES = _ALAW.tobytes()


def ulaw_to_pcm(data: bytes) -> bytes:
    """n bytes of μ-law as 2n bytes of little-endian PCM16."""
    return look_up(data, _ULAW_SAMPLES)


def alaw_to_pcm(data: bytes) -> bytes:
    """n bytes of A-law as 2n bytes of little-endian PCM16."""
    return look_up(data, _ALAW_SAMPLES)


def pcm_to_pcm(data: bytes) -> bytes:
    """Signed linear stays what it is; an odd last byte, which is no sample, is cut."""
    return data if not len(data) & 1 else data[:-1]


def pcm_to_ulaw(data: bytes) -> bytes:
    """2n bytes of little-endian PCM16 as n bytes of μ-law; an odd last byte, which is no sample, is cut."""
    return _TO_ULAW.take(np.frombuffer(pcm_to_pcm(data), "<u2")).tobytes()


def pcm_to_alaw(data: bytes) -> bytes:
    """2n bytes of little-endian PCM16 as n bytes of A-law; an odd last byte, which is no sample, is cut."""
    return _TO_ALAW.take(np.frombuffer(pcm_to_pcm(data), "<u2")).tobytes()


PCM_TO_G711: dict[str, Callable[[bytes], bytes]] = {"ulaw": pcm_to_ulaw, "alaw": pcm_to_alaw}

_ALAW_TO_ULAW = pcm_to_ulaw(_ALAW_SAMPLES)


def alaw_to_ulaw(data: bytes) -> bytes:
    """n bytes of A-law as n bytes of μ-law, each the code nearest to what the A-law code stands for."""
    return data.translate(_ALAW_TO_ULAW)


def ulaw_to_ulaw(data: bytes) -> bytes:
    """μ-law stays what it is, bit by bit."""
    return data


CONVERTERS: dict[Encoding, dict[str, Callable[[bytes], bytes]]] = {
    Encoding.PCM16: {
        "slin": pcm_to_pcm,
        "ulaw": ulaw_to_pcm,
        "alaw": alaw_to_pcm,
        "slin16": pcm_to_pcm,
        "slin24": pcm_to_pcm,
    },
    Encoding.ULAW: {"slin": pcm_to_ulaw, "ulaw": ulaw_to_ulaw, "alaw": alaw_to_ulaw},
}
"""What makes an application's encoding of each media format that Asterisk may send. Rates are never changed: Asterisk
is asked for the application's."""

SAMPLES: dict[Encoding, dict[str, bytes]] = {
    Encoding.PCM16: {"slin": b"", "ulaw": _ULAW_SAMPLES, "alaw": _ALAW_SAMPLES, "slin16": b"", "slin24": b""},
    Encoding.ULAW: {"ulaw": b"", "alaw": _ALAW_TO_ULAW},
}
"""The tables behind `CONVERTERS`, for the compiled steps: two bytes or one for each byte; empty where samples stay what
they are."""


def silent_frame(encoding: Encoding, sample_rate: int) -> bytes:
    """20 ms of silence at `sample_rate` (Hz)."""
    samples = sample_rate // 50
    return bytes(2 * samples) if encoding is Encoding.PCM16 else bytes([ULAW_SILENCE]) * samples
