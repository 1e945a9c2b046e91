"""A recorded call through a real Asterisk: who is on which side, how well the sides align, what a crash leaves."""

from __future__ import annotations

import asyncio
import time
import wave
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from audiosocket.recording import folder
from tests.live import ECHO, SCRIPTED, Live, live_system
from tests.worker_rig import until
from tools.asterisk.install import AsteriskInstall
from tools.audio.tones import dominant_frequency, tone, tone_share
from tools.sip.sipp import Call, Ending

pytestmark = [pytest.mark.asterisk, pytest.mark.asyncio(loop_scope="module")]

CLICK = np.concatenate((np.full(8, 20_000), np.zeros(152))).astype(np.int16)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def system(asterisk_install: AsteriskInstall, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Live]:
    recorded = {"applications": {"scripted": {"record": True}, "echo": {"record": True}}}
    async with live_system(asterisk_install, tmp_path_factory.mktemp("recording"), changes=recorded) as live:
        yield live


@pytest_asyncio.fixture(loop_scope="module")
async def live(system: Live) -> AsyncIterator[Live]:
    async with system.fresh():
        yield system


def sides(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    with wave.open(str(path)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (2, 2, 8000)
        both = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, 2)
    return both[:, 0], both[:, 1]


def onsets(side: np.ndarray) -> np.ndarray:
    """When the clicks of a side begin, in seconds."""
    (loud,) = np.nonzero(np.abs(side.astype(int)) > 9000)
    return np.array([at for at, before in zip(loud, [-160, *loud], strict=False) if at - before > 80]) / 8000


def echoes(call: Call) -> np.ndarray:
    """When the clicks came back to the caller."""
    codec = call.peer.codec
    loud = [packet for packet in call.peer.audio() if np.abs(codec.decode(packet.payload).astype(int)).max() > 9000]
    return np.array([packet.arrived_at for packet in loud])


async def test_tones_and_clicks_of_both_sides_lie_where_they_were_heard(live: Live) -> None:
    speaking = live.ulaw.call(SCRIPTED, "+919000000001")
    clicking = live.alaw.call(ECHO, "+919000000002")
    await asyncio.gather(speaking.answered(), clicking.answered())
    await until(lambda: live.app.events("start"), "start message")
    speaking.peer.play(tone(440, 3))
    await live.app.say(tone(1300, 3).tobytes())
    clicks = []
    for number in range(8):
        await asyncio.sleep(0.35 + 0.037 * number)
        clicks.append(clicking.peer.play(CLICK))
    await until(lambda: len(echoes(clicking)) == 8, "all echoes")
    await asyncio.gather(speaking.hang_up(), clicking.hang_up())

    recording = (await live.record(speaking)).recording
    assert recording is not None
    assert Path(recording).is_relative_to(live.system.config.state_dir / "recordings")
    for side, hz in zip(sides(recording), (440, 1300), strict=True):
        assert dominant_frequency(side) == pytest.approx(hz, abs=3)
        (loud,) = np.nonzero(np.abs(side.astype(int)) > 300)
        assert tone_share(side[loud[0] : loud[-1]], hz) > 0.99
        assert (loud[-1] - loud[0]) / 8000 == pytest.approx(3, abs=0.1)

    recording = (await live.record(clicking)).recording
    assert recording is not None
    left, right = map(onsets, sides(recording))
    sent, heard = np.array([click.started_at for click in clicks]), echoes(clicking)
    assert len(left) == len(right) == 8
    # The recording tells each echo's delay as the caller's own telephone measured it.
    off = (right - left) - (heard - sent)
    assert np.median(np.abs(off)) <= 0.010
    assert np.abs(off).max() <= 0.020
    assert np.abs((left - left[0]) - (sent - sent[0])).max() <= 0.020
    await live.nothing_left()


async def test_a_killed_worker_s_recording_is_whole_after_its_next_start(live: Live) -> None:
    call = live.ulaw.call(SCRIPTED, "+919000000003")
    await call.answered()
    await until(lambda: live.app.events("start"), "start message")
    began = time.monotonic()
    call.peer.play(tone(440, 10))
    await live.app.say(tone(1300, 10).tobytes())
    await asyncio.sleep(4)
    await live.system.workers[0].kill()
    spoken = time.monotonic() - began
    assert await call.ended(20) is Ending.BY_THEM
    row = await live.record(call)
    assert (row.reason, row.recording) == ("media_lost", None)
    await live.system.workers[0].start()
    directory = live.system.config.state_dir / "recordings" / folder.today().isoformat()
    whole = directory / f"{row.call_sid}.wav"
    await until(whole.exists, "repaired at the start")
    left, right = sides(whole)
    assert len(left) / 8000 >= spoken - 1.5
    steady = slice(8000, len(left) - 800)
    assert tone_share(left[steady], 440) > 0.99
    assert tone_share(right[steady], 1300) > 0.99
    assert not list(directory.glob("*.part"))
