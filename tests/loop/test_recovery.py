"""What a controller finds when it starts, and an Asterisk or a PostgreSQL that does not answer: calls are served and
kept meanwhile, and nothing is ended that may be a call."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest
import pytest_asyncio
from msgspec.structs import replace

from ari_app.ari.errors import AriRejected, AriUnavailable
from ari_app.call.machine import State
from ari_app.controller import late_reports
from ari_app.domain.ids import CallId, ChannelId, bridge_id
from ari_app.errors import StoreUnavailable
from ari_app.store.records import CallRow
from audiosocket.callspec import EndReason
from tests.fake_call import CALLER, Fault, Neighbours, channel
from tests.loop.test_actor import ORPHANS_GONE_SECONDS, ari, lives, media_of, nothing_left, raises, record, up
from tests.media import call_spec
from tests.worker_rig import until

pytestmark = [pytest.mark.loop, pytest.mark.virtual_time]

STRAY = media_of("6f1c1f52-3b1e-4a55-9d2e-000000000009")


@pytest_asyncio.fixture
async def pbx() -> Neighbours:
    return Neighbours()


@asynccontextmanager
async def beside(*parts: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Long-running parts of the controller."""
    tasks = [asyncio.ensure_future(part()) for part in parts]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


# PostgreSQL away


async def test_a_late_report_waits_for_the_records_and_nobody_waits_with_it(
    pbx: Neighbours, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(late_reports, "ASK_SECONDS", 0.02)
    monkeypatch.setattr(late_reports, "RETRY_SECONDS", 0.02)
    await pbx.controller.on_connected()
    pbx.reports = False
    await up(pbx)
    await pbx.order_hangup()
    await pbx.over()
    pbx.controller.live.unreported.clear()  # as for a controller that was started since
    answers = asyncio.Event()
    known = pbx.records.get_call

    async def silent(call_id: str) -> CallRow | None:
        await answers.wait()
        return await known(call_id)

    monkeypatch.setattr(pbx.records, "get_call", silent)
    late = pbx.controller.late
    (spec,) = pbx.specs.values()
    report = pbx.report_of(spec, EndReason.APP_CLOSED)
    for _ in range(50):
        await pbx.controller.on_report(report)
    settled = asyncio.create_task(late.settled())
    async with beside(late.run):
        await asyncio.sleep(0)
        assert not settled.done()
        assert pbx.records.rows[-1].media is None
        answers.set()
        await settled
    assert pbx.records.rows[-1].media is not None


async def test_calls_are_adopted_as_soon_as_postgresql_answers(pbx: Neighbours) -> None:
    row = record(1, State.TALKING)
    lives(pbx, row)
    pbx.records.error = StoreUnavailable("postgres", "scripted")
    pbx.channels[STRAY] = channel(STRAY)
    async with beside(pbx.controller.take_early_reports):
        await pbx.controller.on_connected()
        # New calls are served meanwhile, and whatever else there is may be a call.
        pbx.arrive()
        await pbx.arrived()
        await pbx.talking()
        assert pbx.controller.active == 1
        await asyncio.sleep(ORPHANS_GONE_SECONDS)
        assert len(pbx.channels) == 5
        # A report of a call that is not known yet waits until it is.
        assert row.leg_uuid is not None
        pbx.specs["leg"] = call_spec(call_id=row.call_id, leg_uuid=row.leg_uuid)
        await pbx.controller.on_report(pbx.report_of(pbx.specs["leg"], EndReason.LEG_CLOSED))
        assert not any(event.call_id == row.call_id for event in pbx.records.events)
        # One of this run's ends before PostgreSQL is back, whose record there is older than what is known here.
        pbx.destroy(CALLER, requested=True)
        await until(lambda: pbx.records.closed, "the new call's end")
        older = dataclasses.replace(pbx.records.closed[0], state=State.TALKING.value, ended_at=None)
        pbx.records.open.append(older)
        pbx.records.error = None
        await until(lambda: row.call_id in pbx.controller._live.actors, "the adoption, without another connection")
        await until(lambda: STRAY not in pbx.channels, "the orphan's end")
        assert pbx.controller.active == 1
        assert len(pbx.channels) == 2
        await pbx.order_hangup()
        await pbx.over()
    assert len(pbx.records.closed) == 2
    assert pbx.records.closed[-1].media is not None
    assert "media_ended" in [event.event for event in pbx.records.events if event.call_id == row.call_id]


async def test_a_hanging_postgresql_holds_up_no_new_call(pbx: Neighbours, monkeypatch: pytest.MonkeyPatch) -> None:
    row = record(1, State.TALKING)
    lives(pbx, row)
    answers = asyncio.Event()
    read = pbx.records.open_calls

    async def slow(node: str) -> list[CallRow]:
        await answers.wait()
        return await read(node)

    monkeypatch.setattr(pbx.records, "open_calls", slow)
    await pbx.controller.on_connected()
    assert pbx.controller.connected.is_set()
    assert not pbx.controller.adopted.is_set()
    # The caller of a call that is not known yet hangs up: nobody is there to be told.
    assert row.caller_channel_id is not None
    pbx.destroy(row.caller_channel_id)
    await asyncio.sleep(0)
    pbx.reports = False
    answers.set()
    await until(lambda: pbx.records.closed, "the end of the call that was gone")
    assert pbx.records.closed[0].reason == "gone_unseen"
    await pbx.over()
    nothing_left(pbx)


async def test_a_caller_who_goes_while_his_call_is_being_adopted(pbx: Neighbours) -> None:
    row = record(1, State.TALKING)
    lives(pbx, row)
    pbx.records.error = StoreUnavailable("postgres", "scripted")
    await pbx.controller.on_connected()

    async def goes(pbx: Neighbours) -> None:
        # What Asterisk has listed is on its way when he goes; his event comes before anybody knows his call.
        assert row.caller_channel_id is not None
        pbx.destroy(row.caller_channel_id)
        await asyncio.sleep(0.01)

    pbx.reports = False
    pbx.faults["list_channels"] = Fault(after=goes)
    pbx.records.error = None
    await until(lambda: pbx.records.closed, "the end")
    assert pbx.records.closed[0].reason == "gone_unseen"
    await pbx.over()
    nothing_left(pbx)


# Calls that were left in the middle of something


async def test_a_call_that_was_left_beside_its_bridge_is_put_into_it(pbx: Neighbours) -> None:
    """A controller may die between making another media leg and putting it where the caller waits."""
    row = record(1, State.TALKING)
    lives(pbx, row, together=False)
    await pbx.controller.on_connected()
    bridge = bridge_id("pbx-1", CallId(row.call_id))
    await until(lambda: pbx.bridges[bridge] == {row.caller_channel_id, media_of(row.call_id)}, "both in the bridge")
    assert "bridge_mended" in [event.event for event in pbx.records.events]
    pbx.reports = False
    await pbx.order_hangup()
    await pbx.over()
    assert nothing_left(pbx).reason == "operator_hangup"


async def test_a_bridge_that_cannot_be_mended_ends_the_call(pbx: Neighbours) -> None:
    row = record(1, State.TALKING)
    lives(pbx, row, together=False)
    pbx.faults["add_to_bridge"] = Fault(before=raises(ari(AriRejected, 500)))
    pbx.reports = False
    await pbx.controller.on_connected()
    await pbx.over()
    assert nothing_left(pbx).reason == "media_lost"


async def test_a_caller_whom_nobody_has_done_anything_for_gets_his_call(pbx: Neighbours) -> None:
    """He came in the moment in which the earlier controller died: there is no record, and no event any more."""
    pbx.channels[CALLER] = channel(CALLER)
    answered = ChannelId("1795226880.97")
    pbx.channels[answered] = replace(channel(answered), state="Up")
    await pbx.controller.on_connected()
    async with beside(pbx.controller.end_leftovers):
        await until(lambda: answered not in pbx.channels, "the end of the one who was answered")
        await pbx.talking()
        assert pbx.controller.active == 1
        (lost,) = pbx.records.closed
        assert (lost.caller_channel_id, lost.result, lost.reason) == (answered, "server_error", "controller_restarted")
        await pbx.order_hangup()
        await pbx.over()
    assert not pbx.channels
    assert {row.reason for row in pbx.records.closed} == {"controller_restarted", "operator_hangup"}


async def test_a_caller_whose_call_is_over_is_hung_up_and_nothing_else(pbx: Neighbours) -> None:
    ended = dataclasses.replace(
        record(1, State.ENDED), ended_at=datetime.now(UTC), created_at=datetime.now(UTC) + timedelta(seconds=1)
    )
    assert ended.caller_channel_id is not None
    pbx.channels[ended.caller_channel_id] = channel(ended.caller_channel_id)
    pbx.records.rows.append(ended)
    await pbx.controller.on_connected()
    await until(lambda: not pbx.channels, "his end")
    await pbx.over()
    assert pbx.records.rows == [ended]


async def test_a_controller_that_is_stopped_finishes_what_its_calls_are_at(pbx: Neighbours) -> None:
    reached, goes_on = asyncio.Event(), asyncio.Event()

    async def wait(_pbx: Neighbours) -> None:
        reached.set()
        await goes_on.wait()

    await pbx.controller.on_connected()
    pbx.faults["external_media"] = Fault(before=wait)
    pbx.arrive()
    await reached.wait()
    settling = asyncio.create_task(pbx.controller.settle())
    await asyncio.sleep(0.05)
    assert not settling.done()
    pbx.arrive("1795226880.96")  # the next one's
    goes_on.set()
    await settling
    assert [actor.machine.state for actor in pbx.controller.live.actors.values()] == [State.TALKING]
    await pbx.controller.stop()
    assert not pbx.records.closed


async def test_it_does_not_wait_for_long(pbx: Neighbours) -> None:
    await pbx.controller.on_connected()
    pbx.starts_media = False
    pbx.arrive()
    await until(lambda: pbx.media, "the media channel")
    async with asyncio.timeout(5):
        await pbx.controller.settle()
    await pbx.controller.stop()
    assert not pbx.records.closed


# An Asterisk that does not answer


def trip(pbx: Neighbours) -> None:
    """Opens the breaker."""
    while not pbx.breaker.open:
        pbx.breaker.record(True, time.monotonic())


async def test_an_asterisk_that_does_not_answer_gets_no_new_call_and_keeps_those_it_has(pbx: Neighbours) -> None:
    await pbx.controller.on_connected()
    first = await up(pbx)
    trip(pbx)
    assert pbx.controller.why_not_accepting == "Asterisk does not answer in time"
    before = list(pbx.steps)
    async with beside(pbx.controller.end_leftovers):
        pbx.arrive("1795226880.99")
        await until(lambda: pbx.records.closed, "the refusal")
        await until(lambda: "1795226880.99" not in pbx.channels, "its channel's end")
    refused = pbx.records.closed[0]
    assert (refused.result, refused.reason, refused.hangup_cause) == ("server_error", "asterisk_slow", 42)
    assert pbx.causes["1795226880.99"] == 42
    assert pbx.steps[len(before) :] == ["hangup_caller"], "no lease, no answer: one request"
    assert pbx.controller._live.actors[first].machine.state is State.TALKING
    # Two answers in a row to its probes, and calls come in again.
    pbx.faults["ping"] = Fault(before=raises(ari(AriUnavailable, 0)), times=3)
    async with beside(pbx.controller.watch_asterisk):
        await until(lambda: not pbx.breaker.open, "closed")
    assert pbx.steps.count("ping") == 5
    assert pbx.controller.why_not_accepting == ""
    pbx.arrive("1795226880.98")
    await until(lambda: pbx.controller.active == 2, "another call")
    await pbx.talking()
    await pbx.order_hangup()
    await pbx.over()
    assert not pbx.channels
    assert not pbx.held


async def test_a_call_that_ends_meanwhile_is_torn_down_in_good_time(pbx: Neighbours) -> None:
    await pbx.controller.on_connected()
    await up(pbx)
    trip(pbx)
    before = len(pbx.steps)
    await pbx.order_hangup()
    await until(lambda: pbx.records.closed, "its record")
    assert [step for step in pbx.steps[before:] if step.startswith("hangup")] == [], "left to whoever takes his time"
    pbx.faults["hangup_caller"] = Fault(before=raises(ari(AriUnavailable, 0)), times=4)
    async with beside(pbx.controller.end_leftovers):
        await until(lambda: not len(pbx.controller.live.leftovers), "the end of all")
    await pbx.over()
    assert nothing_left(pbx).reason == "operator_hangup"


async def test_what_could_not_be_ended_is_until_it_is_gone(pbx: Neighbours) -> None:
    await pbx.controller.on_connected()
    await up(pbx)
    for step in ("hangup_caller", "hangup_media", "destroy_bridge"):
        pbx.faults[step] = Fault(before=raises(ari(AriUnavailable, 0)), times=4)
    await pbx.order_hangup()
    await pbx.over()
    assert len(pbx.channels) == 2
    assert len(pbx.bridges) == 1
    assert len(pbx.controller.live.leftovers) == 3
    async with beside(pbx.controller.end_leftovers):
        await until(lambda: not len(pbx.controller.live.leftovers), "the end of all")
    assert not pbx.channels
    assert not pbx.bridges


async def test_a_connection_that_is_made_anew_closes_the_breaker(pbx: Neighbours) -> None:
    await pbx.controller.on_connected()
    trip(pbx)
    pbx.controller.on_lost("scripted")
    assert pbx.controller.why_not_accepting == "not connected to Asterisk's events"
    await pbx.controller.on_connected()
    assert not pbx.breaker.open
    assert pbx.controller.why_not_accepting == ""
