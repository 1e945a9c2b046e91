"""The pace at which calls are set up."""

from __future__ import annotations

import asyncio

import pytest

from audiosocket.clock import Clock
from audiosocket.pace import APART_SECONDS, LATE_SECONDS, Pace
from tests.worker_rig import rig, until

pytestmark = pytest.mark.loop


async def begun(pace: Pace, count: int) -> list[float]:
    """When each of so many calls, which come in one instant, was begun; in their order."""
    times: dict[int, float] = {}

    async def call(number: int) -> None:
        await pace.turn()
        times[number] = asyncio.get_running_loop().time()

    await asyncio.gather(*(call(number) for number in range(count)))
    assert list(times) == list(range(count))
    return list(times.values())


async def test_calls_that_come_at_once_are_begun_one_after_the_other() -> None:
    pace = Pace(Clock(asyncio.get_running_loop()))
    began = asyncio.get_running_loop().time()
    times = await begun(pace, 20)
    assert times[-1] - began > 19 * APART_SECONDS * 0.9
    assert pace.waiting == 0


async def test_on_a_late_worker_they_are_further_apart() -> None:
    clock = Clock(asyncio.get_running_loop())
    pace = Pace(clock)
    clock.lateness_seconds = LATE_SECONDS
    times = await begun(pace, 5)
    assert times[-1] - times[0] > LATE_SECONDS * 3.5
    clock.lateness_seconds = 0.0
    await begun(pace, 3)


async def test_who_gives_up_takes_nobodys_turn() -> None:
    pace = Pace(Clock(asyncio.get_running_loop()))
    waiting = [asyncio.ensure_future(pace.turn()) for _ in range(4)]
    await asyncio.sleep(0)
    assert pace.waiting == 3
    waiting[1].cancel()
    waiting[2].cancel()
    async with asyncio.timeout(5):
        await asyncio.gather(*waiting, return_exceptions=True)
    assert [task.cancelled() for task in waiting] == [False, True, True, False]
    async with asyncio.timeout(5):
        await pace.turn()


async def test_a_late_worker_dials_all_the_same_and_the_caller_hears_silence_meanwhile() -> None:
    async with rig() as r:
        talking = await r.talking()
        r.worker.pace._clock = Clock(asyncio.get_running_loop())  # one that is never woken, and always late
        r.worker.pace._clock.lateness_seconds = 1.0
        channels = [await r.call() for _ in range(20)]
        await until(lambda: len(r.app.events("start")) == 21, "all streams")
        assert all(channel.frames for channel in channels)
        assert r.worker.pace.waiting == 0
        await talking.hang_up()


async def test_a_caller_who_waits_may_hang_up() -> None:
    async with rig() as r:
        await r.talking()
        r.worker.pace._timer = asyncio.get_running_loop().call_later(1000, lambda: None)  # nobody's turn comes
        channel = await r.call()
        await until(lambda: r.worker.pace.waiting, "a call that waits")
        await channel.hang_up()
        await until(lambda: r.source.reports, "a report")
        (report,) = r.source.reports
        assert report.reason == "leg_closed"
        assert len(r.app.requests) == 1
        r.worker.pace._timer.cancel()
