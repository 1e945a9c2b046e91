"""What a controller does for calls whose worker is gone: another worker takes them, or they end as before."""

from __future__ import annotations

import asyncio

import pytest
import pytest_asyncio
from msgspec.structs import replace

from ari_app.ari.errors import AriRejected
from ari_app.ari.events import ChannelDestroyed
from ari_app.call import moving as rules
from ari_app.call.machine import State
from ari_app.controller import turns, worker_watch
from ari_app.controller.turns import Turns
from ari_app.errors import NoCapacity, NotTaken
from ari_app.store.present import Command
from audiosocket.callspec import CallSpec, EndReason
from tests.fake_call import CALLER, PATIENT_SECONDS, Fault, Neighbours, config, kind_of
from tests.loop.test_actor import ari, nothing_left, raises, up
from tests.worker_rig import until

pytestmark = [pytest.mark.loop, pytest.mark.virtual_time]


async def _nothing(*command: str) -> str:
    return ""


@pytest.fixture(autouse=True)
def no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """No connections are reset in this host's kernel."""
    monkeypatch.setattr(worker_watch, "_output", _nothing)


def fleet(kind: str = "audiosocket", spare: int = 2) -> Neighbours:
    neighbours = Neighbours(rtp=kind == "rtp", websocket=kind == "websocket", holds=True, spare=spare)
    neighbours.controller.connected.set()
    return neighbours


@pytest_asyncio.fixture(params=["audiosocket", "rtp", "websocket"])
async def pbx(request: pytest.FixtureRequest) -> Neighbours:
    return fleet(request.param)


def gone(pbx: Neighbours, worker: str = "gw/0") -> None:
    """A worker is gone: Asterisk sees it, but for RTP legs."""
    pbx.kill(worker)
    if not any(task.get_name() == "watch" for task in asyncio.all_tasks()):
        task = asyncio.create_task(pbx.controller.watch_workers(), name="watch")
        pbx.controller._live._tasks.add(task)
        task.add_done_callback(pbx.controller._live._tasks.discard)


async def at(pbx: Neighbours, worker: str) -> CallSpec:
    """Waits until the one call talks by this worker; the spec with which that got it."""
    (actor,) = pbx.controller._live.actors.values()
    await until(lambda: actor.worker_id == worker and actor.machine.state is State.TALKING, worker, PATIENT_SECONDS)
    return pbx.specs[actor.row.leg_uuid or ""]


async def hangs_up(pbx: Neighbours) -> None:
    pbx.destroy(CALLER, 16, requested=True)
    await until(lambda: not pbx.controller.active, "the end of the call", PATIENT_SECONDS)
    await pbx.stop()
    row = nothing_left(pbx)
    assert (row.result, row.reason) == ("success", "caller_hangup")
    assert row.media is not None, "the figures are those of the last worker"


def events(pbx: Neighbours, name: str) -> list[dict[str, object]]:
    return [event.detail for event in pbx.records.events if event.event == name]


async def test_a_call_goes_on_with_another_worker(pbx: Neighbours) -> None:
    await up(pbx)
    (bridge,) = pbx.bridges
    (old,) = pbx.specs.values()
    before = pbx.records.rows[-1]
    gone(pbx)
    new = await at(pbx, "gw/1")
    assert pbx.bridges == {bridge: {CALLER, pbx.media}}
    assert (new.call_id, new.call_sid, new.url, new.dialect) == (old.call_id, old.call_sid, old.url, old.dialect)
    assert new.stream_sid != old.stream_sid
    assert new.leg_uuid != old.leg_uuid
    assert new.begins
    assert not new.held
    assert new.lease_token > old.lease_token > 0
    assert new.custom_parameters == {"trunkbridge_resumed": "1"}
    assert old.custom_parameters == {}
    row = pbx.records.rows[-1]
    assert (row.stream_sid, row.leg_uuid, row.connected_at) == (new.stream_sid, new.leg_uuid, before.connected_at)
    (moved,) = events(pbx, "moved")
    assert (moved["worker"], moved["moves"]) == ("gw/1", 1)
    assert pbx.steps.count("answer") == pbx.steps.count("create_bridge") == 1
    assert new.joining_seconds > 0
    await until(lambda: told_release(pbx, new), "that the leg is in the bridge")
    await hangs_up(pbx)


def told_release(pbx: Neighbours, spec: CallSpec) -> bool:
    return any((order.order, order.leg_uuid) == ("release", spec.leg_uuid) for _, order in pbx.orders)


async def test_a_caller_who_has_been_answered_is_not_held_again() -> None:
    pbx = Neighbours(config("when_connected"), spare=2, holds=True)
    pbx.controller.connected.set()
    pbx.arrive()
    await pbx.arrived()
    await pbx.talking()
    (old,) = pbx.specs.values()
    assert (old.held, old.joining_seconds) == (True, 0)
    gone(pbx)
    new = await at(pbx, "gw/1")
    assert not new.held
    assert new.joining_seconds > 0
    await hangs_up(pbx)


async def test_what_comes_of_the_worker_before_ends_nothing(pbx: Neighbours) -> None:
    await up(pbx)
    (old,) = pbx.specs
    gone(pbx)
    await at(pbx, "gw/1")
    pbx.report(old, EndReason.APP_LOST)
    pbx.notice(old, "leg_lost")
    await until(lambda: events(pbx, "media_left"), "the report's event")
    (left,) = events(pbx, "media_left")
    assert (left["worker"], left["figures"]) == ("gw/0", {"frames_played": 7})
    assert pbx.records.rows[-1].media is None
    await at(pbx, "gw/1")
    await hangs_up(pbx)


async def test_a_report_of_the_worker_before_after_the_end_is_an_event(pbx: Neighbours) -> None:
    await up(pbx)
    (old,) = pbx.specs
    gone(pbx)
    await at(pbx, "gw/1")
    await hangs_up(pbx)
    rows = len(pbx.records.rows)
    await pbx.controller.on_report(pbx.report_of(pbx.specs[old], EndReason.LEG_CLOSED, recording=""))
    assert len(events(pbx, "media_left")) == 1
    assert len(pbx.records.rows) == rows


@pytest.mark.parametrize("late", ["", "frozen", "ended"])
async def test_all_parts_of_a_recording_are_kept_in_their_order(pbx: Neighbours, late: str) -> None:
    """What the worker before did not tell in time comes with its report."""
    await up(pbx)
    (old,) = pbx.specs
    if not late:
        pbx.notice(old, "recorded", recording="/recordings/1.wav", at_ms=1000)
        await until(lambda: pbx.records.rows[-1].recording, "the first part in the record")
    gone(pbx)
    new = await at(pbx, "gw/1")
    pbx.notice(new.leg_uuid, "recorded", recording="/recordings/2.wav", at_ms=9000)
    pbx.notice(old, "recorded", recording="/recordings/no.wav", at_ms=9500)  # not the call's worker any more
    await until(lambda: pbx.records.rows[-1].recording == "/recordings/2.wav", "the second part in the record")
    report = pbx.report_of(pbx.specs[old], EndReason.WORKER_STOPPED, recording="/recordings/1.wav", recorded_at_ms=1000)
    if late == "frozen":
        await pbx.controller.on_report(report)
        await until(lambda: events(pbx, "media_left"), "the report of the worker before")
    pbx.reports = False
    pbx.destroy(CALLER, 16, requested=True)
    last = pbx.report_of(new, EndReason.LEG_CLOSED, recording="/recordings/2.wav", recorded_at_ms=9001)
    await pbx.controller.on_report(replace(last, worker_id="gw/1"))
    await until(lambda: not pbx.controller.active, "the end of the call", PATIENT_SECONDS)
    if late == "ended":
        await pbx.controller.on_report(report)
    row = pbx.records.rows[-1]
    assert row.ended_at is not None
    assert row.recording == "/recordings/2.wav"
    assert [(part.recording, part.worker_id, part.began_at.timestamp()) for part in row.recordings or ()] == [
        ("/recordings/1.wav", "gw/0", 1),
        ("/recordings/2.wav", "gw/1", 9),
    ]
    await pbx.stop()


async def test_a_leg_of_the_new_worker_is_replaced_like_any_other(pbx: Neighbours) -> None:
    await up(pbx)
    gone(pbx)
    new = await at(pbx, "gw/1")
    assert pbx.media is not None
    pbx.lose(pbx.legs[pbx.media])
    await until(lambda: any(spec.leg_number == 2 for spec in pbx.specs.values()), "another leg")
    assert await at(pbx, "gw/1") is new
    assert len(events(pbx, "moved")) == 1
    await hangs_up(pbx)


async def test_a_call_does_not_walk_through_the_fleet() -> None:
    pbx = fleet(spare=5)
    await up(pbx)
    for number in range(rules.MAX_MOVES):
        await at(pbx, f"gw/{number}")
        pbx.kill(f"gw/{number}")
    await at(pbx, "gw/2")
    pbx.reports = False
    pbx.kill("gw/2")
    await pbx.over()
    row = nothing_left(pbx)
    assert (row.result, row.reason, row.hangup_cause) == ("server_error", "media_lost", 38)
    assert len(events(pbx, "moved")) == rules.MAX_MOVES


async def test_workers_that_are_dead_too_are_passed_over() -> None:
    pbx = fleet(spare=3)
    await up(pbx)
    pbx.dead |= {"gw/1", "gw/2"}
    gone(pbx)
    await at(pbx, "gw/3")
    assert len(events(pbx, "moved")) == 1
    await hangs_up(pbx)


async def test_a_worker_that_is_started_again_takes_its_calls_back() -> None:
    pbx = fleet(spare=0)
    await up(pbx)
    (old,) = pbx.specs
    gone(pbx)
    await asyncio.sleep(0.05)
    assert pbx.controller.active
    pbx.dead.clear()
    pbx.run += 7
    new = await at(pbx, "gw/0")
    assert new.leg_uuid != old
    await hangs_up(pbx)


async def test_the_only_worker_comes_back_and_has_its_calls_again() -> None:
    """It was frozen, or cut off."""
    pbx = fleet("rtp", spare=0)
    await up(pbx)
    gone(pbx)
    (actor,) = pbx.controller.live.actors.values()
    await until(lambda: actor.machine.state is State.STRANDED, "the loss")
    await asyncio.sleep(0.05)
    pbx.dead.clear()
    await at(pbx, "gw/0")
    assert len(events(pbx, "moved")) == 1
    await hangs_up(pbx)


@pytest.mark.parametrize(
    ("application", "controller"),
    [({"resume": {"calls": False}}, {}), ({}, {"leg_hold_seconds": 0})],
    ids=["the application does not want it", "no call is held"],
)
async def test_calls_that_are_not_to_go_on_end_as_before(
    application: dict[str, object], controller: dict[str, object]
) -> None:
    pbx = Neighbours(config(application=application, **controller), spare=2)
    await up(pbx)
    pbx.reports = False
    pbx.kill()
    await pbx.over()
    row = nothing_left(pbx)
    assert (row.result, row.reason) == ("server_error", "media_lost")
    assert len(pbx.specs) == 1


async def test_without_room_the_call_ends_in_the_end_and_says_why() -> None:
    pbx = fleet()
    await up(pbx)
    pbx.full = {"gw/1", "gw/2"}
    pbx.reports = False
    gone(pbx)
    await until(lambda: not pbx.controller.active, "the end", PATIENT_SECONDS)
    row = pbx.records.closed[-1]
    assert (row.result, row.reason) == ("server_error", "media_lost")
    assert "capacity" in (row.detail or "")
    await pbx.controller.stop()


async def test_room_that_comes_in_time_is_taken() -> None:
    pbx = fleet()
    await up(pbx)
    pbx.full = {"gw/1", "gw/2"}
    gone(pbx)
    await until(lambda: pbx.steps.count("acquire") > 3, "several looks")
    pbx.full = {"gw/1"}
    await at(pbx, "gw/2")
    await hangs_up(pbx)


@pytest.mark.parametrize("state", [State.STRANDED, State.MOVING])
async def test_a_caller_who_hangs_up_meanwhile(state: State) -> None:
    pbx = fleet()
    await up(pbx)
    (actor,) = pbx.controller._live.actors.values()
    if state is State.STRANDED:
        pbx.full = {"gw/1", "gw/2"}
    else:
        pbx.starts_media = False
    gone(pbx)
    await until(lambda: actor.machine.state is state, state)
    pbx.destroy(CALLER, 16, requested=True)
    await until(lambda: not pbx.controller.active, "the end", PATIENT_SECONDS)
    await pbx.controller.stop()
    row = nothing_left(pbx)
    assert row.reason == "caller_hangup"
    services = pbx.controller._live.services
    assert (services.turns._free, len(services.turns._waiting)) == (turns.AT_ONCE, 0)


async def test_the_parameter_gives_way_where_exotel_allows_no_more() -> None:
    given = {"one": "1", "two": "2", "three": "3"}
    pbx = Neighbours(config(application={"custom_parameters": given}), spare=1, holds=True)
    await up(pbx)
    gone(pbx)
    assert (await at(pbx, "gw/1")).custom_parameters == given
    await hangs_up(pbx)


@pytest.mark.parametrize(("parameter", "told"), [("again", {"again": "1"}), (False, {})])
async def test_the_parameter_is_the_operators_choice(parameter: object, told: dict[str, str]) -> None:
    application = {"resume": {"parameter": parameter}}
    pbx = Neighbours(config(application=application), spare=1, holds=True)
    await up(pbx)
    gone(pbx)
    assert (await at(pbx, "gw/1")).custom_parameters == told
    await hangs_up(pbx)


async def test_an_adopted_call_is_moved(pbx: Neighbours) -> None:
    """Its worker died while no controller ran."""
    call_id = await up(pbx)
    await pbx.controller.stop()
    pbx.kill()
    if pbx.media is not None:
        pbx.destroy(pbx.media)
    kind = "rtp" if pbx.rtp else "websocket" if pbx.websocket else "audiosocket"
    after = fleet(kind)
    for name in ("channels", "specs", "legs", "bridges", "held", "tokens", "dead", "sent_to", "subscribed"):
        setattr(after, name, getattr(pbx, name))
    after.granted.update(pbx.granted)
    after.records.open = [pbx.records.rows[-1]]
    await after.controller.on_connected()
    spec = await at(after, "gw/1")
    assert (spec.call_id, spec.url, spec.custom_parameters) == (call_id, "ws://bot/", {"trunkbridge_resumed": "1"})
    await hangs_up(after)


# While the call is set up


@pytest.mark.parametrize("answer", ["at_once", "when_connected"])
async def test_a_worker_that_is_dead_at_the_set_up(answer: str) -> None:
    pbx = Neighbours(config(answer), spare=2, holds=True)
    pbx.controller.connected.set()
    pbx.dead.add("gw/0")
    pbx.arrive()
    await pbx.arrived()
    await pbx.talking()
    spec = await at(pbx, "gw/1")
    assert spec.custom_parameters == {}, "it is the first stream"
    assert spec.held is (answer != "at_once")
    assert pbx.media is not None
    pbx.lose(pbx.legs[pbx.media])
    await until(lambda: any(each.leg_number == 2 for each in pbx.specs.values()), "another leg")
    await at(pbx, "gw/1")
    assert not events(pbx, "moved")
    await hangs_up(pbx)


@pytest.mark.parametrize("answer", ["at_once", "when_connected"])
async def test_a_worker_that_does_not_know_the_call(answer: str) -> None:
    pbx = Neighbours(config(answer), spare=2, holds=True)
    pbx.controller.connected.set()
    pbx.deaf.add("gw/0")
    pbx.arrive()
    await pbx.arrived()
    spec = await at(pbx, "gw/1")
    assert spec.custom_parameters == {}, "it is the first stream"
    await hangs_up(pbx)


async def test_two_further_workers_are_tried_and_no_more() -> None:
    pbx = Neighbours(spare=5, holds=True)
    pbx.dead |= {f"gw/{number}" for number in range(6)}
    pbx.arrive()
    await pbx.arrived()
    await pbx.over()
    row = nothing_left(pbx)
    assert (row.reason, pbx.steps.count("external_media")) == ("media_failed", 3)


async def test_a_worker_that_does_not_open_its_rtp_leg() -> None:
    pbx = Neighbours(spare=2, holds=True, rtp=True)
    pbx.dead.add("gw/0")
    pbx.arrive()
    await pbx.arrived()
    await at(pbx, "gw/1")
    await hangs_up(pbx)


# An operator's order


async def order(pbx: Neighbours, worker: str = "") -> None:
    for call_id in list(pbx.controller._live.actors):
        await pbx.controller.on_command(Command(verb="move", call_id=call_id, by="a test", worker=worker))


@pytest.mark.parametrize("to", ["", "gw/2"])
async def test_an_operator_moves_a_call(pbx: Neighbours, to: str) -> None:
    await up(pbx)
    (old,) = pbx.specs
    await order(pbx, to)
    spec = await at(pbx, to or "gw/1")
    assert spec.custom_parameters == {"trunkbridge_resumed": "1"}
    assert ("gw/0", "end", old) in [(worker, told.order, told.leg_uuid) for worker, told in pbx.orders]
    await until(lambda: events(pbx, "media_left"), "the report of the worker before")
    for _ in range(rules.MAX_MOVES + 1):  # an order is no worker's death
        await order(pbx, "gw/0")
        await at(pbx, "gw/0")
        await order(pbx, "gw/1")
        await at(pbx, "gw/1")
    await hangs_up(pbx)


@pytest.mark.parametrize("to", ["gw/1", "gw/7", "gw/0"])
async def test_a_call_stays_where_it_is_when_no_worker_takes_it(pbx: Neighbours, to: str) -> None:
    await up(pbx)
    (spec,) = pbx.specs.values()
    pbx.full = {f"gw/{number}" for number in range(3)}
    media = pbx.media
    await order(pbx, to)
    await until(lambda: [event for event in pbx.records.events if event.event == "stays"], "the refusal")
    assert await at(pbx, "gw/0") is spec
    assert pbx.media == media
    await hangs_up(pbx)


async def test_a_call_that_may_not_be_moved_is_not() -> None:
    pbx = Neighbours(config(application={"resume": {"calls": False}}), spare=2)
    await up(pbx)
    await order(pbx)
    await until(lambda: events(pbx, "not_moved"), "the refusal")
    assert len(pbx.specs) == 1
    await hangs_up(pbx)


@pytest.mark.parametrize("step", ["acquire", "put_spec", "external_media", "add_to_bridge"])
async def test_whatever_fails_on_the_way_is_tried_again(step: str) -> None:
    fault = raises(NoCapacity("all_full", "full") if step in ("acquire", "put_spec") else ari(AriRejected, 500))
    pbx = fleet(spare=3)
    await up(pbx)
    pbx.faults[step] = Fault(before=fault)
    gone(pbx)
    await until(lambda: events(pbx, "moved"), "the move", PATIENT_SECONDS)
    await until(lambda: sum(kind_of(each) is not None for each in pbx.channels) == 1, "one leg")
    await hangs_up(pbx)


@pytest.mark.parametrize(("why", "asked"), [("worker_silent", 3), ("worker_unreachable", 4), ("full", 4)])
async def test_a_new_call_is_refused_after_three_workers_that_are_silent(why: str, asked: int) -> None:
    pbx = fleet(spare=3)
    pbx.faults["put_spec"] = Fault(before=raises(NotTaken(why, "scripted")), times=3)
    if asked > 3:
        await up(pbx)
        await hangs_up(pbx)
    else:
        pbx.arrive()
        await until(lambda: any(row.ended_at for row in pbx.records.rows), "the refusal")
        await pbx.controller.stop()
        row = nothing_left(pbx)
        assert (row.result, row.reason) == ("server_error", "no_workers")
    assert pbx.steps.count("put_spec") == asked


async def test_turns_are_given_in_order_and_not_too_many_at_once() -> None:
    given: list[str] = []
    queue = Turns(2)
    for name in "abcd":
        queue.ask(name, lambda name=name: given.append(name))  # type: ignore[misc]
    assert given == ["a", "b"]
    queue.end("c")  # it does not want one any more
    queue.end("a")
    assert given == ["a", "b", "d"]
    queue.ask("b", lambda: given.append("b again"), 0.02)
    queue.ask("e", lambda: given.append("e"))
    assert given == ["a", "b", "d", "e"]
    queue.end("e")
    await until(lambda: given[-1] == "b again", "the turn that was put off")


async def test_a_worker_that_is_late_and_the_only_one_has_the_rest_of_the_time() -> None:
    pbx = Neighbours(holds=True)
    pbx.starts_media = False
    pbx.arrive()
    await pbx.arrived()
    await until(lambda: pbx.steps.count("acquire") == 2, "a look for another worker")
    await asyncio.sleep(3)
    (actor,) = pbx.controller.live.actors.values()
    assert actor.machine.state is State.ATTACHING
    actor.start_media()
    await at(pbx, "gw/0")
    await hangs_up(pbx)


async def test_why_no_other_worker_took_a_call_is_said_when_its_leg_fails_later() -> None:
    pbx = Neighbours(websocket=True, holds=True)
    pbx.starts_media = False
    pbx.arrive()
    await pbx.arrived()
    await until(lambda: pbx.steps.count("acquire") == 2, "a look for another worker")
    await asyncio.sleep(0.1)
    media = pbx.media
    assert media is not None
    never_connected = ChannelDestroyed(**pbx._about(media), cause=3, cause_txt="No route to destination")
    del pbx.channels[media]
    pbx.emit(never_connected)
    await pbx.over()
    row = nothing_left(pbx)
    assert row.reason == "media_failed"
    assert "; no other worker: " in (row.detail or "")


async def test_a_worker_that_fails_is_not_tried_again_because_an_earlier_run_of_it_was_gone() -> None:
    pbx = Neighbours(websocket=True, connects_websockets=False)
    pbx.controller._live.services.gone["gw/0"] = pbx.run - 1
    pbx.arrive()
    await pbx.arrived()
    await pbx.over()
    row = nothing_left(pbx)
    assert row.reason == "media_failed"
    assert "; no other worker: " in (row.detail or "")
    assert pbx.steps.count("external_websocket") == 1
