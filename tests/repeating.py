"""Tests that failed while the machine stood still, or had another test to run, are repeated: they have said nothing.

A virtual machine is halted for half a second or two now and then, with all that runs on it, and for a tenth of a second
more often. Callers then hear gaps, limits pass, workers count as gone: what a test asserts is not so, by no fault of
anybody's. Whether the machine stood still is measured, all the time (see `standstill.py`): a test of these rungs that
failed meanwhile is done again, on fixtures of its own, up to `TRIALS` times. A shorter standstill is enough where the
host counts processor time that it has taken away (steal); steal alone is not.

Two systems under test on two processors get in each other's way too. What fails beside another module's tests is done
again with the machine to itself, and what it does then counts.

One that fails while it has the machine to itself, and the machine runs, has failed, at once. What was repeated is
listed at the end.
"""

from __future__ import annotations

import fcntl
import gc
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from _pytest.runner import runtestprotocol

from tests.standstill import TICK_SECONDS
from tools.process import guarded

RUNGS = ("loop", "store", "asterisk", "multihost")
"""Theirs is the time of other processes, which no test can hold; of the loop rung, where it is not virtual."""
DISTURBED_SECONDS = 0.1
"""So long that a caller can hear it."""
STOLEN_SECONDS = 0.05
"""So long where the host says that it has taken processors away, `STOLEN_SHARE` of one or more on average."""
STOLEN_SHARE = 0.2
TRIALS = 4
REPEATED = "repeated"
"""The property of a report that says why a trial before it did not count."""
LIMIT = pytest.StashKey[Any]()
"""What pytest-timeout holds a test to; each trial has it anew."""


def in_real_time(item: pytest.Item) -> bool:
    """Whether the machine's time is this test's."""
    virtual = item.get_closest_marker("virtual_time")
    return any(item.get_closest_marker(rung) for rung in RUNGS) and (virtual is None or virtual.args == (False,))


def stolen_seconds() -> float:
    """Processor time that the host of this machine has given to others since its start (proc_stat(5): steal)."""
    return int(Path("/proc/stat").read_text().split()[8]) / os.sysconf("SC_CLK_TCK")


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


@contextmanager
def machine(alone: bool) -> Iterator[None]:
    """Beside tests of other processes of this run, or of any run of this checkout, or with none of them.

    The second lock is a turnstile: who waits to be alone is not overtaken by those who would go beside others.
    """
    with Path(__file__).open() as shared, Path(__file__).with_name("standstill.py").open() as turnstile:
        fcntl.flock(turnstile, fcntl.LOCK_EX)
        fcntl.flock(shared, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(turnstile, fcntl.LOCK_UN)
        yield


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
        if not in_real_time(item):
            return None
        self.start()
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        why: list[str] = []
        alone = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) == 1
        hooks = item.config.pluginmanager.hook
        for trial in range(1, TRIALS + 1):
            hooks.pytest_timeout_cancel_timer(item=item)
            with machine(alone):
                if LIMIT in item.stash:
                    hooks.pytest_timeout_set_timer(item=item, settings=item.stash[LIMIT])
                began, stolen = time.monotonic(), stolen_seconds()
                reports = runtestprotocol(item, log=False, nextitem=nextitem)
            failed = next((report for report in reports if report.failed), None)
            if failed is None:
                break
            forget(item)  # what it has left behind is not held against the next one
            stood_still = self.longest(began)
            share = (stolen_seconds() - stolen) / (time.monotonic() - began)
            disturbed = stood_still >= (STOLEN_SECONDS if share > STOLEN_SHARE else DISTURBED_SECONDS)
            if trial == TRIALS or (alone and not disturbed):
                break
            beside = "" if alone else "beside other tests, "
            said = " ".join(failed.longreprtext.strip().splitlines()[-1:])
            crash = getattr(failed.longrepr, "reprcrash", None)
            if crash is not None:
                said += ", " + crash.message.partition("\n")[0]
            why.append(f"{beside}stood still for {stood_still:.2f} s, {share:.2f} processors stolen: {said}")
            alone = True
        reports[-1].user_properties += [(REPEATED, told) for told in why]
        for report in reports:
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def pytest_timeout_set_timer(self, item: pytest.Item, settings: Any) -> None:
        item.stash[LIMIT] = settings

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        found = [
            f"{report.nodeid}: {told}"
            for reports in terminalreporter.stats.values()
            for report in reports
            if isinstance(report, pytest.TestReport)
            for name, told in report.user_properties
            if name == REPEATED
        ]
        if found:
            terminalreporter.section("repeated, for the machine stood still, or was another test's too")
            for line in found:
                terminalreporter.line(line)

    def pytest_sessionfinish(self) -> None:
        if self._process is not None and self._notes is not None:
            self._process.kill()
            self._process.wait()
            self._notes.unlink()
