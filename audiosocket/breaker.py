"""The rule of a circuit breaker: an application that keeps failing is left alone for a while.

Closed, it lets every call dial. So many failures in a row open it: nobody dials. After its time it is half open: one
call at a time dials as a probe, whose success closes it and whose failure opens it again. What is kept here in memory,
`audiosocket.breakers` keeps in Redis, by the same rule.
"""

from __future__ import annotations

from enum import StrEnum


class Verdict(StrEnum):
    """What a call may do."""

    DIAL = "dial"
    PROBE = "probe"
    """It dials, and everybody else waits for its outcome."""
    SUSPENDED = "suspended"


class Outcome(StrEnum):
    """What came of dialling."""

    GOOD = "good"
    BAD = "bad"
    NONE = "none"
    """The caller went before it was known."""


class Breaker:
    """One application's breaker. Times are in ms, on any clock that only goes forward."""

    __slots__ = ("_failures", "_open_until_ms", "_probe_until_ms")

    def __init__(self) -> None:
        self._failures = 0
        self._open_until_ms = 0  # 0: closed
        self._probe_until_ms = 0

    def admit(self, now_ms: int, probe_ms: int) -> Verdict:
        """Whether a call may dial now. A probe that is not heard of for `probe_ms` makes room for another."""
        if not self._open_until_ms:
            return Verdict.DIAL
        if now_ms < self._open_until_ms or now_ms < self._probe_until_ms:
            return Verdict.SUSPENDED
        self._probe_until_ms = now_ms + probe_ms
        return Verdict.PROBE

    def renew(self, now_ms: int, probe_ms: int) -> None:
        """The probe is heard of: it goes on, and others wait for another `probe_ms`."""
        if self._open_until_ms:
            self._probe_until_ms = now_ms + probe_ms

    def record(self, outcome: Outcome, probe: bool, now_ms: int, failures: int, open_ms: int) -> bool:
        """Takes the outcome of a call that was let through; True when it opens the breaker.

        A failure of a call that was dialled before the breaker opened says nothing new; a success always does.
        """
        if outcome is Outcome.GOOD:
            self._failures = self._open_until_ms = self._probe_until_ms = 0
            return False
        if probe:
            self._probe_until_ms = 0
        if outcome is Outcome.NONE or (self._open_until_ms and not probe):
            return False
        self._failures += 1
        if self._failures < failures:
            return False
        self._open_until_ms = now_ms + open_ms
        return True
