"""A real Asterisk with the rendered configuration: what it loads, whom it serves, what a caller hears."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import aiohttp
import pytest

from tests.pbx import EXAMPLE, STRANGER, ULAW_CARRIER, StartPbx, asterisk_install, ears, sipp, start_pbx
from tools.asterisk.install import AsteriskInstall
from tools.asterisk.instance import AsteriskFailed, AsteriskInstance

__all__ = ["asterisk_install", "start_pbx"]

pytestmark = pytest.mark.asterisk

CALLER = "+919811111111"
NUMBER = "+918000000001"
PHONE_ADDRESS = "127.0.0.5"

# Said before the log is open, whatever the configuration holds: Asterisk's own documentation lacks the option.
JUSTIFIED = ("Could not find option 'minimum_size' with type 'threadpool' in module 'stasis'",)


def complaints(pbx: AsteriskInstance) -> list[str]:
    lines = [line for line in pbx.log.read_text().splitlines() if re.search(r"\b(WARNING|ERROR)\[", line)]
    lines += [line for line in pbx.output.read_text().splitlines() if line and not line.startswith("PBX UUID: ")]
    return [line for line in lines if not any(text in line for text in JUSTIFIED)]


def wanted_modules(pbx: AsteriskInstance) -> set[str]:
    return set(re.findall(r"^require = (\S+)$", (pbx.layout.etc / "modules.conf").read_text(), re.MULTILINE))


async def test_two_at_once_load_every_module_without_complaint(start_pbx: StartPbx) -> None:
    first, second = await start_pbx(), await start_pbx()
    assert first.pid != second.pid
    for pbx in (first, second):
        shown = await pbx.rx("module show")
        running = {line.split()[0] for line in shown.splitlines() if re.search(r"\.so .* Running ", line)}
        assert running == wanted_modules(pbx)
        # Sent to this instance and to no other.
        assert str(pbx.config.asterisk.ari.listen) in await pbx.rx("http show status")
    await first.stop()
    assert await second.rx("core show version")
    await second.stop()
    assert complaints(first) == complaints(second) == []


async def test_without_a_controller_the_caller_hears_the_prompt_and_is_hung_up(start_pbx: StartPbx) -> None:
    pbx = await start_pbx()
    async with ears(ULAW_CARRIER) as caller:
        await sipp(pbx, "call_until_bye.xml", ULAW_CARRIER, caller=CALLER, number=NUMBER, rtp_port=str(caller.port))
        assert caller.seconds_of_sound > 1
        assert {payload_type for payload_type, _ in caller.heard} == {0}
        assert {len(payload) for _, payload in caller.heard} == {160}
    assert "0 active channels" in await pbx.rx("core show channels")
    assert complaints(pbx) == []


async def test_the_alaw_trunk_speaks_alaw(start_pbx: StartPbx) -> None:
    pbx = await start_pbx()
    async with ears("127.0.0.3") as caller:
        await sipp(pbx, "call_until_bye.xml", "127.0.0.3", caller=CALLER, number="1000", rtp_port=str(caller.port))
        assert {payload_type for payload_type, _ in caller.heard} == {8}
        assert caller.seconds_of_sound > 1


async def test_after_the_prompt_the_fallback_extension_goes_on(start_pbx: StartPbx) -> None:
    def dialplan(etc: Path) -> None:
        etc.mkdir(parents=True)
        (etc / "extensions-fallback.conf").write_text(
            "[trunkbridge-fallback]\nexten => desk,1,Playback(hello-world,noanswer)\n same => n,Hangup()\n"
        )

    plain = await start_pbx()
    pbx = await start_pbx({"asterisk": {"fallback_extension": "desk"}}, dialplan)
    assert "app_dial.so" in wanted_modules(pbx) - wanted_modules(plain)
    lengths = []
    for tried in (plain, pbx):
        async with ears(ULAW_CARRIER) as caller:
            await sipp(tried, "call_until_bye.xml", ULAW_CARRIER, caller=CALLER, number="1", rtp_port=str(caller.port))
            lengths.append(caller.seconds_of_sound)
    assert lengths[1] > lengths[0] + 0.5
    assert complaints(pbx) == []


@pytest.mark.parametrize("caller", [CALLER, "carrier-ulaw", "softphone", "anonymous"])
async def test_an_unknown_address_is_refused_whatever_name_it_gives(start_pbx: StartPbx, caller: str) -> None:
    pbx = await start_pbx()
    await sipp(pbx, "call_refused.xml.in", STRANGER, status=401, caller=caller, number=NUMBER, rtp_port="9")
    assert "0 calls processed" in await pbx.rx("core show channels")
    security = (pbx.layout.log / "security.log").read_text()
    assert "ChallengeSent" in security or "InvalidAccountID" in security


@pytest.mark.parametrize(
    ("number", "status"),
    [("12abc", 484), ("1000,1)", 484), ("+91${SHELL(id)}", 484), ("1000&PJSIP/x", 484), ("abc", 404), ("s", 404)],
)
async def test_a_number_that_is_none_is_turned_away(start_pbx: StartPbx, number: str, status: int) -> None:
    pbx = await start_pbx()
    async with listening(pbx) as events:
        await sipp(pbx, "call_refused.xml.in", ULAW_CARRIER, status=status, caller=CALLER, number=number, rtp_port="9")
        assert events.empty()


class Events(asyncio.Queue[dict[str, object]]):
    """What ARI tells the application."""

    async def next(self, kind: str) -> dict[str, object]:
        async with asyncio.timeout(10):
            while True:
                event = await self.get()
                if event["type"] == kind:
                    return event


class listening:  # noqa: N801 - used as a statement
    """A controller that only listens."""

    def __init__(self, pbx: AsteriskInstance) -> None:
        self.ari = pbx.config.asterisk.ari
        self.app = pbx.config.asterisk.app
        self.events = Events()

    async def __aenter__(self) -> Events:
        auth = aiohttp.BasicAuth(self.ari.username, self.ari.password.get_secret_value())
        self.events.session = self.session = aiohttp.ClientSession(f"http://{self.ari.listen}", auth=auth)
        self.socket = await self.session.ws_connect(f"/ari/events?app={self.app}")
        self.reader = asyncio.create_task(self.read())
        return self.events

    async def read(self) -> None:
        async for message in self.socket:
            self.events.put_nowait(message.json())

    async def __aexit__(self, *_: object) -> None:
        await self.socket.close()
        await self.reader
        await self.session.close()
