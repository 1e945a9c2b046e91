"""When another media leg is made for a call whose leg was lost, and when it is enough.

Time is monotonic, in seconds, and comes in as an argument.
"""

from __future__ import annotations

MAX_LEGS = 100
"""Legs of one call. On a link that loses 5 % of its packets a leg holds for some two minutes."""
STEADY_SECONDS = 2.0
"""A leg that has carried the call for so long was a good one."""
AT_ONCE = 4
"""Legs in a row that are made at once; before further ones there is a pause."""
MAX_IN_A_ROW = 12
"""Legs in a row that were no good ones, after which no more are made."""
PAUSE_SECONDS = 0.1
MAX_PAUSE_SECONDS = 1.0
GRACE_SECONDS = 1.0
"""A worker that has waited in vain reports; one that has not even done that by then is gone."""


class Replacements:
    """The legs of one call, numbered from 0."""

    __slots__ = ("_carrying_since", "_gives_up", "_hold_seconds", "_in_a_row", "number")

    def __init__(self, hold_seconds: float) -> None:
        """`hold_seconds`: how long a worker waits for a leg; 0: no leg is replaced."""
        self._hold_seconds = hold_seconds
        self._gives_up = 0.0
        self._in_a_row = 0
        self._carrying_since: float | None = None
        self.number = 0
        """Of the leg that is there, or is being made."""

    def anew(self) -> None:
        """Another worker has the call: its first leg is the next one of the call."""
        self.number += 1
        self._in_a_row = 0
        self._gives_up = 0.0
        self._carrying_since = None

    @property
    def holds(self) -> bool:
        """Whether the worker may be waiting for a leg."""
        return self._hold_seconds > 0

    @property
    def wanted(self) -> bool:
        """Whether the next leg that is lost is to be replaced."""
        return self.holds and self._in_a_row < MAX_IN_A_ROW and self.number < MAX_LEGS

    def carries(self, now: float) -> None:
        """The leg is in the bridge."""
        self._carrying_since = now

    def lost(self, now: float, number: int) -> None:
        """The worker waits for a leg, from about now on; the one that it lost is `number`."""
        self.number = max(self.number, number)
        self._gives_up = now + self._hold_seconds + GRACE_SECONDS

    def due(self, now: float) -> float:
        """When the next leg is to be made."""
        if self._carrying_since is not None:
            if now - self._carrying_since >= STEADY_SECONDS:
                self._in_a_row = 0
            self._carrying_since = None
        if self._in_a_row < AT_ONCE:
            return now
        return now + min(MAX_PAUSE_SECONDS, PAUSE_SECONDS * 2.0 ** (self._in_a_row - AT_ONCE))

    def begin(self, now: float) -> bool:
        """Another leg is made: `number` is its own. False: it is enough."""
        if not self.wanted or now >= self._gives_up:
            return False
        self.number += 1
        self._in_a_row += 1
        return True
