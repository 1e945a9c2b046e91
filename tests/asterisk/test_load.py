"""Calls that come fast: fifty a second, from SIPp, for twenty seconds; fewer on a machine that cannot carry so many."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable
from pathlib import Path

import pytest

from ari_app.store.records import CallRow
from audiosocket.loadtest.sip import run_load
from tests.live import ECHO, Live, live_system
from tools.asterisk.install import AsteriskInstall
from tools.audio.tones import tone

pytestmark = [pytest.mark.asterisk, pytest.mark.alone]

RATE = 50
"""A machine of the usual speed is half idle with it."""
TRIAL_CALLS, TRIAL_RATE = 50, 10
PROCESSORS = len(os.sched_getaffinity(0))
SHARE = 0.8
"""Of the machine, that the calls may take: at a rate that it cannot carry calls are refused, which the benchmark rate50
tells."""
SECONDS = 20
HOLD_SECONDS = 2.0
UNDER_WAY_FRAMES = 25
"""Half a second of what was said may be on its way to the application and back when the caller hangs up."""


@pytest.mark.timeout(180)
async def test_fifty_calls_a_second_none_fails_and_nothing_is_left(
    asterisk_install: AsteriskInstall, tmp_path: Path
) -> None:
    async with live_system(asterisk_install, tmp_path, calls=200) as live:
        without = await _taken(asyncio.sleep(2))
        taken = await _taken(_all_succeed(live, tmp_path / "trial", TRIAL_CALLS, TRIAL_RATE)) - without
        rate = min(RATE, int((SHARE * PROCESSORS - without) / taken * TRIAL_RATE))
        print(f"{TRIAL_RATE} calls a second take {taken:.2f} processors, none {without:.2f}: {rate} calls a second")
        await _all_succeed(live, tmp_path / "load", rate * SECONDS, rate)
        await live.nothing_left()
        async with asyncio.timeout(10):
            while any(row.ended_at is None for row in await live.records()):
                await asyncio.sleep(0.2)
        rows = await live.records()
        assert len(rows) == TRIAL_CALLS + rate * SECONDS
        assert {(row.result, row.reason) for row in rows} == {("success", "caller_hangup")}
        # Each carried audio both ways, and what a caller said was played back to it or is accounted for: how much that
        # is within two seconds is the machine's speed, which a benchmark tells (rate50).
        assert [_carried(row) for row in rows if not _whole(row)] == []


async def _taken(work: Awaitable[None]) -> float:
    """How many processors were busy on average meanwhile, or taken away by the host (proc_stat(5))."""
    began, before = time.monotonic(), Path("/proc/stat").read_text().split()
    await work
    seconds, after = time.monotonic() - began, Path("/proc/stat").read_text().split()
    idle = sum(int(now) - int(then) for now, then in zip(after[4:6], before[4:6], strict=True))
    return PROCESSORS - idle / os.sysconf("SC_CLK_TCK") / seconds


async def _all_succeed(live: Live, folder: Path, calls: int, rate: int) -> None:
    result = await run_load(
        live.system.config.asterisk.sip_listen,
        "127.0.0.2",
        folder,
        callee=ECHO,
        calls=calls,
        calls_per_second=rate,
        hold_seconds=HOLD_SECONDS,
        audio=tone(440, 2),
    )
    assert (result.successful, result.failed, result.failures) == (calls, 0, {})


def _whole(row: CallRow) -> bool:
    media = row.media
    if media is None or not media.frames_played:
        return False
    accounted = media.frames_played + sum(media.frames_dropped.values()) + sum(media.caller_frames_dropped.values())
    return media.caller_frames - accounted <= UNDER_WAY_FRAMES


def _carried(row: CallRow) -> tuple[object, ...]:
    media = row.media
    if media is None:
        return (row.call_id, "no report")
    return (
        row.call_id,
        media.caller_frames,
        media.caller_frames_dropped,
        media.app_media_received,
        media.frames_played,
        media.frames_dropped,
    )
