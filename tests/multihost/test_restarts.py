"""Everything of a fleet is restarted, node by node, while calls come and go: no caller may notice."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from tests.multihost.fleet import PAIRS, Fleet
from tests.multihost.talking import Load
from tools.process import Process

pytestmark = [pytest.mark.multihost, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(500)]

EVERY_SECONDS = 0.5
HOLD_SECONDS = 3.0
AWAY_SECONDS = 3.0
"""How long a store is away: so long that calls begin and end meanwhile."""
SETTLE_SECONDS = 2.0
"""Calls that come when it is back, before the next one goes."""


async def restart(fleet: Fleet, process: Process) -> None:
    """What `systemctl restart` does: SIGTERM, the end, the start; returns when placement knows all workers again."""
    assert process.running
    await process.stop()
    await process.start()
    await fleet.all_registered()


async def test_workers_controllers_and_stores_restarted_in_turn_lose_no_call(fleet: Fleet) -> None:
    async with Load(fleet, EVERY_SECONDS, HOLD_SECONDS).running() as load:
        await asyncio.sleep(HOLD_SECONDS)
        for pair in PAIRS:
            for worker in fleet.gateway[pair].workers:
                await restart(fleet, worker)
            for _ in fleet.pbx[pair].controllers:
                await fleet.pbx[pair].switch_controllers()
        for restarted in (fleet.stores.restart_postgres, fleet.stores.restart_redis):
            await restarted(AWAY_SECONDS)
            await fleet.all_registered()
            await asyncio.sleep(SETTLE_SECONDS)
        await asyncio.sleep(HOLD_SECONDS)
    rows = await fleet.closed(load.calls)
    odd = [(row.caller, row.reason, row.detail, row.worker_id) for row in rows if row.reason != "caller_hangup"]
    # Why a caller went who hung up in the moment of a switch, nobody knows.
    switched = [moment for pbx in fleet.pbx.values() for moment in pbx.switched]
    unseen = {call.caller for call in load.calls for since, to in switched if since <= (call.ended_at or 0) <= to}
    assert (load.failures, [row for row in odd if row[0] not in unseen or row[1] != "gone_unseen"]) == ([], [])
    assert switched
    assert load.heard > len(load.calls) / 2
    assert {row.result for row in rows if row.reason == "caller_hangup"} == {"success"}
    carried = Counter(row.worker_id for row in rows)
    assert set(carried) == {worker for gateway in fleet.gateway.values() for worker in gateway.worker_ids}
    for gateway in fleet.gateway.values():
        for worker in gateway.workers:
            assert "drain_time_over" not in worker.text()
    await fleet.nothing_left()
