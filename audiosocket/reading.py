"""Sockets that compiled code reads: one wake-up of the loop takes what has arrived at all of them.

A transport whose socket is watched here is told to pause reading. The reader is told of the end of the stream, or of an
error, and does what the transport would do.
"""

from __future__ import annotations

import asyncio
from typing import Any
from weakref import WeakKeyDictionary

from audiosocket.compiled import FRAMES

_POLLS: WeakKeyDictionary[asyncio.AbstractEventLoop, Any] = WeakKeyDictionary()


def watch(number: int, reader: object) -> bool:
    """What arrives at the socket `number` goes to `reader`, a leg or a gate; False: the transport has to read on."""
    if FRAMES is None or number < 0:
        return False
    loop = asyncio.get_running_loop()
    poll = _POLLS.get(loop)
    if poll is None:
        poll = _POLLS[loop] = FRAMES.Poll()
        loop.add_reader(poll.fileno(), poll.read)
    poll.watch(number, reader)
    return True


def forget(number: int) -> None:
    """Reads the socket no more; to be called before it is closed."""
    poll = _POLLS.get(asyncio.get_running_loop())
    if poll is not None and number >= 0:
        poll.forget(number)
