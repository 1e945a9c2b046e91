"""A recorded call through a real Asterisk: who is on which side, how well the sides align, what a crash leaves."""

from __future__ import annotations

import asyncio
import json
import re
import time
import wave
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from ari_app.store.records import RecordingPart
from audiosocket.recording import folder
from tests.asterisk.test_calls import trunkbridge
from tests.live import ECHO, SCRIPTED, Live, leg, live_system
from tests.worker_rig import until
from tools.asterisk.install import AsteriskInstall
from tools.asterisk.local import merge
from tools.audio.tones import dominant_frequency, tone, tone_share
from tools.sip.sipp import Call, Ending

pytestmark = [pytest.mark.asterisk, pytest.mark.asyncio(loop_scope="module")]

LEVELS = np.geomspace(10_000, 28_000, 8)
"""How loud each click is: it is known by that, wherever it is heard."""


LEGS = {"audiosocket": (0.010, 0.020), "rtp": (0.020, 0.030), "websocket": (0.040, 0.050)}
"""How far apart the sides may seem to be, in the middle and at most (seconds): an RTP leg's frames are placed to 10 ms;
how much of the 40 ms of Asterisk's queue for a WebSocket leg is in use nobody tells; and the way from and to the caller
is measured here too."""
every = pytest.mark.parametrize("system", LEGS, indirect=True, scope="module")
one = pytest.mark.parametrize("system", ["audiosocket"], indirect=True, scope="module")


@dataclass
class Recorded:
    """What a test works with."""

    live: Live
    kind: str

    @property
    def directory(self) -> Path:
        return self.live.system.config.state_dir / "recordings"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def system(
    request: pytest.FixtureRequest, asterisk_install: AsteriskInstall, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Recorded]:
    recorded = {
        "gateway": {"workers": 2, "recordings": {"retain_days": 7}},
        "applications": {"scripted": {"record": True}, "echo": {"record": True}},
    }
    folder = tmp_path_factory.mktemp("recording")
    async with live_system(asterisk_install, folder, changes=merge(recorded, leg(request.param))) as live:
        yield Recorded(live, request.param)


@pytest_asyncio.fixture(loop_scope="module")
async def rec(system: Recorded) -> AsyncIterator[Recorded]:
    async with system.live.fresh():
        yield system
    for worker in system.live.system.workers:
        if not worker.running:
            await worker.start()


def sides(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    with wave.open(str(path)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (2, 2, 8000)
        both = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, 2)
    return both[:, 0], both[:, 1]


def click(number: int) -> np.ndarray:
    return np.concatenate((np.full(8, LEVELS[number]), np.zeros(152))).astype(np.int16)


def which(samples: np.ndarray) -> int | None:
    """The number of the click that is in some samples; None: there is none."""
    loudest = int(np.abs(samples.astype(int)).max(initial=0))
    return None if loudest < 9000 else int(np.abs(np.log(LEVELS / loudest)).argmin())


def onsets(side: np.ndarray) -> dict[int, float]:
    """When the clicks of a side begin, in seconds, by number."""
    (loud,) = np.nonzero(np.abs(side.astype(int)) > 9000)
    begin = [int(at) for at, before in zip(loud, [-160, *loud], strict=False) if at - before > 80]
    return {number: at / 8000 for at in begin if (number := which(side[at : at + 80])) is not None}


def echoes(call: Call) -> dict[int, float]:
    """When the clicks came back to the caller."""
    heard = [(which(call.peer.codec.decode(packet.payload)), packet.arrived_at) for packet in call.peer.audio()]
    return {number: at for number, at in heard if number is not None}


@every
async def test_tones_and_clicks_of_both_sides_lie_where_they_were_heard(rec: Recorded) -> None:
    live = rec.live
    speaking = live.ulaw.call(SCRIPTED, "+919000000001")
    clicking = live.alaw.call(ECHO, "+919000000002")
    await asyncio.gather(speaking.answered(), clicking.answered())
    await until(lambda: live.app.events("start"), "start message")
    speaking.peer.play(tone(440, 3))
    await live.app.say(tone(1300, 3).tobytes())
    clicks = {}
    lost = list(range(len(LEVELS)))
    for _ in range(4):
        for number in lost:
            await asyncio.sleep(0.35 + 0.037 * number)
            clicks[number] = clicking.peer.play(click(number))
        await asyncio.sleep(1)
        # What a machine that stood still has dropped is said again: when it was heard is what counts here.
        lost = [number for number in clicks if number not in echoes(clicking)]
        if not lost:
            break
    assert not lost
    await asyncio.gather(speaking.hang_up(), clicking.hang_up())

    recording = (await live.record(speaking)).recording
    assert recording is not None
    assert Path(recording).is_relative_to(rec.directory)
    for side, hz in zip(sides(recording), (440, 1300), strict=True):
        assert dominant_frequency(side) == pytest.approx(hz, abs=3)
        (loud,) = np.nonzero(np.abs(side.astype(int)) > 300)
        assert tone_share(side[loud[0] : loud[-1]], hz) > 0.99
        assert (loud[-1] - loud[0]) / 8000 == pytest.approx(3, abs=0.1)

    recording = (await live.record(clicking)).recording
    assert recording is not None
    sent = {number: played.started_at for number, played in clicks.items()}
    found = [*map(onsets, sides(recording)), sent, echoes(clicking)]
    assert [sorted(each) for each in found] == 4 * [list(range(len(LEVELS)))]
    left, right, sent, heard = (np.array([each[number] for number in range(len(LEVELS))]) for each in found)
    # The recording tells each echo's delay as the caller's own telephone measured it.
    off = (right - left) - (heard - sent)
    print(f"{rec.kind}: the sides are off by {np.round(off * 1000, 1)} ms")
    middle, most = LEGS[rec.kind]
    assert np.median(np.abs(off)) <= middle
    assert np.abs(off).max() <= most
    assert np.abs((left - left[0]) - (sent - sent[0])).max() <= 0.020
    await live.nothing_left()


@one
async def test_a_killed_worker_s_recording_is_whole_after_its_next_start(rec: Recorded) -> None:
    """Nobody else can take the call: the record names the file all the same."""
    live = rec.live
    call = live.ulaw.call(SCRIPTED, "+919000000003")
    await call.answered()
    await until(lambda: live.app.events("start"), "start message")
    began = time.monotonic()
    call.peer.play(tone(440, 30))
    await live.app.say(tone(1300, 30).tobytes())
    old = rec.directory / (folder.today() - timedelta(days=9)).isoformat() / f"{'0' * 32}.wav"
    old.parent.mkdir()
    old.write_bytes(b"old")
    part = Path(f"{(await begun(live, call))[0].recording}.part")
    await until(lambda: time.monotonic() - began > 4, "some seconds of it")
    spoken = 0.0

    def all_but_the_last() -> bool:
        nonlocal spoken
        spoken = time.monotonic() - began
        return part.stat().st_size / 32_000 >= spoken - 0.94

    await until(all_but_the_last, "what was said, written")
    await asyncio.gather(*(worker.kill() for worker in live.system.workers))
    assert await call.ended(20) is Ending.BY_THEM
    row = await live.record(call)
    assert row.reason == "media_lost"
    whole = rec.directory / folder.today().isoformat() / f"{row.call_sid}.wav"
    assert row.recording == str(whole)
    assert not whole.exists()
    for worker in live.system.workers:
        await worker.start()
    await until(whole.exists, "repaired at the start")
    left, right = sides(whole)
    assert len(left) / 8000 >= spoken - 0.95
    steady = slice(8000, len(left) - 800)
    assert tone_share(left[steady], 440) > 0.99
    assert tone_share(right[steady], 1300) > 0.99
    assert not list(whole.parent.glob("*.part"))
    await until(lambda: not old.parent.exists(), "what is too old, removed at the start")


@one
async def test_a_call_that_is_moved_has_all_parts_of_its_recording_in_its_record(rec: Recorded) -> None:
    live = rec.live
    call = live.ulaw.call(SCRIPTED, "+919000000004")
    await call.answered()
    await until(lambda: live.app.events("start"), "start message")
    call.peer.play(tone(440, 60))
    await live.app.say(tone(1300, 30).tobytes())
    (first,) = await begun(live, call)
    await asyncio.sleep(2)
    index = int(first.worker_id.rpartition("/")[2])
    await live.system.workers[index].kill()
    await until(lambda: len(live.app.events("start")) == 2, "the stream from the other worker")
    await live.app.say(tone(900, 2).tobytes())
    await asyncio.sleep(2)
    await begun(live, call, 2)
    await live.system.workers[index].start()
    await until(Path(first.recording).exists, "the first part, repaired")
    await call.hang_up()
    row = await live.record(call)
    assert (row.result, row.reason) == ("success", "caller_hangup")
    parts = row.recordings or ()
    assert parts[0] == first
    assert [part.worker_id for part in parts] == [first.worker_id, row.worker_id]
    assert row.worker_id != first.worker_id
    assert row.recording == parts[1].recording
    names = [Path(part.recording).name for part in parts]
    assert names[0] == f"{row.call_sid}.wav"
    assert re.fullmatch(rf"{row.call_sid}-\d+\.wav", names[1])
    for part, hz in zip(parts, (1300, 900), strict=True):
        left, right = sides(part.recording)
        assert dominant_frequency(left) == pytest.approx(440, abs=3)
        assert dominant_frequency(right) == pytest.approx(hz, abs=3)
    _, shown = await trunkbridge(live, "calls", "show", row.call_id)
    for number, part in enumerate(parts, start=1):
        assert f"recording {number}: {part.recording}, of {part.worker_id}, from " in shown
    _, listed = await trunkbridge(live, "calls", "list", "--caller", call.caller, "-o", "json")
    (shown_row,) = json.loads(listed)
    assert shown_row["recording"] == parts[1].recording
    assert [part["recording"] for part in shown_row["recordings"]] == [part.recording for part in parts]
    # Where the second part begins beside the first is told by the record: the caller's tone spans both.
    apart = (parts[1].began_at - parts[0].began_at).total_seconds()
    assert len(sides(parts[0].recording)[0]) / 8000 < apart


async def begun(live: Live, call: Call, count: int = 1) -> tuple[RecordingPart, ...]:
    """What the record says of the recording while the call lives."""
    async with asyncio.timeout(10):
        while True:
            row = await live.record(call, ended=False)
            if len(row.recordings or ()) == count:
                assert row.ended_at is None
                return row.recordings or ()
            await asyncio.sleep(0.05)
