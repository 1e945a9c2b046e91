"""Calls through a fleet: the trunk's VPN, the pair's own gateway, the application, and records that all share."""

from __future__ import annotations

import pytest

from tests.multihost.fleet import PAIRS, Fleet
from tests.multihost.talking import hang_up, hear_themselves, talking

pytestmark = [pytest.mark.multihost, pytest.mark.asyncio(loop_scope="session")]


async def test_each_pair_carries_its_calls_through_its_own_gateway(fleet: Fleet) -> None:
    known = len(await fleet.calls_at_application())
    calls = {pair: await talking(fleet, pair, 2) for pair in PAIRS}
    everybody = calls[1] + calls[2]
    for _ in range(3):
        await hear_themselves(everybody)
    await hang_up(everybody)
    for pair in PAIRS:
        rows = await fleet.closed(calls[pair])
        assert {(row.result, row.reason, row.node) for row in rows} == {("success", "caller_hangup", f"pbx{pair}")}
        assert {row.worker_id for row in rows} == set(fleet.gateway[pair].worker_ids)
        # Asterisk's audio came out of the VPN.
        assert {call.peer.remote[0] for call in calls[pair] if call.peer.remote} == {fleet.vpn.addresses[f"pbx{pair}"]}
    at_application = (await fleet.calls_at_application())[known:]
    assert len(at_application) == len(everybody)
    assert min(call["frames_received"] for call in at_application) > 100
    await fleet.nothing_left()
