"""Calls over a private link that is cut, and mended."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from statistics import median

import pytest

from tests.multihost.fleet import Fleet
from tests.multihost.hosts import PATIENCE_SECONDS, Cut
from tests.multihost.talking import Load, hang_up, hear_themselves, talking
from tools.sip.sipp import Call, CallRefused, Ending

pytestmark = [pytest.mark.multihost, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(400)]

CUT_SECONDS = 10.0
LONG_CUT_SECONDS = 20.0
WAIT_SECONDS = 1.0
"""Who waited for a store would wait for longer."""
GAP_MS = 1000.0
"""Who notices a cut notices it for longer."""


async def test_a_gateway_out_of_reach_for_ten_seconds_costs_no_live_call(fleet: Fleet) -> None:
    ones, twos = await talking(fleet, 1, 3), await talking(fleet, 2, 2)
    async with fleet.network.cut(("pbx1", "gw1"), seconds=CUT_SECONDS):
        # Placement takes the gateway for alive, for it reaches Redis: this caller is answered, hears nothing for as
        # long as Asterisk tries to connect to its workers, and goes to the other pair's.
        new = fleet.call(1)
        await hear_themselves(twos)
        await new.answered(PATIENCE_SECONDS)
        await hear_themselves([new])
        await hear_themselves(twos)
    await hear_themselves(ones)
    ones += await talking(fleet, 1)
    await hang_up([*ones, *twos, new])
    for row in await fleet.closed([*ones, *twos, new]):
        assert (row.result, row.reason) == ("success", "caller_hangup")
    assert (await fleet.record(new)).worker_id in fleet.gateway[2].worker_ids
    await fleet.nothing_left()


async def test_a_gateway_out_of_reach_for_longer_ends_its_calls_except_over_rtp(fleet: Fleet) -> None:
    calls, by_rtp = await talking(fleet, 1, 3), await talking(fleet, 2, 2)
    async with fleet.network.cut(("pbx1", "gw1"), ("pbx2", "gw2")) as cut:
        endings = await asyncio.gather(*(call.ended(PATIENCE_SECONDS) for call in calls))
        assert set(endings) == {Ending.BY_THEM}
        await cut.lasted(LONG_CUT_SECONDS)
    rows = await fleet.closed(calls)
    assert {(row.result, row.reason) for row in rows} == {("server_error", "leg_silent")}
    # Nobody waits for a packet that is lost: audio is there again as soon as the way is.
    await hear_themselves(by_rtp)
    await hang_up(by_rtp)
    assert {row.reason for row in await fleet.closed(by_rtp)} == {"caller_hangup"}
    await fleet.nothing_left()
    await hang_up(await talking(fleet, 1))
    await fleet.nothing_left()


async def test_a_pbx_host_without_its_private_link_for_ten_seconds_keeps_its_calls(fleet: Fleet) -> None:
    calls, others = await talking(fleet, 1, 3), await talking(fleet, 2, 2)
    away = [("pbx1", other) for other in ("gw1", "gw2", "store")]
    async with fleet.network.cut(*away, seconds=CUT_SECONDS) as cut:
        new = fleet.call(1)
        await hear_themselves(others)
        await refused_meanwhile(new, 503, cut)
    await hear_themselves(calls)
    await hang_up(calls + others)
    for row in await fleet.closed(calls + others):
        assert (row.result, row.reason) == ("success", "caller_hangup")
    await fleet.nothing_left()
    await hang_up(await talking(fleet, 1))


@pytest.mark.parametrize("hosts", [("pbx1", "pbx2"), ("pbx1", "pbx2", "gw1", "gw2")], ids=["pbx", "all"])
async def test_stores_out_of_reach_for_ten_seconds_touch_no_call_and_new_ones_go_on(
    fleet: Fleet, hosts: tuple[str, ...]
) -> None:
    calls = await talking(fleet, 1, 2) + await talking(fleet, 2, 2)
    known = len(await fleet.records())
    load = Load(fleet, every_seconds=0.5, hold_seconds=3.0)
    paths = [(host, "store") for host in hosts]
    async with load.running(), fleet.network.cut(*paths, seconds=CUT_SECONDS) as cut:
        await calls[0].hang_up(PATIENCE_SECONDS)
        await hear_themselves(calls[1:])
    assert cut.ended is not None
    times = load.answer_seconds(cut.began, cut.ended)
    print(f"INVITE to 200 in the cut, ms: {[round(seconds * 1000) for seconds in times]}")
    # Who calls in the moment in which the stores go waits until that is known, and nobody else does.
    assert (load.failures, median(times) < WAIT_SECONDS) == ([], True)
    assert load.heard > len(load.calls) / 2
    await hear_themselves(calls[1:])
    for call in calls[1:]:
        met = call.peer.reception(start=cut.began)
        stood_still_ms = fleet.standstills.seconds(cut.began, time.monotonic()) * 1000
        assert (met.lost, met.gap_max_ms < GAP_MS + stood_still_ms) == (0, True), met
    await hang_up(calls[1:])
    for row in await fleet.closed([*calls, *load.calls]):
        assert (row.result, row.reason) == ("success", "caller_hangup")
        assert row.media is not None
    assert len(await fleet.records()) == known + len(load.calls)
    await fleet.nothing_left()
    await hang_up(await talking(fleet, 1))


async def refused_meanwhile(call: Call, code: int, cut: Cut) -> None:
    """The call is refused; on a machine that takes as long, it may be answered when the cut is over."""
    with suppress(CallRefused):
        await call.answered(PATIENCE_SECONDS)
        assert cut.ended is not None
        assert (call.answered_at or 0) > cut.ended
        await call.hang_up(PATIENCE_SECONDS)
        return
    print(f"INVITE to {call.sip_code}, ms: {round(((call.ended_at or 0) - (call.invited_at or 0)) * 1000)}")
    assert call.sip_code == code
