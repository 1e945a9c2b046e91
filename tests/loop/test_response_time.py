"""What a worker says about response times, barge-ins and talk, against applications whose timing is known."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import aiohttp
import pytest

from audiosocket import wire
from audiosocket.callspec import MediaFigures
from tests.replying import GivingWay, Replying
from tests.worker_rig import Asterisk, rig, until
from tools.audio import g711
from tools.audio.tones import tone

pytestmark = [pytest.mark.loop, pytest.mark.virtual_time]

SPEECH = g711.ulaw_encode(tone(440, 0.02))
SILENCE = b"\xff" * 160
REPLY = tone(620, 0.3).astype("<i2").tobytes()
TICK_MS = 20


async def talk(channel: Asterisk, frames: int, payload: bytes) -> float:
    """Sends frames at 20 ms each; returns when the last one left, by the loop's clock."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    for number in range(frames):
        await asyncio.sleep(max(0, began + number * 0.02 - loop.time()))
        channel.send(wire.KIND_AUDIO, payload)
    return loop.time()


def first_heard(channel: Asterisk, after: float) -> float | None:
    """When the first frame that is not silence came after a time."""
    return next(
        (at for at, frame in zip(channel.times, channel.frames, strict=True) if at > after and any(frame)), None
    )


@pytest.mark.parametrize("delay_ms", [300, 700, 1500])
async def test_the_response_time_is_the_applications_delay(delay_ms: int) -> None:
    app = Replying(REPLY, [delay_ms])
    async with rig() as r:
        r.app.behave = app.behave
        channel = await r.call()
        await until(lambda: r.app.sockets, "stream")
        await talk(channel, 10, SILENCE)
        ended = await talk(channel, 40, SPEECH)
        await talk(channel, delay_ms // 20 + 30, SILENCE)
        heard = await until(lambda: first_heard(channel, ended), "reply")
        await channel.hang_up()
        figures = (await r.report()).figures
    (measured,) = {figures.response_ms[name] for name in ("p50", "p95", "p99", "max")}
    assert figures.response_ms["count"] == 1
    assert abs(measured - app.took_ms[0]) <= TICK_MS, (measured, app.took_ms)
    # The caller's end of the leg sees the same, up to the tick that the reply waited for and this process's own turns.
    assert -TICK_MS / 2 <= (heard - ended) * 1000 - measured <= 2 * TICK_MS
    assert (figures.turns, figures.unanswered_turns, figures.interruptions) == (1, 0, 0)
    assert abs(figures.caller_talk_ms - 800) <= TICK_MS
    assert (figures.app_talk_ms, figures.both_talk_ms) == (300, 0)


async def test_every_turn_of_a_call_counts() -> None:
    delays = [200, 600, 400]
    app = Replying(REPLY, delays)
    async with rig() as r:
        r.app.behave = app.behave
        channel = await r.call()
        await until(lambda: r.app.sockets, "stream")
        for delay in delays:
            await talk(channel, 15, SPEECH)
            await talk(channel, delay // 20 + 25, SILENCE)
        await channel.hang_up()
        figures = (await r.report()).figures
    took = sorted(app.took_ms)
    assert figures.turns == figures.response_ms["count"] == len(took) == 3
    assert abs(figures.response_ms["p50"] - took[1]) <= TICK_MS
    assert abs(figures.response_ms["max"] - took[-1]) <= TICK_MS


@pytest.mark.parametrize("reaction_ms", [120, 400])
async def test_the_reaction_to_a_barge_in_is_the_time_to_the_clear(reaction_ms: int) -> None:
    app = GivingWay(tone(620, 10).astype("<i2").tobytes(), reaction_ms)
    async with rig() as r:
        r.app.behave = app.behave
        channel = await r.call()
        await until(channel.audio, "the application's audio")
        await talk(channel, 30, SILENCE)
        await talk(channel, 40, SPEECH)
        await talk(channel, 20, SILENCE)
        await channel.hang_up()
        figures = (await r.report()).figures
    assert figures.barge_in_ms["count"] == 1
    assert abs(figures.barge_in_ms["max"] - app.took_ms) <= TICK_MS, app.took_ms
    assert figures.both_talk_ms == figures.barge_in_ms["max"]
    assert (figures.turns, figures.response_ms, figures.barge_ins_ignored) == (1, {}, 0)


async def test_silence_that_an_application_streams_is_no_talk() -> None:
    async with rig() as r:
        channel = await r.talking()
        await r.app.say(bytes(16_000 * 3))
        await talk(channel, 20, SPEECH)
        await talk(channel, 40, SILENCE)
        await channel.hang_up()
        figures = (await r.report()).figures
    assert (figures.turns, figures.response_ms, figures.app_talk_ms) == (1, {}, 0)
    assert figures.frames_played > 40


async def test_digits_are_no_turns() -> None:
    async with rig() as r:
        channel = await r.talking()
        await talk(channel, 10, SILENCE)
        await talk(channel, 6, SPEECH)  # what is left of the digit's tone
        channel.send(wire.KIND_DTMF, b"5")
        await talk(channel, 15, SILENCE)
        await r.app.say(REPLY)
        await talk(channel, 20, SILENCE)
        await channel.hang_up()
        figures = (await r.report()).figures
    assert (figures.digits, figures.turns, figures.response_ms) == (1, 0, {})


async def test_the_metrics_and_the_live_figures_tell_it_too() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    async with rig(status_host="127.0.0.1", status_port=port) as r, aiohttp.ClientSession() as http:

        async def metrics() -> dict[str, float]:
            async with http.get(f"http://127.0.0.1:{port}/metrics") as answer:
                lines = [line.rpartition(" ") for line in (await answer.text()).splitlines() if line[0] != "#"]
            return {name: float(value) for name, _, value in lines}

        async def one_turn(**changes: Any) -> MediaFigures:
            app = Replying(REPLY, [300])
            r.app.behave = app.behave
            before = len(r.app.sockets)
            channel = await r.call(**changes)
            await until(lambda: len(r.app.sockets) > before, "stream")
            await talk(channel, 10, SILENCE)
            await talk(channel, 15, SPEECH)
            await talk(channel, 40, SILENCE)
            (call,) = r.worker.calls.values()
            live = call.figures()
            assert live.response_ms["count"] == 1
            assert (await metrics())["trunkbridge_turns_total"] == before + 1
            await channel.hang_up()
            assert (await r.report(before + 1)).figures.response_ms == live.response_ms
            return live

        figures = [await one_turn(application=name) for name in ("billing", "sales", "sales")]
        totals = r.worker.totals()
        for name in ("turns", "frames_played", "app_talk_ms", "caller_talk_ms", "caller_frames"):
            assert getattr(totals, name) == sum(getattr(report.figures, name) for report in r.source.reports)
            assert getattr(totals, name) >= sum(getattr(each, name) for each in figures) > 0
        found = await metrics()
        assert found['trunkbridge_response_seconds_bucket{application="billing",le="0.2"}'] == 0
        assert found['trunkbridge_response_seconds_bucket{application="billing",le="0.4"}'] == 1
        assert found['trunkbridge_response_seconds_bucket{application="sales",le="+Inf"}'] == 2
        assert found['trunkbridge_response_seconds_count{application="sales"}'] == 2
        assert found['trunkbridge_response_seconds_sum{application="sales"}'] == pytest.approx(0.6, abs=0.05)
        assert found['trunkbridge_barge_in_seconds_count{application="sales"}'] == 0
        assert found["trunkbridge_turns_total"] == 3
        assert found["trunkbridge_turns_unanswered_total"] == 0
        assert found['trunkbridge_talk_seconds_total{side="app"}'] == pytest.approx(0.9, abs=0.05)
        assert found['trunkbridge_talk_seconds_total{side="caller"}'] == pytest.approx(0.9, abs=0.1)
        assert found['trunkbridge_talk_seconds_total{side="both"}'] == 0
