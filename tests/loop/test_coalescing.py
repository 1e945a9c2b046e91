"""A worker that reads two of a caller's frames at a time: what the application gets, and when."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from audiosocket import wire
from audiosocket import worker as worker_module
from audiosocket.legs.audiosocket import AudioSocketLeg
from audiosocket.overload import Second
from audiosocket.recording.recordings import RecordingOptions
from tests.worker_rig import Asterisk, Rig, rig, until

pytestmark = [pytest.mark.loop, pytest.mark.virtual_time]

FRAMES = [bytes([number]) * 320 for number in range(1, 101)]


def media(r: Rig) -> list[bytes]:
    """The audio of each message that the application has got."""
    return [base64.b64decode(message["media"]["payload"]) for message in r.app.events("media")]


@asynccontextmanager
async def coalescing(**options: Any) -> AsyncIterator[tuple[Rig, Asterisk]]:
    """A call whose worker has been busy for a second."""
    changes = {"media_format": "slin"} | options.pop("call", {})
    async with rig(**options) as r:
        channel = await r.talking(**changes)
        await talk(channel, FRAMES[:5])
        r.worker.load._coalescing.see(Second(cpu=0.7))
        r.worker._coalesce()
        yield r, channel


async def talk(channel: Asterisk, frames: list[bytes]) -> None:
    for frame in frames:
        channel.send(wire.KIND_AUDIO, frame)
        await asyncio.sleep(0.02)


async def heard(r: Rig, count: int) -> list[bytes]:
    """The audio of the first `count` messages."""
    await until(lambda: len(media(r)) >= count, f"{count} media messages")
    return media(r)[:count]


async def test_two_frames_leave_together_and_none_is_lost() -> None:
    async with coalescing() as (r, channel):
        counts = []
        for frame in FRAMES[5:45]:
            channel.send(wire.KIND_AUDIO, frame)
            await asyncio.sleep(0.02)
            counts.append(len(r.app.events("media")) - 5)
        assert counts == [number // 2 * 2 for number in range(1, 41)]
        assert await heard(r, 45) == FRAMES[:45]
        await channel.hang_up()
        figures = (await r.report()).figures
        assert figures.caller_frames == 45
        assert not figures.caller_frames_dropped
        assert not figures.stalls


async def test_what_the_application_says_is_played_on_as_before() -> None:
    async with coalescing() as (r, channel):
        talking = asyncio.create_task(talk(channel, FRAMES[5:]))
        for frame in FRAMES:
            await r.app.say(frame)
        await talking
        await until(lambda: len(channel.audio()) >= len(FRAMES), "all of it")
        assert channel.audio() == FRAMES
        await channel.hang_up()
        assert not (await r.report()).figures.frames_dropped


@pytest.mark.parametrize("left", [1, 3])
async def test_a_frame_without_a_second_one_waits_no_longer_than_a_caller_may_pause(left: int) -> None:
    async with coalescing() as (r, channel):
        await talk(channel, FRAMES[5 : 5 + left])
        await asyncio.sleep(0.08)
        assert (await heard(r, 5 + left)) == FRAMES[: 5 + left]
        await asyncio.sleep(0.2)  # silence in his place
        r.worker._coalesce()
        await talk(channel, FRAMES[50:60])
        await until(lambda: FRAMES[59] in media(r), "what he says after it")


async def test_a_digit_is_not_kept_waiting_by_a_caller_who_sends_nothing_else() -> None:
    async with coalescing() as (r, channel):
        await talk(channel, FRAMES[5:9])
        channel.send(wire.KIND_DTMF, b"7")
        await asyncio.sleep(0.1)
        assert [message["dtmf"]["digit"] for message in r.app.events("dtmf")] == ["7"]


async def test_a_digit_between_frames_comes_in_its_place() -> None:
    async with coalescing() as (r, channel):
        channel.send(wire.KIND_AUDIO, FRAMES[5])
        channel.send(wire.KIND_DTMF, b"7")
        await asyncio.sleep(0.02)
        await talk(channel, FRAMES[6:10])
        assert await heard(r, 9) == FRAMES[:9]
        order = [message["event"] for message in r.app.messages if message["event"] in ("media", "dtmf")]
        assert order.index("dtmf") == 6


async def test_the_last_frame_reaches_the_application_when_the_caller_hangs_up() -> None:
    async with coalescing() as (r, channel):
        await talk(channel, FRAMES[5:8])
        await channel.hang_up()
        await r.report()
        assert media(r) == FRAMES[:8]
        assert r.app.messages[-1]["event"] == "stop"


async def test_a_backlog_is_one_even_so() -> None:
    """More than two at a time have waited for something else: a stall, as ever."""
    async with coalescing() as (r, channel):
        await talk(channel, FRAMES[5:15])
        channel.writer.write(b"".join(wire.encode(wire.KIND_AUDIO, frame) for frame in FRAMES[15:45]))
        await asyncio.sleep(0.02)
        await talk(channel, FRAMES[45:47])
        await channel.hang_up()
        figures = (await r.report()).figures
        assert figures.stalls == 1
        assert figures.caller_frames_dropped == {"stale": 19}


async def test_each_frame_leaves_at_once_again_when_the_worker_has_time() -> None:
    async with coalescing() as (r, channel):
        for _ in range(5):
            r.worker.load._coalescing.see(Second(cpu=0.2))
        r.worker._coalesce()
        for number, frame in enumerate(FRAMES[5:15], 6):
            channel.send(wire.KIND_AUDIO, frame)
            await asyncio.sleep(0.02)
            assert len(r.app.events("media")) == number


async def test_many_calls_change_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of all waits meanwhile: that of a thousand calls was 2.5 ms late once a second."""
    monkeypatch.setattr(worker_module, "LEGS_AT_ONCE", 2)
    async with rig() as r:
        channels = [await r.talking(media_format="slin") for _ in range(5)]
        await asyncio.gather(*(talk(channel, FRAMES[:5]) for channel in channels))
        r.worker.load._coalescing.see(Second(cpu=0.7))
        r.worker._coalesce()
        changed = []
        for _ in range(4):
            changed.append(sum(leg._read_frames == 2 for leg in r.worker._legs if isinstance(leg, AudioSocketLeg)))
            await asyncio.gather(*(talk(channel, FRAMES[5:6]) for channel in channels))
        assert changed == [2, 5, 5, 5]
        for channel in channels:
            await channel.hang_up()


async def test_a_recorded_call_is_read_frame_by_frame(tmp_path: Path) -> None:
    """Where the caller's frames lie beside the application's is told by when they came."""
    async with coalescing(recordings=RecordingOptions(tmp_path), call={"recording": True}) as (r, channel):
        for number, frame in enumerate(FRAMES[5:15], 6):
            channel.send(wire.KIND_AUDIO, frame)
            await asyncio.sleep(0.02)
            assert len(r.app.events("media")) == number


async def test_frames_of_another_length_are_read_one_by_one() -> None:
    """Two of 40 ms would be 40 ms of delay."""
    async with coalescing() as (r, channel):
        await talk(channel, FRAMES[5:6])
        double = [frame * 2 for frame in FRAMES[6:16]]
        for frame in double:
            channel.send(wire.KIND_AUDIO, frame)
            await asyncio.sleep(0.04)
        r.worker._coalesce()
        for frame in double:
            before = len(r.app.events("media"))
            channel.send(wire.KIND_AUDIO, frame)
            await asyncio.sleep(0.02)
            assert len(r.app.events("media")) == before + 2
            await asyncio.sleep(0.02)
