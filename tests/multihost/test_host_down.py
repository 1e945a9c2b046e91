"""A gateway host is gone from one moment to the next."""

from __future__ import annotations

import pytest

from tests.multihost.fleet import Fleet
from tests.multihost.talking import hang_up, hear_themselves, talking

pytestmark = [pytest.mark.multihost, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(180)]


async def test_a_gateway_host_that_dies_leaves_its_calls_to_the_other_pair(fleet: Fleet) -> None:
    ones, twos = await talking(fleet, 1, 3), await talking(fleet, 2, 2)
    await fleet.kill_gateway(1)
    try:
        await hear_themselves(twos)
        await fleet.until_registered(set(fleet.gateway[2].worker_ids))
        new = await talking(fleet, 1, 2)
        await hear_themselves(twos + new)
        await hang_up(new)
        for row in await fleet.closed(new):
            assert (row.result, row.node) == ("success", "pbx1")
            assert row.worker_id in fleet.gateway[2].worker_ids
        await hear_themselves(ones)  # no connection was reset: their worker's silence tells
        await hang_up(ones + twos)
        rows = await fleet.closed(ones + twos)
        assert {(row.result, row.reason) for row in rows} == {("success", "caller_hangup")}
        assert {row.worker_id for row in rows} <= set(fleet.gateway[2].worker_ids)
        await fleet.nothing_left()
    finally:
        await fleet.revive_gateway(1)
    (back,) = await talking(fleet, 1)
    await back.hang_up()
    assert (await fleet.record(back)).worker_id in fleet.gateway[1].worker_ids
    await fleet.nothing_left()
