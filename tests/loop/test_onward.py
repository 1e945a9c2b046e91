"""A caller who is answered at the application's first word, is sent digits, and goes on when it is done with him."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from typing import Any

import msgspec
import pytest

from ari_app.ari.errors import AriRejected
from ari_app.ari.models import DialplanPoint
from ari_app.call.machine import State
from ari_app.settings import RouteSettings
from audiosocket.callspec import CallNotice, EndReason, LegOrder
from tests.fake_call import CALLER, NUMBER, Fault, Neighbours, config
from tests.loop.test_actor import lives, nothing_left, record, up
from tests.media import call_spec
from tests.worker_rig import until

pytestmark = [pytest.mark.loop, pytest.mark.virtual_time]

EXTENSION = {"extension": "desk"}
TRANSFER = {"transfer": {"to": "+918000000009", "trunk": "carrier", "timeout_seconds": 20}}
ON_EXTENSION = ("trunkbridge-after-application", "desk")
ON_TRANSFER = ("trunkbridge-transfer", "s")


def ringing(answer: str = "when_connected", within: float = 5.0, **application: Any) -> Neighbours:
    """Neighbours whose worker says nothing by itself, with a route that answers so."""
    settings = config(answer, application)
    route = settings.routes[0].model_copy(update={"answer_within_seconds": within})
    pbx = Neighbours(settings.model_copy(update={"routes": [route]}))
    pbx.first_word = ""
    return pbx


async def awaiting(pbx: Neighbours) -> str:
    """A caller who rings, with the media attached; the leg."""
    pbx.arrive()
    await pbx.arrived()
    (actor,) = pbx.controller._live.actors.values()
    await until(lambda: actor.machine.state is State.AWAITING, "the media leg")
    (leg,) = pbx.legs.values()
    return leg


async def end(pbx: Neighbours) -> Any:
    """Ends what goes on, and checks that nothing is left; the record."""
    await pbx.order_hangup()
    await pbx.over()
    return nothing_left(pbx)


def path(pbx: Neighbours) -> list[str | None]:
    return [event.to_state for event in pbx.records.events if event.to_state]


# The first word


@pytest.mark.parametrize(
    ("answer", "words"), [("when_connected", ["connected"]), ("when_speaking", ["connected", "speaking"])]
)
async def test_the_caller_rings_until_the_first_word(answer: str, words: list[str]) -> None:
    pbx = ringing(answer)
    before_ms = time.time_ns() // 1_000_000
    leg = await awaiting(pbx)
    spec = pbx.specs[leg]
    assert spec.held
    assert before_ms <= spec.arrived_at_ms <= spec.created_at_ms
    for word in words:
        await asyncio.sleep(0.02)
        assert "answer" not in pbx.steps
        pbx.notice(leg, word)  # type: ignore[arg-type]
    await pbx.talking()
    assert pbx.steps[3:] == ["ring", "external_media", "create_bridge", "add_to_bridge", "answer", "send_order"]
    assert pbx.orders == [("gw/0", LegOrder(leg_uuid=leg, order="release"))]
    row = await end(pbx)
    assert row.answered_at is not None
    assert row.connected_at is not None
    assert path(pbx)[:6] == ["placing", "ringing", "awaiting", "joining", "picking_up", "talking"]
    assert [row.state for row in pbx.records.rows][:4] == ["new", "ringing", "awaiting", "talking"]


async def test_who_speaks_is_connected() -> None:
    pbx = ringing("when_connected")
    pbx.notice(await awaiting(pbx), "speaking")
    await pbx.talking()
    await end(pbx)


async def test_a_first_word_that_comes_before_the_media_channel_counts() -> None:
    pbx = ringing()
    leg = ""

    async def told_first(pbx: Neighbours) -> None:
        nonlocal leg
        (leg,) = pbx.specs
        pbx.notice(leg, "connected")
        await asyncio.sleep(0.01)

    pbx.faults["external_media"] = Fault(before=told_first)
    pbx.arrive()
    await pbx.arrived()
    await pbx.talking()
    assert "answer" in pbx.steps
    await end(pbx)
    assert "first_word" in [event.event for event in pbx.records.events]


async def test_nobody_rings_for_longer_than_the_route_lets_him() -> None:
    pbx = ringing(within=15)
    loop = asyncio.get_running_loop()
    began = loop.time()
    leg = await awaiting(pbx)
    await pbx.talking()
    # Longer than the set-up may take without it.
    assert loop.time() - began >= 14.9
    assert pbx.orders == [("gw/0", LegOrder(leg_uuid=leg, order="release"))]
    pbx.notice(leg, "connected")
    await asyncio.sleep(0.02)
    await end(pbx)
    assert "answer_due" in [event.event for event in pbx.records.events]


async def test_media_that_never_starts_while_the_caller_rings() -> None:
    pbx = ringing(within=0.1)
    pbx.starts_media = False
    pbx.arrive()
    await pbx.arrived()
    await pbx.over()
    row = nothing_left(pbx)
    assert (row.reason, pbx.causes[CALLER]) == ("setup_timeout", 42)
    assert "answer" not in pbx.steps


@pytest.mark.parametrize(
    ("reason", "result", "name"),
    [
        (EndReason.APP_REFUSED, "upstream_error", "application_refused"),
        (EndReason.APP_SUSPENDED, "upstream_error", "application_suspended"),
        (EndReason.APP_CLOSED, "success", "application_ended"),
        (EndReason.LEG_CLOSED, "server_error", "media_leg_lost"),
        (None, "server_error", "media_lost"),
    ],
)
async def test_a_call_whose_application_fails_before_the_answer_is_refused(
    reason: EndReason | None, result: str, name: str
) -> None:
    pbx = ringing()
    await awaiting(pbx)
    if reason is None:
        pbx.reports = False
        assert pbx.media is not None
        pbx.destroy(pbx.media)
    else:
        pbx.end_media(reason)
    await pbx.over()
    row = nothing_left(pbx)
    assert (row.result, row.reason, row.answered_at) == (result, name, None)
    assert (row.hangup_cause, pbx.causes[CALLER]) == (42, 42)
    assert "answer" not in pbx.steps


async def test_a_caller_who_was_not_answered_goes_on_when_the_application_has_failed() -> None:
    pbx = ringing(fallback={"after": EXTENSION})
    await awaiting(pbx)
    pbx.end_media(EndReason.APP_TIMEOUT)
    await pbx.over()
    assert pbx.dialplan == {CALLER: ON_EXTENSION}
    del pbx.channels[CALLER]
    row = nothing_left(pbx)
    assert (row.result, row.reason, row.answered_at) == ("upstream_error", "application_timeout", None)
    assert CALLER not in pbx.causes


async def test_a_route_that_answers_at_once_holds_nothing_back() -> None:
    pbx = Neighbours()
    await up(pbx)
    (spec,) = pbx.specs.values()
    assert not spec.held
    pbx.notice(spec.leg_uuid, "connected")
    pbx.notice(spec.leg_uuid, "speaking")
    await asyncio.sleep(0.02)
    await end(pbx)
    assert [order.order for _, order in pbx.orders] == ["release", "end"]
    assert "ring" not in pbx.steps


async def test_notices_of_another_leg_or_of_no_call_are_dropped() -> None:
    pbx = ringing()
    leg = await awaiting(pbx)
    (call_id,) = pbx.controller._live.actors
    for call, of in (("nobody", leg), (call_id, "another")):
        pbx.controller.on_notice(CallNotice(call_id=call, leg_uuid=of, event="connected", at_ms=0))
    await asyncio.sleep(0.02)
    assert "answer" not in pbx.steps
    await end(pbx)


# Digits


async def test_digits_are_sent_to_a_caller_who_is_there() -> None:
    pbx = ringing()
    leg = await awaiting(pbx)
    pbx.notice(leg, "digits", "9")
    await asyncio.sleep(0.02)
    pbx.notice(leg, "connected")
    await pbx.talking()
    pbx.faults["send_dtmf"] = Fault(before=_fails)
    for digits in ("1", "2#", "", "5;6", "4w4", "a", "7" * 33, "3"):
        pbx.notice(leg, "digits", digits)
    await until(lambda: len(pbx.digits) == 2, "digits")
    assert pbx.digits == ["2#", "3"], "before the answer they are for nobody, and one failure is no other's"
    await end(pbx)


async def _fails(_pbx: Neighbours) -> None:
    raise AriRejected("POST", "/x", 500, "scripted")


# Going on


async def ended(settings: dict[str, Any], reason: EndReason, **report: Any) -> Neighbours:
    """A call that the application ended; the caller is gone with it, or in the dialplan."""
    pbx = Neighbours(config(application=settings))
    await up(pbx)
    pbx.end_media(reason, **report)
    await pbx.over()
    return pbx


@pytest.mark.parametrize("reason", [EndReason.APP_CLOSED, EndReason.STREAM_LIMIT])
@pytest.mark.parametrize(
    ("after", "place", "name", "variables"),
    [
        (EXTENSION, ON_EXTENSION, "continued", {}),
        (
            TRANSFER,
            ON_TRANSFER,
            "transferred",
            {"TRUNKBRIDGE_TO": "+918000000009", "TRUNKBRIDGE_TRUNK": "carrier", "TRUNKBRIDGE_SECONDS": "20"},
        ),
    ],
)
async def test_the_caller_goes_on_when_the_application_has_ended(
    reason: EndReason, after: dict[str, Any], place: tuple[str, str], name: str, variables: dict[str, str]
) -> None:
    pbx = await ended({"after": after, "fallback": {"after": {"extension": "wrong"}}}, reason)
    assert pbx.dialplan == {CALLER: place}
    assert pbx.variables.get(CALLER, {}) == variables
    assert pbx.channels.pop(CALLER), "nobody has hung him up"
    row = nothing_left(pbx)
    assert (row.result, row.reason, row.hangup_cause) == ("success", name, None)
    assert row.detail is not None
    assert row.detail.startswith("to ")
    assert path(pbx)[-4:] == ["reporting", "continuing", "ending", "ended"]


@pytest.mark.parametrize(
    ("reason", "name"),
    [(EndReason.APP_LOST, "application_lost"), (EndReason.APP_SILENT, "application_silent")],
)
async def test_the_caller_goes_on_elsewhere_when_it_has_failed(reason: EndReason, name: str) -> None:
    application = {"after": {"extension": "wrong"}, "fallback": {"after": EXTENSION}}
    pbx = await ended(application, reason, failed=True)
    assert not any(spec.fallback_tone for spec in pbx.specs.values()), "no tone before he goes on"
    assert pbx.dialplan == {CALLER: ON_EXTENSION}
    del pbx.channels[CALLER]
    row = nothing_left(pbx)
    assert row.reason == name
    assert "extension desk" in (row.detail or "")


@pytest.mark.parametrize("reason", [EndReason.LEG_CLOSED, EndReason.WORKER_STOPPED, EndReason.APP_LOST])
async def test_what_the_application_did_not_end_is_hung_up(reason: EndReason) -> None:
    pbx = await ended({"after": EXTENSION}, reason)
    row = nothing_left(pbx)
    assert pbx.dialplan == {}
    assert row.result != "success"
    assert pbx.causes[CALLER] == row.hangup_cause == 38


async def test_an_application_that_followed_another_says_where_it_goes_on() -> None:
    pbx = await ended({"after": {"application": "next"}}, EndReason.APP_CLOSED, application="next")
    assert pbx.dialplan == {CALLER: ("trunkbridge-after-application", "next-done")}
    del pbx.channels[CALLER]
    assert nothing_left(pbx).reason == "continued"


async def test_the_spec_holds_what_follows() -> None:
    settings = config(application={"after": {"application": "next"}, "custom_parameters": {"a": "1", "b": "2"}})
    route = settings.routes[0].model_copy(update={"custom_parameters": {"b": "3"}})
    pbx = Neighbours(settings.model_copy(update={"routes": [route]}))
    await up(pbx)
    (spec,) = pbx.specs.values()
    following = spec.next
    assert following is not None
    assert (spec.application, following.application, following.url, following.next) == (
        "bot",
        "next",
        "ws://next/",
        None,
    )
    assert (spec.custom_parameters, following.custom_parameters) == ({"a": "1", "b": "3"}, {})
    assert (following.call_id, following.call_sid, following.leg_uuid) == (spec.call_id, spec.call_sid, spec.leg_uuid)
    assert len(following.stream_sid) == 32
    assert following.stream_sid != spec.stream_sid
    await end(pbx)


@pytest.mark.parametrize("seconds", [0.5, 2], ids=["in time", "too late"])
async def test_the_caller_is_kept_for_the_report_and_no_longer(seconds: float) -> None:
    pbx = Neighbours(config(application={"after": EXTENSION}))
    await up(pbx)
    assert pbx.media is not None
    leg = pbx.legs[pbx.media]
    pbx.reports = False
    pbx.destroy(pbx.media)
    await asyncio.sleep(seconds)
    pbx.report(leg, EndReason.APP_CLOSED)
    await pbx.over()
    if seconds == 0.5:
        assert pbx.dialplan == {CALLER: ON_EXTENSION}
        del pbx.channels[CALLER]
        assert nothing_left(pbx).reason == "continued"
    else:
        assert pbx.causes[CALLER] == 38
        assert pbx.dialplan == {}
        assert nothing_left(pbx).reason == "application_ended"


@pytest.mark.parametrize("who", ["the caller", "the operator"])
async def test_a_call_that_is_ended_while_the_report_is_awaited(who: str) -> None:
    pbx = Neighbours(config(application={"after": EXTENSION}))
    await up(pbx)
    assert pbx.media is not None
    leg = pbx.legs[pbx.media]
    pbx.reports = False
    pbx.destroy(pbx.media)
    (actor,) = pbx.controller._live.actors.values()
    await until(lambda: actor.machine.state is State.REPORTING, "the media's end")
    if who == "the caller":
        pbx.destroy(CALLER, requested=True)
    else:
        await pbx.order_hangup()
    await until(lambda: actor.machine.state is State.ENDING, "the end")
    pbx.report(leg, EndReason.APP_CLOSED)
    await pbx.over()
    assert pbx.dialplan == {}
    assert nothing_left(pbx).reason == ("caller_hangup" if who == "the caller" else "operator_hangup")


async def test_by_default_a_stream_s_limit_comes_before_the_call_s() -> None:
    settings = config(application={"after": EXTENSION})
    settings = settings.model_copy(
        update={"routes": [RouteSettings(did=NUMBER, application="bot", answer="when_connected")]}
    )
    pbx = Neighbours(settings)
    await up(pbx)
    (spec,) = pbx.specs.values()
    # It opens while the caller talks already, where the application is slow, or takes the place of another.
    await asyncio.sleep(spec.stream_seconds + spec.connect_attempts * spec.connect_timeout_seconds)
    assert CALLER in pbx.channels
    pbx.end_media(EndReason.STREAM_LIMIT)
    await pbx.over()
    assert pbx.dialplan == {CALLER: ON_EXTENSION}
    del pbx.channels[CALLER]
    assert nothing_left(pbx).reason == "continued"


async def test_by_default_no_call_takes_longer_than_four_hours() -> None:
    settings = config()
    pbx = Neighbours(settings.model_copy(update={"routes": [RouteSettings(did=NUMBER, application="bot")]}))
    await up(pbx)
    await asyncio.sleep(14_398)
    assert CALLER in pbx.channels
    await asyncio.sleep(4)
    await pbx.over()
    row = nothing_left(pbx)
    assert (row.result, row.reason) == ("success", "time_limit")


async def test_a_call_whose_media_went_while_nobody_ran_goes_on() -> None:
    pbx = Neighbours(config(application={"after": EXTENSION}))
    row = dataclasses.replace(record(1, State.TALKING), application="bot")
    lives(pbx, row, media=False)
    await pbx.controller.on_connected()
    await asyncio.sleep(0.02)
    await pbx.controller.on_report(pbx.report_of(call_spec(call_id=row.call_id), EndReason.APP_CLOSED))
    await pbx.over()
    caller = row.caller_channel_id or ""
    assert pbx.dialplan == {caller: ON_EXTENSION}
    del pbx.channels[caller]
    assert nothing_left(pbx).reason == "continued"


async def test_a_caller_who_has_gone_on_is_left_alone_by_the_next_controller() -> None:
    """The controller was killed after it had handed him to the dialplan, and before the record said so."""
    pbx = Neighbours()
    row = record(1, State.TALKING)
    lives(pbx, row, media=False)
    caller = row.caller_channel_id or ""
    pbx.channels[caller] = msgspec.structs.replace(pbx.channels[caller], dialplan=DialplanPoint(app_name="Dial"))
    await pbx.controller.on_connected()
    await pbx.over()
    assert caller not in pbx.causes
    assert pbx.channels.pop(caller)
    assert nothing_left(pbx).reason == "gone_unseen"
