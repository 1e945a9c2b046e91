"""pipecat as installed from the package index, with its own serializers, as the application of real calls; and what of
Twilio's protocol pipecat does not look at: the signature, and that mu-law is passed on bit by bit."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import sys
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from tests.live import SCRIPTED, Live, live_system
from tests.worker_rig import until
from tools.asterisk.install import AsteriskInstall
from tools.asterisk.local import free_ports
from tools.audio import g711 as formula
from tools.audio.tones import dominant_frequency, tone
from tools.process import Process
from tools.sip.sipp import Carrier

pytestmark = [pytest.mark.asterisk, pytest.mark.asyncio(loop_scope="module")]

EXOTEL, TWILIO, PLIVO = "+918000000020", "+918000000021", "+918000000022"
ACCOUNT = "AC" + "5" * 32


@dataclass
class Pipecat:
    """A running system, and a bot of pipecat's that answers two of its numbers."""

    live: Live
    bot: Process

    def facts(self, event: str, provider: str) -> list[dict[str, Any]]:
        """What the bot has told about a provider's call."""
        lines = [json.loads(line) for line in self.bot.text().splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == event and line.get("provider") == provider]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pipecat(
    asterisk_install: AsteriskInstall, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Pipecat]:
    folder = tmp_path_factory.mktemp("pipecat")
    (port,) = free_ports(1)
    (folder / "token").write_text("hunter2\n", encoding="utf-8")
    url = f"ws://127.0.0.1:{port}/ws"
    twilio = {"dialect": "twilio", "account_sid": ACCOUNT, "auth_token": {"file": str(folder / "token")}}
    numbers = {"caller_parameter": "from_number", "callee_parameter": "to_number"}
    changes = {
        "applications": {
            "pipecat-exotel": {"url": url},
            "pipecat-twilio": {"url": url, **twilio, "dialect_options": numbers},
            "pipecat-plivo": {"url": url, "dialect": "plivo", "account_sid": "MA" + "5" * 18},
            "scripted": twilio,
        },
        "routes": [
            {"did": EXOTEL, "application": "pipecat-exotel"},
            {"did": TWILIO, "application": "pipecat-twilio"},
            {"did": PLIVO, "application": "pipecat-plivo"},
            {"did": SCRIPTED, "application": "scripted"},
        ],
    }
    bot = Process(
        "pipecat",
        [sys.executable, "-m", "tests.clients.pipecat_bot", str(port)],
        folder / "bot.log",
        '"listening"',
        {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    async with live_system(asterisk_install, folder, changes=changes) as live:
        await bot.start(60)
        try:
            yield Pipecat(live, bot)
        finally:
            await bot.stop()


async def conversation(pipecat: Pipecat, provider: str, carrier: Carrier, number: str, caller: str, hz: int) -> None:
    """One call: pipecat hears the caller, speaks and is heard, gets a digit, and sees the end."""
    call = carrier.call(number, caller)
    await call.answered()
    await until(lambda: pipecat.facts("start", provider), "pipecat's start")
    (start,) = pipecat.facts("start", provider)
    # Plivo's start message names nobody, and pipecat does not look at extra_headers.
    assert (start["from"], start["to"]) == ((None, None) if provider == "plivo" else (caller, number))
    call.peer.play(tone(hz, 2))
    await until(lambda: pipecat.facts("heard", provider), "pipecat to hear the caller")
    assert pipecat.facts("heard", provider)[0]["hz"] == pytest.approx(hz, abs=3)
    await call.peer.send_dtmf("7").wait()
    await asyncio.sleep(3)
    assert dominant_frequency(call.peer.received_pcm()) == pytest.approx(700, abs=3)
    assert [fact["digit"] for fact in pipecat.facts("dtmf", provider)] == ["7"]
    await call.hang_up()
    row = await pipecat.live.record(call)
    assert (row.result, row.reason) == ("success", "caller_hangup")
    # The id that the application knows leads to the record.
    assert start["call_id"] == {"plivo": str(uuid.UUID(row.call_sid)), "twilio": f"CA{row.call_sid}"}.get(
        provider, row.call_sid
    )
    assert row.media is not None
    # pipecat sends 40 ms at a time in real time: two seconds of its tone were played, and nothing was lost.
    assert row.media.frames_played >= 100
    assert row.media.ignored == {}
    await until(lambda: pipecat.facts("disconnected", provider), "pipecat to see the end")


async def test_pipecat_hears_the_caller_speaks_and_is_heard(pipecat: Pipecat) -> None:
    live = pipecat.live
    async with asyncio.TaskGroup() as calls:
        calls.create_task(conversation(pipecat, "exotel", live.ulaw, EXOTEL, "+919000500001", 450))
        calls.create_task(conversation(pipecat, "twilio", live.alaw, TWILIO, "+919000500002", 550))
        calls.create_task(conversation(pipecat, "plivo", live.ulaw, PLIVO, "+919000500004", 650))
    await live.nothing_left()


async def test_twilio_s_mu_law_is_the_carrier_s_and_the_handshake_is_signed(pipecat: Pipecat) -> None:
    live, app = pipecat.live, pipecat.live.app
    call = live.ulaw.call(SCRIPTED, "+919000500003")
    await call.answered()
    await until(lambda: app.events("start"), "start message")
    signature = hmac.new(b"hunter2", app.url.encode(), "sha1").digest()
    assert app.requests[0].headers["X-Twilio-Signature"] == base64.b64encode(signature).decode()
    start = app.events("start")[0]["start"]
    assert (start["accountSid"], start["customParameters"]) == (ACCOUNT, {})
    # Noise of every code but the two silent ones: no frame is like another, and none like silence.
    codes = bytes(code if code & 0x7F != 0x7F else 0 for code in np.random.default_rng(1).bytes(16_000))
    call.peer.play(formula.ulaw_decode(codes))
    await app.say(formula.ulaw_encode(tone(900, 1)))
    await asyncio.sleep(2)
    payloads = [base64.b64decode(message["media"]["payload"]) for message in app.events("media")]
    assert {len(payload) for payload in payloads} == {160}
    assert b"".join(payload for payload in payloads if payload != b"\xff" * 160) == codes
    assert dominant_frequency(call.peer.received_pcm()) == pytest.approx(900, abs=3)
    await call.hang_up()
    await until(lambda: app.events("stop"), "stop message")
    assert app.events("stop")[0]["stop"] == {"accountSid": ACCOUNT, "callSid": start["callSid"]}
    row = await live.record(call)
    assert (row.result, row.stream_sid) == ("success", start["streamSid"].removeprefix("MZ"))
    logs = "".join(path.read_text(errors="replace") for path in live.folder.rglob("*.log"))
    assert "media_ended" in logs
    assert "hunter2" not in logs
    await live.nothing_left()
