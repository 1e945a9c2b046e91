"""Media legs that break under a live call: another one takes their place, and nobody is hung up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from audiosocket.settings import split_host_port
from tests.live import Live, leg, live_system
from tests.relay import Relay, relaying
from tests.worker_rig import until
from tools.asterisk.install import AsteriskInstall
from tools.asterisk.local import merge
from tools.audio.tones import dominant_frequency, tone, tone_share
from tools.sip.sipp import Call, Ending

pytestmark = [pytest.mark.asterisk, pytest.mark.asyncio(loop_scope="module")]

RELAY = "127.0.0.5"
"""What the workers announce: the relay's address, on their own ports."""
MOST_MISSING = 0.3
"""Seconds of audio that one replacement may cost, in each direction."""


@asynccontextmanager
async def relayed(
    install: AsteriskInstall, folder: Path, kind: str = "audiosocket", **controller: Any
) -> AsyncIterator[tuple[Live, Relay]]:
    """A system whose media legs go through a relay."""
    changes = merge({"gateway": {"advertise": RELAY, "workers": 1}, "controller": controller}, leg(kind))
    async with live_system(install, folder, calls=20, changes=changes) as live:
        gateway = live.system.config.gateway
        host, port = split_host_port(gateway.websocket_listen or gateway.listen)
        async with relaying(RELAY, host, port) as relay:
            yield live, relay


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def system(
    asterisk_install: AsteriskInstall, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[Live, Relay]]:
    async with relayed(asterisk_install, tmp_path_factory.mktemp("lost"), leg_hold_seconds=4) as found:
        yield found


@pytest_asyncio.fixture(loop_scope="module")
async def live(system: tuple[Live, Relay]) -> AsyncIterator[Live]:
    """The system, whose application is fresh, and on which nothing may be left by a test."""
    async with system[0].fresh():
        yield system[0]


@pytest.fixture
def relay(system: tuple[Live, Relay]) -> Relay:
    system[1].links.clear()
    system[1].refusing = False
    return system[1]


def seconds_of_sound(samples: np.ndarray[Any, Any]) -> float:
    """Length of what is loud, in frames of 20 ms."""
    frames = samples[: len(samples) // 160 * 160].reshape(-1, 160)
    return float(np.count_nonzero(np.abs(frames.astype(int)).max(axis=1) > 1000)) * 0.02


async def breaks(live: Live, relay: Relay, how: str, times: int = 1, pause: float = 1.0) -> Call:
    """A call in which both sides sound a tone while its leg is broken so often."""
    call = await live.joined(await live.talking())
    seconds = 1.5 + times * pause
    call.peer.play(tone(425, seconds))
    await live.app.say(tone(1000, seconds).tobytes())
    await live.app.send({"event": "mark", "mark": {"name": "spoken"}})
    await asyncio.sleep(0.5)
    for number in range(1, times + 1):
        await relay.connected(number)
        relay.break_last(how)
        await asyncio.sleep(pause)
    await relay.connected(times + 1)
    await until(lambda: live.app.events("mark"), "the mark behind the tone", 10)
    await asyncio.sleep(0.5)
    return call


async def whole(live: Live, call: Call, times: int, seconds: float, kind: str = "AudioSocket/") -> None:
    """Checks what has been heard on both sides, and the record."""
    heard = call.peer.received_pcm_by_timestamp()
    at_app = live.heard_by_app()
    missing = {"caller": seconds - seconds_of_sound(heard), "application": seconds - seconds_of_sound(at_app)}
    print(f"missing after {times} losses: { {side: round(each * 1000) for side, each in missing.items()} } ms")
    assert all(-0.05 <= each <= times * MOST_MISSING for each in missing.values()), missing
    assert dominant_frequency(heard) == pytest.approx(1000, abs=3)
    assert tone_share(at_app, 425) > 0.9
    assert len(live.app.sockets) == len(live.app.events("start")) == 1, "one stream"
    assert not live.app.events("stop")
    assert not live.app.closed
    channels = [channel.name for channel in await live.ari.list_channels()]
    assert sum(name.startswith(kind) for name in channels) == 1
    assert await call.hang_up() is Ending.BY_US
    row = await live.record(call)
    assert (row.result, row.reason, row.hangup_cause) == ("success", "caller_hangup", 16)
    assert row.media is not None
    assert row.media.legs_replaced == times
    assert row.media.leg_gap_ms <= times * 300
    played, lost = row.media.frames_played, row.media.frames_dropped.get("leg_lost", 0)
    assert played + lost == pytest.approx(seconds * 50, abs=1)
    events = [event.event for event in await live.system.events(row.call_id)]
    assert events.count("leg_lost") == events.count("media_leg_replaced") == times
    print(f"gap {row.media.leg_gap_ms} ms, {lost} frames of {round(seconds * 50)} played to nobody")
    assert len([each for each in await live.records() if each.caller == call.caller]) == 1


@pytest.mark.parametrize("how", ["reset", "fin", "reset worker", "reset asterisk", "fin worker", "fin asterisk"])
async def test_a_leg_that_breaks_is_replaced_and_the_stream_goes_on(live: Live, relay: Relay, how: str) -> None:
    call = await breaks(live, relay, how)
    await whole(live, call, 1, 2.5)


async def test_five_legs_break_in_a_row(live: Live, relay: Relay) -> None:
    call = await breaks(live, relay, "reset", times=5, pause=1.0)
    await whole(live, call, 5, 6.5)


async def test_all_legs_break_at_once(live: Live, relay: Relay) -> None:
    calls = [await live.joined(await live.talking()) for _ in range(12)]
    for number, call in enumerate(calls):
        call.peer.play(tone(450 + 100 * number, 3))
    await asyncio.sleep(0.5)
    for link in list(relay.links):
        relay.break_link(link, "reset")
    await until(lambda: len(relay.links) == 2 * len(calls), "further legs")
    await asyncio.sleep(1)
    live.app.messages[:] = [message for message in live.app.messages if message["event"] != "media"]
    await asyncio.sleep(1)
    assert not live.app.closed
    sids = {message["stream_sid"] for message in live.app.events("media")}
    found = sorted(round(dominant_frequency(live.heard_by_app(sid))) for sid in sids)
    assert found == pytest.approx([450 + 100 * number for number in range(len(calls))], abs=4), "each its own caller"
    await asyncio.gather(*(call.hang_up() for call in calls))
    gaps = []
    for call in calls:
        row = await live.record(call)
        assert row.reason == "caller_hangup"
        assert row.media is not None
        assert row.media.legs_replaced == 1
        gaps.append(row.media.leg_gap_ms)
    print(f"gaps of {len(calls)} legs at once: {sorted(gaps)} ms")
    assert max(gaps) < 1000


async def hears_the_application(live: Live, call: Call, hz: float) -> bool:
    began = asyncio.get_running_loop().time()
    await live.app.say(tone(hz, 0.6).tobytes())
    await asyncio.sleep(0.9)
    return abs(dominant_frequency(call.peer.received_pcm(start=began, seconds=0.9)) - hz) < 5


async def test_hanging_up_is_no_loss_and_takes_no_longer(live: Live, relay: Relay) -> None:
    call = await live.joined(await live.talking())
    await asyncio.sleep(0.3)
    began = asyncio.get_running_loop().time()
    await call.hang_up()
    await until(lambda: live.app.events("stop"), "stop message")
    took = asyncio.get_running_loop().time() - began
    row = await live.record(call)
    assert (row.result, row.reason) == ("success", "caller_hangup")
    assert row.media is not None
    assert (row.media.legs_replaced, row.media.leg_gap_ms) == (0, 0)
    assert not {event.event for event in await live.system.events(row.call_id)} & {"leg_lost", "media_leg_not_replaced"}
    print(f"from BYE to stop: {took * 1000:.0f} ms")
    assert took < 1
    assert len(relay.links) == 1


async def test_a_caller_hangs_up_while_there_is_no_leg(live: Live, relay: Relay) -> None:
    call = await live.joined(await live.talking())
    relay.refusing = True
    relay.break_last("reset")
    await asyncio.sleep(1)
    assert not live.app.events("stop")
    began = asyncio.get_running_loop().time()
    await call.hang_up()
    await until(lambda: live.app.events("stop"), "stop message")
    assert asyncio.get_running_loop().time() - began < 1
    row = await live.record(call)
    assert (row.result, row.reason) == ("success", "caller_hangup")


async def test_a_call_whose_leg_cannot_be_replaced_ends(live: Live, relay: Relay) -> None:
    call = await live.joined(await live.talking())
    relay.refusing = True
    relay.break_last("reset")
    began = asyncio.get_running_loop().time()
    assert await call.ended() is Ending.BY_THEM
    assert 3 < asyncio.get_running_loop().time() - began < 8
    row = await live.record(call)
    assert (row.result, row.reason, row.hangup_cause) == ("server_error", "media_leg_lost", 38)
    assert row.media is not None
    assert row.media.legs_replaced == 0
    events = [event.event for event in await live.system.events(row.call_id)]
    assert "media_leg_not_replaced" in events
    assert 3 < events.count("replace_due") <= 12
    assert live.app.events("stop")[0]["stop"]["reason"] == "callended"


async def test_a_link_that_is_back_in_time(live: Live, relay: Relay) -> None:
    call = await live.joined(await live.talking())
    relay.refusing = True
    relay.break_last("reset")
    await asyncio.sleep(2)
    relay.refusing = False
    await relay.connected(2)
    await asyncio.sleep(0.5)
    assert await hears_the_application(live, call, 700)
    await call.hang_up()
    row = await live.record(call)
    assert row.reason == "caller_hangup"
    assert row.media is not None
    assert row.media.legs_replaced == 1
    assert 1500 < row.media.leg_gap_ms < 4000


async def test_a_leg_that_breaks_while_no_controller_runs(live: Live, relay: Relay) -> None:
    call = await live.joined(await live.talking())
    await live.system.controller.kill()
    relay.break_last("reset")
    await live.system.controller.start()
    await relay.connected(2)
    await asyncio.sleep(0.5)
    assert await hears_the_application(live, call, 700)
    relay.break_last("fin")
    await relay.connected(3)
    await asyncio.sleep(0.5)
    assert await hears_the_application(live, call, 900)
    assert len(live.app.sockets) == 1
    await call.hang_up()
    row = await live.record(call)
    assert (row.result, row.reason) == ("success", "caller_hangup")
    assert row.media is not None
    assert row.media.legs_replaced == 2


async def test_a_controller_that_comes_too_late_closes_the_record(live: Live, relay: Relay) -> None:
    call = await live.joined(await live.talking())
    await live.system.controller.kill()
    relay.break_last("fin")
    await until(lambda: live.app.events("stop"), "the application's stop", 8)
    await live.system.controller.start()
    assert await call.ended() is Ending.BY_THEM
    row = await live.record(call)
    assert (row.result, row.reason) == ("server_error", "media_leg_lost")
    assert row.media is not None
    assert len(relay.links) == 1


async def test_zero_seconds_end_the_call_with_its_leg(asterisk_install: AsteriskInstall, tmp_path: Path) -> None:
    async with relayed(asterisk_install, tmp_path, leg_hold_seconds=0) as (live, relay):
        call = await live.joined(await live.talking())
        relay.break_last("reset")
        assert await call.ended() is Ending.BY_THEM
        row = await live.record(call)
        assert (row.result, row.reason) == ("server_error", "media_leg_lost")
        await live.nothing_left()
        assert len(relay.links) == 1


async def test_a_websocket_leg_is_replaced_in_the_same_way(asterisk_install: AsteriskInstall, tmp_path: Path) -> None:
    async with relayed(asterisk_install, tmp_path, "websocket") as (live, relay):
        for how in ("reset", "fin", "reset asterisk"):
            relay.links.clear()
            live.app.messages.clear()
            live.app.sockets.clear()
            await whole(live, await breaks(live, relay, how), 1, 2.5, "WebSocket/")
            live.app.closed = 0
        await live.nothing_left()
