"""Leases: the policy, in a real Redis. Invariants under any order of events are in test_lease_invariants.py."""

from __future__ import annotations

import asyncio
import collections
import uuid

import pytest

from ari_app.errors import NoCapacity, StoreUnavailable
from ari_app.fleet.leases import Held, Lease, Leases
from audiosocket.callspec import HEARTBEAT_TTL_MS
from audiosocket.keys import KEY_PREFIX, mark_key, worker_key
from audiosocket.runtime.announcing import Announcer, announcement_of
from audiosocket.runtime.stores import open_redis
from audiosocket.settings import StoreUrls
from tests.store.fleet import NOW_MS, Fleet

pytestmark = pytest.mark.store


@pytest.fixture
def fleet(redis_client) -> Fleet:
    return Fleet(redis_client)


@pytest.fixture
def leases(fleet) -> Leases:
    return fleet.leases()


async def chosen(leases: Leases, calls: int = 1, **options) -> collections.Counter[str]:
    """The workers of so many new calls."""
    given = [await leases.acquire(str(uuid.uuid4()), **options) for _ in range(calls)]
    return collections.Counter(lease.worker.worker_id for lease in given)


async def why(leases: Leases, **options) -> str:
    """Why there is no worker."""
    with pytest.raises(NoCapacity) as caught:
        await leases.acquire("one-too-many", **options)
    return caught.value.reason


# Which worker


async def test_least_active_per_capacity(leases, fleet):
    await fleet.worker("gw/0", 2)
    await fleet.worker("gw/1", 8)
    assert await chosen(leases, 5) == {"gw/0": 1, "gw/1": 4}
    await chosen(leases, 5)
    assert await why(leases) == "all_full"
    assert await leases.active(["gw/0", "gw/1", "gw/2"]) == {"gw/0": 2, "gw/1": 8, "gw/2": 0}


async def test_equals_take_turns_even_when_each_call_ends_before_the_next(leases, fleet):
    for index in range(3):
        await fleet.worker(f"gw/{index}", 5)
    took = []
    for _ in range(9):
        lease = await leases.acquire("call")
        took.append(lease.worker.worker_id)
        assert await leases.release("call", lease.token)
    assert collections.Counter(took) == {"gw/0": 3, "gw/1": 3, "gw/2": 3}


async def test_a_worker_that_does_not_keep_up_is_given_no_call_but_keeps_those_that_it_has(leases, fleet):
    for index in range(2):
        await fleet.worker(f"gw/{index}", 5)
    before = {call: await leases.acquire(call) for call in ("one", "two")}
    assert sorted(lease.worker.worker_id for lease in before.values()) == ["gw/0", "gw/1"]
    await fleet.worker("gw/1", 5, overloaded=True)
    assert await chosen(leases, 4) == {"gw/0": 4}
    assert await why(leases) == "all_full"
    held = {call: Held(lease.worker.worker_id, lease.token) for call, lease in before.items()}
    assert not (await leases.renew(held)).lost
    await fleet.worker("gw/1", 5)
    assert await chosen(leases) == {"gw/1": 1}


async def test_why_there_is_no_capacity(leases, fleet, redis_client):
    assert await why(leases) == "no_workers"
    await fleet.worker("gone/0", 5)
    fleet.now_ms += HEARTBEAT_TTL_MS
    assert await why(leases) == "no_workers"
    await fleet.worker("gw/0", 5, draining=True)
    assert await why(leases) == "all_draining"
    await fleet.worker("gw/1", 0)
    assert await why(leases) == "all_full"
    await fleet.worker("other/0", 5, pair="other")
    assert await why(leases) == "all_full"
    await fleet.worker("gw/1", 5)
    await redis_client.delete(worker_key("gw/1"))
    assert await why(leases) == "all_draining"
    await redis_client.set(worker_key("gw/1"), b"not json")
    with pytest.raises(StoreUnavailable, match="registration cannot be read"):
        await leases.acquire("call")


async def test_a_node_that_bears_a_mark_is_given_no_call(leases, fleet, redis_client):
    await fleet.worker("gw-1/0", 5)
    await fleet.worker("gw-2/0", 5)
    for mark in ("cordoned", "draining"):
        await redis_client.set(mark_key("gw-1"), mark)
        assert await chosen(leases, 2) == {"gw-2/0": 2}
    assert await why(leases, exclude=["gw-2/0"]) == "all_draining"
    await redis_client.delete(mark_key("gw-1"))
    assert await chosen(leases) == {"gw-1/0": 1}


async def test_another_pair_is_given_a_call_only_when_the_own_one_has_no_room(fleet):
    leases = fleet.leases(pair="a", spill_over=["b", "c"])
    for pair, capacity in (("a", 2), ("b", 1), ("c", 3), ("d", 9)):
        await fleet.worker(f"gw-{pair}/0", capacity, pair=pair)
    assert await chosen(leases, 2) == {"gw-a/0": 2}
    assert await chosen(leases, 4) == {"gw-b/0": 1, "gw-c/0": 3}
    assert await why(leases) == "all_full"
    assert await chosen(fleet.leases(node="pbx-d", pair="d")) == {"gw-d/0": 1}


async def test_a_worker_that_comes_back_in_another_pair_has_left_its_old_one(fleet):
    await fleet.worker("gw/0", 5, pair="a")
    await fleet.worker("gw/0", 5, pair="b")
    assert await why(fleet.leases(pair="a")) == "no_workers"
    assert await chosen(fleet.leases(pair="b")) == {"gw/0": 1}


# Outbound


async def placed(leases: Leases, calls: int = 1, **options) -> collections.Counter[tuple[str, str]]:
    """PBX nodes and workers of so many new outbound calls."""
    given = [await leases.acquire_outbound(str(uuid.uuid4()), **options) for _ in range(calls)]
    return collections.Counter((lease.node, lease.worker.worker_id) for lease in given)


async def test_outbound_calls_go_to_the_least_loaded_pair(fleet):
    leases = fleet.leases()
    for pair, workers, capacity in (("a", 2, 5), ("b", 1, 5), ("c", 1, 5)):
        await fleet.pbx(f"pbx-{pair}", 100, pair=pair)
        for index in range(workers):
            await fleet.worker(f"gw-{pair}/{index}", capacity, pair=pair)
    await fleet.worker("gw-alone/0", 1000, pair="alone")
    for _ in range(2):
        assert await placed(leases, 4) == {
            ("pbx-a", "gw-a/0"): 1,
            ("pbx-a", "gw-a/1"): 1,
            ("pbx-b", "gw-b/0"): 1,
            ("pbx-c", "gw-c/0"): 1,
        }
    assert await leases.active_on_nodes(["pbx-a", "pbx-b", "pbx-1"]) == {"pbx-a": 4, "pbx-b": 2, "pbx-1": 0}


async def test_outbound_calls_go_where_the_pbx_node_accepts_them(fleet, redis_client):
    leases = fleet.leases()
    for pair in "ab":
        await fleet.worker(f"gw-{pair}/0", 50, pair=pair)

    async def refusal(**options):
        with pytest.raises(NoCapacity) as caught:
            await leases.acquire_outbound("call", **options)
        return caught.value.reason

    assert await refusal() == "no_pbx"
    await fleet.pbx("pbx-a", 4, pair="a", role="standby")
    assert await refusal() == "no_pbx"
    await fleet.pbx("pbx-a", 4, pair="a", instance="b")
    await fleet.pbx("pbx-b", 4, pair="b", accepting=False)
    assert await placed(leases) == {("pbx-a", "gw-a/0"): 1}
    assert await refusal(exclude=["pbx-a"]) == "no_pbx"
    await fleet.pbx("pbx-a", 4, pair="a", instance="b", calls=3)
    await fleet.pbx("pbx-b", 4, pair="b", calls=2)
    assert await placed(leases) == {("pbx-b", "gw-b/0"): 1}
    # What has been placed since the announcements counts as well.
    await placed(leases, 3)
    await fleet.pbx("pbx-a", 4, pair="a", instance="b", calls=4)
    assert await refusal() == "all_full"
    await fleet.pbx("pbx-a", 400, pair="a", instance="b", calls=4)
    await redis_client.set(mark_key("pbx-b"), "cordoned")
    assert await placed(leases) == {("pbx-a", "gw-a/0"): 1}
    await redis_client.set(mark_key("gw-a"), "cordoned")
    fleet.now_ms += 1000  # for so long the reason may be that of a moment ago, the choice never
    assert await refusal() == "no_pbx"


async def test_calls_of_a_worker_that_takes_no_more_do_not_count_against_its_pair(fleet):
    for pair in "ab":
        await fleet.pbx(f"pbx-{pair}", 100, pair=pair)
        await fleet.worker(f"gw-{pair}/0", 4, pair=pair)
    await fleet.worker("gw-a/1", 4, pair="a")
    await chosen(fleet.leases(pair="a"), 3, exclude=["gw-a/0"])
    await chosen(fleet.leases(pair="b"))
    assert await placed(fleet.leases()) == {("pbx-b", "gw-b/0"): 1}  # 1 of 4 beside 3 of 8
    await fleet.worker("gw-a/1", 4, pair="a", draining=True)
    assert await placed(fleet.leases(), 2) == {("pbx-a", "gw-a/0"): 2}  # none of 4 beside 2 of 4


async def test_controllers_that_are_announced(fleet):
    assert await fleet.controllers.controllers() == []
    active = await fleet.pbx("pbx-a", 4, status_url="http://10.0.0.1:9093")
    standby = await fleet.pbx("pbx-a", 4, instance="b", role="standby")
    assert await fleet.controllers.controllers() == [active, standby]
    await fleet.controllers.withdraw_controller(active)
    assert await fleet.controllers.controllers() == [standby]


# Who has it


async def test_concurrent_acquires_of_the_last_slot_have_one_winner(leases, fleet, empty_stores):
    await fleet.worker("gw/0", 3)
    await leases.acquire("first")
    await leases.acquire("second")
    clients = [open_redis(empty_stores) for _ in range(8)]
    answers = await asyncio.gather(
        *(fleet.leases(client=client).acquire(f"call-{index}") for index, client in enumerate(clients)),
        return_exceptions=True,
    )
    assert sum(isinstance(answer, Lease) for answer in answers) == 1
    assert sum(isinstance(answer, NoCapacity) for answer in answers) == 7
    await asyncio.gather(*(client.aclose() for client in clients))


async def test_concurrent_acquires_of_one_call_agree(leases, fleet):
    for index in range(4):
        await fleet.worker(f"gw/{index}", 5)
    answers = await asyncio.gather(*(leases.acquire("call") for _ in range(20)))
    assert len({(answer.worker.worker_id, answer.token) for answer in answers}) == 1
    assert sum((await leases.active([f"gw/{index}" for index in range(4)])).values()) == 1


async def test_a_lease_that_nobody_renews_ends_by_redis_clock(redis_client):
    brief, announcer = Leases(redis_client, 0.15), Announcer(redis_client)
    info = await Fleet(redis_client).worker("gw/0", 1)
    await announcer.announce(announcement_of(info))
    first = await brief.acquire("first", application="bot")
    async with asyncio.timeout(10):
        while True:
            await announcer.announce(announcement_of(info))
            try:
                second = await brief.acquire("second", application="bot")
                break
            except NoCapacity:
                await asyncio.sleep(0.01)
    held = {"first": Held("gw/0", first.token, "bot"), "second": Held("gw/0", second.token, "bot")}
    assert (await brief.renew(held)).lost == {"first"}

    keys = [key async for key in redis_client.scan_iter(f"{KEY_PREFIX}*lease*")]
    lives = {key.decode().removeprefix(KEY_PREFIX): await redis_client.pttl(key) for key in keys}
    assert lives.pop("lease-token") == -1
    assert lives
    assert all(0 <= ms <= 602_000 for ms in lives.values())


async def test_a_call_of_a_dead_worker_gets_another(leases, fleet):
    await fleet.worker("gw/0", 1)
    first = await leases.acquire("call")
    fleet.now_ms += HEARTBEAT_TTL_MS
    await fleet.worker("gw/1", 1)
    second = await leases.acquire("call")
    assert second.worker.worker_id == "gw/1"
    assert second.token > first.token
    assert await leases.active(["gw/0", "gw/1"]) == {"gw/0": 0, "gw/1": 1}


async def test_a_call_that_is_moved_keeps_its_lease_until_it_has_another(leases, fleet):
    await fleet.worker("gw/0", 1)
    first = await leases.acquire("call", application="bot", limit=1)
    assert await leases.acquire("call", application="bot", limit=1) == first
    assert await why(leases, application="bot", limit=1) == "app_full"
    with pytest.raises(NoCapacity):
        await leases.acquire("call", application="bot", limit=1, exclude=["gw/0"])
    assert await leases.active(["gw/0"]) == {"gw/0": 1}
    await fleet.worker("gw/1", 1)
    second = await leases.acquire("call", application="bot", limit=1, exclude=["gw/0"])
    assert (second.worker.worker_id, second.token > first.token) == ("gw/1", True)
    assert await leases.active(["gw/0", "gw/1"]) == {"gw/0": 0, "gw/1": 1}
    assert await leases.active_of_applications(["bot", "other"]) == {"bot": 1, "other": 0}


async def test_a_stale_token_changes_nothing(leases, fleet):
    await fleet.worker("gw/0", 1)
    first = await leases.acquire("call")
    await fleet.worker("gw/1", 1)
    second = await leases.acquire("call", exclude=["gw/0"])
    assert not await leases.release("call", first.token)
    assert (await leases.renew({"call": Held("gw/0", first.token)})).lost == {"call"}
    assert await leases.active(["gw/0", "gw/1"]) == {"gw/0": 0, "gw/1": 1}
    assert await leases.release("call", second.token)
    # Neither its own holder's renewal, late, nor the stale one's grants it again.
    for holder in (Held("gw/1", second.token), Held("gw/0", first.token), Held("gw/1")):
        assert (await leases.renew({"call": holder})).lost == {"call"}
    assert not await leases.release("call", second.token)
    assert await leases.active(["gw/0", "gw/1"]) == {"gw/0": 0, "gw/1": 0}


async def test_renewals_rebuild_the_ledger_of_a_redis_that_forgot(leases, fleet, redis_client):
    await fleet.worker("gw/0", 2)
    token = NOW_MS * 1000 + 50
    held = {call: Held("gw/0", token + index, "bot") for index, call in enumerate("abc")}
    assert (await leases.renew(held | {"d": Held("gone/0", token)})).lost == {"c", "d"}
    assert await leases.active(["gw/0"]) == {"gw/0": 2}
    assert await leases.active_of_applications(["bot"]) == {"bot": 2}
    assert await leases.active_on_nodes(["pbx-1"]) == {"pbx-1": 2}
    assert await leases.release("a", token)
    assert (await leases.acquire("e")).token > token + 1
    many = {f"call-{index}": Held("gw/1", 1) for index in range(1200)}
    await fleet.worker("gw/1", 1100)
    assert len((await leases.renew(many)).lost) == 100
    # Of two holders of a lost lease the newer has it, whoever comes first.
    await redis_client.flushall()
    await fleet.worker("gw/0", 1)
    for holder, lost in ((Held("gw/0", 7), set()), (Held("gw/0", 9), set()), (Held("gw/0", 7), {"call"})):
        assert (await leases.renew({"call": holder})).lost == lost
    assert await leases.active(["gw/0"]) == {"gw/0": 1}


async def test_a_holder_that_does_not_know_its_token_learns_it(leases, fleet):
    await fleet.worker("gw/0", 2)
    lease = await leases.acquire("known")
    renewal = await leases.renew({"known": Held("gw/0"), "unknown": Held("gw/0"), "no room": Held("gw/0")})
    assert renewal.lost == {"no room"}
    assert renewal.tokens["known"] == lease.token
    assert renewal.tokens["unknown"] > lease.token
    assert (await leases.renew({"known": Held("gw/1")})).lost == {"known"}
    assert await leases.release("known", 0)
    assert await leases.release("unknown", renewal.tokens["unknown"])


# Applications


async def test_an_application_has_no_more_calls_than_its_limit(leases, fleet, empty_stores):
    await fleet.worker("gw/0", 50)
    await chosen(leases, 2, application="bot", limit=3)
    clients = [open_redis(empty_stores) for _ in range(8)]
    answers = await asyncio.gather(
        *(
            fleet.leases(client=client).acquire(f"call-{index}", application="bot", limit=3)
            for index, client in enumerate(clients)
        ),
        return_exceptions=True,
    )
    assert sum(isinstance(answer, Lease) for answer in answers) == 1
    assert {answer.reason for answer in answers if isinstance(answer, NoCapacity)} == {"app_full"}
    await asyncio.gather(*(client.aclose() for client in clients))
    await chosen(leases, 1, application="other", limit=1)
    await chosen(leases, 1, application="bot")
    assert await why(leases, application="bot", limit=0) == "app_full"


async def test_waiting_calls_have_their_turn_in_the_order_in_which_they_came(leases, fleet):
    await fleet.worker("gw/0", 50)

    async def ask(call: str, line_max: int = 3) -> int:
        """The call's place in the line; -1: it has been given the slot."""
        try:
            await leases.acquire(call, application="bot", limit=1, line_max=line_max)
        except NoCapacity as error:
            return error.place if error.reason == "app_full" else -2
        return -1

    assert [await ask(call) for call in ("first", "a", "b", "c", "d")] == [-1, 1, 2, 3, 0]
    assert [await ask(call) for call in ("c", "b", "a")] == [3, 2, 1]
    await leases.release("first", 0)
    assert await ask("newcomer", 0) == 0
    assert await ask("b") == 2
    assert await ask("a") == -1
    assert [await ask(call) for call in ("c", "b", "d")] == [2, 1, 3]
    await leases.leave_queue("b", "bot")
    assert [await ask(call) for call in ("d", "c")] == [2, 1]
    # Who does not ask again has left.
    fleet.now_ms += 3000
    await fleet.worker("gw/0", 50)
    assert await ask("d") == 2
    fleet.now_ms += 2500
    await fleet.worker("gw/0", 50)
    await leases.release("a", 0)
    assert await ask("d") == -1


async def test_without_redis(tmp_path):
    client = open_redis(StoreUrls(postgres="postgresql://x", redis=f"unix://{tmp_path}/none.sock"))
    with pytest.raises(StoreUnavailable, match="Redis cannot be used"):
        await Leases(client, 60).acquire("call")
    await client.aclose()
