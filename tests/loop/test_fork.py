"""A fork: the application listens while the caller goes on in the dialplan, and whatever comes in between."""

from __future__ import annotations

import asyncio
import dataclasses
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from ari_app.ari.errors import AriRejected
from ari_app.ari.events import StasisStart
from ari_app.ari.models import DialplanPoint
from ari_app.call.machine import State, Trigger
from ari_app.controller.actor import INBOX_MESSAGES
from ari_app.controller.messages import Message
from ari_app.domain.ids import CallId, snoop_channel_id
from ari_app.errors import NoCapacity
from ari_app.store.records import CallRow
from audiosocket.callspec import EndReason
from tests.fake_call import CALLER, NUMBER, PATIENT_SECONDS, Fault, Neighbours, channel, config
from tests.loop.test_actor import (
    ARI_FAULTS,
    ORPHANS_GONE_SECONDS,
    SET_UP_FORK,
    lives,
    media_of,
    nothing_left,
    raises,
    record,
    together,
)
from tests.media import call_spec
from tests.worker_rig import until

pytestmark = [pytest.mark.loop, pytest.mark.virtual_time]

FORK = {"one_way": True, "after": {"transfer": {"to": "+918000000009", "trunk": "carrier", "timeout_seconds": 20}}}
WENT_ON = "the caller went on to +918000000009 on carrier"
ELSEWHERE = DialplanPoint(app_name="Dial", app_data="PJSIP/+918000000009@carrier,20")


def forking(seconds: float = 600, **application: Any) -> Neighbours:
    """Neighbours whose callers are forked, for so long."""
    settings = config(application=FORK | application)
    route = settings.routes[0].model_copy(update={"max_seconds": seconds})
    return Neighbours(settings.model_copy(update={"routes": [route]}))


async def reached(pbx: Neighbours, state: State) -> None:
    """Waits until the one call is in this state, and lives."""
    (actor,) = pbx.controller._live.actors.values()
    await until(lambda: actor.machine.state is state, state.value, PATIENT_SECONDS)


async def forked(pbx: Neighbours) -> str:
    """A caller who is in the dialplan, with the application listening; the call's id."""
    pbx.arrive()
    await pbx.arrived()
    await reached(pbx, State.FORKED)
    (call_id,) = pbx.controller._live.actors
    return call_id


async def parted(pbx: Neighbours) -> None:
    """Waits until the stream is gone, and checks that only the caller is left."""
    await reached(pbx, State.PARTED)
    await until(lambda: not pbx.held, "the lease")
    assert set(pbx.channels) == {CALLER}
    assert not pbx.bridges
    assert pbx.records.rows[-1].ended_at is None, "the record waits for the caller"


async def end(pbx: Neighbours) -> CallRow:
    """The caller hangs up; the record."""
    pbx.destroy(CALLER, 16, requested=True)
    await pbx.over()
    return nothing_left(pbx)


def path(pbx: Neighbours) -> list[str | None]:
    return [event.to_state for event in pbx.records.events if event.to_state]


async def test_the_caller_goes_on_while_the_application_listens() -> None:
    pbx = forking()
    await forked(pbx)
    assert pbx.steps[2:] == SET_UP_FORK[2:]
    assert pbx.dialplan == {CALLER: ("trunkbridge-transfer", "s")}
    assert pbx.variables[CALLER]["TRUNKBRIDGE_TO"] == "+918000000009"
    assert pbx.listened == {pbx.snooping: CALLER}
    assert list(pbx.bridges.values()) == [{pbx.snooping, pbx.media}], "the caller is in no bridge of ours"
    (spec,) = pbx.specs.values()
    assert (spec.one_way, spec.fallback_tone, spec.next) == (True, False, None)
    open_row = pbx.records.rows[-1]
    assert (open_row.state, open_row.detail, open_row.ended_at) == ("forked", WENT_ON, None)
    await asyncio.sleep(0.05)
    assert pbx.held
    assert pbx.controller.active == 1
    row = await end(pbx)
    assert (row.result, row.reason, row.detail, row.hangup_cause) == ("success", "caller_hangup", WENT_ON, 16)
    assert row.created_at <= row.answered_at <= row.connected_at <= row.ended_at  # type: ignore[operator]
    assert row.media is not None
    assert path(pbx) == [
        *("placing", "answering", "attaching", "forking", "bridging", "continuing", "forked", "ending", "ended"),
    ]
    assert CALLER not in pbx.causes, "nobody had to hang him up"


async def test_the_caller_rings_until_the_application_is_connected_and_then_goes_on() -> None:
    settings = config("when_connected", FORK)
    pbx = Neighbours(settings)
    await forked(pbx)
    await until(lambda: pbx.orders, "the release")
    assert pbx.steps.index("answer") < pbx.steps.index("snoop")
    assert (await end(pbx)).reason == "caller_hangup"


async def test_a_call_that_ends_where_the_caller_went_on() -> None:
    """The other side has hung up, or nobody answered: of the caller himself nothing was heard."""
    for after, reason in ((FORK["after"], "transferred"), ({"extension": "ivr"}, "continued")):
        pbx = forking(after=after)
        await forked(pbx)
        pbx.destroy(CALLER, 19)
        await pbx.over()
        row = nothing_left(pbx)
        assert (row.result, row.reason, row.hangup_cause) == ("success", reason, 19)


@pytest.mark.parametrize(
    ("ended", "result", "reason", "detail"),
    [
        (EndReason.APP_CLOSED, "success", "caller_hangup", WENT_ON),
        (EndReason.STREAM_LIMIT, "success", "caller_hangup", WENT_ON),
        (EndReason.APP_LOST, "upstream_error", "application_lost", f"as the worker saw it; {WENT_ON}"),
        (EndReason.WORKER_STOPPED, "server_error", "worker_stopped", f"as the worker saw it; {WENT_ON}"),
        (EndReason.LEG_CLOSED, "server_error", "media_leg_lost", f"as the worker saw it; {WENT_ON}"),
        (None, "server_error", "media_lost", f"the worker did not report; {WENT_ON}"),
    ],
)
async def test_the_stream_ends_and_the_caller_goes_on(
    ended: EndReason | None, result: str, reason: str, detail: str
) -> None:
    pbx = forking()
    await forked(pbx)
    if ended is None:
        pbx.reports = False
        assert pbx.media is not None
        pbx.destroy(pbx.media)
    else:
        pbx.end_media(ended)
    await parted(pbx)
    row = pbx.records.rows[-1]
    assert (row.state, row.reason) == ("parted", None if result == "success" else reason), "known before his end"
    row = await end(pbx)
    assert (row.result, row.reason, row.detail, row.hangup_cause) == (result, reason, detail, 16)
    assert (row.media is None) == (ended is None)
    assert path(pbx)[-4:] == ["unforking", "parted", "ending", "ended"]


async def test_a_report_that_comes_long_after_the_stream_completes_the_record() -> None:
    pbx = forking()
    await forked(pbx)
    pbx.reports = False
    assert pbx.media is not None
    leg = pbx.legs[pbx.media]
    pbx.destroy(pbx.media)
    await parted(pbx)
    pbx.report(leg, EndReason.APP_LOST)
    await until(lambda: pbx.records.rows[-1].media, "the figures")
    assert (await end(pbx)).media is not None


async def test_a_stream_whose_snoop_is_gone_is_over() -> None:
    pbx = forking()
    await forked(pbx)
    assert pbx.snooping is not None
    pbx.destroy(pbx.snooping)
    await parted(pbx)
    row = await end(pbx)
    assert (row.result, row.reason) == ("server_error", "snoop_failed")


# What keeps the fork from being made


async def goes_on_alone(pbx: Neighbours, reason: str, result: str = "server_error", words: str = "") -> CallRow:
    pbx.arrive()
    await pbx.arrived()
    await parted(pbx)
    assert pbx.dialplan == {CALLER: ("trunkbridge-transfer", "s")}
    assert CALLER not in pbx.causes
    row = await end(pbx)
    assert (row.result, row.reason) == (result, reason)
    assert (row.detail or "").endswith(WENT_ON)
    assert words in (row.detail or "")
    assert row.connected_at is None
    return row


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        ("external_media", "media_failed"),
        ("snoop", "snoop_failed"),
        ("create_bridge", "bridge_failed"),
        ("add_to_bridge", "bridge_failed"),
    ],
)
async def test_the_call_goes_on_all_the_same(step: str, reason: str) -> None:
    async def fails(fault: Fault) -> None:
        pbx = forking()
        pbx.faults[step] = Fault(fault.before, fault.after)
        await goes_on_alone(pbx, reason, words="/x")

    await together({name: fails(fault) for name, fault in ARI_FAULTS.items()})


async def test_a_snoop_that_never_starts() -> None:
    pbx = forking()
    pbx.starts_snoop = False
    await goes_on_alone(pbx, "snoop_failed")


async def test_media_that_never_starts() -> None:
    pbx = forking()
    pbx.starts_media = False
    row = await goes_on_alone(pbx, "setup_timeout")
    assert row.answered_at is not None


async def test_a_system_without_room_is_no_reason_to_refuse_a_call() -> None:
    pbx = forking()
    pbx.faults["acquire"] = Fault(before=raises(NoCapacity("all_full", "every worker carries its calls")))
    row = await goes_on_alone(pbx, "all_full", words="every worker")
    assert row.answered_at is None, "whoever he is put through to answers him"
    assert "external_media" not in pbx.steps


@pytest.mark.parametrize("step", ["external_media", "snoop", "create_bridge", "add_to_bridge", "continue"])
async def test_an_application_that_cannot_be_reached_is_no_reason_not_to_go_on(step: str) -> None:
    async def refused(pbx: Neighbours) -> None:
        pbx.end_media(EndReason.APP_REFUSED)
        await asyncio.sleep(0.002)

    pbx = forking()
    pbx.faults[step] = Fault(after=refused)
    pbx.arrive()
    await pbx.arrived()
    await parted(pbx)
    row = await end(pbx)
    assert (row.result, row.reason) == ("upstream_error", "application_refused")
    assert (row.detail or "").endswith(WENT_ON)


async def test_an_application_that_fails_while_the_caller_rings() -> None:
    settings = config("when_connected", FORK)
    pbx = Neighbours(settings)
    pbx.first_word = ""
    pbx.arrive()
    await pbx.arrived()
    await reached(pbx, State.AWAITING)
    pbx.end_media(EndReason.APP_REFUSED)
    await parted(pbx)
    row = await end(pbx)
    assert (row.result, row.reason, row.answered_at) == ("upstream_error", "application_refused", None)


async def test_a_caller_who_does_not_get_into_the_dialplan_is_hung_up() -> None:
    pbx = forking()
    pbx.faults["continue"] = Fault(before=raises(AriRejected("POST", "/x", 500, "scripted")))
    pbx.arrive()
    await pbx.arrived()
    await pbx.over()
    row = nothing_left(pbx)
    assert (row.result, row.reason, pbx.causes[CALLER]) == ("server_error", "continue_failed", 42)


# Who ends it


@pytest.mark.parametrize("stream", [True, False])
async def test_an_operator_reaches_the_caller(stream: bool) -> None:
    pbx = forking()
    await forked(pbx)
    if not stream:
        pbx.end_media(EndReason.APP_CLOSED)
        await parted(pbx)
    await pbx.order_hangup()
    await pbx.over()
    row = nothing_left(pbx)
    assert (row.result, row.reason, pbx.causes[CALLER]) == ("success", "operator_hangup", 16)
    assert row.detail == f"by a test; {WENT_ON}"


@pytest.mark.parametrize("stream", [True, False])
async def test_the_route_s_limit_reaches_the_caller(stream: bool) -> None:
    pbx = forking(0.3)
    loop = asyncio.get_running_loop()
    await forked(pbx)
    began = loop.time()
    if not stream:
        await asyncio.sleep(0.1)
        pbx.end_media(EndReason.APP_CLOSED)
        await parted(pbx)
    await pbx.over()
    assert 0.2 < loop.time() - began < 1, "one limit, whatever becomes of the stream"
    row = nothing_left(pbx)
    assert (row.result, row.reason, pbx.causes[CALLER]) == ("success", "time_limit", 16)


async def test_a_fault_of_ours_is_no_end_of_the_caller_s() -> None:
    pbx = forking()
    await forked(pbx)
    pbx.faults["hangup_snoop"] = Fault(before=raises(ZeroDivisionError("scripted")))
    pbx.end_media(EndReason.APP_CLOSED)
    await pbx.over()
    assert CALLER not in pbx.causes
    assert pbx.channels.pop(CALLER)
    row = nothing_left(pbx)
    assert (row.result, row.reason) == ("server_error", "controller_error")
    assert (row.detail or "").endswith(WENT_ON)


async def test_a_caller_whom_the_dialplan_sends_back_is_not_kept() -> None:
    pbx = forking()
    await forked(pbx)
    pbx.channels[CALLER] = channel(CALLER)
    pbx.emit(StasisStart(**pbx._about(CALLER), args=["inbound", "carrier", NUMBER]))
    await pbx.over()
    nothing_left(pbx)


async def test_a_message_that_is_lost_is_found_out() -> None:
    pbx = forking()
    call_id = await forked(pbx)
    actor = pbx.controller._live.actors[call_id]
    assert pbx.snooping is not None
    pbx.destroy(pbx.snooping, silent=True)
    for _ in range(INBOX_MESSAGES + 1):
        actor.tell(Message(Trigger.MEDIA_STARTED))
    await parted(pbx)
    await end(pbx)


async def test_the_lease_is_kept_as_long_as_the_stream_lives() -> None:
    settings = forking().config
    often = settings.controller.model_copy(update={"lease_seconds": 0.03})
    pbx = Neighbours(settings.model_copy(update={"controller": often}))
    call_id = await forked(pbx)
    renewing = asyncio.create_task(pbx.controller.renew_leases())
    try:
        await until(lambda: pbx.renewals, "a renewal")
        assert pbx.renewals[-1] == {call_id: "gw/0"}
        pbx.end_media(EndReason.APP_CLOSED)
        await parted(pbx)
        pbx.renewals.clear()
        await until(lambda: len(pbx.renewals) > 1, "more renewals")
        assert pbx.renewals[-1] == {}
    finally:
        renewing.cancel()
        await asyncio.gather(renewing, return_exceptions=True)
    await end(pbx)
    assert pbx.released[call_id] == 1


# Controllers that come and go


def fork_record(state: State = State.FORKED, **changes: Any) -> CallRow:
    """A fork that an earlier controller left open."""
    began = datetime.now(UTC) - timedelta(seconds=20)
    values = {"application": "bot", "connected_at": began, "answered_at": began, "detail": WENT_ON}
    return dataclasses.replace(record(1, state), **(values | changes))


def left(pbx: Neighbours, row: CallRow, *, caller: bool = True, media: bool = True) -> str:
    """Puts into Asterisk what lives of a fork; the caller's channel."""
    lives(pbx, row, caller=caller, media=media)
    identifier = row.caller_channel_id or ""
    if caller:
        pbx.channels[identifier] = msgspec.structs.replace(pbx.channels[identifier], dialplan=ELSEWHERE)
    if media and caller:
        snoop = snoop_channel_id("pbx-1", CallId(row.call_id))
        pbx.channels[snoop] = channel(snoop)
        pbx.listened[snoop] = identifier
        pbx.legs[media_of(row.call_id)] = "leg"
    pbx.specs["leg"] = call_spec(call_id=row.call_id, leg_uuid=row.leg_uuid or "leg")
    return identifier


@pytest.mark.parametrize("written", [State.FORKED, State.BRIDGING, State.ATTACHING])
async def test_the_next_controller_watches_over_the_fork(written: State) -> None:
    """Whatever the record said when its controller was killed."""
    pbx = forking()
    row = fork_record(written, detail=WENT_ON if written is State.FORKED else None)
    caller = left(pbx, row)
    pbx.subscribed.clear()
    await pbx.controller.on_connected()
    await asyncio.sleep(ORPHANS_GONE_SECONDS)
    assert len(pbx.channels) == 3
    assert pbx.controller._live.actors[row.call_id].machine.state is State.FORKED
    assert caller in pbx.subscribed
    pbx.destroy(caller, 16, requested=True)
    await pbx.over()
    closed = nothing_left(pbx)
    assert (closed.result, closed.reason, closed.detail) == ("success", "caller_hangup", WENT_ON)
    assert closed.media is not None


async def test_the_next_controller_sees_the_application_end() -> None:
    pbx = forking()
    caller = left(pbx, fork_record())
    await pbx.controller.on_connected()
    await reached(pbx, State.FORKED)
    pbx.end_media(EndReason.APP_LOST)
    await reached(pbx, State.PARTED)
    assert set(pbx.channels) == {caller}
    pbx.destroy(caller, 16)
    await pbx.over()
    closed = nothing_left(pbx)
    assert (closed.result, closed.reason) == ("upstream_error", "application_lost")


async def test_what_ended_the_stream_meanwhile_is_told_by_the_report_that_waits() -> None:
    pbx = forking()
    row = fork_record()
    caller = left(pbx, row, media=False)
    await pbx.controller.on_connected()
    pbx.report("leg", EndReason.APP_CLOSED)
    await reached(pbx, State.PARTED)
    pbx.destroy(caller, 16, requested=True)
    await pbx.over()
    closed = nothing_left(pbx)
    assert (closed.result, closed.reason, closed.detail) == ("success", "caller_hangup", WENT_ON)


async def test_a_snoop_that_went_meanwhile() -> None:
    pbx = forking()
    row = fork_record()
    caller = left(pbx, row)
    pbx.destroy(snoop_channel_id("pbx-1", CallId(row.call_id)), silent=True)
    await pbx.controller.on_connected()
    await reached(pbx, State.PARTED)
    assert set(pbx.channels) == {caller}
    pbx.destroy(caller, 16, requested=True)
    await pbx.over()
    assert nothing_left(pbx).reason == "snoop_failed"


@pytest.mark.parametrize("failed", [True, False])
async def test_a_caller_without_a_stream_is_adopted_with_what_is_known(failed: bool) -> None:
    pbx = forking()
    known = {"result": "upstream_error", "reason": "application_lost", "detail": f"reset; {WENT_ON}"}
    row = fork_record(State.PARTED, **(known if failed else {}))
    caller = left(pbx, row, media=False)
    await pbx.controller.on_connected()
    await asyncio.sleep(ORPHANS_GONE_SECONDS)
    assert set(pbx.channels) == {caller}
    assert pbx.controller._live.actors[row.call_id].machine.state is State.PARTED
    pbx.destroy(caller, 16, requested=True)
    await pbx.over()
    closed = nothing_left(pbx)
    if failed:
        assert (closed.result, closed.reason, closed.detail) == tuple(known.values())
    else:
        assert (closed.result, closed.reason, closed.detail) == ("success", "caller_hangup", WENT_ON)


async def test_a_fork_over_its_time_limit_is_ended_at_adoption() -> None:
    pbx = forking()
    row = fork_record(created_at=datetime.now(UTC) - timedelta(hours=3), answered_at=None)
    caller = left(pbx, row)
    await pbx.controller.on_connected()
    await pbx.over()
    assert pbx.causes[caller] == 16
    assert nothing_left(pbx).reason == "time_limit"


async def test_a_fork_whose_application_was_taken_out_of_the_configuration() -> None:
    pbx = Neighbours()
    caller = left(pbx, fork_record(application="gone"))
    await pbx.controller.on_connected()
    await asyncio.sleep(ORPHANS_GONE_SECONDS)
    assert len(pbx.channels) == 3
    pbx.destroy(caller, 16)
    await pbx.over()
    closed = nothing_left(pbx)
    assert (closed.reason, closed.detail) == ("continued", WENT_ON)


async def test_a_caller_who_went_while_nobody_watched() -> None:
    pbx = forking()
    left(pbx, fork_record(), caller=False)
    await pbx.controller.on_connected()
    await pbx.over()
    closed = nothing_left(pbx)
    assert (closed.result, closed.reason) == ("indeterminate", "gone_unseen")


async def test_a_caller_who_goes_during_the_adoption() -> None:
    pbx = forking()
    caller = left(pbx, fork_record())

    async def goes(pbx: Neighbours) -> None:
        pbx.destroy(caller, silent=True)

    pbx.faults["subscribe"] = Fault(before=goes)
    await pbx.controller.on_connected()
    await pbx.over()
    assert nothing_left(pbx).reason == "gone_unseen"


@pytest.mark.parametrize("who", ["caller", "snoop", "media"])
async def test_what_went_while_the_events_were_lost(who: str) -> None:
    pbx = forking()
    await pbx.controller.on_connected()
    await forked(pbx)
    pbx.controller.on_lost("gone")
    gone = {"caller": CALLER, "snoop": pbx.snooping, "media": pbx.media}[who]
    assert gone is not None
    pbx.destroy(gone, silent=True)
    await pbx.controller.on_connected()
    if who == "caller":
        await pbx.over()
        assert nothing_left(pbx).reason == "gone_unseen"
    else:
        await parted(pbx)
        await end(pbx)


async def test_asterisk_restarted_under_a_fork() -> None:
    pbx = forking()
    await pbx.controller.on_connected()
    await forked(pbx)
    pbx.controller.on_lost("gone")
    pbx.started_at_ms = 2
    pbx.channels.clear()
    pbx.bridges.clear()
    await pbx.controller.on_connected()
    await pbx.over()
    closed = nothing_left(pbx)
    assert (closed.result, closed.reason) == ("server_error", "asterisk_restarted")


async def test_a_snoop_of_no_call_is_ended() -> None:
    pbx = forking()
    lost = CallId("6f1c1f52-3b1e-4a55-9d2e-000000000009")
    ours, theirs = snoop_channel_id("pbx-1", lost), snoop_channel_id("pbx-2", lost)
    for identifier in (ours, theirs):
        pbx.channels[identifier] = channel(identifier, app="another")
    await pbx.controller.on_connected()
    await pbx.over()
    assert set(pbx.channels) == {theirs}
    pbx.channels[ours] = channel(ours)
    pbx.emit(StasisStart(**pbx._about(ours), args=[]))
    await until(lambda: ours not in pbx.channels, "the stray's end")
    await pbx.over()


async def test_a_stopped_controller_leaves_the_fork_alone() -> None:
    pbx = forking()
    await forked(pbx)
    before = list(pbx.steps)
    await pbx.controller.stop()
    assert pbx.steps == before
    assert len(pbx.channels) == 3
    assert pbx.held
    assert not pbx.records.closed
