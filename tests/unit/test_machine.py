"""The call state machine: every walk through it, whatever comes in whatever order."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from hypothesis.strategies import sampled_from

from ari_app.call.machine import (
    LATE,
    OVER,
    SETTING_UP,
    TABLE,
    Action,
    CallMachine,
    IllegalTransition,
    State,
    Transition,
    Trigger,
)

pytestmark = pytest.mark.unit

HAPPY = [
    (Trigger.ARRIVED, State.PLACING, (Action.PLACE,)),
    (Trigger.PLACED, State.ANSWERING, (Action.ANSWER,)),
    (Trigger.ANSWERED, State.ATTACHING, (Action.ATTACH,)),
    (Trigger.MEDIA_STARTED, State.BRIDGING, (Action.BRIDGE,)),
    (Trigger.BRIDGED, State.TALKING, ()),
    (Trigger.CALLER_GONE, State.ENDING, (Action.TEAR_DOWN,)),
    (Trigger.SETTLED, State.ENDED, (Action.CLOSE,)),
]


def reach(state: State) -> set[State]:
    """States that can follow, in any number of steps."""
    found, waiting = {state}, deque([state])
    while waiting:
        here = waiting.popleft()
        for (source, _), (target, _) in TABLE.items():
            if source is here and target not in found:
                found.add(target)
                waiting.append(target)
    return found


def test_a_call_that_goes_well() -> None:
    machine = CallMachine()
    for trigger, target, actions in HAPPY:
        source = machine.state
        assert machine.apply(trigger) == Transition(source, target, trigger, actions)
        assert machine.state is target


def test_every_state_can_be_reached_and_every_state_can_end() -> None:
    assert reach(State.NEW) == set(State)
    assert all(State.ENDED in reach(state) for state in State)


def test_what_is_over_does_not_come_back() -> None:
    assert reach(State.ENDED) == {State.ENDED}
    assert reach(State.ENDING) == set(OVER)
    assert not any(source is State.ENDED for source, _ in TABLE)


def test_no_way_leads_back() -> None:
    order = list(State)
    assert all(order.index(target) > order.index(source) for (source, _), (target, _) in TABLE.items())


def test_the_states_are_set_up_talking_or_over() -> None:
    assert SETTING_UP | OVER | {State.TALKING} == set(State)
    assert not SETTING_UP & OVER


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("trigger", Trigger)
def test_every_state_with_every_trigger(state: State, trigger: Trigger) -> None:
    machine = CallMachine(state)
    known = TABLE.get((state, trigger))
    if known is not None:
        assert machine.apply(trigger) == Transition(state, known[0], trigger, known[1])
        assert machine.state is known[0]
    elif trigger in LATE:
        assert machine.apply(trigger) is None
        assert machine.state is state
    else:
        with pytest.raises(IllegalTransition, match=f"{trigger} in state {state}"):
            machine.apply(trigger)
        assert machine.state is state


def test_every_way_into_the_end_tears_down_and_every_way_out_of_it_closes() -> None:
    for (source, _), (target, actions) in TABLE.items():
        assert (Action.TEAR_DOWN in actions) == (target is State.ENDING), (source, target)
        assert (Action.CLOSE in actions) == (target is State.ENDED), (source, target)
        assert target is not State.ENDED or source is State.ENDING


def test_whoever_ends_a_call_may_do_so_at_any_time() -> None:
    for state in set(State) - OVER - {State.NEW}:
        for trigger in (Trigger.CALLER_GONE, Trigger.MEDIA_GONE, Trigger.HANGUP_ORDERED):
            assert TABLE[state, trigger][0] is State.ENDING
        timer = Trigger.TIME_LIMIT if state is State.TALKING else Trigger.SETUP_TIMEOUT
        assert TABLE[state, timer][0] is State.ENDING


def test_what_comes_from_outside_is_never_our_fault() -> None:
    ours = {source: {trigger for here, trigger in TABLE if here is source} for source in State}
    outcomes = set(Trigger) - LATE
    assert all(len(ours[state] & outcomes) >= 1 for state in SETTING_UP)
    assert {Trigger.CALLER_GONE, Trigger.MEDIA_GONE, Trigger.MEDIA_STARTED, Trigger.HANGUP_ORDERED} <= LATE


def test_all_walks_end_and_do_each_thing_once() -> None:
    """Every sequence of triggers that changes something, from the start to the end: there are a few hundred."""
    walks = 0
    waiting: list[tuple[State, tuple[Action, ...]]] = [(State.NEW, ())]
    while waiting:
        state, done = waiting.pop()
        assert len(done) == len(set(done)), "an action twice"
        if state is State.ENDED:
            walks += 1
            assert done[-2:] == (Action.TEAR_DOWN, Action.CLOSE)
            setting_up = done[:-2]
            assert setting_up == (Action.PLACE, Action.ANSWER, Action.ATTACH, Action.BRIDGE)[: len(setting_up)]
            continue
        steps = [(target, actions) for (source, _), (target, actions) in TABLE.items() if source is state]
        assert steps
        waiting.extend((target, done + actions) for target, actions in steps)
    assert walks == 2 * sum(
        sum(target is State.ENDING for (source, _), (target, _) in TABLE.items() if source is state) for state in State
    )


class AnyOrder(RuleBasedStateMachine):
    """Triggers in any order, as a confused peer and a slow network would send them."""

    def __init__(self) -> None:
        super().__init__()
        self.machine = CallMachine()
        self.done: list[Action] = []

    @rule(trigger=sampled_from(Trigger))
    def happens(self, trigger: Trigger) -> None:
        before = self.machine.state
        try:
            step = self.machine.apply(trigger)
        except IllegalTransition:
            assert trigger not in LATE
            assert self.machine.state is before
            return
        if step is None:
            assert self.machine.state is before
        else:
            assert (step.source, step.target) == (before, self.machine.state)
            self.done += step.actions

    @invariant()
    def nothing_is_done_twice_or_after_the_end(self) -> None:
        assert len(self.done) == len(set(self.done))
        assert (Action.TEAR_DOWN in self.done) == (self.machine.state in OVER)
        assert (Action.CLOSE in self.done) == (self.machine.state is State.ENDED)


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=60, stateful_step_count=40)
