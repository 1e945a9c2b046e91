"""The call state machine: every walk through it, whatever comes in whatever order."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from hypothesis.strategies import sampled_from

from ari_app.call.machine import (
    AWAY,
    FORKS,
    HELD,
    LATE,
    OVER,
    TABLE,
    TIMERS,
    Action,
    CallMachine,
    IllegalTransition,
    State,
    Transition,
    Trigger,
)

pytestmark = pytest.mark.unit

Way = list[tuple[Trigger, State, tuple[Action, ...]]]
START: Way = [(Trigger.ARRIVED, State.PLACING, (Action.PLACE,))]
AT_ONCE: Way = [
    (Trigger.PLACED, State.ANSWERING, (Action.ANSWER,)),
    (Trigger.ANSWERED, State.ATTACHING, (Action.ATTACH,)),
    (Trigger.MEDIA_STARTED, State.BRIDGING, (Action.BRIDGE,)),
    (Trigger.BRIDGED, State.TALKING, (Action.RELEASE,)),
]
AT_THE_FIRST_WORD: Way = [
    (Trigger.PLACED_HELD, State.RINGING, (Action.RING, Action.ATTACH)),
    (Trigger.MEDIA_STARTED, State.AWAITING, (Action.LISTEN,)),
    (Trigger.FIRST_WORD, State.JOINING, (Action.BRIDGE,)),
    (Trigger.BRIDGED, State.PICKING_UP, (Action.ANSWER,)),
    (Trigger.ANSWERED, State.TALKING, (Action.RELEASE,)),
]
AFTER_WAITING: Way = [(Trigger.QUEUED, State.QUEUED, (Action.HOLD,)), *AT_ONCE]
AFTER_WAITING_RINGING: Way = [(Trigger.QUEUED, State.QUEUED, (Action.HOLD,)), *AT_THE_FIRST_WORD]
AFTER_MUSIC: Way = [
    (Trigger.QUEUED, State.QUEUED, (Action.HOLD,)),
    (Trigger.PLACED_UP, State.ATTACHING, (Action.ATTACH,)),
    *AT_ONCE[2:],
]
SENT_ON: Way = [
    (Trigger.SENT_ON, State.CONTINUING, (Action.CONTINUE,)),
    (Trigger.CONTINUED, State.ENDING, (Action.TEAR_DOWN,)),
]
TALK: Way = [(Trigger.BRIDGED, State.TALKING, (Action.RELEASE,))]
HUNG_UP: Way = [(Trigger.CALLER_GONE, State.ENDING, (Action.TEAR_DOWN,))]
GONE_ON: Way = [
    (Trigger.MEDIA_GONE, State.REPORTING, (Action.INQUIRE,)),
    (Trigger.GOES_ON, State.CONTINUING, (Action.CONTINUE,)),
    (Trigger.CONTINUED, State.ENDING, (Action.TEAR_DOWN,)),
]
END: Way = [(Trigger.SETTLED, State.ENDED, (Action.CLOSE,))]
FORK: Way = [
    (Trigger.SNOOP_STARTED, State.BRIDGING, (Action.BRIDGE,)),
    (Trigger.BRIDGED, State.CONTINUING, (Action.CONTINUE,)),
    (Trigger.CONTINUED, State.FORKED, (Action.RELEASE,)),
]
STREAM_ENDED: Way = [
    (Trigger.MEDIA_GONE, State.UNFORKING, (Action.DETACH,)),
    (Trigger.SETTLED, State.PARTED, (Action.GIVE_BACK,)),
]
REPLACED: Way = [
    (Trigger.REPLACE_DUE, State.REPLACING, (Action.REPLACE,)),
    (Trigger.MEDIA_STARTED, State.REJOINING, (Action.REJOIN,)),
    *TALK,
]
WORKER_FIRST: Way = [(Trigger.LEG_LOST, State.BROKEN, ()), *REPLACED]
ASTERISK_FIRST: Way = [(Trigger.MEDIA_GONE, State.REPORTING, (Action.INQUIRE,)), *WORKER_FIRST]
AT_THE_SECOND_GO: Way = [
    *WORKER_FIRST[:2],
    (Trigger.MEDIA_FAILED, State.BROKEN, ()),
    *REPLACED[:2],
    (Trigger.LEG_LOST, State.BROKEN, ()),
    *REPLACED,
]
GIVEN_UP: Way = [
    *WORKER_FIRST[:2],
    (Trigger.GIVEN_UP, State.REPORTING, (Action.INQUIRE,)),
    (Trigger.REPORTED, State.ENDING, (Action.TEAR_DOWN,)),
]
WORKER_GONE: Way = [
    (Trigger.MEDIA_GONE, State.REPORTING, (Action.INQUIRE,)),
    (Trigger.WORKER_GONE, State.STRANDED, (Action.STRAND,)),
    (Trigger.MOVE_DUE, State.MOVING, (Action.MOVE,)),
    (Trigger.MEDIA_STARTED, State.REJOINING, (Action.REJOIN,)),
    *TALK,
]
NO_ROOM_AT_FIRST: Way = [
    (Trigger.WORKER_GONE, State.STRANDED, (Action.STRAND,)),
    (Trigger.MOVE_DUE, State.MOVING, (Action.MOVE,)),
    (Trigger.MEDIA_FAILED, State.STRANDED, (Action.STRAND,)),
    *WORKER_GONE[2:],
]
ORDERED: Way = [
    (Trigger.MOVE_ORDERED, State.MOVING, (Action.MOVE,)),
    (Trigger.STAYS, State.TALKING, ()),
    (Trigger.MOVE_ORDERED, State.MOVING, (Action.MOVE,)),
    *WORKER_GONE[3:],
]
LOSSES: list[Way] = [
    [],
    WORKER_FIRST,
    ASTERISK_FIRST,
    AT_THE_SECOND_GO,
    WORKER_GONE,
    NO_ROOM_AT_FIRST,
    ORDERED,
    WORKER_GONE + ORDERED + WORKER_FIRST,
]
OTHER_WORKERS = {Trigger.RETRY, Trigger.RING_ON}
"""What begins a part of the set-up once more."""
WAYS = [
    START + setting_up + loss + end + END
    for setting_up in (AT_ONCE, AT_THE_FIRST_WORD)
    for loss in LOSSES
    for end in (HUNG_UP, GONE_ON, GIVEN_UP)
]
WAYS += [START + waited + HUNG_UP + END for waited in (AFTER_WAITING, AFTER_WAITING_RINGING, AFTER_MUSIC)]
WAYS += [START + way + SENT_ON + END for way in ([], AFTER_WAITING[:1])]
WAYS += [START + AFTER_WAITING[:1] + [(Trigger.QUEUE_TIMEOUT, State.ENDING, (Action.TEAR_DOWN,))] + END]

WAYS += [
    START
    + AT_ONCE[:2]
    + [(Trigger.RETRY, State.ATTACHING, (Action.REPLACE_WORKER,))]
    + AT_ONCE[2:3]
    + [
        (Trigger.MEDIA_GONE, State.REPORTING, (Action.INQUIRE,)),
        (Trigger.RETRY, State.ATTACHING, (Action.REPLACE_WORKER,)),
    ]
    + AT_ONCE[2:]
    + HUNG_UP
    + END,
    START
    + AT_THE_FIRST_WORD[:1]
    + [(Trigger.RETRY, State.RINGING, (Action.REPLACE_WORKER,))]
    + AT_THE_FIRST_WORD[1:4]
    + [
        (Trigger.MEDIA_GONE, State.REPORTING, (Action.INQUIRE,)),
        (Trigger.RING_ON, State.RINGING, (Action.REPLACE_WORKER,)),
    ]
    + AT_THE_FIRST_WORD[1:]
    + HUNG_UP
    + END,
]

FORKED_WAYS = [
    START + setting_up + FORK + middle + HUNG_UP + END
    for setting_up in (
        [*AT_ONCE[:2], (Trigger.MEDIA_STARTED, State.FORKING, (Action.SNOOP,))],
        [
            *AT_THE_FIRST_WORD[:2],
            (Trigger.FIRST_WORD, State.PICKING_UP, (Action.ANSWER,)),
            (Trigger.ANSWERED, State.FORKING, (Action.SNOOP,)),
        ],
    )
    for middle in ([], STREAM_ENDED)
]
ONLY_FORKED = AWAY | {State.FORKING}
REPEATED = {Action.INQUIRE, Action.REPLACE, Action.REJOIN, Action.STRAND, Action.MOVE}
"""What may be done once for every leg of a call."""
TABLES = {False: TABLE, True: TABLE | FORKS}
"""By whether the call forks."""


def reach(state: State, *, forks: bool = False) -> set[State]:
    """States that can follow, in any number of steps."""
    found, waiting = {state}, deque([state])
    while waiting:
        here = waiting.popleft()
        for (source, _), (target, _) in TABLES[forks].items():
            if source is here and target not in found:
                found.add(target)
                waiting.append(target)
    return found


@pytest.mark.parametrize(("way", "forks"), [(way, False) for way in WAYS] + [(way, True) for way in FORKED_WAYS])
def test_a_call_that_goes_well(way: Way, forks: bool) -> None:
    machine = CallMachine(forks=forks)
    for trigger, target, actions in way:
        source = machine.state
        assert machine.apply(trigger) == Transition(source, target, trigger, actions)
        assert machine.state is target


def test_every_state_can_be_reached_and_every_state_can_end() -> None:
    assert reach(State.NEW) == set(State) - ONLY_FORKED
    assert reach(State.NEW, forks=True) == set(State) - {State.JOINING, State.TALKING, State.REPORTING, *HELD}
    assert all(State.ENDED in reach(state, forks=forks) for state in State for forks in TABLES)


def test_what_is_over_does_not_come_back() -> None:
    for forks, table in TABLES.items():
        assert reach(State.ENDED, forks=forks) == {State.ENDED}
        assert reach(State.ENDING, forks=forks) == set(OVER)
        assert not any(source is State.ENDED for source, _ in table)


def test_a_caller_who_has_gone_on_is_no_application_s_again() -> None:
    assert reach(State.FORKED, forks=True) == AWAY | OVER
    for state in AWAY:
        assert (state, Trigger.CALLER_LEFT) not in TABLES[True], "that he left us is not his end"


def test_no_way_leads_back() -> None:
    order = list(State)
    back = {
        (source, target)
        for table in TABLES.values()
        for (source, _), (target, _) in table.items()
        if order.index(target) <= order.index(source)
    }
    assert back == {
        (State.REPLACING, State.BROKEN),
        (State.REPLACING, State.REPORTING),
        (State.REJOINING, State.BROKEN),
        (State.REJOINING, State.TALKING),
        (State.STRANDED, State.REPORTING),
        (State.MOVING, State.STRANDED),
        (State.MOVING, State.REPORTING),
        (State.MOVING, State.TALKING),
        (State.BROKEN, State.STRANDED),
        (State.REPLACING, State.STRANDED),
        (State.REJOINING, State.STRANDED),
        (State.ATTACHING, State.ATTACHING),
        (State.RINGING, State.RINGING),
        (State.REPORTING, State.ATTACHING),
        (State.REPORTING, State.RINGING),
    }, "but for another leg, or another worker"


def test_no_call_stays_anywhere_for_ever() -> None:
    assert set(TIMERS) == set(State) - {State.NEW, State.ENDED}
    for state, trigger in TIMERS.items():
        target = TABLE[state, trigger][0]
        onward = {
            State.AWAITING: State.JOINING,
            State.FORKING: State.CONTINUING,
            State.UNFORKING: State.PARTED,
            State.STRANDED: State.REPORTING,
            State.MOVING: State.STRANDED,
            State.BROKEN: State.REPLACING,
            State.REPLACING: State.BROKEN,
            State.REJOINING: State.BROKEN,
        }
        assert target in OVER or target is onward[state]


def test_what_keeps_a_fork_from_being_made_does_not_end_the_call() -> None:
    failed = {
        Trigger.PLACE_FAILED,
        Trigger.MEDIA_FAILED,
        Trigger.MEDIA_GONE,
        Trigger.BRIDGE_FAILED,
        Trigger.SNOOP_FAILED,
        Trigger.SNOOP_GONE,
        Trigger.SETUP_TIMEOUT,
    }
    for (state, trigger), (target, _) in TABLES[True].items():
        # No caller waits for an application that forks, or is bridged with it.
        if trigger in failed and state not in (State.QUEUED, State.JOINING, State.TALKING, State.FORKED, *HELD):
            assert target is State.CONTINUING, (state, trigger)


@pytest.mark.parametrize("forks", TABLES)
@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("trigger", Trigger)
def test_every_state_with_every_trigger(state: State, trigger: Trigger, forks: bool) -> None:
    machine = CallMachine(state, forks=forks)
    known = TABLES[forks].get((state, trigger))
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
    for (source, _), (target, actions) in [*TABLE.items(), *FORKS.items()]:
        assert (Action.TEAR_DOWN in actions) == (target is State.ENDING), (source, target)
        assert (Action.CLOSE in actions) == (target is State.ENDED), (source, target)
        assert target is not State.ENDED or source is State.ENDING


def test_whoever_ends_a_call_may_do_so_at_any_time() -> None:
    for state in set(State) - OVER - {State.NEW}:
        for trigger in (Trigger.CALLER_GONE, Trigger.HANGUP_ORDERED):
            assert TABLE[state, trigger][0] is State.ENDING
        # Why the media went decides what becomes of the caller.
        if state in HELD:
            assert TABLE[state, Trigger.REPORTED][0] is State.ENDING
        elif state not in ONLY_FORKED | {State.QUEUED, State.REPORTING, State.CONTINUING}:
            assert TABLE[state, Trigger.MEDIA_GONE][0] is State.REPORTING


def test_what_comes_from_outside_is_never_our_fault() -> None:
    outside = {Trigger.CALLER_GONE, Trigger.CALLER_LEFT, Trigger.MEDIA_GONE, Trigger.MEDIA_STARTED, Trigger.FIRST_WORD}
    assert Trigger.LEG_LOST in LATE
    assert outside | {Trigger.SNOOP_STARTED, Trigger.SNOOP_GONE} <= LATE
    assert outside | {Trigger.HANGUP_ORDERED} <= LATE


def test_all_walks_end_and_do_each_thing_once() -> None:
    """Every sequence of triggers that changes something, from the start to the end, but for lost legs: there are some
    hundreds."""
    walks = 0
    waiting: list[tuple[State, tuple[Action, ...]]] = [(State.NEW, ())]
    set_up = [
        (Action.PLACE, Action.ANSWER, Action.ATTACH, Action.BRIDGE, Action.RELEASE),
        (Action.PLACE, Action.RING, Action.ATTACH, Action.LISTEN, Action.BRIDGE, Action.ANSWER, Action.RELEASE),
    ]
    set_up += [(Action.PLACE, Action.HOLD, *way[1:]) for way in set_up]
    set_up += [(Action.PLACE, Action.HOLD, Action.ATTACH, Action.BRIDGE, Action.RELEASE)]
    going_on = (Action.INQUIRE, Action.CONTINUE)
    while waiting:
        state, done = waiting.pop()
        assert len(done) == len(set(done)), "an action twice"
        if state is State.ENDED:
            walks += 1
            assert done[-2:] == (Action.TEAR_DOWN, Action.CLOSE)
            began = tuple(action for action in done[:-2] if action not in going_on)
            left = done[len(began) : -2]
            assert any(began == way[: len(began)] for way in set_up)
            sent_on = left == (Action.CONTINUE,) and set(began) <= {Action.PLACE, Action.HOLD}
            assert sent_on or left == going_on[: len(left)]
            continue
        steps = [
            (target, actions)
            for (source, trigger), (target, actions) in TABLE.items()
            if source is state and target not in HELD and trigger not in OTHER_WORKERS
        ]
        assert steps
        waiting.extend((target, done + actions) for target, actions in steps)
    assert 100 < walks < 2000


def test_all_walks_of_a_fork_end_and_do_each_thing_once() -> None:
    walks = 0
    order = [Action.SNOOP, Action.BRIDGE, Action.CONTINUE, Action.RELEASE, Action.DETACH, Action.GIVE_BACK]
    waiting: list[tuple[State, tuple[Action, ...]]] = [(State.NEW, ())]
    while waiting:
        state, done = waiting.pop()
        assert len(done) == len(set(done)), "an action twice"
        if state is State.ENDED:
            walks += 1
            assert done[-2:] == (Action.TEAR_DOWN, Action.CLOSE)
            after_set_up = [action for action in order if action in done]
            assert [action for action in done if action in order] == after_set_up
            assert Action.GIVE_BACK not in done or Action.DETACH in done
            continue
        steps = [
            (target, actions)
            for (source, trigger), (target, actions) in TABLES[True].items()
            if source is state and trigger not in OTHER_WORKERS
        ]
        assert steps
        waiting.extend((target, done + actions) for target, actions in steps)
    assert 100 < walks < 20000


class AnyOrder(RuleBasedStateMachine):
    """Triggers in any order, as a confused peer and a slow network would send them."""

    forks = False

    def __init__(self) -> None:
        super().__init__()
        self.machine = CallMachine(forks=self.forks)
        self.done: list[Action] = []

    @rule(trigger=sampled_from([trigger for trigger in Trigger if trigger not in OTHER_WORKERS]))
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
        once = [action for action in self.done if action not in REPEATED]
        assert len(once) == len(set(once))
        assert self.forks or self.done.count(Action.REJOIN) <= self.done.count(Action.REPLACE) + self.done.count(
            Action.MOVE
        )
        assert (Action.TEAR_DOWN in self.done) == (self.machine.state in OVER)
        assert (Action.CLOSE in self.done) == (self.machine.state is State.ENDED)


class AnyOrderOfAFork(AnyOrder):
    forks = True


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=60, stateful_step_count=40)
TestAnyOrderOfAFork = AnyOrderOfAFork.TestCase
TestAnyOrderOfAFork.settings = settings(max_examples=60, stateful_step_count=40)
