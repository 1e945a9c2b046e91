"""Callers, and what they hear."""

from __future__ import annotations

import asyncio

from tests.multihost.fleet import Fleet
from tools.audio.tones import dominant_frequency, tone
from tools.sip.sipp import Call


async def talking(fleet: Fleet, pair: int) -> Call:
    """A call to the pair's PBX that is answered."""
    call = fleet.call(pair)
    await call.answered()
    return call


async def hears_itself(call: Call, hz: float, seconds: float = 1.0) -> bool:
    """Whether the application's echo of a tone comes back to the caller."""
    began = asyncio.get_running_loop().time()
    call.peer.play(tone(hz, seconds))
    await asyncio.sleep(seconds + 0.5)
    heard = call.peer.received_pcm(start=began + 0.2, seconds=seconds)
    return abs(dominant_frequency(heard) - hz) < 5
