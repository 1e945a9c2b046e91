"""PostgreSQL is stopped and started again under calls: none is refused or dropped, and every record is there, once and
whole; also when the controller was killed meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from pathlib import Path

import pytest

from ari_app.store.calls import CallStore
from ari_app.store.postgres import open_pool
from ari_app.store.spool import SPOOL_FOLDER, survey
from tests.asterisk.test_standby import hears
from tests.live import ECHO, Live
from tests.outage import Traffic, outage_system
from tests.worker_rig import until
from tools.asterisk.install import AsteriskInstall
from tools.audio.tones import tone

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
            story = await CallStore(pool).events(row.call_id)
            for source in {event.source for event in story if event.source.startswith(f"{row.node}:")}:
                seqs = [event.seq for event in story if event.source == source]  # of one controller
                assert seqs == list(range(1, len(seqs) + 1)), (row.call_id, source)
            assert any(event.event.startswith("media_") for event in story)
    finally:
        await pool.close()


def said(live: Live, event: str) -> int:
    """How often controllers have logged it."""
    return live.system.controller.text().count(f'"{event}"')


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


async def test_what_a_killed_controller_left_on_disk_is_written_before_the_next_adopts_its_calls(
    asterisk_install: AsteriskInstall, tmp_path: Path
) -> None:
    async with outage_system(asterisk_install, tmp_path) as outage:
        live = outage.live
        traffic = Traffic(live, CALL_SECONDS)
        loading = asyncio.create_task(traffic.run(6, RATE))
        await asyncio.sleep(2)
        await outage.stores.postgres.stop()
        # A call that PostgreSQL has never heard of when it is adopted.
        long = live.ulaw.call(ECHO, "+919000700001")
        await long.answered(20)
        await loading
        assert (traffic.refused, traffic.dropped) == ([], [])
        # Who hangs up in the moment in which the controller dies would be `gone_unseen`.
        await until(lambda: said(live, "call_ended") == len(traffic.calls), "all but one have ended", 20)
        spool, before = live.system.config.state_dir / SPOOL_FOLDER, None
        while before != (before := survey(spool)):  # what was logged last is on its way there
            await asyncio.sleep(0.2)
        await live.system.controller.kill()
        found = survey(spool)
        assert found.records > 50
        assert (found.damaged, found.torn) == (0, 0)
        await live.system.controller.start()  # with PostgreSQL still away
        new = live.ulaw.call(ECHO, "+919000700002")
        await new.answered(20)
        assert said(live, "calls_adopted") == 1  # the first controller's, of no call
        outage.stores.postgres.start()
        await outage.stores.ready()
        await until(lambda: said(live, "calls_adopted") == 2, "adoption", 20)
        assert (long.ending, new.ending) == (None, None)
        long.peer.play(tone(620, 1.0))
        began = time.monotonic()
        await asyncio.sleep(0.2)  # something to listen to
        await until(lambda: hears(long, 620, began), "the adopted caller hears himself", 15)
        for call in (long, new):
            await call.hang_up()
        await records_are_whole(live, [call.caller for call in (*traffic.calls, long, new)])
        await live.nothing_left()
