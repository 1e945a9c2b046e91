"""When a worker reads two of a caller's frames at a time instead of each as it comes, as network cards coalesce
interrupts: half the reads, half the sends to the application, and a call's memory is touched half as often.

It costs up to 20 ms of delay on the way to the application, so it begins where processor time is the scarcer of both,
and while it still helps: at once in a second that took much of the core, and it ends after some that took little even
so. Between the two lies more than it saves, or a worker would swing.
"""

from __future__ import annotations

from collections import deque

from audiosocket.overload import WINDOW_SECONDS, Second

MUCH_CPU, LITTLE_CPU = 0.6, 0.4
"""Share of a core that the loop uses: from the first on frames are coalesced, below the second no longer."""


class Coalescing:
    """The verdict, second by second."""

    def __init__(self) -> None:
        self.on = False
        self._seconds: deque[Second] = deque(maxlen=WINDOW_SECONDS)

    def see(self, second: Second) -> bool:
        """Take one more second into account; whether the verdict has changed."""
        self._seconds.append(second)
        if not self.on:
            changed = second.cpu >= MUCH_CPU
        else:
            full = len(self._seconds) == WINDOW_SECONDS
            changed = full and sum(each.cpu for each in self._seconds) < LITTLE_CPU * WINDOW_SECONDS
        if changed:
            self.on = not self.on
            self._seconds.clear()
        return changed
