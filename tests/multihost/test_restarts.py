"""Everything of a fleet is restarted, node by node, while calls come and go: no caller may notice."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from tests.multihost.fleet import PAIRS, Fleet
from tests.multihost.talking import Load
from tools.process import Process

pytestmark = [pytest.mark.multihost, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(240)]

EVERY_SECONDS = 0.5
HOLD_SECONDS = 3.0


async def restart(fleet: Fleet, process: Process) -> None:
    """What `systemctl restart` does: SIGTERM, the end, the start; returns when placement knows all workers again."""
    assert process.running
    await process.stop()
    await process.start()
    await fleet.all_registered()


async def test_workers_and_controllers_restarted_in_turn_lose_no_call(fleet: Fleet) -> None:
    async with Load(fleet, EVERY_SECONDS, HOLD_SECONDS).running() as load:
        await asyncio.sleep(HOLD_SECONDS)
        for pair in PAIRS:
            for worker in fleet.gateway[pair].workers:
                await restart(fleet, worker)
            # A caller who came while no controller runs would hear Asterisk's fallback.
            async with load.paused(pair):
                await restart(fleet, fleet.pbx[pair].controller)
        await asyncio.sleep(HOLD_SECONDS)
    assert load.failures == []
    rows = await fleet.closed(load.calls)
    # Of those alone who hung up while no controller ran it is not known why they went.
    odd = [(row.reason, row.detail, row.worker_id) for row in rows if row.reason != "caller_hangup"]
    assert [row for row in odd if row[0] != "gone_unseen"] == []
    assert {row.caller for row in rows if row.reason == "gone_unseen"} <= load.unwatched
    carried = Counter(row.worker_id for row in rows)
    assert set(carried) == {worker for gateway in fleet.gateway.values() for worker in gateway.worker_ids}
    for gateway in fleet.gateway.values():
        for worker in gateway.workers:
            assert "drain_time_over" not in worker.text()
    await fleet.nothing_left()
