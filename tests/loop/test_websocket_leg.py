"""WebSocket media legs of a worker, whose Asterisk is played: content both ways, its queue, bad input, every end."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import numpy as np
import pytest

from audiosocket.callspec import CallSpec
from audiosocket.errors import ConfigError
from audiosocket.legs import chan_websocket as leg_module
from audiosocket.legs.chan_websocket import WebSocketLeg
from audiosocket.runtime.process import StopSignal
from audiosocket.worker import Worker, WorkerOptions
from tests.worker_rig import DEADLINE, AnnouncedCalls, Rig, rig, until
from tools.audio import g711

pytestmark = [pytest.mark.loop, pytest.mark.virtual_time]

FRAME_BYTES = {"ulaw": 160, "alaw": 160, "slin": 320, "slin16": 640, "slin24": 960}
SPEECH = (np.arange(160) * 100).astype("<i2").tobytes()
WEBSOCKET = {"websocket_host": "127.0.0.1", "websocket_port": 0}


def plain(data: bytes) -> np.ndarray:
    return np.frombuffer(data, "<i2")


def as_slin(pcm: np.ndarray) -> bytes:
    return pcm.astype("<i2").tobytes()


DECODE: dict[str, Any] = {"ulaw": g711.ulaw_decode, "alaw": g711.alaw_decode}
ENCODE: dict[str, Any] = {"ulaw": g711.ulaw_encode, "alaw": g711.alaw_encode}


class Peer:
    """Asterisk's end of one leg."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, media_format: str) -> None:
        self.socket = socket
        self.media_format = media_format
        self.frames: list[bytes] = []
        self.times: list[float] = []
        self.commands: list[str] = []
        self.pongs: list[bytes] = []
        self.close_code: int | None = None
        self.task = asyncio.create_task(self._read(), name="asterisk")

    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            message = await self.socket.receive()
            if message.type == aiohttp.WSMsgType.BINARY:
                self.frames.append(message.data)
                self.times.append(loop.time())
            elif message.type == aiohttp.WSMsgType.TEXT:
                self.commands.append(json.loads(message.data)["command"])
            elif message.type == aiohttp.WSMsgType.PONG:
                self.pongs.append(bytes(message.data))
            else:
                self.close_code = self.socket.close_code
                return

    @property
    def asked(self) -> int:
        return self.commands.count("GET_STATUS")

    @property
    def flushes(self) -> int:
        return self.commands.count("FLUSH_MEDIA")

    def audio(self) -> list[bytes]:
        """Frames that are not silence."""
        silence = {"ulaw": b"\xff", "alaw": b"\xd5"}.get(self.media_format, b"\0")
        return [frame for frame in self.frames if frame.strip(silence)]

    async def event(self, event: str, **fields: Any) -> None:
        await self.socket.send_str(json.dumps({"event": event, "channel_id": "tb-test-m-1", **fields}))

    async def start(self, leg_uuid: str, **changes: Any) -> None:
        fields = {
            "format": self.media_format,
            "optimal_frame_size": FRAME_BYTES[self.media_format],
            "ptime": 20,
            "channel_variables": {"TRUNKBRIDGE_LEG": leg_uuid, "MEDIA_WEBSOCKET_CONNECTION_ID": "x"},
        }
        await self.event("MEDIA_START", **(fields | changes))

    async def ended(self) -> None:
        async with asyncio.timeout(DEADLINE):
            await self.task


async def base(r: Rig) -> str:
    """Where the worker listens, once it does."""
    port = await until(lambda: r.worker.websocket_port, "WebSockets taken")
    return f"http://127.0.0.1:{port}"


@asynccontextmanager
async def peer(r: Rig, media_format: str = "ulaw", **options: Any) -> AsyncIterator[Peer]:
    address = await base(r) + "/media"
    async with (
        aiohttp.ClientSession() as http,
        http.ws_connect(address, protocols=("media",), autoping=False, autoclose=False, **options) as socket,
    ):
        asterisk = Peer(socket, media_format)
        try:
            yield asterisk
        finally:
            await socket.close()
            asterisk.task.cancel()
            await asyncio.gather(asterisk.task, return_exceptions=True)


async def talking(r: Rig, asterisk: Peer, **changes: Any) -> CallSpec:
    """A call whose stream has started."""
    spec = r.source.announce_call(**({"url": r.app.url, "media_format": asterisk.media_format} | changes))
    before = len(r.app.events("start"))
    await asterisk.start(spec.leg_uuid)
    await until(lambda: len(r.app.events("start")) > before, "start message")
    return spec


def heard(r: Rig) -> bytes:
    return b"".join(base64.b64decode(message["media"]["payload"]) for message in r.app.events("media"))


def the_leg(r: Rig) -> WebSocketLeg:
    (leg,) = r.worker._legs
    assert isinstance(leg, WebSocketLeg)
    return leg


@pytest.mark.parametrize("media_format", FRAME_BYTES)
async def test_audio_goes_both_ways_bit_by_bit(media_format: str) -> None:
    size = FRAME_BYTES[media_format]
    decode, encode = DECODE.get(media_format, plain), ENCODE.get(media_format, as_slin)
    rate = {"slin16": 16000, "slin24": 24000}.get(media_format, 8000)
    async with rig(**WEBSOCKET) as r, peer(r, media_format) as asterisk:
        assert asterisk.socket.protocol == "media"
        await talking(r, asterisk)
        frames = [bytes([number + 1]) * size for number in range(20)]
        for frame in frames:
            await asterisk.socket.send_bytes(frame)
            await asyncio.sleep(0.02)
        wanted = b"".join(as_slin(decode(frame)) for frame in frames)
        await until(lambda: len(heard(r)) >= len(wanted), "twenty frames")
        assert heard(r)[: len(wanted)] == wanted
        samples = rate // 50
        speech = (np.arange(samples) * 20).astype("<i2")
        await r.app.say(speech.tobytes() * 5)
        await until(lambda: len(asterisk.audio()) == 5, "five frames")
        assert asterisk.audio() == [encode(speech)] * 5
        assert {len(frame) for frame in asterisk.frames} == {size}
        await asterisk.socket.close()
        report = await r.report()
        assert (report.reason, report.detail) == ("leg_closed", "")
        figures = report.figures
        assert (figures.caller_frames, figures.frames_played) == (20, 5)
        assert (figures.caller_frames_dropped, figures.frames_dropped) == ({}, {})


async def test_one_frame_every_20_ms_from_the_first_message_on() -> None:
    async with rig(**WEBSOCKET) as r, peer(r) as asterisk:
        await talking(r, asterisk)
        await until(lambda: len(asterisk.frames) > 100, "frames in silence")
        # Ticks that a busy machine misses are skipped, never bunched.
        assert 1.75 < asterisk.times[100] - asterisk.times[0] < 6
        assert set(asterisk.frames) == {b"\xff" * 160}
        assert asterisk.asked in (1, 2)


async def test_digits() -> None:
    async with rig(**WEBSOCKET) as r, peer(r) as asterisk:
        await talking(r, asterisk)
        for digit in ("1", "#", "d", "", "12", "x"):
            await asterisk.event("DTMF_END", digit=digit)
        await until(lambda: the_leg(r).ignored_messages == 3, "what is no digit")
        await until(lambda: len(r.app.events("dtmf")) == 3, "three digits")
        assert [message["dtmf"]["digit"] for message in r.app.events("dtmf")] == ["1", "#", "D"]


async def test_what_a_stall_has_left_in_asterisk_is_worked_off_in_silence() -> None:
    async with rig(**WEBSOCKET) as r, peer(r) as asterisk:
        await talking(r, asterisk)
        await until(lambda: asterisk.asked, "a question")
        await asterisk.event("STATUS", queue_length=1)
        await asterisk.event("STATUS", queue_length=9)
        leg = the_leg(r)
        await until(lambda: leg._queued == 9, "the answer")
        ticks = r.worker.totals().silence_played
        sent = len(asterisk.frames)
        await until(lambda: not leg._surplus, "silence left out")
        await until(lambda: len(asterisk.frames) > sent + 3, "frames again")
        passed = r.worker.totals().silence_played - ticks
        assert passed - (len(asterisk.frames) - sent) == pytest.approx(8, abs=2)
        assert not asterisk.flushes
        # What is said meanwhile is not left out.
        await asterisk.event("STATUS", queue_length=9)
        await r.app.say(SPEECH * 10)
        await until(lambda: len(asterisk.audio()) == 10, "all that was said")


@pytest.mark.parametrize("event", [("STATUS", {"queue_length": 11}), ("MEDIA_XOFF", {})])
async def test_a_long_queue_in_asterisk_is_flushed(event: tuple[str, dict[str, Any]]) -> None:
    async with rig(**WEBSOCKET) as r, peer(r) as asterisk:
        await talking(r, asterisk)
        await asterisk.event(event[0], **event[1])
        await until(lambda: asterisk.flushes, "flush")
        await asterisk.socket.close()
        figures = (await r.report()).figures
        assert figures.frames_dropped == ({"leg_late": 11} if event[1] else {})


@pytest.mark.parametrize(("queued", "flushed"), [(1, False), (5, True)])
async def test_a_clear_flushes_what_waits_in_asterisk(queued: int, flushed: bool) -> None:
    async with rig(**WEBSOCKET) as r, peer(r) as asterisk:
        spec = await talking(r, asterisk)
        await r.app.say(SPEECH * 200)
        await until(asterisk.audio, "audio")
        await asterisk.event("STATUS", queue_length=queued)
        await until(lambda: the_leg(r)._queued == queued, "the answer")
        await r.app.send({"event": "clear", "stream_sid": spec.stream_sid})
        await until(lambda: r.worker.totals().clears, "clear")
        before = len(asterisk.frames)
        await until(lambda: len(asterisk.frames) > before + 3, "frames after it")
        assert asterisk.flushes == flushed
        assert asterisk.frames[-1] == b"\xff" * 160


async def test_a_backlog_of_the_callers_is_passed_on_up_to_200_ms() -> None:
    async with rig(**WEBSOCKET) as r, peer(r) as asterisk:
        await talking(r, asterisk)
        await until(lambda: len(asterisk.frames) > 10, "ticks")
        for number in range(60):
            asterisk.socket._writer.transport.write(masked(bytes([number]) * 160))
        await until(lambda: r.worker.totals().caller_frames == 60, "the backlog")
        figures = r.worker.totals()
        # A tick may come in the middle of it, and each part is judged by itself.
        assert 40 <= figures.caller_frames_dropped["stale"] <= 50
        assert figures.stalls == 1


def masked(payload: bytes) -> bytes:
    """A binary message as a client sends it, its mask zero (RFC 6455 section 5.3)."""
    return bytes([0x82, 0x80 | 126]) + len(payload).to_bytes(2, "big") + bytes(4) + payload


async def test_pings_are_answered() -> None:
    async with rig(**WEBSOCKET) as r, peer(r) as asterisk:
        await talking(r, asterisk)
        await asterisk.socket.ping(b"there?")
        await until(lambda: asterisk.pongs == [b"there?"], "pong")


async def test_text_that_is_not_understood_is_counted_and_the_call_goes_on() -> None:
    async with rig(**WEBSOCKET) as r, peer(r) as asterisk:
        await talking(r, asterisk)
        for text in (
            "",
            "MEDIA_XON",
            "{}",
            "[]",
            '{"event": 5}',
            '{"event":"NEWS"}',
            "{" * 5000,
            '{"event":"STATUS","queue_length":"x"}',
        ):
            await asterisk.socket.send_str(text)
        await asterisk.event("ERROR", error_text="Unable to parse JSON command")
        await until(lambda: the_leg(r).ignored_messages == 9, "nine messages")
        await asterisk.socket.send_bytes(b"")
        await asterisk.socket.send_bytes(b"\x01" * 160)
        await until(lambda: heard(r), "audio")


FIRST: list[tuple[dict[str, Any] | str, str]] = [
    ("MEDIA_START connection_id:x format:ulaw", "is no event of chan_websocket in JSON"),
    ({"event": "STATUS"}, "the first message is 'STATUS', not MEDIA_START"),
    ({"event": "MEDIA_START", "format": "ulaw", "optimal_frame_size": 160}, "without a UUID in the channel variable"),
    ({"format": "opus"}, "with format 'opus': expected slin, ulaw, "),
    ({"optimal_frame_size": 240}, "with 240 bytes a frame of ulaw: 20 ms are 160"),
]


@pytest.mark.parametrize(("first", "detail"), FIRST)
async def test_a_first_message_that_is_none(
    first: dict[str, Any] | str, detail: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends: list[str] = []
    closed = Worker.leg_closed
    monkeypatch.setattr(Worker, "leg_closed", lambda worker, leg: (ends.append(leg.end_detail), closed(worker, leg)))
    async with rig(**WEBSOCKET) as r, peer(r) as asterisk:
        spec = r.source.announce_call(url=r.app.url)
        if isinstance(first, str):
            await asterisk.socket.send_str(first)
        elif "event" in first:
            await asterisk.socket.send_str(json.dumps(first))
        else:
            await asterisk.start(spec.leg_uuid, **first)
        await asterisk.ended()
        assert asterisk.close_code == 1002
        await until(lambda: r.worker.refused == {"no_uuid": 1}, "counted")
        assert detail in ends[0]


async def test_legs_that_stand_for_no_call_here() -> None:
    async with rig(**WEBSOCKET) as r:
        async with peer(r) as asterisk:
            await asterisk.start("6e3c7a52-1b0f-4b0e-9d0b-3c1f6a1b2c3d")
            await asterisk.ended()
            assert asterisk.close_code == 1000
        async with peer(r, "alaw") as asterisk:
            spec = r.source.announce_call(url=r.app.url, media_format="ulaw")
            await asterisk.start(spec.leg_uuid)
            await asterisk.ended()
        assert r.worker.refused == {"unknown": 1, "format": 1}
    async with rig(**WEBSOCKET, allow=["10.0.0.0/8"]) as r, peer(r) as asterisk:
        await asterisk.ended()
        assert r.worker.refused == {"address": 1}


async def test_a_connection_that_says_nothing_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leg_module, "START_SECONDS", 0.2)
    async with rig(**WEBSOCKET) as r:
        async with peer(r) as asterisk:
            await asterisk.socket.send_bytes(b"\x01" * 160)  # audio may come first, and is nobody's
            await asterisk.ended()
        assert r.worker.refused == {"no_uuid": 1}
        reader, writer = await asyncio.open_connection("127.0.0.1", r.worker.websocket_port)
        async with asyncio.timeout(DEADLINE):
            assert not await reader.read()
        writer.close()


@pytest.mark.parametrize(
    ("message", "detail"),
    [
        (lambda p: p.start("6e3c7a52-1b0f-4b0e-9d0b-3c1f6a1b2c3d"), "a second MEDIA_START"),
        (lambda p: p.socket.send_bytes(b"\x01" * 11_521), "exceeding max allowed size"),
        (lambda p: p.socket.send_frame(b"\x01" * 160, aiohttp.WSMsgType.CONTINUATION), "in fragments"),
    ],
)
async def test_what_no_asterisk_sends_ends_the_leg(message: Any, detail: str) -> None:
    async with rig(**WEBSOCKET) as r, peer(r) as asterisk:
        await talking(r, asterisk)
        await message(asterisk)
        report = await r.report()
        assert report.reason == "leg_protocol_error"
        assert detail in report.detail


async def test_a_connection_that_is_torn_down() -> None:
    async with rig(**WEBSOCKET) as r, peer(r) as asterisk:
        await talking(r, asterisk)
        asterisk.socket._writer.transport.abort()
        report = await r.report()
        assert (report.reason, report.detail) == ("leg_closed", "the connection ended without a close frame")


async def test_a_peer_that_never_reads_is_bounded_and_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leg_module, "BLOCKED_TICKS", 50)
    async with rig(**WEBSOCKET) as r:
        await base(r)
        spec = r.source.announce_call(url=r.app.url, media_format="slin24")
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", r.worker.websocket_port))
        reader, writer = await asyncio.open_connection(sock=connection, limit=1)
        writer.write(
            b"GET /media HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: RNfWQgAAAADTyvRIAAAAAA==\r\nSec-WebSocket-Protocol: media\r\n\r\n"
        )
        start = {
            "event": "MEDIA_START",
            "format": "slin24",
            "optimal_frame_size": 960,
            "channel_variables": {"TRUNKBRIDGE_LEG": spec.leg_uuid},
        }
        text = json.dumps(start).encode()
        await until(lambda: r.worker._legs, "a leg")
        writer.write(bytes([0x81, 0x80 | 126]) + len(text).to_bytes(2, "big") + bytes(4) + text)
        await until(lambda: r.worker.calls, "the call")
        leg = the_leg(r)
        await until(lambda: leg._transport is not None, "its transport")
        transport = leg._transport
        assert transport is not None
        reader._transport.pause_reading()
        # The kernel's buffers are filled by pongs, each of which costs a ping.
        ping = bytes([0x89, 0x80 | 125]) + bytes(4) + bytes(125)
        deadline = asyncio.get_running_loop().time() + DEADLINE
        while not leg._blocked and asyncio.get_running_loop().time() < deadline:
            writer.write(ping * 500)
            await asyncio.sleep(0.001)
        assert leg._blocked
        writer.write(ping * 5000)
        report = await r.report()
        assert (report.reason, report.detail) == ("leg_silent", "Asterisk has read nothing for 10 s")
        assert report.figures.frames_dropped["leg_blocked"] >= 40
        writer.close()


async def test_requests_that_are_none_of_asterisks() -> None:
    async with rig(**WEBSOCKET) as r, aiohttp.ClientSession() as http:
        root = await base(r)
        offers = {"Sec-WebSocket-Protocol": "media"}
        for path, headers, status, said in (
            ("/", offers, 404, "taken at /media"),
            ("/media", {}, 400, "Expected Sec-WebSocket-Protocol: media"),
            ("/media", {"Sec-WebSocket-Protocol": "ari"}, 400, "Expected Sec-WebSocket-Protocol: media"),
            ("/media", offers, 400, "upgrade"),
        ):
            async with http.get(root + path, headers=headers) as answer:
                assert answer.status == status
                assert said in (await answer.text()).lower() or said in await answer.text()
        async with http.post(root + "/media", headers=offers, data=b"x") as answer:
            assert answer.status == 400
        for rubbish in (b"\x16\x03\x01\x02\x00\x01" * 20 + b"\r\n\r\n", b"GET /media HTTP/1.1\r\n" + b"x" * 100_000):
            reader, writer = await asyncio.open_connection("127.0.0.1", r.worker.websocket_port)
            writer.write(rubbish)
            async with asyncio.timeout(DEADLINE):
                with contextlib.suppress(ConnectionResetError):
                    await reader.read()
            writer.close()
        assert not r.worker._legs


async def test_a_stopped_worker_closes_its_legs_in_order() -> None:
    async with rig(**WEBSOCKET, drain_seconds=0) as r, peer(r) as asterisk:
        await talking(r, asterisk)
        assert r.source.announced[-1].websocket_port == r.worker.websocket_port > 0
        r.stop.requested.set()
        await asterisk.ended()
        assert asterisk.close_code == 1000
        assert (await r.report()).reason == "worker_stopped"


async def test_a_port_that_is_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        options = WorkerOptions("test/0", "test", "127.0.0.1", 0, "127.0.0.1", **(WEBSOCKET | {"websocket_port": port}))
        with pytest.raises(ConfigError, match=f"gateway.websocket_listen 127.0.0.1:{port}: "):
            await Worker(options, AnnouncedCalls()).run(StopSignal())
