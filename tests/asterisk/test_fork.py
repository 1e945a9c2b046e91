"""Forks through real Asterisk: the application hears the caller while he talks to somebody else."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from tests.asterisk.test_onward import DESK, DESK_NUMBER, Onward, caller, desk
from tests.live import Live, live_system
from tests.worker_rig import until
from tools.asterisk.install import AsteriskInstall
from tools.asterisk.local import free_ports
from tools.audio.pcm import Pcm
from tools.audio.tones import dominant_frequency, tone, tone_share
from tools.sip.rtp_peer import RtpPeer, RtpTicker
from tools.sip.sipp import Call, Ending

pytestmark = [pytest.mark.asterisk, pytest.mark.asyncio(loop_scope="module")]

FORK, RINGING, REFUSED, EXTENSION, SHORT, LIMITED = (f"+9180000002{number:02}" for number in range(6))
WENT_ON = f"the caller went on to {DESK_NUMBER} on desk"
DIALPLAN = """[trunkbridge-after-application]
exten => ivr,1,Answer()
 same => n,Playback(hello-world)
 same => n,Hangup(31)
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["audiosocket", "rtp"])
async def system(
    request: pytest.FixtureRequest, asterisk_install: AsteriskInstall, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Onward]:
    (desk_port, dead, rtp_port, *_) = free_ports(6)
    folder = tmp_path_factory.mktemp("fork")

    def fork(**more: Any) -> dict[str, Any]:
        transfer = {"to": DESK_NUMBER, "trunk": "desk", "timeout_seconds": 20}
        return {"one_way": True, "after": {"transfer": transfer}} | more

    applications: dict[str, dict[str, Any]] = {
        "fork": fork(),
        "not-there": fork(url=f"ws://127.0.0.1:{dead}/"),
        "ivr": fork(after={"extension": "ivr"}),
        "short": fork(max_seconds=1),
    }
    changes: dict[str, Any] = {
        "trunks": {"desk": {"identify": [DESK], "contact": f"{DESK}:{desk_port}", "codecs": ["ulaw"]}},
        "routes": [
            {"did": FORK, "application": "fork"},
            {"did": RINGING, "application": "fork", "answer": "when_connected"},
            {"did": REFUSED, "application": "not-there"},
            {"did": EXTENSION, "application": "ivr"},
            {"did": SHORT, "application": "short"},
            {"did": LIMITED, "application": "fork", "max_seconds": 2},
        ],
    }
    if request.param == "rtp":
        changes["gateway"] = {"rtp_listen": f"127.0.0.1:{rtp_port}"}
    async with live_system(asterisk_install, folder, calls=20, changes=changes, applications=applications) as live:
        (live.system.asterisk.layout.etc / "extensions-after-application.conf").write_text(DIALPLAN)
        await live.system.asterisk.rx("dialplan reload")
        yield Onward(live, desk_port)


@pytest_asyncio.fixture(loop_scope="module")
async def live(system: Onward) -> AsyncIterator[Live]:
    """The system, whose application is fresh, and on which nothing may be left by a test."""
    async with system.live.fresh():
        yield system.live


@dataclass
class Talk:
    """A caller, and whom he was put through to."""

    call: Call
    agent: RtpPeer
    live: Live

    async def hear_each_other(self, caller_hz: float, agent_hz: float, *, forked: bool) -> None:
        """Both play a tone: each hears the other's, and the application, while it listens, the caller's alone."""
        before = len(self.live.app.events("media"))
        began = time.monotonic()
        self.call.peer.play(tone(caller_hz, 1.5))
        self.agent.play(tone(agent_hz, 1.5))
        await asyncio.sleep(2)
        for peer, hz in ((self.agent, caller_hz), (self.call.peer, agent_hz)):
            pcm = peer.received_pcm(start=began + 0.5, seconds=0.8)
            assert dominant_frequency(pcm) == pytest.approx(hz, abs=2)
            assert tone_share(pcm, hz) > 0.95
        heard = self.live.app.events("media")[before:]
        if not forked:
            assert len(heard) < 10, "it listens no more"
            return
        # 20 ms a message: nothing is missing, and nothing comes twice.
        assert 90 <= len(heard) <= 110
        pcm = loudest(heard_by(heard), 0.8)
        assert dominant_frequency(pcm) == pytest.approx(caller_hz, abs=2)
        assert tone_share(pcm, caller_hz) > 0.95, "of the agent it hears nothing"

    async def state(self) -> str:
        return (await self.live.record(self.call, ended=False)).state

    async def reached(self, state: str) -> None:
        # That the worker of an RTP leg has gone is known after 5 to 7 s, and 5 s more are waited for its report.
        async with asyncio.timeout(20):
            while await self.state() != state:
                await asyncio.sleep(0.05)


def heard_by(messages: list[dict[str, Any]]) -> Pcm:
    return np.frombuffer(b"".join(base64.b64decode(message["media"]["payload"]) for message in messages), np.int16)


def loudest(pcm: Pcm, seconds: float) -> Pcm:
    """So much of the audio, from where it gets loud and has had time to settle."""
    start = int(np.argmax(np.abs(pcm.astype(int)) > 1000)) + 2400
    return pcm[start : start + int(seconds * 8000)]


@asynccontextmanager
async def talk(system: Onward, number: str) -> AsyncIterator[Talk]:
    """A caller who is put through, and whose conversation has begun; the desk is hung up at the end."""
    live = system.live
    async with RtpTicker() as ticker:
        agent = RtpPeer.open(ticker, DESK)
        host, port = agent.address
        async with desk(system, "answers.xml", "-key", "audio_host", host, "-key", "audio_port", str(port)):
            call = live.ulaw.call(number, caller())
            try:
                await call.answered()
                await until(lambda: agent.packets, "audio at the desk")
                yield Talk(call, agent, live)
            finally:
                if call.ending is None:
                    await call.hang_up()


async def test_the_application_hears_the_caller_while_he_talks_to_an_agent(live: Live, system: Onward) -> None:
    async with talk(system, FORK) as talking:
        await talking.hear_each_other(425, 1000, forked=True)
        row = await live.record(talking.call, ended=False)
        assert (row.state, row.ended_at, row.detail) == ("forked", None, WENT_ON)
        assert len(await live.sessions()) == 1
        assert await talking.call.hang_up() is Ending.BY_US
        row = await live.record(talking.call)
    assert (row.result, row.reason, row.detail) == ("success", "caller_hangup", WENT_ON)
    assert row.answered_at is not None
    assert row.connected_at is not None
    assert row.media is not None
    assert row.media.caller_frames > 90
    await until(lambda: live.app.closed, "the application's end")
    (stop,) = live.app.events("stop")
    assert stop["stop"]["reason"] == "callended"


async def test_the_caller_goes_on_when_the_application_closes(live: Live, system: Onward) -> None:
    async with talk(system, FORK) as talking:
        await talking.hear_each_other(425, 1000, forked=True)
        await live.app.sockets[-1].close()
        await talking.reached("parted")
        assert len(await live.ari.list_channels()) == 2, "the two, and nothing of ours"
        assert await live.sessions() == []
        await talking.hear_each_other(600, 1400, forked=False)
        await talking.call.hang_up()
        row = await live.record(talking.call)
    assert (row.result, row.reason, row.detail) == ("success", "caller_hangup", WENT_ON)


async def test_a_transfer_works_without_its_application(live: Live, system: Onward) -> None:
    async with talk(system, REFUSED) as talking:
        await talking.hear_each_other(425, 1000, forked=False)
        await talking.reached("parted")
        await talking.call.hang_up()
        row = await live.record(talking.call)
    assert (row.result, row.reason) == ("upstream_error", "application_refused")
    assert (row.detail or "").endswith(WENT_ON)
    assert row.media is not None
    assert row.media.prompt_played == 0, "neither prompt nor tone"


async def test_a_controller_killed_and_started_again_while_forked(live: Live, system: Onward) -> None:
    async with talk(system, FORK) as talking:
        await talking.hear_each_other(425, 1000, forked=True)
        await talking.reached("forked")
        await live.system.controller.kill()
        await talking.hear_each_other(600, 1400, forked=True)
        await live.system.controller.start()
        await asyncio.sleep(3)  # past the time at which orphans are ended
        await talking.hear_each_other(500, 1200, forked=True)
        await talking.call.hang_up()
        row = await live.record(talking.call)
    assert (row.result, row.reason, row.detail) == ("success", "caller_hangup", WENT_ON)
    assert row.media is not None
    assert row.media.caller_frames > 300
    assert "adopted" in [event.event for event in await live.system.events(row.call_id)]


async def test_a_stream_that_ends_while_no_controller_runs(live: Live, system: Onward) -> None:
    async with talk(system, FORK) as talking:
        await talking.reached("forked")
        await live.system.controller.kill()
        await live.app.sockets[-1].close()
        await until(lambda: live.app.closed, "the application's end")
        await live.system.controller.start()
        await talking.reached("parted")
        await talking.hear_each_other(600, 1400, forked=False)
        await talking.call.hang_up()
        row = await live.record(talking.call)
    assert (row.result, row.reason, row.detail) == ("success", "caller_hangup", WENT_ON)
    assert row.media is not None


async def test_a_worker_killed_while_forked(live: Live, system: Onward) -> None:
    async with talk(system, FORK) as talking:
        await talking.reached("forked")
        await live.system.workers[0].kill()
        await talking.hear_each_other(425, 1000, forked=False)
        await talking.reached("parted")
        await talking.call.hang_up()
        row = await live.record(talking.call)
    assert (row.result, row.reason) == ("server_error", "media_lost")
    await live.system.workers[0].start()


async def test_the_agent_hangs_up(live: Live, system: Onward) -> None:
    async with talk(system, FORK) as talking:
        await talking.reached("forked")
        (agent,) = [channel for channel in await live.ari.list_channels() if channel.name.startswith("PJSIP/desk")]
        await live.ari.hangup(agent.id)
        assert await talking.call.ended() is Ending.BY_THEM
        row = await live.record(talking.call)
    assert (row.result, row.reason, row.detail, row.hangup_cause) == ("success", "transferred", WENT_ON, 16)
    await until(lambda: live.app.closed, "the application's end")
    assert [stop["stop"]["reason"] for stop in live.app.events("stop")] == ["callended"]


async def test_the_route_s_limit_ends_all(live: Live, system: Onward) -> None:
    async with talk(system, LIMITED) as talking:
        began = talking.call.answered_at
        assert await talking.call.ended() is Ending.BY_THEM
        assert began is not None
        assert talking.call.ended_at is not None
        assert talking.call.ended_at - began == pytest.approx(2, abs=0.5)
        row = await live.record(talking.call)
    assert (row.result, row.reason) == ("success", "time_limit")


async def test_the_stream_s_own_limit_ends_the_stream_alone(live: Live, system: Onward) -> None:
    async with talk(system, SHORT) as talking:
        await until(lambda: live.app.closed, "the application's end")
        assert [stop["stop"]["reason"] for stop in live.app.events("stop")] == ["stopped"]
        await talking.hear_each_other(425, 1000, forked=False)
        await talking.call.hang_up()
        row = await live.record(talking.call)
    assert (row.result, row.reason) == ("success", "caller_hangup")


async def test_the_caller_rings_until_the_application_listens(live: Live, system: Onward) -> None:
    async with talk(system, RINGING) as talking:
        await talking.hear_each_other(425, 1000, forked=True)
        assert talking.call.ringing_at is not None
        await talking.call.hang_up()
        row = await live.record(talking.call)
    assert (row.result, row.reason) == ("success", "caller_hangup")


async def test_the_caller_goes_through_a_menu_while_the_application_listens(live: Live) -> None:
    call = live.ulaw.call(EXTENSION, caller())
    await call.answered()
    began = time.monotonic()
    call.peer.play(tone(425, 3))
    assert await call.ended() is Ending.BY_THEM
    assert np.abs(call.peer.received_pcm(start=began, seconds=3).astype(int)).max(initial=0) > 1000
    row = await live.record(call)
    assert (row.result, row.reason) == ("success", "continued")
    assert row.detail == "the caller went on to extension ivr"
    assert row.hangup_cause == 31
    pcm = loudest(heard_by(live.app.events("media")), 0.5)
    assert dominant_frequency(pcm) == pytest.approx(425, abs=2)
    assert tone_share(pcm, 425) > 0.95
