"""Three applications of other people over whole calls: what the telephone gets of their greeting, packet by packet."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator

import numpy as np
import pytest
import pytest_asyncio

from tests.client_calls import speech
from tests.clients.base import Client
from tests.clients.bolna import Bolna
from tests.clients.exotel_samples import SharedHost
from tests.clients.sarvam_bridge import SarvamBridge
from tests.live import SCRIPTED, Live, live_system
from tests.worker_rig import until
from tools.asterisk.install import AsteriskInstall
from tools.audio import g711
from tools.audio.tones import dominant_frequency, tone
from tools.sip.sipp import Call

pytestmark = [pytest.mark.asterisk, pytest.mark.asyncio(loop_scope="module")]

SECONDS = 4
SILENCE = bytes([g711.ULAW_SILENCE]) * 160
_numbers = itertools.count(1)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def live(asterisk_install: AsteriskInstall, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Live]:
    async with live_system(asterisk_install, tmp_path_factory.mktemp("compat")) as live:
        yield live


def audible(call: Call) -> bytes:
    """The payloads that are not silent, in the order in which they were sent."""
    packets = sorted(call.peer.audio(), key=lambda packet: packet.timestamp)
    return b"".join(packet.payload for packet in packets if packet.payload != SILENCE)


@pytest.mark.parametrize("kind", [Bolna, SharedHost, SarvamBridge], ids=lambda kind: kind.name)
async def test_the_greeting_is_heard_whole_and_a_digit_comes_once(live: Live, kind: type[Client]) -> None:
    client = kind(speech(SECONDS, 7))
    greeting = g711.ulaw_encode(np.frombuffer(client.greeting, "<i2"))
    live.app.behave = client.run
    call = live.ulaw.call(SCRIPTED, f"+9190002{next(_numbers):05d}")
    await call.answered()
    await until(lambda: client.started, "start")
    await until(lambda: len(audible(call)) >= len(greeting) // 4, "the greeting's beginning")
    await call.peer.send_dtmf("5").wait()
    await until(lambda: len(audible(call)) >= len(greeting), "the greeting's end", 2 * SECONDS)
    await until(lambda: not client.marks_problem(), "its marks")
    call.peer.play(tone(520, 0.5))
    await until(lambda: len(_loud(client)) >= 3900, "half a second of the caller")
    await call.hang_up()
    await until(lambda: client.ended, "its handler's end")
    assert audible(call) == greeting
    assert dominant_frequency(_loud(client)) == pytest.approx(520, abs=4)
    assert client.events["dtmf"] == 1
    assert client.digits == (["5"] if client.reads_digits else [])
    assert client.stop is not None
    assert (client.died, client.events["start"], client.events["stop"]) == ("", 1, 1)
    row = await live.record(call)
    assert (row.result, row.reason) == ("success", "caller_hangup")
    assert row.media is not None
    assert (row.media.frames_played, row.media.frames_dropped, row.media.ignored) == (SECONDS * 50, {}, {})
    await live.nothing_left()


def _loud(client: Client) -> np.ndarray:
    """What its recogniser got of the caller's tone."""
    samples = np.frombuffer(bytes(client.heard), "<i2")
    loud = np.flatnonzero(np.abs(samples.astype(int)) > 500)
    return samples[loud[0] : loud[-1] + 1] if len(loud) else samples[:0]
