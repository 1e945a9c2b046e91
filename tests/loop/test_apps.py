"""The two applications, talked to as the platform does, and the telephones' RTP endpoints, talking to each other."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
from aiohttp import web

from tools.apps.conversation import CHUNK_BYTES, Script, Turn, conversation
from tools.apps.echo import echo
from tools.apps.service import EventLog, make_app
from tools.audio.pcm import Pcm, silence
from tools.audio.tones import dominant_frequency, tone, tone_share
from tools.sip.rtp_packet import PT_EVENT, decode_event
from tools.sip.rtp_peer import Codec, RtpPeer, RtpTicker

pytestmark = [pytest.mark.loop, pytest.mark.virtual_time]

GREETING_HZ, FIRST_REPLY_HZ, SECOND_REPLY_HZ, GOODBYE_HZ, FIVE_HZ = 500, 700, 900, 1100, 1300
SCRIPT = Script(
    greeting=Turn.spoken("greeting", tone(GREETING_HZ, 1.05)),
    replies=(Turn.spoken("one", tone(FIRST_REPLY_HZ, 1)), Turn.spoken("two", tone(SECOND_REPLY_HZ, 1))),
    goodbye=Turn.spoken("goodbye", tone(GOODBYE_HZ, 0.5)),
    keys={"5": Turn.spoken("five", tone(FIVE_HZ, 0.3))},
)


class Platform:
    """One call as the hosted platform makes it: 20 ms messages, every counter a string."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, number: int) -> None:
        self.socket = socket
        self.stream_sid, self.call_sid = f"{number:032x}", f"{number + 4096:032x}"
        self._sequence = itertools.count(1)
        self._chunk = itertools.count(1)

    async def send(self, event: str, **content: Any) -> None:
        message = {"event": event, "sequence_number": str(next(self._sequence)), "stream_sid": self.stream_sid}
        await self.socket.send_json(message | content)

    async def start(self, rate: str = "8000") -> None:
        await self.socket.send_json({"event": "connected"})
        about = {"stream_sid": self.stream_sid, "call_sid": self.call_sid, "account_sid": "acme1"}
        about |= {"from": "+919000000001", "to": "+918000000001", "custom_parameters": {}}
        media_format = {"encoding": "base64", "sample_rate": rate, "bit_rate": "128kbps"}
        await self.send("start", start=about | {"media_format": media_format})

    async def speak(self, samples: Pcm) -> None:
        for at in range(0, len(samples), 160):
            chunk = next(self._chunk)
            payload = base64.b64encode(samples[at : at + 160].astype("<i2").tobytes()).decode()
            await self.send("media", media={"chunk": str(chunk), "timestamp": str(chunk * 20), "payload": payload})

    async def echo_mark(self, name: str) -> None:
        await self.send("mark", mark={"name": name})

    async def press(self, digit: str) -> None:
        await self.send("dtmf", dtmf={"digit": digit, "duration": "100"})

    async def next(self) -> dict[str, Any]:
        async with asyncio.timeout(5):
            message: dict[str, Any] = await self.socket.receive_json()
        assert message["stream_sid"] == self.stream_sid
        return message

    async def hear_turn(self) -> tuple[str, float]:
        """The next turn, up to its mark: the mark's name and the tone."""
        pcm = b""
        while (message := await self.next())["event"] == "media":
            chunk = base64.b64decode(message["media"]["payload"], validate=True)
            assert 0 < len(chunk) <= CHUNK_BYTES
            pcm += chunk
        assert message["event"] == "mark"
        return message["mark"]["name"], dominant_frequency(np.frombuffer(pcm, dtype="<i2"))

    async def closed(self) -> int | None:
        async with asyncio.timeout(5):
            message = await self.socket.receive()
        assert message.type is aiohttp.WSMsgType.CLOSE, message
        return self.socket.close_code


@asynccontextmanager
async def serving(handle_call: Any, record: Path | None = None) -> AsyncIterator[str]:
    events = EventLog(record)
    runner = web.AppRunner(make_app(handle_call, events))
    async with events.running():
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            yield f"127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()


@asynccontextmanager
async def calling(address: str, number: int = 1, path: str = "/") -> AsyncIterator[Platform]:
    async with aiohttp.ClientSession() as session, session.ws_connect(f"ws://{address}{path}") as socket:
        yield Platform(socket, number)


async def stats(address: str) -> list[dict[str, Any]]:
    async with aiohttp.ClientSession() as session, session.get(f"http://{address}/stats") as answer:
        body = await answer.json()
    calls: list[dict[str, Any]] = body["calls"]
    return calls


async def until(true: Callable[[], bool], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come true in time"
        await asyncio.sleep(0.005)


async def until_ended(address: str) -> dict[str, Any]:
    async with asyncio.timeout(5):
        while (call := (await stats(address))[-1])["ended_at"] is None:
            await asyncio.sleep(0.01)
    return call


async def test_it_greets_and_answers_when_the_caller_has_stopped():
    async with serving(conversation(SCRIPT)) as address, calling(address) as platform:
        await platform.start()
        assert await platform.hear_turn() == ("turn-1", pytest.approx(GREETING_HZ, abs=2))
        await platform.echo_mark("turn-1")
        for number, hz in ((2, FIRST_REPLY_HZ), (3, SECOND_REPLY_HZ), (4, FIRST_REPLY_HZ)):
            await platform.speak(np.concatenate([tone(300, 0.4), silence(0.3), tone(300, 0.4), silence(0.48)]))
            await platform.speak(silence(0.02))
            # Had it answered in the pause of 0.3 s there would be one more turn.
            assert await platform.hear_turn() == (f"turn-{number}", pytest.approx(hz, abs=2))
            await platform.echo_mark(f"turn-{number}")
        (call,) = await stats(address)
        assert (call["turns"], call["barge_ins"]) == (4, 0)


async def test_it_clears_at_once_when_it_is_interrupted_and_answers_afterwards():
    async with serving(conversation(SCRIPT)) as address, calling(address) as platform:
        await platform.start()
        await platform.hear_turn()
        await platform.speak(tone(300, 0.06))
        assert (await platform.next())["event"] == "clear"
        await platform.echo_mark("turn-1")  # a platform may give cleared marks back
        await platform.speak(np.concatenate([tone(300, 0.5), silence(0.5)]))
        assert await platform.hear_turn() == ("turn-2", pytest.approx(FIRST_REPLY_HZ, abs=2))
        (call,) = await stats(address)
        assert call["barge_ins"] == 1


async def test_a_click_and_a_murmur_are_not_an_interruption():
    async with serving(conversation(SCRIPT)) as address, calling(address) as platform:
        await platform.start()
        await platform.hear_turn()
        await platform.speak(np.concatenate([tone(300, 0.04), silence(0.1), tone(300, 1, level_dbfs=-45), silence(1)]))
        await platform.press("5")
        # The key is the first thing that it reacts to.
        assert (await platform.next())["event"] == "clear"
        assert await platform.hear_turn() == ("turn-2", pytest.approx(FIVE_HZ, abs=4))
        (call,) = await stats(address)
        assert call["barge_ins"] == 0


async def test_hash_is_answered_with_a_goodbye_and_its_mark_with_closing():
    async with serving(conversation(SCRIPT)) as address, calling(address) as platform:
        await platform.start()
        await platform.hear_turn()
        await platform.echo_mark("turn-1")
        await platform.press("#")
        assert await platform.hear_turn() == ("turn-2", pytest.approx(GOODBYE_HZ, abs=3))
        await platform.speak(np.concatenate([tone(300, 1), silence(1)]))  # it does not listen any more
        await platform.echo_mark("turn-2")
        assert await platform.closed() == 1000
        call = await until_ended(address)
        assert (call["closed_by"], call["digits"], call["turns"]) == ("us", "#", 2)


async def test_the_platforms_stop_ends_the_call():
    async with serving(conversation(SCRIPT)) as address:
        async with calling(address) as platform:
            await platform.start()
            await platform.hear_turn()
            await platform.send("stop", stop={"call_sid": platform.call_sid, "reason": "callended"})
        call = await until_ended(address)
        assert call["stop_reason"] == "callended"


async def test_a_rate_that_it_does_not_speak_is_refused():
    async with serving(conversation(SCRIPT)) as address, calling(address) as platform:
        await platform.start(rate="16000")
        assert await platform.closed() == 1003


async def test_calls_do_not_mix_and_each_is_counted():
    async with serving(conversation(SCRIPT)) as address:

        async def one_call(number: int) -> None:
            async with calling(address, number, f"/agent?call={number}") as platform:
                await platform.start()
                await platform.hear_turn()
                await platform.speak(silence(0.02 * number))
                await platform.send("stop", stop={"call_sid": platform.call_sid, "reason": "callended"})

        await asyncio.gather(*(one_call(number) for number in range(1, 21)))
        await until_ended(address)
        counted = {call["path"]: call for call in await stats(address)}
    assert len(counted) == 20
    for number in range(1, 21):
        call = counted[f"/agent?call={number}"]
        assert (call["frames_received"], call["bytes_received"]) == (number, 320 * number)
        assert (call["start"]["start"]["call_sid"], call["sequence_breaks"]) == (f"{number + 4096:032x}", 0)
        assert (call["bytes_sent"], call["marks_sent"]) == (SCRIPT.greeting.size, ["turn-1"])


async def test_a_message_out_of_sequence_is_counted_and_nonsense_is_survived():
    async with serving(echo) as address, calling(address) as platform:
        await platform.start()
        await platform.socket.send_str("{no json")
        await platform.socket.send_bytes(b"binary")
        next(platform._sequence)
        await platform.speak(tone(300, 0.02))
        assert (await platform.next())["event"] == "media"
        (call,) = await stats(address)
        assert (call["sequence_breaks"], call["frames_received"]) == (1, 1)


async def test_the_echo_sends_back_what_it_gets_and_nothing_else():
    async with serving(echo) as address, calling(address) as platform:
        await platform.start()
        await platform.press("5")
        await platform.echo_mark("whose")
        said = tone(440, 0.2)
        await platform.speak(said)
        heard = b""
        while len(heard) < 2 * len(said):
            message = await platform.next()
            assert message["event"] == "media"
            heard += base64.b64decode(message["media"]["payload"])
        assert heard == said.astype("<i2").tobytes()


async def test_every_event_is_on_record_in_order(tmp_path: Path):
    record = tmp_path / "events.json"
    async with serving(conversation(SCRIPT), record) as address, calling(address) as platform:
        await platform.start()
        await platform.hear_turn()
        await platform.speak(tone(300, 0.1))
        await platform.next()
        await platform.speak(silence(0.5))
        await platform.hear_turn()
        await platform.echo_mark("turn-2")
        await platform.send("stop", stop={"call_sid": platform.call_sid, "reason": "callended"})
        await until_ended(address)
    events = [json.loads(line) for line in record.read_text().splitlines()]
    assert {event["call"] for event in events} == {platform.call_sid}
    assert [event["at"] for event in events] == sorted(event["at"] for event in events)
    told = ["start", "turn", "mark_sent", "speech_start", "clear", "speech_stop", "turn", "mark_sent", "mark_echoed"]
    assert [event["event"] for event in events] == [*told, "stop", "end"]


@pytest.mark.virtual_time(False)
async def test_the_program_serves_until_sigterm_and_then_closes_its_calls(tmp_path: Path):
    record = tmp_path / "events.json"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tools.apps.echo", "--listen", "127.0.0.1:0", "--record", str(record)),
        cwd=Path(__file__).parents[2],
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(100):
            address = (await process.stdout.readline()).decode().removeprefix("listening on ").strip()
            async with calling(address) as platform:
                await platform.start()
                await platform.speak(tone(300, 0.02))
                await platform.next()
                process.send_signal(signal.SIGTERM)
                assert await platform.closed() == 1001
            _, errors = await process.communicate()
        assert process.returncode == 0, errors.decode()
        assert "Traceback" not in errors.decode()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert [json.loads(line)["event"] for line in record.read_text().splitlines()] == ["start", "end"]


@asynccontextmanager
async def two_telephones(codec: Codec = Codec.ULAW) -> AsyncIterator[tuple[RtpPeer, RtpPeer]]:
    """The first is told where the second is; the second learns it."""
    async with RtpTicker() as ticker:
        second = RtpPeer.open(ticker, codec=codec)
        yield RtpPeer.open(ticker, codec=codec, remote=second.address), second


@pytest.mark.parametrize("codec", Codec)
async def test_two_telephones_hear_each_other(codec: Codec):
    async with two_telephones(codec) as (first, second):
        said = (first.play(tone(600, 1)), second.play(tone(1000, 1)))
        for playback in said:
            await playback.done.wait()
        await until(lambda: len(first.audio()) >= 50 and len(second.audio()) >= 50)
    for peer, other, hz in ((first, said[1], 1000), (second, said[0], 600)):
        heard = peer.received_pcm_by_timestamp()[:8000]
        assert dominant_frequency(heard) == pytest.approx(hz, abs=1.5)
        assert tone_share(heard, hz) > 0.99
        assert dominant_frequency(peer.received_pcm(start=other.started_at)) == pytest.approx(hz, abs=1.5)
        figures = peer.reception()
        assert (figures.lost, figures.duplicated, figures.reordered) == (0, 0, 0)
        assert figures.gap_p50_ms == pytest.approx(20, abs=2)
        assert other.started_at is not None
        assert other.ended_at is not None
        assert other.ended_at - other.started_at == pytest.approx(0.98, abs=0.05)


async def test_a_telephone_is_silent_until_it_knows_whom_to_talk_to_and_sends_silence_after_its_script():
    async with two_telephones() as (first, second):
        lonely = RtpPeer.open(second._ticker)
        first.play(tone(600, 0.1))
        await until(lambda: len(second.audio()) >= 10)
        assert second.remote == first.address
        assert lonely.sent == 0
    assert {packet.payload for packet in second.audio()[5:]} == {b"\xff" * 160}
    assert [packet.marker for packet in second.audio()[:2]] == [True, False]


async def test_a_digit_is_sent_as_the_rfc_says_and_the_audio_goes_on_after_it():
    async with two_telephones() as (first, second):
        await until(lambda: len(second.audio()) >= 3)
        await first.send_dtmf("7", 100).wait()
        await first.send_dtmf("#", 60).wait()
        await until(lambda: second.packets[-1].payload_type == Codec.ULAW.payload_type)
    events = [packet for packet in second.packets if packet.payload_type == PT_EVENT]
    told = [decode_event(packet.payload) for packet in events]
    # RFC 4733 2.5.1: growing durations, the end three times, all under the timestamp of the beginning.
    assert [(event.digit, event.end, event.duration) for event in told] == [
        *(("7", False, duration) for duration in (160, 320, 480, 640)),
        *[("7", True, 800)] * 3,
        *(("#", False, duration) for duration in (160, 320)),
        *[("#", True, 480)] * 3,
    ]
    assert [packet.marker for packet in events] == [True, *[False] * 6, True, *[False] * 4]
    assert len({packet.timestamp for packet in events[:7]}) == 1
    assert [b.sequence - a.sequence & 0xFFFF for a, b in itertools.pairwise(second.packets)] == [1] * (
        len(second.packets) - 1
    )
    seven_at = second.packets.index(events[0])
    before, after = second.packets[seven_at - 1], second.packets[seven_at + 7]
    assert events[0].timestamp - before.timestamp & 0xFFFFFFFF == 160
    assert after.timestamp - events[0].timestamp & 0xFFFFFFFF == 800
    between = second.packets[seven_at + 7 : second.packets.index(events[7])]
    assert len(between) >= 3


async def test_what_is_no_digit_is_refused():
    async with two_telephones() as (first, _):
        with pytest.raises(ValueError, match="no DTMF digit"):
            first.send_dtmf("x")


async def test_forty_telephones_in_one_process_keep_time():
    async with RtpTicker() as ticker:
        listeners = [RtpPeer.open(ticker) for _ in range(20)]
        speakers = [RtpPeer.open(ticker, remote=listener.address) for listener in listeners]
        said = [speaker.play(tone(300 + 50 * index, 1)) for index, speaker in enumerate(speakers)]
        for playback in said:
            await playback.done.wait()
        await until(lambda: all(len(listener.audio()) >= 50 for listener in listeners))
    for index, listener in enumerate(listeners):
        heard = listener.received_pcm_by_timestamp()[:8000]
        assert dominant_frequency(heard) == pytest.approx(300 + 50 * index, abs=1.5)
        assert listener.reception().lost == 0
        assert listener.reception().gap_p50_ms == pytest.approx(20, abs=2)
