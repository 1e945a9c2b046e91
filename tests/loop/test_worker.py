"""A media worker between a played Asterisk and a played application: how calls go, and every way that they end."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import re
import socket
import struct
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
from aiohttp import WSMsgType, web

from audiosocket import wire
from audiosocket.callspec import CallSpec
from audiosocket.g711 import ulaw_to_pcm
from tests.loop.test_app_stream import certificate
from tests.worker_rig import rig, until

pytestmark = [pytest.mark.loop, pytest.mark.virtual_time]

SPEECH = (np.arange(160) * 100).astype("<i2").tobytes()


async def test_audio_goes_both_ways_and_the_caller_hangs_up() -> None:
    async with rig() as r:
        channel = await r.talking()
        await channel.talk(10)
        await r.app.say(SPEECH * 5)
        await until(lambda: len(channel.audio()) == 5, "five frames heard")
        assert channel.audio() == [SPEECH] * 5
        assert [message["event"] for message in r.app.messages[:2]] == ["connected", "start"]
        await channel.hang_up()
        report = await r.report()
        assert report.reason == "leg_closed"
        stop = r.app.messages[-1]
        assert (stop["event"], stop["stop"]["reason"]) == ("stop", "callended")
        await until(lambda: r.app.closed, "socket closed")
        assert r.app.close_code == 1000
        numbers = [int(message["sequence_number"]) for message in r.app.messages[1:]]
        assert numbers == list(range(1, len(numbers) + 1))
        assert report.figures.caller_frames == 10
        assert report.figures.frames_played == 5
        assert report.figures.first_audio_ms >= 0
        events = ["app_connecting", "app_connected", "first_caller_audio", "first_app_audio", "ended"]
        assert [m.event for m in report.milestones] == events


async def test_a_call_over_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tls = certificate(tmp_path, "trusted", "IP:127.0.0.1")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "trusted.pem"))
    async with rig(tls=tls) as r:
        channel = await r.talking()
        said = [bytes([number]) * 160 for number in range(50)]
        for frame in said:
            await channel.talk(1, frame)
        channel.send(wire.KIND_DTMF, b"7")
        await until(lambda: r.app.events("dtmf"), "digit")
        heard = [base64.b64decode(message["media"]["payload"]) for message in r.app.events("media")[:50]]
        assert heard == [ulaw_to_pcm(frame) for frame in said]
        await r.app.say(SPEECH * 50)
        await r.app.send({"event": "mark", "mark": {"name": "said"}})
        await until(lambda: r.app.events("mark"), "the mark back")
        assert channel.audio() == [SPEECH] * 50
        await r.app.say(SPEECH * 500)
        await r.app.send({"event": "mark", "mark": {"name": "cut"}})
        await until(lambda: len(channel.audio()) > 60, "the application heard")
        await r.app.send({"event": "clear"})
        await until(lambda: len(r.app.events("mark")) == 2, "the pending mark back")
        cut_off = len(channel.audio())
        await channel.talk(10)
        assert len(channel.audio()) <= cut_off + 2
        await channel.hang_up()
        report = await r.report()
        await until(lambda: r.app.closed, "socket closed")
        assert (report.reason, r.app.close_code) == ("leg_closed", 1000)
        assert r.app.messages[-1]["stop"]["reason"] == "callended"
        numbers = [int(message["sequence_number"]) for message in r.app.messages[1:]]
        assert numbers == list(range(1, len(numbers) + 1))
        assert not report.figures.caller_frames_dropped
        assert r.app.requests[0].secure


async def test_silence_at_once_and_one_frame_every_20_ms_whatever_happens() -> None:
    async with rig() as r:
        stranger = await r.connect(None)
        await until(lambda: stranger.frames, "the first frame, before any UUID")
        channel = await r.talking()
        await until(lambda: len(channel.frames) > 50, "frames in silence")
        spent = channel.times[50] - channel.times[0]
        assert spent == pytest.approx(1.0, abs=0.25)
        assert not channel.audio()
        await channel.hang_up()
        await stranger.ended()  # it never said who it is
        await r.report()
        assert r.worker.refused == {"no_uuid": 1}


async def test_the_application_closes() -> None:
    async with rig() as r:
        channel = await r.talking()
        await r.app.sockets[0].close(code=1000, message=b"done")
        await channel.ended()
        report = await r.report()
        assert channel.hung_up
        assert (report.reason, report.detail) == ("app_closed", "close code 1000 'done'")
        assert not r.app.events("stop")


async def test_the_application_dies_without_a_close_frame() -> None:
    async with rig() as r:
        channel = await r.talking()
        transport = r.app.sockets[0]._req.transport  # type: ignore[union-attr]
        connection = transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
        await channel.ended()
        assert (await r.report()).reason == "app_lost"


async def test_the_application_refuses() -> None:
    async with rig() as r:
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            channel = await r.call(url=f"ws://127.0.0.1:{closed.getsockname()[1]}/", connect_attempts=2)
            await channel.ended()
        report = await r.report()
        assert report.reason == "app_refused"
        assert [m.event for m in report.milestones].count("app_connect_failed") == 2


@pytest.mark.parametrize("status", [401, 404, 500, 302])
async def test_the_application_answers_another_status(status: int) -> None:
    async def refuse(_request: web.Request) -> web.StreamResponse:
        return web.Response(status=status, headers={"Location": "/elsewhere"} if status == 302 else {})

    async with rig() as r:
        r.app.before_upgrade = refuse
        channel = await r.call(connect_attempts=1)
        await channel.ended()
        report = await r.report()
        assert (report.reason, report.detail) == ("app_refused", f"HTTP status {status} instead of 101")


async def test_one_retry_when_the_first_handshake_fails() -> None:
    async def refuse_once(_request: web.Request) -> web.StreamResponse | None:
        return web.Response(status=503) if len(r.app.requests) == 1 else None

    async with rig() as r:
        r.app.before_upgrade = refuse_once
        channel = await r.talking()
        await channel.hang_up()
        report = await r.report()
        assert report.reason == "leg_closed"
        assert [m.event for m in report.milestones][:3] == ["app_connecting", "app_connect_failed", "app_connected"]


async def test_the_application_never_answers_the_handshake() -> None:
    async with rig() as r:

        async def hang(_request: web.Request) -> web.StreamResponse | None:
            await r.app.released.wait()
            return None

        r.app.before_upgrade = hang
        channel = await r.call(connect_timeout_seconds=0.2, connect_attempts=2)
        await channel.ended()
        assert (await r.report()).reason == "app_timeout"


async def test_the_caller_hangs_up_while_the_application_is_dialled() -> None:
    async with rig() as r:

        async def hang(_request: web.Request) -> web.StreamResponse | None:
            await r.app.released.wait()
            return None

        r.app.before_upgrade = hang
        channel = await r.call()
        await until(lambda: r.app.requests, "handshake begun")
        await channel.hang_up()
        report = await r.report()
        assert report.reason == "leg_closed"
        assert not r.app.messages
        transport = r.app.requests[0].transport
        await until(lambda: transport is None or transport.is_closing(), "the application's socket closed", 2)


async def test_a_tls_application_with_a_wrong_certificate() -> None:
    async with rig() as r:
        channel = await r.call(url=r.app.url.replace("ws:", "wss:"), connect_attempts=1)
        await channel.ended()
        report = await r.report()
        assert report.reason == "app_refused"
        assert "TLS" in report.detail


@pytest.mark.parametrize("fragments", [1, 5])
async def test_a_message_over_the_limit_ends_the_call(fragments: int) -> None:
    async with rig() as r:
        channel = await r.talking(message_max_bytes=10_000)
        writer = r.app.sockets[0]._writer
        assert writer is not None
        piece = b"x" * (12_000 // fragments)
        for number in range(fragments):
            code = WSMsgType.TEXT if number == 0 else WSMsgType.CONTINUATION
            await _raw_frame(r.app.sockets[0], code, piece, number == fragments - 1)
        await channel.ended()
        assert (await r.report()).reason == "app_message_too_big"
        await until(lambda: r.app.closed, "socket closed")
        assert r.app.close_code == 1009


async def test_a_message_in_fragments_is_one_message() -> None:
    async with rig() as r:
        channel = await r.talking()
        message = json.dumps({"event": "mark", "mark": {"name": "whole"}}).encode()
        await _raw_frame(r.app.sockets[0], WSMsgType.TEXT, message[:10], False)
        await _raw_frame(r.app.sockets[0], WSMsgType.CONTINUATION, message[10:], True)
        await until(lambda: r.app.events("mark"), "mark echoed")
        await channel.hang_up()
        await r.report()


async def test_a_continuation_out_of_place_is_a_protocol_error() -> None:
    async with rig() as r:
        channel = await r.talking()
        await _raw_frame(r.app.sockets[0], WSMsgType.CONTINUATION, b"{}", True)
        await channel.ended()
        assert (await r.report()).reason == "app_protocol_error"


async def test_nonsense_from_the_application_is_counted_and_the_call_goes_on() -> None:
    async with rig() as r:
        channel = await r.talking()
        ws = r.app.sockets[0]
        await ws.send_str("{")
        await ws.send_str('{"event":"sing"}')
        await ws.send_str('{"event":"media","media":{"payload":"%%%"}}')
        await ws.send_bytes(b"\x00" * 320)
        await ws.ping(b"are you there")
        await r.app.send({"event": "media", "stream_sid": "made-up", "media": {"payload": ""}})
        await r.app.say(SPEECH)
        await until(lambda: channel.audio(), "audio after nonsense")
        await channel.hang_up()
        assert (await r.report()).figures.ignored == {
            "bad_json": 1,
            "unknown_event": 1,
            "bad_base64": 1,
            "binary": 1,
            "wrong_stream_sid": 1,
        }


async def test_an_unknown_uuid_is_refused_and_counted() -> None:
    async with rig() as r:
        channel = await r.connect("11111111-2222-4333-8444-555555555555")
        await channel.ended()
        assert channel.hung_up
        assert channel.frames  # silence first: Asterisk must not be left waiting
        assert r.worker.refused == {"unknown": 1}
        assert not r.source.reports


@pytest.mark.parametrize(
    ("data", "detail"),
    [
        (wire.encode(wire.KIND_AUDIO, bytes(160)), "not a UUID"),
        (wire.encode(wire.KIND_UUID, bytes(16)) + b"\x10\xff\xff", "announces 65535"),
        (b"GET / HTTP/1.0\r\n\r\n", "announces"),
    ],
)
async def test_a_connection_that_is_no_audiosocket_harms_nobody(data: bytes, detail: str) -> None:
    async with rig() as r:
        channel = await r.talking()
        _, writer = await asyncio.open_connection("127.0.0.1", r.worker.port)
        writer.write(data)
        before = len(channel.frames)
        await until(lambda: len(channel.frames) > before + 10, "the other call's audio")
        writer.close()
        await channel.hang_up()
        assert (await r.report()).reason == "leg_closed"


async def test_a_broken_leg_ends_its_call_with_the_reason() -> None:
    async with rig() as r:
        channel = await r.talking()
        channel.send(wire.KIND_UUID, bytes(16))
        await channel.ended()
        report = await r.report()
        assert (report.reason, report.detail) == ("leg_protocol_error", "a second UUID on one connection")


async def test_frames_of_another_kind_are_ignored() -> None:
    async with rig() as r:
        channel = await r.talking()
        channel.send(0x12, bytes(640))
        channel.send(0x42, b"?")
        channel.send(wire.KIND_DTMF, b"\xff")
        channel.send(wire.KIND_DTMF, b"7")
        await until(lambda: r.app.events("dtmf"), "digit")
        assert r.app.events("dtmf")[0]["dtmf"]["digit"] == "7"
        await channel.hang_up()
        assert (await r.report()).figures.digits == 1


async def test_barge_in_silences_the_next_frame() -> None:
    async with rig() as r:
        channel = await r.talking()
        await r.app.say(SPEECH * 500)
        await r.app.send({"event": "mark", "mark": {"name": "end"}})
        await until(lambda: len(channel.audio()) > 10, "the application heard")
        await r.app.send({"event": "clear"})
        await until(lambda: r.app.events("mark"), "the pending mark back")
        heard = len(channel.audio())
        before = len(channel.frames)
        await until(lambda: len(channel.frames) > before + 10, "more frames")
        assert len(channel.audio()) <= heard + 2
        await channel.hang_up()
        report = await r.report()
        assert report.figures.frames_dropped["clear"] > 400


async def test_a_peer_that_does_not_read_is_not_queued_for() -> None:
    async with rig() as r:
        channel = await r.connect(r.source.announce_call(url=r.app.url).leg_uuid, receive_buffer=2048)
        await until(lambda: r.app.events("start"), "start message")
        await r.app.say(SPEECH * 1000)
        channel.reader._transport.pause_reading()  # type: ignore[attr-defined]
        (leg,) = r.worker._legs
        assert leg._transport is not None
        leg._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        await until(lambda: leg.frames_unsent > 5, "frames dropped instead of queued")
        assert leg._transport.get_write_buffer_size() <= 12 * 323
        await channel.hang_up()
        assert (await r.report()).figures.frames_dropped["leg_blocked"] > 5


async def test_drain_lets_calls_end_by_themselves() -> None:
    async with rig() as r:
        channel = await r.talking()
        r.stop.requested.set()
        await until(lambda: r.worker.draining, "draining")
        await channel.talk(5)
        assert r.worker.active == 1
        assert r.source.announced[-1].draining
        await channel.hang_up()
        assert (await r.report()).reason == "leg_closed"


async def test_a_leg_whose_spec_comes_when_the_worker_stops_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    async with rig(drain_seconds=0) as r:
        asked, given = asyncio.Event(), asyncio.Event()
        take = r.source.take

        async def slow(leg_uuid: str, peer: str) -> CallSpec:
            asked.set()
            await given.wait()
            return await take(leg_uuid, peer)

        monkeypatch.setattr(r.source, "take", slow)
        channel = await r.call()
        await asked.wait()
        r.stop.requested.set()
        await until(lambda: r.worker._stopping, "all calls that it has are stopped")
        given.set()
        await channel.ended()
        assert (await r.report()).reason == "worker_stopped"
        assert not r.app.requests
        await until(lambda: r.source.closed, "the end of the worker")


async def test_the_drain_ends_at_its_deadline() -> None:
    async with rig(drain_seconds=0.2) as r:
        channel = await r.talking()
        r.stop.requested.set()
        await channel.ended()
        report = await r.report()
        assert report.reason == "worker_stopped"
        assert r.app.messages[-1]["stop"]["reason"] == "stopped"


async def test_a_full_worker_refuses() -> None:
    async with rig(capacity=1) as r:
        channel = await r.talking()
        second = await r.call()
        await second.ended()
        assert r.worker.refused == {"full": 1}
        await channel.hang_up()
        await r.report()


async def test_only_allowed_networks_may_connect() -> None:
    async with rig(allow=["192.0.2.0/24"]) as r:
        channel = await r.call()
        await channel.ended()
        assert r.worker.refused == {"address": 1}


async def test_status_endpoint() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    async with rig(status_host="127.0.0.1", status_port=port) as r, aiohttp.ClientSession() as http:
        base = f"http://127.0.0.1:{port}"
        channel = await r.talking()
        await channel.talk(3)

        async def get(path: str) -> tuple[int, Any]:
            async with http.get(base + path) as response:
                text = await response.text()
                return response.status, json.loads(text) if response.content_type == "application/json" else text

        assert await get("/healthz") == (200, "ok\n")
        assert await get("/readyz") == (200, "ready\n")
        _, calls = await get("/calls")
        status, call = await get(f"/calls/{calls[0]['call_id']}")
        assert (status, call["figures"]["caller_frames"]) == (200, 3)
        assert (await get("/calls/nobody"))[0] == 404
        _, metrics = await get("/metrics")
        assert 'trunkbridge_media_frames_total{direction="rx"} 3.0' in metrics
        assert "trunkbridge_media_sessions_active 1.0" in metrics
        assert re.search(r"^process_open_fds [1-9]", metrics, re.MULTILINE)
        assert re.search(r"^trunkbridge_worker_tasks [1-9]", metrics, re.MULTILINE)
        _, held = await get("/held")
        assert held["tasks"]["call"] == 1
        assert held["timers"] > 0
        r.stop.requested.set()
        await until(lambda: r.worker.draining, "draining")
        assert (await get("/readyz")) == (503, "draining\n")
        await channel.hang_up()
        await r.report()


async def test_basic_authorization_and_no_extensions_in_the_handshake() -> None:
    async with rig() as r:
        channel = await r.talking(credentials="key:token")
        headers = r.app.requests[0].headers
        assert headers["Authorization"] == "Basic a2V5OnRva2Vu"
        assert "Sec-WebSocket-Extensions" not in headers
        assert "Sec-WebSocket-Protocol" not in headers
        await channel.hang_up()
        report = await r.report()
        assert "key:token" not in str(report)


async def test_a_call_in_twilio_s_words() -> None:
    codes = [bytes((frame + n) % 256 for n in range(160)) for frame in range(10)]
    account = "AC" + "5" * 32
    async with rig() as r:
        channel = await r.talking(dialect="twilio", account_sid=account, credentials="hunter2")
        for code in codes:
            channel.send(wire.KIND_AUDIO, code)
            await asyncio.sleep(0.02)
        channel.send(wire.KIND_DTMF, b"7")
        await r.app.say(b"\x80" * 320)
        await r.app.send({"event": "mark", "mark": {"name": "end"}})
        await until(lambda: r.app.events("mark"), "mark back")
        # The loudest sample of mu-law, as PCM16: two frames of it.
        assert channel.audio() == [(32124).to_bytes(2, "little") * 160] * 2
        await r.app.say(b"\x80" * 16_000)
        await r.app.send({"event": "mark", "mark": {"name": "cut"}})
        await r.app.send({"event": "clear"})
        await until(lambda: len(r.app.events("mark")) == 2, "the dropped mark back")
        await channel.hang_up()
        report = await r.report()
        await until(lambda: r.app.closed, "socket closed")
    headers = r.app.requests[0].headers
    signature = hmac.new(b"hunter2", r.app.url.encode(), "sha1").digest()
    assert headers["X-Twilio-Signature"] == base64.b64encode(signature).decode()
    assert headers["User-Agent"] == "Twilio.TmeWs/1.0"
    assert "Authorization" not in headers
    messages = r.app.messages
    assert messages[0] == {"event": "connected", "protocol": "Call", "version": "1.0.0"}
    start = messages[1]["start"]
    assert (start["accountSid"], messages[1]["streamSid"]) == (account, "MZ" + "0f3c" * 8)
    assert [int(message["sequenceNumber"]) for message in messages[1:]] == list(range(1, len(messages)))
    # What Asterisk sent in mu-law is what the application got, bit by bit.
    heard = [base64.b64decode(message["media"]["payload"]) for message in r.app.events("media")]
    assert heard[:10] == codes
    assert r.app.events("dtmf")[0]["dtmf"] == {"track": "inbound_track", "digit": "7"}
    assert messages[-1]["stop"] == {"accountSid": account, "callSid": start["callSid"]}
    assert (report.reason, report.figures.ignored) == ("leg_closed", {})
    assert "hunter2" not in str(report)


async def test_a_call_in_plivo_s_words() -> None:
    async with rig() as r:
        channel = await r.talking(dialect="plivo", account_sid="MA" + "5" * 18, credentials="hunter2")
        for number in range(5):
            channel.send(wire.KIND_AUDIO, bytes([number]) * 160)
            await asyncio.sleep(0.02)
        channel.send(wire.KIND_DTMF, b"7")
        media = {"contentType": "audio/x-mulaw", "sampleRate": 8000}
        payload, longer = (base64.b64encode(b"\x80" * size).decode() for size in (320, 16_000))
        await r.app.send({"event": "playAudio", "media": media | {"payload": payload}})
        await r.app.send({"event": "checkpoint", "name": "end"})
        await until(lambda: r.app.events("playedStream"), "the checkpoint reached")
        assert channel.audio() == [(32124).to_bytes(2, "little") * 160] * 2
        await r.app.send({"event": "playAudio", "media": media | {"payload": longer}})
        await r.app.send({"event": "checkpoint", "name": "cut"})
        await r.app.send({"event": "clearAudio"})
        await until(lambda: r.app.events("clearedAudio"), "the clear confirmed")
        await channel.hang_up()
        report = await r.report()
        await until(lambda: r.app.closed, "socket closed")
    messages = r.app.messages
    assert "X-Plivo-Signature-V3-Nonce" in r.app.requests[0].headers
    assert messages[0]["event"] == "start"
    sid = messages[0]["start"]["streamId"]
    assert {message["streamId"] for message in messages[1:]} == {sid}
    assert [message["sequenceNumber"] for message in messages] == list(range(1, len(messages) + 1))
    heard = [base64.b64decode(message["media"]["payload"]) for message in r.app.events("media")]
    assert heard[:5] == [bytes([number]) * 160 for number in range(5)]
    assert r.app.events("dtmf")[0]["dtmf"]["digit"] == "7"
    # What was before the second checkpoint was never played; and Plivo has no stop message.
    assert [message["name"] for message in r.app.events("playedStream")] == ["end"]
    assert not r.app.events("stop")
    assert r.app.close_code == 1000
    assert (report.reason, report.figures.ignored, report.figures.clears) == ("leg_closed", {}, 1)
    assert "hunter2" not in str(report)


async def test_many_calls_come_and_go_and_nothing_is_left() -> None:
    async with rig() as r:
        for _ in range(5):
            channels = await asyncio.gather(*(r.talking() for _ in range(10)))
            await asyncio.gather(*(channel.talk(3) for channel in channels))
            await asyncio.gather(*(channel.hang_up() for channel in channels))
        await r.report(50)
        assert r.worker.ended == {"leg_closed": 50}
        assert r.worker.totals().caller_frames == 150
        assert r.worker.clock._count == 0


async def _raw_frame(ws: web.WebSocketResponse, code: WSMsgType, payload: bytes, fin: bool) -> None:
    header = bytes([(0x80 if fin else 0) | int(code)])
    header += bytes([len(payload)]) if len(payload) < 126 else b"\x7e" + struct.pack("!H", len(payload))
    ws._req.transport.write(header + payload)  # type: ignore[union-attr]
