"""When a worker has more to do than its core gives it: it takes no new calls until it keeps its 20 ms again.

Two signs: its loop uses the core almost wholly, or it wakes up a frame or more late most of the time (another process
has the core, or the hypervisor). Neither counts when it lasts for a moment, and recovery must last: a worker that took
calls at the first good second would only swing between both.
"""

from __future__ import annotations

from dataclasses import dataclass

FRAME_SECONDS = 0.02
BUSY_CPU, CALM_CPU = 0.9, 0.8
"""Share of a core that the loop uses: from the first on it is too much, below the second it is well again."""
BUSY_LATE, CALM_LATE = 0.5, 0.1
"""Share of wake-ups that came a frame or more late: as above."""
BUSY_SECONDS, CALM_SECONDS = 3, 5
"""Seconds in a row that change the verdict."""


@dataclass(frozen=True, slots=True)
class Second:
    """What about a second of a worker's loop was like."""

    cpu: float = 0.0
    """Share of a core that it used."""
    late: float = 0.0
    """Share of its wake-ups that came `FRAME_SECONDS` or more after they were due."""
    worst: float = 0.0
    """The latest of them, in seconds."""


class Overload:
    """The verdict, second by second."""

    def __init__(self) -> None:
        self.overloaded = False
        self._streak = 0

    def see(self, second: Second) -> bool:
        """Take one more second into account; whether the verdict has changed."""
        if self.overloaded:
            against, needed = second.cpu < CALM_CPU and second.late < CALM_LATE, CALM_SECONDS
        else:
            against, needed = second.cpu >= BUSY_CPU or second.late >= BUSY_LATE, BUSY_SECONDS
        self._streak = self._streak + 1 if against else 0
        if self._streak < needed:
            return False
        self.overloaded, self._streak = not self.overloaded, 0
        return True
