"""The scripted calls. Each is bounded: whatever the application does or leaves out, a call comes to its end."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import msgspec

from audiosocket.app_stream import Dialler
from audiosocket.appcheck.caller import VirtualCall
from audiosocket.appcheck.trace import Span, Trace
from audiosocket.appcheck.voice import Samples, utterance
from audiosocket.callspec import CallSpec
from audiosocket.clock import Clock, now_ms
from audiosocket.errors import ApplicationError
from audiosocket.resolver import Resolver

STAGGER_SECONDS = 0.1
"""Between the beginnings of calls at once: their timers must not run in step."""
INTERRUPT_SECONDS = 0.3
"""So long the application has spoken when the caller cuts in."""
DIGIT = "5"


@dataclass(frozen=True, slots=True)
class Pace:
    """How long things take, in seconds."""

    wait: float = 10.0
    """For anything that the application has to do."""
    speech: float = 1.5
    """What the caller says in one go."""
    settle: float = 1.0
    """Quiet by which the application is taken to have finished."""
    linger: float = 1.0
    """A caller's pause before hanging up."""
    digit: float = 3.0
    """How long a reaction to a digit is waited for."""
    turns: int = 2
    calls: int = 3
    """At once."""

    @property
    def listen(self) -> float:
        """The longest that one utterance of the application is listened to."""
        return 3 * self.wait


class Lab:
    """Places calls and keeps their traces, in the order in which they were placed."""

    def __init__(self, spec: CallSpec, pace: Pace, recorded: Samples | None) -> None:
        self.pace = pace
        self.traces: list[Trace] = []
        self.greeting_wait = pace.wait
        self._spec = spec
        self._recorded = recorded
        self._dialler = Dialler(Resolver())
        self._clock = Clock(asyncio.get_running_loop())

    def says(self, number: int) -> Samples:
        """What caller `number` says."""
        return utterance(self.pace.speech, number) if self._recorded is None else self._recorded

    async def place(self, scenario: str, number: int = 0, slow: bool = False) -> VirtualCall:
        """A call whose stream has begun. Raises `ApplicationError` when there is no WebSocket."""
        trace = Trace(scenario, number=number, slow=slow)
        self.traces.append(trace)
        call_id, stream_sid = uuid.uuid4(), uuid.uuid4().hex
        ids = {
            "call_id": str(call_id),
            "call_sid": call_id.hex,
            "leg_uuid": str(uuid.uuid4()),
            "stream_sid": stream_sid,
        }
        spec = msgspec.structs.replace(self._spec, **ids, created_at_ms=now_ms())
        call = VirtualCall(spec, self._clock, trace)
        await call.open(self._dialler)
        return call

    @asynccontextmanager
    async def call(self, scenario: str, slow: bool = False) -> AsyncIterator[VirtualCall]:
        """A call that is hung up at the end. Raises `ApplicationError` when there is no WebSocket."""
        call = await self.place(scenario, slow=slow)
        try:
            yield call
        finally:
            await call.hang_up()

    async def greet(self, call: VirtualCall) -> None:
        """Listens to the greeting, if there is one, to its end."""
        if await call.until(lambda: call.heard_anything, self.greeting_wait):
            await self.finish(call)
        elif not call.over:
            # It greets nobody, so the next caller does not wait as long for it.
            self.greeting_wait = min(self.greeting_wait, self.pace.settle)

    async def finish(self, call: VirtualCall) -> None:
        """Listens until the application has finished."""
        await call.until(lambda: call.bot_quiet(self.pace.settle), self.pace.listen)

    async def turn(self, call: VirtualCall) -> bool:
        """The caller speaks and goes quiet; whether an answer was heard in time. Its end is not waited for."""
        said = await self.speak(call)
        return await call.until(lambda: call.heard_since(said.end), self.pace.wait)

    async def speak(self, call: VirtualCall) -> Span:
        """The caller speaks to the end."""
        said = call.speak(self.says(call.trace.number))
        await call.until(lambda: not call.speaking, self.pace.wait + said.end - said.start)
        return said


async def handshake(lab: Lab) -> None:
    async with lab.call("handshake") as call:
        await call.until(lambda: False, lab.pace.linger)


async def greeting(lab: Lab) -> None:
    async with lab.call("greeting") as call:
        await lab.greet(call)


async def speech(lab: Lab) -> None:
    async with lab.call("speech") as call:
        await lab.greet(call)
        for _ in range(lab.pace.turns):
            if await lab.turn(call):
                await lab.finish(call)


async def silence(lab: Lab) -> None:
    async with lab.call("silence") as call:
        await lab.greet(call)
        await call.until(lambda: False, lab.pace.wait)


async def dtmf(lab: Lab) -> None:
    async with lab.call("dtmf") as call:
        await lab.greet(call)
        if not call.over:
            call.press(DIGIT)
            pressed = call.now
            await call.until(lambda: call.heard_since(pressed), lab.pace.digit)
            await call.until(lambda: False, lab.pace.linger)


async def marks(lab: Lab) -> None:
    async with lab.call("marks") as call:
        await lab.greet(call)
        if await lab.turn(call):
            await lab.finish(call)
        # The last marks are back: what does the application make of them?
        await call.until(lambda: False, lab.pace.linger)


async def barge_in(lab: Lab) -> None:
    async with lab.call("barge-in") as call:
        if not await call.until(lambda: call.heard_anything, lab.greeting_wait):
            await lab.turn(call)
        await _interrupt(lab, call)
        ambiguous = not call.trace.clears and call.bot_quiet(lab.pace.settle / 2)
        # It may have been at its end anyway: once more, with an answer.
        if ambiguous and await lab.turn(call):
            await _interrupt(lab, call)


async def _interrupt(lab: Lab, call: VirtualCall) -> None:
    await call.until(lambda: False, INTERRUPT_SECONDS)
    if not call.bot_speaking or call.over:
        return
    await lab.speak(call)
    await call.until(lambda: call.trace.clears or call.bot_quiet(lab.pace.settle / 2), lab.pace.linger)


async def hangup(lab: Lab) -> None:
    async with lab.call("hangup") as call:
        # In the middle of a sentence, as callers do.
        await call.until(lambda: call.heard_anything, lab.pace.linger)


async def slow(lab: Lab) -> None:
    async with lab.call("slow", slow=True) as call:
        await lab.greet(call)
        if await lab.turn(call):
            await lab.finish(call)


async def concurrency(lab: Lab) -> None:
    async def place(number: int) -> VirtualCall | None:
        await asyncio.sleep(number * STAGGER_SECONDS)
        try:
            return await lab.place("concurrency", number)
        except ApplicationError:
            return None  # it is on the trace

    calls: list[VirtualCall] = []
    try:
        async with asyncio.TaskGroup() as group:
            placing = [group.create_task(place(number)) for number in range(lab.pace.calls)]
        calls = [call for task in placing if (call := task.result()) is not None]
        await asyncio.gather(*(lab.greet(call) for call in calls))
        # One after the other: who then hears an answer that is not the speaker?
        for call in calls:
            if await lab.turn(call):
                await lab.finish(call)
    finally:
        await asyncio.gather(*(call.hang_up() for call in calls))


SCENARIOS: dict[str, tuple[Callable[[Lab], Awaitable[None]], str]] = {
    "handshake": (handshake, "the WebSocket opens and stays open"),
    "greeting": (greeting, "what the caller hears first, and how it is sent"),
    "speech": (speech, "the caller speaks and goes quiet, twice"),
    "silence": (silence, "the caller says nothing"),
    "dtmf": (dtmf, "the caller presses a key"),
    "marks": (marks, "marks are sent back when their audio was played"),
    "barge-in": (barge_in, "the caller speaks over the application"),
    "hangup": (hangup, "the caller hangs up"),
    "slow": (slow, "the network delivers every half second only"),
    "concurrency": (concurrency, "several calls at once"),
}
"""Script and purpose of each, in the order in which they are played."""
