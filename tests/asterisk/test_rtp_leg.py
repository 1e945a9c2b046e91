"""Calls over RTP media legs, through a real Asterisk: what is heard, which digits come, and every end."""

from __future__ import annotations

import asyncio
import base64
import itertools
from collections.abc import AsyncIterator

import numpy as np
import pytest
import pytest_asyncio

from tests.live import SCRIPTED, Live, live_system
from tests.worker_rig import until
from tools.asterisk.install import AsteriskInstall
from tools.asterisk.local import free_ports
from tools.audio.tones import dominant_frequency, tone, tone_share
from tools.sip.sipp import Call, Carrier, Ending

pytestmark = [pytest.mark.asterisk, pytest.mark.asyncio(loop_scope="module")]


_numbers = itertools.count(1)


def caller() -> str:
    """A number of its own for every call: it finds the call's record."""
    return f"+9190001{next(_numbers):05d}"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def system(asterisk_install: AsteriskInstall, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Live]:
    rtp = free_ports(4)[0]
    changes = {"gateway": {"rtp_listen": f"127.0.0.1:{rtp}", "workers": 1}}
    async with live_system(asterisk_install, tmp_path_factory.mktemp("rtp"), calls=60, changes=changes) as live:
        yield live


@pytest_asyncio.fixture(loop_scope="module")
async def live(system: Live) -> AsyncIterator[Live]:
    """The system, whose application is fresh, and on which nothing may be left by a test."""
    app = system.app
    app.messages.clear()
    app.sockets.clear()
    app.requests.clear()
    app.behave = app.before_upgrade = None
    app.closed = 0
    yield system
    await system.nothing_left()


async def talking(live: Live, number: str = SCRIPTED, carrier: Carrier | None = None) -> Call:
    """A call whose stream to the scripted application has started."""
    before = len(live.app.events("start"))
    call = (carrier or live.ulaw).call(number, caller())
    await call.answered()
    await until(lambda: len(live.app.events("start")) > before, "start message")
    names = [channel.name for channel in await live.ari.list_channels()]
    assert any(name.startswith("UnicastRTP/") for name in names), names
    return call


def heard_by_app(live: Live) -> np.ndarray:
    payloads = [base64.b64decode(message["media"]["payload"]) for message in live.app.events("media")]
    return np.frombuffer(b"".join(payloads), "<i2")


@pytest.mark.parametrize("codec", ["ulaw", "alaw"])
async def test_tones_arrive_as_themselves_both_ways(live: Live, codec: str) -> None:
    call = await talking(live, carrier=getattr(live, codec))
    call.peer.play(tone(425, 2))
    await live.app.say(tone(1000, 2).tobytes())
    await asyncio.sleep(2.5)
    assert await call.hang_up() is Ending.BY_US
    at_application = heard_by_app(live)
    assert dominant_frequency(at_application) == pytest.approx(425, abs=2)
    assert tone_share(at_application, 425) > 0.98
    at_caller = call.peer.received_pcm()
    assert dominant_frequency(at_caller) == pytest.approx(1000, abs=2)
    assert tone_share(at_caller, 1000) > 0.98
    row = await live.record(call)
    assert (row.trunk, row.result, row.reason, row.hangup_cause) == (f"carrier-{codec}", "success", "caller_hangup", 16)
    assert row.media is not None
    assert (row.media.frames_played, row.media.caller_frames_lost) == (100, 0)
    assert row.media.caller_frames_dropped.keys() <= {"before_start"}


async def test_thirty_seconds_at_once_are_played_at_20_ms_a_frame(live: Live) -> None:
    call = await talking(live)
    # A sweep of tones, one a second, so that order and completeness can be heard.
    audio = np.concatenate([tone(300 + 50 * second, 1) for second in range(30)])
    pcm = audio.astype("<i2").tobytes()
    for at in range(0, len(pcm), 3200):
        await live.app.say(pcm[at : at + 3200])
    await live.app.send({"event": "mark", "mark": {"name": "all played"}})
    await until(lambda: live.app.events("mark"), "mark after 30 s", 40)
    await call.hang_up()
    row = await live.record(call)
    assert row.media is not None
    assert (row.media.frames_played, row.media.frames_dropped) == (1500, {})
    received = call.peer.received_pcm_by_timestamp()
    loud = np.flatnonzero(np.abs(received.astype(int)) > 500)
    heard = received[loud[0] : loud[-1]]
    assert len(heard) == pytest.approx(30 * 8000, rel=0.01)
    for second in range(30):
        piece = heard[second * 8000 + 2000 : second * 8000 + 6000]
        assert dominant_frequency(piece) == pytest.approx(300 + 50 * second, abs=4)


async def test_digits_reach_the_application_once(live: Live) -> None:
    call = await talking(live)
    for digit in "15#":
        await call.peer.send_dtmf(digit).wait()
        await asyncio.sleep(0.1)
    await until(lambda: len(live.app.events("dtmf")) >= 3, "three digits")
    await asyncio.sleep(0.3)
    assert [message["dtmf"]["digit"] for message in live.app.events("dtmf")] == ["1", "5", "#"]
    assert np.abs(heard_by_app(live).astype(int)).max() < 100, "and their sound does not"
    await call.hang_up()
    media = (await live.record(call)).media
    assert media is not None
    assert (media.digits, media.caller_frames_lost) == (3, 0)


async def test_the_caller_hangs_up(live: Live) -> None:
    call = await talking(live)
    await call.hang_up()
    await until(lambda: live.app.closed, "application's socket closed")
    assert live.app.messages[-1]["event"] == "stop"
    assert live.app.messages[-1]["stop"]["reason"] == "callended"
    assert live.app.close_code == 1000
    row = await live.record(call)
    assert (row.result, row.reason) == ("success", "caller_hangup")


async def test_the_application_closes(live: Live) -> None:
    call = await talking(live)
    await live.app.sockets[-1].close()
    assert await call.ended() is Ending.BY_THEM
    row = await live.record(call)
    assert (row.result, row.reason, row.detail) == ("success", "application_ended", "close code 1000")


async def test_a_media_channel_that_goes_is_replaced(live: Live) -> None:
    call = await talking(live)
    call.peer.play(tone(425, 3))
    await live.app.say(tone(1000, 3).tobytes())
    for number in range(2):
        await asyncio.sleep(0.8)
        (media,) = [one for one in await live.ari.list_channels() if one.name.startswith("UnicastRTP/")]
        assert media.id.endswith(f"-{number}")
        await live.ari.hangup(media.id)
    await asyncio.sleep(2.5)
    assert len(live.app.sockets) == 1
    assert await call.hang_up() is Ending.BY_US
    row = await live.record(call)
    assert (row.result, row.reason) == ("success", "caller_hangup")
    assert row.media is not None
    assert row.media.legs_replaced == 2
    assert row.media.leg_gap_ms <= 600
    assert row.media.frames_played + row.media.frames_dropped.get("leg_lost", 0) == 150
    for samples, hz in ((call.peer.received_pcm_by_timestamp(), 1000), (heard_by_app(live), 425)):
        frames = samples[: len(samples) // 160 * 160].reshape(-1, 160)
        assert np.count_nonzero(np.abs(frames.astype(int)).max(axis=1) > 1000) * 0.02 >= 3 - 2 * 0.3
        assert dominant_frequency(samples) == pytest.approx(hz, abs=3)


async def test_ten_calls_at_once_are_kept_apart(live: Live) -> None:
    calls = [await talking(live) for _ in range(10)]
    for number, socket in enumerate(live.app.sockets):
        await socket.send_json(
            {"event": "media", "media": {"payload": base64.b64encode(tone(400 + 100 * number, 1).tobytes()).decode()}}
        )
    for number, call in enumerate(calls):
        call.peer.play(tone(450 + 100 * number, 1))
    await asyncio.sleep(1.5)
    sids = [message["stream_sid"] for message in live.app.events("start")]
    for number, call in enumerate(calls):
        assert dominant_frequency(call.peer.received_pcm()) == pytest.approx(400 + 100 * number, abs=4)
        own = [one for one in live.app.events("media") if one["stream_sid"] == sids[number]]
        pcm = np.frombuffer(b"".join(base64.b64decode(one["media"]["payload"]) for one in own), "<i2")
        assert dominant_frequency(pcm) == pytest.approx(450 + 100 * number, abs=4)
    await asyncio.gather(*(call.hang_up() for call in calls))


async def test_a_call_whose_worker_is_killed_ends(live: Live) -> None:
    call = await talking(live)
    (worker,) = live.system.workers
    await worker.kill()
    assert await call.ended() is Ending.BY_THEM
    row = await live.record(call)
    assert (row.result, row.reason) == ("server_error", "media_lost")
    await worker.start()
