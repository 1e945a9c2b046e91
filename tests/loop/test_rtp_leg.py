"""RTP media legs of a worker, whose Asterisk is played over UDP: content both ways, strangers, loss, and every end."""

from __future__ import annotations

import asyncio
import base64
import socket
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import pairwise
from typing import Any

import aiohttp
import numpy as np
import pytest

from audiosocket import rtp
from audiosocket.callspec import CallSpec, LegOrder, MediaFormat
from audiosocket.errors import ConfigError
from audiosocket.legs import rtp as leg_module
from audiosocket.legs.rtp import RtpLeg, parse_address
from audiosocket.runtime.process import StopSignal
from audiosocket.worker import Worker, WorkerOptions
from tests.worker_rig import AnnouncedCalls, Rig, rig, until
from tools.audio import g711
from tools.sip import rtp_packet

pytestmark = [pytest.mark.loop, pytest.mark.virtual_time]

SPEECH = (np.arange(160) * 100).astype("<i2").tobytes()
SSRC = 0x1234


class Peer(asyncio.DatagramProtocol):
    """Asterisk's end of one leg."""

    def __init__(self) -> None:
        self.packets: list[rtp_packet.RtpPacket] = []
        self.sequence = 65_530  # so that every test sees it wrap
        self.worker = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        self.port = transport.get_extra_info("sockname")[1]

    def datagram_received(self, data: bytes, addr: Any) -> None:
        packet = rtp_packet.decode(data, asyncio.get_running_loop().time())
        assert packet is not None
        assert addr == ("127.0.0.1", self.worker)
        self.packets.append(packet)

    def send(self, payload: bytes, payload_type: int = rtp.PT_ULAW, skip: int = 0, ssrc: int = SSRC) -> None:
        """The next packet of the caller's, after `skip` that are lost."""
        self.sequence += 1 + skip
        self.send_raw(rtp.encode(payload_type, self.sequence, self.sequence * 160, ssrc, payload))

    def send_raw(self, data: bytes) -> None:
        self.transport.sendto(data, ("127.0.0.1", self.worker))


@asynccontextmanager
async def peer(worker: Worker) -> AsyncIterator[Peer]:
    transport, protocol = await asyncio.get_running_loop().create_datagram_endpoint(Peer, local_addr=("127.0.0.1", 0))
    assert worker.rtp is not None
    protocol.worker = worker.rtp.port
    try:
        yield protocol
    finally:
        transport.close()


def order(r: Rig, what: Any, leg_uuid: str, **more: Any) -> None:
    assert r.source.order is not None
    r.source.order(LegOrder(leg_uuid=leg_uuid, order=what, **more))


def open_leg(r: Rig, asterisk: Peer, **changes: Any) -> CallSpec:
    """An announced call whose leg the controller has told the worker to open."""
    spec = r.source.announce_call(**({"url": r.app.url} | changes))
    remote = f"127.0.0.1:{asterisk.port}"
    order(r, "open", spec.leg_uuid, remote=remote, media_format=spec.media_format)
    return spec


async def talking(r: Rig, asterisk: Peer, **changes: Any) -> CallSpec:
    before = len(r.app.events("start"))
    spec = open_leg(r, asterisk, **changes)
    await until(lambda: len(r.app.events("start")) > before, "start message")
    return spec


def heard(r: Rig) -> bytes:
    return b"".join(base64.b64decode(message["media"]["payload"]) for message in r.app.events("media"))


def frame(number: int) -> bytes:
    return bytes([number]) * 160


@pytest.mark.parametrize(
    ("media_format", "decode", "encode"),
    [("ulaw", g711.ulaw_decode, g711.ulaw_encode), ("alaw", g711.alaw_decode, g711.alaw_encode)],
)
async def test_audio_goes_both_ways_bit_by_bit(media_format: str, decode: Any, encode: Any) -> None:
    async with rig(rtp_host="127.0.0.1") as r, peer(r.worker) as asterisk:
        spec = await talking(r, asterisk, media_format=media_format)
        (attached,) = r.source.notices
        assert (attached.event, attached.leg_uuid) == ("attached", spec.leg_uuid)
        payload_type = rtp.PT_ULAW if media_format == "ulaw" else rtp.PT_ALAW
        for number in range(20):
            asterisk.send(frame(number), payload_type)
            await asyncio.sleep(0.02)
        await until(lambda: len(heard(r)) >= 20 * 320, "twenty frames")
        wanted = b"".join(decode(frame(number)).astype("<i2").tobytes() for number in range(20))
        assert heard(r)[: len(wanted)] == wanted
        quiet = encode(np.zeros(160, "<i2"))
        await r.app.say(SPEECH * 5)
        await until(lambda: sum(packet.payload != quiet for packet in asterisk.packets) == 5, "five packets")
        assert [p.payload for p in asterisk.packets if p.payload != quiet] == [encode(np.frombuffer(SPEECH, "<i2"))] * 5
        assert {packet.payload_type for packet in asterisk.packets} == {payload_type}
        order(r, "end", spec.leg_uuid)
        report = await r.report()
        assert report.reason == "leg_closed"
        figures = report.figures
        assert (figures.caller_frames, figures.caller_frames_lost, figures.frames_played) == (20, 0, 5)
        assert (figures.caller_frames_dropped, figures.frames_dropped) == ({}, {})


async def test_one_packet_every_20_ms_from_the_opening_on() -> None:
    async with rig(rtp_host="127.0.0.1") as r, peer(r.worker) as asterisk:
        await talking(r, asterisk)
        await until(lambda: len(asterisk.packets) > 50, "packets in silence")
        packets = asterisk.packets
        assert packets[50].arrived_at - packets[0].arrived_at == pytest.approx(1.0, abs=0.25)
        assert [packet.marker for packet in packets].count(True) - r.worker.totals().ticks_late <= 1
        assert packets[0].marker
        assert {packet.ssrc for packet in packets} == {packets[0].ssrc}
        steps = {(b.sequence - a.sequence) % 2**16 for a, b in pairwise(packets)}
        assert steps == {1}
        times = {(b.timestamp - a.timestamp) % 2**32 for a, b in pairwise(packets)}
        assert {step % 160 for step in times} == {0}


async def test_after_missed_ticks_the_timestamp_says_what_was_skipped() -> None:
    async with rig(rtp_host="127.0.0.1") as r, peer(r.worker) as asterisk:
        await talking(r, asterisk)
        (leg,) = r.worker._legs
        assert isinstance(leg, RtpLeg)
        await until(lambda: len(asterisk.packets) > 3, "packets")
        before = len(asterisk.packets)
        leg._tick(4)  # nothing to catch up with: one packet for five ticks
        await until(lambda: len(asterisk.packets) > before, "a packet")
        last, late = asterisk.packets[before - 1 : before + 1]
        assert (late.timestamp - last.timestamp) % 2**32 == 5 * 160
        assert late.marker
        await r.app.say(SPEECH * 10)
        await until(lambda: r.worker.totals().app_media_received == 1, "audio")
        before = len(asterisk.packets)
        leg._tick(2)  # three packets for three ticks: no gap
        await until(lambda: len(asterisk.packets) >= before + 3, "three packets")
        last, *three = asterisk.packets[before - 1 : before + 3]
        stamps = [(packet.timestamp - last.timestamp) % 2**32 for packet in three]
        assert stamps == [160, 320, 480]
        assert not any(packet.marker for packet in three)


async def test_strangers_are_dropped_and_counted() -> None:
    status = free_port()
    async with (
        rig(rtp_host="127.0.0.1", status_host="127.0.0.1", status_port=status) as r,
        peer(r.worker) as asterisk,
        peer(r.worker) as stranger,
    ):
        spec = await talking(r, asterisk)
        for number in range(20):
            stranger.send(frame(99))
            asterisk.send(frame(number))
            await asyncio.sleep(0.02)
        await until(lambda: len(heard(r)) >= 20 * 320, "twenty frames")
        assert g711.ulaw_decode(frame(99)).astype("<i2").tobytes() not in heard(r)
        assert r.worker.rtp is not None
        assert r.worker.rtp.strangers == 20
        assert not stranger.packets
        url = f"http://127.0.0.1:{status}/metrics"
        async with aiohttp.ClientSession() as http, http.get(url) as answer:
            text = await answer.text()
        assert "trunkbridge_media_rtp_strangers_total 20.0" in text
        order(r, "end", spec.leg_uuid)
        assert (await r.report()).figures.caller_frames == 20


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def test_what_is_lost_is_counted_and_silence_takes_its_place() -> None:
    async with rig(rtp_host="127.0.0.1") as r, peer(r.worker) as asterisk:
        spec = await talking(r, asterisk)
        sent = []
        for number in range(1, 40):
            lost = number % 10 == 5
            asterisk.send(frame(number), skip=int(lost))
            sent += [bytes(320)] * lost + [g711.ulaw_decode(frame(number)).astype("<i2").tobytes()]
            await asyncio.sleep(0.04 if lost else 0.02)
        wanted = b"".join(sent)
        await until(lambda: len(heard(r)) >= len(wanted), "all frames")
        order(r, "end", spec.leg_uuid)
        figures = (await r.report()).figures
        assert (figures.caller_frames, figures.caller_frames_lost) == (39, 4)
        if not figures.stalls and not figures.ticks_late:  # otherwise the machine has made a gap of its own
            assert heard(r)[: len(wanted)] == wanted


async def test_packets_that_change_places_are_put_right() -> None:
    async with rig(rtp_host="127.0.0.1") as r, peer(r.worker) as asterisk:
        spec = await talking(r, asterisk)
        asterisk.send(frame(0))
        for first in range(1, 21, 2):
            for number in (first + 1, first, first):  # the other way round, and one of them twice
                asterisk.send_raw(rtp.encode(0, 65_531 + number, 0, SSRC, frame(number)))
            await asyncio.sleep(0.04)
        await until(lambda: len(heard(r)) >= 21 * 320, "all frames")
        order(r, "end", spec.leg_uuid)
        figures = (await r.report()).figures
        wanted = b"".join(g711.ulaw_decode(frame(number)).astype("<i2").tobytes() for number in range(21))
        assert wanted in heard(r)
        assert (figures.caller_frames, figures.caller_frames_lost) == (21, 0)
        assert figures.caller_frames_dropped == {"duplicate": 10}


async def test_what_is_no_audio_of_the_call_is_dropped() -> None:
    async with rig(rtp_host="127.0.0.1") as r, peer(r.worker) as asterisk:
        spec = await talking(r, asterisk)
        asterisk.send(frame(1))
        for nonsense in (b"x", bytes(12), bytes(172), bytes([0x90, 0]) + bytes(10) + b"\x00\x00\xff\xff"):
            asterisk.send_raw(nonsense)
        asterisk.send_raw(rtp.encode(13, 1, 0, SSRC, b"\x40"))  # comfort noise
        asterisk.send_raw(rtp.encode(101, 1, 0, SSRC, bytes(4)))  # a telephone event
        asterisk.send_raw(rtp.encode(0, 1, 0, 0x9999, frame(9)))  # one packet of another stream
        asterisk.send(frame(2))
        await until(lambda: len(heard(r)) >= 2 * 320, "two frames")
        order(r, "end", spec.leg_uuid)
        figures = (await r.report()).figures
        assert figures.caller_frames == 2
        assert figures.caller_frames_dropped == {"other_payload": 6, "out_of_stream": 1}


async def test_another_source_and_a_leap_are_followed_and_what_is_too_late_is_counted() -> None:
    async with rig(rtp_host="127.0.0.1") as r, peer(r.worker) as asterisk:
        spec = await talking(r, asterisk)
        number = 0

        async def send(skip: int = 0, ssrc: int = SSRC) -> None:
            nonlocal number
            number += 1
            asterisk.send(frame(number), skip=skip, ssrc=ssrc)
            await asyncio.sleep(0.02)

        for ssrc in (SSRC, 0x9999):  # what Asterisk does when another channel speaks in the bridge
            for _ in range(3):
                await send(ssrc=ssrc)
        await send(skip=20_000, ssrc=0x9999)
        await send(ssrc=0x9999)
        await send(skip=1, ssrc=0x9999)
        for _ in range(3):
            await send(ssrc=0x9999)
        late = asterisk.sequence - 4
        asterisk.send_raw(rtp.encode(rtp.PT_ULAW, late, 0, 0x9999, frame(99)))
        await until(lambda: r.worker.totals().caller_frames >= number, "all frames")
        await asyncio.sleep(0.05)
        order(r, "end", spec.leg_uuid)
        figures = (await r.report()).figures
        assert (figures.caller_frames, figures.caller_frames_lost) == (number, 1)
        assert figures.caller_frames_dropped == {"late": 1}
        for sent in range(1, number + 1):
            assert g711.ulaw_decode(frame(sent)).astype("<i2").tobytes() in heard(r), sent


async def test_a_backlog_is_cut_to_its_latest_200_ms() -> None:
    async with rig(rtp_host="127.0.0.1") as r, peer(r.worker) as asterisk:
        spec = await talking(r, asterisk)
        await until(lambda: r.worker.totals().silence_played > 10, "some ticks")
        for number in range(40):
            asterisk.send(frame(number))
        await until(lambda: r.worker.totals().caller_frames == 40, "all packets")
        order(r, "end", spec.leg_uuid)
        figures = (await r.report()).figures
        # The first two are on their way before it can be seen that they are many.
        assert figures.caller_frames_dropped == {"stale": 28}
        assert figures.stalls == 1


async def test_digits_of_the_controller_reach_the_application() -> None:
    async with rig(rtp_host="127.0.0.1") as r, peer(r.worker) as asterisk:
        spec = await talking(r, asterisk)
        for digits in ("1", "5", "#"):
            order(r, "digits", spec.leg_uuid, digits=digits)
        await until(lambda: len(r.app.events("dtmf")) == 3, "three digits")
        assert [message["dtmf"]["digit"] for message in r.app.events("dtmf")] == ["1", "5", "#"]


@pytest.mark.parametrize("told", ["before the audio goes on", "after it"])
async def test_the_gap_that_a_digit_leaves_is_no_loss(told: str) -> None:
    async with rig(rtp_host="127.0.0.1") as r, peer(r.worker) as asterisk:
        spec = await talking(r, asterisk)
        asterisk.send(frame(1))
        await asyncio.sleep(0.12)
        for skip in (8, 0, 0):  # the digit's own packets had these numbers
            if skip and told.startswith("before"):
                order(r, "digits", spec.leg_uuid, digits="5")
            asterisk.send(frame(2), skip=skip)
            await asyncio.sleep(0.02)
        if told == "after it":
            order(r, "digits", spec.leg_uuid, digits="5")
        await asyncio.sleep(0.3)
        asterisk.send(frame(3), skip=1)
        asterisk.send(frame(4))
        await until(lambda: r.worker.totals().caller_frames == 6, "all frames")
        order(r, "end", spec.leg_uuid)
        assert (await r.report()).figures.caller_frames_lost == 1


async def test_a_closed_port_of_asterisks_ends_the_leg() -> None:
    async with rig(rtp_host="127.0.0.1") as r:
        async with peer(r.worker) as asterisk:
            await talking(r, asterisk)
        report = await r.report()
        assert (report.reason, report.detail) == ("leg_closed", "Asterisk has closed its RTP port")
        assert r.app.messages[-1]["stop"]["reason"] == "callended"


async def test_an_asterisk_that_says_nothing_for_long_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leg_module, "SILENT_TICKS", 25)
    async with rig(rtp_host="127.0.0.1") as r, peer(r.worker) as asterisk:
        await talking(r, asterisk)
        assert (await r.report()).reason == "leg_silent"


async def test_the_application_ends_the_call() -> None:
    async with rig(rtp_host="127.0.0.1") as r, peer(r.worker) as asterisk:
        await talking(r, asterisk)
        await r.app.sockets[-1].close()
        assert (await r.report()).reason == "app_closed"
        await asyncio.sleep(0.05)
        count = len(asterisk.packets)
        await asyncio.sleep(0.1)
        assert len(asterisk.packets) == count


async def test_twenty_legs_on_one_port_are_kept_apart() -> None:
    async with rig(rtp_host="127.0.0.1") as r, AsyncExitStack() as stack:
        ends = [await stack.enter_async_context(peer(r.worker)) for _ in range(20)]
        specs = [await talking(r, end, stream_sid=uuid.uuid4().hex) for end in ends]
        for _ in range(10):
            for number, end in enumerate(ends):
                end.send(frame(number))
            await asyncio.sleep(0.02)
        for number, spec in enumerate(specs):
            wanted = g711.ulaw_decode(frame(number)).astype("<i2").tobytes()
            own = [message for message in r.app.events("media") if message["stream_sid"] == spec.stream_sid]
            assert {base64.b64decode(message["media"]["payload"]) for message in own} <= {wanted, bytes(320)}
            order(r, "end", spec.leg_uuid)
        await r.report(20)
        assert [report.figures.caller_frames for report in r.source.reports] == [10] * 20


@pytest.mark.parametrize(
    "more",
    [
        {"remote": "nonsense"},
        {"remote": ""},
        {"remote": "127.0.0.1:0"},
        {"remote": "[::1]:4000"},  # of another family than the port
        {"remote": "127.0.0.1:4000", "media_format": MediaFormat.SLIN16},
    ],
)
async def test_an_order_that_cannot_be_done_is_counted(more: dict[str, Any]) -> None:
    async with rig(rtp_host="127.0.0.1") as r:
        order(r, "open", str(uuid.uuid4()), **more)
        assert r.worker.refused == {"no_rtp": 1}
        assert not r.worker._legs


async def test_a_leg_that_nobody_announced_is_refused() -> None:
    async with rig(rtp_host="127.0.0.1", allow=["127.0.0.0/8"]) as r, peer(r.worker) as asterisk:
        order(r, "open", str(uuid.uuid4()), remote=f"127.0.0.1:{asterisk.port}")
        await until(lambda: r.worker.refused == {"unknown": 1}, "refusal")
        assert not r.worker._legs


async def test_a_source_that_may_not_connect_is_refused() -> None:
    async with rig(rtp_host="127.0.0.1", allow=["10.0.0.0/8"]) as r, peer(r.worker) as asterisk:
        open_leg(r, asterisk)
        await until(lambda: r.worker.refused == {"address": 1}, "refusal")
        assert r.source.specs, "the spec is not taken"


async def test_a_worker_without_a_port_opens_nothing() -> None:
    async with rig() as r:
        order(r, "open", str(uuid.uuid4()), remote="127.0.0.1:4000")
        assert r.worker.refused == {"no_rtp": 1}
        await until(lambda: r.source.announced, "announcement")
        assert r.source.announced[-1].rtp_port == 0


async def test_the_port_is_announced() -> None:
    async with rig(rtp_host="127.0.0.1") as r:
        await until(lambda: r.source.announced, "announcement")
        assert r.worker.rtp is not None
        assert r.source.announced[-1].rtp_port == r.worker.rtp.port > 0


async def test_a_taken_port_is_a_clear_error() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        options = WorkerOptions(
            worker_id="test/0",
            node="test",
            host="127.0.0.1",
            port=0,
            advertise="127.0.0.1",
            rtp_host="127.0.0.1",
            rtp_port=taken.getsockname()[1],
        )
        with pytest.raises(ConfigError, match=r"gateway\.rtp_listen 127\.0\.0\.1:\d+: Address already in use"):
            await Worker(options, AnnouncedCalls()).run(StopSignal())


def test_addresses() -> None:
    assert parse_address("10.0.0.1:4000") == ("10.0.0.1", 4000)
    assert parse_address("[fd00::1]:4000") == ("fd00::1", 4000)
