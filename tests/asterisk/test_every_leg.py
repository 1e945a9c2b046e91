"""The same calls over every kind of media leg, through a real Asterisk: what is heard, which digits come, every end."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
from collections.abc import AsyncIterator

import numpy as np
import pytest
import pytest_asyncio
from aiohttp import web

from tests.live import ECHO, SCRIPTED, Live, caller, leg, live_system, loud_packets
from tests.worker_rig import until
from tools.asterisk.install import AsteriskInstall
from tools.asterisk.local import merge
from tools.audio.tones import dominant_frequency, tone, tone_share
from tools.sip.sipp import Ending

CHANNELS = {"audiosocket": "AudioSocket/", "rtp": "UnicastRTP/", "websocket": "WebSocket/"}
"""How Asterisk names the media channels of a kind."""
SLIN = "+918000000020"
"""The scripted application, on a route whose media leg is to carry slin."""
CONNECTED, SPEAKING = "+918000000120", "+918000000121"
"""Numbers that ring until the application is connected, or speaks."""
ROUTES = [
    {"did": SCRIPTED, "application": "scripted"},
    {"did": SLIN, "application": "scripted", "media_format": "slin"},
    {"did": ECHO, "application": "echo"},
    {"did": CONNECTED, "application": "scripted", "answer": "when_connected", "answer_within_seconds": 30},
    {"did": SPEAKING, "application": "scripted", "answer": "when_speaking", "answer_within_seconds": 30},
]

pytestmark = [pytest.mark.asterisk, pytest.mark.asyncio(loop_scope="module")]
every = pytest.mark.parametrize("system", CHANNELS, indirect=True, scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def system(
    request: pytest.FixtureRequest, asterisk_install: AsteriskInstall, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[str, Live]]:
    changes = merge({"gateway": {"workers": 1}, "routes": ROUTES}, leg(request.param))
    async with live_system(asterisk_install, tmp_path_factory.mktemp("legs"), calls=60, changes=changes) as live:
        yield request.param, live


@pytest_asyncio.fixture(loop_scope="module")
async def live(system: tuple[str, Live]) -> AsyncIterator[Live]:
    async with system[1].fresh():
        yield system[1]


@pytest.fixture
def kind(system: tuple[str, Live]) -> str:
    return system[0]


async def media_channel(live: Live, kind: str) -> str:
    """The id of the one media channel."""
    names = {channel.id: channel.name for channel in await live.ari.list_channels()}
    (found,) = [channel for channel, name in names.items() if name.startswith(CHANNELS[kind])]
    return found


@every
@pytest.mark.parametrize("codec", ["ulaw", "alaw"])
async def test_tones_arrive_as_themselves_both_ways(live: Live, kind: str, codec: str) -> None:
    call = await live.talking(carrier=getattr(live, codec))
    assert await media_channel(live, kind)
    call.peer.play(tone(425, 2))
    await live.app.say(tone(1000, 2).tobytes())
    await asyncio.sleep(2.5)
    assert await call.hang_up() is Ending.BY_US
    at_application = live.heard_by_app()
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


async def say(socket: web.WebSocketResponse, pcm: bytes) -> None:
    await socket.send_json({"event": "media", "media": {"payload": base64.b64encode(pcm).decode()}})


@pytest.mark.parametrize("system", ["rtp", "websocket"], indirect=True, scope="module")
async def test_half_a_minute_that_comes_at_once_is_played_to_its_end_at_20_ms_a_frame(live: Live, kind: str) -> None:
    """In one message, and in three hundred; over legs of either kind, and over AudioSocket, which carries slin where
    the other legs are RTP. All at once."""
    seconds = 30
    calls = []
    for number, dialled in enumerate((SCRIPTED, SCRIPTED, SLIN, SLIN)):
        call = await live.talking(dialled)
        # A sweep of tones, one a second, so that order and completeness can be heard.
        tones = [300 + 50 * second + 12 * number for second in range(seconds)]
        calls.append((call, live.app.sockets[-1], tones))
    names = [channel.name.partition("/")[0] for channel in await live.ari.list_channels()]
    carried = ["WebSocket"] * 4 if kind == "websocket" else ["AudioSocket"] * 2 + ["UnicastRTP"] * 2
    assert sorted(name for name in names if name != "PJSIP") == carried
    for number, (_, socket, tones) in enumerate(calls):
        pcm = np.concatenate([tone(hz, 1) for hz in tones]).astype("<i2").tobytes()
        size = 3200 if number % 2 else len(pcm)
        for at in range(0, len(pcm), size):
            await say(socket, pcm[at : at + size])
        await socket.send_json({"event": "mark", "mark": {"name": "all played"}})
    await until(lambda: len(live.app.events("mark")) == len(calls), "marks after the audio", seconds + 10)
    await asyncio.gather(*(call.hang_up() for call, _, _ in calls))
    for call, _, tones in calls:
        row = await live.record(call)
        assert row.media is not None
        assert (row.media.frames_played, row.media.frames_dropped) == (50 * seconds, {})
        assert 1000 * (seconds - 1) <= row.media.playout_peak_ms <= 1000 * seconds
        received = call.peer.received_pcm_by_timestamp()
        loud = np.flatnonzero(np.abs(received.astype(int)) > 500)
        heard = received[loud[0] : loud[-1]]
        assert len(heard) == pytest.approx(seconds * 8000, rel=0.01)
        for second, hz in enumerate(tones):
            piece = heard[second * 8000 + 2000 : second * 8000 + 6000]
            assert dominant_frequency(piece) == pytest.approx(hz, abs=4)


@every
async def test_half_a_minute_that_comes_at_once_is_held(live: Live) -> None:
    call = await live.talking()
    pcm = tone(600, 30).astype("<i2").tobytes()
    for at in range(0, len(pcm), 3200):
        await live.app.say(pcm[at : at + 3200])
    await asyncio.sleep(1.5)
    await live.app.send({"event": "mark", "mark": {"name": "not reached"}})
    assert dominant_frequency(call.peer.received_pcm()) == pytest.approx(600, abs=2)
    await call.hang_up()
    media = (await live.record(call)).media
    assert media is not None
    assert not media.frames_dropped.keys() & {"overrun"}
    assert 25_000 <= media.playout_peak_ms <= 30_000, "while it comes it is played already"
    assert media.frames_played >= 50


@every
async def test_digits_reach_the_application_once(live: Live) -> None:
    call = await live.talking()
    for digit in "15#":
        await call.peer.send_dtmf(digit).wait()
        await asyncio.sleep(0.1)
    await until(lambda: len(live.app.events("dtmf")) >= 3, "three digits")
    await asyncio.sleep(0.3)
    assert [message["dtmf"]["digit"] for message in live.app.events("dtmf")] == ["1", "5", "#"]
    assert np.abs(live.heard_by_app().astype(int)).max() < 100, "and their sound does not"
    await call.hang_up()
    media = (await live.record(call)).media
    assert media is not None
    assert (media.digits, media.caller_frames_lost) == (3, 0)


@every
async def test_the_caller_hangs_up(live: Live) -> None:
    call = await live.talking()
    await call.hang_up()
    await until(lambda: live.app.closed, "application's socket closed")
    assert live.app.messages[-1]["event"] == "stop"
    assert live.app.messages[-1]["stop"]["reason"] == "callended"
    assert live.app.close_code == 1000
    row = await live.record(call)
    assert (row.result, row.reason) == ("success", "caller_hangup")


@every
async def test_the_application_closes(live: Live) -> None:
    call = await live.talking()
    await live.app.sockets[-1].close()
    assert await call.ended() is Ending.BY_THEM
    row = await live.record(call)
    assert (row.result, row.reason, row.detail) == ("success", "application_ended", "close code 1000")


@every
async def test_a_media_channel_that_goes_is_replaced(live: Live, kind: str) -> None:
    call = await live.joined(await live.talking())
    call.peer.play(tone(425, 3))
    await live.app.say(tone(1000, 3).tobytes())
    for number in range(2):
        await asyncio.sleep(0.8)
        media = await media_channel(live, kind)
        assert media.endswith(f"-{number}")
        await live.ari.hangup(media)
    await asyncio.sleep(2.5)
    assert len(live.app.sockets) == 1
    assert await call.hang_up() is Ending.BY_US
    row = await live.record(call)
    assert (row.result, row.reason) == ("success", "caller_hangup")
    assert row.media is not None
    assert row.media.legs_replaced == 2
    assert row.media.leg_gap_ms <= 600
    assert row.media.frames_played + row.media.frames_dropped.get("leg_lost", 0) == 150
    for samples, hz in ((call.peer.received_pcm_by_timestamp(), 1000), (live.heard_by_app(), 425)):
        frames = samples[: len(samples) // 160 * 160].reshape(-1, 160)
        assert np.count_nonzero(np.abs(frames.astype(int)).max(axis=1) > 1000) * 0.02 >= 3 - 2 * 0.3
        assert dominant_frequency(samples) == pytest.approx(hz, abs=3)


@every
async def test_ten_calls_at_once_are_kept_apart(live: Live) -> None:
    # Which call is which stream is known by the caller's number alone.
    sockets: dict[str, web.WebSocketResponse] = {}

    async def behave(ws: web.WebSocketResponse) -> None:
        async for message in ws:
            told = json.loads(message.data)
            live.app.messages.append(told)
            if told["event"] == "start":
                sockets[told["start"]["from"]] = ws

    live.app.behave = behave
    calls = await asyncio.gather(*(live.talking() for _ in range(10)))
    await until(lambda: len(sockets) == 10, "ten streams")
    sids = {message["start"]["from"]: message["stream_sid"] for message in live.app.events("start")}
    for number, call in enumerate(calls):
        await sockets[call.caller].send_json(
            {"event": "media", "media": {"payload": base64.b64encode(tone(400 + 100 * number, 1).tobytes()).decode()}}
        )
        call.peer.play(tone(450 + 100 * number, 1))
    await asyncio.sleep(1.5)
    for number, call in enumerate(calls):
        assert dominant_frequency(call.peer.received_pcm()) == pytest.approx(400 + 100 * number, abs=4)
        heard = live.heard_by_app(sids[call.caller])
        assert dominant_frequency(heard) == pytest.approx(450 + 100 * number, abs=4)
    await asyncio.gather(*(call.hang_up() for call in calls))


@every
async def test_greetings_are_whole_when_many_calls_are_joined_at_once(live: Live) -> None:
    word = base64.b64encode(tone(850, 0.4).tobytes()).decode()

    async def greet_at_once(ws: web.WebSocketResponse) -> None:
        await ws.send_json({"event": "media", "media": {"payload": word}})

    live.app.behave = greet_at_once
    calls = [live.ulaw.call(SCRIPTED, caller()) for _ in range(20)]
    await asyncio.gather(*(call.answered() for call in calls))
    await until(lambda: len(live.app.events("start")) == 20, "twenty streams")
    await asyncio.sleep(1)
    await asyncio.gather(*(call.hang_up() for call in calls))
    for call in calls:
        loud = [pcm for _, pcm in loud_packets(call)]
        assert len(loud) == 20, (await live.record(call)).media  # what of it was dropped or merged, and why
        assert dominant_frequency(np.concatenate(loud)) == pytest.approx(850, abs=3)


@every
@pytest.mark.parametrize("number", [CONNECTED, SPEAKING], ids=["when connected", "when speaking"])
@pytest.mark.parametrize("freezes", [False, True], ids=["", "controller frozen"])
async def test_the_first_word_of_both_is_whole_where_the_caller_rings(live: Live, number: str, freezes: bool) -> None:
    """The application speaks at its handshake, the caller from the 200 on. At the 200 all is done for them to hear each
    other: a controller that freezes then takes nothing from it."""
    word = base64.b64encode(tone(850, 0.4).tobytes()).decode()

    async def greet_at_once(ws: web.WebSocketResponse) -> None:
        await ws.send_json({"event": "media", "media": {"payload": word}})
        async for message in ws:
            live.app.messages.append(json.loads(message.data))

    live.app.behave = greet_at_once
    call = live.ulaw.call(number, caller())
    # Noise, of which no frame is like another.
    says = call.peer.play(np.random.default_rng(1).integers(-8000, 8000, 40 * 160, dtype=np.int16))
    said = call.peer.codec.decode(says.encoded).reshape(-1, 160)
    await call.answered()
    controller = live.system.controller
    try:
        if freezes:
            os.kill(controller.pid, signal.SIGSTOP)
        await until(lambda: len(live.heard_by_app()) >= (len(said) + 10) * 160, "what the caller says", 20)
        await until(lambda: len(loud_packets(call)) >= 20, "what the application says", 20)
    finally:
        os.kill(controller.pid, signal.SIGCONT)
    await asyncio.sleep(0.1)
    await call.hang_up()
    media = (await live.record(call)).media
    assert media is not None
    loud = [pcm for _, pcm in loud_packets(call)]
    assert len(loud) == 20
    assert dominant_frequency(np.concatenate(loud)) == pytest.approx(850, abs=3)
    heard = {frame.tobytes() for frame in live.heard_by_app().reshape(-1, 160)}
    missing = [index for index, frame in enumerate(said) if frame.tobytes() not in heard]
    # What a standstill of the machine makes too old is dropped, and counted. Nothing else may be missing.
    assert media.caller_frames_dropped.keys() <= {"stale"}
    assert len(missing) <= media.caller_frames_dropped.get("stale", 0), missing


@every
async def test_freezes_of_the_worker_leave_no_delay(live: Live) -> None:
    await freezes_leave_no_delay(live, live.system.workers[0].pid)


@pytest.mark.parametrize("system", ["websocket"], indirect=True, scope="module")
async def test_freezes_of_asterisk_leave_no_delay_in_its_queue(live: Live) -> None:
    await freezes_leave_no_delay(live, live.system.asterisk.pid)


async def freezes_leave_no_delay(live: Live, pid: int) -> None:
    """Three freezes of 300 ms: the echo is back to its former delay within two seconds."""
    call = live.ulaw.call(ECHO, caller())
    await call.answered()
    await asyncio.sleep(0.5)
    beeps = np.zeros(8 * 8000, dtype=np.int16)
    for at in range(0, len(beeps), 2000):  # a short beep every 250 ms
        beeps[at : at + 400] = tone(1000, 0.05)[:400]
    began = asyncio.get_running_loop().time()
    call.peer.play(beeps)
    await asyncio.sleep(2)
    for _ in range(3):
        os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(0.3)
        os.kill(pid, signal.SIGCONT)
        await asyncio.sleep(0.3)
    await asyncio.sleep(5)
    received = call.peer.received_pcm(start=began, seconds=8.5)
    await call.hang_up()
    before = beep_delay(received, 0.5, 1.9)
    after = beep_delay(received, 5.9, 7.9)
    assert after - before < 0.06, f"delay before {before * 1000:.0f} ms, after {after * 1000:.0f} ms"


def beep_delay(received: np.ndarray, begin: float, end: float) -> float:
    """How long after the multiples of 250 ms the beeps are heard, in the median (seconds)."""
    loud = np.abs(received.astype(int)) > 2000
    starts = [index for index in np.flatnonzero(loud) if not loud[max(0, index - 400) : index].any()]
    found = [index / 8000 % 0.25 for index in starts if begin * 8000 <= index < end * 8000]
    assert len(found) >= 4, f"heard {len(found)} beeps"
    return float(np.median(found))


@every
async def test_a_stopped_worker_drains(live: Live) -> None:
    call = await live.talking()
    worker = live.system.workers[0]
    stopping = asyncio.create_task(worker.stop())
    await until(lambda: "worker_draining" in worker.text(), "draining")
    call.peer.play(tone(500, 1))
    await asyncio.sleep(1.2)
    assert dominant_frequency(live.heard_by_app()) == pytest.approx(500, abs=2)
    await call.hang_up()
    await stopping
    assert (await live.record(call)).reason == "caller_hangup"
    await worker.start()


@every
async def test_a_call_whose_worker_is_killed_ends_when_there_is_no_other(live: Live, kind: str) -> None:
    call = await live.talking()
    (worker,) = live.system.workers
    await worker.kill()
    # It is registered for a moment yet: Asterisk cannot connect, and the next caller does not wait either.
    late = live.ulaw.call(SCRIPTED, caller()) if kind == "websocket" else None
    assert await call.ended(20) is Ending.BY_THEM
    row = await live.record(call)
    assert (row.result, row.reason) == ("server_error", "media_lost")
    if late is not None:
        row = await live.record(late)
        assert (row.result, row.reason) == ("server_error", "media_failed")
        assert (row.detail or "").startswith("Asterisk could not connect a WebSocket to the worker; no other worker")
    await worker.start()
