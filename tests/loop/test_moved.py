"""A worker and calls that are given from one worker to another: those that come to it, and those that went while it did
not answer."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from audiosocket import readiness
from audiosocket.callspec import LegOrder
from tests.media import call_spec
from tests.worker_rig import Rig, rig, until

pytestmark = [pytest.mark.loop, pytest.mark.virtual_time]


@pytest_asyncio.fixture
async def media() -> AsyncIterator[Rig]:
    async with rig(drain_seconds=0.5) as running:
        await until(lambda: running.worker.readiness.announced and running.source.order, "announced")
        yield running


def order(media: Rig, wanted: LegOrder) -> None:
    assert media.source.order is not None
    media.source.order(wanted)


async def test_a_call_that_comes_from_another_worker_begins_here(media: Rig) -> None:
    channel = await media.talking(leg_number=3, begins=True, lease_token=7, leg_hold_seconds=5.0)
    (call,) = media.worker.calls.values()
    assert media.worker.held() == {call.spec.call_id: 7}
    order(media, LegOrder(leg_uuid=call.spec.leg_uuid, order="lost", leg_number=3))
    await until(lambda: media.source.notices, "the loss")
    assert (media.source.notices[-1].event, media.source.notices[-1].leg_number) == ("leg_lost", 3)
    leg = str(uuid.uuid4())
    media.source.specs[leg] = call_spec(call_id=call.spec.call_id, leg_uuid=leg, leg_number=4)
    further = await media.connect(leg)
    await until(lambda: call.figures().legs_replaced == 1, "the next leg")
    await channel.hang_up()
    await further.hang_up()
    report = await media.report()
    assert (report.leg_uuid, report.lease_token) == (call.spec.leg_uuid, 7)


async def test_a_worker_that_did_not_answer_for_a_while_ends_what_is_not_its_own(
    media: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readiness, "OVERDUE_SECONDS", 0.0)
    await media.talking(lease_token=1)
    kept = await media.talking(lease_token=2)
    first, second = media.worker.calls.values()
    await media.worker.readiness.announce()
    assert len(media.worker.calls) == 2
    media.source.away = {first.spec.call_id}
    await media.worker.readiness.announce()
    await until(lambda: media.source.reports, "the report of the one")
    (report,) = media.source.reports
    assert (report.call_id, report.reason.value) == (first.spec.call_id, "leg_closed")
    assert len(await until(lambda: media.app.events("stop"), "stop message")) == 1
    await until(lambda: list(media.worker.calls) == [second.spec.call_id], "the other one alone")
    await kept.hang_up()


async def test_a_worker_that_is_in_time_asks_nobody(media: Rig) -> None:
    channel = await media.talking()
    media.source.away = set(media.worker.calls)
    await media.worker.readiness.announce()
    await media.worker.readiness.announce()
    assert len(media.worker.calls) == 1
    await channel.hang_up()


async def test_a_call_that_comes_back_takes_the_place_of_its_former_self(media: Rig) -> None:
    await media.talking(lease_token=1)
    (former,) = media.worker.calls.values()
    for token, taken in ((1, False), (2, True)):
        leg = str(uuid.uuid4())
        media.source.specs[leg] = call_spec(
            call_id=former.spec.call_id, leg_uuid=leg, url=media.app.url, begins=True, leg_number=1, lease_token=token
        )
        await media.connect(leg)
        if taken:
            await until(lambda: media.source.reports, "the report of the former")
        else:
            await until(lambda: media.worker.refused.get("duplicate"), "the refusal")
    (now,) = media.worker.calls.values()
    assert now is not former
    assert media.source.reports[0].lease_token == 1
    await until(lambda: len(media.app.events("start")) == 2, "a stream of its own")


async def test_a_worker_says_that_it_has_not_had_a_call_and_nothing_of_one_that_it_had(media: Rig) -> None:
    channel = await media.talking()
    (call,) = media.worker.calls.values()
    await channel.hang_up()
    await media.report()
    order(media, LegOrder(leg_uuid=call.spec.leg_uuid, order="lost", call_id=call.spec.call_id, report_stream="r"))
    order(media, LegOrder(leg_uuid="x", order="end"))
    assert not media.source.not_had
    order(media, LegOrder(leg_uuid="x", order="lost", call_id="never here", report_stream="r"))
    assert media.source.not_had == ["never here"]
