"""A node's workers are restarted one after the other while calls come and go: no caller may notice."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ari_app.store.records import CallRow
from audiosocket.loadtest.sip import run_load
from tests.live import ECHO, Live, live_system
from tests.worker_rig import until
from tools.asterisk.install import AsteriskInstall
from tools.asterisk.local import free_ports
from tools.audio.tones import tone
from tools.process import Process
from tools.sip.sipp import Ending

pytestmark = pytest.mark.asterisk

RATE = 5
SECONDS = 30
HOLD_SECONDS = 3.0


async def restart(worker: Process) -> None:
    """What `systemctl restart` does: SIGTERM, the end, the start, until it is ready."""
    assert worker.running
    await worker.stop()
    await worker.start()


async def records(live: Live) -> list[CallRow]:
    """Of all calls, once all are closed."""
    async with asyncio.timeout(15):
        while any(row.ended_at is None for row in await live.records()):
            await asyncio.sleep(0.2)
    return await live.records()


@pytest.mark.alone
@pytest.mark.timeout(180)
@pytest.mark.parametrize("leg", ["audiosocket", "rtp"])
async def test_workers_restarted_in_turn_lose_no_call(
    asterisk_install: AsteriskInstall, tmp_path: Path, leg: str
) -> None:
    changes: dict[str, Any] = {"gateway": {"workers": 2, "drain_seconds": 12}}
    if leg == "rtp":
        changes["gateway"]["rtp_listen"] = f"127.0.0.1:{free_ports(4)[0]}"
    async with live_system(asterisk_install, tmp_path, calls=80, changes=changes) as live:
        load = asyncio.create_task(
            run_load(
                live.system.config.asterisk.sip_listen,
                "127.0.0.2",
                tmp_path / "load",
                callee=ECHO,
                calls=RATE * SECONDS,
                calls_per_second=RATE,
                hold_seconds=HOLD_SECONDS,
                audio=tone(440, 2),
            )
        )
        restarts = 0
        try:
            await asyncio.sleep(HOLD_SECONDS)
            while not load.done():
                await restart(live.system.workers[restarts % 2])
                restarts += 1
            result = await load
        finally:
            load.cancel()
            await asyncio.gather(load, return_exceptions=True)
        assert restarts >= 4
        rows = await records(live)
        odd = [(row.reason, row.detail, row.worker_id) for row in rows if row.reason != "caller_hangup"]
        overloaded = ["worker_overloaded" in worker.text() for worker in live.system.workers]
        assert not odd, f"{result.sip_codes}, overloaded: {overloaded}"
        assert (result.successful, result.failures, result.sip_codes) == (RATE * SECONDS, {}, {})
        assert [row.result for row in rows] == ["success"] * (RATE * SECONDS)
        short = [row for row in rows if row.media is None or row.media.frames_played < 100]
        assert not short  # each carried its three seconds both ways
        carried = Counter(row.worker_id for row in rows)
        assert len(carried) == 2
        assert min(carried.values()) > RATE * SECONDS / 5
        await live.nothing_left()
        for worker in live.system.workers:
            text = worker.text()
            assert "drain_time_over" not in text
            assert "leg_refused" not in text


async def test_a_call_that_outlasts_the_drain_ends_with_the_reason(
    asterisk_install: AsteriskInstall, tmp_path: Path
) -> None:
    async with live_system(asterisk_install, tmp_path, changes={"gateway": {"drain_seconds": 1}}) as live:
        call = live.ulaw.call(ECHO, "+919000500001")
        await call.answered()
        worker = live.system.workers[0]
        await worker.stop()
        assert await call.ended() is Ending.BY_THEM
        row = await live.record(call)
        assert (row.result, row.reason) == ("server_error", "worker_stopped")
        assert row.media is not None
        assert "drain_time_over" in worker.text()
        await live.nothing_left()


@pytest.mark.parametrize("first", ["SIGTERM", "SIGINT"])
async def test_a_second_signal_ends_the_drain(asterisk_install: AsteriskInstall, tmp_path: Path, first: str) -> None:
    async with live_system(asterisk_install, tmp_path, changes={"gateway": {"drain_seconds": 600}}) as live:
        call = live.ulaw.call(ECHO, "+919000500002")
        await call.answered()
        worker = live.system.workers[0]
        worker.send_signal(signal.Signals[first])
        await until(lambda: "worker_draining" in worker.text(), "draining")
        await asyncio.sleep(0.5)
        assert call.ending is None
        worker.send_signal(signal.SIGTERM)
        assert await call.ended() is Ending.BY_THEM
        row = await live.record(call)
        assert (row.result, row.reason) == ("server_error", "worker_stopped")
        await until(lambda: not worker.running, "the worker's end")
        await live.nothing_left()
