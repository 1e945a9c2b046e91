"""The day of a fleet, shortened: whatever fails, the ledger is right, nobody carries too much, and nothing is left."""

from __future__ import annotations

import pytest
import redis.asyncio

from tools.bench.day import Day, Plan
from tools.bench.day_arrivals import DAY_SECONDS, LONGEST_SECONDS, arrivals, weight
from tools.bench.day_fleet import Fleet

pytestmark = pytest.mark.store

FIRST, LAST = 11 * 3600, 11 * 3600 + 240


def test_calls_come_as_a_campaign_makes_them() -> None:
    calls = list(arrivals(20_000, seed=1))
    assert [call.second for call in calls] == sorted(call.second for call in calls)
    assert len({call.call_id for call in calls}) == 20_000
    assert all(0 <= call.second < DAY_SECONDS and 2 <= call.seconds <= LONGEST_SECONDS + 2 for call in calls)
    by_hour = [sum(call.second // 3600 == hour for call in calls) for hour in range(24)]
    assert max(by_hour[0:9]) < 60 < by_hour[9]
    assert by_hour[14] < min(by_hour[11], by_hour[17]), "two humps"
    assert weight(11) > weight(14) > weight(3)
    assert calls == list(arrivals(20_000, seed=1)) != list(arrivals(20_000, seed=2))


async def test_a_day_with_every_failure_leaves_the_ledger_right(redis_client: redis.asyncio.Redis) -> None:
    fleet = Fleet(redis_client, pairs=3, workers=2, capacity=60, limits={"collections": 30})
    calls = list(arrivals(1200, seed=5, first_hour=FIRST / 3600, last_hour=LAST / 3600))
    plan = Plan(
        kills=[(FIRST + 40, "gw-01/0"), (FIRST + 90, "gw-02/1")],
        hosts=[(FIRST + 130, "gw-03", 40)],
        pbx=[(FIRST + 70, "pbx-02")],
        forgets=[FIRST + 110],
        upgrade=FIRST + 150,
    )
    day = Day(fleet, plan, calls)
    await day.run(FIRST, LAST)
    figures = fleet.figures
    assert figures.placed + sum(figures.refused.values()) == 1200
    assert figures.moved > 20, "calls of dead workers went on"
    assert figures.lost["pbx_restarted"] > 0
    assert day.upgraded_by > FIRST + 150
    assert figures.looked >= 4
    assert (figures.over_capacity, figures.over_limit, figures.twice, figures.wrong) == (0, 0, 0, 0)
    assert not fleet.calls
    left = [key async for key in redis_client.scan_iter("*leases:*") if await redis_client.zcard(key)]
    assert not left
