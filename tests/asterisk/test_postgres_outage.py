"""PostgreSQL is stopped and started again under calls: none is refused or dropped, and every record is there, once and
whole; also when the controller was killed meanwhile."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from ari_app.store.calls import CallStore
from ari_app.store.postgres import open_pool
from ari_app.store.spool import SPOOL_FOLDER, survey
from tests.live import Live
from tests.outage import Traffic, outage_system
from tools.asterisk.install import AsteriskInstall

pytestmark = pytest.mark.asterisk

RATE = 2.0
SECONDS = 24.0
AWAY_SECONDS = 12.0
CALL_SECONDS = 3.0


async def records_are_whole(live: Live, callers: list[str]) -> None:
    """One closed record for each caller, with the figures of its media and the story from arrival to end."""
    async with asyncio.timeout(30):
        while any(row.ended_at is None or row.media is None for row in await live.records()):
            await asyncio.sleep(0.2)
    rows = await live.records()
    assert Counter(row.caller for row in rows) == Counter(callers)
    assert Counter((row.state, row.result, row.reason) for row in rows) == {
        ("ended", "success", "caller_hangup"): len(callers)
    }
    pool = await open_pool(live.system.config.store)
    try:
        for row in rows:
            story = [event for event in await CallStore(pool).events(row.call_id) if ":" in event.source]
            own = [event.seq for event in story if event.source.startswith(f"{row.node}:")]
            assert own == list(range(1, len(own) + 1)), row.call_id
            assert any(event.event == "media_stopped" or event.event.startswith("media_") for event in story)
            assert own
    finally:
        await pool.close()


async def test_postgres_away_under_calls(asterisk_install: AsteriskInstall, tmp_path: Path) -> None:
    async with outage_system(asterisk_install, tmp_path) as outage:
        live = outage.live
        spool = live.system.config.state_dir / SPOOL_FOLDER
        traffic = Traffic(live, CALL_SECONDS)
        largest = []

        async def away() -> None:
            await asyncio.sleep(5)
            stopped = asyncio.create_task(outage.restart_postgres(AWAY_SECONDS))
            while not stopped.done():
                await asyncio.sleep(0.5)
                largest.append(survey(spool))
            await stopped

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(away())
            tasks.create_task(traffic.run(SECONDS, RATE))
        assert (traffic.refused, traffic.dropped) == ([], [])
        assert len(traffic.calls) == RATE * SECONDS
        await records_are_whole(live, [call.caller for call in traffic.calls])
        most = max(largest, key=lambda found: found.bytes)
        print(f"{most.records} records, {most.bytes} bytes, {most.bytes / RATE / AWAY_SECONDS:.0f} bytes a call")
        assert most.records > 100
        assert survey(spool).records == 0
        assert "records_flow_again" in live.system.controller.text()
        await live.nothing_left()


async def test_what_a_killed_controller_left_on_disk_is_written_by_the_next(
    asterisk_install: AsteriskInstall, tmp_path: Path
) -> None:
    async with outage_system(asterisk_install, tmp_path) as outage:
        live = outage.live
        traffic = Traffic(live, CALL_SECONDS)
        loading = asyncio.create_task(traffic.run(6, RATE))
        await asyncio.sleep(2)
        await outage.stores.postgres.stop()
        await loading
        assert (traffic.refused, traffic.dropped) == ([], [])
        await live.nothing_left()
        await live.system.controller.kill()
        found = survey(live.system.config.state_dir / SPOOL_FOLDER)
        assert found.records > 50
        outage.stores.postgres.start()
        await outage.stores.ready()
        await live.system.controller.start()
        await records_are_whole(live, [call.caller for call in traffic.calls])
