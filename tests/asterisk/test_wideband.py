"""Applications at 16 and 24 kHz on calls of 8 kHz: Asterisk resamples, both ways, and a tone stays the tone it is."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator

import numpy as np
import pytest
import pytest_asyncio

from tests.live import Live, caller, leg, live_system
from tests.worker_rig import until
from tools.asterisk.install import AsteriskInstall
from tools.asterisk.local import free_ports
from tools.audio.tones import dominant_frequency, tone, tone_share
from tools.sip.sipp import Call, Ending

pytestmark = [pytest.mark.asterisk, pytest.mark.asyncio(loop_scope="module")]

NUMBERS = {16000: "+918000000016", 24000: "+918000000024"}


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["audiosocket", "websocket"])
async def system(
    request: pytest.FixtureRequest, asterisk_install: AsteriskInstall, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Live]:
    (port,) = free_ports(1)
    changes = {
        "applications": {
            "wide16": {"url": f"ws://127.0.0.1:{port}/bot", "sample_rate": 16000},
            "wide24": {"url": f"ws://127.0.0.1:{port}/bot?sample-rate=24000"},
        },
        "routes": [
            {"did": NUMBERS[16000], "application": "wide16"},
            {"did": NUMBERS[24000], "application": "wide24"},
        ],
        **leg(request.param),
    }
    async with live_system(asterisk_install, tmp_path_factory.mktemp("wideband"), changes=changes, port=port) as live:
        yield live


@pytest_asyncio.fixture(loop_scope="module")
async def live(system: Live) -> AsyncIterator[Live]:
    async with system.fresh():
        yield system


async def talking(live: Live, rate: int, codec: str) -> Call:
    call: Call = getattr(live, codec).call(NUMBERS[rate], caller())
    await call.answered()
    await until(lambda: live.app.events("start"), "start message")
    return call


def payloads(live: Live) -> list[bytes]:
    return [base64.b64decode(message["media"]["payload"]) for message in live.app.events("media")]


@pytest.mark.parametrize("codec", ["ulaw", "alaw"])
@pytest.mark.parametrize("rate", NUMBERS)
async def test_tones_arrive_as_themselves_both_ways(live: Live, rate: int, codec: str) -> None:
    call = await talking(live, rate, codec)
    call.peer.play(tone(425, 2))
    # The highest that the telephone carries, so that a wrong rate would be heard as anything but this.
    await live.app.say(tone(3000, 2, rate).tobytes())
    await live.app.send({"event": "mark", "mark": {"name": "end"}})
    await until(lambda: live.app.events("mark"), "mark behind the tone")
    await asyncio.sleep(0.5)
    assert await call.hang_up() is Ending.BY_US
    (start,) = live.app.events("start")
    assert start["start"]["media_format"] == {
        "encoding": "base64",
        "sample_rate": str(rate),
        "bit_rate": f"{rate * 16 // 1000}kbps",
    }
    assert {len(payload) for payload in payloads(live)} == {rate // 25}
    at_application = np.frombuffer(b"".join(payloads(live)), "<i2")
    assert dominant_frequency(at_application, rate) == pytest.approx(425, abs=2)
    assert tone_share(at_application, 425, rate) > 0.98
    loud = np.flatnonzero(np.abs(at_application.astype(int)) > 500)
    assert (loud[-1] - loud[0]) / rate == pytest.approx(2, abs=0.05)
    at_caller = call.peer.received_pcm()
    assert dominant_frequency(at_caller) == pytest.approx(3000, abs=2)
    assert tone_share(at_caller, 3000) > 0.98
    loud = np.flatnonzero(np.abs(at_caller.astype(int)) > 500)
    assert (loud[-1] - loud[0]) / 8000 == pytest.approx(2, abs=0.1)
    row = await live.record(call)
    assert (row.result, row.reason) == ("success", "caller_hangup")
    assert row.media is not None
    assert (row.media.frames_played, row.media.underruns, row.media.frames_dropped) == (100, 0, {})
    assert abs(row.media.caller_talk_ms - 2000) <= 100
    assert abs(row.media.app_talk_ms - 2000) <= 40


@pytest.mark.parametrize("rate", NUMBERS)
async def test_barge_in_silences_the_caller(live: Live, rate: int) -> None:
    call = await talking(live, rate, "ulaw")
    await live.app.say(tone(700, 10, rate).tobytes())
    await live.app.send({"event": "mark", "mark": {"name": "never heard"}})
    await asyncio.sleep(1)
    cleared = asyncio.get_running_loop().time()
    await live.app.send({"event": "clear"})
    await until(lambda: live.app.events("mark"), "pending mark")
    await asyncio.sleep(0.6)
    before = call.peer.received_pcm(start=cleared - 0.5, seconds=0.4)
    assert dominant_frequency(before) == pytest.approx(700, abs=5)
    after = call.peer.received_pcm(start=cleared + 0.2, seconds=0.3)
    assert np.abs(after.astype(int)).max(initial=0) < 100
    await call.hang_up()
