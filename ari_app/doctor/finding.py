"""What the doctor finds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Level = Literal["good", "warning", "bad"]


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one check."""

    check: str
    """What was looked at: `asterisk modules`."""
    level: Level
    """`bad`: calls fail; `warning`: they may under load, or later."""
    found: str
    remedy: str = ""
    """What to do; of what is good, nothing."""


def good(check: str, found: str) -> Finding:
    """Nothing to do."""
    return Finding(check, "good", found)


def warning(check: str, found: str, remedy: str) -> Finding:
    """Something to do before long."""
    return Finding(check, "warning", found, remedy)


def bad(check: str, found: str, remedy: str) -> Finding:
    """Something to do now."""
    return Finding(check, "bad", found, remedy)


def in_words(findings: Iterable[Finding]) -> str:
    """How many there are of each."""
    levels = [finding.level for finding in findings]
    return f"{levels.count('good')} good, {levels.count('warning')} warnings, {levels.count('bad')} bad"
