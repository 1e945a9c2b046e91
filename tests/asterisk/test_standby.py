"""Fifty callers talk on while controllers are killed, frozen and switched, and while Asterisk stands still."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import aiohttp
import pytest

from ari_app.ari.client import AriClient
from ari_app.store.controllers import ControllerInfo, Controllers
from audiosocket.runtime.stores import open_redis, resolve
from tests.live import ECHO, Live, live_system
from tests.worker_rig import until
from tools.asterisk.install import AsteriskInstall
from tools.asterisk.local import free_ports
from tools.audio.tones import dominant_frequency, tone
from tools.process import Process
from tools.sip.sipp import Call, Ending

pytestmark = pytest.mark.asterisk

CALLS = 50
TAKEN_OVER_SECONDS = 3.0
"""From the death or the freeze of the active controller to the next one that is connected, with all calls adopted."""
CANDIDATES = 5
ROUNDS = 6


async def talking(live: Live, count: int) -> list[Call]:
    calls = [live.ulaw.call(ECHO, f"+9190001{number:05d}") for number in range(count)]
    for start in range(0, count, 10):  # ten at a time: the set-ups are not what is tested
        await asyncio.gather(*(call.answered(30) for call in calls[start : start + 10]))
    await asyncio.sleep(1)
    return calls


async def hear_themselves(calls: list[Call]) -> None:
    """Nobody was hung up, and some of them, with tones of their own, hear these come back."""
    assert [call.ending for call in calls] == [None] * len(calls)
    began = time.monotonic()
    asked = {400 + 50 * number: call for number, call in enumerate(calls[:: max(1, len(calls) // 8)])}
    for hz, call in asked.items():
        call.peer.play(tone(hz, 1.0))
    for hz, call in asked.items():
        await until(partial(hears, call, hz, began), f"{hz} Hz", 15)


def hears(call: Call, hz: float, since: float) -> bool:
    heard = call.peer.received_pcm(start=since)
    return len(heard) > 4000 and abs(dominant_frequency(heard) - hz) < 5


async def unbroken(calls: list[Call], began: float) -> None:
    """What all callers heard since `began` came whole, and without a gap that is longer than the machine's hiccups."""
    ended = time.monotonic()
    for call in calls:
        await until(partial(heard_at, call, ended), "what was on its way")
        heard = call.peer.reception(began, ended)
        assert heard.lost == 0
        assert heard.packets > 0
        assert heard.gap_max_ms < 1000


def heard_at(call: Call, moment: float) -> bool:
    return call.peer.packets[-1].arrived_at > moment


async def served(newcomers: list[Call]) -> None:
    """They called while nobody was there to serve them, and get their calls all the same."""
    await asyncio.gather(*(call.answered(15) for call in newcomers))
    await hear_themselves(newcomers)
    await asyncio.gather(*(call.hang_up() for call in newcomers))


def ready(process: Process) -> bool:
    return "controller_ready" in process.text()


async def taken_over(process: Process, since: float, calls: int) -> None:
    await until(lambda: ready(process), f"{process.name} to take over", 30)
    seconds = time.monotonic() - since
    found = re.search(r'"calls": (\d+), "event": "calls_adopted"', process.text())
    assert found is not None
    assert calls <= int(found[1]) <= calls + 3, "all, and who came just now"
    assert seconds < TAKEN_OVER_SECONDS, f"{process.name} took {seconds:.2f} s"
    print(f"{process.name} took over {calls} calls after {seconds:.2f} s")


async def metric(listen: str, name: str) -> float | None:
    """A metric of a controller; None where none answers."""
    try:
        async with aiohttp.ClientSession() as http, http.get(f"http://{listen}/metrics") as answer:
            found = re.search(rf"^{re.escape(name)} (\S+)$", await answer.text(), re.MULTILINE)
    except aiohttp.ClientError:
        return None
    return None if found is None else float(found[1])


@asynccontextmanager
async def announced(live: Live) -> AsyncIterator[Controllers]:
    redis = open_redis(resolve(live.system.config))
    try:
        yield Controllers(redis)
    finally:
        await redis.aclose()


@pytest.mark.alone
@pytest.mark.timeout(300)
async def test_fifty_calls_outlive_their_controllers(asterisk_install: AsteriskInstall, tmp_path: Path) -> None:
    async with live_system(asterisk_install, tmp_path, calls=80, standbys=1) as live, announced(live) as controllers:
        system, listen = live.system, live.system.config.controller.status_listen
        assert listen is not None
        calls = await talking(live, CALLS)
        newcomers: list[Call] = []

        def come(count: int = 3) -> list[Call]:
            first = len(newcomers)
            newcomers.extend(live.alaw.call(ECHO, f"+9190002{first + number:05d}") for number in range(count))
            return newcomers[first:]

        async def roles() -> list[str]:
            return sorted(info.role for info in await controllers.controllers())

        async def announced_by(process: Process) -> ControllerInfo:
            return next(info for info in await controllers.controllers() if info.instance == str(process.pid))

        assert await roles() == ["active", "standby"]
        active, following = system.controller, system.standbys[0]

        # Killed.
        began = time.monotonic()
        await active.kill()
        came = come()
        await taken_over(following, began, CALLS)
        await hear_themselves(calls)
        await unbroken(calls, began)
        await until_metric(listen, "trunkbridge_calls_adopted_total", CALLS)
        await served(came)

        # Frozen: whoever stands by ends it.
        active, following = following, system.standby("standby@1")
        await following.start()
        began = time.monotonic()
        active.send_signal(signal.SIGSTOP)
        came = come()
        await taken_over(following, began, CALLS)
        await until(lambda: not active.running, "the end of the frozen one")
        await hear_themselves(calls)
        await unbroken(calls, began)
        await served(came)
        assert following.text().count("caller_found") == len(came), "Asterisk had told the frozen one of them"

        # Switched on purpose.
        active, following = following, system.standby("standby@2")
        await following.start()
        began = time.monotonic()
        active.send_signal(signal.SIGTERM)
        came = come()
        await taken_over(following, began, CALLS)
        await served(came)
        await until(lambda: not active.running, "the end of the stopped one", 20)
        assert await roles() == ["active"] or await roles() == ["active", "standby"]  # of a killed one for 3 s
        await unbroken(calls, began)

        # Killed with nobody standing by; some callers leave meanwhile, and others come.
        began = time.monotonic()
        await following.kill()
        await asyncio.gather(*(call.hang_up() for call in calls[:5]))
        last = system.standby("last", ready="controller_ready")
        started = time.monotonic()
        await last.start()
        gone = [await live.record(call) for call in calls[:5]]
        print(f"closed {time.monotonic() - started:.2f} s after the start")
        assert {(row.result, row.reason) for row in gone} == {("indeterminate", "gone_unseen")}
        await hear_themselves(calls[5:])
        await unbroken(calls[5:], began)
        async with asyncio.timeout(5):
            while (info := await announced_by(last)).calls != CALLS - 5:  # announced once a second
                await asyncio.sleep(0.1)
        assert (info.role, info.accepting, info.calls) == ("active", True, CALLS - 5)
        assert info.status_url == f"http://{listen}"

        await asyncio.gather(*(call.hang_up() for call in calls[5:]))
        rows = [await live.record(call) for call in calls]
        rows += [await live.record(call) for call in newcomers]
        assert len({row.call_id for row in rows}) == len(await live.records()) == CALLS + len(newcomers)
        assert {(row.result, row.reason) for row in rows[5:]} == {("success", "caller_hangup")}
        for row in rows:
            assert row.media is not None
            assert row.media.frames_played > 20
        events = [event.event for event in await system.events(rows[CALLS - 1].call_id)]
        assert events.count("adopted") == 4
        await live.nothing_left()
        for process in (system.controller, *system.standbys):
            assert "controller_stands_down" not in process.text(), "two were active at once"
            assert "call_actor_failed" not in process.text()


async def until_metric(listen: str, name: str, value: float) -> None:
    found: float | None = None
    for _ in range(200):
        found = await metric(listen, name)
        if found == value:
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"{name} is {found}, not {value}")


@pytest.mark.timeout(300)
async def test_of_five_controllers_one_is_active_always(asterisk_install: AsteriskInstall, tmp_path: Path) -> None:
    async with live_system(asterisk_install, tmp_path) as live:
        system = live.system
        ports = iter(free_ports(CANDIDATES + ROUNDS))
        at: dict[str, str] = {}

        def candidate(name: str) -> Process:
            at[name] = f"127.0.0.1:{next(ports)}"
            return system.standby(name, "--status-listen", at[name], ready="status_port")

        async def active() -> list[Process]:
            role = 'trunkbridge_controller_role{role="active"}'
            alive = [process for process in system.standbys if process.running]
            found = await asyncio.gather(*(metric(at[process.name], role) for process in alive))
            return [process for process, value in zip(alive, found, strict=True) if value == 1]

        await system.controller.stop()
        await asyncio.gather(*(candidate(f"c{number}").start() for number in range(CANDIDATES)))
        for number in range(ROUNDS):
            while not (holders := await active()):
                await asyncio.sleep(0.02)
            (holder,) = holders
            await until(lambda process=holder: ready(process), "a connected one", 30)
            await asyncio.gather(holder.kill(), candidate(f"c{CANDIDATES + number}").start())
        while not (holders := await active()):
            await asyncio.sleep(0.02)
        (holder,) = holders
        await until(lambda: ready(holder), "a connected one", 30)
        assert sum("controller_active" in process.text() for process in system.standbys) == ROUNDS + 1
        assert not any("controller_stands_down" in process.text() for process in system.standbys)

        # And a stranger who takes the calls' events: the active one stands down, and says so.
        ari = system.config.asterisk.ari
        stranger = AriClient(
            f"http://{ari.listen}", ari.username, ari.password.get_secret_value(), system.config.asterisk.app
        )
        async with stranger:
            socket = await stranger.connect_events(60)
            await until(lambda: not holder.running, "the end of the replaced one", 20)
            assert "another process took the Stasis application" in holder.text()
            async with asyncio.timeout(20):  # whoever stood by takes it back
                while (message := await socket.receive()).type is aiohttp.WSMsgType.TEXT:
                    if "ApplicationReplaced" in message.data:
                        break
            await socket.close()
        while not await active():
            await asyncio.sleep(0.05)


@pytest.mark.timeout(180)
async def test_an_asterisk_that_stands_still_costs_no_call(asterisk_install: AsteriskInstall, tmp_path: Path) -> None:
    changes = {"asterisk": {"ari": {"timeout_seconds": 1}}}
    async with live_system(asterisk_install, tmp_path, changes=changes) as live, announced(live) as controllers:
        listen = live.system.config.controller.status_listen
        assert listen is not None
        calls = await talking(live, 3)
        os.kill(live.system.asterisk.pid, signal.SIGSTOP)
        frozen = time.monotonic()
        try:
            await until_metric(listen, "trunkbridge_ari_breaker_open", 1)
            assert time.monotonic() - frozen < 9, "workers give a leg up that takes nothing for 10 s"
            (info,) = await controllers.controllers()
            assert (info.role, info.accepting) == ("active", False)
            late = live.ulaw.call(ECHO, "+919000400001")
        finally:
            os.kill(live.system.asterisk.pid, signal.SIGCONT)
        await until_metric(listen, "trunkbridge_ari_breaker_open", 0)
        await until_metric(listen, "trunkbridge_controller_accepting", 1)
        await hear_themselves(calls)
        # He who called meanwhile was refused or answered (by the fallback prompt, if no controller was connected yet)
        # when Asterisk went on, and not left in between.
        await until(lambda: late.ending is not None or late.answered_at is not None, "an answer to the late caller", 20)
        if late.ending is None:
            await late.hang_up()
        (after,) = await talking_again(live)
        await asyncio.gather(*(call.hang_up() for call in (*calls, after)))
        for call in (*calls, after):
            assert (await live.record(call)).reason == "caller_hangup"
        await live.nothing_left()


async def talking_again(live: Live) -> list[Call]:
    call = live.ulaw.call(ECHO, "+919000400002")
    await call.answered(20)
    assert call.ending is not Ending.BY_THEM
    await asyncio.sleep(0.3)
    return [call]
