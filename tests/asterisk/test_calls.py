"""Whole calls: SIP and RTP through a real Asterisk, controller and worker, to an application and back."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import socket
import struct
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
from aiohttp import web

from audiosocket import g711
from tests.live import ECHO, REFUSED, ROUTES, SCRIPTED, SHORT, SLOW, Live, caller, live_system
from tests.loop.test_app_stream import certificate
from tests.replying import Replying
from tests.worker_rig import Application, serving, until
from tools.asterisk.install import AsteriskInstall
from tools.audio import g711 as formula
from tools.audio.tones import dominant_frequency, tone
from tools.sip.sipp import CallRefused, Ending

OVER_TLS = "+918000000019"

pytestmark = [pytest.mark.asterisk, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def over_tls(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Application]:
    """An application at a wss:// URL, which the system's processes trust."""
    folder = tmp_path_factory.mktemp("tls")
    tls = certificate(folder, "trusted", "IP:127.0.0.1")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("SSL_CERT_FILE", str(folder / "trusted.pem"))
        async with serving(tls=tls) as app:
            yield app


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def system(
    asterisk_install: AsteriskInstall, tmp_path_factory: pytest.TempPathFactory, over_tls: Application
) -> AsyncIterator[Live]:
    folder = tmp_path_factory.mktemp("calls")
    applications = {"over-tls": {"url": over_tls.url}}
    routes = {"routes": [*ROUTES, {"did": OVER_TLS, "application": "over-tls"}]}
    async with live_system(asterisk_install, folder, calls=60, changes=routes, applications=applications) as live:
        yield live


@pytest_asyncio.fixture(loop_scope="module")
async def live(system: Live) -> AsyncIterator[Live]:
    """The system, whose application is fresh, and on which nothing may be left by a test."""
    async with system.fresh():
        yield system


async def test_the_start_message_names_the_call(live: Live) -> None:
    call = await live.talking()
    await call.hang_up()
    row = await live.record(call)
    (start,) = live.app.events("start")
    assert start["start"]["call_sid"] == row.call_sid
    assert start["stream_sid"] == start["start"]["stream_sid"] == row.stream_sid
    assert (start["start"]["from"], start["start"]["to"]) == (call.caller, SCRIPTED)
    assert start["start"]["account_sid"] == "trunkbridge"


async def test_a_national_number_reaches_its_route_and_the_application_as_e164(live: Live) -> None:
    before = len(live.app.events("start"))
    number = caller()
    call = live.ulaw.call("0" + SCRIPTED[3:], "0" + number[3:])
    await call.answered()
    await until(lambda: len(live.app.events("start")) > before, "start message")
    start = live.app.events("start")[-1]["start"]
    assert (start["from"], start["to"]) == (number, SCRIPTED)
    await call.hang_up()


async def test_barge_in_silences_the_caller(live: Live) -> None:
    call = await live.talking()
    await live.app.say(tone(700, 20).tobytes())
    await live.app.send({"event": "mark", "mark": {"name": "never heard"}})
    await asyncio.sleep(1)
    cleared = asyncio.get_running_loop().time()
    await live.app.send({"event": "clear"})
    await until(lambda: live.app.events("mark"), "pending mark")
    await asyncio.sleep(1)
    after = call.peer.received_pcm(start=cleared + 0.5, seconds=0.4)
    assert np.abs(after.astype(int)).max(initial=0) < 100
    await call.hang_up()


async def test_a_call_over_tls(live: Live, over_tls: Application) -> None:
    call = live.ulaw.call(OVER_TLS, caller())
    await call.answered()
    await until(lambda: over_tls.events("start"), "start message")
    call.peer.play(tone(440, 1))
    await over_tls.say(tone(900, 1).tobytes())
    await over_tls.send({"event": "mark", "mark": {"name": "said"}})
    await until(lambda: over_tls.events("mark"), "the mark back")
    await asyncio.sleep(0.5)
    await call.hang_up()
    row = await live.record(call)
    assert (row.result, row.reason) == ("success", "caller_hangup")
    assert dominant_frequency(call.peer.received_pcm()) == pytest.approx(900, abs=3)
    heard = b"".join(base64.b64decode(one["media"]["payload"]) for one in over_tls.events("media"))
    assert dominant_frequency(np.frombuffer(heard, "<i2")) == pytest.approx(440, abs=3)
    await until(lambda: over_tls.closed, "socket closed")
    assert (over_tls.messages[-1]["event"], over_tls.close_code) == ("stop", 1000)
    assert over_tls.requests[0].secure
    assert over_tls.requests[0].headers["User-Agent"] == "Go-http-client/1.1"


async def test_the_response_time_is_the_applications_delay(live: Live) -> None:
    app = Replying(tone(620, 0.5).astype("<i2").tobytes(), [700, 400])
    live.app.behave = app.behave
    call = live.ulaw.call(SCRIPTED, caller())
    await call.answered()
    await until(lambda: live.app.sockets, "stream")
    await asyncio.sleep(0.5)
    waited = []
    for number in (1, 2):
        loop = asyncio.get_running_loop()
        began = loop.time()
        call.peer.play(tone(440, 1))
        await until(lambda number=number: len(app.took_ms) == number, "reply")
        await asyncio.sleep(1)
        heard = call.peer.received_pcm(start=began, seconds=3).astype(int)
        waited.append(np.flatnonzero(np.abs(heard) > 2000)[0] / 8 - 1000)
    row = await live.record(call, ended=False)
    status, watched = await trunkbridge(live, "calls", "watch", "--count", "1")
    assert status == 0
    await call.hang_up()
    row = await live.record(call)
    media = row.media
    assert media is not None
    for told, took in zip((media.response_ms["p50"], media.response_ms["max"]), sorted(app.took_ms), strict=True):
        assert abs(told - took) <= 20, (media.response_ms, app.took_ms)
    # What the caller waits for is more, by the way to the worker and back.
    for told, wait in zip((media.response_ms["max"], media.response_ms["p50"]), waited, strict=True):
        assert -20 <= wait - told <= 150, (media.response_ms, waited)
    assert (media.turns, media.unanswered_turns, media.interruptions, media.both_talk_ms) == (2, 0, 0, 0)
    assert abs(media.caller_talk_ms - 2000) <= 80
    assert abs(media.app_talk_ms - 1000) <= 40
    shown = f"{media.response_ms['p50']}/{media.response_ms['p95']}"
    assert shown in watched
    status, output = await trunkbridge(live, "calls", "show", row.call_id)
    assert status == 0
    assert "  turns: 2, 0 unanswered, 0 interrupted\n" in output
    assert f"  response time: p50 {media.response_ms['p50']} ms, " in output


async def test_the_application_resets_the_connection(live: Live) -> None:
    call = await live.talking()
    transport = live.app.sockets[-1]._req.transport  # type: ignore[union-attr]
    connection = transport.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
    assert await call.ended() is Ending.BY_THEM
    row = await live.record(call)
    assert (row.result, row.reason) == ("upstream_error", "application_lost")


@pytest.mark.parametrize(
    ("number", "reason"), [(REFUSED, "application_refused"), (SLOW, "application_timeout")], ids=["refuses", "is slow"]
)
async def test_the_application_is_not_there(live: Live, number: str, reason: str) -> None:
    call = live.ulaw.call(number, caller())
    await call.answered()
    assert await call.ended() is Ending.BY_THEM
    row = await live.record(call)
    assert (row.result, row.reason) == ("upstream_error", reason)
    events = [event.event for event in await live.system.events(row.call_id)]
    assert events.count("media_app_connect_failed") == 2  # the documented retry
    # What the caller hears instead is the special information tone, whole.
    heard = call.peer.received_pcm_by_timestamp()
    loud = np.flatnonzero(np.abs(heard) > 500)
    assert loud[-1] - loud[0] == pytest.approx(0.99 * 8000, abs=80)
    thirds = np.split(heard[loud[0] : loud[0] + 7920], 3)
    assert [dominant_frequency(third) for third in thirds] == pytest.approx([950, 1400, 1800], abs=5)


async def test_the_application_answers_401(live: Live) -> None:
    async def refuse(_request: web.Request) -> web.StreamResponse:
        return web.Response(status=401)

    live.app.before_upgrade = refuse
    call = live.ulaw.call(SCRIPTED, caller())
    await call.answered()
    assert await call.ended() is Ending.BY_THEM
    row = await live.record(call)
    assert (row.reason, row.detail) == ("application_refused", "HTTP status 401 instead of 101")


async def test_a_message_over_the_limit(live: Live) -> None:
    call = await live.talking(SHORT)
    await live.app.say(bytes(16_000))
    assert await call.ended() is Ending.BY_THEM
    row = await live.record(call)
    assert (row.result, row.reason) == ("upstream_error", "application_message_too_big")


async def test_nonsense_from_the_application_does_not_end_the_call(live: Live) -> None:
    call = await live.talking()
    ws = live.app.sockets[-1]
    for text in ("{", '{"event":"sing"}', '{"event":"media","media":{"payload":"%"}}'):
        await ws.send_str(text)
    await ws.send_bytes(bytes(320))
    await live.app.send({"event": "media", "stream_sid": "not-ours", "media": {"payload": ""}})
    await live.app.say(tone(500, 0.5).tobytes())
    await asyncio.sleep(0.8)
    await call.hang_up()
    row = await live.record(call)
    assert row.reason == "caller_hangup"
    assert row.media is not None
    assert row.media.ignored == {
        "bad_json": 1,
        "unknown_event": 1,
        "bad_base64": 1,
        "binary": 1,
        "wrong_stream_sid": 1,
    }
    assert row.media.frames_played == 25


async def test_the_operator_hangs_up(live: Live) -> None:
    call = await live.talking()
    row = await live.record(call, ended=False)
    status, output = await trunkbridge(live, "calls", "hangup", row.call_id[:8])
    assert (status, output) == (0, f"{row.call_id}: ended, operator_hangup\n")
    assert await call.ended() is Ending.BY_THEM
    row = await live.record(call)
    assert (row.result, row.reason) == ("success", "operator_hangup")
    assert live.app.messages[-1]["event"] == "stop"


async def test_a_channel_is_hung_up_by_its_name(live: Live) -> None:
    call = await live.talking()
    status, output = await trunkbridge(live, "channels", "list", "-o", "json")
    assert status == 0
    channels = json.loads(output)
    assert len(channels) == 2
    (sip,) = [channel for channel in channels if channel["name"].startswith("PJSIP/")]
    status, output = await trunkbridge(live, "channels", "show", sip["name"])
    assert status == 0
    assert "rxcount" in output
    status, _ = await trunkbridge(live, "channels", "hangup", sip["name"])
    assert status == 0
    assert await call.ended() is Ending.BY_THEM
    assert (await live.record(call)).result == "success"


async def test_an_unknown_number_is_refused_and_recorded(live: Live) -> None:
    call = live.ulaw.call("+918000099999", caller())
    with pytest.raises(CallRefused) as refused:
        await call.answered()
    assert refused.value.sip_code == 404
    row = await live.record(call)
    assert (row.result, row.reason, row.answered_at) == ("client_error", "unknown_number", None)


async def test_calls_show_prints_the_whole_story(live: Live) -> None:
    call = await live.talking()
    await call.hang_up()
    row = await live.record(call)
    status, output = await trunkbridge(live, "calls", "show", row.call_id)
    assert status == 0
    # Controller and worker tell it side by side: each in its own order.
    controller = ("arrived", "placed", "answered", "bridged", "caller_gone", "settled")
    for told in (controller, ("media_app_connected", "media_ended")):
        positions = [output.index(text) for text in told]
        assert positions == sorted(positions)
    assert "result: success, caller_hangup" in output
    assert "caller_frames" in output
    status, output = await trunkbridge(live, "calls", "list", "--limit", "1", "-o", "yaml")
    assert status == 0
    assert f"call_id: {row.call_id}" in output
    status, _ = await trunkbridge(live, "calls", "show", "00000000")
    assert status == 1


@pytest.mark.alone
async def test_fifty_calls_at_once_lose_nothing(live: Live) -> None:
    before = len(await live.records())
    calls = []
    for number in range(50):
        calls.append(live.ulaw.call(ECHO, caller()))
        if number % 10 == 9:
            await asyncio.sleep(0.1)
    await asyncio.gather(*(call.answered(20) for call in calls))
    await asyncio.sleep(1)
    for number, call in enumerate(calls):
        call.peer.play(tone(400 + 40 * number, 6))
    await asyncio.sleep(7.5)
    await asyncio.gather(*(call.hang_up(20) for call in calls))
    rows = [await live.record(call) for call in calls]
    assert len({row.call_id for row in rows}) == 50
    assert len(await live.records()) == before + 50
    for number, (call, row) in enumerate(zip(calls, rows, strict=True)):
        assert dominant_frequency(call.peer.received_pcm()) == pytest.approx(400 + 40 * number, abs=3)
        assert row.result == "success"
        media = row.media
        assert media is not None
        assert media.frames_dropped.get("overrun", 0) == media.frames_dropped.get("leg_blocked", 0) == 0
        dropped = sum(media.caller_frames_dropped.values()) - media.caller_frames_dropped.get("before_start", 0)
        assert dropped == 0
        # Whatever the application sent was played, up to what was still queued at the hang-up; that the leg is gone may
        # be known a little before that the call is over.
        sent = media.app_bytes_received // 320
        accounted = sum(media.frames_dropped.get(reason, 0) for reason in ("late", "leg_lost"))
        assert sent - 10 <= media.frames_played + accounted <= sent


async def test_g711_of_the_worker_agrees_with_the_formula() -> None:
    codes = bytes(range(256))
    assert np.array_equal(np.frombuffer(g711.ulaw_to_pcm(codes), "<i2"), formula.ulaw_decode(codes))
    assert np.array_equal(np.frombuffer(g711.alaw_to_pcm(codes), "<i2"), formula.alaw_decode(codes))


async def trunkbridge(live: Live, *arguments: str) -> tuple[int, str]:
    """Runs a command of the CLI; its exit status and standard output."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "ari_app.cli.main", *arguments, "--config", str(live.system.config_path)),
        stdout=asyncio.subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(Path.cwd())},
    )
    output, _ = await process.communicate()
    return process.returncode or 0, output.decode()
