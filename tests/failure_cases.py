"""Applications that fail, each in its own way, and what comes of it: the cases of tests/asterisk/test_failures_live.py.

Each is a row of the tables in docs/failures.md, which tests/unit/test_docs.py holds to `CASES`. Who is heard is told by
the tone.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import socket
import struct
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from aiohttp import web

from ari_app.store.records import CallRow
from tests.live import Live
from tests.worker_rig import Application, until
from tools.audio.tones import dominant_frequency, tone
from tools.sip.sipp import Call, CallRefused

SPEECH, PROMPT, SPARE = 500, 700, 1200
"""Hz of the application, of the prompt and of the application at `fallback.url`."""
SECONDS = {950: 0.33, 1400: 0.33, 1800: 0.33, PROMPT: 0.6, SPARE: 0.5}
"""How long each is to be heard; the application as long as it lives."""
TONE = (950, 1400, 1800)
_numbers = itertools.count(1)
Fail = Callable[["Scene", web.WebSocketResponse], Awaitable[None]]
Answer = Callable[["Scene", web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Case:
    """An application, what it does, and what comes of it."""

    reason: str
    """The record's."""
    result: str = "upstream_error"
    cause: int = 38
    """Q.850, of the record and the BYE."""
    detail: str = ""
    """Found in the record's detail."""
    heard: tuple[int, ...] = TONE
    """Hz, one after the other."""
    silence: float = 0.0
    """Seconds between the failure and what is heard then."""
    refused: int = 0
    """The SIP status, of a caller who is never answered."""
    url: str = "ws://{app}/bot"
    settings: dict[str, Any] = field(default_factory=dict)
    route: dict[str, Any] = field(default_factory=dict)
    answer: Answer | None = None
    """In place of the handshake."""
    fail: Fail | None = None
    """Once the stream is open."""
    meanwhile: Callable[[Scene, Live], Awaitable[None]] | None = None
    """What the test does once the caller is answered."""
    calls_before: int = 0
    told: tuple[str, int] | None = None
    """The reason of the application's `stop` and its close code, where it is told."""


class Scene:
    """One call of one case, and its application."""

    def __init__(self, case: Case, number: str, app: Application) -> None:
        self.case, self.number, self.app = case, number, app
        self.call: Call
        self.row: CallRow
        self.fault: BaseException | None = None
        """What kept the call from being played to its end."""
        self.failed_at: float | None = None
        """None: with the answer, or, where it has spoken, as it fell silent."""
        app.behave = self._behave
        if case.answer is not None:
            app.before_upgrade = self._answer

    async def play(self, live: Live) -> None:
        """The call, to its end."""
        for _ in range(self.case.calls_before + 1):
            self.call = live.ulaw.call(self.number, f"+9190003{next(_numbers):05d}")
            try:
                await self.call.answered(15)
            except CallRefused:
                continue
            if self.case.meanwhile is not None:
                await self.case.meanwhile(self, live)
            await self.call.ended(20)

    async def say(self, ws: web.WebSocketResponse, hz: int, seconds: float) -> None:
        payload = base64.b64encode(tone(hz, seconds).astype("<i2").tobytes()).decode()
        await ws.send_str(json.dumps({"event": "media", "media": {"payload": payload}}))

    async def _behave(self, ws: web.WebSocketResponse) -> None:
        if self.case.fail is not None:
            await self.case.fail(self, ws)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        assert self.case.answer is not None
        response = await self.case.answer(self, request)
        response.force_close()  # no connection is kept for a next request
        return response


# What applications do


def status(code: int) -> Answer:
    async def answer(_scene: Scene, _request: web.Request) -> web.StreamResponse:
        return web.Response(status=code)

    return answer


async def says_nothing(scene: Scene, _request: web.Request) -> web.StreamResponse:
    await scene.app.released.wait()
    return web.Response()


async def closes_the_connection(_scene: Scene, request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.close()
    return web.Response()


async def is_no_url(_scene: Scene, _request: web.Request) -> web.StreamResponse:
    return web.json_response({"link": "wss://bot.example/"})


async def falls_silent(scene: Scene, ws: web.WebSocketResponse) -> None:
    await scene.say(ws, SPEECH, 0.5)


async def goes_on_speaking(scene: Scene, ws: web.WebSocketResponse) -> None:
    """Seconds ahead, as applications do: what is not played when it fails is never heard."""
    await scene.say(ws, SPEECH, 5)


def in_mid_sentence(fault: Callable[[web.WebSocketResponse], None]) -> Fail:
    async def fail(scene: Scene, ws: web.WebSocketResponse) -> None:
        await goes_on_speaking(scene, ws)
        await asyncio.sleep(0.6)
        scene.failed_at = time.monotonic()
        fault(ws)

    return fail


def ends_connection(ws: web.WebSocketResponse) -> None:
    # A FIN whatever waits unread, for which a close would be a reset.
    ws._req.transport.write_eof()  # type: ignore[union-attr]


def resets_connection(ws: web.WebSocketResponse) -> None:
    transport = ws._req.transport  # type: ignore[union-attr]
    connection = transport.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


def sends(data: bytes) -> Callable[[web.WebSocketResponse], None]:
    return lambda ws: ws._writer.transport.write(data)  # type: ignore[union-attr]


async def killed(scene: Scene, live: Live) -> None:
    """The echo is a process of its own: its caller is what is heard of it."""
    scene.call.peer.play(tone(SPEECH, 5))
    await asyncio.sleep(1)
    scene.failed_at = time.monotonic()
    await live.system.applications["echo"].kill()


async def hangs_up_on_the_prompt(scene: Scene, _live: Live) -> None:
    await until(lambda: any(sound.hz == PROMPT for sound in sounds(scene.call)), "the prompt")
    await scene.call.hang_up()


async def speaks_and_closes(ws: web.WebSocketResponse) -> None:
    """The application at `fallback.url`."""
    payload = base64.b64encode(tone(SPARE, SECONDS[SPARE]).astype("<i2").tobytes()).decode()
    await ws.send_str(json.dumps({"event": "media", "media": {"payload": payload}}))
    await asyncio.sleep(SECONDS[SPARE] + 0.3)
    await ws.close()


# What is heard


@dataclass
class Sound:
    """One tone, or silence (0 Hz), without a break."""

    hz: int
    began: float
    ended: float
    frames: int = 1

    @property
    def seconds(self) -> float:
        return self.frames * 0.02


def sounds(call: Call) -> list[Sound]:
    """What the caller has heard, frame by frame as it came; what has less than three frames is a change of tone."""
    found: list[Sound] = []
    for packet in call.peer.audio():
        pcm = call.peer.codec.decode(packet.payload)
        hz = round(dominant_frequency(pcm)) if np.abs(pcm.astype(int)).max() > 500 else 0
        if found and found[-1].hz == hz:
            found[-1].ended = packet.arrived_at
            found[-1].frames += 1
        else:
            found.append(Sound(hz, packet.arrived_at, packet.arrived_at))
    whole = [sound for sound in found if sound.frames >= 3]
    return [sound for number, sound in enumerate(whole) if not number or sound.hz != whole[number - 1].hz]


# The cases

CLOSED, PLAIN_TLS, SELF_SIGNED = "ws://{closed}/", "wss://{app}/bot", "wss://{tls}/bot"
DYNAMIC = "http://{app}/bot"
SHORT_CONNECT = {"connect_timeout_seconds": 0.5}
SORRY = {"fallback": {"prompt": "sorry"}}
WITH_SPARE = {"fallback": {"url": "ws://{spare}/bot"}}
GOOD: dict[str, Any] = {"result": "success", "cause": 16}
CASES: dict[str, Case] = {
    # Before the stream is open
    "refuses": Case("application_refused", url=CLOSED, silence=0.2, detail="Connection refused"),
    **{
        f"http-{code}": Case(
            "application_refused", answer=status(code), silence=0.2, detail=f"HTTP status {code} instead of 101"
        )
        for code in (401, 404, 500)
    },
    "self-signed": Case("application_refused", url=SELF_SIGNED, silence=0.2, detail="TLS certificate refused: self"),
    "tls-to-plain": Case("application_refused", url=PLAIN_TLS, silence=0.2, detail="TLS failed: "),
    "closes-in-handshake": Case("application_refused", answer=closes_the_connection, silence=0.2, detail="handshake"),
    "says-nothing": Case("application_timeout", answer=says_nothing, settings=SHORT_CONNECT, silence=1.2),
    "url-slow": Case("application_url_failed", url=DYNAMIC, answer=says_nothing, settings=SHORT_CONNECT, silence=0.5),
    "url-no-url": Case("application_url_failed", url=DYNAMIC, answer=is_no_url, detail="the answer"),
    "url-500": Case("application_url_failed", url=DYNAMIC, answer=status(500), silence=0.2, detail="HTTP status 500"),
    "suspended": Case(
        "application_suspended",
        url=CLOSED,
        settings={"circuit_breaker": {"failures": 1, "seconds": 60}},
        calls_before=1,
    ),
    # Afterwards
    "never-speaks": Case(
        "application_silent",
        settings={"first_audio_seconds": 1},
        silence=1,
        detail="no audio within 1 s",
        told=("stopped", 1000),
    ),
    "falls-silent": Case(
        "application_silent",
        settings={"max_silence_seconds": 1},
        fail=falls_silent,
        heard=(SPEECH, *TONE),
        silence=1,
        detail="silent for 1 s",
        told=("stopped", 1000),
    ),
    "no-close-frame": Case(
        "application_lost",
        fail=in_mid_sentence(ends_connection),
        heard=(SPEECH, *TONE),
        detail="ended without a close frame",
    ),
    "resets": Case(
        "application_lost", fail=in_mid_sentence(resets_connection), heard=(SPEECH, *TONE), detail="was reset"
    ),
    "killed": Case("application_lost", meanwhile=killed, heard=(SPEECH, *TONE)),
    "ends-without-frame": Case(
        "application_ended",
        settings={"close_without_frame": "end"},
        fail=in_mid_sentence(ends_connection),
        heard=(SPEECH,),
        detail="ended without a close frame",
        **GOOD,
    ),
    "resets-without-frame": Case(
        "application_lost",
        settings={"close_without_frame": "end"},
        fail=in_mid_sentence(resets_connection),
        heard=(SPEECH, *TONE),
        detail="was reset",
    ),
    "protocol-error": Case(
        "application_protocol_error",
        fail=in_mid_sentence(sends(b"\x80\x02{}")),  # a continuation of nothing
        heard=(SPEECH, *TONE),
        told=("", 1002),
    ),
    "too-big": Case(
        "application_message_too_big",
        settings={"message_max_bytes": 120_000},
        fail=in_mid_sentence(sends(b"\x81\x7f" + struct.pack(">Q", 130_000) + bytes(130_000))),
        heard=(SPEECH, *TONE),
        told=("", 1009),
    ),
    "stream-limit": Case(
        "stream_limit",
        settings={"max_seconds": 1},
        fail=goes_on_speaking,
        heard=(SPEECH,),
        told=("stopped", 1000),
        **GOOD,
    ),
    # What the caller gets in its place
    "prompt": Case("application_refused", url=CLOSED, settings=SORRY, heard=(PROMPT,), silence=0.2),
    "prompt-hung-up-on": Case(
        "caller_hangup",
        url=CLOSED,
        settings=SORRY,
        heard=(PROMPT,),
        silence=0.2,
        meanwhile=hangs_up_on_the_prompt,
        **GOOD,
    ),
    "fallback-url": Case("application_ended", url=CLOSED, settings=WITH_SPARE, heard=(SPARE,), silence=0.2, **GOOD),
    "fallback-url-takes-over": Case(
        "application_ended",
        settings=WITH_SPARE,
        fail=in_mid_sentence(resets_connection),
        heard=(SPEECH, SPARE),
        **GOOD,
    ),
    "fallback-url-fails": Case(
        "application_timeout",
        answer=says_nothing,
        settings=SHORT_CONNECT | {"fallback": {"url": CLOSED, "prompt": "sorry"}},
        heard=(PROMPT,),
        silence=1.4,
    ),
    "ringing": Case(
        "application_refused", url=CLOSED, route={"answer": "when_connected"}, heard=(), refused=503, cause=42
    ),
    "ringing-prompt": Case(
        "application_refused", url=CLOSED, settings=SORRY, route={"answer": "when_connected"}, heard=(PROMPT,)
    ),
}
