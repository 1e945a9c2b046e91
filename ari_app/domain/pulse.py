"""Whether another process still beats, as a watcher sees it that may have slept itself."""

from __future__ import annotations

STALE_SECONDS = 2.0
"""A heart that has not beaten for so long has stopped."""
BEAT_SECONDS = 0.5


class Pulse:
    """The beats of one process, looked at again and again. Times are seconds of any clock that only goes forward."""

    __slots__ = ("_at", "_beat", "_silent")

    def __init__(self) -> None:
        self._beat: object = None
        self._at = 0.0
        self._silent = 0.0

    def look(self, beat: object, now: float, step: float) -> bool:
        """Takes what is to be seen at `now`: anything that changes with each beat. True when nothing has changed for
        `STALE_SECONDS`.

        Between two looks no more than twice `step`, the watcher's own interval, counts as silence: of a time in which
        the watcher stood still too (a machine that was suspended, or is overloaded) nothing is known.
        """
        if beat != self._beat:
            self._beat, self._at, self._silent = beat, now, 0.0
            return False
        self._silent += min(now - self._at, 2 * step)
        self._at = now
        return self._silent >= STALE_SECONDS

    def forget(self) -> None:
        """Begins anew: the next look is the first."""
        self._beat, self._silent = None, 0.0
