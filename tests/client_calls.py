"""One scripted call for every client: greeted, speaks, presses a key, interrupts, hangs up or is hung up on; and what
went wrong in it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from audiosocket import wire
from audiosocket.callspec import WIDEBAND, CallReport, MediaFormat
from tests.clients.base import Client, Message, at_rate
from tests.worker_rig import Asterisk, Rig, serving, until
from tools.audio import g711
from tools.audio.tones import dominant_frequency, tone

LOUD = 500
STEP_SECONDS = 4.0
"""How long a step of the call may take: the client's own sleeps, and the machine's."""
MAX_PIECE_MS = 300
"""What a recogniser gets in one piece, or the application is always late."""
MAX_CUT_MS = 700
"""What may be heard of a reply of 1 s that is cleared some 0.3 s after its first frame was heard."""
KINDS = {16000: wire.KIND_AUDIO_16, 24000: wire.KIND_AUDIO_24}
CALLER_LATE_SECONDS = 0.06
TRIES = 3

Problems = dict[str, str]
Distort = Callable[[Message], Message | None]


def speech(seconds: float, seed: int) -> bytes:
    """Noise that mu-law carries bit by bit, in which no two frames are alike and none is silent."""
    codes = np.random.default_rng(seed).integers(0, 0x70, int(seconds * 8000)).astype(np.uint8)
    return g711.ulaw_decode(codes.tobytes()).astype("<i2").tobytes()


def frames(pcm: bytes, rate: int = 8000) -> bytes:
    """The frames of it that are not silent."""
    pieces = [pcm[at : at + rate // 25] for at in range(0, len(pcm), rate // 25)]
    return b"".join(piece for piece in pieces if any(piece))


class Failed(Exception):
    """A step of the call did not succeed: nothing after it means anything."""

    def __init__(self, step: str, what: str) -> None:
        super().__init__(what)
        self.step = step


class Caller:
    """The telephone's side of a media leg: a frame every 20 ms, silence when there is nothing to say. At 8 kHz it is
    mu-law, at other rates PCM16."""

    def __init__(self, channel: Asterisk, rate: int = 8000) -> None:
        self._channel = channel
        self._rate = rate
        self._kind = KINDS.get(rate, wire.KIND_AUDIO)
        self._silence = bytes([g711.ULAW_SILENCE]) * 160 if rate == 8000 else bytes(rate // 25)
        self._unsaid = bytearray()
        self.late = 0.0
        """The longest that a frame was behind its time."""
        self._task = asyncio.create_task(self._talk(), name="caller")

    async def _talk(self) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time()
        while True:
            deadline += 0.02
            await asyncio.sleep(max(0.0, deadline - loop.time()))
            self.late = max(self.late, loop.time() - deadline)
            size = len(self._silence)
            frame = bytes(self._unsaid[:size])
            del self._unsaid[:size]
            if self._channel.writer.is_closing():
                return
            self._channel.send(self._kind, frame + self._silence[len(frame) :])

    def say(self, pcm: np.ndarray) -> bytes:
        """Says it; returns it as the leg's format leaves it."""
        if self._rate != 8000:
            said = pcm.astype("<i2").tobytes()
            self._unsaid += said
            return said
        ulaw = g711.ulaw_encode(pcm)
        self._unsaid += ulaw
        return g711.ulaw_decode(ulaw).astype("<i2").tobytes()

    def press(self, digit: str) -> None:
        self._channel.send(wire.KIND_DTMF, digit.encode())

    def heard(self) -> bytes:
        return b"".join(self._channel.audio())

    async def hang_up(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._channel.hang_up()

    async def hung_up_on(self) -> None:
        try:
            await self._channel.ended()
        finally:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)


@dataclass
class Outcome:
    """How a call went."""

    problems: Problems = field(default_factory=dict)
    disturbed: bool = False
    """The machine stood still meanwhile: frames came late or were merged, by no fault of anybody."""
    client: Client | None = None
    report: CallReport | None = None


async def _step(name: str, condition: Callable[[], Any], told: Callable[[], str]) -> None:
    try:
        await until(condition, name, STEP_SECONDS)
    except AssertionError:
        raise Failed(name, told()) from None


class ClientCall:
    """See the module's text."""

    def __init__(self, client: Client, number: int, by_client: bool, rate: int) -> None:
        self.client = client
        self._rate = rate
        self._by_client = by_client
        self._tones = (400 + 20 * number, 1800 + 20 * number)
        self._reply = speech(1.0, 3000 + number)
        self._after = speech(0.3, 4000 + number)
        self.problems: Problems = {}

    async def play(self, caller: Caller) -> None:
        """Everything but the end. What a step lacks is noted, and the call goes on as long as that makes sense."""
        try:
            await self._start(caller)
            await self._hear(caller, self._tones[0])
            await self._press(caller)
            if not self.client.echoes and self.client.greets:
                await self._interrupt(caller)
            await self._marks()
        except Failed as failed:
            self.problems[failed.step] = str(failed)

    async def _start(self, caller: Caller) -> None:
        client = self.client
        await _step("start", lambda: client.started, lambda: client.died or "it never began")
        if client.greets:
            greeting = at_rate(client.greeting, self._rate)
            await _step(
                "greeting",
                lambda: caller.heard().endswith(greeting),
                lambda: f"{len(caller.heard())} bytes heard, {len(client.sent)} sent",
            )
            if caller.heard() != self._frames(client.sent):
                raise Failed("greeting", "not what was sent")
            await self._marks()

    async def _marks(self) -> None:
        await _step("marks", lambda: not self.client.marks_problem(), self.client.marks_problem)

    async def _hear(self, caller: Caller, hz: int) -> None:
        client = self.client
        said = caller.say(tone(hz, 0.4, self._rate))
        await _step("hearing", lambda: client.heard.find(said) >= 0 or client.died, lambda: self._heard(hz))
        if self._ms(client.longest_piece) > MAX_PIECE_MS:
            self.problems["hearing"] = f"in pieces of {self._ms(client.longest_piece)} ms"
        if client.echoes:
            await _step(
                "echo",
                lambda: self._frames(said) in caller.heard() and self._frames(client.sent).startswith(caller.heard()),
                lambda: f"{len(caller.heard())} bytes heard, {len(self._frames(client.sent))} sent",
            )

    def _frames(self, pcm: bytes | bytearray) -> bytes:
        return frames(bytes(pcm), self._rate)

    def _ms(self, size: int) -> int:
        """How long so many bytes are heard."""
        return size * 500 // self._rate

    def _heard(self, hz: int) -> str:
        """What came of a tone, in words."""
        samples = np.frombuffer(bytes(self.client.heard), "<i2")
        loud = np.flatnonzero(np.abs(samples.astype(int)) > LOUD)
        if len(loud) < self._rate // 50:
            return f"nothing of {hz} Hz"
        found = samples[loud[0] : loud[-1] + 1]
        heard = f"{dominant_frequency(found, self._rate):.0f} Hz for {self._ms(2 * len(found))} ms"
        return f"{heard}, not {hz} Hz for 400 ms without a break"

    async def _press(self, caller: Caller) -> None:
        before = len(self.client.heard)
        caller.press("5")
        if self.client.reads_digits:
            await _step("digits", lambda: self.client.digits == ["5"], lambda: f"{self.client.digits}, not ['5']")
        # 200 ms later there must be no second one, and the call goes on.
        await _step(
            "digits", lambda: len(self.client.heard) > before + 2 * self._rate // 5, lambda: "heard nothing more"
        )
        if len(self.client.digits) > 1:
            raise Failed("digits", f"{self.client.digits}, not ['5']")

    async def _interrupt(self, caller: Caller) -> None:
        client, before, sent_before = self.client, len(caller.heard()), len(self.client.sent)
        client.begin(self._reply)
        await _step("reply", lambda: self._ms(len(caller.heard()) - before) >= 200, lambda: "not heard")
        said = caller.say(tone(self._tones[1], 0.3, self._rate))
        await asyncio.sleep(0.05)
        await client.interrupt()
        sent, after = self._frames(client.sent[sent_before:]), at_rate(self._after, self._rate)
        client.begin(self._after)
        await _step("clear", lambda: caller.heard().endswith(after), lambda: "what came after is not heard")
        reply = caller.heard()[before : -len(after)]
        if client.clears and not (sent.startswith(reply) and self._ms(len(reply)) <= MAX_CUT_MS):
            raise Failed("clear", f"{self._ms(len(reply))} ms of the reply were heard")
        if not client.clears and reply != sent:
            raise Failed("reply", f"{len(reply)} bytes heard, {len(sent)} sent")
        await _step("hearing", lambda: client.heard.find(said) >= 0, lambda: "nothing of what the caller put in")

    async def end(self, caller: Caller) -> None:
        """The end, by whom it was to be."""
        client = self.client
        if self._by_client and not self.problems:
            hanging_up = asyncio.create_task(client.hang_up(), name="hangs up")
            await caller.hung_up_on()
            await hanging_up
            return
        await caller.hang_up()
        try:
            await until(lambda: client.ended, "end of the handler", STEP_SECONDS)
        except AssertionError:
            self.problems.setdefault("ending", "its handler goes on")
        if client.reads_stop and client.stop is None:
            self.problems.setdefault("stop", "not seen")

    def settle(self, report: CallReport) -> None:
        """What the worker's report says about it."""
        if self.client.died:
            self.problems = {"died": self.client.died}
            return
        expected = self.client.hang_up_reason if self._by_client else "leg_closed"
        if report.reason != expected:
            self.problems.setdefault("ending", f"{report.reason}, not {expected}")
        if not self.problems and (self.client.events["start"], self.client.events["dtmf"]) != (1, 1):
            self.problems["events"] = str(dict(self.client.events))
        ignored = {reason: count for reason, count in report.figures.ignored.items() if count}
        if ignored != self.client.ignored():
            self.problems.setdefault("ignored", f"{ignored}, not {self.client.ignored()}")


async def call_client(
    rig: Rig,
    kind: type[Client],
    number: int,
    *,
    by_client: bool = False,
    options: dict[str, Any] | None = None,
    distort: Distort | None = None,
    query: str = "",
    rate: int = 8000,
) -> Outcome:
    """One call of a client of this kind, again when the machine disturbed it."""
    outcome = Outcome()
    for _ in range(TRIES):
        outcome = await _call_once(rig, kind, number, by_client, options or {}, distort, query, rate)
        if not outcome.disturbed:
            break
    return outcome


async def _call_once(
    rig: Rig,
    kind: type[Client],
    number: int,
    by_client: bool,
    options: dict[str, Any],
    distort: Distort | None,
    query: str,
    rate: int,
) -> Outcome:
    client = kind(speech(0.6, 2000 + number), distort)
    call = ClientCall(client, number, by_client, rate)
    async with serving() as app:
        app.behave = client.run
        values = {"url": app.url + query, "dialect": kind.dialect, "dialect_options": options} | kind.spec
        values["media_format"] = WIDEBAND.get(rate, MediaFormat.ULAW)
        spec = rig.source.announce_call(**values)
        channel = await rig.connect(spec.leg_uuid)
        caller = Caller(channel, rate)
        try:
            await call.play(caller)
            await call.end(caller)
            report = await _report(rig, spec.call_id)
        finally:
            await caller.hang_up()
    call.settle(report)
    figures = report.figures
    disturbed = figures.stalls or figures.frames_dropped.get("late") or caller.late > CALLER_LATE_SECONDS
    return Outcome(call.problems, bool(disturbed and call.problems), client, report)


async def _report(rig: Rig, call_id: str) -> CallReport:
    found = await until(lambda: [one for one in rig.source.reports if one.call_id == call_id], "call report")
    return found[0]
