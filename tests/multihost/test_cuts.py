"""Calls over a private link that is cut, and mended."""

from __future__ import annotations

import pytest

from tests.multihost.fleet import Fleet
from tests.multihost.talking import all_hear_themselves, hang_up, hear_themselves_again, talking, until_after
from tools.sip.sipp import Call, CallRefused, Ending

pytestmark = [pytest.mark.multihost, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(180)]

CUT_SECONDS = 10.0
LONG_CUT_SECONDS = 20.0
AGAIN_SECONDS = 15.0
"""TCP may wait for some seconds until it tries again."""


async def test_a_gateway_out_of_reach_for_ten_seconds_costs_no_live_call(fleet: Fleet) -> None:
    ones, twos = await talking(fleet, 1, 3), await talking(fleet, 2, 2)
    since = fleet.network.cut("pbx1", "gw1")
    try:
        await until_after(since, 3)
        new = fleet.call(1)
        assert await all_hear_themselves(twos)
        # Placement takes the gateway for alive, for it reaches Redis: this caller is answered, hears nothing for as
        # long as Asterisk tries to connect to its workers, and goes to the other pair's.
        await hear_themselves_again([new], AGAIN_SECONDS)
        await until_after(since, CUT_SECONDS - 2)
        assert await all_hear_themselves(twos)
        await until_after(since, CUT_SECONDS)
    finally:
        fleet.network.mend("pbx1", "gw1")
    await hear_themselves_again(ones, AGAIN_SECONDS)
    ones += await talking(fleet, 1)
    await hang_up([*ones, *twos, new])
    for row in await fleet.closed([*ones, *twos, new]):
        assert (row.result, row.reason) == ("success", "caller_hangup")
    assert (await fleet.record(new)).worker_id in fleet.gateway[2].worker_ids
    await fleet.nothing_left()


async def test_a_gateway_out_of_reach_for_longer_ends_its_calls_except_over_rtp(fleet: Fleet) -> None:
    calls, by_rtp = await talking(fleet, 1, 3), await talking(fleet, 2, 2)
    fleet.network.cut("pbx1", "gw1")
    since = fleet.network.cut("pbx2", "gw2")
    try:
        assert {await call.ended(LONG_CUT_SECONDS) for call in calls} == {Ending.BY_THEM}
        rows = await fleet.closed(calls)
        assert {(row.result, row.reason) for row in rows} == {("server_error", "leg_silent")}
        await until_after(since, LONG_CUT_SECONDS)
    finally:
        fleet.network.mend("pbx1", "gw1")
        fleet.network.mend("pbx2", "gw2")
    # Nobody waits for a packet that is lost: audio is there again as soon as the way is.
    assert await all_hear_themselves(by_rtp)
    await hang_up(by_rtp)
    assert {row.reason for row in await fleet.closed(by_rtp)} == {"caller_hangup"}
    await fleet.nothing_left()
    await hang_up(await talking(fleet, 1))
    await fleet.nothing_left()


async def test_a_pbx_host_without_its_private_link_for_ten_seconds_keeps_its_calls(fleet: Fleet) -> None:
    calls, others = await talking(fleet, 1, 3), await talking(fleet, 2, 2)
    away = ("gw1", "gw2", "store")
    since = [fleet.network.cut("pbx1", other) for other in away][-1]
    try:
        await until_after(since, 3)
        await refused(fleet.call(1), 503)
        assert await all_hear_themselves(others)
        await until_after(since, CUT_SECONDS)
    finally:
        for other in away:
            fleet.network.mend("pbx1", other)
    await hear_themselves_again(calls, AGAIN_SECONDS)
    await hang_up(calls + others)
    for row in await fleet.closed(calls + others):
        assert (row.result, row.reason) == ("success", "caller_hangup")
    await fleet.nothing_left()
    await hang_up(await talking(fleet, 1))


async def test_stores_out_of_a_pbx_hosts_reach_for_ten_seconds_touch_no_call(fleet: Fleet) -> None:
    calls = await talking(fleet, 1, 3)
    since = fleet.network.cut("pbx1", "store")
    try:
        assert await all_hear_themselves(calls)
        await calls[0].hang_up()
        new = fleet.call(1)
        await refused(new, 503)
        await until_after(since, CUT_SECONDS - 2)
        assert await all_hear_themselves(calls[1:])
        await until_after(since, CUT_SECONDS)
    finally:
        fleet.network.mend("pbx1", "store")
    row = await fleet.record(new)
    assert (row.result, row.reason) == ("server_error", "redis")
    assert await all_hear_themselves(calls[1:])
    for call in calls[1:]:
        gaps = call.peer.reception(start=since)
        assert gaps.lost == 0
        assert gaps.gap_max_ms < 1000
    await hang_up(calls[1:])
    for row in await fleet.closed(calls):
        assert (row.result, row.reason) == ("success", "caller_hangup")
    await fleet.nothing_left()
    await hang_up(await talking(fleet, 1))


async def refused(call: Call, code: int) -> None:
    with pytest.raises(CallRefused) as why:
        await call.answered()
    assert why.value.sip_code == code
