"""What a controller does for calls whose media leg is lost: another one in the same bridge, or the ending of before."""

from __future__ import annotations

import asyncio
import dataclasses
from datetime import timedelta

import pytest
import pytest_asyncio

from ari_app.ari.errors import AriUnavailable
from ari_app.ari.events import ChannelDestroyed, ChannelHangupRequest, StasisEnd, StasisStart
from ari_app.call import replacing
from ari_app.call.machine import State
from ari_app.domain.ids import parse
from audiosocket.callspec import EndReason
from tests.fake_call import CALLER, PATIENT_SECONDS, Fault, Neighbours, channel, config
from tests.loop.test_actor import (
    ARI_FAULTS,
    EVENTS,
    STORE_FAULTS,
    STORES,
    TRANSFER,
    ari,
    nothing_left,
    raises,
    together,
    up,
)
from tests.worker_rig import until

pytestmark = [pytest.mark.loop, pytest.mark.virtual_time]

REPLACE = ["workers", "put_spec", "external_media", "add_to_bridge"]


def holding(*, rtp: bool = False) -> Neighbours:
    neighbours = Neighbours(rtp=rtp, holds=True)
    neighbours.controller.connected.set()
    return neighbours


@pytest_asyncio.fixture(params=["audiosocket", "rtp"])
async def pbx(request: pytest.FixtureRequest) -> Neighbours:
    return holding(rtp=request.param == "rtp")


def attempt(pbx: Neighbours) -> int:
    """Which media channel there is."""
    found = parse(pbx.media or "")
    return -1 if found is None else found.attempt


async def replaced(pbx: Neighbours, number: int = 1) -> None:
    """Waits until the call talks over leg `number`."""
    (actor,) = pbx.controller._live.actors.values()
    await until(
        lambda: attempt(pbx) == number and actor.machine.state is State.TALKING, f"leg {number}", PATIENT_SECONDS
    )


async def over(pbx: Neighbours) -> None:
    """The caller hangs up; nothing is left."""
    pbx.destroy(CALLER, 16, requested=True)
    await pbx.over()
    row = nothing_left(pbx)
    assert (row.result, row.reason, row.hangup_cause) == ("success", "caller_hangup", 16)
    assert row.media is not None
    assert not pbx.lost
    assert pbx.orders[-1][1].order == "end"


async def breaks(pbx: Neighbours, how: str) -> None:
    assert pbx.media is not None
    if how == "worker first":
        pbx.lose(pbx.legs[pbx.media])
    else:
        pbx.destroy(pbx.media)


@pytest.mark.parametrize("how", ["worker first", "asterisk first"])
async def test_a_lost_leg_is_replaced_in_the_same_bridge(pbx: Neighbours, how: str) -> None:
    await up(pbx)
    first = pbx.media
    (bridge,) = pbx.bridges
    await breaks(pbx, how)
    await replaced(pbx)
    assert first not in pbx.channels
    assert pbx.bridges == {bridge: {CALLER, pbx.media}}
    old, new = pbx.specs.values()
    assert old.leg_hold_seconds == 5
    assert (new.call_id, new.leg_number, new.media_format) == (old.call_id, 1, old.media_format)
    assert new.leg_uuid != old.leg_uuid
    assert (new.url, new.credentials) == ("", ""), "nothing secret goes through Redis again"
    assert pbx.steps.count("create_bridge") == pbx.steps.count("answer") == 1
    row = pbx.records.rows[-1]
    assert (row.state, row.leg_uuid) == ("talking", old.leg_uuid)
    await over(pbx)
    path = [event.to_state for event in pbx.records.events if event.to_state]
    assert path[path.index("broken") :] == ["broken", "replacing", "rejoining", "talking", "ending", "ended"]


async def test_legs_are_replaced_again_and_again(pbx: Neighbours) -> None:
    await up(pbx)
    for number in range(1, 7):
        await breaks(pbx, "worker first" if number % 2 else "asterisk first")
        await replaced(pbx, number)
    assert len({spec.leg_uuid for spec in pbx.specs.values()}) == 7
    await over(pbx)


async def test_legs_that_never_hold_are_given_up(pbx: Neighbours) -> None:
    await up(pbx)
    while pbx.controller.active:
        if pbx.media is not None and attempt(pbx) == pbx.numbers.get(next(iter(pbx.specs)), 0):
            pbx.destroy(pbx.media)
        await asyncio.sleep(0.001)
    await pbx.over()
    row = nothing_left(pbx)
    assert (row.result, row.reason, row.hangup_cause) == ("server_error", "media_leg_lost", 38)
    assert len(pbx.specs) == 1 + replacing.MAX_IN_A_ROW
    assert pbx.orders[-1][1].order == "end"


async def test_a_worker_that_has_waited_in_vain_ends_the_call(pbx: Neighbours) -> None:
    await up(pbx)
    pbx.starts_media = False
    await breaks(pbx, "worker first")
    await until(lambda: attempt(pbx) >= 2, "some tries")
    pbx.holds = False
    first = next(iter(pbx.specs))
    pbx.lost.discard(first)
    pbx.report(first, EndReason.LEG_CLOSED)
    await pbx.over()
    row = nothing_left(pbx)
    assert (row.result, row.reason) == ("server_error", "media_leg_lost")


async def test_the_application_ends_meanwhile(pbx: Neighbours) -> None:
    await up(pbx)
    pbx.starts_media = False
    await breaks(pbx, "worker first")
    await until(lambda: attempt(pbx) >= 1, "a try")
    pbx.holds = False
    first = next(iter(pbx.specs))
    pbx.lost.discard(first)
    pbx.report(first, EndReason.APP_CLOSED)
    await pbx.over()
    row = nothing_left(pbx)
    assert (row.result, row.reason) == ("success", "application_ended")


async def test_the_application_ends_meanwhile_and_the_caller_goes_on() -> None:
    pbx = Neighbours(config("at_once", TRANSFER), holds=True)
    pbx.controller.connected.set()
    await up(pbx)
    pbx.starts_media = False
    await breaks(pbx, "asterisk first")
    await until(lambda: attempt(pbx) >= 1, "a try")
    pbx.holds = False
    first = next(iter(pbx.specs))
    pbx.lost.discard(first)
    pbx.report(first, EndReason.APP_CLOSED)
    await pbx.over()
    assert pbx.channels.pop(CALLER), "he is the dialplan's"
    row = nothing_left(pbx)
    assert (row.result, row.reason) == ("success", "transferred")


@pytest.mark.parametrize("how", ["worker first", "asterisk first"])
async def test_the_caller_hangs_up_while_he_is_held(pbx: Neighbours, how: str) -> None:
    await up(pbx)
    pbx.starts_media = False
    await breaks(pbx, how)
    await until(lambda: attempt(pbx) >= 1, "a try")
    await over(pbx)


@pytest.mark.parametrize("rtp", [False, True])
async def test_a_worker_that_is_gone_is_not_waited_for(rtp: bool) -> None:
    pbx = Neighbours(rtp=rtp, holds=True)
    await up(pbx)
    pbx.hears_orders = pbx.alive = pbx.holds = pbx.reports = False
    assert pbx.media is not None
    pbx.destroy(pbx.media)
    await pbx.over()
    row = nothing_left(pbx)
    assert (row.result, row.reason) == ("server_error", "media_lost")
    assert len(pbx.specs) == 1


async def test_a_worker_that_goes_while_it_holds_is_given_up() -> None:
    pbx = holding()
    await up(pbx)
    pbx.alive = False
    await breaks(pbx, "worker first")
    pbx.holds = pbx.reports = pbx.hears_orders = False
    await pbx.over()
    row = nothing_left(pbx)
    assert (row.result, row.reason) == ("server_error", "media_lost")


@pytest.mark.parametrize("rtp", [False, True])
@pytest.mark.parametrize("step", [*REPLACE, "send_order"])
async def test_interrupted_while_a_leg_is_replaced(step: str, rtp: bool) -> None:
    async def interrupted(name: str) -> None:
        pbx = holding(rtp=rtp)
        await up(pbx)
        at = "external_rtp" if rtp and step == "external_media" else step
        faults = (STORE_FAULTS if step in STORES | {"workers"} else ARI_FAULTS) | EVENTS
        pbx.faults[at] = Fault(faults[name].before, faults[name].after)
        await breaks(pbx, "asterisk first")
        await until(lambda: at not in pbx.faults, f"{at}: it happens")
        # Whatever has happened, the caller is there, and has a leg that carries his call, or his call is over.
        actors = pbx.controller._live.actors
        await until(
            lambda: all(
                actor.machine.state is State.TALKING and pbx.media in next(iter(pbx.bridges.values()))
                for actor in actors.values()
            ),
            "another leg, or the end",
            PATIENT_SECONDS,
        )
        lives = bool(actors)
        await pbx.order_hangup()
        await pbx.over()
        row = nothing_left(pbx)
        if name.startswith(("caller", "hang-up", "fault of ours")) or (step == "send_order" and not lives):
            return
        assert (row.result, row.reason) == ("success", "operator_hangup"), "it was worth another try"

    faults = (STORE_FAULTS if step in STORES | {"workers"} else ARI_FAULTS) | EVENTS
    await together({name: interrupted(name) for name in faults if name != "no capacity"})


async def test_the_time_limit_counts_from_the_first_leg() -> None:
    settings = config()
    route = settings.routes[0].model_copy(update={"max_seconds": 0.5})
    pbx = Neighbours(settings.model_copy(update={"routes": [route]}), holds=True)
    pbx.controller.connected.set()
    await up(pbx)
    began = asyncio.get_running_loop().time()
    for number in range(1, 4):
        await asyncio.sleep(0.1)
        await breaks(pbx, "asterisk first")
        await replaced(pbx, number)
    await pbx.over()
    assert asyncio.get_running_loop().time() - began < 0.8
    row = nothing_left(pbx)
    assert (row.result, row.reason) == ("success", "time_limit")


async def test_zero_seconds_leave_everything_as_it_was() -> None:
    pbx = Neighbours(config(leg_hold_seconds=0))
    pbx.controller.connected.set()
    await up(pbx)
    (spec,) = pbx.specs.values()
    assert spec.leg_hold_seconds == 0
    await breaks(pbx, "asterisk first")
    await pbx.over()
    assert nothing_left(pbx).reason == "media_leg_lost"
    assert [order.order for _, order in pbx.orders] == ["release"]


async def test_who_is_not_talking_yet_is_not_held_up() -> None:
    pbx = holding()
    pbx.starts_media = False
    pbx.arrive()
    await pbx.arrived()
    await until(lambda: pbx.media, "media channel")
    await breaks(pbx, "asterisk first")
    await pbx.over()
    assert nothing_left(pbx).reason == "media_leg_lost"
    assert len(pbx.specs) == 1


async def test_of_a_fork_nothing_is_held() -> None:
    after = {"one_way": True, "after": {"transfer": {"to": "+918000000009", "trunk": "carrier"}}}
    pbx = Neighbours(config("at_once", after))
    pbx.controller.connected.set()
    pbx.arrive()
    await pbx.arrived()
    await pbx.reached(State.FORKED)
    (spec,) = pbx.specs.values()
    assert spec.leg_hold_seconds == 0
    await breaks(pbx, "asterisk first")
    await pbx.reached(State.PARTED)
    assert not pbx.orders
    await pbx.order_hangup()
    await pbx.over()


async def test_what_comes_late_of_an_earlier_leg_changes_nothing(pbx: Neighbours) -> None:
    await up(pbx)
    first = pbx.media
    assert first is not None
    about = pbx._about(first)
    await breaks(pbx, "worker first")
    await replaced(pbx)
    steps = len(pbx.steps)
    (actor,) = pbx.controller._live.actors.values()
    actor._legs.earlier.add(about["channel"].id)
    pbx.controller._live.register(about["channel"].id, actor)
    pbx.emit(StasisEnd(**about))
    pbx.emit(ChannelDestroyed(**about, cause=16, cause_txt="x"))
    await until(lambda: not actor._legs.earlier, "it is known to be gone")
    assert actor.machine.state is State.TALKING
    # One that enters our application after all is hung up.
    pbx.channels[first] = channel(first)
    pbx.controller._live.register(about["channel"].id, actor)
    pbx.emit(StasisStart(**about, args=[]))
    await until(lambda: first not in pbx.channels, "it is hung up")
    assert len(pbx.steps) == steps + 1
    await over(pbx)


async def test_without_the_event_stream_a_loss_waits_for_it(pbx: Neighbours) -> None:
    await up(pbx)
    pbx.controller.on_lost("scripted")
    assert pbx.media is not None
    media = pbx.media
    if pbx.rtp:
        pbx.lose(pbx.legs[media])
    pbx.destroy(media, silent=True)
    await asyncio.sleep(0.02)
    (actor,) = pbx.controller._live.actors.values()
    assert actor.machine.state is State.TALKING
    await pbx.controller.on_connected()
    await replaced(pbx)
    await over(pbx)


async def test_a_restarted_asterisk_is_why_a_held_call_ends(pbx: Neighbours) -> None:
    await pbx.controller.on_connected()
    await up(pbx)
    pbx.starts_media = False
    await breaks(pbx, "worker first")
    await until(lambda: attempt(pbx) >= 1, "a try")
    pbx.holds = False
    first = next(iter(pbx.specs))
    pbx.lost.discard(first)
    pbx.report(first, EndReason.LEG_CLOSED)
    pbx.channels.clear()
    pbx.bridges.clear()
    for step in ("hangup_caller", "hangup_media", "destroy_bridge"):
        pbx.faults[step] = Fault(before=raises(ari(AriUnavailable, 0)), times=10**6)
    pbx.started_at_ms += 1
    await asyncio.sleep(0.02)
    await pbx.controller.on_connected()
    pbx.faults.clear()
    await pbx.over()
    row = nothing_left(pbx)
    assert (row.result, row.reason) == ("server_error", "asterisk_restarted")


@pytest.mark.parametrize("legs", [1, 2])
@pytest.mark.parametrize("missing", [True, False])
async def test_the_next_controller_knows_the_legs_and_replaces_the_lost_one(
    pbx: Neighbours, legs: int, missing: bool
) -> None:
    call_id = await up(pbx)
    if legs == 2:
        await breaks(pbx, "asterisk first")
        await replaced(pbx)
    row = dataclasses.replace(pbx.records.rows[-1], created_at=pbx.records.rows[-1].created_at - timedelta(seconds=5))
    await pbx.controller.stop()
    after = holding(rtp=pbx.rtp)
    for name in ("channels", "bridges", "specs", "legs", "held", "lost", "numbers", "subscribed"):
        setattr(after, name, getattr(pbx, name))
    after.granted, after.records.open = pbx.granted, [row]
    if missing:
        assert after.media is not None
        after.destroy(after.media, silent=True)
    await after.controller.on_connected()
    actor = after.controller._live.actors[call_id]
    if not missing:
        assert actor.media_channel == after.media
        await breaks(after, "worker first")
    await replaced(after, legs)
    after.destroy(CALLER, 16, requested=True)
    await after.over()
    assert not after.channels
    assert not after.bridges
    assert after.records.closed[-1].reason == "caller_hangup"
    await after.controller.stop()


async def test_the_cause_of_a_hanging_up_is_waited_for_when_all_else_is_quick(pbx: Neighbours) -> None:
    await up(pbx)
    about = pbx._about(CALLER)
    pbx.destroy(CALLER, silent=True)
    pbx.emit(ChannelHangupRequest(**about))
    await until(lambda: "release" in pbx.steps, "everything is given back")
    pbx.emit(ChannelDestroyed(**about, cause=31, cause_txt="x"))
    await pbx.over()
    row = nothing_left(pbx)
    assert (row.result, row.reason, row.hangup_cause) == ("success", "caller_hangup", 31)
