"""Calls that come fast: fifty a second, from SIPp, for twenty seconds."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from ari_app.store.records import CallRow
from audiosocket.loadtest.sip import run_load
from tests.live import ECHO, live_system
from tools.asterisk.install import AsteriskInstall
from tools.audio.tones import tone

pytestmark = [pytest.mark.asterisk, pytest.mark.alone]

RATE = 50
SECONDS = 20
HOLD_SECONDS = 2.0
UNDER_WAY_FRAMES = 25
"""Half a second of what was said may be on its way to the application and back when the caller hangs up."""


@pytest.mark.timeout(180)
async def test_fifty_calls_a_second_none_fails_and_nothing_is_left(
    asterisk_install: AsteriskInstall, tmp_path: Path
) -> None:
    async with live_system(asterisk_install, tmp_path, calls=200) as live:
        result = await run_load(
            live.system.config.asterisk.sip_listen,
            "127.0.0.2",
            tmp_path / "load",
            callee=ECHO,
            calls=RATE * SECONDS,
            calls_per_second=RATE,
            hold_seconds=HOLD_SECONDS,
            audio=tone(440, 2),
        )
        assert (result.successful, result.failed, result.failures) == (RATE * SECONDS, 0, {})
        await live.nothing_left()
        async with asyncio.timeout(10):
            while any(row.ended_at is None for row in await live.records()):
                await asyncio.sleep(0.2)
        rows = await live.records()
        assert len(rows) == RATE * SECONDS
        assert {(row.result, row.reason) for row in rows} == {("success", "caller_hangup")}
        # Each carried audio both ways, and what a caller said was played back to it or is accounted for: how much that
        # is within two seconds is the machine's speed, which a benchmark tells (rate50).
        assert [_carried(row) for row in rows if not _whole(row)] == []


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
