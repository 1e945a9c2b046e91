"""The ramp: how many calls next, and what was found. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Step:
    """One number of calls, measured."""

    calls: int
    broken: tuple[str, ...]
    """Which limits it broke, in words."""
    own_limit: str = ""
    """Why the measuring side itself may have been what was measured; empty: it was not."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a ramp found."""

    held: int
    """The most calls at which every limit was kept; 0: none."""
    broke: int | None
    """The first number of calls at which one was not, twice; None: never."""
    why: tuple[str, ...] = ()
    own_limit: str = ""


def next_calls(steps: Sequence[Step], by: int, most: int) -> int | None:
    """How many calls the next step has; None: it is known.

    A step that breaks a limit is measured once more: what a neighbour on the machine does for a second is no limit.
    """
    if not steps:
        return min(by, most)
    last = steps[-1]
    if last.broken:
        again = len(steps) > 1 and steps[-2].calls == last.calls
        return None if again else last.calls
    return min(last.calls + by, most) if last.calls < most else None


def capacity(steps: Sequence[Step]) -> Capacity:
    """What the steps so far tell."""
    held = max((step.calls for step in steps if not step.broken), default=0)
    last = steps[-1] if steps else Step(0, ())
    if not last.broken or len(steps) < 2 or steps[-2].calls != last.calls:
        return Capacity(held, None)
    return Capacity(held, last.calls, last.broken, last.own_limit or steps[-2].own_limit)
