"""When a call is given to another worker because its own is gone, and when it is enough.

A worker may have died of the very call: so one call is moved only so often, and does not walk through the fleet. Time
is monotonic, in seconds, and comes in as an argument.
"""

from __future__ import annotations

from ari_app.call.machine import State, Trigger

MAX_MOVES = 2
"""Moves of one call within `WINDOW_SECONDS`; a third loss ends it."""
WINDOW_SECONDS = 600.0
MAX_TRIES = 4
"""Workers that are tried for one move, besides those of which it is known that they are full or gone."""
MAX_RETRIES = 2
"""Further workers that are tried while a call is set up."""
PAUSE_SECONDS = 0.5
"""Between two looks for room."""
UNTAKEN_SECONDS = 3.0
"""A worker that lives, and knows nothing of a call whose leg was so young, has never taken it: its application has
heard nothing yet, so that another stream is the first."""

_SETTING_UP = frozenset({State.ATTACHING, State.RINGING})


class Moves:
    """The workers of one call."""

    __slots__ = ("_gives_up", "_hold_seconds", "_moved", "_over", "_retries", "_tries", "moves", "resumes")

    def __init__(self, hold_seconds: float, *, resumes: bool) -> None:
        """`hold_seconds`: how long room is looked for. With 0, or where the application does not want it (`resumes`),
        a call ends with its worker."""
        self.resumes = resumes
        self._hold_seconds = hold_seconds
        self._moved: list[float] = []
        self._gives_up: float | None = None
        self._tries = 0
        self._retries = 0
        self._over = False
        self.moves = 0
        """How often the call has been given to another worker after it had been connected."""

    def wanted(self, now: float) -> bool:
        """Whether the call is to be moved when its worker is gone."""
        self._moved = [at for at in self._moved if now - at < WINDOW_SECONDS]
        return self.possible and not self._over and len(self._moved) < MAX_MOVES

    @property
    def possible(self) -> bool:
        """Whether the call may be moved at all."""
        return self.resumes and self._hold_seconds > 0

    def begin(self, now: float) -> bool:
        """Another worker is looked for; waiting for a turn before the first look does not count. False: it is
        enough."""
        if self._gives_up is None:
            self._gives_up = now + self._hold_seconds
            self._tries = 0
        self._over = now >= self._gives_up or self._tries >= MAX_TRIES
        return not self._over

    def tried(self) -> None:
        """A worker has been found, and a media channel to it is asked for."""
        self._tries += 1

    def moved(self, now: float, *, ordered: bool) -> None:
        """The call goes on there. Those that an operator ordered are none of the worker's dying."""
        self._gives_up = None
        self.moves += 1
        if not ordered:
            self._moved.append(now)

    def retry(self) -> bool:
        """Whether a call that is set up may be tried on another worker: it is counted as done."""
        if self._retries >= MAX_RETRIES:
            return False
        self._retries += 1
        return True

    def retries_over(self) -> None:
        """There is no other worker."""
        self._retries = MAX_RETRIES


def without_worker(state: State, trigger: Trigger, *, answered: bool, connected: bool) -> Trigger | None:
    """What becomes of a call in `state` if another worker may take it, where `trigger` says that this one does not
    carry it; None: the trigger says nothing of that kind, or it is not the time."""
    if state in _SETTING_UP:
        return Trigger.RETRY if trigger in (Trigger.MEDIA_FAILED, Trigger.WORKER_GONE) else None
    if trigger is Trigger.WORKER_GONE and state is not State.REPORTING:
        return Trigger.WORKER_GONE if connected else None
    if state is State.REPORTING and trigger is Trigger.WORKER_GONE:
        if connected:
            return Trigger.WORKER_GONE
        return Trigger.RETRY if answered else Trigger.RING_ON
    return None
