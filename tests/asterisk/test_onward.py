"""Callers before the answer and after the application, through real Asterisk: ringing, digits, dialplan, transfer."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from aiohttp import web

from ari_app.domain.ids import CallId, bridge_id
from tests.live import Live, caller, live_system, loud_packets
from tests.pbx import SCENARIOS
from tests.worker_rig import until
from tools.asterisk.install import AsteriskInstall
from tools.asterisk.local import free_ports
from tools.audio.tones import dominant_frequency, tone, tone_share
from tools.process import guarded
from tools.sip import rtp_packet
from tools.sip.rtp_peer import RtpPeer, RtpTicker
from tools.sip.sipp import Call, CallRefused, Ending

pytestmark = [pytest.mark.asterisk, pytest.mark.asyncio(loop_scope="module")]

DESK = "127.0.0.4"
DESK_NUMBER = "+918000000009"
DIGITS, CONNECTED, SPEAKING, NOT_THERE, NOT_THERE_RINGING, EXTENSION, TRANSFER, SHORT_TRANSFER, CHAIN = (
    f"+9180000001{number:02}" for number in range(9)
)
CLOCKS_MS = 5
"""What times of the worker's and SIPp's may differ by, on one machine: of each the milliseconds are rounded."""
DIALPLAN = """[trunkbridge-after-application]
exten => sorry,1,Answer()
 same => n,Playback(hello-world)
 same => n,Hangup(31)
exten => goodbye,1,Playback(hello-world)
"""


@dataclass
class Onward:
    """The system, and where the trunk that calls are transferred to is called at."""

    live: Live
    desk_port: int


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def system(asterisk_install: AsteriskInstall, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Onward]:
    (desk_port, dead) = free_ports(2)
    folder = tmp_path_factory.mktemp("onward")

    def transfer(seconds: int) -> dict[str, Any]:
        return {"transfer": {"to": DESK_NUMBER, "trunk": "desk", "timeout_seconds": seconds}}

    applications: dict[str, dict[str, Any]] = {
        "digits": {"digits_to_caller": True},
        "extension": {"after": {"extension": "goodbye"}},
        "transfer": {"after": transfer(20)},
        "short-transfer": {"after": transfer(1)},
        "chain": {"after": {"application": "extension"}},
        "not-there": {"url": f"ws://127.0.0.1:{dead}/", "fallback": {"after": {"extension": "sorry"}}},
    }
    changes: dict[str, Any] = {
        "trunks": {"desk": {"identify": [DESK], "contact": f"{DESK}:{desk_port}", "codecs": ["ulaw"]}},
        "routes": [
            {"did": DIGITS, "application": "digits"},
            {"did": CONNECTED, "application": "scripted", "answer": "when_connected"},
            {"did": SPEAKING, "application": "scripted", "answer": "when_speaking", "answer_within_seconds": 2},
            {"did": NOT_THERE, "application": "not-there"},
            {"did": NOT_THERE_RINGING, "application": "refused", "answer": "when_connected"},
            {"did": EXTENSION, "application": "extension"},
            {"did": TRANSFER, "application": "transfer"},
            {"did": SHORT_TRANSFER, "application": "short-transfer"},
            {"did": CHAIN, "application": "chain"},
        ],
    }
    async with live_system(asterisk_install, folder, calls=20, changes=changes, applications=applications) as live:
        (live.system.asterisk.layout.etc / "extensions-after-application.conf").write_text(DIALPLAN)
        await live.system.asterisk.rx("dialplan reload")
        yield Onward(live, desk_port)


@pytest_asyncio.fixture(loop_scope="module")
async def live(system: Onward) -> AsyncIterator[Live]:
    """The system, whose application is fresh, and on which nothing may be left by a test."""
    async with system.live.fresh():
        yield system.live


@asynccontextmanager
async def desk(system: Onward, scenario: str, *keys: str) -> AsyncIterator[Path]:
    """SIPp as the trunk's other end, for one call; the file with its messages. It must have gone as in the scenario."""
    folder = system.live.folder / f"desk-{time.monotonic_ns()}"
    folder.mkdir()
    sipp = shutil.which("sipp")
    assert sipp is not None
    process = await asyncio.create_subprocess_exec(
        *guarded(sipp, "-sf", str(SCENARIOS / scenario), "-i", DESK, "-p", str(system.desk_port), "-m", "1"),
        *("-nostdin", "-trace_msg", "-message_file", "messages.log", *keys),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        cwd=folder,
    )
    try:
        yield folder / "messages.log"
        async with asyncio.timeout(10):
            assert await process.wait() == 0, (folder / "messages.log").read_text()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def loud(call: Call, since: float, seconds: float) -> bool:
    return bool(np.abs(call.peer.received_pcm(start=since, seconds=seconds).astype(int)).max(initial=0) > 1000)


# Before the answer


async def test_the_caller_rings_until_the_application_is_connected(live: Live) -> None:
    connect = asyncio.Event()

    async def slow(_request: web.Request) -> None:
        await connect.wait()

    live.app.before_upgrade = slow
    call = live.ulaw.call(CONNECTED, caller())
    await until(lambda: live.app.requests, "the handshake")
    await asyncio.sleep(0.5)
    assert call.answered_at is None
    connect.set()
    began = time.monotonic()
    await call.answered()
    assert call.ringing_at is not None
    assert call.answered_at is not None
    assert call.invited_at is not None
    assert call.ringing_at - call.invited_at < 0.5 <= call.answered_at - call.invited_at
    assert call.answered_at - began < 0.5
    await live.app.say(tone(1000, 1).tobytes())
    await until(lambda: live.app.events("media"), "audio at the application")
    heard_at = time.monotonic()
    await asyncio.sleep(1.3)
    packets = loud_packets(call)
    assert len(packets) == 50, "the greeting from its beginning to its end"
    assert dominant_frequency(np.concatenate([pcm for _, pcm in packets])) == pytest.approx(1000, abs=2)
    await call.hang_up()
    row = await live.record(call)
    assert (row.result, row.reason) == ("success", "caller_hangup")
    assert row.media is not None
    # The controller has the call before the application's half second, and it may not be told later than it is heard.
    for took_ms, at in ((row.media.setup_app_ms, packets[0][0]), (row.media.setup_caller_ms, heard_at)):
        assert 500 <= took_ms <= (at - call.invited_at) * 1000 + CLOCKS_MS


async def test_the_caller_is_answered_at_the_application_s_first_audio(live: Live) -> None:
    call = live.ulaw.call(SPEAKING, caller())
    await until(lambda: live.app.events("start"), "start message")
    await live.app.say(bytes(8000))
    await asyncio.sleep(0.5)
    assert call.answered_at is None, "silence is no word"
    await live.app.say(tone(1000, 1).tobytes())
    await call.answered(1)
    await asyncio.sleep(1.8)
    packets = loud_packets(call)
    assert len(packets) == 50, "the greeting from its beginning to its end"
    assert dominant_frequency(np.concatenate([pcm for _, pcm in packets])) == pytest.approx(1000, abs=2)
    await call.hang_up()


async def test_an_application_that_says_nothing_is_answered_for_in_time(live: Live) -> None:
    call = live.ulaw.call(SPEAKING, caller())
    await call.answered(5)
    assert call.answered_at is not None
    assert call.invited_at is not None
    assert call.answered_at - call.invited_at == pytest.approx(2, abs=0.3)
    await call.hang_up()


async def test_a_call_whose_application_is_not_there_is_refused(live: Live) -> None:
    call = live.ulaw.call(NOT_THERE_RINGING, caller())
    with pytest.raises(CallRefused) as refused:
        await call.answered()
    assert refused.value.sip_code == 503
    row = await live.record(call)
    assert (row.result, row.reason, row.answered_at) == ("upstream_error", "application_refused", None)
    assert row.hangup_cause == 42


async def test_a_caller_who_gives_up_while_it_rings(live: Live) -> None:
    call = live.ulaw.call(SPEAKING, caller())
    await until(lambda: live.app.events("start"), "start message")
    assert await call.hang_up() is Ending.CANCELLED
    await until(lambda: live.app.closed, "the application's end")
    row = await live.record(call)
    assert (row.result, row.reason) == ("client_error", "caller_cancelled")


@pytest.mark.parametrize("bridged", [False, True], ids=["", "bridged"])
async def test_a_controller_killed_while_it_rings(live: Live, bridged: bool) -> None:
    call = live.ulaw.call(SPEAKING, caller())
    await until(lambda: live.app.events("start"), "start message")
    row = await live.record(call, ended=False)
    if bridged:  # in the moment before the answer
        bridge = bridge_id(row.node, CallId(row.call_id))
        await live.ari.create_bridge(bridge)
        await live.ari.add_to_bridge(bridge, *(channel.id for channel in await live.ari.list_channels()))
    await live.system.controller.kill()
    await live.system.controller.start()
    with pytest.raises(CallRefused) as refused:
        await call.answered()
    assert refused.value.sip_code == 503
    assert (await live.record(call)).reason == "controller_restarted"


# Digits


async def test_each_digit_reaches_the_caller_once(live: Live) -> None:
    call = await live.talking(DIGITS)
    await live.app.say(tone(500, 3).tobytes())
    for digits in ("15#", "*"):
        await live.app.send({"event": "dtmf", "dtmf": {"digits": digits}})
    await until(lambda: len(digits_heard(call)) >= 4, "four digits")
    await asyncio.sleep(0.5)
    events = digits_heard(call)
    assert [digit for digit, _ in events] == ["1", "5", "#", "*"]
    assert all(80 <= milliseconds <= 250 for _, milliseconds in events), events
    await call.hang_up()


def digits_heard(call: Call) -> list[tuple[str, float]]:
    """The telephone events that have ended, with their length in ms: packets of one timestamp are one event."""
    heard: dict[int, tuple[str, float]] = {}
    for packet in call.peer.packets:
        if packet.payload_type == rtp_packet.PT_EVENT:
            event = rtp_packet.decode_event(packet.payload)
            if event.end:
                heard[packet.timestamp] = (event.digit, event.duration / 8)
    return list(heard.values())


# After the application


async def test_the_caller_goes_on_at_an_extension(live: Live) -> None:
    call = await live.talking(EXTENSION)
    await asyncio.sleep(0.3)
    closed = time.monotonic()
    await live.app.sockets[-1].close()
    row = await live.record(call)
    assert call.ending is None, "the record is closed, the call goes on"
    assert (row.result, row.reason) == ("success", "continued")
    assert row.detail == "to extension goodbye, after application_ended"
    assert await call.ended() is Ending.BY_THEM
    assert loud(call, closed, 3), "the extension has been heard"


async def test_a_caller_whose_application_is_not_there_goes_on_elsewhere(live: Live) -> None:
    call = live.ulaw.call(NOT_THERE, caller())
    await call.answered()
    began = time.monotonic()
    assert await call.ended() is Ending.BY_THEM
    assert loud(call, began, 3)
    assert call.reason is not None
    assert "cause=31" in call.reason, "the extension's own"
    row = await live.record(call)
    assert (row.result, row.reason) == ("upstream_error", "application_refused")
    assert "extension sorry" in (row.detail or "")


async def test_an_application_follows_another_and_says_where_it_goes_on(live: Live) -> None:
    call = await live.talking(CHAIN)
    first = live.app.events("start")[-1]
    await live.app.sockets[-1].close()
    await until(lambda: len(live.app.events("start")) == 2, "the second application")
    second = live.app.events("start")[-1]
    assert first["start"]["call_sid"] == second["start"]["call_sid"]
    assert first["stream_sid"] != second["stream_sid"]
    await live.app.sockets[-1].close()
    assert await call.ended() is Ending.BY_THEM
    row = await live.record(call)
    assert (row.reason, row.detail) == ("continued", "to extension goodbye, after application_ended")


async def test_a_transfer_joins_the_caller_and_whom_it_is_to(live: Live, system: Onward) -> None:
    async with RtpTicker() as ticker:
        peer = RtpPeer.open(ticker, DESK)
        host, port = peer.address
        async with desk(system, "answers.xml", "-key", "audio_host", host, "-key", "audio_port", str(port)) as messages:
            call = await live.talking(TRANSFER)
            await live.app.sockets[-1].close()
            row = await live.record(call)
            assert (row.result, row.reason) == ("success", "transferred")
            await until(lambda: peer.packets, "audio at the desk")
            began = time.monotonic()
            call.peer.play(tone(425, 1.5))
            peer.play(tone(1000, 1.5))
            await asyncio.sleep(2)
            for heard, frequency in ((peer, 425), (call.peer, 1000)):
                pcm = heard.received_pcm(start=began + 0.5, seconds=0.8)
                assert dominant_frequency(pcm) == pytest.approx(frequency, abs=2)
                assert tone_share(pcm, frequency) > 0.95
            await call.hang_up()
        invite = messages.read_text()
        assert f"INVITE sip:{DESK_NUMBER}@{DESK}:" in invite
        assert f"<sip:{call.caller}@" in invite, "the caller's own number"


async def test_a_caller_who_hangs_up_during_the_transfer(live: Live, system: Onward) -> None:
    async with desk(system, "rings.xml") as messages:
        call = await live.talking(TRANSFER)
        await live.app.sockets[-1].close()
        await live.record(call)
        await until(lambda: messages.exists() and "180 Ringing" in messages.read_text(), "ringing at the desk")
        assert await call.hang_up() is Ending.BY_US


@pytest.mark.parametrize(
    ("scenario", "number", "cause"), [("busy.xml", TRANSFER, 17), ("rings.xml", SHORT_TRANSFER, 19)]
)
async def test_a_transfer_that_nobody_answers(
    live: Live, system: Onward, scenario: str, number: str, cause: int
) -> None:
    async with desk(system, scenario):
        call = await live.talking(number)
        await live.app.sockets[-1].close()
        assert await call.ended() is Ending.BY_THEM
        assert call.reason is not None
        assert f"cause={cause}" in call.reason
    assert (await live.record(call)).reason == "transferred"
