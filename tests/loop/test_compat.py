"""Applications of other people against the worker: each in a whole call, under every switch of the dialect, and with
a platform that lacks what it needs (docs/compatibility.md)."""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

import pytest

from audiosocket.settings import ExotelOptions
from tests.client_calls import Caller, Distort, Outcome, Problems, call_client, speech
from tests.clients.base import BYTES_PER_SECOND, Client, Message
from tests.clients.bolna import Bolna
from tests.clients.exotel_samples import EchoBot
from tests.clients.kairon import Kairon
from tests.clients.matrix import RECREATED
from tests.clients.rapida import Rapida
from tests.clients.realtime_bridges import ElevenLabsBridge, GeminiBridge
from tests.clients.vocode import Vocode, VocodeTwilio
from tests.clients.voice_bot import VoiceBot
from tests.virtual_time import run
from tests.worker_rig import Rig, rig, until
from tools.audio.tones import tone

pytestmark = [pytest.mark.loop, pytest.mark.virtual_time]

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "compatibility.md"
QUERY = "?sample-rate=8000&agent=a7"
BY_NAME = {kind.name: kind for kind in RECREATED}
CALLER, CLIENT = "caller hangs up", "client hangs up"
CALLS = [(name, CALLER) for name in BY_NAME] + [(kind.name, CLIENT) for kind in RECREATED if kind.hang_up_reason]

Job = tuple[type[Client], dict[str, Any]]


async def all_at_once(jobs: Iterable[Job]) -> list[Outcome]:
    """The calls, all on one worker at the same time."""
    async with rig(capacity=100) as running:
        calls = [call_client(running, kind, number, **how) for number, (kind, how) in enumerate(jobs)]
        return await asyncio.gather(*calls)


# The matrix


@pytest.fixture(scope="module")
def outcomes() -> dict[tuple[str, str], Outcome]:
    """Every client in a call with the switches as they are by default."""
    jobs = []
    for name, ending in CALLS:
        kind = BY_NAME[name]
        query = QUERY if kind.dialect == "exotel" else ""
        jobs.append((kind, {"by_client": ending == CLIENT, "query": query}))
    return dict(zip(CALLS, run(all_at_once(jobs)), strict=True))


@pytest.mark.parametrize(("name", "ending"), CALLS)
def test_the_client_is_served(name: str, ending: str, outcomes: dict[tuple[str, str], Outcome]) -> None:
    outcome = outcomes[name, ending]
    assert outcome.problems == {}
    assert outcome.report is not None
    assert not outcome.report.failed
    assert outcome.report.figures.caller_frames_dropped.keys() <= {"before_start"}


# The switches


def documented_switches() -> dict[str, tuple[set[str], dict[str, Any]]]:
    """Each row of the table of switches: which clients break, and the options that it stands for."""
    table: dict[str, tuple[set[str], dict[str, Any]]] = {}
    for row in re.findall(r"^\| (`\w+: [^|]*`) \| ([^|]*) \|", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE):
        pairs = dict(pair.split(": ") for pair in re.findall(r"`([^`]*)`", row[0]))
        options = {key: int(value) if value.isdigit() and key == "frame_ms" else value for key, value in pairs.items()}
        table[row[0]] = (set() if row[1] == "nothing" else set(row[1].split(", ")), options)
    return table


SWITCHES = documented_switches()


def test_every_switch_has_been_run() -> None:
    run = {(key, value) for _, options in SWITCHES.values() for key, value in options.items()}
    for name, field in ExotelOptions.model_fields.items():
        others = set(get_args(field.annotation)) - {field.default} or {40, 60, 80, 100}
        assert {value for key, value in run if key == name} == others, name
    assert {key for key, _ in run} - ExotelOptions.model_fields.keys() == {"caller_parameter", "callee_parameter"}


@pytest.fixture(scope="module")
def broken() -> dict[str, dict[str, Problems]]:
    """For each switch the clients that do not get through their call, and what went wrong in it."""
    found: dict[str, dict[str, Problems]] = {row: {} for row in SWITCHES}
    rows = list(SWITCHES)
    for at in range(0, len(rows), 4):
        jobs = [(row, kind, how) for row in rows[at : at + 4] for kind, how in under(SWITCHES[row][1])]
        outcomes = run(all_at_once((kind, how) for _, kind, how in jobs))
        for (row, kind, _), outcome in zip(jobs, outcomes, strict=True):
            if outcome.problems:
                found[row][kind.name] = outcome.problems
    return found


def under(options: dict[str, Any]) -> list[Job]:
    """A call of each client of the dialect that has these switches."""
    dialect = "exotel" if options.keys() <= ExotelOptions.model_fields.keys() else "twilio"
    how = {"options": options, "query": QUERY if "query" in options else ""}
    return [(kind, how) for kind in RECREATED if kind.dialect == dialect]


@pytest.mark.parametrize("row", SWITCHES)
def test_what_a_switch_breaks_is_documented(row: str, broken: dict[str, dict[str, Problems]]) -> None:
    assert set(broken[row]) == SWITCHES[row][0], broken[row]


# Other rates


def documented_rates() -> dict[str, bool]:
    """Each row of the table of rates: whether the client loses its rate with `query: strip`."""
    table = DOCUMENT.read_text(encoding="utf-8").partition("## Sample rates")[2].partition("\n## ")[0]
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:2] == "| "]
    return {name: stripped != "nothing" for name, _, stripped in found if name in BY_NAME}


RATED = documented_rates()
WIDE = [(name, rate, query) for rate in (16000, 24000) for query in ("keep", "strip") for name in RATED]


@pytest.fixture(scope="module")
def wide() -> dict[tuple[str, int, str], Outcome]:
    """Calls at other rates, which the URL asks for, of the clients that can take part in them."""
    jobs = [
        (BY_NAME[name], {"rate": rate, "query": f"?sample-rate={rate}&agent=a7", "options": {"query": query}})
        for name, rate, query in WIDE
    ]
    return dict(zip(WIDE, run(all_at_once(jobs)), strict=True))


def test_the_clients_with_more_than_one_rate_are_known() -> None:
    # What can speak at another rate makes its audio by `at_rate`.
    assert {kind.name for kind in RECREATED if "at_rate(" in inspect.getsource(kind)} == set(RATED)


@pytest.mark.parametrize(("name", "rate", "query"), WIDE)
def test_a_client_is_served_at_the_rate_that_its_url_asks_for(
    name: str, rate: int, query: str, wide: dict[tuple[str, int, str], Outcome]
) -> None:
    outcome = wide[name, rate, query]
    assert outcome.report is not None
    if query == "keep" or not RATED[name]:
        assert outcome.problems == {}
        assert outcome.report.figures.caller_frames_dropped.keys() <= {"before_start"}
        return
    # It takes the stream for one of 8 kHz: what it says is over in a half or a third of the time, and that much higher.
    assert list(outcome.problems) == ["greeting"]
    assert outcome.client is not None
    assert outcome.client.sent.endswith(outcome.client.greeting)
    greeting_ms = len(outcome.client.greeting) * 1000 // BYTES_PER_SECOND
    assert greeting_ms * 8000 / rate <= 20 * outcome.report.figures.frames_played <= 0.7 * greeting_ms


# What they rely on: a client that cannot die proves nothing


def change(event: str, path: str, *value: Any) -> Distort:
    """A platform whose `event` has another value at `path`, or nothing there when no value is given."""

    def distort(message: Message) -> Message | None:
        if message["event"] != event:
            return message
        if not path:
            return None
        *parents, key = path.split(".")
        inner = message
        for parent in parents:
            inner = inner[parent]
        if value:
            inner[key] = value[0]
        else:
            inner.pop(key, None)
        return message

    return distort


def no_ids(message: Message) -> Message:
    for part in (message, message.get("start"), message.get("media")):
        if isinstance(part, dict):
            part.pop("stream_sid", None)
    return message


def urlsafe(message: Message) -> Message:
    if message["event"] == "media":
        message["media"]["payload"] = message["media"]["payload"].replace("/", "_").replace("+", "-")
    return message


FOUR = {"one": "1", "two": "2", "three": "3", "four": "4"}
NEEDS: dict[str, tuple[str, Distort, str]] = {
    "bolna, start.call_sid": ("bolna", change("start", "start.call_sid"), "died"),
    "bolna, start.stream_sid": ("bolna", change("start", "start.stream_sid"), "died"),
    "bolna, media.timestamp": ("bolna", change("media", "media.timestamp"), "died"),
    "bolna, media.timestamp as a number": ("bolna", change("media", "media.timestamp", "1.5 s"), "died"),
    "bolna, media.chunk": ("bolna", change("media", "media.chunk"), "hearing"),
    "bolna, marks": ("bolna", change("mark", ""), "marks"),
    "bolna (Twilio), start.streamSid": ("bolna (Twilio)", change("start", "start.streamSid"), "died"),
    "Rapida, stream_sid on top": ("Rapida", change("start", "stream_sid"), "greeting"),
    "Rapida, stream_sid as text": ("Rapida", change("start", "stream_sid", 7), "start"),
    "Rapida, payload": ("Rapida", change("media", "media.payload"), "hearing"),
    "dograh, connected": ("dograh", change("connected", ""), "died"),
    "dograh, start": ("dograh", change("start", "start", "x"), "died"),
    "dograh, call id": ("dograh", change("start", "start.call_sid"), "died"),
    "dograh (Twilio), stream id": ("dograh (Twilio)", change("start", "start", {"callSid": "CA"}), ""),
    "shared host, start": ("Exotel's shared host", change("start", ""), "start"),
    "OpenAI, stream_sid on top": ("OpenAI bridge", change("start", "stream_sid"), "start"),
    "OpenAI, one stream_sid": ("OpenAI bridge", change("media", "stream_sid", "other"), "hearing"),
    "ElevenLabs, a rate with its unit": (
        "ElevenLabs bridge",
        change("start", "start.media_format.sample_rate", "8000Hz"),
        "",
    ),
    "ElevenLabs, account": ("ElevenLabs bridge", change("start", "start.account_sid"), ""),
    "Gemini, payload": ("Gemini bridge", change("media", "media.payload"), "died"),
    "Gemini, marks": ("Gemini bridge", change("mark", ""), "marks"),
    "echo bot, payload": ("Exotel's echo bot", change("media", "media.payload"), "died"),
    "demo, stream_sid on media": ("Exotel's demo of 2021", change("media", "stream_sid"), "died"),
    "Sarvam, start.stream_sid": ("Sarvam bridge", change("start", "start.stream_sid"), "died"),
    "AI-voice-bot, its rate": ("AI-voice-bot", change("start", "start.media_format.sample_rate", "16000"), "greeting"),
    "AI-voice-bot, no format": ("AI-voice-bot", change("start", "start.media_format"), ""),
    "AI-voice-bot, marks": ("AI-voice-bot", change("mark", ""), "marks"),
    "rtaafin, stream_sid on top": ("rtaafin", change("start", "stream_sid"), "start"),
    "rtaafin, start.call_sid": ("rtaafin", change("start", "start.call_sid"), "start"),
    "rtaafin, rate": ("rtaafin", change("start", "start.media_format.sample_rate"), "died"),
    "rtaafin, strict base64": ("rtaafin", urlsafe, "hearing"),
    "AOAI-phone, stream_sid on top": ("AOAI-phone", change("start", "stream_sid"), "died"),
    "AOAI-phone, dtmf.digit": ("AOAI-phone", change("dtmf", "dtmf.digit"), "died"),
    "AOAI-phone, stop.reason": ("AOAI-phone", change("stop", "stop.reason"), "died"),
    "validator, connected": ("strict validator", change("connected", ""), "died"),
    "validator, nothing unknown": ("strict validator", change("start", "start.streamSid", "x"), "died"),
    "validator, its account": ("strict validator", change("start", "start.account_sid", "other"), "died"),
    "validator, three parameters": ("strict validator", change("start", "start.custom_parameters", FOUR), "died"),
    "validator, rising numbers": ("strict validator", change("media", "sequence_number", "2"), "died"),
    "validator, chunk": ("strict validator", change("media", "media.chunk"), "died"),
    "validator, timestamp": ("strict validator", change("media", "media.timestamp", "-1"), "died"),
    "validator, whole samples": ("strict validator", change("media", "media.payload", "AAAA"), "died"),
    "validator, stop": ("strict validator", change("stop", "stop.call_sid"), "died"),
    "shwey, an id": ("shwey", no_ids, "start"),
    "Node bot, an id": ("Node bot", no_ids, "start"),
    "kairon, no format": ("kairon", change("start", "start.media_format"), ""),
    "vocode, start.stream_sid": ("vocode", change("start", "start.stream_sid"), "died"),
    "vocode, marks": ("vocode", change("mark", "mark.name", "0"), "marks"),
    "vocode (Twilio), marks": ("vocode (Twilio)", change("mark", ""), "marks"),
}


async def test_a_client_dies_where_the_real_one_does() -> None:
    jobs = [(BY_NAME[name], {"distort": distort}) for name, distort, _ in NEEDS.values()]
    outcomes = await all_at_once(jobs)
    found = {need: next(iter(outcome.problems), "") for need, outcome in zip(NEEDS, outcomes, strict=True)}
    assert found == {need: expected for need, (_, _, expected) in NEEDS.items()}


# Quirks


async def talking(running: Rig, client: Client, **changes: Any) -> Caller:
    """A call of this client, once its stream has started."""
    running.app.behave = client.run
    spec = running.source.announce_call(**{"url": running.app.url, "dialect": client.dialect} | client.spec | changes)
    caller = Caller(await running.connect(spec.leg_uuid))
    await until(lambda: client.started, "start")
    return caller


async def test_bolna_believes_its_marks_and_may_only_then_be_interrupted() -> None:
    async with rig() as running:
        client = Bolna(speech(1.0, 1))
        caller = await talking(running, client)
        # The mark before its first audio is back while the audio is still heard.
        await until(lambda: client.playing, "the first mark")
        assert len(caller.heard()) < BYTES_PER_SECOND // 2
        await until(lambda: not client.playing, "the last mark")
        assert caller.heard() == client.greeting
        assert client.marks_back == client.marks_sent
        assert len(client.marks_sent) == 2 * 4
        await caller.hang_up()


@pytest.mark.parametrize("kind", [Vocode, VocodeTwilio])
async def test_vocode_gets_one_mark_for_each_chunk_in_order_also_after_a_clear(kind: type[Vocode]) -> None:
    async with rig() as running:
        client = kind(speech(4.5, 2))
        caller = await talking(running, client)
        await until(lambda: len(caller.heard()) > BYTES_PER_SECOND // 5, "the greeting's beginning")
        assert client.marks_back == []
        await client.interrupt()
        client.begin(speech(1.5, 3))
        await until(lambda: len(client.marks_back) == 7, "every mark")
        assert client.marks_back == ["0", "1", "2", "3", "4", "5", "6"]
        assert client.out_of_step == 0
        assert caller.heard().endswith(speech(1.5, 3))
        await caller.hang_up()


async def test_gemini_s_marks_of_one_name_come_back_one_by_one() -> None:
    async with rig() as running:
        client = GeminiBridge(speech(1.0, 4))
        caller = await talking(running, client)
        await until(lambda: len(client.marks_back) == 1, "the first of them")
        # 200 ms are in front of it; the others are yet to be heard.
        assert BYTES_PER_SECOND // 5 <= len(caller.heard()) < BYTES_PER_SECOND
        await until(lambda: len(client.marks_back) == 5, "all of them")
        assert caller.heard() == client.greeting
        assert client.marks_back == ["playback_chunk"] * 5
        await caller.hang_up()


async def test_the_echo_bot_s_ping_pong_of_marks_is_bounded() -> None:
    async with rig() as running:
        client = EchoBot(b"")
        caller = await talking(running, client)
        await client.send_mark({"event": "mark", "mark": {"name": "ping"}})
        said = caller.say(tone(600, 0.4))
        await until(lambda: said in caller.heard(), "the echo of the caller's speech")
        await until(lambda: len(client.marks_back) > 20, "the ping-pong")
        ticks = next(iter(running.worker.calls.values())).figures()
        spent = ticks.frames_played + ticks.silence_played
        # One a tick, and not one more: the call's frames are its clock.
        assert len(client.marks_back) <= spent + 1
        await caller.hang_up()
        assert (await running.report()).reason == "leg_closed"


async def test_nothing_of_the_caller_is_lost_while_kairon_speaks_and_does_not_read() -> None:
    async with rig() as running:
        client = Kairon(speech(3.0, 5))
        caller = await talking(running, client)
        said = caller.say(tone(500, 2.5))
        await until(lambda: len(caller.heard()) > BYTES_PER_SECOND * 2.7, "nearly the whole greeting")
        assert client.heard == b""
        await until(lambda: client.heard.find(said) >= 0, "all that the caller said meanwhile")
        await caller.hang_up()
        assert "app_slow" not in (await running.report()).figures.caller_frames_dropped


async def test_elevenlabs_agent_gets_the_call_s_parameters() -> None:
    async with rig() as running:
        client = ElevenLabsBridge(b"")
        caller = await talking(running, client, url=running.app.url + QUERY, custom_parameters={"name": "Asha"})
        assert client.variables == {
            "caller_number": "+919000000001",
            "called_number": "+918000000002",
            "call_sid": "9a1b" * 8,
            "agent": "a7",
            "name": "Asha",
        }
        await caller.hang_up()


async def test_ai_voice_bot_hangs_up_when_its_goodbye_has_been_heard() -> None:
    async with rig() as running:
        client = VoiceBot(speech(0.5, 6))
        caller = await talking(running, client)
        await until(lambda: client.marks_back == ["utt-1"], "its greeting's mark")
        await client.hang_up()
        await caller.hung_up_on()
        assert caller.heard() == client.greeting + client.greeting[:3200]
        assert (await running.report()).reason == "app_closed"


async def test_rapida_s_hang_up_is_a_failure_where_it_is_not_known_for_it() -> None:
    async with rig() as running:
        client = Rapida(speech(0.3, 7))
        caller = await talking(running, client, close_without_frame="failure")
        await until(lambda: caller.heard() == client.greeting, "the greeting")
        await client.hang_up()
        await caller.hung_up_on()
        assert (await running.report()).reason == "app_lost"


async def test_ai_voice_bot_turns_away_who_is_not_authorised() -> None:
    async with rig() as running:
        client = VoiceBot(b"")
        running.app.behave = client.run
        caller = Caller(await running.call(credentials="voice-key:wrong"))
        await caller.hung_up_on()
        assert client.died == "not authorised"
        assert (await running.report()).detail == "close code 4401"
