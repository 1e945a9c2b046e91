"""An RTP media leg over a link that loses, delays and stalls: a relay between a real Asterisk and a worker."""

from __future__ import annotations

import asyncio
import base64
import os
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from ari_app.ari.client import AriClient
from ari_app.domain import ids
from audiosocket.callspec import LegOrder, MediaFormat
from tests.pbx import StartPbx, listening
from tests.worker_rig import Rig, rig, until
from tools.audio.tones import dominant_frequency, tone, tone_share
from tools.sip.rtp_peer import RtpTicker
from tools.sip.sipp import Call, Carrier, Ending

pytestmark = pytest.mark.asterisk

LOSS = 0.02
SOCKET_PACKETS = 240
"""At least so many fit into the buffer of a UDP socket, whose customary 208 KiB count 832 bytes for a small packet."""


class _End(asyncio.DatagramProtocol):
    """One of the relay's two sockets; what it hears leaves by the other one, to `remote`."""

    def __init__(self, relay: Relay) -> None:
        self.relay = relay
        self.other: _End | None = None
        self.remote: tuple[str, int] | None = None
        self.lost = 0
        self.carried: list[float] = []
        """When each packet went on."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        self.port = transport.get_extra_info("sockname")[1]

    def datagram_received(self, data: bytes, addr: Any) -> None:
        if self.relay.random.random() < self.relay.loss:
            self.lost += 1
        elif self.relay.stalled:
            self.relay.backlog.append((self, data))
        else:
            self.forward(data)

    def forward(self, data: bytes) -> None:
        assert self.other is not None
        if self.other.remote is not None:
            self.carried.append(time.monotonic())
            self.other.transport.sendto(data, self.other.remote)


class Relay:
    """UDP both ways between Asterisk and a worker."""

    def __init__(self) -> None:
        self.random = random.Random(7)
        self.loss = 0.0
        self.stalled = False
        self.backlog: list[tuple[_End, bytes]] = []

    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        _, self.to_asterisk = await loop.create_datagram_endpoint(lambda: _End(self), local_addr=("127.0.0.1", 0))
        _, self.to_worker = await loop.create_datagram_endpoint(lambda: _End(self), local_addr=("127.0.0.1", 0))
        self.to_asterisk.other, self.to_worker.other = self.to_worker, self.to_asterisk

    def go_on(self) -> None:
        """After a stall: what has been kept comes at once."""
        self.stalled = False
        for end, data in self.backlog:
            end.forward(data)
        self.backlog.clear()

    def close(self) -> None:
        self.to_asterisk.transport.close()
        self.to_worker.transport.close()


@asynccontextmanager
async def relayed(start_pbx: StartPbx, r: Rig) -> AsyncIterator[tuple[Call, Relay, str]]:
    """A call that talks through a relay, and its leg's UUID. The test is the controller."""
    pbx = await start_pbx()
    settings = pbx.config.asterisk
    assert r.worker.rtp is not None
    relay = Relay()
    await relay.open()
    spec = r.source.announce_call(url=r.app.url, media_format=MediaFormat.ULAW)
    media = ids.media_channel_id("pbx-1", ids.new_call_id(os.urandom), 0)
    ari = AriClient(
        f"http://{settings.ari.listen}", settings.ari.username, settings.ari.password.get_secret_value(), settings.app
    )
    async with (
        listening(pbx) as events,
        ari,
        RtpTicker() as ticker,
        Carrier(settings.sip_listen, "127.0.0.2", pbx.folder / "carrier", ticker) as carrier,
    ):
        call = carrier.call("+918000000002", "+919000000001")
        caller = (await events.next("StasisStart"))["channel"]["id"]
        await ari.answer(caller)
        await call.answered()
        host = f"127.0.0.1:{relay.to_asterisk.port}"
        _, address = await ari.external_rtp(media, host=host, leg_uuid=ids.LegUuid(spec.leg_uuid), media_format="ulaw")
        relay.to_asterisk.remote = ("127.0.0.1", int(address.rpartition(":")[2]))
        relay.to_worker.remote = ("127.0.0.1", r.worker.rtp.port)
        assert r.source.order is not None
        remote = f"127.0.0.1:{relay.to_worker.port}"
        r.source.order(LegOrder(leg_uuid=spec.leg_uuid, order="open", remote=remote, media_format=MediaFormat.ULAW))
        await events.next("StasisStart")
        await until(lambda: r.app.events("start"), "start message")
        bridge = ids.bridge_id("pbx-1", ids.new_call_id(os.urandom))
        await ari.create_bridge(bridge)
        await ari.add_to_bridge(bridge, caller, media)
        try:
            yield call, relay, spec.leg_uuid
            assert call.ending is None, "the call stays"
            assert await call.hang_up() is Ending.BY_US
            await ari.hangup(media, missing_ok=True)
        finally:
            relay.close()


def heard(r: Rig) -> np.ndarray:
    payloads = [base64.b64decode(message["media"]["payload"]) for message in r.app.events("media")]
    return np.frombuffer(b"".join(payloads), "<i2")


def paused(end: _End) -> int:
    """Frames of silence that may stand for the pauses of the machine in what came to this end."""
    pauses = [late - early for early, late in pairwise(end.carried)]
    return sum(int(pause / 0.02) + 1 for pause in pauses if pause > 0.08)


def end(r: Rig, leg_uuid: str) -> None:
    assert r.source.order is not None
    r.source.order(LegOrder(leg_uuid=leg_uuid, order="end"))


async def test_two_in_a_hundred_lost_cost_no_call_and_are_counted(start_pbx: StartPbx) -> None:
    async with rig(rtp_host="127.0.0.1") as r:
        async with relayed(start_pbx, r) as (call, relay, leg_uuid):
            relay.loss = LOSS
            call.peer.play(tone(425, 15))
            await r.app.say(tone(1000, 15).tobytes())
            await asyncio.sleep(15.5)
            relay.loss = 0.0
            await asyncio.sleep(0.3)
            end(r, leg_uuid)
            figures = (await r.report()).figures
        lost = relay.to_asterisk.lost
        assert lost >= 5
        assert figures.caller_frames_lost == lost
        # Silence in the place of what was lost: the application's stream is as long as the call. It is longer by the
        # silence that the worker made of pauses in what reached it, where these were the machine's: what was late came
        # all the same. The relay has seen them.
        voice = heard(r)
        loud = np.flatnonzero(np.abs(voice.astype(int)) > 500)
        assert -3 <= (loud[-1] - loud[0]) / 160 - 15 * 50 <= 3 + paused(relay.to_asterisk)
        assert dominant_frequency(voice) == pytest.approx(425, abs=2)
        received = call.peer.received_pcm_by_timestamp()
        loud = np.flatnonzero(np.abs(received.astype(int)) > 500)
        assert -3 <= (loud[-1] - loud[0]) / 160 - 15 * 50 <= 3 + paused(relay.to_worker)
        assert tone_share(received[loud[0] : loud[-1]], 1000) > 0.9
        assert relay.to_worker.lost >= 5


async def test_a_stall_of_six_seconds_costs_no_call(start_pbx: StartPbx) -> None:
    async with rig(rtp_host="127.0.0.1") as r, relayed(start_pbx, r) as (call, relay, leg_uuid):
        await asyncio.sleep(0.5)
        relay.stalled = True
        await asyncio.sleep(6)
        held = sum(end is relay.to_asterisk for end, _ in relay.backlog)
        relay.go_on()
        await asyncio.sleep(0.5)
        r.app.messages.clear()
        began = asyncio.get_running_loop().time()
        call.peer.play(tone(425, 1))
        await r.app.say(tone(1000, 1).tobytes())
        await asyncio.sleep(1.5)
        assert dominant_frequency(heard(r)) == pytest.approx(425, abs=2)
        assert dominant_frequency(call.peer.received_pcm(start=began, seconds=1.5)) == pytest.approx(1000, abs=2)
        end(r, leg_uuid)
        figures = (await r.report()).figures
        # What came at once was more than 200 ms old, the last ten frames apart, or more than a socket's buffer holds.
        assert held > SOCKET_PACKETS
        assert figures.caller_frames_lost + figures.caller_frames_dropped["stale"] >= SOCKET_PACKETS - 15
