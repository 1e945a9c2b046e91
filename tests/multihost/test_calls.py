"""Calls through a fleet: the trunk's VPN, the pair's own gateway, the application, and records that all share."""

from __future__ import annotations

import asyncio

import pytest

from tests.multihost.fleet import PAIRS, Fleet
from tests.multihost.talking import hears_itself, talking

pytestmark = [pytest.mark.multihost, pytest.mark.asyncio(loop_scope="session")]


async def test_each_pair_carries_its_calls_through_its_own_gateway(fleet: Fleet) -> None:
    calls = {pair: await talking(fleet, pair) for pair in PAIRS}
    assert await asyncio.gather(*(hears_itself(call, 400 + 100 * pair) for pair, call in calls.items())) == [True] * 2
    for pair, call in calls.items():
        await call.hang_up()
        row = await fleet.record(call)
        assert (row.result, row.reason, row.node) == ("success", "caller_hangup", f"pbx{pair}")
        assert row.worker_id in fleet.gateway[pair].worker_ids
    await fleet.nothing_left()
