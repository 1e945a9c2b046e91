"""What a caller hears, and what the report says, when an application fails: a worker between its two neighbours."""

from __future__ import annotations

import asyncio
import base64
import fcntl
import itertools
import json
import socket
import struct
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import web

from ari_app.controller.limits import REPORT_SECONDS
from audiosocket import wire
from audiosocket.app_connection import UNSENT_BYTES
from audiosocket.app_stream import MAX_UNSENT_BYTES
from audiosocket.breakers import MemoryBreakers, breaker_key
from audiosocket.callspec import CallReport, LegOrder
from audiosocket.clock import now_ms
from audiosocket.media_call import MAX_MILESTONES
from audiosocket.prompts import Prompts
from tests.loop.test_app_stream import certificate
from tests.loop.test_resolver import DEAD, GOOD, SystemResolver, system_resolver
from tests.media import call_spec
from tests.worker_rig import Application, Asterisk, Rig, rig, serving, until
from tools.audio.tones import dominant_frequency, tone

__all__ = ["system_resolver"]

pytestmark = [pytest.mark.loop, pytest.mark.virtual_time]

SORRY = tone(620, 0.5).astype("<i2").tobytes()
PROMPTS = Prompts({"sorry": SORRY})
SPEECH = tone(440, 0.02).astype("<i2").tobytes()
SIOCOUTQNSD = 0x894B
"""How much of a socket is not sent yet (<linux/sockios.h>)."""
SEGMENT_BYTES = 65_536
"""The largest that Linux fills at once."""
ONE_READ_BYTES = 10_000
"""What a worker sends at once, of the frames that it has read at once."""
SOON = 25
"""Frames of 20 ms within which what follows a failure has begun; on a busy machine, too."""


def heard(channel: Asterisk) -> bytes:
    return b"".join(channel.frames)


def first_sound(channel: Asterisk) -> int:
    return next(number for number, frame in enumerate(channel.frames) if any(frame))


def is_tone(channel: Asterisk) -> bool:
    """Whether all that was heard is the special information tone, whole."""
    samples = np.frombuffer(b"".join(channel.audio()), "<i2")
    thirds = [samples[at : at + 2640] for at in (0, 2640, 5280)]
    return [round(dominant_frequency(part) / 50) * 50 for part in thirds] == [950, 1400, 1800]


def story(report: CallReport) -> list[str]:
    left_out = ("first_caller_audio", "app_connecting", "app_connect_failed")
    return [milestone.event for milestone in report.milestones if milestone.event not in left_out]


async def ended(r: Rig, channel: Asterisk) -> CallReport:
    """The report of a call that ends by itself; nothing of it is left."""
    await channel.ended()
    report = await r.report()
    assert channel.hung_up
    return report


@asynccontextmanager
async def tcp(answer: bytes = b"", hang: bool = True) -> AsyncIterator[str]:
    """A server that accepts, says `answer`, and then nothing, or closes; its ws:// URL."""
    open_now: set[asyncio.StreamWriter] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        open_now.add(writer)
        writer.write(answer)
        try:
            if hang:
                await reader.read()
        except ConnectionError:
            pass
        finally:
            open_now.discard(writer)
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/bot"
    finally:
        server.close()
        await until(lambda: not open_now, "no socket left at the application")


# Before the stream is open


async def test_its_name_is_unknown(system_resolver: SystemResolver) -> None:
    async with rig(PROMPTS) as r:
        channel = await r.call(url="ws://nobody.example/bot", connect_attempts=2, fallback_prompt="sorry")
        report = await ended(r, channel)
        assert 10 <= first_sound(channel) < 10 + SOON  # there are 0.2 s between the two attempts
        assert b"".join(channel.audio()) == SORRY
        assert (report.reason, report.detail) == ("app_refused", "Name or service not known")
        assert report.failed
        assert system_resolver.asked == {"nobody.example": 2}


@pytest.mark.virtual_time(False)
async def test_a_resolver_that_hangs_is_waited_for_only_so_long_and_others_have_their_calls(
    system_resolver: SystemResolver,
) -> None:
    async with rig(PROMPTS) as r:
        dead = [
            await r.call(url=f"{scheme}://{DEAD}/bot", connect_timeout_seconds=2, connect_attempts=1)
            for scheme in ("ws", "http")
            for _ in range(10)
        ]
        await until(lambda: system_resolver.asked[DEAD] and not r.source.specs, "calls that wait for the name")
        good = await r.talking(url=r.app.url.replace("127.0.0.1", GOOD))
        await r.app.say(SPEECH * 5)
        await until(lambda: len(good.audio()) == 5, "five frames heard")
        assert system_resolver.asked == {DEAD: 1, GOOD: 1}
        for channel in dead:
            await channel.ended()
            assert first_sound(channel) > SOON
            assert is_tone(channel)
        await good.hang_up()
        await r.report(21)
        reasons = [(report.reason, report.detail) for report in r.source.reports]
        assert reasons.count(("app_timeout", "no WebSocket within 2 s")) == 10
        assert reasons.count(("app_url_failed", f"http://{DEAD}/bot: no answer within 2 s")) == 10


async def test_it_refuses() -> None:
    async with rig(PROMPTS) as r:
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            url = f"ws://127.0.0.1:{closed.getsockname()[1]}/"
            channel = await r.call(url=url, connect_attempts=1, fallback_prompt="sorry")
            report = await ended(r, channel)
        assert first_sound(channel) < SOON
        assert b"".join(channel.audio()) == SORRY
        assert (report.reason, report.failed, report.application) == ("app_refused", True, "test")
        assert report.detail == "Connection refused"
        assert story(report) == ["app_failed", "prompt_started", "ended"]
        assert report.figures.prompt_played == 25
        assert report.figures.frames_played == 0
        assert report.figures.first_audio_ms == -1


@pytest.mark.parametrize("status", [401, 404, 500])
async def test_it_answers_another_status(status: int) -> None:
    async def refuse(_request: web.Request) -> web.StreamResponse:
        return web.Response(status=status)

    async with rig(PROMPTS) as r:
        r.app.before_upgrade = refuse
        channel = await r.call(connect_attempts=1)
        report = await ended(r, channel)
        assert first_sound(channel) < SOON
        assert is_tone(channel)
        assert (report.reason, report.detail) == ("app_refused", f"HTTP status {status} instead of 101")
        assert report.failed


async def test_it_accepts_the_connection_and_says_nothing() -> None:
    async with rig(PROMPTS) as r, tcp() as url:
        channel = await r.call(url=url, connect_timeout_seconds=0.3, connect_attempts=2)
        report = await ended(r, channel)
        # Twice 0.3 s, and 0.2 s between them: the caller hears silence meanwhile, frame by frame.
        assert 40 <= first_sound(channel) < 40 + SOON
        assert is_tone(channel)
        assert (report.reason, report.failed) == ("app_timeout", True)


async def test_its_tls_is_no_tls() -> None:
    async with rig(PROMPTS) as r, tcp(b"220 smtp.example\r\n") as url:
        channel = await r.call(url=url.replace("ws:", "wss:"), connect_attempts=1, fallback_prompt="sorry")
        report = await ended(r, channel)
        assert b"".join(channel.audio()) == SORRY
        assert report.reason == "app_refused"
        assert "TLS" in report.detail


async def test_it_ends_the_connection_in_the_handshake() -> None:
    async with rig(PROMPTS) as r, tcp(hang=False) as url:
        channel = await r.call(url=url, connect_attempts=1)
        report = await ended(r, channel)
        assert is_tone(channel)
        assert (report.reason, report.failed) == ("app_refused", True)


# Afterwards


async def test_it_never_speaks() -> None:
    async with rig(PROMPTS) as r:
        channel = await r.talking(first_audio_seconds=0.4, fallback_prompt="sorry")
        talking = asyncio.create_task(channel.talk(40))
        report = await ended(r, channel)
        talking.cancel()
        await asyncio.gather(talking, return_exceptions=True)
        assert 20 <= first_sound(channel) < 20 + SOON
        assert b"".join(channel.audio()) == SORRY
        assert (report.reason, report.detail) == ("app_silent", "no audio within 0.4 s")
        assert r.app.messages[-1]["stop"]["reason"] == "stopped"
        assert r.app.close_code == 1000
        assert report.figures.caller_frames_dropped["between_streams"] > 10


async def test_it_falls_silent_in_the_middle_of_the_call() -> None:
    async with rig(PROMPTS) as r:
        channel = await r.talking(first_audio_seconds=5, max_silence_seconds=0.5, fallback_prompt="sorry")
        await r.app.say(SPEECH * 10)
        report = await ended(r, channel)
        samples = np.frombuffer(heard(channel), "<i2").reshape(-1, 160)
        loud = [number for number, frame in enumerate(samples) if frame.any()]
        silence = next(later - one - 1 for one, later in itertools.pairwise(loud) if later - one > 5)
        assert 25 <= silence < 25 + SOON
        assert b"".join(channel.audio()) == SPEECH * 10 + SORRY
        assert (report.reason, report.detail) == ("app_silent", "silent for 0.5 s")
        assert story(report) == ["app_connected", "first_app_audio", "app_failed", "prompt_started", "ended"]


async def test_it_hangs_and_does_not_even_answer_the_close() -> None:
    async with rig(PROMPTS) as r:

        async def hang(ws: web.WebSocketResponse) -> None:
            ws._req.transport.pause_reading()  # type: ignore[union-attr]
            await r.app.released.wait()

        r.app.behave = hang
        channel = await r.call(first_audio_seconds=0.2)
        await until(lambda: channel.audio(), "the tone")
        # The 2 s that it may take to answer are not the caller's.
        assert first_sound(channel) < 10 + SOON
        report = await ended(r, channel)
        assert is_tone(channel)
        assert report.reason == "app_silent"


async def test_its_report_does_not_wait_for_a_close_that_nobody_answers() -> None:
    async with rig() as r:
        r.app.behave = lambda ws: r.app.released.wait()  # type: ignore[assignment, return-value]
        channel = await r.call(stream_seconds=0.2)
        await channel.ended()
        # The controller keeps a caller who goes on elsewhere for REPORT_SECONDS, which is less than the close may take.
        await until(lambda: r.source.reports, "the report", REPORT_SECONDS)
        assert r.source.reports[0].reason == "stream_limit"
        assert r.worker.calls  # the socket is still being closed
        await r.report()


async def test_it_dies_without_a_close_frame() -> None:
    async with rig(PROMPTS) as r:
        channel = await r.talking()
        await r.app.say(SPEECH * 500)
        await until(lambda: len(channel.audio()) > 10, "speech")
        transport = r.app.sockets[0]._req.transport  # type: ignore[union-attr]
        connection = transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
        report = await ended(r, channel)
        played = report.figures.frames_played
        # Of what it had sent ahead nothing is played to its end: the tone comes at once.
        assert played < 10 + SOON
        samples = np.frombuffer(heard(channel), "<i2")
        assert dominant_frequency(samples[-3000:-800]) == pytest.approx(1800, abs=10)
        assert (report.reason, report.failed) == ("app_lost", True)
        assert report.figures.frames_dropped["stream_ended"] == 500 - played


async def test_it_ends_its_calls_without_a_close_frame() -> None:
    async with rig(PROMPTS) as r, serving() as second:
        following = call_spec(application="second", url=second.url)
        channel = await r.talking(close_without_frame="end", breaker_failures=1, breaker_seconds=9, next=following)
        await r.app.say(SPEECH * 5)
        await until(lambda: len(channel.audio()) == 5, "speech")
        r.app.sockets[0]._req.transport.write_eof()  # type: ignore[union-attr]
        await until(lambda: second.events("start"), "what follows it")
        await second.sockets[0].close()
        report = await ended(r, channel)
        assert b"".join(channel.audio()) == SPEECH * 5
        assert (report.reason, report.failed, report.application) == ("app_closed", False, "second")
        assert not r.worker.breakers.trips


async def test_a_reset_is_a_failure_whatever_it_does_to_end_its_calls() -> None:
    async with rig(PROMPTS) as r:
        channel = await r.talking(close_without_frame="end")
        transport = r.app.sockets[0]._req.transport  # type: ignore[union-attr]
        connection = transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
        report = await ended(r, channel)
        assert is_tone(channel)
        assert (report.reason, report.failed) == ("app_lost", True)


async def test_it_breaks_the_protocol() -> None:
    async with rig(PROMPTS) as r:
        channel = await r.talking(fallback_prompt="sorry")
        writer = r.app.sockets[0]._writer
        assert writer is not None
        writer.transport.write(b"\x80\x02{}")  # a continuation of nothing
        report = await ended(r, channel)
        assert b"".join(channel.audio()) == SORRY
        assert (report.reason, report.failed) == ("app_protocol_error", True)


async def test_its_message_is_too_big() -> None:
    async with rig(PROMPTS) as r:
        channel = await r.talking(message_max_bytes=10_000, fallback_prompt="sorry")
        writer = r.app.sockets[0]._writer
        assert writer is not None
        writer.transport.write(b"\x81\x7e" + struct.pack(">H", 12_000) + b"x" * 12_000)
        report = await ended(r, channel)
        assert b"".join(channel.audio()) == SORRY
        assert (report.reason, report.failed) == ("app_message_too_big", True)
        await until(lambda: r.app.closed, "socket closed")
        assert r.app.close_code == 1009


async def test_it_fails_after_more_clears_than_a_story_holds() -> None:
    async with rig(PROMPTS) as r:
        channel = await r.talking(fallback_prompt="sorry")
        for _ in range(MAX_MILESTONES + 50):
            await r.app.send({"event": "clear"})
        await r.app.sockets[0].send_bytes(b"the last one")
        (call,) = r.worker.calls.values()
        await until(lambda: call.figures().ignored, "all clears")
        r.app.sockets[0]._req.transport.abort()  # type: ignore[union-attr]
        report = await ended(r, channel)
        told = story(report)
        assert len(told) < MAX_MILESTONES + 5
        assert told[-4:] == ["clear", "app_failed", "prompt_started", "ended"]
        assert report.figures.clears == MAX_MILESTONES + 50


async def test_it_closes_which_is_no_failure() -> None:
    async with rig(PROMPTS) as r:
        channel = await r.talking(fallback_url=r.app.url, fallback_prompt="sorry")
        await r.app.sockets[0].close(code=1000, message=b"done")
        report = await ended(r, channel)
        assert not channel.audio()
        assert (report.reason, report.failed) == ("app_closed", False)
        assert story(report) == ["app_connected", "ended"]


async def test_a_prompt_that_is_not_there_is_the_tone() -> None:
    async with rig() as r:
        channel = await r.call(url="ws://127.0.0.1:1/", connect_attempts=1, fallback_prompt="sorry")
        report = await ended(r, channel)
        assert is_tone(channel)
        assert report.reason == "app_refused"
        assert story(report) == ["app_failed", "prompt_missing", "prompt_started", "ended"]
        missing, started = report.milestones[-3:-1]
        assert (missing.detail, started.detail) == ({"prompt": "sorry"}, {"prompt": "", "ms": 1000})


async def test_the_caller_hangs_up_during_the_prompt() -> None:
    async with rig(PROMPTS) as r:
        channel = await r.call(url="ws://127.0.0.1:1/", connect_attempts=1)
        await until(lambda: len(channel.audio()) > 5, "the tone")
        await channel.hang_up()
        report = await r.report()
        assert (report.reason, report.failed) == ("app_refused", True)


async def test_a_worker_that_is_stopped_ends_a_prompt() -> None:
    async with rig(Prompts({"long": SORRY * 100}), drain_seconds=0.1) as r:
        channel = await r.call(url="ws://127.0.0.1:1/", connect_attempts=1, fallback_prompt="long")
        await until(lambda: len(channel.audio()) > 5, "the prompt")
        r.stop.requested.set()
        report = await ended(r, channel)
        assert (report.reason, report.failed) == ("worker_stopped", True)


# The fallback URL


async def test_a_fallback_url_carries_the_call() -> None:
    async with rig(PROMPTS) as r:
        channel = await r.talking(url="ws://127.0.0.1:1/", connect_attempts=1, fallback_url=r.app.url)
        await channel.talk(5)
        await r.app.say(SPEECH * 5)
        await until(lambda: len(channel.audio()) == 5, "speech")
        assert r.app.events("start")[0]["start"]["call_sid"] == call_spec().call_sid
        await channel.hang_up()
        report = await r.report()
        assert (report.reason, report.failed, report.application) == ("leg_closed", True, "test")
        assert story(report) == ["app_failed", "fallback_started", "app_connected", "first_app_audio", "ended"]
        assert r.app.messages[-1]["stop"]["reason"] == "callended"


async def test_a_fallback_url_takes_over_in_the_middle_of_a_call() -> None:
    async with rig(PROMPTS) as r, serving() as spare:
        channel = await r.talking(fallback_url=spare.url)
        talking = asyncio.create_task(channel.talk(60))
        await r.app.say(SPEECH * 500)
        await until(lambda: len(channel.audio()) > 5, "speech")
        r.app.sockets[0]._req.transport.abort()  # type: ignore[union-attr]
        await until(lambda: spare.events("media"), "the caller at the fallback")
        before = len(channel.audio())
        await spare.say(SPEECH)
        await talking
        assert len(channel.audio()) == before + 1
        numbers = [int(message["sequence_number"]) for message in spare.messages[1:]]
        assert numbers == list(range(1, len(numbers) + 1))
        await spare.sockets[0].close(code=1000)
        report = await ended(r, channel)
        assert (report.reason, report.detail, report.failed) == ("app_closed", "close code 1000", True)
        assert not any(gap > 0.2 for gap in np.diff(channel.times))  # the caller's 20 ms go on throughout


async def test_a_fallback_url_that_fails_too_leads_to_the_prompt_and_the_first_failure() -> None:
    async with rig(PROMPTS) as r, tcp() as url:
        channel = await r.call(
            url="ws://127.0.0.1:1/",
            fallback_url=url,
            connect_attempts=1,
            connect_timeout_seconds=0.2,
            fallback_prompt="sorry",
        )
        report = await ended(r, channel)
        assert b"".join(channel.audio()) == SORRY
        assert (report.reason, report.failed) == ("app_refused", True)
        failures = [milestone.detail["reason"] for milestone in report.milestones if milestone.event == "app_failed"]
        assert failures == ["app_refused", "app_timeout"]
        assert story(report) == ["app_failed", "fallback_started", "app_failed", "prompt_started", "ended"]


async def test_the_platforms_callback_tells_the_end_of_each_stream() -> None:
    async with rig(PROMPTS) as r, serving() as spare:

        async def plain(request: web.Request) -> web.StreamResponse | None:
            return None if "Upgrade" in request.headers else web.Response()

        r.app.before_upgrade = plain
        callback_url = r.app.url.replace("ws:", "http:") + "?told"
        channel = await r.talking(callback_url=callback_url, fallback_url=spare.url)
        r.app.sockets[0]._req.transport.abort()  # type: ignore[union-attr]
        await until(lambda: spare.events("start"), "the fallback")

        def told() -> list[str]:
            return [request.query["Stream[Status]"] for request in r.app.requests if "told" in request.query]

        await until(told, "the first stream's end, while the call goes on")
        await spare.sockets[0].close()
        report = await ended(r, channel)
        await until(lambda: len(told()) == 2, "the second stream's end")
        assert told() == ["failed", "completed"]
        assert (report.reason, report.failed) == ("app_closed", True)


async def test_what_an_application_sends_behind_its_stream_is_not_heard() -> None:
    async with rig(PROMPTS) as r, serving() as second:

        async def talk_on(ws: web.WebSocketResponse) -> None:
            ws._req.transport.pause_reading()  # type: ignore[union-attr]
            payload = base64.b64encode(SPEECH).decode()
            while not r.app.released.is_set() and not ws._req.transport.is_closing():  # type: ignore[union-attr]
                await ws.send_str(json.dumps({"event": "media", "media": {"payload": payload}}))
                await asyncio.sleep(0.01)

        r.app.behave = talk_on
        channel = await r.call(stream_seconds=0.5, next=call_spec(application="second", url=second.url))
        await until(lambda: second.events("start"), "the second application")
        assert len(channel.audio()) > 5
        there = len(channel.frames) + 3
        await until(lambda: len(channel.frames) > there + 25, "more frames")
        assert not any(any(frame) for frame in channel.frames[there:])
        await channel.hang_up()
        assert (await r.report()).application == "second"


# What follows


@pytest.mark.parametrize("dialect", ["exotel", "twilio"])
async def test_the_next_application_takes_over_on_the_same_leg(dialect: str) -> None:
    async with rig(PROMPTS) as r, serving() as second:
        following = call_spec(application="second", url=second.url, dialect=dialect, account_sid="AC" + "0" * 32)
        channel = await r.talking(next=following)
        talking = asyncio.create_task(channel.talk(50))
        await until(lambda: r.app.events("media"), "the caller at the first")
        await r.app.say(SPEECH * 5)
        await until(lambda: len(channel.audio()) == 5, "the first application")
        await r.app.sockets[0].close(code=1000)
        await until(lambda: second.events("media"), "the caller at the second")
        payload = base64.b64decode(second.events("media")[0]["media"]["payload"])
        assert len(payload) == (320 if dialect == "exotel" else 160)
        await second.say(b"\x01" * 320)
        await until(lambda: len(channel.audio()) > 5, "the second application")
        await second.sockets[0].close(code=1000, message=b"bye")
        report = await ended(r, channel)
        await asyncio.gather(talking, return_exceptions=True)
        assert (report.reason, report.detail) == ("app_closed", "close code 1000 'bye'")
        assert (report.failed, report.application) == (False, "second")
        assert story(report) == ["app_connected", "first_app_audio", "next_started", "app_connected", "ended"]
        assert set(r.worker.turn_times) == {"test", "second"}


async def test_the_next_application_fails_in_its_own_way() -> None:
    async with rig(PROMPTS) as r:
        following = call_spec(
            application="second", url="ws://127.0.0.1:1/", connect_attempts=1, fallback_prompt="sorry"
        )
        channel = await r.talking(next=following)
        await r.app.sockets[0].close(code=1000)
        report = await ended(r, channel)
        assert b"".join(channel.audio()) == SORRY
        assert (report.reason, report.failed, report.application) == ("app_refused", True, "second")


async def test_a_stream_at_its_limit_is_stopped_and_the_next_one_follows() -> None:
    async with rig(PROMPTS) as r, serving() as second:
        channel = await r.talking(stream_seconds=0.4, next=call_spec(application="second", url=second.url))
        await until(lambda: second.events("start"), "the second application")
        await until(lambda: r.app.closed, "the first one's socket closed")
        assert r.app.messages[-1]["stop"]["reason"] == "stopped"
        assert r.app.close_code == 1000
        await channel.hang_up()
        assert (await r.report()).reason == "leg_closed"


async def test_a_stream_at_its_limit_is_a_good_end() -> None:
    async with rig(PROMPTS) as r:
        channel = await r.talking(stream_seconds=0.4)
        report = await ended(r, channel)
        assert not channel.audio()
        assert (report.reason, report.failed) == ("stream_limit", False)


# A held caller


async def test_a_held_caller_is_released_by_order() -> None:
    async with rig(PROMPTS) as r:
        arrived_ms = now_ms() - 60_000
        channel = await r.talking(held=True, arrived_at_ms=arrived_ms)
        assert [notice.event for notice in r.source.notices] == ["connected"]
        await r.app.say(SPEECH * 5)
        await r.app.send({"event": "mark", "mark": {"name": "greeted"}})
        await until(lambda: len(r.source.notices) == 2, "the notice that it speaks")
        (call,) = r.worker.calls.values()
        before = len(channel.frames)
        await until(lambda: len(channel.frames) > before + 20, "silence")
        assert not channel.audio()
        assert not r.app.events("mark")
        assert r.source.order is not None
        r.source.order(LegOrder(leg_uuid="another", order="release"))
        r.source.order(LegOrder(leg_uuid=call.spec.leg_uuid, order="release"))
        await until(lambda: r.app.events("mark"), "the greeting's mark")
        assert channel.audio() == [SPEECH] * 5
        await channel.talk(3)
        await channel.hang_up()
        report = await r.report()
        assert [notice.event for notice in r.source.notices] == ["connected", "speaking"]
        assert {notice.leg_uuid for notice in r.source.notices} == {call.spec.leg_uuid}
        assert story(report) == ["app_connected", "released", "first_app_audio", "ended"]
        setup_ms = report.figures.setup_app_ms, report.figures.setup_caller_ms
        assert 60_000 <= setup_ms[0] <= setup_ms[1] <= report.ended_at_ms - arrived_ms


async def test_a_controller_s_clock_that_is_ahead_makes_no_time_negative() -> None:
    async with rig(PROMPTS) as r:
        channel = await r.talking(arrived_at_ms=now_ms() + 60_000)
        await r.app.say(SPEECH * 5)
        await channel.talk(3)
        await until(lambda: len(channel.audio()) == 5, "the greeting")
        await channel.hang_up()
        report = await r.report()
        assert (report.figures.setup_app_ms, report.figures.setup_caller_ms) == (0, 0)


async def test_a_held_caller_is_released_by_his_first_frame() -> None:
    async with rig(PROMPTS) as r:
        channel = await r.talking(held=True, first_audio_seconds=0.5)
        await asyncio.sleep(0.8)  # longer than the application may take once he is there
        assert r.worker.calls
        await r.app.say(SPEECH * 5)
        await channel.talk(3)
        await until(lambda: len(channel.audio()) == 5, "the greeting")
        await channel.hang_up()
        report = await r.report()
        assert (report.reason, report.failed) == ("leg_closed", False)
        assert (report.figures.setup_app_ms, report.figures.setup_caller_ms) == (-1, -1)


async def test_a_held_caller_whose_application_fails_is_left_to_the_controller() -> None:
    async with rig(PROMPTS) as r:
        channel = await r.call(url="ws://127.0.0.1:1/", connect_attempts=1, held=True)
        report = await ended(r, channel)
        assert not channel.audio()
        assert (report.reason, report.failed) == ("app_refused", True)
        assert r.source.notices == []


async def test_a_held_caller_hears_a_prompt_of_the_operators_once_he_is_there() -> None:
    async with rig(PROMPTS) as r:
        channel = await r.call(url="ws://127.0.0.1:1/", connect_attempts=1, held=True, fallback_prompt="sorry")
        await until(lambda: len(r.source.notices) == 2, "the notices")
        assert [notice.event for notice in r.source.notices] == ["connected", "speaking"]
        assert not channel.audio()
        channel.send(wire.KIND_AUDIO, b"\xff" * 160)
        report = await ended(r, channel)
        assert b"".join(channel.audio()) == SORRY
        assert report.reason == "app_refused"


# The circuit breaker


async def breaking(r: Rig, app: Application | None = None, **changes: Any) -> CallReport:
    """One call to an application with a breaker, to its end."""
    url = "ws://127.0.0.1:1/" if app is None else app.url
    number = len(r.source.reports)
    values = {"url": url, "connect_attempts": 1, "breaker_failures": 3, "breaker_seconds": 0.5}
    channel = await r.call(**(values | {"fallback_prompt": "tick"} | changes))
    await channel.ended()
    await until(lambda: len(r.source.reports) > number, "call report")
    return r.source.reports[number]


TICK = Prompts({"tick": SPEECH})


async def test_an_application_that_keeps_failing_is_left_alone_for_a_while() -> None:
    async with rig(TICK) as r:
        assert [(await breaking(r)).reason for _ in range(5)] == ["app_refused"] * 3 + ["app_suspended"] * 2
        assert "app_connecting" not in [milestone.event for milestone in r.source.reports[-1].milestones]
        assert (r.worker.breakers.trips, r.worker.breakers.suspended) == ({"test": 1}, {"test": 2})
        assert (await breaking(r, application="other")).reason == "app_refused"
        assert (await breaking(r, url="ws://127.0.0.1:2/")).reason == "app_refused"
        await asyncio.sleep(0.5)
        assert [(await breaking(r)).reason for _ in range(2)] == ["app_refused", "app_suspended"]
        assert r.worker.breakers.trips == {"test": 2}


async def test_a_suspended_application_has_its_fallback_at_once() -> None:
    async with rig(TICK) as r:
        for _ in range(3):
            await breaking(r)
        channel = await r.talking(
            url="ws://127.0.0.1:1/", fallback_url=r.app.url, breaker_failures=3, breaker_seconds=9
        )
        await channel.hang_up()
        report = await r.report(4)
        assert story(report) == ["app_failed", "fallback_started", "app_connected", "ended"]
        assert report.milestones[0].detail["reason"] == "app_suspended"


async def test_what_is_lost_at_once_counts_and_what_answers_closes_the_breaker() -> None:
    async with rig(TICK) as r:

        async def die(ws: web.WebSocketResponse) -> None:
            ws._req.transport.abort()  # type: ignore[union-attr]

        r.app.behave = die
        reasons = [(await breaking(r, r.app)).reason for _ in range(4)]
        assert reasons == ["app_lost"] * 3 + ["app_suspended"]
        await asyncio.sleep(0.5)

        async def close(ws: web.WebSocketResponse) -> None:
            await ws.close()

        r.app.behave = close
        assert [(await breaking(r, r.app)).reason for _ in range(3)] == ["app_closed"] * 3
        r.app.behave = die
        assert [(await breaking(r, r.app)).reason for _ in range(3)] == ["app_lost"] * 3


async def test_one_probe_at_a_time_and_its_success_is_known_while_it_goes_on() -> None:
    async with rig(TICK) as r:

        async def refuse(_request: web.Request) -> web.StreamResponse:
            return web.Response(status=503)

        r.app.before_upgrade = refuse
        for _ in range(3):
            await breaking(r, r.app)
        r.app.before_upgrade = None
        await asyncio.sleep(0.5)
        probe = await r.talking(connect_attempts=1, breaker_failures=3, breaker_seconds=0.5)
        assert (await breaking(r, r.app)).reason == "app_suspended"
        key = breaker_key("test", r.app.url)
        assert isinstance(r.source.breakers, MemoryBreakers)
        (breaker,) = (each for name, each in r.source.breakers._breakers.items() if name == key)
        await until(lambda: not breaker._open_until_ms, "the breaker closed")
        other = await r.talking(connect_attempts=1, breaker_failures=3, breaker_seconds=0.5)
        await probe.hang_up()
        await other.hang_up()
        assert (await r.report(6)).reason == "leg_closed"


async def test_one_that_accepts_and_stays_silent_is_left_alone_and_its_probe_keeps_the_others_waiting() -> None:
    async with rig(TICK) as r:
        silent = {"first_audio_seconds": 9.0, "connect_timeout_seconds": 0.5}
        assert [(await breaking(r, r.app, **silent)).reason for _ in range(4)] == ["app_silent"] * 3 + ["app_suspended"]
        await asyncio.sleep(0.5)
        # One caller at a time waits for it, however long he does, and nobody else.
        probe = asyncio.create_task(breaking(r, r.app, **silent))
        await until(lambda: len(r.app.events("start")) == 4, "the probe's stream")
        number = len(r.source.reports)
        for _ in range(5):
            await asyncio.sleep(1.6)
            assert (await breaking(r, r.app, **silent)).reason == "app_suspended"
        await probe
        assert [report.reason for report in r.source.reports[number:]] == ["app_suspended"] * 5 + ["app_silent"]
        assert r.worker.breakers.trips == {"test": 2}


async def test_it_breaks_before_its_first_word_and_that_counts_however_late() -> None:
    async with rig(TICK) as r:

        async def break_late(ws: web.WebSocketResponse) -> None:
            await asyncio.sleep(4)
            ws._req.transport.write(b"\xff\xff\xff\xff")  # type: ignore[union-attr]

        async def greet_and_break(ws: web.WebSocketResponse) -> None:
            await r.app.say(SPEECH)
            await break_late(ws)

        waits = {"first_audio_seconds": 9.0}
        r.app.behave = greet_and_break
        assert [(await breaking(r, r.app, **waits)).reason for _ in range(4)] == ["app_protocol_error"] * 4
        r.app.behave = break_late
        reasons = [(await breaking(r, r.app, **waits)).reason for _ in range(4)]
        assert reasons == ["app_protocol_error"] * 3 + ["app_suspended"]


# More and less than usual


async def test_an_application_sends_digits_to_the_caller() -> None:
    async with rig() as r:
        channel = await r.talking(digits_to_caller=True)
        await r.app.send({"event": "dtmf", "dtmf": {"digits": "12#"}})
        await until(lambda: r.source.notices, "the notice")
        (notice,) = r.source.notices
        assert (notice.event, notice.digits) == ("digits", "12#")
        await channel.hang_up()
        report = await r.report()
        assert "12#" not in str(report)


@pytest.mark.parametrize("tls", [False, True], ids=["ws", "wss"])
async def test_a_slow_application_loses_frames_beyond_its_bound_and_nobody_waits(
    tls: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = asyncio.Event()

    async def stop_reading(ws: web.WebSocketResponse) -> None:
        transport = ws._req.transport  # type: ignore[union-attr]
        transport.pause_reading()
        await reads.wait()
        transport.resume_reading()

    context = None
    if tls:
        context = certificate(tmp_path, "trusted", "IP:127.0.0.1")
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "trusted.pem"))
    async with rig(tls=context) as r:
        r.app.behave = stop_reading
        channel = await r.call(stream_seconds=3600)
        (call,) = await until(lambda: list(r.worker.calls.values()), "the call")
        await until(lambda: call.status()["connected"], "the stream")
        talked = 0
        while call.figures().caller_frames_dropped.get("app_slow", 0) < 100:
            assert talked < 5000  # asyncio's TLS reads on for a while
            await channel.talk(50)
            talked += 50
        assert set(call.figures().caller_frames_dropped) <= {"app_slow", "stale"}  # the kernel's time is real
        assert call._stage is not None
        assert call._stage._stream is not None
        beneath = call._stage._stream.transport.underlying_transport
        assert MAX_UNSENT_BYTES < beneath.get_write_buffer_size() < MAX_UNSENT_BYTES + ONE_READ_BYTES
        kernel = fcntl.ioctl(beneath.get_extra_info("socket").fileno(), SIOCOUTQNSD, bytes(4))
        assert int.from_bytes(kernel, sys.byteorder) < UNSENT_BYTES + SEGMENT_BYTES
        assert len(channel.frames) > talked - 50  # the caller has had his all the same
        # It reads again: what was sent before comes late, what was dropped never, and time has gone on.
        reads.set()
        async with asyncio.timeout(1000):
            while skipped(r.app.events("media")) < call.figures().caller_frames_dropped["app_slow"]:
                await channel.talk(10)
        media, dropped = r.app.events("media"), call.figures().caller_frames_dropped
        assert dropped["app_slow"] <= skipped(media) <= sum(dropped.values())
        assert [message["sequence_number"] for message in media] == [str(number) for number in range(2, len(media) + 2)]
        await channel.hang_up()
        assert (await r.report()).reason == "leg_closed"


def skipped(media: list[dict[str, Any]]) -> int:
    """How many frames of 20 ms are missing between the first and the last that the application has."""
    times = [int(message["media"]["timestamp"]) for message in media]
    return (times[-1] - times[0]) // 20 + 1 - len(times) if times else 0


async def test_an_application_that_only_listens() -> None:
    async with rig() as r:
        channel = await r.talking(one_way=True, first_audio_seconds=0.2, max_silence_seconds=0.2)
        await channel.talk(30)
        await r.app.say(SPEECH * 5)
        channel.send(wire.KIND_DTMF, b"5")
        await channel.talk(10)
        await r.app.sockets[0].close()
        report = await ended(r, channel)
        assert not channel.audio()
        assert not r.app.events("dtmf")
        assert report.reason == "app_closed"
        assert report.figures.ignored == {"one_way": 1}
