"""One supervised child process: its own log file, a sign that it is ready, and an end that is certain.

A child ends with its parent, however the parent ends (PR_SET_PDEATHSIG, set by `asterisk/guarded.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from pathlib import Path

START_SECONDS = 60.0
STOP_SECONDS = 30.0
_GUARDED = Path(__file__).with_name("asterisk") / "guarded.py"
_TAIL_LINES = 15


def guarded(*argv: str) -> tuple[str, ...]:
    """The command that becomes `argv` (an absolute path first) as a child that ends when this process does."""
    return (sys.executable, "-I", "-S", str(_GUARDED), str(os.getpid()), *argv)


def send_signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    """Signals a child that may just have ended. asyncio's own way would take its exit status away from who waits."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, number)


class ProcessFailed(Exception):
    """A process did not start, did not become ready, or ended by itself; the text ends with its log's tail."""


class Process:
    """A child; `start` returns when `ready` has appeared in its output, `stop` when it has ended."""

    def __init__(self, name: str, argv: list[str], log_file: Path, ready: str, environment: dict[str, str]) -> None:
        self.name = name
        self.log_file = log_file
        self._argv = argv
        self._ready = ready
        self._environment = environment
        self._process: asyncio.subprocess.Process | None = None
        self._log_start = 0
        """Size of the log file, which former runs wrote to as well, at the start of this one."""

    @property
    def pid(self) -> int:
        """Process id. Raises `ProcessFailed` when it does not run."""
        if not self.running:
            raise self.failure("does not run")
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.returncode is None

    async def start(self, seconds: float = START_SECONDS) -> None:
        """Starts the process and waits for its sign of readiness. Raises `ProcessFailed`."""
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        self._log_start = self.log_file.stat().st_size if self.log_file.exists() else 0
        with self.log_file.open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                *guarded(*self._argv),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=os.environ | {"PYTHONUNBUFFERED": "1"} | self._environment,
                # A Ctrl-C at the terminal is for the supervisor, which then stops its children in order.
                start_new_session=True,
            )
        deadline = time.monotonic() + seconds
        while True:
            if self._ready in self._text_of_this_run():
                return
            if not self.running:
                raise self.failure(f"ended with status {self._process.returncode}")
            if time.monotonic() > deadline:
                await self.stop()
                raise self.failure(f"was not ready within {seconds:g} s")
            await asyncio.sleep(0.02)

    def send_signal(self, number: signal.Signals) -> None:
        """Sends a signal to the process. Raises `ProcessFailed` when it does not run."""
        os.kill(self.pid, number)

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL for a process that does not end in time."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        send_signal(process, signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await process.wait()
        except TimeoutError:
            send_signal(process, signal.SIGKILL)
            await process.wait()

    async def kill(self) -> None:
        """Ends the process at once, as a crash would."""
        if self._process is not None and self.running:
            send_signal(self._process, signal.SIGKILL)
            await self._process.wait()

    def text(self) -> str:
        """All that it has written."""
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def cpu_seconds(self) -> float:
        """Processor time used so far."""
        with open(f"/proc/{self.pid}/stat", encoding="utf-8") as stat:
            fields = stat.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def failure(self, what: str) -> ProcessFailed:
        """The error that this process `what`, with the end of its log."""
        tail = "\n".join(self._text_of_this_run().splitlines()[-_TAIL_LINES:])
        return ProcessFailed(f"{self.name} {what}; the end of {self.log_file}:\n{tail}")

    def _text_of_this_run(self) -> str:
        if not self.log_file.exists():
            return ""
        with self.log_file.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode(errors="replace")
