"""The call state machine: one table. Everything that moves a call from one state to another is in `TABLE`, and where a
call that forks goes another way, in `FORKS`.

    NEW -> PLACING -> ANSWERING -> ATTACHING -----------------> BRIDGING -> TALKING      answered at once
           PLACING -> RINGING -> AWAITING -> JOINING -> PICKING_UP -> TALKING            answered at the first word

    from PLACING to TALKING: the media leg goes -> REPORTING -> (CONTINUING ->) ENDING -> ENDED
                             anything else ends it --------------------------> ENDING

    TALKING or REPORTING: the leg is lost, the worker waits -> BROKEN -> REPLACING -> REJOINING -> TALKING
                          the worker is gone --------------> STRANDED -> MOVING ----> REJOINING -> TALKING

    PLACING: the application is full -> QUEUED -> as from PLACING; a caller who has been answered -> ATTACHING
             or he is to go elsewhere -----------> CONTINUING

    ATTACHING or PICKING_UP -> FORKING -> BRIDGING -> CONTINUING -> FORKED -> (UNFORKING -> PARTED ->) ENDING   a fork

A call is **placed** when it holds a lease on a media worker and its call spec is in Redis; **attached** when the media
channel has entered Stasis; **talking** when caller and media are in one bridge. A caller who is **ringing** has not
been answered; with the media attached he is **awaiting** the application's first word. **Joining** puts him into the
bridge before he is answered, so that all of what he says is heard. When the media leg has gone the call is
**reporting** until the worker has told why: that decides whether he is hung up or **continuing** in the dialplan.

A caller whose application is full is **queued**, where that is what is to become of him: he hears ringing, or is
answered and hears something else, and the call is placed when it is his turn.

A call is **broken** when its leg is lost while both ends live: the worker holds its session. **Replacing** it, another
media channel is made, which is put into the bridge: **rejoining**. That may happen again and again; whoever makes the
legs (`ari_app.call.replacing`) says when it is enough.

A call is **stranded** when its worker is gone while its caller lives: it waits for its turn. **Moving**, it is given
to another worker, whose leg is put into the bridge like any other. While a call is set up, its media channel is simply
made once more, to another worker (`ari_app.call.moving` says how often).

A call **forks** when its application listens to the caller while he goes on in the dialplan: a snoop channel takes his
place in the bridge. He is **forked** while the stream lives, **parted** from it when it has ended and he goes on alone.
What keeps a fork from being made is no end of the call: the caller goes on all the same.

A call is **ending** until Asterisk has destroyed what is ours of both channels and the worker has reported
(or the time for that is over), and **ended** when lease and bridge are given back and the record is closed.

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
    QUEUED = "queued"
    ANSWERING = "answering"
    ATTACHING = "attaching"
    RINGING = "ringing"
    AWAITING = "awaiting"
    JOINING = "joining"
    PICKING_UP = "picking_up"
    FORKING = "forking"
    BRIDGING = "bridging"
    TALKING = "talking"
    REPORTING = "reporting"
    STRANDED = "stranded"
    MOVING = "moving"
    BROKEN = "broken"
    REPLACING = "replacing"
    REJOINING = "rejoining"
    CONTINUING = "continuing"
    FORKED = "forked"
    UNFORKING = "unforking"
    PARTED = "parted"
    ENDING = "ending"
    ENDED = "ended"


class Trigger(StrEnum):
    """What happens to a call: the outcome of an action, an event of Asterisk, a word of the worker, a timer, or an
    order."""

    ARRIVED = "arrived"
    REFUSED = "refused"
    """Admission said no: number, trunk or node limits."""
    PLACED = "placed"
    """The caller is to be answered at once."""
    PLACED_HELD = "placed_held"
    """The caller is to be answered at the application's first word."""
    PLACE_FAILED = "place_failed"
    QUEUED = "queued"
    """The application is full, and the caller has a place in its line."""
    PLACED_UP = "placed_up"
    """It is the turn of a caller who has been answered while he waited."""
    QUEUE_TIMEOUT = "queue_timeout"
    """He has waited for as long as he may."""
    SENT_ON = "sent_on"
    """The application is full, and the caller is to go on elsewhere."""
    ANSWERED = "answered"
    ANSWER_FAILED = "answer_failed"
    MEDIA_STARTED = "media_started"
    MEDIA_FAILED = "media_failed"
    FIRST_WORD = "first_word"
    """The application is connected, or speaks, whichever the route waits for."""
    ANSWER_DUE = "answer_due"
    """The caller has been ringing for as long as the route lets him."""
    BRIDGED = "bridged"
    BRIDGE_FAILED = "bridge_failed"
    SNOOP_STARTED = "snoop_started"
    SNOOP_FAILED = "snoop_failed"
    CALLER_GONE = "caller_gone"
    CALLER_LEFT = "caller_left"
    """His channel has left our application, whether it lives or not."""
    MEDIA_GONE = "media_gone"
    LEG_LOST = "leg_lost"
    """The worker's end of the leg is gone, and it waits for another one."""
    REPLACE_DUE = "replace_due"
    GIVEN_UP = "given_up"
    """No more legs are made for this call, or no other worker takes it."""
    WORKER_GONE = "worker_gone"
    """The worker that carried the call is gone, or knows nothing of it."""
    MOVE_DUE = "move_due"
    """It is this call's turn to be given to another worker."""
    MOVE_ORDERED = "move_ordered"
    STAYS = "stays"
    """No other worker could be had, and the call is as it was."""
    RETRY = "retry"
    """The worker did not take a call that is set up, and another one may."""
    RING_ON = "ring_on"
    """The same, of a caller who has not been answered."""
    SNOOP_GONE = "snoop_gone"
    HANGUP_ORDERED = "hangup_ordered"
    SETUP_TIMEOUT = "setup_timeout"
    TIME_LIMIT = "time_limit"
    REPORTED = "reported"
    """Why the media leg went is known, and the caller is to be hung up."""
    GOES_ON = "goes_on"
    """Why the media leg went is known, and the caller is to go on elsewhere."""
    REPORT_TIMEOUT = "report_timeout"
    CONTINUED = "continued"
    """The caller is the dialplan's."""
    CONTINUED_ALONE = "continued_alone"
    """He is, and nobody listens: the fork has failed."""
    CONTINUE_FAILED = "continue_failed"
    SETTLED = "settled"
    """The channels are destroyed, or not ours any more, and the worker has reported."""
    END_TIMEOUT = "end_timeout"
    """Something of the call has not ended by itself in time."""


class Action(StrEnum):
    """What the call's actor does on a transition, in this order, up to the first one with an outcome."""

    PLACE = "place"
    HOLD = "hold"
    """Let a caller who waits hear something."""
    ANSWER = "answer"
    RING = "ring"
    ATTACH = "attach"
    LISTEN = "listen"
    """Find out whether the first word came before the media channel did."""
    SNOOP = "snoop"
    """Have a channel made that listens to the caller."""
    BRIDGE = "bridge"
    """Put media and caller, or his snoop, into one bridge."""
    RELEASE = "release"
    """Tell the worker that the caller hears what it plays."""
    INQUIRE = "inquire"
    """Find out whether the report came before the media channel went, and tell the worker that it went."""
    REPLACE = "replace"
    """Have another media channel made for the session that the worker holds."""
    STRAND = "strand"
    """Queue for being moved: a worker's calls are all lost at once."""
    MOVE = "move"
    """Give the call to another worker, and have a media channel made to it."""
    REPLACE_WORKER = "replace_worker"
    """The same while the call is set up."""
    REJOIN = "rejoin"
    """Put it into the bridge."""
    CONTINUE = "continue"
    """Hand the caller to the dialplan."""
    DETACH = "detach"
    """Hang up what still lives of the stream, and leave the caller alone."""
    GIVE_BACK = "give_back"
    """Give bridge and lease back while the caller goes on."""
    TEAR_DOWN = "tear_down"
    """Hang up what still lives of the channels."""
    CLOSE = "close"
    """Give bridge and lease back where they are still ours, and close the record."""


AWAY = frozenset({State.FORKED, State.UNFORKING, State.PARTED})
"""The caller is in the dialplan, and his call still ours to watch."""

HELD = (State.STRANDED, State.MOVING, State.BROKEN, State.REPLACING, State.REJOINING)
"""The caller waits in his bridge for another leg, to the worker that holds the session or to another one."""

_ENDING = (State.ENDING, (Action.TEAR_DOWN,))
_GOING_ON = (State.CONTINUING, (Action.CONTINUE,))
_INQUIRING = (State.REPORTING, (Action.INQUIRE,))
_BROKEN: tuple[State, tuple[Action, ...]] = (State.BROKEN, ())
_STRANDED = (State.STRANDED, (Action.STRAND,))
_ATTACHING_AGAIN = (State.ATTACHING, (Action.REPLACE_WORKER,))
_RINGING_ON = (State.RINGING, (Action.REPLACE_WORKER,))
_SNOOPING = (State.FORKING, (Action.SNOOP,))
_STREAM_OVER = (State.UNFORKING, (Action.DETACH,))
_PARTED = (State.PARTED, (Action.GIVE_BACK,))
_UNANSWERED = (State.RINGING, State.AWAITING, State.JOINING, State.PICKING_UP)
_SETTING_UP = (State.PLACING, State.ANSWERING, State.ATTACHING, *_UNANSWERED, State.BRIDGING)

TABLE: dict[tuple[State, Trigger], tuple[State, tuple[Action, ...]]] = {
    (State.NEW, Trigger.ARRIVED): (State.PLACING, (Action.PLACE,)),
    (State.NEW, Trigger.REFUSED): _ENDING,
    (State.PLACING, Trigger.PLACED): (State.ANSWERING, (Action.ANSWER,)),
    (State.PLACING, Trigger.PLACED_HELD): (State.RINGING, (Action.RING, Action.ATTACH)),
    (State.PLACING, Trigger.PLACE_FAILED): _ENDING,
    (State.PLACING, Trigger.QUEUED): (State.QUEUED, (Action.HOLD,)),
    (State.PLACING, Trigger.SENT_ON): _GOING_ON,
    (State.QUEUED, Trigger.PLACED): (State.ANSWERING, (Action.ANSWER,)),
    (State.QUEUED, Trigger.PLACED_HELD): (State.RINGING, (Action.RING, Action.ATTACH)),
    (State.QUEUED, Trigger.PLACED_UP): (State.ATTACHING, (Action.ATTACH,)),
    (State.QUEUED, Trigger.PLACE_FAILED): _ENDING,
    (State.QUEUED, Trigger.SENT_ON): _GOING_ON,
    (State.QUEUED, Trigger.ANSWER_FAILED): _ENDING,
    (State.ANSWERING, Trigger.ANSWERED): (State.ATTACHING, (Action.ATTACH,)),
    (State.ANSWERING, Trigger.ANSWER_FAILED): _ENDING,
    (State.ATTACHING, Trigger.MEDIA_STARTED): (State.BRIDGING, (Action.BRIDGE,)),
    (State.ATTACHING, Trigger.MEDIA_FAILED): _ENDING,
    (State.RINGING, Trigger.MEDIA_STARTED): (State.AWAITING, (Action.LISTEN,)),
    (State.RINGING, Trigger.MEDIA_FAILED): _ENDING,
    (State.AWAITING, Trigger.FIRST_WORD): (State.JOINING, (Action.BRIDGE,)),
    (State.AWAITING, Trigger.ANSWER_DUE): (State.JOINING, (Action.BRIDGE,)),
    (State.JOINING, Trigger.BRIDGED): (State.PICKING_UP, (Action.ANSWER,)),
    (State.JOINING, Trigger.BRIDGE_FAILED): _ENDING,
    (State.PICKING_UP, Trigger.ANSWERED): (State.TALKING, (Action.RELEASE,)),
    (State.PICKING_UP, Trigger.ANSWER_FAILED): _ENDING,
    (State.BRIDGING, Trigger.BRIDGED): (State.TALKING, (Action.RELEASE,)),
    (State.BRIDGING, Trigger.BRIDGE_FAILED): _ENDING,
    (State.REPORTING, Trigger.REPORTED): _ENDING,
    (State.REPORTING, Trigger.GOES_ON): _GOING_ON,
    (State.TALKING, Trigger.LEG_LOST): _BROKEN,
    (State.REPORTING, Trigger.LEG_LOST): _BROKEN,
    (State.BROKEN, Trigger.REPLACE_DUE): (State.REPLACING, (Action.REPLACE,)),
    (State.REPLACING, Trigger.MEDIA_STARTED): (State.REJOINING, (Action.REJOIN,)),
    (State.REPLACING, Trigger.MEDIA_FAILED): _BROKEN,
    (State.REPLACING, Trigger.GIVEN_UP): _INQUIRING,
    (State.TALKING, Trigger.MOVE_ORDERED): (State.MOVING, (Action.MOVE,)),
    (State.STRANDED, Trigger.MOVE_DUE): (State.MOVING, (Action.MOVE,)),
    (State.STRANDED, Trigger.GIVEN_UP): _INQUIRING,
    (State.MOVING, Trigger.MEDIA_STARTED): (State.REJOINING, (Action.REJOIN,)),
    (State.MOVING, Trigger.MEDIA_FAILED): _STRANDED,
    (State.MOVING, Trigger.MEDIA_GONE): _STRANDED,
    (State.MOVING, Trigger.GIVEN_UP): _INQUIRING,
    (State.MOVING, Trigger.STAYS): (State.TALKING, ()),
    (State.ATTACHING, Trigger.RETRY): _ATTACHING_AGAIN,
    (State.REPORTING, Trigger.RETRY): _ATTACHING_AGAIN,
    (State.RINGING, Trigger.RETRY): _RINGING_ON,
    (State.REPORTING, Trigger.RING_ON): _RINGING_ON,
    (State.REJOINING, Trigger.BRIDGED): (State.TALKING, (Action.RELEASE,)),
    (State.REJOINING, Trigger.BRIDGE_FAILED): _BROKEN,
    (State.CONTINUING, Trigger.CONTINUED): _ENDING,
    (State.CONTINUING, Trigger.CONTINUE_FAILED): _ENDING,
    (State.FORKING, Trigger.SNOOP_STARTED): (State.BRIDGING, (Action.BRIDGE,)),
    (State.FORKING, Trigger.SNOOP_FAILED): _GOING_ON,
    (State.FORKING, Trigger.SNOOP_GONE): _GOING_ON,
    (State.FORKING, Trigger.MEDIA_GONE): _GOING_ON,
    (State.FORKED, Trigger.MEDIA_GONE): _STREAM_OVER,
    (State.FORKED, Trigger.SNOOP_GONE): _STREAM_OVER,
    (State.UNFORKING, Trigger.SETTLED): _PARTED,
    (State.UNFORKING, Trigger.END_TIMEOUT): _PARTED,
    (State.ENDING, Trigger.SETTLED): (State.ENDED, (Action.CLOSE,)),
    (State.ENDING, Trigger.END_TIMEOUT): (State.ENDED, (Action.CLOSE,)),
}

TIMERS: dict[State, Trigger] = {
    State.PLACING: Trigger.SETUP_TIMEOUT,
    State.QUEUED: Trigger.QUEUE_TIMEOUT,
    State.ANSWERING: Trigger.SETUP_TIMEOUT,
    State.ATTACHING: Trigger.SETUP_TIMEOUT,
    State.RINGING: Trigger.SETUP_TIMEOUT,
    State.AWAITING: Trigger.ANSWER_DUE,
    State.JOINING: Trigger.SETUP_TIMEOUT,
    State.PICKING_UP: Trigger.SETUP_TIMEOUT,
    State.FORKING: Trigger.SNOOP_FAILED,
    State.BRIDGING: Trigger.SETUP_TIMEOUT,
    State.TALKING: Trigger.TIME_LIMIT,
    State.REPORTING: Trigger.REPORT_TIMEOUT,
    State.STRANDED: Trigger.GIVEN_UP,
    State.MOVING: Trigger.MEDIA_FAILED,
    State.BROKEN: Trigger.REPLACE_DUE,
    State.REPLACING: Trigger.MEDIA_FAILED,
    State.REJOINING: Trigger.BRIDGE_FAILED,
    State.CONTINUING: Trigger.CONTINUE_FAILED,
    State.FORKED: Trigger.TIME_LIMIT,
    State.UNFORKING: Trigger.END_TIMEOUT,
    State.PARTED: Trigger.TIME_LIMIT,
    State.ENDING: Trigger.END_TIMEOUT,
}
"""What happens when a call stays in a state for too long."""

for _state, _timer in TIMERS.items():
    if _state is not State.ENDING:
        TABLE.setdefault((_state, _timer), _ENDING)
        TABLE[_state, Trigger.CALLER_GONE] = TABLE[_state, Trigger.HANGUP_ORDERED] = _ENDING
        if _state not in AWAY:
            TABLE[_state, Trigger.CALLER_LEFT] = _ENDING
for _state in (*_SETTING_UP, State.TALKING):
    TABLE[_state, Trigger.MEDIA_GONE] = _INQUIRING
for _state in (State.REPLACING, State.REJOINING):
    TABLE[_state, Trigger.MEDIA_GONE] = TABLE[_state, Trigger.LEG_LOST] = _BROKEN
for _state in (State.TALKING, State.REPORTING, State.MOVING, State.BROKEN, State.REPLACING, State.REJOINING):
    TABLE[_state, Trigger.WORKER_GONE] = _STRANDED
for _state in HELD:
    TABLE[_state, Trigger.REPORTED] = _ENDING
    TABLE[_state, Trigger.GOES_ON] = _GOING_ON

FORKS: dict[tuple[State, Trigger], tuple[State, tuple[Action, ...]]] = {
    (State.ATTACHING, Trigger.MEDIA_STARTED): _SNOOPING,
    (State.AWAITING, Trigger.FIRST_WORD): (State.PICKING_UP, (Action.ANSWER,)),
    (State.AWAITING, Trigger.ANSWER_DUE): (State.PICKING_UP, (Action.ANSWER,)),
    (State.PICKING_UP, Trigger.ANSWERED): _SNOOPING,
    (State.BRIDGING, Trigger.BRIDGED): _GOING_ON,
    (State.CONTINUING, Trigger.CONTINUED): (State.FORKED, (Action.RELEASE,)),
    (State.CONTINUING, Trigger.CONTINUED_ALONE): _STREAM_OVER,
    (State.PLACING, Trigger.PLACE_FAILED): _GOING_ON,
    (State.ATTACHING, Trigger.MEDIA_FAILED): _GOING_ON,
    (State.RINGING, Trigger.MEDIA_FAILED): _GOING_ON,
    (State.BRIDGING, Trigger.BRIDGE_FAILED): _GOING_ON,
}
"""What takes the place of `TABLE`'s entry, or is added to it, for a call that forks."""

for _state in _SETTING_UP:
    FORKS[_state, Trigger.MEDIA_GONE] = _GOING_ON
    if (_state, Trigger.SETUP_TIMEOUT) in TABLE:
        FORKS[_state, Trigger.SETUP_TIMEOUT] = _GOING_ON

_FORKING_TABLE = TABLE | FORKS

LATE: frozenset[Trigger] = frozenset(
    {
        Trigger.CALLER_GONE,
        Trigger.CALLER_LEFT,
        Trigger.MEDIA_GONE,
        Trigger.LEG_LOST,
        Trigger.WORKER_GONE,
        Trigger.MOVE_DUE,
        Trigger.MOVE_ORDERED,
        Trigger.MEDIA_STARTED,
        Trigger.SNOOP_STARTED,
        Trigger.SNOOP_GONE,
        Trigger.FIRST_WORD,
        Trigger.HANGUP_ORDERED,
        Trigger.SETUP_TIMEOUT,
        Trigger.TIME_LIMIT,
    }
)
"""Triggers from outside, which may reach a call that has moved on; there they change nothing."""

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

    __slots__ = ("_table", "state")

    def __init__(self, state: State = State.NEW, *, forks: bool = False) -> None:
        self.state = state
        self._table = _FORKING_TABLE if forks else TABLE

    def apply(self, trigger: Trigger) -> Transition | None:
        """Moves the call; None when the trigger came too late to matter. Raises `IllegalTransition`."""
        found = self._table.get((self.state, trigger))
        if found is None:
            if trigger in LATE:
                return None
            raise IllegalTransition(f"{trigger} in state {self.state}")
        source, self.state = self.state, found[0]
        return Transition(source, found[0], trigger, found[1])
