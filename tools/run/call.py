"""The scripted call: what the caller says and does, and everything that can be seen of it meanwhile.

The caller waits for the greeting, says a sentence, hears the answer, says another, speaks into the second answer
(barge-in), hears the third one to its end, presses `#`, hears the goodbye, and is hung up on.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import msgspec

from ari_app.errors import StoreUnavailable
from ari_app.settings import Config
from ari_app.store.calls import CallStore
from ari_app.store.postgres import open_pool
from ari_app.store.records import CallRow
from audiosocket.callspec import MediaFigures
from audiosocket.runtime.stores import resolve
from audiosocket.settings import split_host_port
from tools.audio.pcm import Pcm, level_dbfs
from tools.audio.speech import prompt
from tools.audio.talkspurts import talkspurts
from tools.run.preflight import Line
from tools.sip.rtp_peer import FRAME_SAMPLES, RATE, Playback
from tools.sip.sipp import CallAborted, CallRefused, Carrier, Ending

CALLER = "+919000000001"
SENTENCES = ("tt-somethingwrong", "cannot-complete-as-dialed", "im-sorry")
"""What the caller says: prompts without a pause inside, or the bot would take one sentence for two."""
INTERRUPT_AFTER_SECONDS = 2.4
"""Into the second answer: in the middle of a word."""
PAUSE_SECONDS = 0.3
"""From the end of what the caller hears to what he says."""
STEP_SECONDS = 15.0
"""Longest wait for what comes next; the longest thing to be heard takes 9 s."""
RECORD_SECONDS = 5.0
"""Longest wait for the call's record to be closed."""
LOOK_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Sentence:
    """Something the caller says. Times are monotonic seconds."""

    name: str
    samples: Pcm
    playback: Playback

    @property
    def speech_at(self) -> tuple[float, float] | None:
        """Beginning and end of the voice itself, without the recording's quiet edges; None while it has not begun."""
        if self.playback.started_at is None:
            return None
        spurts = talkspurts(self.samples)
        return (
            self.playback.started_at + spurts[0].start_seconds,
            self.playback.started_at + spurts[-1].end_seconds,
        )


@dataclass(frozen=True, slots=True)
class Moment:
    """Something that happened, for the reader. `at` is monotonic seconds."""

    at: float
    text: str


class LiveCall:
    """One call, placed when this is made. `follow` keeps what is known of it up to date: from its worker, PostgreSQL
    and `record`, the file of the application's events (see tools/apps/service.py)."""

    def __init__(self, config: Config, line: Line, carrier: Carrier, sounds: Path, record: Path) -> None:
        self.config = config
        self.line = line
        self.sounds = sounds
        self.record = record
        self.began_at = time.monotonic()
        self.began = datetime.now(UTC)
        self.call = carrier.call(line.number, CALLER)
        self.row: CallRow | None = None
        self.figures: MediaFigures | None = None
        self.playout_ms = 0
        self.events: list[dict[str, Any]] = []
        """The application's events of this call."""
        self.said: list[Sentence] = []
        self.digit_at: float | None = None
        self.cut_short: str | None = None
        """Why the script was not played to its end."""
        self.moments: list[Moment] = []
        self._unread: list[dict[str, Any]] = []
        self._record_position = 0

    async def play(self) -> None:
        """Plays the script; what prevents it is noted in `cut_short`."""
        call, line = self.call, self.line
        self._tell(self.began_at, f"INVITE {call.callee} from {CALLER}, trunk {line.trunk}, {line.codec.sdp_name}")
        try:
            await call.answered()
            assert call.answered_at is not None
            self._tell(call.answered_at, "200 OK: answered")
            await self._converse()
        except (CallRefused, CallAborted) as error:
            self.cut_short = f"the call was not answered: {error}"
        except TimeoutError:
            self.cut_short = "the INVITE was not answered within 10 s"
        except _Missing as missing:
            self.cut_short = str(missing)
        if call.ending is None:
            try:
                await call.hang_up()
            except TimeoutError:
                self.cut_short = f"{self.cut_short}; the caller's BYE was not answered"
                return
        assert call.ended_at is not None
        who = "BYE from trunkbridge" if call.ending is Ending.BY_THEM else f"ended ({call.ending})"
        self._tell(call.ended_at, who + (f", {call.reason}" if call.reason else ""))

    @contextlib.asynccontextmanager
    async def follow(self) -> AsyncIterator[None]:
        """Looks every 100 ms; at the end waits for the record in PostgreSQL to be closed."""
        pool = await open_pool(resolve(self.config))
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=1)) as http:
            looking = asyncio.create_task(self._look_on(pool, http), name="follow-call")
            try:
                yield
                deadline = time.monotonic() + RECORD_SECONDS
                while time.monotonic() < deadline:
                    if self._closed() or looking.done():
                        break
                    await asyncio.sleep(LOOK_SECONDS)
            finally:
                await ended(looking)
                await pool.close()

    @property
    def seconds(self) -> float:
        """How long the call lasts, or has lasted."""
        return (self.call.ended_at or time.monotonic()) - (self.call.invited_at or self.began_at)

    @property
    def response_ms(self) -> float | None:
        """From the end of the caller's latest finished sentence to the first packet with sound in it."""
        spoken = [sentence.speech_at for sentence in self.said]
        ends = [times[1] for times in spoken if times is not None]
        for end in reversed(ends):
            for packet in self.call.peer.audio():
                if packet.arrived_at > end and not is_silent(self.line.codec.decode(packet.payload)):
                    return (packet.arrived_at - end) * 1000
        return None

    def story(self) -> list[Moment]:
        """What has happened, in order of time (the application's record comes a little late)."""
        return sorted(self.moments, key=lambda moment: moment.at)

    def levels(self) -> tuple[float, float]:
        """(caller, application) right now, in dBFS."""
        playing = next((sentence for sentence in self.said if not sentence.playback.done.is_set()), None)
        caller = float("-inf")
        if playing is not None and playing.playback.started_at is not None:
            at = round((time.monotonic() - playing.playback.started_at) * RATE)
            caller = level_dbfs(playing.samples[max(0, at - 5 * FRAME_SAMPLES) : at])
        heard = b"".join(packet.payload for packet in self.call.peer.audio()[-5:])
        return caller, level_dbfs(self.line.codec.decode(heard))

    async def _converse(self) -> None:
        await self._event("mark_echoed", "the end of the greeting (its mark echoed)", name="turn-1")
        await self._say(0)
        await self._event("mark_echoed", "the end of the first answer (its mark echoed)", name="turn-2")
        await self._say(1)
        answer = await self._event("turn", "the second answer", number=3)
        await asyncio.sleep(answer["at"] + INTERRUPT_AFTER_SECONDS - time.monotonic())
        await self._say(2, pause_seconds=0.0)
        await self._event("mark_echoed", "the end of the third answer (its mark echoed)", name="turn-4")
        await asyncio.sleep(PAUSE_SECONDS)
        self.digit_at = time.monotonic()
        self._tell(self.digit_at, "caller presses # (RFC 4733)")
        self.call.peer.send_dtmf("#")
        try:
            await self.call.ended(STEP_SECONDS)
        except TimeoutError:
            raise _Missing(f"the application did not end the call within {STEP_SECONDS:g} s of #") from None

    async def _say(self, index: int, pause_seconds: float = PAUSE_SECONDS) -> None:
        name = SENTENCES[index]
        samples = prompt(self.sounds, name)
        await asyncio.sleep(pause_seconds)
        self._tell(time.monotonic(), f'caller says "{name}"')
        self.said.append(Sentence(name, samples, self.call.peer.play(samples)))

    async def _event(self, event: str, what: str, **values: object) -> dict[str, Any]:
        """Waits for an event of the application that has these values. Raises `_Missing`."""
        call, wanted = self.call, {"event": event, **values}
        deadline = time.monotonic() + STEP_SECONDS
        while True:
            for known in self.events:
                if wanted.items() <= known.items():
                    return known
            if call.ending is not None:
                raise _Missing(
                    f"the call ended ({call.ending}{f', {call.reason}' if call.reason else ''}) before {what}"
                )
            if time.monotonic() > deadline:
                raise _Missing(f"{what} did not come within {STEP_SECONDS:g} s")
            await asyncio.sleep(LOOK_SECONDS / 4)

    async def _look_on(self, pool: asyncpg.Pool, http: aiohttp.ClientSession) -> None:
        while True:
            with contextlib.suppress(StoreUnavailable):
                # The oldest of them is ours, should anybody else call with the same number.
                rows = await CallStore(pool).list_calls(caller=CALLER, since=self.began, limit=20)
                self.row = rows[-1] if rows else None
            if self.row is not None:
                await self._look_at_worker(http, self.row)
                self._read_record(self.row.call_sid)
            await asyncio.sleep(LOOK_SECONDS)

    async def _look_at_worker(self, http: aiohttp.ClientSession, row: CallRow) -> None:
        if row.worker_id is None or row.ended_at is not None:
            self.figures, self.playout_ms = row.media or self.figures, 0
            return
        host, port = split_host_port(self.config.gateway.status_listen)
        url = f"http://{host}:{port + int(row.worker_id.rpartition('/')[2])}/calls/{row.call_id}"
        # Before its first and after its last frame the worker does not know the call.
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            async with http.get(url) as answer:
                if answer.status == 200:
                    status = msgspec.json.decode(await answer.read(), type=_WorkerCall)
                    self.figures, self.playout_ms = status.figures, status.playout_ms

    def _read_record(self, call_sid: str) -> None:
        if not self.record.exists():
            return
        with self.record.open("rb") as record:
            record.seek(self._record_position)
            for line in record:
                if not line.endswith(b"\n"):
                    break  # it is being written
                self._record_position += len(line)
                event = json.loads(line)
                if event["call"] == call_sid:
                    self.events.append(event)
                    self._tell(event["at"], _in_words(event))

    def _closed(self) -> bool:
        recorded = self.row is not None and self.row.ended_at is not None
        return recorded and (not self.events or self.events[-1]["event"] == "end")

    def _tell(self, at: float, text: str) -> None:
        self.moments.append(Moment(at, text))


async def ended(task: asyncio.Task[None]) -> None:
    """Cancels a task and waits for its end. Raises what it raised."""
    task.cancel()
    await asyncio.wait((task,))
    if not task.cancelled():
        task.result()


class _Missing(Exception):
    """What the script waited for did not come."""


class _WorkerCall(msgspec.Struct):
    figures: MediaFigures
    playout_ms: int


def is_silent(samples: Pcm) -> bool:
    """Whether this is silence that was made, not recorded: below A-law's smallest step."""
    return not len(samples) or int(abs(samples.astype(int)).max()) <= 8


def _in_words(event: dict[str, Any]) -> str:
    match event["event"]:
        case "start":
            return "application: its stream has started"
        case "turn":
            return f'application sends turn {event["number"]}: "{event["says"]}", {event["seconds"]:.1f} s'
        case "speech_start":
            return "application hears the caller" + (", who interrupts" if event["while_speaking"] else "")
        case "speech_stop":
            return "application: the caller has finished"
        case "mark_sent":
            return f"application sends mark {event['name']}"
        case "mark_echoed":
            return f"mark {event['name']} comes back"
        case "clear":
            return "application sends clear"
        case "dtmf":
            return f"application gets {event['digit']}"
        case "close":
            return f"application closes: {event['reason']}"
        case "stop":
            return f"application is told stop: {event['reason']}"
        case _:
            return f"application: {event['event']}"
