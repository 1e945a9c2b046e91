"""What the caller hears of an application's audio, by the RTP that reaches the telephone: whole, cut, and followed by
its mark."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from statistics import median

import numpy as np
import pytest
import pytest_asyncio
from aiohttp import WSMsgType, web

from tests.live import LOUD, SCRIPTED, Live, caller, leg, live_system, loud_packets
from tests.worker_rig import until
from tools.asterisk.install import AsteriskInstall
from tools.audio.tones import dominant_frequency, tone
from tools.sip.sipp import Call

pytestmark = [pytest.mark.asterisk, pytest.mark.asyncio(loop_scope="module")]

FADED = "+918000000020"
"""The scripted application with fades as they are by default, where the others have none."""


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["audiosocket", "rtp", "websocket"])
async def system(
    request: pytest.FixtureRequest, asterisk_install: AsteriskInstall, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Live]:
    routes = [{"did": SCRIPTED, "application": "scripted"}, {"did": FADED, "application": "faded"}]
    changes, folder = leg(request.param) | {"routes": routes}, tmp_path_factory.mktemp("playout")
    async with live_system(asterisk_install, folder, changes=changes, applications={"faded": {}}) as live:
        yield live


@pytest_asyncio.fixture(loop_scope="module")
async def live(system: Live) -> AsyncIterator[Live]:
    async with system.fresh():
        yield system


@dataclass
class Heard:
    """What the application is told, with the time at which it came."""

    marks: list[tuple[float, str]] = field(default_factory=list)
    digits: list[str] = field(default_factory=list)
    started: bool = False

    async def behave(self, ws: web.WebSocketResponse) -> None:
        loop = asyncio.get_running_loop()
        async for message in ws:
            if message.type is not WSMsgType.TEXT:
                return
            told = json.loads(message.data)
            if told["event"] == "mark":
                self.marks.append((loop.time(), told["mark"]["name"]))
            elif told["event"] == "dtmf":
                self.digits.append(told["dtmf"]["digit"])
            elif told["event"] == "start":
                self.started = True


async def talking(live: Live, number: str = SCRIPTED) -> tuple[Call, Heard]:
    heard = Heard()
    live.app.behave = heard.behave
    call = live.ulaw.call(number, caller())
    await call.answered()
    await until(lambda: heard.started, "start message")
    return call, heard


async def speak(live: Live, pcm: bytes, chunk: int, every: float) -> None:
    """`chunk` bytes every `every` seconds, on absolute deadlines."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    for number, at in enumerate(range(0, len(pcm), chunk)):
        await asyncio.sleep(max(0.0, began + number * every - loop.time()))
        await live.app.say(pcm[at : at + chunk])


@pytest.mark.parametrize("every", [0.04 / 0.9, 0.04 * 0.9, 0.04 / 2], ids=["0.9 of the speed", "0.9 of the time", "2x"])
async def test_a_greeting_in_chunks_of_40_ms_is_heard_whole_and_in_order(live: Live, every: float) -> None:
    call, heard = await talking(live)
    seconds = 5
    greeting = np.concatenate([tone(400 + 100 * second, 1) for second in range(seconds)]).astype("<i2").tobytes()
    await speak(live, greeting, 640, every)
    await live.app.send({"event": "mark", "mark": {"name": "end"}})
    await until(lambda: heard.marks, "mark behind the greeting")
    # Over a WebSocket leg the last of it may still be in Asterisk's queue.
    await until(lambda: len(loud_packets(call)) >= seconds * 50, "the last packet of the greeting")
    await call.hang_up()
    row = await live.record(call)
    assert row.media is not None
    assert (row.media.frames_played, row.media.frames_dropped) == (seconds * 50, {})
    packets = loud_packets(call)
    assert len(packets) == seconds * 50
    for second in range(seconds):
        piece = [pcm for _, pcm in packets[second * 50 : (second + 1) * 50]]
        # Where the application is late there are pauses between packets, but within one all is as it was sent.
        found = [dominant_frequency(pcm) for pcm in piece]
        assert median(found) == pytest.approx(400 + 100 * second, abs=40)


async def test_the_first_word_of_the_greeting_is_whole(live: Live) -> None:
    heard = Heard()
    word = tone(850, 0.4).astype("<i2").tobytes()

    async def greet_at_once(ws: web.WebSocketResponse) -> None:
        await live.app.say(word)
        await heard.behave(ws)

    live.app.behave = greet_at_once
    call = live.ulaw.call(SCRIPTED, caller())
    await call.answered()
    await until(lambda: heard.started, "start message")
    await asyncio.sleep(1)
    await call.hang_up()
    packets = loud_packets(call)
    assert len(packets) == 20
    assert dominant_frequency(np.concatenate([pcm for _, pcm in packets])) == pytest.approx(850, abs=3)


@pytest.mark.parametrize(("dialled", "times"), [(SCRIPTED, 7), (FADED, 3)], ids=["cut", "faded"])
async def test_a_clear_is_heard_within_60_ms_and_the_pending_marks_come_in_order(
    live: Live, dialled: str, times: int
) -> None:
    call, heard = await talking(live, dialled)
    loop = asyncio.get_running_loop()
    took, endings = [], []
    for number in range(times):
        for part in range(3):
            await live.app.say(tone(700, 5).tobytes())
            await live.app.send({"event": "mark", "mark": {"name": f"{number}.{part}"}})
        await asyncio.sleep(0.4 + 0.003 * number)
        cleared = loop.time()
        await live.app.send({"event": "clear"})
        await asyncio.sleep(0.4)
        last, ending = loud_packets(call)[-1]
        took.append(last - cleared)
        endings.append(ending)
        assert [name for _, name in heard.marks[-3:]] == [f"{number}.0", f"{number}.1", f"{number}.2"]
    assert len(heard.marks) == 3 * times
    await call.hang_up()
    assert max(took) <= 0.060, [round(value * 1000) for value in took]
    for ending in endings:
        # 5 ms of sound and no more where it is faded, a whole frame where it is not.
        assert np.abs(ending[:40].astype(int)).max() > LOUD
        assert (np.abs(ending[40:].astype(int)).max() < 100) == (dialled == FADED)


async def test_a_mark_comes_within_40_ms_of_the_last_frame_of_its_audio(live: Live) -> None:
    call, heard = await talking(live)
    took = []
    for number in range(7):
        await live.app.say(tone(700, 0.3).tobytes())
        await live.app.send({"event": "mark", "mark": {"name": str(number)}})
        await until(lambda number=number: len(heard.marks) == number + 1, "mark")
        await asyncio.sleep(0.2)
        took.append(heard.marks[-1][0] - max(at for at, _ in loud_packets(call)))
    await call.hang_up()
    # Not before its audio was sent, and not long behind. Asterisk's own queue holds up to two frames.
    early = 0.005 if live.system.config.gateway.websocket_listen is None else 0.045
    assert all(value > -early for value in took), took
    assert max(took) <= 0.040, [round(value * 1000) for value in took]


async def test_digits_pressed_during_a_greeting_come_once(live: Live) -> None:
    call, heard = await talking(live)
    await live.app.say(tone(700, 3).tobytes())
    for digit in "1*5#":
        await call.peer.send_dtmf(digit).wait()
        await asyncio.sleep(0.1)
    await until(lambda: len(heard.digits) >= 4, "digits")
    await asyncio.sleep(0.3)
    assert heard.digits == ["1", "*", "5", "#"]
    await call.hang_up()
