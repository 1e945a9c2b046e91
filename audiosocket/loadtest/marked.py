"""Audio in which every frame of 20 ms says whose it is and which: G.711 and PCM16 of the same samples.

The first five samples of a frame are a tag: a mark, two digits of the call's number, two of the frame's. A digit is one
of 64 mu-law levels, so that a tag survives μ-law → PCM16 → μ-law unchanged. What follows is a filler. A frame that was
mixed, cut or shifted has no tag any more.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from audiosocket.g711 import ulaw_to_pcm

FRAME_SAMPLES = 160
TAG_SAMPLES = 5
WHOSE_SAMPLES = 3
CALLS_MAX = 4096
NUMBERS = 4096
"""Frames are numbered modulo this: 82 s."""

_DIGIT = 64
_FIRST_CODE = 0xB0
"""64 levels from about 3,900 down to 130, all positive: far from the two codes that both mean zero."""
_MARK = 0xA8
_FILLER = 0xA4


def _digits(number: int) -> bytes:
    return bytes((_FIRST_CODE + number // _DIGIT, _FIRST_CODE + number % _DIGIT))


def ulaw_whose(call: int) -> bytes:
    """How every frame of a call begins, in mu-law: 3 bytes. Raises ValueError for a number that has no tag."""
    if not 0 <= call < CALLS_MAX:
        raise ValueError(f"call {call}: numbers are 0 to {CALLS_MAX - 1}")
    return bytes((_MARK,)) + _digits(call)


def pcm_whose(call: int) -> bytes:
    """How every frame of a call begins, in PCM16: 6 bytes."""
    return ulaw_to_pcm(ulaw_whose(call))


_FILL = bytes((_FILLER,)) * (FRAME_SAMPLES - TAG_SAMPLES)
PCM_FILL = ulaw_to_pcm(_FILL)
"""What a frame ends with, in PCM16."""
ULAW_WHICH = [_digits(number) + _FILL for number in range(NUMBERS)]
"""The rest of a frame after `ulaw_whose`, by its number."""
PCM_WHICH = [ulaw_to_pcm(rest) for rest in ULAW_WHICH]
"""The rest of a frame after `pcm_whose`, by its number."""
NUMBER_OF_PCM = {ulaw_to_pcm(_digits(number)): number for number in range(NUMBERS)}
"""A frame's number by the 4 bytes after `pcm_whose`."""
NUMBER_OF_ULAW = {_digits(number): number for number in range(NUMBERS)}
"""A frame's number by the 2 bytes after `ulaw_whose`."""


def marked(call: int, filler: NDArray[np.int16]) -> NDArray[np.int16]:
    """`filler`, shape (n * 160,), with the tags of `call` over the start of its frames, numbered from 0."""
    frames = filler.reshape(-1, FRAME_SAMPLES).copy()
    whose = ulaw_whose(call)
    tags = b"".join(whose + _digits(number % NUMBERS) for number in range(len(frames)))
    frames[:, :TAG_SAMPLES] = np.frombuffer(ulaw_to_pcm(tags), "<i2").reshape(-1, TAG_SAMPLES)
    return frames.reshape(-1)
