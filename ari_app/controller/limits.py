"""Up to when a call may stay in a state."""

from __future__ import annotations

import time

from ari_app.call.machine import State
from ari_app.call.replacing import Replacements
from ari_app.call.routing import Admission, NotAdmitted

END_SECONDS = 5.0
"""How long an ended call waits for its channels to be destroyed and for the worker's report."""
REPORT_SECONDS = 1.0
"""How long a caller whose media leg has gone is kept for the worker's report, which takes a few ms."""
UNHEARD_SECONDS = 0.2
"""The same where the worker does not listen: a report that it left before its end may be on its way to us."""
ATTACH_SECONDS = 4.0
"""How long a worker may take to the leg of a call that is set up, before another one is tried."""
STRANDED_SECONDS = 30.0
"""How long a call waits for its turn to be moved."""
REPLACE_SECONDS = 2.5
"""How long another media leg may take; Asterisk tries for 2 s to connect it."""


class Limits:
    """The time limits of one call, from its arrival on."""

    def __init__(
        self, setup_seconds: float, admission: Admission | NotAdmitted | None, replacements: Replacements
    ) -> None:
        self._admission = admission
        self._replacements = replacements
        self._began = time.monotonic()
        self._setup_seconds = setup_seconds
        self._max_seconds = 0.0
        self._ends = 0.0
        self._waited = False
        if isinstance(admission, Admission):
            self._max_seconds = admission.route.max_seconds
            if admission.held:
                self._setup_seconds += admission.route.answer_within_seconds
        self.deadline = self._began + self._setup_seconds
        """The monotonic time up to which the call may stay as it is."""

    def adopt(self, seconds: float) -> None:
        """The call has been set up by another controller, and may go on for so long."""
        self.deadline = self._ends = time.monotonic() + max(0.0, seconds)

    @property
    def attach_over(self) -> bool:
        """Whether the time for this worker is over, and not that of the set-up."""
        return time.monotonic() < self._began + self._setup_seconds

    def unheard(self) -> None:
        """The worker that is to report does not listen."""
        self.deadline = min(self.deadline, time.monotonic() + UNHEARD_SECONDS)

    def last_worker(self) -> None:
        """No other worker is tried: this one has the rest of the set-up's time."""
        self.deadline = self._began + self._setup_seconds

    def enter(self, state: State) -> None:
        """The call enters `state`. How long one may be queued is not said here (`Waiting.until`)."""
        if self._waited and state is not State.QUEUED:
            self._began = time.monotonic()  # what he has waited is not the set-up's
        self._waited = state is State.QUEUED
        self.deadline = self._limit(state)

    def _limit(self, state: State) -> float:
        match state:
            case State.AWAITING:
                assert isinstance(self._admission, Admission)
                return self._began + self._admission.route.answer_within_seconds
            case State.TALKING:
                self._ends = self._ends or time.monotonic() + self._max_seconds
                return self._ends
            case State.BROKEN:
                return self._replacements.due(time.monotonic())
            case State.ATTACHING | State.RINGING:
                return min(self._began + self._setup_seconds, time.monotonic() + ATTACH_SECONDS)
            case State.STRANDED:
                return time.monotonic() + STRANDED_SECONDS
            case State.MOVING | State.REPLACING | State.REJOINING:
                return time.monotonic() + REPLACE_SECONDS
            case State.FORKED | State.PARTED:
                return self._ends
            case State.CONTINUING:
                self._ends = time.monotonic() + self._max_seconds
                return self._began + self._setup_seconds
            case State.REPORTING:
                return time.monotonic() + REPORT_SECONDS
            case State.UNFORKING | State.ENDING | State.ENDED:
                return time.monotonic() + END_SECONDS
            case _:
                return self._began + self._setup_seconds
