"""What may be asked of a benchmark; None: its own default."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Options:
    """Options of `python -m tools.bench`; each benchmark reads those that concern it."""

    folder: Path
    """Where logs and results go."""
    seconds: float | None = None
    rate: float | None = None
    """Calls per second."""
    minutes: float | None = None
    calls: tuple[int, ...] = ()
    profile: bool = False
    legs: tuple[str, ...] = ()
    """Kinds of media leg."""
