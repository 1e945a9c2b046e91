"""A call interrupted at every step of its life: whatever fails or comes in between, nothing is left behind."""

from __future__ import annotations

import asyncio
import dataclasses
import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import pytest_asyncio

from ari_app.ari.errors import (
    AriConflict,
    AriError,
    AriInvalid,
    AriMalformed,
    AriRejected,
    AriUnavailable,
)
from ari_app.ari.events import ChannelDestroyed, StasisStart
from ari_app.call.machine import State, Trigger
from ari_app.controller.actor import INBOX_MESSAGES
from ari_app.controller.messages import Message
from ari_app.controller.reconciliation import ORPHAN_SECONDS
from ari_app.controller.story import from_ms
from ari_app.domain.ids import CallId, bridge_id, media_channel_id
from ari_app.domain.termination import Result
from ari_app.errors import NoCapacity, StoreUnavailable
from ari_app.failure import CircuitBreakerSettings, FallbackSettings
from ari_app.store.present import Command
from ari_app.store.records import CallRow, RecordingPart
from audiosocket.callspec import EndReason
from tests.fake_call import CALLER, NUMBER, WORKER, Fault, Neighbours, channel, config
from tests.media import call_spec
from tests.worker_rig import until

pytestmark = [pytest.mark.loop, pytest.mark.virtual_time]

JOIN = ["create_bridge", "add_to_bridge", "send_order"]
SET_UP = ["subscribe", "acquire", "put_spec", "answer", "external_media", *JOIN]
SET_UP_RINGING = [*SET_UP[:3], "ring", "external_media", "create_bridge", "add_to_bridge", "answer", "send_order"]
FORK = ["snoop", "create_bridge", "add_to_bridge", "set_variables", "continue"]
SET_UP_FORK = [*SET_UP[:5], *FORK]
SET_UP_FORK_RINGING = [*SET_UP_RINGING[:5], "answer", *FORK, "send_order"]
SET_UP_RTP = [*SET_UP[:4], "external_rtp", "send_order", *SET_UP[5:]]
SET_UP_WEBSOCKET = [*SET_UP[:4], "external_websocket", *SET_UP[5:]]
FLOWS = {
    "at_once": SET_UP,
    "when_connected": SET_UP_RINGING,
    "fork at_once": SET_UP_FORK,
    "fork when_connected": SET_UP_FORK_RINGING,
    "rtp": SET_UP_RTP,
    "websocket": SET_UP_WEBSOCKET,
}
EVERY_STEP = [(answer, step) for answer, steps in FLOWS.items() for step in dict.fromkeys(steps)]
TEAR_DOWN = ["hangup_caller", "hangup_media", "destroy_bridge", "release"]
EVERY_END = [(answer, step) for answer in FLOWS for step in TEAR_DOWN + ["hangup_snoop"] * answer.startswith("fork")]
GOING_ON = ["set_variables", "continue"]
TRANSFER = {"after": {"transfer": {"to": "+918000000009", "trunk": "carrier"}}}
ORPHANS_GONE_SECONDS = ORPHAN_SECONDS + 1
"""After which what belongs to no call has been ended."""
STORES = {"acquire", "put_spec", "send_order", "release"}


@pytest_asyncio.fixture
async def pbx() -> Neighbours:
    return Neighbours()


def raises(error: Exception) -> Callable[[Neighbours], Awaitable[None]]:
    async def hook(_pbx: Neighbours) -> None:
        raise error

    return hook


def ari(kind: type[AriError], status: int) -> Exception:
    return kind("POST", "/x", status, "scripted")


async def caller_gone(pbx: Neighbours) -> None:
    pbx.destroy(CALLER, requested=True)
    await asyncio.sleep(0.002)


async def caller_vanished(pbx: Neighbours) -> None:
    """The caller's channel is gone, and the events that tell it are lost."""
    pbx.destroy(CALLER, silent=True)


async def media_gone(pbx: Neighbours) -> None:
    if pbx.media is not None:
        pbx.destroy(pbx.media)
        await asyncio.sleep(0.002)


async def ordered(pbx: Neighbours) -> None:
    await pbx.order_hangup()


async def stalls(_pbx: Neighbours) -> None:
    await asyncio.sleep(60)  # longer than the set-up may take


ARI_FAULTS: dict[str, Fault] = {
    "no answer, not done": Fault(before=raises(ari(AriUnavailable, 0))),
    "no answer, but done": Fault(after=raises(ari(AriUnavailable, 0))),
    "500": Fault(before=raises(ari(AriRejected, 500))),
    "409": Fault(before=raises(ari(AriConflict, 409))),
    "400": Fault(before=raises(ari(AriInvalid, 400))),
    "unreadable answer": Fault(after=raises(ari(AriMalformed, 200))),
}
STORE_FAULTS: dict[str, Fault] = {
    "store away": Fault(before=raises(StoreUnavailable("redis", "scripted"))),
    "store away, but done": Fault(after=raises(StoreUnavailable("redis", "scripted"))),
    "no capacity": Fault(before=raises(NoCapacity("all_full", "scripted"))),
}
EVENTS: dict[str, Fault] = {
    "caller gone before": Fault(before=caller_gone),
    "caller gone after": Fault(after=caller_gone),
    "caller vanished": Fault(before=caller_vanished),
    "media gone before": Fault(before=media_gone),
    "media gone after": Fault(after=media_gone),
    "hang-up ordered before": Fault(before=ordered),
    "hang-up ordered after": Fault(after=ordered),
    "stall before": Fault(before=stalls),
    "stall after": Fault(after=stalls),
    "fault of ours before": Fault(before=raises(ZeroDivisionError("scripted"))),
    "fault of ours after": Fault(after=raises(ZeroDivisionError("scripted"))),
}


def fault(step: str, name: str) -> Fault:
    found = (STORE_FAULTS if step in STORES else ARI_FAULTS) | EVENTS
    return dataclasses.replace(found[name])


def nothing_left(pbx: Neighbours, *, at: str = "") -> CallRow:
    """Checks what must hold after any call; returns its record. `at`: the step that failed."""
    controller = pbx.controller
    assert not controller._live.by_channel
    assert not controller._live.actors
    assert not controller._live._tasks
    assert not pbx.channels, "a channel lives on"
    assert not pbx.bridges, "a bridge is left"
    if at != "release":
        assert not pbx.held, "a lease is left"
        assert all(pbx.released[call] == 1 for call in pbx.granted), "released once"
    (row,) = pbx.records.closed
    assert pbx.records.rows[-1].call_id == row.call_id
    assert row.state == State.ENDED.value
    assert row.result in list(Result)
    assert re.fullmatch(r"[a-z_]+", row.reason or "")
    ours = [event.seq for event in pbx.records.events if event.source.startswith("pbx-1:")]
    assert ours == sorted(set(ours)), "an event is named by its number"
    return row


def neighbours(answer: str = "at_once") -> Neighbours:
    """Neighbours with a route that answers so. `fork at_once`: with an application that listens while the caller goes
    on."""
    fork, _, answer = answer.rpartition(" ")
    leg, answer = (answer, "at_once") if answer in ("rtp", "websocket") else ("", answer)
    settings = config(answer, TRANSFER | {"one_way": bool(fork)})
    return Neighbours(settings, rtp=leg == "rtp", websocket=leg == "websocket")


async def interrupted(answer: str, step: str, name: str) -> None:
    """One call, with one thing going wrong at one step."""
    ends = step in (*TEAR_DOWN, "hangup_snoop")
    pbx = neighbours(answer)
    pbx.faults[step] = fault(step, name)
    forks = answer.startswith("fork")
    pbx.arrive()
    await pbx.arrived()
    await pbx.reached(State.TALKING, State.FORKED, State.PARTED)
    await pbx.order_hangup()
    await pbx.over()
    assert step in pbx.steps
    if forks and step == "send_order" and name in ("no capacity", "fault of ours before", "fault of ours after"):
        assert pbx.channels.pop(CALLER), "a fault of ours is no end of a caller's who is in the dialplan"
    row = nothing_left(pbx, at=step)
    told = pbx.causes.get(CALLER)
    if not forks and row.answered_at is None and row.result == "server_error" and told is not None:
        assert told == 42, "refused so that the carrier may try another way"
    if ends and not name.startswith("caller"):
        assert (row.result, row.reason) == ("success", "operator_hangup"), "why it ends does not depend on how"
    if ends:
        return
    if name.startswith("hang-up ordered"):
        assert (row.result, row.reason) == ("success", "operator_hangup")
    if name.startswith("fault of ours"):
        assert (row.result, row.reason) == ("server_error", "controller_error")


async def together(cases: dict[str, Awaitable[None]]) -> None:
    """Plays cases side by side, each with neighbours of its own: they wait more than they work."""
    outcomes = await asyncio.gather(*cases.values(), return_exceptions=True)
    assert not {name: repr(outcome) for name, outcome in zip(cases, outcomes, strict=True) if outcome is not None}


@pytest.mark.parametrize(("answer", "step"), EVERY_STEP + EVERY_END)
async def test_interrupted_at_every_step(answer: str, step: str) -> None:
    names = (STORE_FAULTS if step in STORES else ARI_FAULTS) | EVENTS
    await together({name: interrupted(answer, step, name) for name in names})


@pytest.mark.parametrize("step", GOING_ON)
async def test_interrupted_while_the_caller_goes_on(step: str) -> None:
    """The application has ended, and its caller is being transferred."""

    async def going_on(name: str) -> None:
        pbx = neighbours()
        pbx.faults[step] = fault(step, name)
        await up(pbx)
        pbx.end_media(EndReason.APP_CLOSED)
        await pbx.over()
        assert step in pbx.steps
        if CALLER in pbx.dialplan and CALLER in pbx.channels:
            del pbx.channels[CALLER]  # it goes on
        row = nothing_left(pbx)
        ways = {("success", "transferred"), ("server_error", "continue_failed"), ("server_error", "controller_error")}
        if "caller" in name or name == "409":
            ways |= {("success", "application_ended"), ("indeterminate", "gone_unseen")}
        assert (row.result, row.reason) in ways

    await together({name: going_on(name) for name in ARI_FAULTS | EVENTS})


async def test_a_caller_who_gives_up_is_nobodys_fault() -> None:
    async def gives_up(answer: str, step: str, name: str) -> None:
        pbx = neighbours(answer)
        pbx.faults[step] = fault(step, name)
        pbx.arrive()
        await pbx.arrived()
        await pbx.over()
        row = nothing_left(pbx)
        if row.connected_at is None:
            assert (row.result, row.reason) == ("client_error", "caller_cancelled")
        else:
            assert (row.result, row.reason) == ("success", "caller_hangup")
            assert step in ("add_to_bridge", "send_order", "continue") or (answer, step) == ("when_connected", "answer")

    when = ("caller gone before", "caller gone after")
    await together({f"{way}: {name}": gives_up(*way, name) for way in EVERY_STEP for name in when})


@pytest.mark.parametrize("step", TEAR_DOWN)
async def test_what_fails_for_good_keeps_nothing_else_from_being_given_back(step: str) -> None:
    async def fails(error: Exception) -> None:
        pbx = Neighbours()
        pbx.faults[step] = Fault(before=raises(error), times=10**6)
        pbx.arrive()
        await pbx.arrived()
        await pbx.talking()
        await pbx.order_hangup()
        await pbx.over()
        assert not pbx.controller._live.by_channel
        assert step == "release" or not pbx.held
        assert len(pbx.records.closed) == 1
        left = {identifier[:3] for identifier in pbx.channels}
        assert left <= {"hangup_caller": {"179"}, "hangup_media": {"tb-"}}.get(step, set())
        pbx.faults.clear()
        for identifier in list(pbx.channels):
            pbx.destroy(identifier)
        await pbx.over()

    away = StoreUnavailable("redis", "scripted")
    errors = [away] if step in STORES else [ari(AriUnavailable, 0), ari(AriRejected, 500)]
    await together({repr(error): fails(error) for error in [*errors, ZeroDivisionError("scripted")]})


# Calls that go as they should


async def up(pbx: Neighbours) -> str:
    """A call that talks; its id."""
    pbx.arrive()
    await pbx.arrived()
    await pbx.talking()
    (call_id,) = pbx.controller._live.actors
    return call_id


async def test_the_worker_is_told_what_is_done_about_failures() -> None:
    plain = config()
    failing = {
        "fallback": FallbackSettings(url="ws://spare/", prompt="sorry"),
        "circuit_breaker": CircuitBreakerSettings(failures=2, seconds=9),
        "first_audio_seconds": 4.0,
        "max_silence_seconds": 0.0,
        "max_seconds": 600.0,
        "one_way": True,
        "digits_to_caller": True,
    }
    bot = plain.applications["bot"].model_copy(update=failing)
    pbx = Neighbours(config=plain.model_copy(update={"applications": {"bot": bot}}))
    await up(pbx)
    (spec,) = pbx.specs.values()
    assert (spec.fallback_url, spec.fallback_prompt) == ("ws://spare/", "sorry")
    assert (spec.breaker_failures, spec.breaker_seconds) == (2, 9)
    assert (spec.first_audio_seconds, spec.max_silence_seconds, spec.stream_seconds) == (4, 0, 600)
    assert (spec.one_way, spec.digits_to_caller) == (True, True)
    pbx.destroy(CALLER, 16, requested=True)
    await pbx.over()


async def test_a_good_call_and_its_record(pbx: Neighbours) -> None:
    await up(pbx)
    assert sorted(pbx.steps[:2]) == ["acquire", "subscribe"], "at the same time"
    assert pbx.steps[2:] == SET_UP[2:]
    pbx.destroy(CALLER, 16, requested=True)
    await pbx.over()
    row = nothing_left(pbx)
    assert (row.result, row.reason, row.hangup_cause) == ("success", "caller_hangup", 16)
    assert (row.caller, row.callee, row.trunk, row.application) == ("+919000000001", NUMBER, "carrier", "bot")
    assert row.worker_id == "gw/0"
    assert row.media is not None
    assert row.media.frames_played == 7
    assert row.created_at <= row.answered_at <= row.connected_at <= row.ended_at  # type: ignore[operator]
    path = [event.to_state for event in pbx.records.events if event.to_state]
    assert path == ["placing", "answering", "attaching", "bridging", "talking", "ending", "ended"]
    assert [row.state for row in pbx.records.rows][:4] == ["new", "answering", "attaching", "talking"]


@pytest.mark.parametrize(
    ("reason", "result", "name"),
    [
        (EndReason.APP_CLOSED, "success", "application_ended"),
        (EndReason.APP_LOST, "upstream_error", "application_lost"),
        (EndReason.WORKER_STOPPED, "server_error", "worker_stopped"),
        (EndReason.LEG_CLOSED, "server_error", "media_leg_lost"),
    ],
)
@pytest.mark.parametrize("order", ["report first", "media first", "twice"])
async def test_what_the_worker_reports_is_why(
    pbx: Neighbours, reason: EndReason, result: str, name: str, order: str
) -> None:
    await up(pbx)
    media = pbx.media
    assert media is not None
    leg = pbx.legs[media]
    pbx.reports = False
    if order == "media first":
        pbx.destroy(media)
        await asyncio.sleep(0.03)
        pbx.report(leg, reason)
    else:
        for _ in range(2 if order == "twice" else 1):
            pbx.report(leg, reason)
        await asyncio.sleep(0.03)
        assert pbx.controller.active == 1, "the call ends with its channels, not with a report"
        pbx.destroy(media)
        if order == "twice":
            pbx.report(leg, reason)
    await pbx.over()
    row = nothing_left(pbx)
    assert (row.result, row.reason) == (result, name)
    assert row.media is not None
    if order == "twice":
        pbx.report(leg, reason)
        await pbx.over()
        assert len(pbx.records.closed) == 1, "a report of a call that is closed, and has its figures, changes nothing"


async def test_a_worker_that_never_reports(pbx: Neighbours) -> None:
    await up(pbx)
    pbx.reports = False
    assert pbx.media is not None
    pbx.destroy(pbx.media)
    await pbx.over()
    row = nothing_left(pbx)
    assert (row.result, row.reason, row.media) == ("server_error", "media_lost", None)
    assert (row.hangup_cause, pbx.causes[CALLER]) == (38, 38), "no good end, and the carrier is told so"


async def test_media_that_never_starts(pbx: Neighbours) -> None:
    pbx.starts_media = False
    pbx.arrive()
    await pbx.arrived()
    await pbx.over()
    row = nothing_left(pbx)
    assert (row.result, row.reason, row.hangup_cause) == ("server_error", "setup_timeout", 42)
    assert pbx.causes[CALLER] == 42


async def test_the_time_limit() -> None:
    settings = config()
    route = settings.routes[0].model_copy(update={"max_seconds": 0.05})
    pbx = Neighbours(settings.model_copy(update={"routes": [route]}))
    await up(pbx)
    await pbx.over()
    row = nothing_left(pbx)
    assert (row.result, row.reason, row.hangup_cause) == ("success", "time_limit", 16)


@pytest.mark.parametrize(
    ("line", "dialled", "reason", "cause"),
    [("nobody", NUMBER, "unknown_trunk", 21), ("carrier", "8000000009", "unknown_number", 1)],
)
async def test_a_refused_call_takes_no_worker(
    pbx: Neighbours, line: str, dialled: str, reason: str, cause: int
) -> None:
    pbx.arrive(line=line, dialled=dialled)
    await pbx.arrived()
    await pbx.over()
    row = nothing_left(pbx)
    assert (row.result, row.reason) == ("client_error", reason)
    assert pbx.causes[CALLER] == cause
    assert "acquire" not in pbx.steps
    assert "answer" not in pbx.steps


async def test_a_refusal_interrupted() -> None:
    async def refused(name: str) -> None:
        pbx = Neighbours()
        pbx.faults["subscribe"] = fault("subscribe", name)
        pbx.arrive(dialled="8000000009")
        await pbx.arrived()
        await pbx.over()
        row = nothing_left(pbx)
        assert row.reason == ("controller_error" if name.startswith("fault of ours") else "unknown_number")

    await together({name: refused(name) for name in ARI_FAULTS | EVENTS})


async def test_a_trunk_is_full_when_it_carries_its_calls(pbx: Neighbours) -> None:
    for number in range(6):
        pbx.arrive(f"1795226880.{number}")
    await until(lambda: pbx.controller.active == 5 and len(pbx.records.closed) == 1, "five calls and a refusal")
    assert pbx.records.closed[0].reason == "trunk_full"
    assert list(pbx.causes.values()) == [34]
    await pbx.talking()
    await pbx.order_hangup()
    await pbx.over()
    assert not pbx.channels
    assert not pbx.held
    assert len(pbx.records.closed) == 6


# Messages


async def test_events_that_come_twice_or_late_change_nothing(pbx: Neighbours) -> None:
    call_id = await up(pbx)
    media = media_channel_id("pbx-1", CallId(call_id), 0)
    for identifier, args in ((media, ["x"]), (CALLER, ["inbound", "carrier", NUMBER])):
        pbx.emit(StasisStart(**pbx._about(identifier), args=args))
    await asyncio.sleep(0.02)
    assert pbx.controller.active == 1
    late = [StasisStart(**pbx._about(media), args=["x"]), ChannelDestroyed(**pbx._about(media), cause=16, cause_txt="")]
    pbx.destroy(CALLER, requested=True)
    for event in late * 2:
        pbx.emit(event)
    await pbx.over()
    assert nothing_left(pbx).reason == "caller_hangup"


async def test_the_callers_own_start_is_not_taken_for_the_medias(pbx: Neighbours) -> None:
    pbx.starts_media = False
    pbx.arrive()
    await until(lambda: pbx.media, "the media channel")
    pbx.emit(StasisStart(**pbx._about(CALLER), args=["inbound", "carrier", NUMBER]))
    await asyncio.sleep(0.02)
    assert "create_bridge" not in pbx.steps
    await pbx.over()
    assert nothing_left(pbx).reason == "setup_timeout"


async def test_an_inbox_that_overflows_is_reconciled(pbx: Neighbours) -> None:
    """Of a flood of messages some are lost, and among them the one that mattered."""
    call_id = await up(pbx)
    actor = pbx.controller._live.actors[call_id]
    pbx.destroy(CALLER, silent=True)
    for _ in range(INBOX_MESSAGES):
        actor.tell(Message(Trigger.MEDIA_STARTED))
    actor.tell(Message(Trigger.CALLER_GONE, 16, destroyed=CALLER))
    assert actor.lost_messages == 1
    await pbx.over()
    assert nothing_left(pbx).reason == "caller_hangup"


@pytest.mark.parametrize("error", [ari(AriUnavailable, 0), ari(AriRejected, 500)])
async def test_an_overflow_while_asterisk_does_not_answer_harms_nobody(pbx: Neighbours, error: Exception) -> None:
    call_id = await up(pbx)
    actor = pbx.controller._live.actors[call_id]
    pbx.faults["get_channel"] = Fault(before=raises(error), times=2)
    for _ in range(INBOX_MESSAGES + 1):
        actor.tell(Message(Trigger.MEDIA_STARTED))
    await until(lambda: "get_channel" not in pbx.faults, "two looks")
    await asyncio.sleep(0.02)
    assert pbx.controller.active == 1
    assert pbx.steps.count("get_channel") == 2
    await pbx.order_hangup()
    await pbx.over()
    assert nothing_left(pbx).reason == "operator_hangup"


async def test_a_report_in_the_very_end_is_not_lost(pbx: Neighbours) -> None:
    """The worker reports as the call is being closed without it."""
    await up(pbx)
    assert pbx.media is not None
    leg = pbx.legs[pbx.media]
    pbx.reports = False

    async def report_now(pbx: Neighbours) -> None:
        pbx.report(leg, EndReason.APP_LOST)
        await asyncio.sleep(0.01)

    pbx.faults["release"] = Fault(before=report_now)
    pbx.destroy(pbx.media)
    await pbx.over()
    row = nothing_left(pbx)
    assert row.media is not None
    assert row.reason == "application_lost"


@pytest.mark.parametrize("readable", [True, False])
async def test_a_report_after_the_end_completes_the_record(pbx: Neighbours, readable: bool) -> None:
    if not readable:
        pbx.records.error = StoreUnavailable("postgres", "scripted")
    await up(pbx)
    assert pbx.media is not None
    leg = pbx.legs[pbx.media]
    pbx.reports = False
    pbx.destroy(pbx.media)
    await pbx.over()
    assert pbx.records.closed[-1].media is None
    pbx.report(leg, EndReason.APP_LOST)
    await pbx.over()
    assert pbx.records.closed[-1].media is not None
    assert pbx.records.closed[-1].ended_at == pbx.records.closed[0].ended_at
    assert pbx.records.closed[0].reason == "media_lost"
    last = pbx.records.closed[-1]
    assert (last.result, last.reason, last.hangup_cause) == ("upstream_error", "application_lost", 38)


async def test_a_report_for_a_call_of_an_earlier_controller_completes_its_record(pbx: Neighbours) -> None:
    row = dataclasses.replace(record(1, State.ENDED), ended_at=datetime.now(UTC), reason="gone_unseen")
    pbx.records.rows.append(row)
    pbx.specs["leg"] = call_spec(call_id=row.call_id, leg_uuid=row.leg_uuid or "leg")
    await pbx.controller.on_connected()
    for _ in range(2):
        pbx.report("leg")
        await pbx.over()
    assert [row.media is not None for row in pbx.records.rows] == [False, True]
    recording = "/recordings/2026-01-02/0123.wav"
    part = RecordingPart(recording=recording, worker_id=WORKER.worker_id, began_at=from_ms(0))
    last = pbx.records.rows[-1]
    assert last == dataclasses.replace(row, media=last.media, recording=recording, recordings=(part,))


async def test_the_recording_is_in_the_record_from_its_beginning(pbx: Neighbours) -> None:
    """Whatever becomes of the worker, and of its report."""
    await up(pbx)
    assert pbx.media is not None
    leg, path = pbx.legs[pbx.media], "/recordings/2026-01-02/0123.wav"
    assert pbx.records.rows[-1].recording is None
    for _ in range(2):
        pbx.notice(leg, "recorded", recording=path, at_ms=7000)
    await until(lambda: pbx.records.rows[-1].recording, "the recording in the record")
    part = RecordingPart(recording=path, worker_id=WORKER.worker_id, began_at=from_ms(7000))
    assert (pbx.records.rows[-1].recording, pbx.records.rows[-1].recordings) == (path, (part,))
    assert pbx.records.rows[-1].state == "talking"
    pbx.report(leg, EndReason.LEG_CLOSED)
    await pbx.order_hangup()
    await pbx.over()
    row = nothing_left(pbx)
    assert row.media is not None
    assert (row.recording, row.recordings) == (path, (part,)), "the report names the same file"


async def test_figures_are_stored_when_they_come(pbx: Neighbours) -> None:
    """The report is acknowledged once what was written is stored: a controller that dies then has lost nothing."""
    await up(pbx)
    assert pbx.media is not None
    pbx.report(pbx.legs[pbx.media], EndReason.APP_CLOSED)
    await until(lambda: pbx.records.rows[-1].media, "the figures in the record")
    assert pbx.records.rows[-1].ended_at is None
    await pbx.order_hangup()
    await pbx.over()


async def test_a_late_report_while_the_records_cannot_be_read(pbx: Neighbours) -> None:
    """PostgreSQL away is no reason to stop reading reports: those of live calls come on the same stream."""
    await pbx.controller.on_connected()
    pbx.records.error = StoreUnavailable("postgres", "scripted")
    await pbx.controller.on_report(pbx.report_of(call_spec(), EndReason.APP_LOST))
    assert [event.event for event in pbx.records.events] == ["media_ended"]


async def test_an_order_for_no_call_is_harmless(pbx: Neighbours) -> None:
    await pbx.controller.on_command(Command(verb="hangup", call_id="nobody", by="a test"))


# Leases


async def test_leases_are_renewed_for_calls_that_live_and_only_for_those() -> None:
    settings = config()
    often = settings.controller.model_copy(update={"lease_seconds": 0.03})
    pbx = Neighbours(settings.model_copy(update={"controller": often}))
    call_id = await up(pbx)
    actor = pbx.controller._live.actors[call_id]
    renewing = asyncio.create_task(pbx.controller.renew_leases())
    try:
        await until(lambda: pbx.renewals, "a renewal")
        assert pbx.renewals[-1] == {call_id: "gw/0"}
        # A failure is survived.
        pbx.faults["renew"] = Fault(before=raises(StoreUnavailable("redis", "scripted")))
        pbx.renewals.clear()
        await until(lambda: pbx.renewals, "a renewal after a failure")
        pbx.reports = False
        pbx.destroy(CALLER, requested=True)
        await until(lambda: actor.machine.state is State.ENDING, "the end")
        pbx.renewals.clear()
        await until(lambda: len(pbx.renewals) > 1, "more renewals")
        assert actor.machine.state is State.ENDING
        assert pbx.renewals[-1] == {}, "a lease that is about to be released must not be granted again"
    finally:
        renewing.cancel()
        await asyncio.gather(renewing, return_exceptions=True)
    await pbx.over()


# Reconciliation


def media_of(call_id: str) -> str:
    return media_channel_id("pbx-1", CallId(call_id), 0)


def record(number: int, state: State, **changes: Any) -> CallRow:
    """A row that an earlier controller left open."""
    began = datetime.now(UTC) - timedelta(seconds=20)
    values: dict[str, Any] = {
        "call_id": f"6f1c1f52-3b1e-4a55-9d2e-00000000000{number}",
        "call_sid": f"{number}" * 32,
        "node": "pbx-1",
        "direction": "inbound",
        "trunk": "carrier",
        "callee": NUMBER,
        "state": state.value,
        "caller_channel_id": f"179522688{number}.1",
        "worker_id": "gw/0" if state not in (State.NEW, State.PLACING) else None,
        "leg_uuid": "0b8f3c3e-4c8e-4d57-8d5b-3e5b8b7f1001" if state not in (State.NEW, State.PLACING) else None,
        "created_at": began,
        "connected_at": began if state is State.TALKING else None,
    }
    return CallRow(**(values | changes))


def lives(pbx: Neighbours, row: CallRow, *, caller: bool = True, media: bool = True, together: bool = True) -> None:
    """Puts into Asterisk what lives of a recorded call."""
    assert row.caller_channel_id is not None
    if caller:
        pbx.channels[row.caller_channel_id] = channel(row.caller_channel_id)
    if media:
        pbx.channels[media_of(row.call_id)] = channel(media_of(row.call_id))
        members = {media_of(row.call_id)} | ({row.caller_channel_id} if caller else set())
        pbx.bridges[bridge_id("pbx-1", CallId(row.call_id))] = members if together else set()
    pbx.subscribed.add(row.caller_channel_id)
    if row.state != State.PARTED.value:
        pbx.held[row.call_id] = "gw/0"
        pbx.granted[row.call_id] += 1
    pbx.records.open.append(row)


async def test_a_talking_call_is_adopted_and_goes_on(pbx: Neighbours) -> None:
    row = record(1, State.TALKING)
    lives(pbx, row)
    await pbx.controller.on_connected()
    await asyncio.sleep(ORPHANS_GONE_SECONDS)
    assert pbx.controller.active == 1
    assert pbx.controller._live.actors[row.call_id].machine.state is State.TALKING
    assert len(pbx.channels) == 2
    assert row.caller_channel_id is not None
    pbx.destroy(row.caller_channel_id, requested=True)
    pbx.specs["leg"] = call_spec(call_id=row.call_id, leg_uuid=row.leg_uuid or "leg")
    await until(lambda: pbx.media is None, "media hung up")
    pbx.report("leg")
    await pbx.over()
    closed = nothing_left(pbx)
    assert (closed.result, closed.reason) == ("success", "caller_hangup")
    assert closed.media is not None
    assert "adopted" in [event.event for event in pbx.records.events]


async def adopted(row: CallRow, caller: bool, media: bool, result: str, reason: str) -> None:
    """A recorded call that is adopted, and over at once."""
    pbx = Neighbours()
    lives(pbx, row, caller=caller, media=media)
    await pbx.controller.on_connected()
    await pbx.over()
    closed = nothing_left(pbx)
    assert (closed.result, closed.reason) == (result, reason)
    if caller:
        assert pbx.causes == pbx.causes | {row.caller_channel_id: 42}


async def test_a_call_in_set_up_is_ended_with_the_reason() -> None:
    states = set(State) - {State.TALKING, State.ENDED}
    await together(
        {
            f"{state}, media {media}": adopted(record(1, state), True, media, "server_error", "controller_restarted")
            for state in states
            for media in (True, False)
        }
    )


async def test_a_call_whose_caller_went_unseen() -> None:
    states = set(State) - {State.ENDED}
    await together(
        {
            f"{state}, media {media}": adopted(record(1, state), False, media, "indeterminate", "gone_unseen")
            for state in states
            for media in (True, False)
        }
    )


async def test_why_media_went_unseen_is_told_by_the_report_that_waits(pbx: Neighbours) -> None:
    row = record(1, State.TALKING)
    lives(pbx, row, media=False)
    pbx.specs["leg"] = call_spec(call_id=row.call_id, leg_uuid=row.leg_uuid or "leg")
    await pbx.controller.on_connected()
    await asyncio.sleep(0.05)
    pbx.report("leg", EndReason.APP_CLOSED)
    await pbx.over()
    closed = nothing_left(pbx)
    assert (closed.result, closed.reason) == ("success", "application_ended")
    assert closed.media is not None


async def test_a_call_whose_route_was_taken_out_of_the_configuration_goes_on(pbx: Neighbours) -> None:
    lives(pbx, record(1, State.TALKING, callee="+918000000009"))
    await pbx.controller.on_connected()
    await asyncio.sleep(ORPHANS_GONE_SECONDS)
    assert pbx.controller.active == 1
    pbx.reports = False
    await pbx.order_hangup()
    await pbx.over()
    assert nothing_left(pbx).reason == "operator_hangup"


async def test_a_call_over_its_time_limit_is_ended_at_adoption(pbx: Neighbours) -> None:
    lives(pbx, record(1, State.TALKING, created_at=datetime.now(UTC) - timedelta(hours=3)))
    await pbx.controller.on_connected()
    await pbx.over()
    assert nothing_left(pbx).reason == "time_limit"


async def test_a_record_in_a_state_of_a_newer_version_is_no_reason_to_fall(pbx: Neighbours) -> None:
    row = record(1, State.NEW)
    row = dataclasses.replace(row, state="transferring")
    lives(pbx, row)
    await pbx.controller.on_connected()
    await pbx.over()
    assert nothing_left(pbx).reason == "controller_restarted"


async def test_only_the_first_connection_adopts(pbx: Neighbours) -> None:
    await pbx.controller.on_connected()
    row = record(1, State.TALKING, created_at=datetime.now(UTC) + timedelta(seconds=1))
    lives(pbx, row)
    pbx.records.rows.append(row)
    pbx.granted.clear()
    await pbx.controller.on_connected()
    assert pbx.controller.active == 0
    await pbx.over()
    assert not pbx.channels, "a call that nobody knows is ended"


async def test_asterisk_restarted_with_our_calls(pbx: Neighbours) -> None:
    await pbx.controller.on_connected()
    await up(pbx)
    pbx.controller.on_lost("gone")
    assert not pbx.controller.connected.is_set()
    pbx.started_at_ms = 2
    pbx.channels.clear()
    pbx.bridges.clear()
    await pbx.controller.on_connected()
    assert pbx.controller.connected.is_set()
    await pbx.over()
    closed = nothing_left(pbx)
    assert (closed.result, closed.reason) == ("server_error", "asterisk_restarted")


async def test_a_call_that_went_while_the_events_were_lost(pbx: Neighbours) -> None:
    await pbx.controller.on_connected()
    await up(pbx)
    pbx.controller.on_lost("gone")
    pbx.destroy(CALLER, silent=True)
    await pbx.controller.on_connected()
    await pbx.over()
    closed = nothing_left(pbx)
    assert (closed.result, closed.reason) == ("indeterminate", "gone_unseen")


async def test_what_belongs_to_no_call_is_ended_and_what_is_not_ours_is_left(pbx: Neighbours) -> None:
    lost = "6f1c1f52-3b1e-4a55-9d2e-000000000009"
    ours = ["1795226880.99", media_of(lost)]
    theirs = ["1795226880.50", media_channel_id("pbx-2", CallId(lost), 0), "1795226880.51"]
    for identifier in ours:
        pbx.channels[identifier] = channel(identifier)
    since = datetime.now(UTC) + timedelta(seconds=1)
    pbx.records.rows.append(record(9, State.ENDED, caller_channel_id=ours[0], created_at=since, ended_at=since))
    pbx.channels[theirs[0]] = channel(theirs[0], app="another")
    pbx.channels[theirs[1]] = channel(theirs[1], app="another")
    pbx.channels[theirs[2]] = channel(theirs[2], app="trunkbridge2")
    pbx.bridges = {bridge_id("pbx-1", CallId(lost)): set(), bridge_id("pbx-2", CallId(lost)): set(), "a-bridge": set()}
    await pbx.controller.on_connected()
    assert len(pbx.channels) == 5, "not at once"
    await pbx.over()
    assert sorted(pbx.channels) == sorted(theirs)
    assert sorted(pbx.bridges) == ["a-bridge", bridge_id("pbx-2", CallId(lost))]
    assert set(pbx.causes) == set(ours)


async def test_a_call_that_arrives_during_the_reconciliation_is_no_orphan(pbx: Neighbours) -> None:
    async def arrives(pbx: Neighbours) -> None:
        # In the list, and its event is still on the way.
        pbx.channels[CALLER] = channel(CALLER)

    pbx.faults["list_channels"] = Fault(before=arrives)
    await pbx.controller.on_connected()
    pbx.emit(StasisStart(**pbx._about(CALLER), args=["inbound", "carrier", NUMBER]))
    await pbx.arrived()
    await pbx.talking()
    await asyncio.sleep(ORPHANS_GONE_SECONDS)
    assert pbx.controller.active == 1
    assert len(pbx.channels) == 2
    await pbx.order_hangup()
    await pbx.over()
    assert nothing_left(pbx).reason == "operator_hangup"


async def test_media_that_is_created_during_the_reconciliation_is_not_taken_for_gone(pbx: Neighbours) -> None:
    pbx.starts_media = False
    pbx.arrive()
    await until(lambda: pbx.media, "the media channel")
    media = pbx.media
    assert media is not None

    async def not_listed_yet(pbx: Neighbours) -> None:
        del pbx.channels[media]

    async def there(pbx: Neighbours) -> None:
        pbx.channels[media] = channel(media)

    pbx.faults["list_channels"] = Fault(not_listed_yet, there)
    await pbx.controller.on_connected()
    pbx.emit(StasisStart(**pbx._about(media), args=["x"]))
    await pbx.talking()
    assert pbx.controller.active == 1
    await pbx.order_hangup()
    await pbx.over()
    assert nothing_left(pbx).reason == "operator_hangup"


async def test_calls_that_could_not_be_adopted_are_not_ended_for_that(pbx: Neighbours) -> None:
    row = record(1, State.TALKING)
    lives(pbx, row)
    pbx.records.error = StoreUnavailable("postgres", "scripted")
    await pbx.controller.on_connected()
    await asyncio.sleep(ORPHANS_GONE_SECONDS)
    assert len(pbx.channels) == 2
    # The next connection tries again at once.
    pbx.records.error = None
    await pbx.controller.on_connected()
    await until(lambda: pbx.controller.active == 1, "the adoption")
    assert len(pbx.channels) == 2
    pbx.reports = False
    await pbx.order_hangup()
    await pbx.over()
    nothing_left(pbx)


async def test_media_of_no_call_and_strangers_are_sent_away(pbx: Neighbours) -> None:
    await pbx.controller.on_connected()
    stray = media_of("6f1c1f52-3b1e-4a55-9d2e-000000000009")
    for identifier, args in ((stray, ["uuid"]), ("1795226880.70", []), ("1795226880.71", ["outbound", "x", "y"])):
        pbx.channels[identifier] = channel(identifier)
        pbx.emit(StasisStart(**pbx._about(identifier), args=args))
    await until(lambda: not pbx.channels, "the strangers' end")
    await pbx.over()
    assert not pbx.records.rows


async def test_a_stopped_controller_leaves_its_calls_alone(pbx: Neighbours) -> None:
    await up(pbx)
    before = list(pbx.steps)
    await pbx.controller.stop()
    assert pbx.steps == before
    assert len(pbx.channels) == 2
    assert pbx.held
    assert not pbx.records.closed
    assert not pbx.controller._live.by_channel
    pbx.channels.clear()


@pytest.mark.parametrize(("answer", "step"), EVERY_STEP)
async def test_a_controller_stopped_in_the_middle_of_a_step(answer: str, step: str) -> None:
    pbx = neighbours(answer)
    reached = asyncio.Event()

    async def hang(_pbx: Neighbours) -> None:
        reached.set()
        await asyncio.sleep(60)

    pbx.faults[step] = Fault(before=hang)
    pbx.arrive()
    await reached.wait()
    async with asyncio.timeout(2):
        await pbx.controller.stop()
    assert not pbx.controller._live._tasks
    assert not pbx.controller._live.by_channel
    assert not pbx.records.closed
    pbx.channels.clear()
