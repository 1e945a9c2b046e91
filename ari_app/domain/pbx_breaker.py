"""When Asterisk is left alone: the rule of the circuit breaker over its REST interface.

An Asterisk that does not answer in time is not helped by more requests, and a caller who waits for each of them to fail
is not served. So many failures in a short time, a fifth or more of all requests, open the breaker: no new call is
begun. It closes when Asterisk has answered some probes in a row.

A failure is a request without an answer: refused, reset, or too late. An answer that says no is none.
"""

from __future__ import annotations

from collections import deque

FAILURES = 5
WINDOW_SECONDS = 10
PROBES = 2
"""Probes in a row that must be answered."""


class PbxBreaker:
    """The breaker of one Asterisk. Times are in seconds, on any clock that only goes forward."""

    __slots__ = ("_answered", "_seconds", "open", "trips")

    def __init__(self) -> None:
        self.open = False
        """Whether Asterisk is to be left alone."""
        self.trips = 0
        """How often it has opened."""
        self._seconds: deque[list[int]] = deque()
        """Of each second of the window in which a request ended: its number, answers, failures."""
        self._answered = 0

    def record(self, failed: bool, now: float) -> bool:
        """Takes the outcome of a request; True when it opens the breaker. While it is open, only probes count."""
        if self.open:
            return False
        second = int(now)
        if not self._seconds or self._seconds[-1][0] != second:
            self._seconds.append([second, 0, 0])
        while self._seconds[0][0] <= second - WINDOW_SECONDS:
            self._seconds.popleft()
        self._seconds[-1][2 if failed else 1] += 1
        answers, failures = (sum(entry[column] for entry in self._seconds) for column in (1, 2))
        if not failed or failures < FAILURES or 4 * failures < answers:
            return False
        self.open = True
        self.trips += 1
        self._answered = 0
        return True

    def probed(self, answered: bool) -> bool:
        """Takes the outcome of a probe of an open breaker; True when it closes it."""
        self._answered = self._answered + 1 if answered else 0
        if not self.open or self._answered < PROBES:
            return False
        self.open = False
        self._seconds.clear()
        return True
