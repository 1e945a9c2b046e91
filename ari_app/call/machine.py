"""The call state machine: one table. Everything that moves a call from one state to another is in `TABLE`.

    NEW -> PLACING -> ANSWERING -> ATTACHING -> BRIDGING -> TALKING -> ENDING -> ENDED
                 any state before ENDING ------------------------------^

A call is **placed** when it holds a lease on a media worker and its call spec is in Redis; **attached** when the media
channel has entered Stasis; **talking** when caller and media are in one bridge. It is **ending** until Asterisk has
destroyed both channels and the worker has reported (or the time for that is over), and **ended** when lease and bridge
are given back and the record is closed.

A trigger that the table does not know in a state is a fault of ours (`IllegalTransition`), except where `LATE` says
that it may come too late: an event that was on its way when the call had moved on.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """Where a call is."""

    NEW = "new"
    PLACING = "placing"
    ANSWERING = "answering"
    ATTACHING = "attaching"
    BRIDGING = "bridging"
    TALKING = "talking"
    ENDING = "ending"
    ENDED = "ended"


class Trigger(StrEnum):
    """What happens to a call: the outcome of an action, an event of Asterisk, a timer, or an order."""

    ARRIVED = "arrived"
    REFUSED = "refused"
    """Admission said no: number, trunk or node limits."""
    PLACED = "placed"
    PLACE_FAILED = "place_failed"
    ANSWERED = "answered"
    ANSWER_FAILED = "answer_failed"
    MEDIA_STARTED = "media_started"
    MEDIA_FAILED = "media_failed"
    BRIDGED = "bridged"
    BRIDGE_FAILED = "bridge_failed"
    CALLER_GONE = "caller_gone"
    MEDIA_GONE = "media_gone"
    HANGUP_ORDERED = "hangup_ordered"
    SETUP_TIMEOUT = "setup_timeout"
    TIME_LIMIT = "time_limit"
    SETTLED = "settled"
    """Both channels are destroyed and the worker has reported."""
    END_TIMEOUT = "end_timeout"
    """Something of the call has not ended by itself in time."""


class Action(StrEnum):
    """What the call's actor does on a transition, in this order."""

    PLACE = "place"
    ANSWER = "answer"
    ATTACH = "attach"
    BRIDGE = "bridge"
    TEAR_DOWN = "tear_down"
    """Hang up what still lives of the two channels."""
    CLOSE = "close"
    """Give bridge and lease back, and close the record."""


_ENDING = (State.ENDING, (Action.TEAR_DOWN,))

TABLE: dict[tuple[State, Trigger], tuple[State, tuple[Action, ...]]] = {
    (State.NEW, Trigger.ARRIVED): (State.PLACING, (Action.PLACE,)),
    (State.NEW, Trigger.REFUSED): _ENDING,
    (State.PLACING, Trigger.PLACED): (State.ANSWERING, (Action.ANSWER,)),
    (State.PLACING, Trigger.PLACE_FAILED): _ENDING,
    (State.ANSWERING, Trigger.ANSWERED): (State.ATTACHING, (Action.ATTACH,)),
    (State.ANSWERING, Trigger.ANSWER_FAILED): _ENDING,
    (State.ATTACHING, Trigger.MEDIA_STARTED): (State.BRIDGING, (Action.BRIDGE,)),
    (State.ATTACHING, Trigger.MEDIA_FAILED): _ENDING,
    (State.BRIDGING, Trigger.BRIDGED): (State.TALKING, ()),
    (State.BRIDGING, Trigger.BRIDGE_FAILED): _ENDING,
    (State.TALKING, Trigger.TIME_LIMIT): _ENDING,
    (State.ENDING, Trigger.SETTLED): (State.ENDED, (Action.CLOSE,)),
    (State.ENDING, Trigger.END_TIMEOUT): (State.ENDED, (Action.CLOSE,)),
}
for _state in (State.PLACING, State.ANSWERING, State.ATTACHING, State.BRIDGING, State.TALKING):
    for _trigger in (Trigger.CALLER_GONE, Trigger.MEDIA_GONE, Trigger.HANGUP_ORDERED):
        TABLE[_state, _trigger] = _ENDING
    if _state is not State.TALKING:
        TABLE[_state, Trigger.SETUP_TIMEOUT] = _ENDING

LATE: frozenset[Trigger] = frozenset(
    {
        Trigger.CALLER_GONE,
        Trigger.MEDIA_GONE,
        Trigger.MEDIA_STARTED,
        Trigger.HANGUP_ORDERED,
        Trigger.SETUP_TIMEOUT,
        Trigger.TIME_LIMIT,
    }
)
"""Triggers from outside, which may reach a call that has moved on; there they change nothing."""

SETTING_UP = frozenset({State.NEW, State.PLACING, State.ANSWERING, State.ATTACHING, State.BRIDGING})
OVER = frozenset({State.ENDING, State.ENDED})


class IllegalTransition(Exception):
    """A trigger came in a state that has no place for it: a fault in the actor, never the peer's."""


@dataclass(frozen=True, slots=True)
class Transition:
    """One step of a call."""

    source: State
    target: State
    trigger: Trigger
    actions: tuple[Action, ...]


class CallMachine:
    """The state of one call. `apply` is the only way to change it."""

    __slots__ = ("state",)

    def __init__(self, state: State = State.NEW) -> None:
        self.state = state

    def apply(self, trigger: Trigger) -> Transition | None:
        """Moves the call; None when the trigger came too late to matter. Raises `IllegalTransition`."""
        found = TABLE.get((self.state, trigger))
        if found is None:
            if trigger in LATE:
                return None
            raise IllegalTransition(f"{trigger} in state {self.state}")
        source, self.state = self.state, found[0]
        return Transition(source, found[0], trigger, found[1])
