"""Tests that failed while the machine stood still are repeated: they have said nothing.

A virtual machine is halted for half a second or two now and then, with all that runs on it. Callers then hear gaps,
limits pass, workers count as gone: what a test asserts is not so, by no fault of anybody's. Whether the machine stood
still is measured, all the time (see `standstill.py`): a test of these rungs that failed meanwhile is done again, on
fixtures of its own, up to `TRIALS` times. So is one that has to have the machine for itself (`alone`) where others, or
the host under it, took processors away. One that fails while the machine runs, and runs for us, has failed, at once.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from _pytest.runner import runtestprotocol

from tests.standstill import TICK_SECONDS
from tools.process import guarded

RUNGS = ("store", "asterisk")
"""Theirs is the time of other processes, which no test can hold."""
DISTURBED_SECONDS = 0.1
"""So long that a caller can hear it."""
OTHERS_SHARE = 0.15
"""Of one processor: what a machine does by itself is a tenth of it."""
TRIALS = 5
LIMIT = pytest.StashKey[Any]()
"""What pytest-timeout holds a test to; each trial has it anew."""


def busy_seconds() -> float:
    """Processor time that this machine has used, or its host has taken away (proc_stat(5): steal), since its start."""
    user, nice, system, _idle, _iowait, irq, softirq, steal, *_ = map(int, Path("/proc/stat").read_text().split()[1:11])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def own_seconds() -> float:
    """Processor time of this process and of all that it has started and seen end."""
    return sum(os.times()[:4])


def forget(item: pytest.Item) -> None:
    """Ends all fixtures, for what a module's tests share may have suffered too, and lets go of what the test has left
    open: found later, that would be held against whoever is at work then."""
    pytest.CallInfo.from_call(lambda: item.session._setupstate.teardown_exact(None), "teardown")
    for name in ("last_type", "last_value", "last_traceback", "last_exc"):
        if hasattr(sys, name):
            delattr(sys, name)
    told, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        gc.collect()
    finally:
        sys.unraisablehook = told


class Watch:
    """A plugin of pytest's: it notes when the machine stands still, and repeats what failed then."""

    def __init__(self) -> None:
        self._notes: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        if self._process is None:
            notes, name = tempfile.mkstemp(prefix="trunkbridge-standstill-")
            os.close(notes)
            self._notes = Path(name)
            argv = guarded(sys.executable, "-I", "-S", str(Path(__file__).with_name("standstill.py")), str(self._notes))
            self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, start_new_session=True)

    def longest(self, since: float) -> float:
        """The longest that the machine stood still since this monotonic time, in seconds."""
        time.sleep(3 * TICK_SECONDS)  # it may have gone on just now
        assert self._process is not None
        assert self._notes is not None
        assert self._process.poll() is None, "nobody watches whether the machine stands still"
        spans = [tuple(map(float, line.split())) for line in self._notes.read_text().splitlines()]
        return max((ended - began for began, ended in spans if ended > since), default=0.0)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
        if not any(item.get_closest_marker(rung) for rung in RUNGS):
            return None
        self.start()
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for trial in range(1, TRIALS + 1):
            began, others = time.monotonic(), busy_seconds() - own_seconds()
            reports = runtestprotocol(item, log=False, nextitem=nextitem)
            if trial == TRIALS or not any(report.failed for report in reports):
                break
            stood_still = self.longest(began)
            others = (busy_seconds() - own_seconds() - others) / (time.monotonic() - began)
            crowded = item.get_closest_marker("alone") is not None and others > OTHERS_SHARE
            if stood_still < DISTURBED_SECONDS and not crowded:
                break
            failed = next(report for report in reports if report.failed)
            said = str(failed.longrepr).strip().splitlines()[-1:]
            print(
                f"{item.nodeid}: again, the machine stood still for {stood_still:.1f} s, others had {others:.1f}"
                f" processors: {said}",
                file=sys.stderr,
            )
            forget(item)
            hooks = item.config.pluginmanager.hook
            hooks.pytest_timeout_cancel_timer(item=item)
            hooks.pytest_timeout_set_timer(item=item, settings=item.stash[LIMIT])
        for report in reports:
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def pytest_timeout_set_timer(self, item: pytest.Item, settings: Any) -> None:
        item.stash[LIMIT] = settings

    def pytest_sessionfinish(self) -> None:
        if self._process is not None and self._notes is not None:
            self._process.kill()
            self._process.wait()
            self._notes.unlink()
