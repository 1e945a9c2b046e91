"""`trunkbridge appcheck` against applications that behave, and against ones that misbehave in one way each."""

from __future__ import annotations

import asyncio
import base64
import json
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from audiosocket.appcheck.check import Outcome, check
from audiosocket.appcheck.findings import DOCUMENTS, Severity
from audiosocket.appcheck.scenarios import SCENARIOS, Pace
from audiosocket.appcheck.trace import Farewell, Trace
from audiosocket.callspec import CallSpec, MediaFormat
from audiosocket.g711 import pcm_to_ulaw
from tests.appcheck_apps import Manners, bot, serving
from tests.media import call_spec
from tools.apps.conversation import Script, Turn, conversation
from tools.apps.echo import echo
from tools.apps.service import Conversation, EventLog, make_app
from tools.audio.tones import tone

pytestmark = [pytest.mark.loop, pytest.mark.virtual_time]

QUICK = Pace(wait=1.0, speech=0.6, settle=0.5, linger=0.5, digit=0.5, turns=1, calls=2)
SCRIPT = Script(
    greeting=Turn.spoken("greeting", tone(500, 1.25)),
    replies=(Turn.spoken("one", tone(700, 0.45)), Turn.spoken("two", tone(900, 0.5))),
    goodbye=Turn.spoken("goodbye", tone(1100, 0.5)),
    keys={"5": Turn.spoken("five", tone(1300, 0.3))},
)


class Nobody:
    """An audience that remembers."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int]] = []

    def begins(self, scenario: str) -> None:
        pass

    def ended(self, scenario: str, traces: Sequence[Trace]) -> None:
        self.told.append((scenario, len(traces)))


async def checked(spec: CallSpec, *names: str) -> Outcome:
    return await check(spec, names, QUICK, None, Nobody())


async def at(manners: Manners, *names: str) -> Outcome:
    async with bot(manners) as url:
        return await checked(call_spec(url=url), *names)


def codes(found: Outcome) -> set[str]:
    return {one.code for one in found.findings}


def application(carry: Conversation) -> web.Application:
    return make_app(carry, EventLog(None))


async def test_nothing_is_wrong_with_a_bot_that_behaves() -> None:
    async with serving(application(conversation(SCRIPT))) as url:
        # Every scenario in a check of its own, all at the same time.
        found = dict(
            zip(
                SCENARIOS, await asyncio.gather(*(checked(call_spec(url=url), name) for name in SCENARIOS)), strict=True
            )
        )
    assert {name: codes(one) for name, one in found.items()} == {name: set() for name in SCENARIOS}
    assert found["greeting"].figures.burst
    assert found["greeting"].figures.first_audio_ms is not None
    assert found["greeting"].figures.first_audio_ms.most < 500
    answer = found["speech"].figures.response_ms
    assert answer is not None
    assert 480 <= answer.p50 < 900  # the bot waits for 500 ms of quiet
    clear = found["barge-in"].figures.barge_in_ms
    assert clear is not None
    assert 40 <= clear.p50 < 400
    assert [len(trace.marks) for trace in found["marks"].traces] == [2]
    assert [len(trace.echoes) for trace in found["marks"].traces] == [2]
    assert found["dtmf"].traces[0].onset_after(found["dtmf"].traces[0].digits[0]) is not None
    closing = found["hangup"].traces[0].closing
    assert closing is not None
    assert closing.farewell is Farewell.ANSWERED
    together = found["concurrency"]
    assert len(together.traces) == 2
    assert together.figures.response_ms is not None
    assert together.figures.response_ms.count == 2
    assert found["slow"].figures.response_slow_network_ms is not None


# The manner that is missing, the scenarios that show it, and what is found.
MISBEHAVING: dict[str, tuple[Manners, tuple[str, ...], set[str]]] = {
    "well": (Manners(), ("speech",), set()),
    "never speaks": (Manners(speaks=False), ("speech",), {"never_speaks"}),
    "odd pieces": (Manners(chunk=3201), ("greeting",), {"chunk_odd"}),
    "unaligned pieces": (Manners(chunk=4096), ("greeting",), {"chunk_unaligned"}),
    "small pieces": (Manners(chunk=640), ("greeting",), {"chunk_small"}),
    "big pieces": (Manners(chunk=104_000, greets=6.6), ("handshake",), {"chunk_big"}),
    "binary": (Manners(binary=True), ("speech",), {"binary"}),
    "bad base64": (Manners(payload="broken"), ("speech",), {"bad_base64"}),
    "μ-law": (Manners(payload="ulaw"), ("greeting",), {"wrong_encoding"}),
    "wrong event": (Manners(event="audio"), ("speech",), {"unknown_event"}),
    "wrong stream id": (Manners(sid="mine"), ("greeting",), {"wrong_stream_sid"}),
    "mark without a name": (Manners(mark_name=7), ("greeting",), {"mark_name"}),
    "mark ping-pong": (Manners(returns_marks=True, greets=0.4), ("marks",), {"ping_pong"}),
    "no clear": (Manners(clears=False, greets=2.4), ("barge-in",), {"no_clear"}),
    "talks after its clear": (Manners(talks_after_clear=True), ("barge-in",), {"audio_after_clear"}),
    "too slow": (Manners(patience=0.25), ("greeting",), {"choppy"}),
    "401": (Manners(status=401), ("handshake", "greeting"), {"unauthorised"}),
    "404": (Manners(status=404), ("handshake", "greeting"), {"status"}),
    "closes at once": (Manners(closes_at="upgrade"), ("handshake", "greeting"), {"closes_at_once"}),
    "falls over at a key": (Manners(closes_at="dtmf"), ("dtmf",), {"closes_on_dtmf"}),
    "falls over at a mark": (Manners(closes_at="mark", greets=0.4), ("marks",), {"closes_on_mark"}),
    "never closes": (Manners(answers_close=False), ("handshake",), {"close_unanswered"}),
    "one socket for all": (Manners(global_socket=True, marks=False), ("concurrency",), {"crossed"}),
}


async def test_each_misbehaviour_is_found_and_nothing_else() -> None:
    outcomes = await asyncio.gather(*(at(manners, *names) for manners, names, _ in MISBEHAVING.values()))
    found = {what: codes(one) for what, one in zip(MISBEHAVING, outcomes, strict=True)}
    assert found == {what: expected for what, (_, _, expected) in MISBEHAVING.items()}
    # An unknown event is a trifle, unless it is what the bot says everything with.
    (silencing,) = outcomes[list(MISBEHAVING).index("wrong event")].findings
    assert silencing.severity is Severity.ERROR
    assert "audio" in silencing.seen


async def test_a_check_is_abandoned_when_no_call_can_be_held() -> None:
    for manners in (Manners(status=503), Manners(closes_at="start")):
        found = await at(manners, "handshake", "greeting", "speech")
        assert found.abandoned
        assert [trace.scenario for trace in found.traces] == ["handshake"]


async def test_an_echo_is_told_apart_from_an_answer() -> None:
    async with serving(application(echo)) as url:
        found, together = await asyncio.gather(
            *(checked(call_spec(url=url), name) for name in ("speech", "concurrency"))
        )
    assert codes(found) == {"echoes_caller", "chunk_small"}
    assert "crossed" not in codes(together)


@pytest.mark.parametrize("media_format", [MediaFormat.SLIN16, MediaFormat.SLIN24])
async def test_an_application_is_judged_at_its_own_rate(media_format: MediaFormat) -> None:
    wide = {"media_format": media_format}

    async def seen(manners: Manners, name: str) -> Outcome:
        async with bot(manners) as url:
            return await checked(call_spec(url=url, **wide), name)

    async with serving(application(echo)) as url:
        speech, barge_in, coded, odd, echoed = await asyncio.gather(
            seen(Manners(), "speech"),
            seen(Manners(), "barge-in"),
            seen(Manners(payload="ulaw"), "greeting"),
            seen(Manners(chunk=3201), "greeting"),
            checked(call_spec(url=url, **wide), "speech"),
        )
    assert [codes(one) for one in (speech, barge_in, coded, odd)] == [set(), set(), {"wrong_encoding"}, {"chunk_odd"}]
    assert "echoes_caller" in codes(echoed)
    assert speech.figures.response_ms is not None
    assert speech.figures.message_bytes is not None
    assert speech.figures.message_bytes.most == 3200
    # The greeting and one reply, in seconds that do not hang on the rate.
    (call,) = speech.traces
    assert sum(len(media.pcm) for media in call.media) / 16_000 == pytest.approx(2.0, abs=0.01)
    assert call.figures.frames_played == 100


async def test_the_other_dialect_is_spoken_too() -> None:
    heard: list[dict[str, Any]] = []

    async def serve(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            heard.append(json.loads(message.data))
            if heard[-1]["event"] == "start":
                payload = "gICA" * 800  # full scale, with one sign: a click and then nothing
                await socket.send_json(
                    {"event": "media", "streamSid": heard[-1]["streamSid"], "media": {"payload": payload}}
                )
        return socket

    app = web.Application()
    app.router.add_get("/bot", serve)
    async with serving(app) as url:
        found = await checked(call_spec(url=url, dialect="twilio"), "handshake")
    assert found.traces[0].media[0].size == 2400
    assert not found.traces[0].foreign_sids
    assert not found.traces[0].misspelt_sids
    assert heard[1]["start"]["mediaFormat"]["encoding"] == "audio/x-mulaw"


async def test_plivo_s_words_are_understood_and_used() -> None:
    voice = tone(500, 2.4).tobytes()

    async def serve(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            heard = json.loads(message.data)
            if heard["event"] == "start":
                payload = base64.b64encode(pcm_to_ulaw(voice)).decode()
                media = {"contentType": "audio/x-mulaw", "sampleRate": 8000, "payload": payload}
                await socket.send_json({"event": "playAudio", "media": media})
                await socket.send_json({"event": "checkpoint", "streamId": heard["start"]["streamId"], "name": "a"})
                await socket.send_json({"event": "checkpoint", "streamSid": "mine", "name": 7})
        return socket

    app = web.Application()
    app.router.add_get("/bot", serve)
    async with serving(app) as url:
        found = await checked(call_spec(url=url, dialect="plivo"), "greeting", "barge-in")
    trace = found.traces[0]
    assert [len(media.pcm) for media in trace.media] == [len(voice)]
    assert [mark.name for mark in trace.marks] == [echo.name for echo in trace.echoes] == ["a"]
    assert uuid.UUID(trace.stream_sid).version == 4
    assert not trace.misspelt_sids
    assert codes(found) == {"mark_name", "no_clear"}
    remedies = {one.code: (one.remedy, one.documents) for one in found.findings}
    assert "`clearAudio`" in remedies["no_clear"][0]
    assert remedies["mark_name"] == ("Make `name` a string.", DOCUMENTS["plivo"]["mark"])


@pytest.mark.virtual_time(False)
async def test_the_command_prints_writes_and_exits_with_1(tmp_path: Path) -> None:
    async with bot(Manners(status=401)) as url:
        command = ("-m", "ari_app.cli.main", "appcheck", url, "--json", str(tmp_path / "report.json"))
        process = await asyncio.create_subprocess_exec(
            sys.executable, *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        output, _ = await process.communicate()
    assert process.returncode == 1, output.decode()
    assert "HTTP status 401" in output.decode()
    assert "--credentials-file" in output.decode()
    report = json.loads((tmp_path / "report.json").read_bytes())
    assert report["good"] is False
    assert [one["code"] for one in report["findings"]] == ["unauthorised"]
    assert report["calls"][0]["refusal"]["reason"] == "app_refused"
