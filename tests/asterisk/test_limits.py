"""Applications' limits through real Asterisk: who is let in, who waits and hears what, limits that change meanwhile."""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
import wave
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import numpy as np
import pytest
import pytest_asyncio

from tests.live import Live, live_system
from tests.worker_rig import until
from tools.asterisk.install import AsteriskInstall
from tools.asterisk.local import free_ports
from tools.audio.tones import tone, tone_share
from tools.sip.sipp import Call, CallRefused, Ending

pytestmark = [pytest.mark.asterisk, pytest.mark.asyncio(loop_scope="module")]

MUSIC_HZ = 700
DIALPLAN = """[trunkbridge-after-application]
exten => sorry,1,Answer()
 same => n,Playback(hello-world)
 same => n,Hangup(31)
"""
TWO = {"calls": 2}
LIMITS: dict[str, dict[str, Any]] = {
    "two": {"limit": TWO | {"webhook": {"target": 0.8, "min": 1, "max": 50}}},
    "none-busy": {"limit": {"calls": 0}},
    "none-congestion": {"limit": {"calls": 0, "reject_with": "congestion"}},
    "none-unavailable": {"limit": {"calls": 0, "reject_with": "unavailable"}},
    "line": {"limit": {"calls": 1, "when_full": "queue", "queue": {"max_waiting": 2}}},
    "music": {"limit": {"calls": 1, "when_full": "queue", "queue": {"hold_audio": "music:calm"}}},
    "sound": {"limit": {"calls": 1, "when_full": "queue", "queue": {"hold_audio": "sound:hello-world"}}},
    "vain": {"limit": {"calls": 0, "reject_with": "unavailable", "when_full": "queue", "queue": {"max_seconds": 1}}},
    "vain-music": {
        "limit": {
            "calls": 0,
            "when_full": "queue",
            "queue": {"max_seconds": 1, "hold_audio": "music:calm"},
            "redirect": {"extension": "sorry"},
        }
    },
    "sent-on": {"limit": {"calls": 0, "when_full": "redirect", "redirect": {"extension": "sorry"}}},
    "handed-over": {"limit": {"calls": 0, "when_full": "redirect", "redirect": {"application": "overflow"}}},
    "overflow": {"limit": {"calls": 1}},
    "listener": {"one_way": True, "after": {"extension": "sorry"}, "limit": {"calls": 0}},
}
NUMBERS = {name: f"+9180000002{index:02}" for index, name in enumerate(LIMITS)}
_callers = itertools.count(1)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def system(asterisk_install: AsteriskInstall, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Live]:
    folder = tmp_path_factory.mktemp("limits")
    (folder / "music").mkdir()
    with wave.open(str(folder / "music" / "calm.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(tone(MUSIC_HZ, 5).tobytes())
    changes: dict[str, Any] = {
        "asterisk": {"music": {"calm": str(folder / "music")}},
        "api": {"listen": f"127.0.0.1:{free_ports(1)[0]}", "tokens": {"cluster": {"file": "secrets/cluster"}}},
        "routes": [{"did": number, "application": name} for name, number in NUMBERS.items()],
    }
    async with live_system(asterisk_install, folder, calls=20, changes=changes, applications=LIMITS) as live:
        (live.system.asterisk.layout.etc / "extensions-after-application.conf").write_text(DIALPLAN)
        await live.system.asterisk.rx("dialplan reload")
        yield live


@pytest_asyncio.fixture(loop_scope="module")
async def live(system: Live) -> AsyncIterator[Live]:
    """The system, whose application is fresh, and on which nothing may be left by a test."""
    system.app.messages.clear()
    system.app.sockets.clear()
    system.app.requests.clear()
    yield system
    await system.nothing_left()


def dial(live: Live, name: str) -> Call:
    """A call to an application, from a number of its own, which finds its record."""
    return live.ulaw.call(NUMBERS[name], f"+9190002{next(_callers):05d}")


async def talking(live: Live, name: str) -> Call:
    """A call whose stream has started."""
    streams = len(live.app.events("start"))
    call = dial(live, name)
    await call.answered()
    await until(lambda: len(live.app.events("start")) > streams, "start message")
    return call


async def refused(live: Live, name: str) -> int:
    """The SIP status that a call is refused with."""
    call = dial(live, name)
    with pytest.raises(CallRefused) as caught:
        await call.answered()
    return caught.value.sip_code


async def queued(live: Live, name: str, waiting: int) -> Call:
    """A call that waits, with so many in line then."""
    call = dial(live, name)
    async with asyncio.timeout(10):
        while (await state(live, name))["waiting"] != waiting or (
            await live.record(call, ended=False)
        ).state != "queued":
            await asyncio.sleep(0.05)
    return call


async def ask(live: Live, method: str, path: str, body: Any = None) -> Any:
    """What the HTTP interface answers."""
    api = live.system.config.api
    headers = {"Authorization": f"Bearer {api.tokens['cluster'].get_secret_value()}"}
    url = f"http://{api.listen}/v1/applications{path}"
    async with aiohttp.ClientSession(headers=headers) as http, http.request(method, url, json=body) as answer:
        said = await answer.json()
        assert answer.status == 200, said
        return said


async def state(live: Live, name: str) -> Any:
    return await ask(live, "GET", f"/{name}/limit")


async def trunkbridge(live: Live, *arguments: str) -> str:
    """Runs a command; what it prints."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "ari_app.cli.main", *arguments, "-c", str(live.system.config_path)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()
    return said.decode()


def share(call: Call, hertz: float, since: float, seconds: float = 1.0) -> float:
    return tone_share(call.peer.received_pcm(start=since, seconds=seconds), hertz)


def loudest(call: Call, since: float, seconds: float) -> int:
    return int(np.abs(call.peer.received_pcm(start=since, seconds=seconds).astype(int)).max(initial=0))


# Refused


@pytest.mark.parametrize(
    ("reject_with", "status", "cause"), [("busy", 486, 17), ("congestion", 503, 42), ("unavailable", 480, 20)]
)
async def test_a_full_application_refuses_with_the_status_that_was_chosen(
    live: Live, reject_with: str, status: int, cause: int
) -> None:
    call = dial(live, f"none-{reject_with}")
    with pytest.raises(CallRefused) as caught:
        await call.answered()
    assert caught.value.sip_code == status
    row = await live.record(call)
    assert (row.result, row.reason, row.answered_at, row.hangup_cause) == ("server_error", "app_full", None, cause)


async def test_limits_are_changed_while_calls_live(live: Live) -> None:
    calls = [await talking(live, "two"), await talking(live, "two")]
    assert await refused(live, "two") == 486
    assert (await state(live, "two"))["calls"] == 2
    said = json.loads(await trunkbridge(live, "apps", "limit", "two", "3", "-o", "json"))
    assert (said["limit"], said["source"], said["configured"]) == (3, "operator", 2)
    calls.append(await talking(live, "two"))
    assert await refused(live, "two") == 486
    assert (await ask(live, "PUT", "/two/limit", {"limit": 1}))["set_by"] == "api cluster"
    await calls.pop().hang_up()
    assert await refused(live, "two") == 486, "those who talk are left alone, and nobody is let in"
    held = await ask(live, "POST", "/two/utilisation", {"utilisation": 0.1})
    assert (held["limit"], held["source"]) == (1, "operator"), "an operator's word stands"
    said = await trunkbridge(live, "apps", "limit", "two", "--default")
    assert "configuration" in said
    assert await refused(live, "two") == 486
    told = await ask(live, "POST", "/two/utilisation", {"utilisation": 0.4, "gpu": "h100"})
    assert (told["limit"], told["source"]) == (3, "webhook")
    calls.append(await talking(live, "two"))
    told = await ask(live, "POST", "/two/utilisation", {"utilisation": 1.2})
    assert told["limit"] == 2, "three calls at 1.2 are two at 0.8"
    assert await refused(live, "two") == 486
    await ask(live, "DELETE", "/two/limit")
    listed = {each["application"]: each for each in (await ask(live, "GET", ""))["applications"]}
    assert (listed["two"]["limit"], listed["two"]["calls"], listed["two"]["pairs"]) == (2, 3, {"main": 3})
    assert listed["echo"]["limit"] is None
    table = await trunkbridge(live, "apps", "list")
    (line,) = [line.split() for line in table.splitlines() if line.startswith("two ")]
    assert line == ["two", "2", "configuration", "2", "reject", "3", "0", "main:3"]
    for call in calls:
        await call.hang_up()


# Who waits


async def test_callers_wait_ringing_and_come_in_their_order(live: Live) -> None:
    first = await talking(live, "line")
    second = await queued(live, "line", 1)
    third = await queued(live, "line", 2)
    assert await refused(live, "line") == 486, "the line is full"
    assert second.answered_at is None
    await first.hang_up()
    await second.answered()
    assert second.ringing_at is not None
    assert third.answered_at is None
    await until(lambda: len(live.app.events("start")) == 2, "the second stream")
    await live.app.say(tone(1000, 1).tobytes())
    began = time.monotonic()
    await asyncio.sleep(1.2)
    assert share(second, 1000, began + 0.2, 0.6) > 0.9
    await second.hang_up()
    await third.answered()
    await until(lambda: len(live.app.events("start")) == 3, "the third stream")
    await third.hang_up()
    row = await live.record(second)
    assert (row.result, row.reason) == ("success", "caller_hangup")
    events = await live.system.events(row.call_id)
    path = [event.to_state for event in events if event.to_state]
    assert path[:4] == ["placing", "queued", "answering", "attaching"]
    assert len(events) < 40, "asking again is no event"


async def test_a_caller_who_gives_up_leaves_the_line_at_once(live: Live) -> None:
    first = await talking(live, "line")
    second = await queued(live, "line", 1)
    third = await queued(live, "line", 2)
    assert await second.hang_up() is Ending.CANCELLED
    row = await live.record(second)
    assert (row.result, row.reason) == ("client_error", "caller_cancelled")
    assert (await state(live, "line"))["waiting"] == 1
    await first.hang_up()
    await third.answered()
    await third.hang_up()


async def test_music_sounds_until_it_is_his_turn(live: Live) -> None:
    first = await talking(live, "music")
    second = await queued(live, "music", 1)
    await second.answered()
    began = time.monotonic()
    await asyncio.sleep(1.5)
    assert share(second, MUSIC_HZ, began + 0.4) > 0.9
    answered_at = (await live.record(second, ended=False)).answered_at
    await first.hang_up()
    await until(lambda: len(live.app.events("start")) == 2, "the second stream")
    await live.app.say(tone(1000, 2).tobytes())
    began = time.monotonic()
    await asyncio.sleep(1.5)
    assert share(second, 1000, began + 0.4) > 0.9, "the application, and no music under it"
    second.peer.play(tone(425, 1))
    await until(lambda: len(live.app.events("media")) > 50, "his words")
    await second.hang_up()
    row = await live.record(second)
    assert (row.reason, row.answered_at) == ("caller_hangup", answered_at)


@pytest.mark.parametrize("name", ["line", "music"])
async def test_who_waits_while_the_controller_is_killed_waits_on(live: Live, name: str) -> None:
    first = await talking(live, name)
    second = await queued(live, name, 1)
    await live.system.controller.kill()
    await live.system.controller.start()
    async with asyncio.timeout(10):
        while (await state(live, name))["waiting"] != 1:
            await asyncio.sleep(0.05)
    assert second.ending is None
    await first.hang_up()
    await second.answered()
    await until(lambda: len(live.app.events("start")) == 2, "the second stream")
    await second.hang_up()
    events = [event.event for event in await live.system.events((await live.record(second)).call_id)]
    assert "adopted" in events


async def test_a_sound_of_asterisk_s_is_said_again_and_again(live: Live) -> None:
    first = await talking(live, "sound")
    second = await queued(live, "sound", 1)
    await second.answered()
    began = time.monotonic()
    await asyncio.sleep(4)
    # It takes some 1.5 s.
    assert loudest(second, began, 1.5) > 1000
    assert loudest(second, began + 2.5, 1.5) > 1000
    assert await second.hang_up() is Ending.BY_US
    await first.hang_up()


async def test_who_waits_in_vain_is_refused(live: Live) -> None:
    call = dial(live, "vain")
    with pytest.raises(CallRefused) as caught:
        await call.answered()
    assert caught.value.sip_code == 480
    assert call.ringing_at is not None
    row = await live.record(call)
    assert (row.result, row.reason, row.hangup_cause) == ("server_error", "queue_timeout", 20)
    assert row.ended_at is not None
    assert (row.ended_at - row.created_at).total_seconds() >= 1


async def test_who_waits_in_vain_to_music_goes_on_elsewhere(live: Live) -> None:
    call = dial(live, "vain-music")
    await call.answered()
    assert await call.ended() is Ending.BY_THEM
    assert call.reason is not None
    assert "cause=31" in call.reason, "the extension's own"
    row = await live.record(call)
    assert row.reason == "queue_timeout"
    assert "extension sorry" in (row.detail or "")


# Elsewhere


async def test_who_finds_it_full_goes_on_at_an_extension(live: Live) -> None:
    call = dial(live, "sent-on")
    await call.answered()
    began = time.monotonic()
    assert await call.ended() is Ending.BY_THEM
    assert loudest(call, began, 3) > 1000
    row = await live.record(call)
    assert (row.result, row.reason, row.answered_at) == ("server_error", "app_full", None)
    assert "extension sorry" in (row.detail or "")


async def test_who_finds_it_full_comes_to_another_application_with_its_own_limit(live: Live) -> None:
    call = await talking(live, "handed-over")
    assert (await state(live, "overflow"))["calls"] == 1
    assert await refused(live, "handed-over") == 486
    await call.hang_up()
    row = await live.record(call)
    assert (row.application, row.reason) == ("overflow", "caller_hangup")


async def test_a_full_listener_keeps_no_caller_from_going_on(live: Live) -> None:
    call = dial(live, "listener")
    await call.answered()
    assert await call.ended() is Ending.BY_THEM
    row = await live.record(call)
    assert row.reason == "app_full"
    assert "extension sorry" in (row.detail or "")
