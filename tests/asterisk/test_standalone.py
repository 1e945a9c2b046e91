"""A standalone worker behind somebody's own dialplan: no controller, no Redis, no PostgreSQL."""

from __future__ import annotations

import asyncio
import base64
import sys
import uuid
from pathlib import Path

import numpy as np
import pytest

from tests.pbx import StartPbx
from tests.worker_rig import serving, until
from tools.asterisk.local import free_ports
from tools.audio import g711
from tools.audio.tones import dominant_frequency, tone
from tools.process import Process
from tools.sip.rtp_peer import RtpTicker
from tools.sip.sipp import Carrier, Ending

pytestmark = pytest.mark.asterisk


@pytest.mark.parametrize(
    ("form", "dialect"),
    [
        ("AudioSocket", "exotel"),
        ("Dial slin", "exotel"),
        ("Dial slin16", "exotel"),
        ("Dial ulaw", "exotel"),
        ("Dial ulaw", "twilio"),
    ],
)
async def test_any_dialplan_reaches_the_application(
    start_pbx: StartPbx, tmp_path: Path, form: str, dialect: str
) -> None:
    (port,) = free_ports(1)
    leg_uuid = str(uuid.uuid4())
    media_format = form.removeprefix("Dial ") if form != "AudioSocket" else "slin"
    rate = 16000 if media_format == "slin16" else 8000
    action = {
        "AudioSocket": f"AudioSocket({leg_uuid},127.0.0.1:{port})",
        "Dial slin": f"Dial(AudioSocket/127.0.0.1:{port}/{leg_uuid}/c(slin))",
        "Dial slin16": f"Dial(AudioSocket/127.0.0.1:{port}/{leg_uuid}/c(slin16))",
        "Dial ulaw": f"Dial(AudioSocket/127.0.0.1:{port}/{leg_uuid}/c(ulaw))",
    }[form]
    pbx = await start_pbx({"asterisk": {"fallback_extension": "own"}})  # loads app_dial
    for number, step in enumerate(("Answer()", action, "Hangup()"), start=1):
        await pbx.rx(f"dialplan add extension 7000,{number},{step} into trunk-carrier-ulaw replace")
    twilio = dialect == "twilio"
    (tmp_path / "token").write_text("secret\n", encoding="utf-8")
    async with serving() as app, RtpTicker() as ticker:
        # Exotel takes its credentials from the URL, Twilio has none there and signs.
        url = app.url if twilio else app.url.replace("ws://", "ws://key:token@")
        signing = ["--auth-token-file", str(tmp_path / "token")] if twilio else []
        worker = Process(
            "gateway",
            [
                *(sys.executable, "-m", "ari_app.cli.main", "gateway", "--listen", f"127.0.0.1:{port}"),
                *("--app", url, "--format", media_format, "--dialect", dialect, *signing),
            ],
            tmp_path / "gateway.log",
            "worker_ready",
            {},
        )
        await worker.start()
        try:
            async with Carrier(pbx.config.asterisk.sip_listen, "127.0.0.2", tmp_path / "sipp", ticker) as carrier:
                call = carrier.call("7000")
                await call.answered()
                await until(lambda: app.events("start"), "start message")
                assert ("X-Twilio-Signature" if twilio else "Authorization") in app.requests[0].headers
                start = app.events("start")[0]["start"]
                sid = start["callSid"].removeprefix("CA") if twilio else start["call_sid"]
                assert sid == leg_uuid.replace("-", "")
                call.peer.play(tone(440, 1.5))
                spoken = tone(900, 1.5, rate)
                await app.say(g711.ulaw_encode(spoken) if twilio else spoken.tobytes())
                await asyncio.sleep(2)
                heard = b"".join(base64.b64decode(message["media"]["payload"]) for message in app.events("media"))
                samples = g711.ulaw_decode(heard) if twilio else np.frombuffer(heard, "<i2")
                assert dominant_frequency(samples, rate) == pytest.approx(440, abs=3)
                assert dominant_frequency(call.peer.received_pcm()) == pytest.approx(900, abs=3)
                await app.sockets[0].close()
                assert await call.ended() is Ending.BY_THEM
                # The UUID in this dialplan is always the same: without --accept-any it is good for one call.
                again = carrier.call("7000")
                await again.answered()
                assert await again.ended() is Ending.BY_THEM
                assert "leg_refused" in worker.text()
                assert len(app.events("start")) == 1
        finally:
            await worker.stop()
