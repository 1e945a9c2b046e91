"""Every way an application can fail, through the whole system: what the caller hears and when, how his call ends, what
the record says, and that nothing is left behind. All calls are made at once."""

from __future__ import annotations

import asyncio
import re
import socket
import wave
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.failure_cases import CASES, PROMPT, SECONDS, SPEECH, Scene, sounds, speaks_and_closes
from tests.live import ECHO, Live, live_system
from tests.loop.test_app_stream import certificate
from tests.worker_rig import Application, serving, until
from tools.asterisk.install import AsteriskInstall
from tools.audio.tones import tone
from tools.sip.sipp import Ending

pytestmark = [pytest.mark.asterisk, pytest.mark.asyncio(loop_scope="module")]

SOON = 0.5
"""Within which what follows a failure has begun: 0.04 s and what the fallback takes, on a machine that is full."""
EARLY = 0.1
"""Clocks of three programs are compared."""
BETWEEN_CALLS = 0.2
FRAME_GAP = 0.3
"""The longest that the telephone may wait for a frame, in seconds."""


# The system, and all calls


@dataclass
class Played:
    """All calls, when they are over."""

    live: Live
    scenes: dict[str, Scene]
    ports: set[int]
    """Where the applications listen."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def played(asterisk_install: AsteriskInstall, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Played]:
    folder = tmp_path_factory.mktemp("failures")
    with wave.open(str(folder / "sorry.wav"), "wb") as sorry:
        sorry.setparams((1, 2, 8000, 0, "NONE", ""))
        sorry.writeframes(tone(PROMPT, SECONDS[PROMPT]).astype("<i2").tobytes())
    async with AsyncExitStack() as stack:
        spare = await stack.enter_async_context(serving())
        spare.behave = speaks_and_closes
        closed = stack.enter_context(socket.socket())
        closed.bind(("127.0.0.1", 0))  # and nobody listens
        tls = await asyncio.start_server(hang_up, "127.0.0.1", 0, ssl=certificate(folder, "bot", "IP:127.0.0.1"))
        stack.callback(tls.close)
        places = {
            "closed": f"127.0.0.1:{closed.getsockname()[1]}",
            "tls": f"127.0.0.1:{tls.sockets[0].getsockname()[1]}",
            "spare": place(spare),
        }
        scenes: dict[str, Scene] = {}
        applications: dict[str, dict[str, Any]] = {}
        routes: list[dict[str, Any]] = []
        for number, (name, case) in enumerate(CASES.items()):
            scene = Scene(case, f"+9180000002{number:02}", await stack.enter_async_context(serving()))
            scenes[name] = scene
            own = places | {"app": place(scene.app)}
            applications[name] = filled({"url": case.url} | case.settings, own)
            routes.append({"did": scene.number, "application": name} | case.route)
        scenes["killed"].number = ECHO
        routes.append({"did": ECHO, "application": "echo"})
        changes = {"prompts": {"sorry": str(folder / "sorry.wav")}, "routes": routes}
        live = await stack.enter_async_context(
            live_system(asterisk_install, folder, calls=2 * len(CASES), changes=changes, applications=applications)
        )
        ports = {
            int(address.rpartition(":")[2]) for address in (*places.values(), *(place(s.app) for s in scenes.values()))
        }
        plays = []
        for scene in scenes.values():
            plays.append(asyncio.create_task(scene.play(live)))
            await asyncio.sleep(BETWEEN_CALLS)
        for scene, fault in zip(scenes.values(), await asyncio.gather(*plays, return_exceptions=True), strict=True):
            scene.fault = fault
            if fault is None:
                scene.row = await live.record(scene.call)
        yield Played(live, scenes, ports)


async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


def place(app: Application) -> str:
    return app.url.split("/")[2]


def filled(settings: Any, places: dict[str, str]) -> Any:
    """Settings with the addresses put into their URLs."""
    if isinstance(settings, dict):
        return {key: filled(value, places) for key, value in settings.items()}
    return settings.format_map(places) if isinstance(settings, str) else settings


@pytest.mark.parametrize("name", CASES)
async def test_an_application_fails(played: Played, name: str) -> None:
    scene, case = played.scenes[name], CASES[name]
    assert scene.fault is None
    call, row = scene.call, scene.row
    # The record
    assert (row.result, row.reason, row.hangup_cause) == (case.result, case.reason, case.cause), row
    assert case.detail in (row.detail or "")
    assert row.application == ("echo" if name == "killed" else name)
    events = [event.event for event in await played.live.system.events(row.call_id)]
    assert ("media_app_failed" in events) == (name not in ("ends-without-frame", "stream-limit"))
    # SIP
    if case.refused:
        assert (call.ending, call.sip_code, call.answered_at) == (Ending.REFUSED, case.refused, None)
        return
    assert call.answered_at is not None
    assert call.ended_at is not None
    if case.reason != "caller_hangup":
        assert call.ending is Ending.BY_THEM
        assert re.search(rf"\bcause={case.cause}\b", call.reason or ""), call.reason
    # What is heard
    heard = sounds(call)
    audible = [sound for sound in heard if sound.hz]
    assert [sound.hz for sound in audible] == list(case.heard), heard
    spoken = audible[0] if audible[0].hz == SPEECH else None
    failed_at = scene.failed_at or call.answered_at
    if spoken is not None and scene.failed_at is not None:
        assert spoken.ended - failed_at < SOON, heard
    elif spoken is not None:
        failed_at = spoken.ended  # it has said all that it will, and its silence counts from there
    instead = audible[1:] if spoken is not None else audible
    if instead:
        assert -EARLY <= instead[0].began - failed_at - case.silence < SOON, (failed_at, heard)
    if case.reason != "caller_hangup":
        assert [sound.seconds for sound in instead] == pytest.approx([SECONDS[sound.hz] for sound in instead], abs=0.06)
    assert call.ended_at - audible[-1].ended < SOON, heard
    assert call.peer.reception().gap_max_ms < FRAME_GAP * 1000
    # What the application is told
    if case.told is not None:
        stop, close_code = case.told
        assert (scene.app.messages[-1]["event"] == "stop") == bool(stop)
        assert not stop or scene.app.messages[-1]["stop"]["reason"] == stop
        assert scene.app.close_code == close_code


async def test_nothing_is_left_behind(played: Played) -> None:
    await played.live.nothing_left()
    for name, scene in played.scenes.items():
        assert scene.app.closed == len(scene.app.sockets), name
    await until(lambda: not connections(played.ports), "no connection to an application")


def connections(ports: set[int]) -> list[str]:
    """TCP connections of this machine from or to these ports that are not over."""
    found = []
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, state, *_ = line.split()
        listens_or_waits = state in ("0A", "06")
        if not listens_or_waits and {int(end.rpartition(":")[2], 16) for end in (local, remote)} & ports:
            found.append(line)
    return found
