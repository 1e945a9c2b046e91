"""The steps of a 20 ms frame that cost most, in Python; `audiosocket._frames` has the same ones compiled.

Whoever wants a step takes it from here and gets the compiled one where that is in use (`audiosocket.compiled`). Both
give the same bytes: what is here is the reference, and all there is where nothing could be compiled.
"""

from __future__ import annotations

from binascii import b2a_base64
from typing import TYPE_CHECKING

import numpy as np

from audiosocket.compiled import FRAMES

Parts = tuple[bytes, bytes, bytes, bytes, bytes]
"""What stands around the three numbers and the payload of a media message."""


def python_look_up(data: bytes, table: bytes) -> bytes:
    """For each byte of `data` the two bytes that stand for it in `table` (512 bytes)."""
    return np.frombuffer(table, "<i2").take(np.frombuffer(data, np.uint8)).tobytes()


def python_media_message(parts: Parts, first: int, second: int, third: int, audio: bytes) -> bytes:
    """A media message: `parts` with the numbers, in decimal, and the base64 of `audio` between them."""
    before, one, two, three, behind = parts
    payload = b2a_base64(audio, newline=False)
    return b"%b%d%b%d%b%d%b%b%b" % (before, first, one, second, two, third, three, payload, behind)


def python_media_payload(message: bytes, stream_sid: bytes) -> bytes | None:
    """The audio of an application's media message that is written as usual, and names `stream_sid` or none; None for
    any other: a full decoder has to look at that, and without a compiler at all of them."""
    return None


if TYPE_CHECKING or FRAMES is None:
    look_up = python_look_up
    media_message = python_media_message
    media_payload = python_media_payload
else:
    look_up = FRAMES.look_up
    media_message = FRAMES.media_message
    media_payload = FRAMES.media_payload
