"""Calls at 16 and 24 kHz between a played Asterisk and a played application."""

from __future__ import annotations

import asyncio
import base64
import wave
from pathlib import Path

import numpy as np
import pytest

from audiosocket import wire
from audiosocket.callspec import MediaFormat
from audiosocket.recording import writer
from audiosocket.recording.recordings import RecordingOptions
from tests.virtual_time import WatchedQueue
from tests.worker_rig import Asterisk, Rig, rig, until
from tools.audio.tones import dominant_frequency, tone

pytestmark = [
    pytest.mark.loop,
    pytest.mark.virtual_time,
    pytest.mark.parametrize("media_format", [MediaFormat.SLIN16, MediaFormat.SLIN24]),
]

KINDS = {MediaFormat.SLIN16: 0x12, MediaFormat.SLIN24: 0x13}
FRAMES = 25


def noise(media_format: MediaFormat, frames: int = FRAMES) -> list[bytes]:
    """Frames of 20 ms, none like another."""
    size = media_format.sample_rate // 25
    audio = np.random.default_rng(1).integers(1, 256, frames * size, np.uint8).tobytes()
    return [audio[at : at + size] for at in range(0, len(audio), size)]


def at_application(r: Rig) -> list[bytes]:
    return [base64.b64decode(message["media"]["payload"]) for message in r.app.events("media")]


def spoken_at_application(r: Rig) -> bytes:
    """Without the silence that fills gaps of 100 ms, which a busy machine may make; no byte of the noise is 0."""
    return b"".join(at_application(r)).replace(b"\0", b"")


async def say(channel: Asterisk, kind: int, frames: list[bytes]) -> None:
    for frame in frames:
        channel.send(kind, frame)
        await asyncio.sleep(0.02)


async def test_frames_of_the_right_kind_and_size_go_both_ways(media_format: MediaFormat) -> None:
    kind, size = KINDS[media_format], media_format.sample_rate // 25
    spoken = noise(media_format)
    async with rig() as r:
        channel = await r.talking(media_format=media_format)
        await say(channel, kind, spoken)
        await until(lambda: len(r.app.events("media")) >= FRAMES, "all frames at the application")
        assert spoken_at_application(r) == b"".join(spoken)
        assert {len(frame) for frame in at_application(r)} == {size}
        start = r.app.events("start")[0]["start"]
        rate = media_format.sample_rate
        assert start["media_format"]["sample_rate"] == str(rate)
        # In pieces that fit no frame.
        audio = b"".join(spoken)
        for at in range(0, len(audio), 1001):
            await r.app.say(audio[at : at + 1001])
        await r.app.send({"event": "mark", "mark": {"name": "end"}})
        await until(lambda: r.app.events("mark"), "mark behind the audio")
        assert b"".join(channel.audio()) == audio
        # 8 kHz until the call is known, then nothing but the call's rate.
        known = channel.kinds.index(kind)
        assert set(channel.kinds[:known]) == {wire.KIND_AUDIO}
        assert set(channel.kinds[known:]) == {kind}
        assert {len(frame) for frame in channel.frames[known:]} == {size}
        await channel.hang_up()
        figures = (await r.report()).figures
    assert (figures.caller_frames, figures.caller_frames_dropped) == (FRAMES, {})
    assert (figures.frames_played, figures.frames_dropped, figures.underruns) == (FRAMES, {}, 0)
    assert FRAMES * 20 - 100 <= figures.playout_peak_ms <= FRAMES * 20


@pytest.mark.parametrize("ptime_ms", [10, 30, 40])
async def test_another_ptime_is_cut_anew(media_format: MediaFormat, ptime_ms: int) -> None:
    kind, rate = KINDS[media_format], media_format.sample_rate
    audio = b"".join(noise(media_format, 12))
    size = rate * ptime_ms // 1000 * 2
    async with rig() as r:
        channel = await r.talking(media_format=media_format)
        await say(channel, kind, [audio[at : at + size] for at in range(0, len(audio), size)])
        await until(lambda: len(spoken_at_application(r)) >= len(audio), "all audio at the application")
        assert spoken_at_application(r) == audio
        assert {len(frame) for frame in at_application(r)} == {rate // 25}


async def test_what_is_of_another_rate_is_not_passed_on(media_format: MediaFormat) -> None:
    kind = KINDS[media_format]
    frame = noise(media_format, 1)[0]
    async with rig() as r:
        channel = await r.talking(media_format=media_format)
        channel.send(wire.KIND_AUDIO, b"\x01" * 320)
        channel.send(kind, frame)
        await until(lambda: r.app.events("media"), "a frame at the application")
        assert at_application(r)[0] == frame


async def test_a_clear_and_the_figures_are_in_the_calls_time(media_format: MediaFormat) -> None:
    rate = media_format.sample_rate
    quiet = bytes(rate // 25)
    loud = tone(440, 0.02, rate).astype("<i2").tobytes()
    async with rig() as r:
        channel = await r.talking(media_format=media_format, fade_ms=5)
        await say(channel, KINDS[media_format], [loud] * 25 + [quiet] * 15)
        await r.app.say(tone(620, 4, rate).astype("<i2").tobytes())
        await until(lambda: len(channel.audio()) >= 20, "audio heard")
        await r.app.send({"event": "clear"})
        await r.app.send({"event": "mark", "mark": {"name": "cut"}})
        await until(lambda: r.app.events("mark"), "clear done")
        before = len(channel.frames)
        await until(lambda: len(channel.frames) > before + 10, "silence")
        assert not any(any(frame) for frame in channel.frames[before + 3 :])
        await channel.hang_up()
        report = await r.report()
    figures = report.figures
    heard = channel.audio()
    (cleared,) = [one for one in report.milestones if one.event == "clear"]
    assert cleared.detail["dropped_ms"] == 4000 - figures.frames_played * 20
    assert figures.frames_dropped == {"clear": 200 - figures.frames_played}
    assert len(heard) == figures.frames_played + 1
    assert any(heard[-1][: rate // 100])
    assert not any(heard[-1][rate // 100 :])
    # Heard as at 8 kHz: one turn of half a second, and its answer.
    assert figures.turns == 1
    assert abs(figures.caller_talk_ms - 500) <= 100
    assert figures.response_ms["count"] == 1
    assert abs(figures.app_talk_ms - figures.frames_played * 20) <= 100


async def test_a_recording_has_the_rate_of_the_call(
    tmp_path: Path, media_format: MediaFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "SimpleQueue", WatchedQueue)
    rate = media_format.sample_rate
    spoken = tone(440, 1, rate).astype("<i2").tobytes()
    async with rig(recordings=RecordingOptions(tmp_path, min_free_mb=0)) as r:
        channel = await r.talking(media_format=media_format, recording=True)
        await r.app.say(tone(3000, 1, rate).astype("<i2").tobytes())
        await say(
            channel, KINDS[media_format], [spoken[at : at + rate // 25] for at in range(0, len(spoken), rate // 25)]
        )
        await until(lambda: len(channel.audio()) >= 50, "all of it played")
        await channel.hang_up()
        report = await r.report()
    with wave.open(report.recording) as file:
        assert (file.getnchannels(), file.getframerate()) == (2, rate)
        sides = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, 2)
    assert dominant_frequency(sides[:, 0], rate) == pytest.approx(440, abs=3)
    assert dominant_frequency(sides[:, 1], rate) == pytest.approx(3000, abs=3)


async def test_twilio_is_refused(media_format: MediaFormat) -> None:
    async with rig() as r:
        channel = await r.call(media_format=media_format, dialect="twilio")
        await channel.ended()
        report = await r.report()
    assert report.reason == "worker_error"
    assert report.detail == f"media format {media_format}: Twilio's streams have 8000 Hz: use slin, ulaw or alaw"
