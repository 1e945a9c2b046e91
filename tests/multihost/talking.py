"""Callers, and what they hear."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from tests.multihost.fleet import PAIRS, Fleet
from tests.multihost.hosts import PATIENCE_SECONDS
from tools.audio.tones import dominant_frequency, tone
from tools.sip.sipp import Call, CallAborted, CallRefused, Ending

NEAR_HZ = 5
"""How far from a tone its echo may seem to be."""
TONE_SECONDS = 0.7
HEARD_SECONDS = 0.5
"""Of a tone, so much is enough to know it by."""


async def talking(fleet: Fleet, pair: int, count: int = 1) -> list[Call]:
    """Calls to the pair's PBX that are answered and hear themselves."""
    calls = [fleet.call(pair) for _ in range(count)]
    await asyncio.gather(*(call.answered(PATIENCE_SECONDS) for call in calls))
    await hear_themselves(calls)
    return calls


async def hear_themselves(calls: Sequence[Call]) -> None:
    """Waits until the application's echo of a tone of his own comes back to each caller; fails when a call ends."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        await asyncio.gather(*(_hears_itself(call, 400 + 50 * number) for number, call in enumerate(calls)))


async def _hears_itself(call: Call, hz: float) -> None:
    while True:
        call.peer.play(tone(hz, TONE_SECONDS))
        await asyncio.sleep(TONE_SECONDS + 0.1)
        assert call.ending is None, f"{call.caller}: {call.ending}, {call.reason}"
        heard = call.peer.received_pcm(start=time.monotonic() - HEARD_SECONDS, seconds=HEARD_SECONDS)
        if abs(dominant_frequency(heard) - hz) < NEAR_HZ:
            return


async def hang_up(calls: Sequence[Call]) -> None:
    """Every caller hangs up."""
    await asyncio.gather(*(call.hang_up(PATIENCE_SECONDS) for call in calls))


@dataclass
class Load:
    """Calls that come to every PBX, one after the other; each has a tone of its own and hears it back all the time."""

    fleet: Fleet
    every_seconds: float
    hold_seconds: float
    calls: list[Call] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    heard: int = 0
    """Seconds in which it was listened to what a caller hears."""

    def answer_seconds(self, since: float, to: float) -> list[float]:
        """From INVITE to 200, of the calls that came between two monotonic times, in order."""
        times = [(call.invited_at or 0.0, call.answered_at) for call in self.calls]
        return [answered - invited for invited, answered in times if since <= invited <= to and answered is not None]

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
            await call.answered(PATIENCE_SECONDS)
        except (CallRefused, CallAborted, TimeoutError) as error:
            self.failures.append(f"{call.caller} at {time.monotonic():.1f}: {error!r}")
            return
        began = time.monotonic()
        call.peer.play(tone(hz, self.hold_seconds))
        await asyncio.sleep(self.hold_seconds)
        if await call.hang_up(PATIENCE_SECONDS) is not Ending.BY_US:
            self.failures.append(f"{call.caller} at {time.monotonic():.1f}: {call.ending}, {call.reason}")
        for second in range(1, int(self.hold_seconds)):
            if self.fleet.standstills.seconds(began + second - 1.0, began + second + 1.0):
                continue  # what the machine did not do then, nobody could hear
            self.heard += 1
            heard = dominant_frequency(call.peer.received_pcm(start=began + second, seconds=1.0))
            if abs(heard - hz) >= NEAR_HZ:
                self.failures.append(f"{call.caller}: heard {heard:.0f} instead of {hz} Hz in second {second}")
