"""Callers, and what they hear."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from tests.multihost.fleet import PAIRS, Fleet
from tools.audio.tones import dominant_frequency, tone
from tools.sip.sipp import Call, CallAborted, CallRefused, Ending

NEAR_HZ = 5
"""How far from a tone its echo may seem to be."""


async def talking(fleet: Fleet, pair: int, count: int = 1) -> list[Call]:
    """Calls to the pair's PBX that are answered and hear themselves."""
    calls = [fleet.call(pair) for _ in range(count)]
    await asyncio.gather(*(call.answered() for call in calls))
    assert await all_hear_themselves(calls)
    return calls


async def hears_itself(call: Call, hz: float, seconds: float = 1.0) -> bool:
    """Whether the application's echo of a tone comes back to the caller."""
    began = time.monotonic()
    call.peer.play(tone(hz, seconds))
    await asyncio.sleep(seconds + 0.5)
    heard = call.peer.received_pcm(start=began + 0.2, seconds=seconds)
    return call.ending is None and abs(dominant_frequency(heard) - hz) < NEAR_HZ


async def all_hear_themselves(calls: Sequence[Call]) -> bool:
    """Whether each caller hears a tone of his own."""
    return all(await asyncio.gather(*(hears_itself(call, 400 + 50 * number) for number, call in enumerate(calls))))


async def hear_themselves_again(calls: Sequence[Call], seconds: float) -> None:
    """Waits until all callers hear themselves; fails when they do not within `seconds`."""
    async with asyncio.timeout(seconds):
        while not await all_hear_themselves(calls):
            assert [call.reason for call in calls if call.ending is not None] == []


async def hang_up(calls: Sequence[Call]) -> None:
    """Every caller hangs up."""
    await asyncio.gather(*(call.hang_up() for call in calls))


async def until_after(since: float, seconds: float) -> None:
    """Returns so long after a monotonic time."""
    await asyncio.sleep(max(0.0, since + seconds - time.monotonic()))


@dataclass
class Load:
    """Calls that come to every PBX, one after the other; each has a tone of its own and hears it back all the time."""

    fleet: Fleet
    every_seconds: float
    hold_seconds: float
    calls: list[Call] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Load]:
        """Calls come until the end of the block, which waits for the last of them."""
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            for pair in PAIRS:
                tasks.create_task(self._place(pair, stop))
            try:
                yield self
            finally:
                stop.set()

    async def _place(self, pair: int, stop: asyncio.Event) -> None:
        number = 0
        async with asyncio.TaskGroup() as tasks:
            while not stop.is_set():
                number += 1
                tasks.create_task(self._converse(self.fleet.call(pair), 400 + 50 * (number % 20)))
                await asyncio.sleep(self.every_seconds)

    async def _converse(self, call: Call, hz: float) -> None:
        self.calls.append(call)
        try:
            await call.answered()
        except (CallRefused, CallAborted, TimeoutError) as error:
            self.failures.append(f"{call.caller} at {time.monotonic():.1f}: {error!r}")
            return
        began = time.monotonic()
        call.peer.play(tone(hz, self.hold_seconds))
        await until_after(began, self.hold_seconds)
        if await call.hang_up() is not Ending.BY_US:
            self.failures.append(f"{call.caller} at {time.monotonic():.1f}: {call.ending}, {call.reason}")
        for second in range(1, int(self.hold_seconds)):
            heard = dominant_frequency(call.peer.received_pcm(start=began + second, seconds=1.0))
            if abs(heard - hz) >= NEAR_HZ:
                self.failures.append(f"{call.caller}: heard {heard:.0f} instead of {hz} Hz in second {second}")
