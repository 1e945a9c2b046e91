"""A worker whose media legs are lost: it holds the call, and another leg takes their place."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import numpy as np
import pytest
import pytest_asyncio

from audiosocket import wire
from audiosocket.callspec import CallSpec, EndReason, LegOrder, MediaFormat
from audiosocket.errors import Unavailable
from tests.loop.test_rtp_leg import frame, heard, peer
from tests.loop.test_rtp_leg import talking as talking_by_rtp
from tests.media import call_spec
from tests.worker_rig import Asterisk, Rig, rig, until
from tools.asterisk.local import free_ports
from tools.audio.tones import tone

pytestmark = [pytest.mark.loop, pytest.mark.virtual_time]

RESET = struct.pack("ii", 1, 0)
TONE = tone(400, 0.02).tobytes()


@pytest_asyncio.fixture
async def media() -> AsyncIterator[Rig]:
    async with rig(drain_seconds=0.5) as running:
        await until(lambda: running.worker.readiness.announced and running.source.order, "announced")
        yield running


async def talking(media: Rig, **changes: Any) -> tuple[CallSpec, Asterisk]:
    """A call that is held when it loses its leg, and whose stream has started."""
    before = len(media.app.events("start"))
    spec = media.source.announce_call(**({"url": media.app.url, "leg_hold_seconds": 5.0} | changes))
    channel = await media.connect(spec.leg_uuid)
    await until(lambda: len(media.app.events("start")) > before, "start message")
    return spec, channel


def reset(channel: Asterisk) -> None:
    connection = channel.writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    channel.writer.transport.abort()


async def lost(media: Rig, channel: Asterisk, how: str = "reset", number: int = 0) -> None:
    """Breaks a leg, and waits for the worker to say so."""
    before = len(media.source.notices)
    if how == "reset":
        reset(channel)
    elif how == "fin":
        channel.writer.close()
    else:
        channel.send(0x42, b"")
        channel.send(wire.KIND_UUID, bytes(16))
    await until(lambda: len(media.source.notices) > before, "notice of the loss")
    notice = media.source.notices[-1]
    assert (notice.event, notice.leg_number) == ("leg_lost", number)


def announce(media: Rig, spec: CallSpec, number: int, **changes: Any) -> str:
    """Announces a further leg of a call; its UUID."""
    leg = str(uuid.uuid4())
    media.source.specs[leg] = call_spec(**({"call_id": spec.call_id, "leg_uuid": leg, "leg_number": number} | changes))
    return leg


async def another(media: Rig, spec: CallSpec, number: int = 1) -> Asterisk:
    """Another leg of a call, which carries it."""
    replaced = media.worker.totals().legs_replaced
    channel = await media.connect(announce(media, spec, number))
    await until(lambda: media.worker.totals().legs_replaced > replaced, "leg replaced")
    return channel


def order(media: Rig, spec: CallSpec, what: str, number: int = 0) -> None:
    assert media.source.order is not None
    media.source.order(LegOrder(leg_uuid=spec.leg_uuid, order=what, leg_number=number))  # type: ignore[arg-type]


@pytest.mark.parametrize("how", ["reset", "fin", "nonsense"])
async def test_another_leg_takes_the_place_of_a_lost_one(media: Rig, how: str) -> None:
    spec, channel = await talking(media)
    await channel.talk(5)
    await lost(media, channel, how)
    assert media.worker.active == 1
    second = await another(media, spec)
    await second.talk(5, b"\x12" * 160)
    await media.app.say(TONE * 5)
    await until(lambda: len(second.audio()) >= 5, "the application's audio on the new leg")
    await until(lambda: len(media.app.events("media")) >= 10, "the caller's audio")
    assert len(media.app.sockets) == 1
    assert len(media.app.events("start")) == 1
    assert not media.app.events("stop")
    order(media, spec, "end")
    report = await media.report()
    assert (report.reason, report.leg_uuid) == (EndReason.LEG_CLOSED, spec.leg_uuid)
    assert report.figures.legs_replaced == 1
    assert 0 <= report.figures.leg_gap_ms < 2000
    (milestone,) = [each for each in report.milestones if each.event == "leg_replaced"]
    assert milestone.detail["gap_ms"] == report.figures.leg_gap_ms
    assert (milestone.detail["reason"] == "leg_protocol_error") is (how == "nonsense")


async def test_time_goes_on_in_the_gap(media: Rig) -> None:
    spec, channel = await talking(media, dialect="exotel")
    audio = np.arange(1, 101).repeat(160).astype("<i2")  # every frame says its number
    for at in range(0, 100, 10):
        await media.app.say(audio[at * 160 : at * 160 + 1600].tobytes())
        await media.app.send({"event": "mark", "mark": {"name": f"mark {at}"}})
    await until(lambda: len(channel.audio()) >= 10, "ten frames")
    await lost(media, channel)
    await asyncio.sleep(0.4)
    second = await another(media, spec)
    await until(lambda: len(media.app.events("mark")) == 10, "all marks")
    assert [each["mark"]["name"] for each in media.app.events("mark")] == [f"mark {at}" for at in range(0, 100, 10)]
    heard = [int(np.frombuffer(frame, "<i2")[0]) for frame in channel.audio() + second.audio()]
    figures = media.worker.totals()
    assert heard == sorted(set(heard))
    assert heard[-1] == 100
    missing = figures.frames_dropped["leg_lost"]
    assert missing * 20 == pytest.approx(figures.leg_gap_ms, abs=20)
    assert figures.leg_gap_ms >= 380
    assert figures.frames_played + missing == 100
    # What was in the broken connection besides is lost, too.
    assert len(heard) == pytest.approx(100 - missing, abs=5)
    order(media, spec, "end")
    await media.report()


async def test_the_application_gets_silence_in_the_gap(media: Rig) -> None:
    spec, channel = await talking(media)
    await channel.talk(5, b"\x12" * 160)
    await lost(media, channel)
    before = len(media.app.events("media"))
    await asyncio.sleep(0.3)
    assert len(media.app.events("media")) - before >= 10
    second = await another(media, spec)
    await second.talk(10, b"\x12" * 160)
    order(media, spec, "end")
    report = await media.report()
    assert report.figures.caller_frames == 15


async def test_a_leg_is_lost_again_and_again(media: Rig) -> None:
    spec, channel = await talking(media)
    for number in range(1, 6):
        await lost(media, channel, number=number - 1)
        channel = await another(media, spec, number)
    order(media, spec, "end")
    report = await media.report()
    assert report.figures.legs_replaced == 5
    assert len(media.app.sockets) == 1


async def test_the_time_runs_out(media: Rig) -> None:
    spec, channel = await talking(media, leg_hold_seconds=0.3)
    began = time.monotonic()
    await lost(media, channel)
    report = await media.report()
    assert time.monotonic() - began >= 0.3
    assert report.reason is EndReason.LEG_CLOSED
    assert [each.event for each in report.milestones][-2:] == ["leg_not_replaced", "ended"]
    assert report.figures.legs_replaced == report.figures.leg_gap_ms == 0
    await until(lambda: media.app.events("stop"), "stop message")
    late = await media.connect(announce(media, spec, 1))
    await late.ended()
    assert media.worker.refused == {"not_held": 1}


@pytest.mark.parametrize("after", ["before the loss is seen", "while it is held"])
async def test_the_caller_hangs_up(media: Rig, after: str) -> None:
    spec, channel = await talking(media)
    if after == "while it is held":
        await lost(media, channel)
    order(media, spec, "end")
    report = await media.report()
    assert (report.reason, report.detail) == (EndReason.LEG_CLOSED, "the controller said so")
    await until(lambda: media.app.events("stop"), "stop message")
    assert media.app.events("stop")[0]["stop"]["reason"] == "callended"
    assert {each.event for each in report.milestones}.isdisjoint({"leg_replaced", "leg_not_replaced"})
    await channel.ended()


async def test_the_application_ends_while_the_call_is_held(media: Rig) -> None:
    _, channel = await talking(media)
    await lost(media, channel)
    await media.app.sockets[-1].close()
    assert (await media.report()).reason is EndReason.APP_CLOSED


async def test_the_application_fails_while_the_call_is_held_and_its_prompt_ends(media: Rig) -> None:
    spec, channel = await talking(media)
    await lost(media, channel)
    assert media.app.requests[-1].transport is not None
    media.app.requests[-1].transport.abort()
    await until(lambda: not any(call.status()["connected"] for call in media.worker.calls.values()), "the failure")
    second = await another(media, spec)
    await until(lambda: second.hung_up, "the end of the tone")
    assert second.audio()
    report = await media.report()
    assert (report.reason, report.failed) == (EndReason.APP_LOST, True)


async def test_a_stranger_gets_nothing_with_any_uuid(media: Rig) -> None:
    spec, channel = await talking(media)
    await lost(media, channel)
    for leg in (spec.leg_uuid, str(uuid.uuid4())):
        stranger = await media.connect(leg)
        await stranger.ended()
    assert media.worker.refused == {"unknown": 2}
    leg = announce(media, spec, 1)
    second = await media.connect(leg)
    await until(lambda: media.worker.totals().legs_replaced, "leg replaced")
    twice = await media.connect(leg)
    await twice.ended()
    await media.app.say(TONE * 3)
    await until(lambda: second.audio(), "the application on the right leg")
    assert not twice.audio()
    order(media, spec, "end")
    await media.report()


async def test_a_connection_that_comes_late_replaces_nothing(media: Rig) -> None:
    spec, channel = await talking(media)
    await lost(media, channel)
    stale, other = announce(media, spec, 1), announce(media, spec, 3, media_format=MediaFormat.SLIN16)
    second = await another(media, spec, 2)
    for leg in (stale, other):
        late = await media.connect(leg)
        await late.ended()
    assert media.worker.refused == {"stale": 1, "other_format": 1}
    await media.app.say(TONE * 3)
    await until(lambda: second.audio(), "the application on the leg that it has")
    order(media, spec, "end")
    await media.report()


async def test_another_leg_may_come_before_the_loss_is_seen(media: Rig) -> None:
    spec, channel = await talking(media)
    second = await another(media, spec)
    await channel.ended()
    await media.app.say(TONE * 3)
    await until(lambda: second.audio(), "the application on the new leg")
    assert not media.source.notices
    order(media, spec, "end")
    report = await media.report()
    assert (report.figures.legs_replaced, report.figures.leg_gap_ms) == (1, 0)


async def test_what_only_asterisk_sees_it_tells_the_worker(media: Rig) -> None:
    spec, channel = await talking(media)
    order(media, spec, "lost")
    await until(lambda: media.source.notices, "notice")
    order(media, spec, "lost")
    await until(lambda: len(media.source.notices) == 2, "another, for the first may have been missed")
    second = await another(media, spec)
    order(media, spec, "lost", 0)
    await media.app.say(TONE * 3)
    await until(lambda: second.audio(), "the leg that was not meant lives")
    assert len(media.source.notices) == 2
    order(media, spec, "end")
    await media.report()
    await channel.ended()


async def test_who_says_that_he_hangs_up_is_believed(media: Rig) -> None:
    _, channel = await talking(media)
    channel.send(wire.KIND_HANGUP, b"")
    report = await media.report()
    assert (report.reason, report.detail) == (EndReason.LEG_CLOSED, "hang-up frame")
    assert not media.source.notices


async def test_a_call_that_is_not_to_be_held_ends_with_its_leg(media: Rig) -> None:
    _, channel = await talking(media, leg_hold_seconds=0.0)
    reset(channel)
    assert (await media.report()).reason is EndReason.LEG_CLOSED
    assert not media.source.notices


async def test_nothing_is_held_that_nobody_can_be_told_of(media: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    _, channel = await talking(media)

    async def unheard(info: object) -> None:
        raise Unavailable("scripted")

    monkeypatch.setattr(media.source, "announce", unheard)
    await until(lambda: not media.worker.readiness.announced, "not announced", 5)
    reset(channel)
    assert (await media.report()).reason is EndReason.LEG_CLOSED


async def test_a_worker_that_drains_waits_for_the_leg_and_not_for_ever(media: Rig) -> None:
    spec, channel = await talking(media)
    await lost(media, channel)
    media.stop.requested.set()
    await until(lambda: media.worker.draining, "draining")
    second = await another(media, spec)
    await media.app.say(TONE * 3)
    await until(lambda: second.audio(), "the application on the new leg")
    await lost(media, second, number=1)
    assert (await media.report()).reason is EndReason.WORKER_STOPPED


async def test_the_recording_is_in_step(media: Rig, tmp_path: Any) -> None:
    # Without recordings the session has no recorder: one that counts takes its place.
    class Counting:
        ticks = silent = 0

        def heard(self, payload: bytes) -> None:
            return None

        def tick(self, missed: int, sent: bytes) -> None:
            self.ticks += 1 + missed

        def unsent(self) -> None:
            self.silent += 1

    spec, channel = await talking(media)
    (call,) = media.worker.calls.values()
    assert call._session is not None
    recorder = Counting()
    call._session.recorder = recorder  # type: ignore[assignment]
    began = call._session.ticks
    await lost(media, channel)
    await asyncio.sleep(0.2)
    await another(media, spec)
    await asyncio.sleep(0.2)
    assert recorder.ticks == call._session.ticks - began
    assert 5 < recorder.silent < recorder.ticks
    call._session.recorder = None
    order(media, spec, "end")
    await media.report()


async def test_the_status_and_the_metrics_tell_of_it() -> None:
    (port,) = free_ports(1)
    async with rig(status_host="127.0.0.1", status_port=port) as media, aiohttp.ClientSession() as http:
        await until(lambda: media.worker.readiness.announced, "announced")
        spec, channel = await talking(media)
        await lost(media, channel)
        async with http.get(f"http://127.0.0.1:{port}/calls") as answer:
            assert [call["leg_lost"] for call in await answer.json()] == [True]
        await another(media, spec)
        async with http.get(f"http://127.0.0.1:{port}/calls") as answer:
            assert [call["leg_lost"] for call in await answer.json()] == [False]
        async with http.get(f"http://127.0.0.1:{port}/metrics") as answer:
            text = await answer.text()
        assert "trunkbridge_media_legs_replaced_total 1.0" in text
        assert "trunkbridge_media_leg_gap_seconds_total 0." in text
        order(media, spec, "end")
        await media.report()


@pytest.mark.parametrize("how", ["port closed", "told"])
async def test_an_rtp_leg_takes_the_place_of_a_lost_one(how: str) -> None:
    async with rig(rtp_host="127.0.0.1") as media, peer(media.worker) as first, peer(media.worker) as second:
        await until(lambda: media.worker.readiness.announced, "announced")
        spec = await talking_by_rtp(media, first, leg_hold_seconds=5.0)
        for number in range(5):
            first.send(frame(number), skip=number == 3)
        await until(lambda: media.worker.totals().caller_frames == 5, "five packets")
        if how == "port closed":
            first.transport.close()
        else:
            order(media, spec, "lost")
        await until(lambda: media.source.notices[-1].event == "leg_lost", "notice of the loss")
        leg = announce(media, spec, 1)
        assert media.source.order is not None
        last = first.packets[-1]
        remote = f"127.0.0.1:{second.port}"
        media.source.order(LegOrder(leg_uuid=leg, order="open", remote=remote, media_format=spec.media_format))
        await until(lambda: media.source.notices[-1].event == "attached", "notice of the new leg")
        notice = media.source.notices[-1]
        assert (notice.leg_uuid, notice.leg_number) == (spec.leg_uuid, 1)
        before = len(heard(media))
        for number in range(5):
            second.send(frame(7), skip=number == 2)
        await until(lambda: len(heard(media)) >= before + 5 * 320, "the caller on the new leg")
        await media.app.say(TONE * 3)
        await until(lambda: sum(len(set(packet.payload)) > 4 for packet in second.packets) == 3, "the application")
        packet = second.packets[0]
        passed = packet.arrived_at - last.arrived_at
        assert (packet.timestamp - last.timestamp) % 2**32 == pytest.approx(passed * 8000, abs=400), "no leap"
        order(media, spec, "end")
        figures = (await media.report()).figures
        assert figures.legs_replaced == 1
        assert figures.caller_frames == 10
        assert figures.caller_frames_lost == 2, "what was lost on both legs"
        assert len(media.app.sockets) == 1
