"""When a worker has more to do than its core gives it: it takes no new calls until it keeps its 20 ms again.

Two signs: its loop uses the core almost wholly, or it often wakes up a frame or more late (another process has the
core, or the hypervisor). Both are means of some seconds, for neither counts when it lasts for a moment; and a new
verdict begins with new seconds: a worker that took calls at the first good one would only swing between both.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from audiosocket.wire import FRAME_MS

FRAME_SECONDS = FRAME_MS / 1000
WINDOW_SECONDS = 5
BUSY_CPU, CALM_CPU = 0.9, 0.8
"""Share of a core that the loop uses: from the first on it is too much, below the second it is well again."""
BUSY_LATE, CALM_LATE = 0.4, 0.1
"""Share of wake-ups that came a frame or more late: as above."""


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
        self._seconds: deque[Second] = deque(maxlen=WINDOW_SECONDS)

    def see(self, second: Second) -> bool:
        """Take one more second into account; whether the verdict has changed."""
        self._seconds.append(second)
        if len(self._seconds) < WINDOW_SECONDS:
            return False
        cpu = sum(each.cpu for each in self._seconds) / WINDOW_SECONDS
        late = sum(each.late for each in self._seconds) / WINDOW_SECONDS
        busy = cpu >= BUSY_CPU or late >= BUSY_LATE
        calm = cpu < CALM_CPU and late < CALM_LATE
        changed = calm if self.overloaded else busy
        if changed:
            self.overloaded = not self.overloaded
            self._seconds.clear()
        return changed
