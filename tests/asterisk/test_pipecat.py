"""pipecat as installed from the package index, with its own Exotel serializer, as the application of a real call."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.live import SCRIPTED, live_system
from tests.worker_rig import until
from tools.asterisk.install import AsteriskInstall
from tools.asterisk.local import free_ports
from tools.audio.tones import dominant_frequency, tone
from tools.process import Process

pytestmark = pytest.mark.asterisk


async def test_pipecat_hears_the_caller_speaks_and_is_heard(asterisk_install: AsteriskInstall, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    bot = Process(
        "pipecat",
        [sys.executable, "-m", "tests.clients.pipecat_bot", str(port)],
        tmp_path / "bot.log",
        '"listening"',
        {"PYTHONPATH": str(Path(__file__).parents[2])},
    )

    def facts(event: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in bot.text().splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == event]

    changes = {"applications": {"scripted": {"url": f"ws://127.0.0.1:{port}/ws"}}}
    async with live_system(asterisk_install, tmp_path, changes=changes) as live:
        await bot.start(60)
        try:
            call = live.ulaw.call(SCRIPTED, "+919000500001")
            await call.answered()
            await until(lambda: facts("start"), "pipecat's start")
            (start,) = facts("start")
            assert start["provider"] == "exotel"
            assert (start["from"], start["to"]) == ("+919000500001", SCRIPTED)
            call.peer.play(tone(450, 2))
            await until(lambda: facts("heard"), "pipecat to hear the caller")
            assert facts("heard")[0]["hz"] == pytest.approx(450, abs=3)
            await call.peer.send_dtmf("7").wait()
            await asyncio.sleep(3)
            assert dominant_frequency(call.peer.received_pcm()) == pytest.approx(700, abs=3)
            assert facts("dtmf") == [{"event": "dtmf", "digit": "7"}]
            await call.hang_up()
            row = await live.record(call)
            assert (row.result, row.reason) == ("success", "caller_hangup")
            assert row.media is not None
            # pipecat sends 40 ms at a time in real time: two seconds of its tone were played, and nothing was lost.
            assert row.media.frames_played >= 100
            assert row.media.ignored == {}
            await until(lambda: facts("disconnected"), "pipecat to see the end")
        finally:
            await bot.stop()
        await live.nothing_left()
