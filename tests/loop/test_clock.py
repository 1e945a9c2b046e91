"""The worker's clock, driven by a loop whose time is the test's: nothing here waits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audiosocket.clock import SLOTS, Clock

pytestmark = pytest.mark.loop

TURN = 0.020


@dataclass
class Timer:
    """A timer of the loop below."""

    when: float
    callback: Callable[[], None]
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True


@dataclass
class Loop:
    """What the clock needs of an event loop. Time passes only in `run` and `wake`."""

    now: float = 1_000.0
    timers: list[Timer] = field(default_factory=list)
    delays: list[float] = field(default_factory=list)

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        assert delay > 0, "a timer for now makes the loop spin"
        self.delays.append(delay)
        self.timers.append(Timer(self.now + delay, callback))
        return self.timers[-1]

    def wake(self, late: float = 0.0) -> None:
        """Fires the one timer, `late` seconds after its time."""
        (timer,) = self.timers
        self.timers.clear()
        self.now = timer.when + late
        timer.callback()

    def run(self, seconds: float) -> None:
        """Fires timers in time until `seconds` have passed."""
        end = self.now + seconds
        while self.timers and self.timers[0].when <= end:
            self.wake()
        self.now = end


class Counter:
    """A tick that remembers when it was called and what it was told."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.times: list[float] = []
        self.missed: list[int] = []

    def __call__(self, missed: int) -> None:
        self.times.append(self.loop.now)
        self.missed.append(missed)

    @property
    def turns(self) -> int:
        return sum(1 + missed for missed in self.missed)


def clock_on(loop: Loop) -> Clock:
    return Clock(cast(asyncio.AbstractEventLoop, loop))


def test_ten_thousand_ticks_without_drift() -> None:
    loop = Loop()
    clock, tick = clock_on(loop), Counter(loop)
    start = loop.now
    clock.add(tick)
    loop.run(10_000 * TURN + 0.0005)
    assert len(tick.times) in (9_999, 10_000)
    assert set(tick.missed) == {0}
    for number, at in enumerate(tick.times):
        assert -1e-6 <= at - start - number * TURN <= 0.0021, number
    assert clock.take_max_lateness_seconds() < 0.0025


def test_a_loop_that_is_always_late_does_not_shift_the_deadlines() -> None:
    loop = Loop()
    clock, tick = clock_on(loop), Counter(loop)
    start = loop.now
    clock.add(tick)
    for _ in range(5_000):
        loop.wake(0.0007)
    assert set(tick.missed) == {0}
    elapsed = loop.now - start
    assert abs(tick.turns - elapsed / TURN) <= 1
    assert all(at - start - number * TURN <= 0.0035 for number, at in enumerate(tick.times))


def test_calls_are_spread_over_the_slots() -> None:
    loop = Loop()
    clock = clock_on(loop)
    ticks = [Counter(loop) for _ in range(3 * SLOTS)]
    handles = [clock.add(tick) for tick in ticks]
    assert sorted(slot for slot, _ in handles) == sorted(list(range(SLOTS)) * 3)
    loop.run(10 * TURN)
    per_wake: dict[float, int] = {}
    for tick in ticks:
        for at in tick.times:
            per_wake[at] = per_wake.get(at, 0) + 1
    assert max(per_wake.values()) <= 6  # two slots at most: floats may push one into the next wake-up
    # The emptiest slot is filled first.
    for handle in handles:
        if handle[0] == 7:
            clock.remove(handle)
    assert [clock.add(Counter(loop))[0] for _ in range(3)] == [7, 7, 7]


@pytest.mark.parametrize(
    ("late_ms", "missed"),
    [(18, None), (19, 0), (38, 0), (39, 1), (58, 1), (59, 2), (10_000, 499)],
)
def test_a_late_wake_up_tells_how_many_turns_were_missed(late_ms: int, missed: int | None) -> None:
    loop = Loop()
    clock, tick = clock_on(loop), Counter(loop)
    clock.add(tick)
    loop.wake(0.0005)  # 1.5 ms after the start: in the middle of a slot, where no rounding can matter
    assert tick.missed == [0]
    loop.wake(late_ms / 1000)  # 2.5 ms and so many after it; the tick's turns are at 1, 21, 41 ms
    assert tick.missed[1:] == ([] if missed is None else [missed])
    assert clock.take_max_lateness_seconds() == pytest.approx((late_ms + 1.5) / 1000)


@given(
    st.lists(st.one_of(st.floats(0, 0.002), st.floats(0, 0.05), st.floats(0, 3)), min_size=1, max_size=60),
    st.integers(1, 45),
)
@settings(max_examples=150)
def test_whatever_the_delays_every_turn_is_accounted_for(delays: list[float], count: int) -> None:
    loop = Loop()
    clock = clock_on(loop)
    ticks = [Counter(loop) for _ in range(count)]
    for tick in ticks:
        clock.add(tick)
    start = loop.now
    for delay in delays:
        loop.wake(delay)
        for tick in ticks:
            assert abs(tick.turns - (loop.now - start) / TURN) <= 1.1
    assert clock.errors == 0


@given(st.data(), st.lists(st.one_of(st.floats(0, 0.002), st.floats(0, 1)), min_size=2, max_size=30))
@settings(max_examples=100)
def test_a_call_that_comes_late_is_not_told_of_turns_before_it(data: st.DataObject, delays: list[float]) -> None:
    """New calls are accepted in the very loop turns that make a wake-up late."""
    loop = Loop()
    clock = clock_on(loop)
    clock.add(Counter(loop))
    born: list[tuple[float, Counter]] = []
    for delay in delays:
        before = data.draw(st.floats(0, 1)) * delay
        loop.now = loop.timers[0].when + before
        born.append((loop.now, Counter(loop)))
        clock.add(born[-1][1])
        loop.wake(delay)
        for since, tick in born:
            assert abs(tick.turns - (loop.now - since) / TURN) <= 1.2


def test_a_tick_that_raises_is_removed_and_harms_no_other() -> None:
    loop = Loop()
    clock = clock_on(loop)
    before, after = Counter(loop), Counter(loop)
    calls = 0

    def broken(_missed: int) -> None:
        nonlocal calls
        calls += 1
        raise ZeroDivisionError

    # One slot is filled again only after all the others.
    slots = []
    for tick in (before, broken, after):
        slots.append(clock.add(tick)[0])
        fillers = [clock.add(Counter(loop)) for _ in range(SLOTS - 1)]
        assert len(fillers) == SLOTS - 1
    assert len(set(slots)) == 1
    loop.run(5.5 * TURN)
    assert calls == 1
    assert clock.errors == 1
    assert len(before.times) == len(after.times) >= 5
    assert clock._count == 3 * SLOTS - 1


def test_a_tick_may_remove_itself_and_its_neighbours() -> None:
    loop = Loop()
    clock = clock_on(loop)
    called: list[str] = []
    handles: dict[str, tuple[int, int]] = {}

    def first(_missed: int) -> None:
        called.append("first")
        clock.remove(handles["second"])
        clock.remove(handles["first"])
        clock.remove(handles["first"])  # twice is harmless

    handles["first"] = clock.add(first)
    slot = handles["first"][0]
    # The next tick of the same slot: one slot is filled only after all the others.
    fillers = [clock.add(Counter(loop)) for _ in range(SLOTS - 1)]
    handles["second"] = clock.add(lambda _missed: called.append("second"))
    assert handles["second"][0] == slot
    loop.run(3 * TURN)
    assert called == ["first"], "a tick that was removed is not called any more"
    for filler in fillers:
        clock.remove(filler)
    assert clock._count == 0


def test_a_tick_may_add_another() -> None:
    loop = Loop()
    clock = clock_on(loop)
    added = Counter(loop)

    def adding(_missed: int) -> None:
        if adding.__dict__.setdefault("done", False):
            return
        adding.__dict__["done"] = True
        clock.add(added)

    clock.add(adding)
    start = loop.now
    loop.wake(0.25)
    assert added.missed in ([], [0]), "it was not there when the turns were missed"
    loop.run(1.0)
    assert set(added.missed) == {0}
    assert abs(added.turns - (loop.now - start - 0.25) / TURN) <= 1.2


def test_the_timer_stops_when_nobody_ticks_and_starts_anew() -> None:
    loop = Loop()
    clock = clock_on(loop)
    assert not loop.timers
    handle = clock.add(Counter(loop))
    assert len(loop.timers) == 1
    loop.run(0.1)
    clock.remove(handle)
    loop.wake()
    assert not loop.timers, "an idle worker does not wake up a thousand times a second"
    # An hour later: a new origin, so that nothing has been missed.
    loop.now += 3600
    tick = Counter(loop)
    start = loop.now
    clock.add(tick)
    assert len(loop.timers) == 1
    loop.run(10 * TURN)
    assert set(tick.missed) == {0}
    assert abs(tick.turns - (loop.now - start) / TURN) <= 1
    assert clock.take_max_lateness_seconds() < 0.0025


def test_one_call_leaves_as_another_comes_before_the_timer_notices() -> None:
    loop = Loop()
    clock = clock_on(loop)
    handle = clock.add(Counter(loop))
    loop.run(0.05)
    clock.remove(handle)
    tick = Counter(loop)
    start = loop.now
    clock.add(tick)
    assert len(loop.timers) == 1, "one timer for all calls"
    loop.run(10 * TURN)
    assert set(tick.missed) == {0}
    assert abs(tick.turns - (loop.now - start) / TURN) <= 1


def test_lateness_is_taken_once() -> None:
    loop = Loop()
    clock = clock_on(loop)
    clock.add(Counter(loop))
    loop.wake(0.5)
    assert clock.take_max_lateness_seconds() == pytest.approx(0.501, abs=0.002)
    assert clock.take_max_lateness_seconds() == 0.0


async def test_on_a_real_loop() -> None:
    clock = Clock(asyncio.get_running_loop())
    told: list[Any] = []
    done = asyncio.Event()

    def tick(missed: int) -> None:
        told.append(missed)
        if len(told) == 10:
            clock.remove(handle)
            done.set()

    start = asyncio.get_running_loop().time()
    handle = clock.add(tick)
    async with asyncio.timeout(5):
        await done.wait()
        while clock._timer is not None:
            await asyncio.sleep(0.002)
    turns = sum(1 + missed for missed in told)
    assert turns * TURN - 0.021 <= asyncio.get_running_loop().time() - start
