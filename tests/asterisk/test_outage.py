"""Redis and PostgreSQL are restarted, frozen and lost under calls: callers notice nothing, and no record is lost."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from tests.asterisk.test_faults import echoing, hears_itself
from tests.live import ECHO, SCRIPTED, Live, leg
from tests.outage import Outage, Traffic, outage_system
from tests.worker_rig import until
from tools.asterisk.install import AsteriskInstall
from tools.asterisk.local import merge
from tools.sip.sipp import Call, Ending

pytestmark = pytest.mark.asterisk

HELD = "+918000000020"
"""Number of an echo that the caller is answered for when it is connected."""


async def records_complete(live: Live, calls: list[Call]) -> None:
    """Every call has one record, closed, with what it carried."""
    rows = []
    async with asyncio.timeout(30):
        while not rows or any(row.ended_at is None or row.media is None for row in rows):
            await asyncio.sleep(0.2)
            rows = await live.records()
    assert Counter(row.caller for row in rows) == Counter(call.caller for call in calls)
    assert Counter((row.result, row.reason) for row in rows) == {("success", "caller_hangup"): len(calls)}
    for row in rows:
        assert row.media is not None
        assert row.media.frames_played > 100, row


async def faults(outage: Outage) -> None:
    """55 seconds in which something is away most of the time."""
    await asyncio.sleep(3)
    await outage.restart_redis(12)
    await asyncio.sleep(5)
    await outage.freeze_redis(8)
    await asyncio.sleep(4)
    await outage.restart_postgres(10)
    await asyncio.sleep(3)
    async with asyncio.TaskGroup() as both:
        both.create_task(outage.restart_redis(8))
        both.create_task(outage.restart_postgres(8))


async def test_restarts_of_both_stores_cost_no_call_and_no_record(
    asterisk_install: AsteriskInstall, tmp_path: Path
) -> None:
    async with outage_system(asterisk_install, tmp_path, {"gateway": {"workers": 2}}) as outage:
        live = outage.live
        long_calls = await echoing(live, 4)
        traffic = Traffic(live, 4.0)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(faults(outage))
            tasks.create_task(traffic.run(60, 2))
        assert (traffic.refused, traffic.dropped) == ([], [])
        assert len(traffic.calls) == 120
        assert all(await asyncio.gather(*(hears_itself(call, 400 + 50 * n) for n, call in enumerate(long_calls))))
        await asyncio.gather(*(call.hang_up() for call in long_calls))
        await records_complete(live, [*long_calls, *traffic.calls])
        await live.nothing_left()


async def test_what_rests_on_the_workers_word_works_while_redis_is_away(
    asterisk_install: AsteriskInstall, tmp_path: Path
) -> None:
    # Of an RTP leg Asterisk and the worker hear through the controller alone.
    held = {"did": HELD, "application": "echo", "answer": "when_connected"}
    routes = {"routes": [held, {"did": ECHO, "application": "echo"}, {"did": SCRIPTED, "application": "scripted"}]}
    async with outage_system(asterisk_install, tmp_path, merge(routes, leg("rtp"))) as outage:
        live = outage.live
        (before,) = await echoing(live)
        await outage.stores.redis.stop()
        await until(lambda: "redis_away" in live.system.controller.text(), "Redis missed")
        # A caller who is answered when the application is connected, which the worker says.
        call = live.ulaw.call(HELD, "+919078000001")
        began = asyncio.get_running_loop().time()
        await call.answered()
        assert asyncio.get_running_loop().time() - began < 4, "answered for want of a word"
        assert await hears_itself(call, 500)
        # An application that hangs up: who ended the call, and why, is in the worker's report.
        ended = live.ulaw.call(SCRIPTED, "+919078000002")
        await ended.answered()
        await until(lambda: bool(live.app.events("start")), "start message")
        await live.app.sockets[-1].close()
        assert await ended.ended() is Ending.BY_THEM
        row = await live.record(ended)
        assert (row.result, row.reason) == ("success", "application_ended")
        assert row.media is not None
        assert await hears_itself(before, 600)
        outage.stores.redis.start()
        await asyncio.gather(before.hang_up(), call.hang_up())
        for other in (before, call):
            assert (await live.record(other)).reason == "caller_hangup"
        await until(lambda: "redis_back" in live.system.controller.text(), "Redis found")
        await live.nothing_left()
