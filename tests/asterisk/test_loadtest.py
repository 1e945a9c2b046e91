"""`trunkbridge loadtest --sip`: SIPp's calls through a whole system."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path

import pytest

from tests.live import ECHO, live_system
from tools.asterisk.install import AsteriskInstall

pytestmark = [pytest.mark.asterisk, pytest.mark.timeout(180)]


async def test_calls_through_a_whole_system(asterisk_install: AsteriskInstall, tmp_path: Path) -> None:
    async with live_system(asterisk_install, tmp_path, calls=50) as live:
        target = ("--sip", live.system.config.asterisk.sip_listen, "--source", "127.0.0.2")

        async def started(*arguments: str) -> asyncio.subprocess.Process:
            return await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "ari_app.cli.main", "loadtest", *arguments, *target),
                *("--json", str(tmp_path / "report.json")),
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )

        async def ended(process: asyncio.subprocess.Process) -> tuple[int | None, str]:
            async with asyncio.timeout(60):
                output, _ = await process.communicate()
            return process.returncode, output.decode()

        status, output = await ended(
            await started("steady", "--callee", ECHO, "--calls", "10", "--rate", "20", "--seconds", "3")
        )
        assert status == 0, output
        result = json.loads((tmp_path / "report.json").read_text())["result"]
        assert (result["successful"], result["failed"]) == (10, 0)
        assert "INVITE to 200" in output
        async with asyncio.timeout(10):
            while any(row.ended_at is None for row in await live.records()):
                await asyncio.sleep(0.1)
        rows = await live.records()
        assert len(rows) == 10
        assert {(row.result, row.reason) for row in rows} == {("success", "caller_hangup")}
        # The echo came back as far as the worker's playout: the calls carried audio both ways.
        assert all(row.media is not None and row.media.frames_played > 100 for row in rows)

        status, output = await ended(
            await started("churn", "--callee", "+918000099999", "--rate", "5", "--seconds", "1", "--hold", "1")
        )
        assert status == 1, output
        assert "5 of 5 calls failed" in output
        assert "unexpected SIP 404" in output

        # Stopped, it hangs up what it has called.
        before = len(await live.records())
        process = await started("steady", "--callee", ECHO, "--calls", "5", "--minutes", "5")
        async with asyncio.timeout(20):
            while len(await live.records()) < before + 5 or len(await live.sessions()) < 5:
                await asyncio.sleep(0.1)
        process.send_signal(signal.SIGINT)
        status, output = await ended(process)
        assert status == 130, output
        await live.nothing_left()
