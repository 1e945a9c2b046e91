"""`trunkbridge appcheck` against applications that behave, and against ones that misbehave in one way each."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import sys
import uuid
import wave
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from audiosocket.appcheck.check import Outcome, check
from audiosocket.appcheck.figures import figures
from audiosocket.appcheck.findings import DOCUMENTS, Severity
from audiosocket.appcheck.report import as_json
from audiosocket.appcheck.scenarios import SCENARIOS, Pace
from audiosocket.appcheck.trace import Farewell, Named, Trace
from audiosocket.appcheck.voice import Samples, utterance
from audiosocket.callspec import CallSpec, MediaFormat
from audiosocket.g711 import pcm_to_ulaw
from tests.appcheck_apps import Manners, bot, serving
from tests.loop.test_app_stream import certificate
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


async def test_who_answers_nobody_is_not_ready_once_there_are_words() -> None:
    async def seen(recorded: Samples | None, *names: str) -> list[tuple[str, Severity]]:
        async with bot(Manners(hears=False)) as url:
            found = await check(call_spec(url=url), names, QUICK, recorded, Nobody())
        return [(one.code, one.severity) for one in found.findings]

    words = utterance(0.6, 0)
    assert await seen(words, "speech") == [("no_response", Severity.ERROR)]
    assert await seen(words, "speech", "slow") == [("no_response", Severity.ERROR)]
    assert await seen(None, "speech") == [("no_response", Severity.WARNING)]


async def test_an_application_behind_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tls = certificate(tmp_path, "trusted", "IP:127.0.0.1", days=60)
    async with bot(Manners(), tls) as url:
        unknown = await checked(call_spec(url=url), "handshake")
        plain = await checked(call_spec(url=url.replace("wss:", "ws:")), "handshake", "greeting")
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "trusted.pem"))
        trusted = await checked(call_spec(url=url), "handshake", "speech")
    assert codes(unknown) == {"certificate"}
    (told,) = plain.findings
    assert (told.code, plain.abandoned) == ("handshake_ended", True)
    assert "Try wss://" in told.remedy
    assert codes(trusted) == set()
    shake = trusted.traces[0].handshake
    assert shake is not None
    assert shake.tls == "TLSv1.3"
    assert shake.certificate_days is not None
    assert 59 < shake.certificate_days <= 60
    assert trusted.figures.response_ms is not None
    assert trusted.figures.response_ms.count == 1


def test_what_a_report_leaves_out_is_said() -> None:
    marks = [Named(0.1 * number, str(number)) for number in range(130)]
    traces = [Trace("marks", marks=marks, echoes=marks[:100], clears=[0.5] * 101)]
    report = json.loads(as_json(Outcome(traces, [], figures(traces), False), {}))
    (call,) = report["calls"]
    assert [len(call[key]) for key in ("marks", "marks_returned", "clears")] == [100, 100, 100]
    assert call["left_out"] == {"marks": 30, "marks_returned": 0, "clears": 1}


# The command


async def run_command(*arguments: str, **env: str) -> tuple[int | None, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "ari_app.cli.main", "appcheck", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=os.environ | env,
    )
    output, _ = await process.communicate()
    return process.returncode, output.decode()


@pytest.mark.virtual_time(False)
async def test_the_command_prints_writes_and_exits_with_1(tmp_path: Path) -> None:
    async with bot(Manners(status=401)) as url:
        code, output = await run_command(url, "--json", str(tmp_path / "report.json"))
    assert code == 1, output
    assert "HTTP status 401" in output
    assert "--credentials-file" in output
    report = json.loads((tmp_path / "report.json").read_bytes())
    assert report["good"] is False
    assert [one["code"] for one in report["findings"]] == ["unauthorised"]
    assert report["calls"][0]["refusal"]["reason"] == "app_refused"


def keys_of(value: Any, name: str = "") -> set[str]:
    """The dotted names of a report's values; what the document tells as one is one."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return set().union(*(keys_of(one, f"{name}[]") for one in value))
    if not isinstance(value, dict) or name.endswith(("_ms", "message_bytes", "ignored", "left_out", "gateway_figures")):
        return {name}
    return set().union(*(keys_of(one, f"{name}.{key}".lstrip(".")) for key, one in value.items()))


def documented_keys() -> set[str]:
    page = (Path(__file__).resolve().parents[2] / "docs" / "appcheck.md").read_text(encoding="utf-8")
    table = page.partition("## The report")[2].partition("\n## ")[0]
    first = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    return {key for cell in first for key in re.findall(r"`([^`]+)`", cell)}


@pytest.mark.virtual_time(False)
async def test_the_command_calls_an_application_behind_tls_and_writes_what_it_saw(tmp_path: Path) -> None:
    tls = certificate(tmp_path, "app", "IP:127.0.0.1", days=60)
    names = ("--only", "greeting", "--only", "speech")
    path = tmp_path / "report.json"
    async with bot(Manners(greets=0.4), tls) as url:
        code, output = await run_command(url, *names, "--json", str(path), SSL_CERT_FILE=str(tmp_path / "app.pem"))
    assert code == 0, output
    assert "Ready for callers" in output
    assert "2 of 2 turns answered" in output
    report = json.loads(path.read_bytes())
    assert (report["url"], report["dialect"], report["scenarios"]) == (url, "exotel", ["greeting", "speech"])
    assert (report["good"], report["abandoned"]) == (True, False)
    assert report["figures"]["calls"] == 2
    assert report["figures"]["first_audio_ms"]["count"] == 2
    assert report["figures"]["message_bytes"]["most"] == 3200
    answer = report["figures"]["response_ms"]
    assert answer["count"] == 2
    assert 100 < answer["least"] <= answer["p50"] <= answer["most"] < 10_000, "it waits for 200 ms of quiet"
    greeting, speech = report["calls"]
    assert (greeting["scenario"], speech["scenario"]) == ("greeting", "speech")
    assert speech["handshake"]["tls"] == "TLSv1.3"
    assert len(speech["caller_speaks"]) == 2
    assert [mark["name"] for mark in speech["marks"]] == ["turn"] * 3
    assert speech["left_out"] == {"marks": 0, "marks_returned": 0, "clears": 0}
    assert greeting["media_bytes"] == 16_000 * 0.4
    # What is null or empty has no keys of its own here.
    documented, found = documented_keys(), keys_of(report | {"calls": [speech]})
    hidden = {key for key in documented for one in found if key.startswith((f"{one}.", f"{one}[]."))}
    assert hidden <= {key for key in documented if key.startswith(("findings", "calls[].refusal", "calls[].ending"))}
    assert {one for one in found if not any(key.startswith((f"{one}.", f"{one}[].")) for key in hidden)} == (
        documented - hidden
    )


@pytest.mark.virtual_time(False)
async def test_the_command_exits_with_1_for_who_answers_nothing(tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "speech.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(utterance(1.0, 0).tobytes())
    async with bot(Manners(hears=False, greets=0.4)) as url:
        code, output = await run_command(
            url, "--only", "speech", "--seconds", "1", "--speech", str(tmp_path / "speech.wav")
        )
    assert code == 1, output
    assert "0 of 2 turns answered" in output
    assert "Not ready for callers: 1 error" in output
