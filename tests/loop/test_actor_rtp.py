"""What a controller does for RTP media legs, of which Asterisk and the worker tell each other nothing."""

from __future__ import annotations

import pytest
import pytest_asyncio

from ari_app.ari.events import ChannelDtmfReceived
from ari_app.call.machine import State
from audiosocket.callspec import CallNotice, EndReason, MediaFormat
from tests.fake_call import CALLER, MEDIA_ADDRESS, Neighbours, config
from tests.loop.test_actor import SET_UP_RTP, nothing_left, up
from tests.worker_rig import until

pytestmark = [pytest.mark.loop, pytest.mark.virtual_time]


@pytest_asyncio.fixture
async def pbx() -> Neighbours:
    return Neighbours(rtp=True)


def digit(pbx: Neighbours, key: str, of: str = CALLER) -> None:
    pbx.emit(ChannelDtmfReceived(**pbx._about(of), digit=key, duration_ms=100))


async def test_the_worker_is_told_where_asterisk_is_and_when_it_is_over(pbx: Neighbours) -> None:
    await up(pbx)
    assert pbx.steps[2:] == SET_UP_RTP[2:]
    (worker, order), (_, release) = pbx.orders
    (spec,) = pbx.specs.values()
    assert (worker, order.order, order.leg_uuid) == ("gw/0", "open", spec.leg_uuid)
    assert (release.order, release.leg_uuid) == ("release", spec.leg_uuid)
    assert (order.remote, order.media_format) == (MEDIA_ADDRESS, spec.media_format)
    pbx.destroy(CALLER, 16, requested=True)
    await pbx.over()
    assert [order.order for _, order in pbx.orders][-1] == "end"
    row = nothing_left(pbx)
    assert (row.result, row.reason) == ("success", "caller_hangup")
    assert row.media is not None


async def test_the_workers_report_ends_the_leg_in_asterisk(pbx: Neighbours) -> None:
    await up(pbx)
    assert pbx.media is not None
    leg = pbx.legs.pop(pbx.media)
    pbx.report(leg, EndReason.APP_CLOSED)
    await pbx.over()
    row = nothing_left(pbx)
    assert (row.result, row.reason) == ("success", "application_ended")


async def test_a_media_channel_that_goes_is_the_end_of_the_workers_leg(pbx: Neighbours) -> None:
    await up(pbx)
    assert pbx.media is not None
    pbx.destroy(pbx.media)
    await pbx.over()
    assert pbx.orders[-1][1].order == "end"
    row = nothing_left(pbx)
    assert (row.result, row.reason) == ("server_error", "media_leg_lost")


async def test_nobody_is_bridged_before_the_worker_has_opened_the_leg(pbx: Neighbours) -> None:
    pbx.opens_legs = False
    pbx.arrive()
    await pbx.arrived()
    await until(lambda: "send_order" in pbx.steps, "the order")
    await until(lambda: all(actor.media_started for actor in pbx.controller._live.actors.values()), "media")
    (actor,) = pbx.controller._live.actors.values()
    assert actor.machine.state is State.ATTACHING
    (spec,) = pbx.specs.values()
    for _ in range(2):  # one that comes twice changes nothing
        told = CallNotice(call_id=spec.call_id, leg_uuid=spec.leg_uuid, event="attached", at_ms=0)
        pbx.controller.on_notice(told)
    await pbx.talking()
    await pbx.order_hangup()
    await pbx.over()
    nothing_left(pbx)


async def test_a_worker_that_does_not_open_the_leg_ends_the_call(pbx: Neighbours) -> None:
    pbx.opens_legs = False
    pbx.arrive()
    await pbx.arrived()
    await pbx.over()
    assert nothing_left(pbx).reason == "setup_timeout"


async def test_a_worker_that_hears_no_orders_ends_the_call_at_once(pbx: Neighbours) -> None:
    pbx.hears_orders = False
    pbx.arrive()
    await pbx.arrived()
    await pbx.over()
    row = nothing_left(pbx)
    assert row.reason == "media_failed"
    assert (row.detail or "").startswith("the worker does not hear orders; no other worker")


async def test_a_caller_rings_until_the_first_word_on_an_rtp_leg_too() -> None:
    pbx = Neighbours(config("when_connected"), rtp=True)
    await up(pbx)
    await until(lambda: [order.order for _, order in pbx.orders] == ["open", "release"], "release")
    await pbx.order_hangup()
    await pbx.over()
    nothing_left(pbx)


async def test_digits_of_the_caller_go_to_the_worker_in_order(pbx: Neighbours) -> None:
    await up(pbx)
    for key in "15#":
        digit(pbx, key)
    assert pbx.media is not None
    digit(pbx, "9", of=pbx.media)
    await until(lambda: len(pbx.orders) == 5, "three digits")
    assert [order.digits for _, order in pbx.orders if order.order == "digits"] == ["1", "5", "#"]
    await pbx.order_hangup()
    await pbx.over()


@pytest.mark.parametrize("rtp", [True, False])
async def test_what_rtp_does_not_carry_goes_by_audiosocket(rtp: bool) -> None:
    settings = config()
    route = settings.routes[0].model_copy(update={"media_format": "slin" if rtp else "trunk"})
    pbx = Neighbours(settings.model_copy(update={"routes": [route]}), rtp=rtp)
    await up(pbx)
    assert "external_rtp" not in pbx.steps
    digit(pbx, "1")
    (spec,) = pbx.specs.values()
    assert spec.media_format is (MediaFormat.SLIN if rtp else MediaFormat.ALAW)
    await pbx.order_hangup()
    pbx.rtp = False
    await pbx.over()
    assert [order.order for _, order in pbx.orders] == ["release", "end"]


async def test_an_adopted_call_knows_its_leg_by_the_channel(pbx: Neighbours) -> None:
    call_id = await up(pbx)
    row = pbx.records.rows[-1]
    after = Neighbours(rtp=True)
    after.channels, after.specs, after.legs = pbx.channels, pbx.specs, pbx.legs
    after.records.open = [row]
    await after.controller.on_connected()
    actor = after.controller._live.actors[call_id]
    assert actor.rtp_leg.used
    digit(after, "7")
    await until(lambda: after.orders, "digit")
    await after.order_hangup()
    await after.over()
    assert after.orders[-1][1].order == "end"
    await after.controller.stop()
