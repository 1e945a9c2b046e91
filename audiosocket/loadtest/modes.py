"""The runs: what the calls of each mode do, against a worker."""

from __future__ import annotations

import asyncio
import gc
import time
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple

from audiosocket.errors import Unavailable
from audiosocket.loadtest.applications import PAUSE_SECONDS, Echo, Stalling, Stream, Utterances
from audiosocket.loadtest.figures import Left, Moment, broken, left_behind, own_limit
from audiosocket.loadtest.generator import Channel, Generator, times
from audiosocket.loadtest.measuring import UNDER_WAY_SECONDS, Measuring, WorkerProcess
from audiosocket.loadtest.plan import NO_LIMITS, RAMP_LIMITS, Audience, Mode, Plan, Result, Target, paused
from audiosocket.loadtest.ramp import Step, capacity, next_calls
from audiosocket.loadtest.standalone import counters, difference, held
from audiosocket.loadtest.statistics import Times

WARM_SECONDS = 2.0
"""From the last call's connection until it is measured: applications are dialled meanwhile."""
SETTLE_SECONDS = 10.0
"""How long a worker may take to let go of calls that are over."""
MOMENTS = 10
"""How often a churn looks at the worker's process."""
_POLL_SECONDS = 0.1


class _Now(NamedTuple):
    """What the worker holds; None: not known."""

    descriptors: int | None
    sessions: int | None
    tasks: int | None
    timers: int | None


class Run:
    """One load test. `stream` makes the application's side of a call, `run` does it all; `result` fills meanwhile."""

    def __init__(self, plan: Plan, audience: Audience, stop: asyncio.Event) -> None:
        self._plan, self._audience, self._stop = plan, audience, stop
        self._generator: Generator | None = None
        self._before: dict[str, float] = {}
        """The worker's counters; empty: it has no status endpoint."""
        self.streams = 0
        """Calls that have reached the application here."""
        self.result = Result()

    def stream(self) -> Stream:
        """The application of this mode, for one more call."""
        self.streams += 1
        match self._plan.mode:
            case Mode.BURST:
                return Utterances(self._channel, self._plan.utterance)
            case Mode.SLOW:
                return Stalling(self._stalls, self._plan.stall)
            case _:
                return Echo()

    async def run(self, target: Target) -> None:
        """Raises `Unavailable` when the worker takes no call at all, or has no status where it should."""
        plan = self._plan
        generator = Generator(target.port, target.host, slin=plan.slin, speaks=plan.mode is not Mode.BURST)
        self._generator = generator
        gc.collect()
        gc.freeze()  # what was made so far stays; a collection of it would look like a pause of the worker
        self._before = await counters(target.status) if target.status else {}
        try:
            match plan.mode:
                case Mode.RAMP:
                    await self._ramp(generator, target)
                case Mode.CHURN:
                    await self._churn(generator, target)
                case _:
                    await self._hold(generator, target)
            self.result.interrupted = self._stop.is_set()
            await self._ask(target)
        finally:
            generator.stop()
            gc.unfreeze()
            await asyncio.sleep(_POLL_SECONDS)  # the connections close

    async def _hold(self, generator: Generator, target: Target) -> None:
        plan = self._plan
        if not await self._fill(generator, plan.calls):
            return
        if target.status:
            self._before = await counters(target.status)  # what it dropped while calls were joined is not of interest
        self._audience.begins(f"{plan.mode}: {plan.calls:,} calls", plan.seconds)
        measuring = Measuring(generator, target.pid, self._audience, self._stop)
        stopped = await measuring.watch(plan.seconds)
        # What is being said when the time is over is heard to its end.
        more = plan.utterance + PAUSE_SECONDS if plan.mode is Mode.BURST and not stopped else 0.0
        self.result.measured.append(await measuring.result(UNDER_WAY_SECONDS + more))
        ended = [channel for channel in generator.channels if channel.ended_by_worker]
        self.result.calls.ended_early = sum(not channel.apart for channel in ended)

    async def _ramp(self, generator: Generator, target: Target) -> None:
        plan, result = self._plan, self.result
        limits = plan.limits if plan.limits != NO_LIMITS else RAMP_LIMITS
        while (calls := next_calls(result.steps, plan.step, plan.calls)) is not None:
            failed = sum(result.calls.failed.values())
            if not await self._fill(generator, calls):
                return
            self._audience.begins(f"ramp: {calls:,} calls", plan.seconds)
            measuring = Measuring(generator, target.pid, self._audience, self._stop)
            if await measuring.watch(plan.seconds):
                return
            found = await measuring.result()
            unwell = found.ended_early + sum(result.calls.failed.values()) - failed
            result.measured.append(found)
            result.steps.append(Step(calls, tuple(broken(found.frames, unwell, limits)), own_limit(found.own)))
            result.capacity = capacity(result.steps)

    async def _fill(self, generator: Generator, calls: int) -> bool:
        """Brings the calls up to a number; False: it was stopped meanwhile. Raises `Unavailable` for the first one."""
        plan = self._plan
        missing = calls - len(generator.channels)
        if not missing:
            return not self._stop.is_set()
        self._audience.begins(f"setting up {missing:,} calls", missing / plan.rate + WARM_SECONDS)
        due = time.monotonic()
        for number in range(len(generator.channels), calls):
            apart = plan.mode is Mode.SLOW and int((number + 1) * plan.slow_percent / 100) > int(
                number * plan.slow_percent / 100
            )
            await self._connect(generator, apart=apart)
            due += 1 / plan.rate
            if await paused(self._stop, due - time.monotonic()):
                return False
        return not await paused(self._stop, WARM_SECONDS)

    async def _connect(self, generator: Generator, *, apart: bool = False) -> Channel | None:
        calls = self.result.calls
        calls.attempted += 1
        try:
            return await generator.add(apart=apart)
        except OSError as error:
            why = error.strerror or ("no answer" if isinstance(error, TimeoutError) else str(error))
            calls.fail(why)
            if not generator.channels and calls.attempted == 1:
                raise Unavailable(f"the worker takes no connection: {why}: is it running there?") from None
            return None

    async def _churn(self, generator: Generator, target: Target) -> None:
        plan, calls = self._plan, self.result.calls
        worker = WorkerProcess(target.pid)
        before = await self._now(target, worker)
        set_up = Times()
        live: set[asyncio.Task[None]] = set()
        moments: list[Moment] = []
        self._audience.begins(f"churn: {plan.rate:g} calls a second of {plan.hold:g} s", plan.seconds)
        measuring = Measuring(generator, target.pid, self._audience, self._stop)
        looking = asyncio.create_task(measuring.watch(plan.seconds), name="measuring")
        count = max(1, round(plan.rate * plan.seconds))
        began = time.monotonic()
        try:
            for number in range(count):
                if await paused(self._stop, began + number / plan.rate - time.monotonic()):
                    break
                if live and len(live) >= plan.calls:
                    await asyncio.wait(live, return_when=asyncio.FIRST_COMPLETED)
                call = asyncio.create_task(self._one_call(generator, measuring, set_up), name="call")
                live.add(call)
                call.add_done_callback(live.discard)
                if (number + 1) * MOMENTS // count > number * MOMENTS // count:
                    seconds = time.monotonic() - began
                    moments.append(Moment(number + 1, seconds, worker.rss_mib(), worker.descriptors()))
            await looking
            while live:
                await asyncio.wait(live)
        finally:
            await _cancelled(looking, *live)
        found = await measuring.result()
        open_calls = [point.calls for point in found.points] or [0]
        self.result.measured.append(replace(found, calls=round(sum(open_calls) / len(open_calls))))
        calls.set_up = set_up.spread()
        self.result.left = await self._left(target, worker, before, tuple(moments))

    async def _one_call(self, generator: Generator, measuring: Measuring, set_up: Times) -> None:
        calls = self.result.calls
        channel = await self._connect(generator)
        if channel is None:
            return
        await paused(self._stop, self._plan.hold)
        if channel.first >= 0:
            seconds = times()
            seconds.append(channel.first_at - channel.connected_at)
            set_up.add(seconds)
        else:
            calls.silent += 1
        # What was said before the application was there reaches nobody, and what was under way at the end neither.
        measuring.seen.sent += channel.returned + channel.altered + channel.missing()
        calls.ended_early += channel.ended_by_worker
        generator.remove(channel)

    async def _left(self, target: Target, worker: WorkerProcess, before: _Now, moments: tuple[Moment, ...]) -> Left:
        """What is left once the worker has let go of everything, or a while later."""
        deadline = time.monotonic() + SETTLE_SECONDS
        half = next((moment.rss_mib for moment in moments if 2 * moment.calls >= moments[-1].calls), None)
        while True:
            now = await self._now(target, worker)
            left = Left(
                descriptors_before=before.descriptors,
                descriptors_after=now.descriptors,
                rss_mib_half=half,
                rss_mib_end=moments[-1].rss_mib if moments else None,
                sessions=now.sessions,
                tasks_before=before.tasks,
                tasks_after=now.tasks,
                timers_before=before.timers,
                timers_after=now.timers,
                moments=moments,
            )
            if not any(left_behind(left)) or time.monotonic() > deadline:
                return left
            await asyncio.sleep(_POLL_SECONDS)

    async def _now(self, target: Target, worker: WorkerProcess) -> _Now:
        sessions: int | None = None
        objects: tuple[int | None, int | None] = (None, None)
        if target.status:
            with suppress(Unavailable):
                sessions = int((await counters(target.status))["media_sessions_active"])
                objects = await held(target.status)
        return _Now(worker.descriptors(), sessions, *objects)

    async def _ask(self, target: Target) -> None:
        before = self._before
        if not before:
            return
        try:
            after = await counters(target.status)
        except Unavailable:
            return  # it has ended under the load: what was seen of the calls says so
        self.result.dropped = difference(before, after, "media_frames_dropped")
        self.result.late_ticks = int(after["playout_late_ticks"] - before["playout_late_ticks"])

    def _channel(self, call_sid: str) -> Channel | None:
        return None if self._generator is None else self._generator.by_sid.get(call_sid)

    def _stalls(self, call_sid: str) -> bool:
        channel = self._channel(call_sid)
        return channel is not None and channel.apart


async def _cancelled(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
