"""When Python looks for garbage that only refers to itself, in circles.

A full collection goes through everything that lives. It takes 50 µs for each call that is carried, and meanwhile no
frame moves: at a thousand calls two or three ticks are missed. Calls that end leave no circles (`MediaCall.let_go`), so
that there is little to be found, and a quiet moment can be waited for.
"""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import structlog

FEW_CALLS = 100
"""With so many calls at most, a collection takes no longer than 5 ms."""
PAUSE_SECONDS = 60.0
"""Between two collections, at least."""
LATEST_SECONDS = 3600.0
"""After so long there is one, however many calls there are."""
GROWTH, GROWTH_BYTES = 1.5, 64 << 20
"""When the process is by half and so much larger than after the last collection, there is one at once: something else
than a call leaves circles."""
_LOOK_SECONDS = 5.0
_NEVER = 2**31 - 1
_STATM = Path("/proc/self/statm")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

log = structlog.get_logger(__name__)


def put_off() -> None:
    """What the start has left is there to the end and is gone through no more; nor is what lives for long, by itself:
    that is `collect_when_quiet`'s. For the whole process."""
    gc.collect()
    gc.freeze()
    youngest, middle, _ = gc.get_threshold()
    gc.set_threshold(youngest, middle, _NEVER)


def due(seconds: float, calls: int, bytes_now: int, bytes_then: int) -> bool:
    """Whether it is time for a full collection, so many seconds after the one before, when the process is so large and
    was so large then."""
    if bytes_now > bytes_then * GROWTH + GROWTH_BYTES:
        return True
    return seconds >= (PAUSE_SECONDS if calls <= FEW_CALLS else LATEST_SECONDS)


def resident_bytes() -> int:
    """How large this process is."""
    return int(_STATM.read_text().split()[1]) * _PAGE_BYTES


async def collect_when_quiet(calls: Callable[[], int]) -> NoReturn:
    """Collects when it is due, for ever; `calls` says how many there are."""
    latest, size = time.monotonic(), resident_bytes()
    while True:
        await asyncio.sleep(_LOOK_SECONDS)
        if due(time.monotonic() - latest, calls(), resident_bytes(), size):
            began = time.monotonic()
            found = gc.collect()
            latest, size = time.monotonic(), resident_bytes()
            log.debug("garbage_collected", found=found, ms=round((latest - began) * 1000), calls=calls())
