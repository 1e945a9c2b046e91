"""An idle clock beside a measurement: how late a process wakes up that does nothing but sleep.

It runs on the core of what is measured, ahead of every other process where it is allowed to (SCHED_FIFO): then only
the machine itself (a hypervisor that ran somebody else, an interrupt) can make it late, and such a pause is nobody's
fault that is measured here.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from tools.process import Process

PERIOD_SECONDS = 0.002
PAUSE_MS = 5.0
"""From this lateness on it is called a pause."""
_PRIORITY = 1


@dataclass(frozen=True, slots=True)
class Pauses:
    """What the clock saw."""

    count: int
    """Wake-ups that were `PAUSE_MS` late or more."""
    longest_ms: float
    total_ms: float
    """Of all pauses together."""
    ahead_of_all: bool
    """Whether it ran as SCHED_FIFO. If not, it was also late when the core was busy."""


class ReferenceClock:
    """The clock as a process of its own: `start`, `stop`, and `pauses` for what it saw."""

    def __init__(self, folder: Path, core: int | None) -> None:
        argv = [sys.executable, "-m", "tools.bench.reference_clock", *([] if core is None else [str(core)])]
        self._process = Process("reference clock", argv, folder / "reference-clock.log", "ticking", {})

    async def start(self) -> None:
        """Raises `ProcessFailed`."""
        self._process.log_file.unlink(missing_ok=True)
        await self._process.start()

    async def stop(self) -> None:
        """Ends the clock. May be called at any time, and twice."""
        await self._process.stop()

    def pauses(self) -> Pauses:
        """What it saw. To be asked after its end."""
        return Pauses(**json.loads(self._process.text().splitlines()[-1]))


def main(core: int | None) -> None:
    """Tick until SIGTERM, then print what was seen."""
    stopping = False

    def stop(_number: int, _frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, stop)
    if core is not None:
        os.sched_setaffinity(0, {core})
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(_PRIORITY))
        ahead = True
    except PermissionError:
        ahead = False
    print("ticking", flush=True)
    pauses: list[float] = []
    due = time.monotonic()
    while not stopping:
        due += PERIOD_SECONDS
        time.sleep(max(0.0, due - time.monotonic()))
        late_ms = (time.monotonic() - due) * 1000
        if late_ms >= PAUSE_MS:
            pauses.append(late_ms)
            due = time.monotonic()
    seen = {
        "count": len(pauses),
        "longest_ms": max(pauses, default=0.0),
        "total_ms": sum(pauses),
        "ahead_of_all": ahead,
    }
    print(json.dumps(seen), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else None)
