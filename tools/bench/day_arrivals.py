"""A day's calls as a survey campaign makes them: when they come, how long they take, whose they are. No IO."""

from __future__ import annotations

import math
import random
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

DAY_SECONDS = 86_400
_HUMPS = ((11.0, 1.3, 1.0), (17.5, 1.6, 1.15))
"""Hour of the day, width in hours, weight: people are called before lunch and after work."""
_OPENS, _CLOSES = 9.0, 21.0
"""Regulators allow calls between these hours."""
_AT_NIGHT = 0.004
"""Weight of the calls that come in while none go out."""
QUICK_SHARE = 0.4
"""Of the calls, those that end within seconds: no time, wrong number, voicemail."""
QUICK_SECONDS = 15.0
TALK_SECONDS = 170.0
LONGEST_SECONDS = 900


@dataclass(frozen=True, slots=True)
class Arrival:
    """One call."""

    call_id: str
    second: int
    """Of the day."""
    seconds: int
    """Its length."""
    application: str
    inbound: bool


def weight(hour: float) -> float:
    """How many calls come at an hour of the day, as compared with other hours."""
    if not _OPENS <= hour < _CLOSES:
        return _AT_NIGHT
    return _AT_NIGHT + sum(height * math.exp(-(((hour - middle) / width) ** 2) / 2) for middle, width, height in _HUMPS)


def arrivals(calls: int, seed: int, first_hour: float = 0.0, last_hour: float = 24.0) -> Iterator[Arrival]:
    """So many calls between two hours of a day, in order; the same for the same seed."""
    chance = random.Random(seed)
    first, last = int(first_hour * 3600), int(last_hour * 3600)
    summed = list(accumulate(weight(second / 3600) for second in range(first, last)))
    seconds = sorted(first + bisect_left(summed, chance.random() * summed[-1]) for _ in range(calls))
    for number, second in enumerate(seconds):
        kind = chance.random()
        inbound = not _OPENS * 3600 <= second < _CLOSES * 3600 or kind < 0.1
        application = "support" if inbound else "collections" if kind < 0.35 else "survey"
        if chance.random() < QUICK_SHARE:
            length = chance.expovariate(1 / QUICK_SECONDS)
        else:
            length = chance.gammavariate(2.0, TALK_SECONDS / 2)
        yield Arrival(f"call-{number:06}", second, 2 + min(LONGEST_SECONDS, int(length)), application, inbound)
