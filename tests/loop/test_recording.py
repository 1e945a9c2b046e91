"""Recordings of calls on a real worker: who is on which side, when, and what becomes of them when something fails."""

from __future__ import annotations

import asyncio
import base64
import fcntl
import itertools
import json
import os
import signal
import sys
import threading
import time
import uuid
import wave
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
from aiohttp import WSMsgType, web

from ari_app.controller.limits import REPORT_SECONDS
from audiosocket import wire
from audiosocket.callspec import CallReport
from audiosocket.recording import folder, recordings, wav, writer
from audiosocket.recording.recordings import RecordingOptions
from tests.loop.test_platform_http import listening
from tests.virtual_time import WatchedQueue
from tests.worker_rig import Asterisk, Rig, call_spec, rig, serving, until
from tools.asterisk.local import free_ports
from tools.audio import g711
from tools.audio.tones import dominant_frequency, tone, tone_share
from tools.process import Process

pytestmark = [pytest.mark.loop, pytest.mark.virtual_time]

ENCODE: dict[str, Any] = {"slin": lambda pcm: pcm.tobytes(), "ulaw": g711.ulaw_encode, "alaw": g711.alaw_encode}
FRAME = 160
CLICK = np.concatenate((np.full(8, 20_000), np.zeros(FRAME - 8))).astype("<i2")
SILENCE = np.zeros(FRAME, "<i2")


@pytest.fixture(autouse=True)
def watched_writer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "SimpleQueue", WatchedQueue)


def options(directory: Path, **changes: Any) -> RecordingOptions:
    return RecordingOptions(directory, **({"min_free_mb": 0} | changes))


def sides(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Caller and application."""
    with wave.open(str(path)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (2, 2, 8000)
        both = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, 2)
        assert len(both) == file.getnframes()
    assert Path(path).stat().st_size == wav.HEADER_BYTES + both.nbytes
    return both[:, 0], both[:, 1]


def told(report: CallReport, event: str) -> list[dict[str, Any]]:
    return [milestone.detail for milestone in report.milestones if milestone.event == event]


async def speak(channel: Asterisk, frames: list[bytes]) -> list[float]:
    """Sends frames at 20 ms each; when each was sent."""
    loop = asyncio.get_running_loop()
    start, times = loop.time(), []
    for number, frame in enumerate(frames):
        await asyncio.sleep(max(0, start + number * 0.02 - loop.time()))
        times.append(loop.time())
        channel.send(wire.KIND_AUDIO, frame)
    return times


def in_frames(pcm: np.ndarray, encoding: str) -> list[bytes]:
    return [ENCODE[encoding](pcm[at : at + FRAME]) for at in range(0, len(pcm) - FRAME + 1, FRAME)]


@pytest.mark.parametrize("encoding", ["slin", "ulaw", "alaw"])
async def test_the_caller_is_left_and_the_application_right(tmp_path: Path, encoding: str) -> None:
    async with rig(recordings=options(tmp_path / "calls")) as r:
        channel = await r.talking(media_format=encoding, recording=True)
        await r.app.say(tone(1300, 1.2).tobytes())
        await speak(channel, in_frames(tone(440, 1.2), encoding))
        await until(lambda: len(channel.audio()) >= 60, "all of it played")
        await channel.hang_up()
        report = await r.report()
        left, right = sides(report.recording)
        assert dominant_frequency(left) == pytest.approx(440, abs=3)
        assert dominant_frequency(right) == pytest.approx(1300, abs=3)
        for side, hz in ((left, 440), (right, 1300)):
            (loud,) = np.nonzero(np.abs(side.astype(int)) > 300)
            assert tone_share(side[loud[0] : loud[-1]], hz) > 0.99
            assert loud[-1] - loud[0] == pytest.approx(1.2 * 8000, abs=FRAME)
        path = Path(report.recording)
        assert path.is_absolute()
        assert path.name == "9a1b" * 8 + ".wav"
        assert path.parent == tmp_path / "calls" / folder.today().isoformat()
        assert path.stat().st_mode & 0o777 == 0o640
        assert [entry.name for entry in path.parent.iterdir()] == [path.name]
        assert not told(report, "recording_ended")
        assert r.worker.recordings is not None
        assert r.worker.recordings.ended == {"completed": 1}


async def clicks_and_echoes(
    r: Rig, encoding: str, gaps: list[int], stall_after: float = 0
) -> tuple[CallReport, list[float], list[float]]:
    """A caller who clicks after so many frames each, and an application that sends back what it hears: the report, when
    each click was sent, and when its echo came."""

    async def echo(socket: web.WebSocketResponse) -> None:
        async for message in socket:
            if message.type == WSMsgType.TEXT:
                body = json.loads(message.data)
                r.app.messages.append(body)
                if body["event"] == "media":
                    again = {"event": "media", "media": {"payload": body["media"]["payload"]}}
                    await socket.send_str(json.dumps(again))

    r.app.behave = echo
    channel = await r.talking(media_format=encoding, recording=True)
    clicking = set(itertools.accumulate(gaps))
    frames = [ENCODE[encoding](CLICK if number in clicking else SILENCE) for number in range(sum(gaps) + 25)]
    if stall_after:
        # The whole process stands still for 600 ms, the worker with it; the caller's frames come all at once after it.
        asyncio.get_running_loop().call_later(stall_after, time.sleep, 0.6)
    sent = [at for number, at in enumerate(await speak(channel, frames)) if number in clicking]
    heard = [
        at
        for at, frame in zip(channel.times, channel.frames, strict=True)
        if np.abs(np.frombuffer(frame, "<i2")).max() > 9000
    ]
    await channel.hang_up()
    return await r.report(), sent, heard


def onsets(side: np.ndarray) -> list[float]:
    """When the clicks of a side begin, in seconds."""
    (loud,) = np.nonzero(np.abs(side.astype(int)) > 9000)
    return [at / 8000 for at, before in zip(loud, [-FRAME, *loud], strict=False) if at - before > 80]


@pytest.mark.parametrize("encoding", ["slin", "ulaw", "alaw"])
async def test_both_sides_stay_together(tmp_path: Path, encoding: str) -> None:
    async with rig(recordings=options(tmp_path)) as r:
        report, sent, heard = await clicks_and_echoes(r, encoding, [31, 17, 24, 23, 28, 19])
        left, right = (np.array(onsets(side)) for side in sides(report.recording))
        assert len(left) == len(right) == len(sent) == len(heard) == 6
        # What the recording says of each echo's delay is what was measured outside the worker.
        off = (right - left) - (np.array(heard) - np.array(sent))
        assert np.median(np.abs(off)) <= 0.010
        assert np.abs(off).max() <= 0.020
        # And nothing moves along the way: both sides keep the distances that were measured.
        assert np.abs((left - left[0]) - (np.array(sent) - sent[0])).max() <= 0.020
        assert np.abs((right - right[0]) - (np.array(heard) - heard[0])).max() <= 0.020


async def test_a_stall_of_the_worker_moves_nothing_for_long(tmp_path: Path) -> None:
    async with rig(recordings=options(tmp_path)) as r:
        report, sent, heard = await clicks_and_echoes(r, "slin", [31, 17, 24, 23, 85, 27, 24], stall_after=2)
        assert report.figures.stalls
        left, right = (onsets(side) for side in sides(report.recording))
        # The first four came before the stall, the last three more than a second after it.
        assert len(right) == len(heard)
        for of_file, measured in ((left, sent), (right, heard)):
            clock = of_file[0] - measured[0]
            for index in (0, 1, 2, 3, -3, -2, -1):
                assert of_file[index] - measured[index] == pytest.approx(clock, abs=0.020), index
        whole = len(sides(report.recording)[0]) / 8000
        assert whole == pytest.approx((report.ended_at_ms - report.started_at_ms) / 1000, abs=0.3)


async def test_a_call_that_asks_for_none_has_none(tmp_path: Path) -> None:
    async with rig(recordings=options(tmp_path / "calls", prepare=True)) as r:
        channel = await r.talking()
        await channel.talk(5)
        await channel.hang_up()
        assert (await r.report()).recording == ""
        assert not list((tmp_path / "calls").iterdir())


async def test_a_recording_may_be_told_as_a_url(tmp_path: Path) -> None:
    async with rig(recordings=options(tmp_path, url_base="https://rec.example.com/calls/")) as r:
        channel = await r.talking(recording=True)
        await channel.hang_up()
        sid = "9a1b" * 8
        day = folder.today().isoformat()
        assert (await r.report()).recording == f"https://rec.example.com/calls/{day}/{sid}.wav"
        assert len(list((tmp_path / day).glob("*.wav"))) == 1


async def test_it_begins_before_the_application_is_there(tmp_path: Path) -> None:
    async def late(_: web.Request) -> None:
        await asyncio.sleep(1)

    async with rig(recordings=options(tmp_path)) as r:
        r.app.before_upgrade = late
        channel = await r.call(recording=True)
        await speak(channel, in_frames(tone(440, 0.8), "ulaw"))
        await until(lambda: r.app.events("start"), "start message")
        await channel.hang_up()
        left, _ = sides((await r.report()).recording)
        assert np.count_nonzero(np.abs(left.astype(int)) > 300) > 0.7 * 8000


async def test_only_who_takes_over_is_recorded(tmp_path: Path) -> None:
    async with rig(recordings=options(tmp_path)) as r, serving() as second:
        following = call_spec(application="second", url=second.url, recording=True)
        channel = await r.talking(next=following)
        await r.app.say(tone(1300, 0.6).tobytes())
        await speak(channel, in_frames(tone(440, 0.6), "ulaw"))
        assert not list(tmp_path.iterdir())
        await r.app.sockets[-1].close()
        await until(lambda: second.events("start"), "the second's start")
        await second.say(tone(900, 0.6).tobytes())
        await speak(channel, in_frames(tone(700, 0.6), "ulaw"))
        await channel.hang_up()
        report = await r.report()
        left, right = sides(report.recording)
        assert Path(report.recording).name == "9a1b" * 8 + ".wav"
        assert 500 < report.recorded_at_ms - report.started_at_ms < 1200
        assert 500 * 8 < len(left) < (report.ended_at_ms - report.started_at_ms - 500) * 8
        for side, hz in ((left, 700), (right, 900)):
            (loud,) = np.nonzero(np.abs(side.astype(int)) > 300)
            assert tone_share(side[loud[0] : loud[-1]], hz) > 0.99


async def test_who_takes_over_a_recorded_call_begins_no_recording_of_its_own(tmp_path: Path) -> None:
    async with rig(recordings=options(tmp_path)) as r, serving() as second:
        channel = await r.talking(recording=True, next=call_spec(url=second.url, recording=True))
        await r.app.sockets[-1].close()
        await until(lambda: second.events("start"), "the second's start")
        await channel.hang_up()
        await r.report()
        assert r.worker.recordings is not None
        assert r.worker.recordings.ended == {"completed": 1}


@pytest.mark.virtual_time(False)
async def test_a_killed_worker_leaves_a_file_that_the_next_start_makes_whole(tmp_path: Path) -> None:
    directory, sid = tmp_path / "calls", uuid.uuid4()
    async with serving() as app:
        process = Process(
            "worker",
            [sys.executable, "-m", "tests.recording_worker", str(directory), app.url],
            tmp_path / "worker.log",
            "port ",
            {},
        )
        await process.start()
        channel = None
        try:
            port = int(process.text().rpartition("port ")[2].split()[0])
            channel = await Asterisk.connect(port, str(sid))
            await until(lambda: app.events("start"), "start message")
            began = time.monotonic()
            await app.say(tone(1300, 10).tobytes())
            await speak(channel, in_frames(tone(440, 4), "ulaw"))
            part = directory / folder.today().isoformat() / f"{sid.hex}.wav.part"
            assert part.exists()
            # While it is written, another worker that starts leaves it alone.
            assert folder.tidy(directory, 0, folder.today()) == folder.Tidied(0, 0)
            spoken = 0.0

            def all_but_the_last() -> bool:
                nonlocal spoken
                spoken = time.monotonic() - began
                return part.stat().st_size / 32_000 >= spoken - 0.94

            # A machine that has just stood still has yet to write what it was given meanwhile.
            await until(all_but_the_last, "what was said, written")
            os.kill(process.pid, signal.SIGKILL)
            await until(lambda: not process.running, "worker killed")
        finally:
            await process.kill()
            if channel is not None:
                await channel.hang_up()
    with part.open("ab") as file:
        file.write(b"\x01")  # and a sample that was not written to its end
    async with rig(recordings=options(directory)):
        whole = part.with_suffix("")
        await until(whole.exists, "repaired at the start")
        assert not part.exists()
        left, right = sides(whole)
        assert len(left) / 8000 >= spoken - 0.95
        steady = slice(8000, len(left) - FRAME)
        assert tone_share(left[steady], 440) > 0.99
        assert tone_share(right[steady], 1300) > 0.99


# What is told of it


def begun(r: Rig) -> list[str]:
    return [notice.recording for notice in r.source.notices if notice.event == "recorded"]


async def test_the_controller_is_told_of_the_file_as_soon_as_it_is_there(tmp_path: Path) -> None:
    async with rig(recordings=options(tmp_path, url_base="https://rec.example.com")) as r:
        channel = await r.talking(recording=True)
        await until(lambda: begun(r), "the notice")
        (part,) = tmp_path.rglob("*.part")
        assert begun(r) == [f"https://rec.example.com/{part.relative_to(tmp_path).with_suffix('')}"]
        await channel.hang_up()
        report = await r.report()
        assert [report.recording] == begun(r)
        assert report.recorded_at_ms == report.started_at_ms


async def test_the_file_of_a_call_that_has_been_moved_is_named_by_call_and_lease(tmp_path: Path) -> None:
    sid = "9a1b" * 8
    async with rig(recordings=options(tmp_path)) as r:
        first = await r.talking(recording=True)
        second = await r.talking(recording=True, begins=True, leg_number=1, lease_token=1763761234567890)
        for channel in (second, first):
            await channel.hang_up()
        await r.report(2)
    names = sorted(path.name for path in tmp_path.rglob("*.wav*"))
    assert names == [f"{sid}-1763761234567890.wav", f"{sid}.wav"]


async def refuse(_: web.Request) -> web.StreamResponse:
    return web.Response(status=401)


@dataclass
class Hook:
    """An application's server for callbacks."""

    url: str
    came: list[tuple[dict[str, str], list[str]]]
    """The query of each, and the files that were there when it came."""


@asynccontextmanager
async def told_to(directory: Path) -> AsyncIterator[Hook]:
    async with listening() as server:
        hook = Hook(server.url, [])

        async def look(request: web.Request) -> web.StreamResponse:
            hook.came.append((dict(request.query), [str(path) for path in directory.rglob("*.wav*")]))
            return web.Response()

        server.answer = look
        yield hook


ENDINGS = {
    "the caller hangs up": ("completed", "user"),
    "the application closes": ("completed", "bot"),
    "it is refused": ("failed", "NA"),
    "it is lost": ("failed", "bot"),
    "the caller hangs up before": ("cancelled", "user"),
}


@pytest.mark.parametrize("ending", ENDINGS)
async def test_exotel_s_callback_names_a_file_that_is_whole(tmp_path: Path, ending: str) -> None:
    async with rig(recordings=options(tmp_path)) as r, told_to(tmp_path) as hook:

        async def hang(_: web.Request) -> None:
            await r.app.released.wait()

        if ending == "it is refused":
            r.app.before_upgrade = refuse
        elif ending == "the caller hangs up before":
            r.app.before_upgrade = hang
        channel = await r.call(recording=True, callback_url=hook.url)
        if "before" in ending or "refused" in ending:
            await until(lambda: r.app.requests, "the dial")
        else:
            await until(lambda: r.app.events("start"), "start message")
            await channel.talk(100, ENCODE["ulaw"](tone(440, 0.02)))
        if ending == "the application closes":
            await r.app.sockets[-1].close()
        elif ending == "it is lost":
            assert r.app.requests[-1].transport is not None
            r.app.requests[-1].transport.abort()
        if "caller" in ending:
            await channel.hang_up()
        else:
            await channel.ended()  # behind the tone, where it has failed
        report = await r.report()
        await until(lambda: hook.came, "the callback")
        ((query, files),) = hook.came
        assert (query["Stream[Status]"], query["Stream[DisconnectedBy]"]) == ENDINGS[ending]
        assert query["Stream[RecordingUrl]"] == report.recording
        assert files == [report.recording]
        # The tone behind a failure is no part of the stream, but of the recording.
        assert query["Stream[Duration]"] == ("2" if r.app.sockets else "0")
        assert len(channel.audio()) == (50 if report.failed else 0)
        heard = np.frombuffer(b"".join(channel.frames), "<i2")
        assert np.count_nonzero(sides(report.recording)[1]) == np.count_nonzero(heard)


@pytest.mark.parametrize("ending", ["it fails", "it closes"])
async def test_a_callback_does_not_wait_for_the_application_that_takes_over(tmp_path: Path, ending: str) -> None:
    async with rig(recordings=options(tmp_path)) as r, told_to(tmp_path) as hook, serving() as second:
        if ending == "it fails":
            r.app.before_upgrade = refuse
            channel = await r.call(recording=True, callback_url=hook.url, fallback_url=second.url)
        else:
            channel = await r.talking(recording=True, callback_url=hook.url, next=call_spec(url=second.url))
            await r.app.sockets[-1].close()
        await until(lambda: second.events("start"), "the second's start")
        await until(lambda: hook.came, "the first's callback")
        ((query, files),) = hook.came
        path = query["Stream[RecordingUrl]"]
        assert [path] == begun(r)
        assert files == [f"{path}.part"]
        await channel.hang_up()
        assert (await r.report()).recording == path
        assert Path(path).exists()


async def test_no_callback_names_a_file_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The application fails before the disk has answered."""
    disk = Disk()
    create = writer.create

    def slow(path: Path) -> int:
        disk.write(-1, b"", 0)
        return create(path)

    monkeypatch.setattr(disk, "_write", lambda *_: 0)
    monkeypatch.setattr(writer, "create", slow)
    async with rig(recordings=options(tmp_path)) as r, told_to(tmp_path) as hook, serving() as second:
        assert r.worker.recordings is not None
        disk.watch(r.worker.recordings.writer)
        disk.stand_still()
        r.app.before_upgrade = refuse
        again = {"callback_url": hook.url, "fallback_url": second.url, "connect_attempts": 1}
        channel = await r.call(recording=True, **again)
        await until(lambda: second.events("start"), "the second's start")
        assert not hook.came
        assert not begun(r)
        disk.go_on()
        await until(lambda: hook.came, "the first's callback")
        ((query, files),) = hook.came
        assert files == [query["Stream[RecordingUrl]"] + ".part"]
        await channel.hang_up()
        await r.report()


async def test_a_callback_of_a_recording_that_failed_names_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    async with rig(recordings=options(tmp_path / "file" / "calls")) as r, told_to(tmp_path) as hook:
        channel = await r.talking(recording=True, callback_url=hook.url)
        await channel.hang_up()
        await until(lambda: hook.came, "the callback")
        assert hook.came[0][0]["Stream[RecordingUrl]"] == ""
        assert not begun(r)


# What fails


async def test_a_full_disk_ends_recordings_and_no_call(tmp_path: Path) -> None:
    async with rig(recordings=options(tmp_path)) as r:
        assert r.worker.recordings is not None
        channel = await r.talking(recording=True)
        await channel.talk(70, ENCODE["ulaw"](tone(440, 0.02)))
        r.worker.recordings.writer._min_free = 1 << 60
        await until(lambda: not r.worker.recordings.active, "the running one ended")  # type: ignore[union-attr]
        second = await r.talking(recording=True, call_sid="b" * 32)
        await until(lambda: len(r.worker.recordings.ended) and r.worker.recordings.ended["disk_full"] == 2, "refused")  # type: ignore[union-attr]
        for call in (channel, second):
            await call.talk(10)
            audio = base64.b64encode(tone(440, 0.1).tobytes()).decode()
            message = json.dumps({"event": "media", "media": {"payload": audio}})
            await r.app.sockets[r.channels.index(call)].send_str(message)
            await until(lambda call=call: call.audio(), "the call goes on")  # type: ignore[misc]
            await call.hang_up()
        first, other = await r.report(1), await r.report(2)
        for report in (first, other):
            (detail,) = told(report, "recording_ended")
            assert detail["reason"] == "disk_full"
            assert "min_free_mb" in detail["detail"]
        left, _ = sides(first.recording)
        assert np.count_nonzero(left) > 0.7 * 8000
        assert other.recording == ""
        assert len(list(tmp_path.rglob("*.wav*"))) == 1


async def test_a_directory_that_cannot_be_written_costs_the_recording_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    async with rig(recordings=options(tmp_path / "file" / "calls", prepare=True)) as r:
        assert "recordings_unwritable" in capsys.readouterr().out
        channel = await r.talking(recording=True)
        await r.app.say(tone(440, 0.2).tobytes())
        await until(lambda: channel.audio(), "the call goes on")
        await channel.hang_up()
        report = await r.report()
        assert report.recording == ""
        (detail,) = told(report, "recording_ended")
        assert detail["reason"] == "open_failed"
        assert "Not a directory" in detail["detail"]
        assert r.worker.recordings is not None
        assert r.worker.recordings.ended == {"open_failed": 1}


@pytest.mark.parametrize(
    ("call_sid", "why"), [("9a1b" * 8, "there is a recording of this call"), ("../../etc/x", "32 lower-case hex")]
)
async def test_nothing_else_is_ever_written(tmp_path: Path, call_sid: str, why: str) -> None:
    there = tmp_path / "calls" / folder.today().isoformat() / ("9a1b" * 8 + ".wav")
    there.parent.mkdir(parents=True)
    there.write_bytes(b"kept")
    async with rig(recordings=options(tmp_path / "calls")) as r:
        channel = await r.talking(recording=True, call_sid=call_sid)
        await channel.talk(5)
        await channel.hang_up()
        report = await r.report()
        assert why in told(report, "recording_ended")[0]["detail"]
        assert report.recording == ""
    assert there.read_bytes() == b"kept"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [there]


class Disk:
    """What the writer writes to."""

    def __init__(self) -> None:
        self._moving = threading.Event()
        self._moving.set()
        self._write = writer._write_all

    def watch(self, thread: writer.Writer) -> None:
        assert isinstance(thread._queue, WatchedQueue)
        self._queue = thread._queue

    def write(self, descriptor: int, data: bytes, at: int) -> int:
        if not self._moving.is_set():
            self._queue.stand_still()
        assert self._moving.wait(30)
        return self._write(descriptor, data, at)

    def stand_still(self) -> None:
        self._moving.clear()

    def go_on(self) -> None:
        self._queue.go_on()
        self._moving.set()


async def test_a_disk_that_stands_still_costs_blocks_and_no_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk()
    monkeypatch.setattr(writer, "_write_all", disk.write)
    monkeypatch.setattr(recordings, "MAX_WAITING_BLOCKS", 2)
    async with rig(recordings=options(tmp_path)) as r:
        assert r.worker.recordings is not None
        disk.watch(r.worker.recordings.writer)
        channel = await r.talking(recording=True)
        loud = ENCODE["ulaw"](tone(400, 0.02))
        await channel.talk(50, loud)
        disk.stand_still()
        before = len(channel.frames)
        await channel.talk(150, loud)
        assert len(channel.frames) - before == pytest.approx(150, abs=20)
        assert r.worker.recordings.lost_blocks >= 3
        disk.go_on()
        await channel.talk(60, loud)
        await channel.hang_up()
        report = await r.report()
        (lost,) = told(report, "recording_incomplete")
        assert lost["silent_ms"] == r.worker.recordings.lost_blocks * 500
        left, _ = sides(report.recording)
        # As long as the call, with its end where it belongs and silence for what was lost.
        assert len(left) / 8000 == pytest.approx((report.ended_at_ms - report.started_at_ms) / 1000, abs=0.3)
        assert np.abs(left[-8000:].astype(int)).max() > 3000
        silent = np.abs(left.astype(int)).reshape(-1, FRAME).max(axis=1) < 500
        assert silent.sum() * 20 == pytest.approx(lost["silent_ms"], abs=300)


async def test_a_report_does_not_wait_for_a_disk_that_stands_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk()
    monkeypatch.setattr(writer, "_write_all", disk.write)
    async with rig(recordings=options(tmp_path)) as r:
        assert r.worker.recordings is not None
        disk.watch(r.worker.recordings.writer)
        disk.stand_still()
        channel = await r.talking(recording=True)
        await channel.talk(60)
        await channel.hang_up()
        await until(lambda: r.source.reports, "the report", REPORT_SECONDS)
        path = Path(r.source.reports[0].recording)
        assert not path.exists()
        disk.go_on()
        await until(path.exists, "the recording, whole")


async def test_the_disk_s_own_error_ends_the_recording_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(descriptor: int, data: bytes, at: int) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer, "_write_all", broken)
    async with rig(recordings=options(tmp_path)) as r:
        channel = await r.talking(recording=True)
        await channel.talk(70)
        await r.app.say(tone(440, 0.2).tobytes())
        await until(lambda: channel.audio(), "the call goes on")
        await channel.hang_up()
        report = await r.report()
        assert told(report, "recording_ended") == [{"reason": "write_failed", "detail": "No space left on device"}]


@pytest.mark.parametrize(
    ("module", "name", "reason"),
    [
        (wav, "header", "open_failed"),
        (writer.Timeline, "add", "write_failed"),
        (writer.Timeline, "finish", "write_failed"),
        (writer.Writer, "_data_bytes", "write_failed"),
        (writer, "finish", "write_failed"),
    ],
)
async def test_a_fault_of_ours_ends_the_recording_alone_and_leaves_nothing_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any, name: str, reason: str
) -> None:
    def broken(*args: Any) -> None:
        if name == "finish" and module is writer:
            os.close(args[0])  # as the real one does, whatever happens
        raise ValueError("ours")

    monkeypatch.setattr(module, name, broken)
    async with rig(recordings=options(tmp_path)) as r:
        channel = await r.talking(recording=True)
        await channel.talk(70)
        await channel.hang_up()
        report = await r.report()
        await until(lambda: not r.worker.recordings.active, "its end")  # type: ignore[union-attr]
        assert told(report, "recording_ended") == [{"reason": reason, "detail": "ValueError: ours"}]
        assert r.worker.recordings.writer.is_alive()  # type: ignore[union-attr]
        opened = [os.readlink(entry) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]
        assert not [path for path in opened if str(tmp_path) in path]


async def test_a_worker_that_stops_finishes_its_recordings(tmp_path: Path) -> None:
    async with rig(recordings=options(tmp_path), drain_seconds=0) as r:
        channel = await r.talking(recording=True)
        await speak(channel, in_frames(tone(440, 0.8), "ulaw"))
        r.stop.requested.set()
        await channel.ended()
        report = await r.report()
        assert report.reason == "worker_stopped"
        assert np.count_nonzero(np.abs(sides(report.recording)[0].astype(int)) > 300) > 0.7 * 8000


async def test_metrics(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    async with rig(recordings=options(tmp_path), status_host="127.0.0.1", status_port=port) as r:
        channel = await r.talking(recording=True)
        await channel.talk(60)
        async with aiohttp.ClientSession() as http:
            async with http.get(f"http://127.0.0.1:{port}/metrics") as answer:
                during = await answer.text()
            await channel.hang_up()
            await r.report()
            async with http.get(f"http://127.0.0.1:{port}/metrics") as answer:
                after = await answer.text()
    assert "trunkbridge_recordings_active 1.0" in during
    assert "trunkbridge_recordings_active 0.0" in after
    assert 'trunkbridge_recordings_ended_total{reason="completed"} 1.0' in after
    assert "trunkbridge_recordings_lost_blocks_total 0.0" in after
    found = {line.split()[0]: float(line.split()[1]) for line in after.splitlines() if not line.startswith("#")}
    (file,) = tmp_path.rglob("*.wav")
    assert found["trunkbridge_recordings_bytes_total"] == file.stat().st_size - wav.HEADER_BYTES
    assert found["trunkbridge_recordings_free_bytes"] > 0


# The directory


async def test_a_worker_removes_what_is_too_old_at_its_start_and_every_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recordings, "TIDY_SECONDS", 10.0)

    def left(days: int) -> Path:
        return store(tmp_path / (folder.today() - timedelta(days=days)).isoformat() / ("a" * 32 + ".wav"))

    kept, old = left(28), left(32)
    async with rig(recordings=options(tmp_path, retain_days=30)):
        await until(lambda: not old.parent.exists(), "removed at the start")
        older = left(33)
        await until(lambda: not older.parent.exists(), "removed later", 2 * 10)
    assert kept.exists()
    async with rig(recordings=options(tmp_path, retain_days=0)):
        older = left(3300)
        await asyncio.sleep(2 * 10)
        assert older.exists(), "0: nothing is removed"


# The directory, without a worker


def store(path: Path, content: bytes = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_old_recordings_go_and_nothing_else(tmp_path: Path) -> None:
    sid = "0123456789abcdef" * 2
    kept = [
        store(tmp_path / "2026-05-02" / f"{sid}.wav"),
        store(tmp_path / "2026-04-01" / "notes.txt"),
        store(tmp_path / "2026-04-01" / "music.wav"),
        store(tmp_path / "2026-04-01" / f"{sid}.wav.part.bak"),
        store(tmp_path / "2026-04-01" / f"{sid}-.wav"),
        store(tmp_path / "2026-13-41" / f"{sid}.wav"),
        store(tmp_path / "archive" / f"{sid}.wav"),
        store(tmp_path / f"{sid}.wav"),
        store(tmp_path / "elsewhere" / "2026-04-03" / f"{sid}.wav"),
    ]
    (tmp_path / "2026-04-03").symlink_to(tmp_path / "elsewhere" / "2026-04-03")
    (tmp_path / "2026-04-01" / ("a" * 32 + ".wav")).symlink_to(kept[1])
    gone = [
        store(tmp_path / "2026-04-01" / f"{sid}.wav"),
        store(tmp_path / "2026-04-01" / f"{sid}-1763761234567890.wav"),
        store(tmp_path / "2026-04-02" / f"{sid}.wav"),
        store(tmp_path / "2026-05-01" / f"{sid}.wav"),
    ]
    (tmp_path / "2026-03-01").mkdir()
    (tmp_path / "2026-06-01").mkdir()
    assert folder.tidy(tmp_path, 0, date(2026, 6, 1)) == folder.Tidied(0, 0)
    assert folder.tidy(tmp_path, 30, date(2026, 6, 1)) == folder.Tidied(0, 4)
    assert all(path.exists() for path in kept)
    assert not any(path.exists() for path in gone)
    assert [(tmp_path / day).exists() for day in ("2026-03-01", "2026-04-02", "2026-05-01", "2026-06-01")] == [
        *(False, False, False, True)
    ]
    assert folder.tidy(tmp_path / "none", 30, date(2026, 6, 1)) == folder.Tidied(0, 0)


def test_what_is_left_behind_is_repaired_once(tmp_path: Path) -> None:
    day = tmp_path / "2026-05-02"
    audio = bytes(range(100))
    cut = store(day / ("1" * 32 + "-1763761234567890.wav.part"), wav.header(16_000, 0) + audio + b"abc")
    empty = store(day / ("2" * 32 + ".wav.part"))
    foreign = store(day / ("3" * 32 + ".wav.part"), b"x" * 100)
    live = store(day / ("4" * 32 + ".wav.part"), wav.header(8000, 0) + audio)
    taken = store(day / ("5" * 32 + ".wav.part"), wav.header(8000, 0) + audio)
    store(day / ("5" * 32 + ".wav"), b"kept")
    with live.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert folder.tidy(tmp_path, 30, date(2026, 5, 2)) == folder.Tidied(1, 0)
        assert folder.tidy(tmp_path, 30, date(2026, 5, 2)) == folder.Tidied(0, 0)
    with wave.open(str(cut.with_suffix(""))) as whole:
        assert (whole.getframerate(), whole.readframes(1000)) == (16_000, audio)
    assert not empty.exists()
    assert foreign.read_bytes() == b"x" * 100
    assert live.exists()
    assert taken.exists()
    assert taken.with_suffix("").read_bytes() == b"kept"
    assert folder.tidy(tmp_path, 30, date(2026, 5, 2)) == folder.Tidied(1, 0)  # its writer has died since
