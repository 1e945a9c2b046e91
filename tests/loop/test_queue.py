"""A caller whose application is full: refused, kept waiting or sent elsewhere, and whatever comes in between."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ari_app.call.machine import State, Trigger
from ari_app.domain.termination import Result
from ari_app.errors import NoCapacity, StoreUnavailable
from ari_app.settings import Config
from ari_app.store.records import CallRow
from audiosocket.callspec import EndReason
from tests.fake_call import CALLER, Fault, Neighbours, channel, config
from tests.loop.test_actor import (
    ARI_FAULTS,
    EVENTS,
    ORPHANS_GONE_SECONDS,
    SET_UP,
    STORE_FAULTS,
    STORES,
    fault,
    lives,
    media_of,
    nothing_left,
    raises,
    record,
    together,
)
from tests.worker_rig import until

pytestmark = [pytest.mark.loop, pytest.mark.virtual_time]

SECOND = "179.13"
QUEUE: dict[str, Any] = {"calls": 1, "when_full": "queue"}
MUSIC = {"queue": {"hold_audio": "music:calm", "max_seconds": 60}}
TRANSFER = {"redirect": {"transfer": {"to": "+918000000009", "trunk": "carrier"}}}
NEXT: dict[str, Any] = {"calls": 0, "when_full": "redirect", "redirect": {"application": "next"}}
WAYS = {
    "ringing": (["subscribe", "acquire", "ring"], [*SET_UP[1:]]),
    "music": (
        ["subscribe", "acquire", "answer", "start_music"],
        ["acquire", "put_spec", "external_media", "stop_music", "create_bridge", "add_to_bridge"],
    ),
}
"""The steps of a caller who waits: until he does, and from his turn on."""
EVERY_STEP = [
    (way, early, step)
    for way, both in WAYS.items()
    for early, steps in zip((True, False), both, strict=True)
    for step in steps
]


def settings(limit: dict[str, Any], answer: str = "at_once", following: dict[str, Any] | None = None) -> Config:
    """A configuration whose application has this limit, and the one that may follow it that one."""
    more = None if following is None else {"limit": following}
    return config(answer, {"limit": limit}, following=more)


def neighbours(limit: dict[str, Any], **more: Any) -> Neighbours:
    return Neighbours(settings(limit, **more))


async def reached(pbx: Neighbours, state: State) -> None:
    """Waits until the newest call is in this state."""
    await until(lambda: list(pbx.controller._live.actors.values())[-1].machine.state is state, state.value)


async def waiting(pbx: Neighbours) -> None:
    """A caller who waits."""
    pbx.limits["bot"] = 0
    pbx.arrive()
    await pbx.arrived()
    await reached(pbx, State.QUEUED)


def over(pbx: Neighbours) -> CallRow:
    """Checks that nothing is left of the one call, its place in line included; its record."""
    row = nothing_left(pbx)
    assert not pbx.line, "a place in line is left"
    return row


def states(pbx: Neighbours) -> list[str | None]:
    return [event.to_state for event in pbx.records.events if event.to_state]


# Refused


@pytest.mark.parametrize(("reject_with", "cause"), [("busy", 17), ("congestion", 42), ("unavailable", 20)])
async def test_refused_before_the_answer_with_the_cause_that_was_chosen(reject_with: str, cause: int) -> None:
    pbx = neighbours({"calls": 0, "reject_with": reject_with})
    pbx.arrive()
    await pbx.arrived()
    await pbx.over()
    row = over(pbx)
    assert (row.result, row.reason, row.hangup_cause, row.answered_at) == ("server_error", "app_full", cause, None)
    assert pbx.causes[CALLER] == cause
    assert "answer" not in pbx.steps


async def test_other_reasons_are_told_as_ever() -> None:
    pbx = neighbours(QUEUE | TRANSFER)
    pbx.faults["acquire"] = Fault(before=raises(NoCapacity("all_full", "scripted")))
    pbx.arrive()
    await pbx.arrived()
    await pbx.over()
    row = over(pbx)
    assert (row.reason, row.hangup_cause) == ("all_full", 42)


# Waiting


async def test_a_caller_rings_while_he_waits_and_is_answered_at_his_turn() -> None:
    pbx = neighbours(QUEUE)
    await waiting(pbx)
    await asyncio.sleep(0.05)
    assert pbx.steps.count("ring") == 1
    assert "answer" not in pbx.steps
    assert pbx.records.rows[-1].state == "queued"
    assert pbx.steps.count("subscribe") == 1, "asked once"
    pbx.limits["bot"] = 1
    await pbx.talking()
    assert states(pbx) == ["placing", "queued", "answering", "attaching", "bridging", "talking"]
    await pbx.order_hangup()
    await pbx.over()
    assert over(pbx).reason == "operator_hangup"
    assert "leave_queue" not in pbx.steps, "who had his turn is in no line"


async def test_a_caller_who_hears_music_is_answered_once_and_no_longer_rung() -> None:
    for answer in ("at_once", "when_connected"):
        pbx = neighbours(QUEUE | MUSIC, answer=answer)
        await waiting(pbx)
        await until(lambda pbx=pbx: pbx.music == {CALLER: "calm"}, "music")
        answered_at = pbx.records.rows[-1].answered_at
        assert answered_at is not None
        pbx.limits["bot"] = 1
        await pbx.talking()
        assert not pbx.music, "it ends when he is connected"
        assert (pbx.steps.count("answer"), pbx.steps.count("ring")) == (1, 0)
        (spec,) = pbx.specs.values()
        assert not spec.held, "there is nobody to ring"
        assert states(pbx) == ["placing", "queued", "attaching", "bridging", "talking"]
        pbx.destroy(CALLER, requested=True)
        await pbx.over()
        row = over(pbx)
        assert (row.reason, row.answered_at) == ("caller_hangup", answered_at)


async def test_a_route_that_rings_goes_on_ringing_after_the_wait() -> None:
    pbx = neighbours(QUEUE, answer="when_connected")
    await waiting(pbx)
    pbx.limits["bot"] = 1
    await pbx.talking()
    assert states(pbx) == ["placing", "queued", "ringing", "awaiting", "joining", "picking_up", "talking"]
    await pbx.order_hangup()
    await pbx.over()
    over(pbx)


async def test_callers_come_in_the_order_in_which_they_came() -> None:
    pbx = neighbours(QUEUE)
    pbx.arrive()
    await pbx.arrived()
    await pbx.talking()
    for identifier in (SECOND, "179.14"):
        pbx.arrive(identifier)
        await until(lambda identifier=identifier: identifier in pbx.controller._live.by_channel, "arrival")
        await reached(pbx, State.QUEUED)
    first, second, third = pbx.controller._live.actors.values()
    pbx.destroy(CALLER, requested=True)
    await until(lambda: second.machine.state is State.TALKING, "the second's turn")
    assert first.machine.state is State.ENDED
    assert third.machine.state is State.QUEUED
    pbx.destroy(SECOND, requested=True)
    await until(lambda: third.machine.state is State.TALKING, "the third's turn")
    await pbx.order_hangup()
    await pbx.over()
    assert not pbx.line
    assert not pbx.held


@pytest.mark.parametrize("limit", [QUEUE, QUEUE | MUSIC], ids=["ringing", "music"])
async def test_a_caller_who_gives_up_leaves_the_line(limit: dict[str, Any]) -> None:
    pbx = neighbours(limit)
    await waiting(pbx)
    pbx.destroy(CALLER, requested=True)
    await pbx.over()
    row = over(pbx)
    assert (row.result, row.reason) == ("client_error", "caller_cancelled")
    assert "leave_queue" in pbx.steps


async def test_an_operator_ends_the_wait() -> None:
    pbx = neighbours(QUEUE | MUSIC)
    await waiting(pbx)
    await pbx.order_hangup()
    await pbx.over()
    assert over(pbx).reason == "operator_hangup"


async def test_the_set_up_s_time_begins_when_the_wait_ends() -> None:
    pbx = neighbours(QUEUE)
    await waiting(pbx)
    await asyncio.sleep(15)
    pbx.starts_media = False
    pbx.limits["bot"] = 1
    await reached(pbx, State.ATTACHING)
    began = asyncio.get_running_loop().time()
    await pbx.over()
    assert asyncio.get_running_loop().time() - began > 9
    assert over(pbx).reason == "setup_timeout"


@pytest.mark.parametrize(
    "refusal",
    [
        NoCapacity("all_full", "scripted", 1),
        NoCapacity("no_workers", "scripted", 1),
        StoreUnavailable("redis", "scripted"),
    ],
)
async def test_while_he_waits_he_waits_for_workers_and_redis_too(refusal: Exception) -> None:
    pbx = neighbours(QUEUE)
    await waiting(pbx)
    pbx.faults["acquire"] = Fault(before=raises(refusal), times=3)
    pbx.limits["bot"] = 1
    await pbx.talking()
    assert "acquire" not in pbx.faults, "it was refused three times"
    await pbx.order_hangup()
    await pbx.over()
    over(pbx)


async def test_who_has_lost_his_place_to_others_is_refused() -> None:
    pbx = neighbours(QUEUE | {"queue": {"max_waiting": 1}})
    await waiting(pbx)
    pbx.line[:] = ["somebody"]
    await pbx.over()
    row = nothing_left(pbx)
    assert (row.reason, row.hangup_cause) == ("queue_full", 17)


async def test_who_finds_the_line_full_is_refused() -> None:
    pbx = neighbours(QUEUE | {"calls": 0, "queue": {"max_waiting": 1}, "reject_with": "congestion"})
    pbx.line[:] = ["somebody"]
    pbx.arrive()
    await pbx.arrived()
    await pbx.over()
    row = nothing_left(pbx)
    assert (row.reason, row.hangup_cause, row.answered_at) == ("queue_full", 42, None)


@pytest.mark.parametrize("audio", ["ring", "music:calm"])
async def test_who_waits_in_vain_is_hung_up(audio: str) -> None:
    pbx = neighbours(QUEUE | {"reject_with": "unavailable", "queue": {"max_seconds": 1, "hold_audio": audio}})
    await waiting(pbx)
    await pbx.over()
    row = over(pbx)
    assert (row.result, row.reason, row.hangup_cause) == ("server_error", "queue_timeout", 20)
    assert row.detail == "bot had no place for 1 s"
    assert pbx.causes[CALLER] == 20


@pytest.mark.parametrize(("way", "early", "step"), EVERY_STEP)
async def test_interrupted_at_every_step(way: str, early: bool, step: str) -> None:
    async def interrupted(name: str) -> None:
        pbx = neighbours(QUEUE | (MUSIC if way == "music" else {}))
        put = fault(step, name)
        pbx.limits["bot"] = 0
        if early:
            pbx.faults[step] = put
        pbx.arrive()
        await pbx.arrived()
        await pbx.reached(State.QUEUED)
        if not early:
            pbx.faults[step] = put
        pbx.limits["bot"] = 1
        await pbx.reached(State.TALKING)
        await pbx.order_hangup()
        await pbx.over()
        assert step in pbx.steps
        row = over(pbx)
        assert row.result in list(Result)
        if name.startswith("hang-up ordered"):
            assert (row.result, row.reason) == ("success", "operator_hangup")
        # That the application is full is told first, and subscribing is tried again.
        if name.startswith("fault of ours") and not (early and step in ("subscribe", "acquire")):
            assert (row.result, row.reason) == ("server_error", "controller_error")

    names = (STORE_FAULTS if step in STORES else ARI_FAULTS) | EVENTS
    await together({name: interrupted(name) for name in names})


async def test_a_line_that_cannot_be_left_is_left_by_itself() -> None:
    pbx = neighbours(QUEUE)
    await waiting(pbx)
    pbx.faults["leave_queue"] = Fault(before=raises(StoreUnavailable("redis", "scripted")))
    pbx.destroy(CALLER, requested=True)
    await pbx.over()
    assert nothing_left(pbx).reason == "caller_cancelled"


# Under another controller


def left_waiting(pbx: Neighbours, answered: bool, **changes: Any) -> CallRow:
    """A caller who waits, whom an earlier controller has left."""
    began = datetime.now(UTC) - timedelta(seconds=20)
    values = {"worker_id": None, "leg_uuid": None, "application": "bot", "created_at": began}
    row = record(1, State.QUEUED, **(values | {"answered_at": began if answered else None} | changes))
    lives(pbx, row, media=False)
    pbx.held.clear()
    pbx.granted.clear()
    pbx.line.append(row.call_id)
    pbx.limits["bot"] = 0
    return row


@pytest.mark.parametrize(
    ("limit", "answered"),
    [(QUEUE, False), (QUEUE | MUSIC, True), (QUEUE | MUSIC, False)],
    ids=["ringing", "music", "not answered yet"],
)
async def test_the_next_controller_lets_him_wait_on(limit: dict[str, Any], answered: bool) -> None:
    pbx = neighbours(limit)
    row = left_waiting(pbx, answered)
    await pbx.controller.on_connected()
    await reached(pbx, State.QUEUED)
    await asyncio.sleep(ORPHANS_GONE_SECONDS)
    assert pbx.controller.active == 1
    assert pbx.line == [row.call_id], "his place is kept"
    pbx.limits["bot"] = 1
    await pbx.talking()
    assert ("answer" in pbx.steps) == (not answered)
    assert "adopted" in [event.event for event in pbx.records.events]
    await pbx.order_hangup()
    await pbx.over()
    assert over(pbx).reason == "operator_hangup"


async def test_what_he_has_waited_counts() -> None:
    pbx = neighbours(QUEUE | {"queue": {"max_seconds": 20}})
    left_waiting(pbx, False)
    await pbx.controller.on_connected()
    await pbx.over()
    assert over(pbx).reason == "queue_timeout"


async def test_he_who_was_sent_to_another_application_waits_there() -> None:
    pbx = neighbours(NEXT, following=QUEUE)
    row = left_waiting(pbx, False, application="next")
    pbx.limits["next"] = 0
    await pbx.controller.on_connected()
    await reached(pbx, State.QUEUED)
    pbx.limits["next"] = 1
    await pbx.talking()
    assert pbx.asked_for == {row.call_id: "next"}
    await pbx.order_hangup()
    await pbx.over()
    over(pbx)


@pytest.mark.parametrize("changes", [{"application": "gone"}, {"callee": "+918000000077"}, {"media": True}])
async def test_who_cannot_wait_on_is_refused(changes: dict[str, Any]) -> None:
    """The configuration has changed, or his turn had come."""
    pbx = neighbours(QUEUE)
    media = changes.pop("media", False)
    row = left_waiting(pbx, False, **changes)
    if media:
        pbx.channels[media_of(row.call_id)] = channel(media_of(row.call_id))
    await pbx.controller.on_connected()
    await pbx.over()
    (closed,) = pbx.records.closed
    assert closed.reason == "controller_restarted"
    assert not pbx.channels


async def test_who_has_gone_meanwhile_is_not_waited_for() -> None:
    pbx = neighbours(QUEUE)
    left_waiting(pbx, False)
    pbx.channels.clear()
    await pbx.controller.on_connected()
    await pbx.over()
    assert pbx.records.closed[-1].reason == "gone_unseen"


# Elsewhere


@pytest.mark.parametrize("limit", [{"calls": 0, "when_full": "redirect"}, QUEUE | {"queue": {"max_seconds": 1}}])
async def test_sent_on_in_the_dialplan_unanswered(limit: dict[str, Any]) -> None:
    pbx = neighbours(limit | TRANSFER)
    pbx.limits["bot"] = 0
    pbx.arrive()
    await pbx.arrived()
    await pbx.over()
    assert pbx.dialplan == {CALLER: ("trunkbridge-transfer", "s")}
    del pbx.channels[CALLER]  # it goes on
    row = over(pbx)
    reason = "queue_timeout" if limit["when_full"] == "queue" else "app_full"
    assert (row.result, row.reason, row.answered_at) == ("server_error", reason, None)
    assert "the caller went on to +918000000009 on carrier" in (row.detail or "")
    assert "answer" not in pbx.steps


async def test_sent_on_after_music() -> None:
    pbx = neighbours(QUEUE | TRANSFER | {"queue": {"max_seconds": 1, "hold_audio": "sound:queue-thankyou"}})
    await waiting(pbx)
    await until(lambda: pbx.music == {CALLER: "trunkbridge/queue-thankyou"}, "the sound")
    await pbx.over()
    assert not pbx.music
    del pbx.channels[CALLER]
    assert over(pbx).reason == "queue_timeout"


async def test_who_cannot_be_sent_on_is_refused() -> None:
    pbx = neighbours({"calls": 0, "when_full": "redirect"} | TRANSFER)
    pbx.faults["continue"] = fault("continue", "500")
    pbx.arrive()
    await pbx.arrived()
    await pbx.over()
    row = over(pbx)
    assert (row.reason, pbx.causes[CALLER]) == ("app_full", 17)


async def test_another_application_takes_the_call_with_its_own_limit() -> None:
    pbx = neighbours(NEXT)
    pbx.arrive()
    await pbx.arrived()
    await pbx.talking()
    (spec,) = pbx.specs.values()
    assert (spec.application, spec.url) == ("next", "ws://next/")
    assert pbx.records.rows[-1].application == "next"
    assert any(event.event == "redirected" for event in pbx.records.events)
    assert list(pbx.asked_for.values()) == ["next"]
    pbx.end_media(EndReason.APP_CLOSED)
    await pbx.over()
    assert pbx.dialplan == {CALLER: ("trunkbridge-after-application", "next-done")}, "its own after"
    del pbx.channels[CALLER]
    assert over(pbx).reason == "continued"


async def test_the_other_application_is_full_too() -> None:
    pbx = neighbours(NEXT, following={"calls": 0, "reject_with": "unavailable"})
    pbx.arrive()
    await pbx.arrived()
    await pbx.over()
    row = over(pbx)
    assert (row.application, row.reason, row.hangup_cause) == ("next", "app_full", 20)


async def test_who_waited_in_vain_waits_at_the_other_application() -> None:
    limit = QUEUE | {"queue": {"max_seconds": 1, "hold_audio": "music:calm"}, "redirect": {"application": "next"}}
    pbx = neighbours(limit, following={"calls": 0, "when_full": "queue"})
    await waiting(pbx)
    await until(lambda: pbx.records.rows[-1].application == "next", "the other application")
    await reached(pbx, State.QUEUED)
    assert pbx.music == {CALLER: "calm"}, "what he hears goes on"
    pbx.limits["next"] = 1
    await pbx.talking()
    (spec,) = pbx.specs.values()
    assert spec.application == "next"
    assert pbx.steps.count("answer") == 1
    await pbx.order_hangup()
    await pbx.over()
    over(pbx)


async def test_a_full_listener_lets_the_caller_go_on() -> None:
    transfer = {"transfer": {"to": "+918000000009", "trunk": "carrier"}}
    pbx = Neighbours(config(application={"one_way": True, "after": transfer, "limit": {"calls": 0}}))
    pbx.arrive()
    await pbx.arrived()
    await reached(pbx, State.PARTED)
    assert pbx.dialplan == {CALLER: ("trunkbridge-transfer", "s")}
    pbx.destroy(CALLER, requested=True)
    await pbx.over()
    row = over(pbx)
    assert (row.result, row.reason) == ("server_error", "app_full")
    assert Trigger.QUEUED.value not in [event.event for event in pbx.records.events]
