"""The right to be the active controller of a PBX node: a lock on a file in `state_dir`, which is the holder's until it
dies.

Several controllers of one node may run on its host. One holds the lock and is active, the others stand by. The lock is
the kernel's (flock(2)): it ends with its holder, however that ends, and never before. So at no time are two active, and
nothing has to expire: after a `kill -9` the next one has it at its next look.

A holder that lives but does not work (stopped, or its event loop stuck) would keep it for ever. Therefore its loop
writes a beat into the file every `BEAT_SECONDS`; who stands by and sees none for `STALE_SECONDS` ends the holder with
SIGKILL, by a process id that is known to be the same process still, and the kernel gives the lock away. That is the
fencing: what was a holder cannot do anything any more, and no other service is needed for it.

Hence a holder that finds that it has not beaten for long (it was frozen, and thaws) simply goes on. It cannot have lost
the lock, because only its death releases it: that it runs is the proof.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import time
from pathlib import Path

import msgspec
import structlog

from ari_app.domain.pulse import BEAT_SECONDS, Pulse
from ari_app.errors import ConfigError, TrunkbridgeError
from audiosocket.runtime.stores import RunningProcess, started_ticks

POLL_SECONDS = 0.1
"""How often who stands by tries the lock, and looks at the holder's beats."""
_RECORD_BYTES = 256
_PROBE_OFFSET = 1023
"""Where who stands by writes a byte to learn whether the disk does: far behind the record."""
NETWORK_FILE_SYSTEMS = ("nfs", "nfs4", "cifs", "smb3", "ceph", "glusterfs", "fuse.sshfs", "fuse.glusterfs")
"""Where a lock is not known to end with its holder, or a beat to be seen at once."""

log = structlog.get_logger(__name__)


class Holder(msgspec.Struct, frozen=True):
    """What the file holds."""

    process: RunningProcess
    beats: int


class LockLost(TrunkbridgeError):
    """Somebody removed the lock's file: another controller may take a new one."""


class HostLock:
    """The lock of one node on this host. `take` it, `keep` it, `release` it."""

    def __init__(self, state_dir: Path, node: str) -> None:
        """Opens the file, which is made when there is none. Raises `ConfigError`."""
        self.path = state_dir / f"controller-{node}.lock"
        self._beats = 0
        self._me = RunningProcess(os.getpid(), started_ticks(os.getpid()) or 0)
        self._pulse = Pulse()
        self.standing_by = False
        """Whether another process is the active one."""
        try:
            state_dir.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError(
                f"state_dir: {self.path}: {error.strerror}: the controller keeps its lock there: make it writable for"
                " the user that it runs as"
            ) from None
        kind = file_system(self._file)
        if kind in NETWORK_FILE_SYSTEMS:
            os.close(self._file)
            raise ConfigError(
                f"state_dir: {state_dir} is on {kind}: the controller's lock needs a disk of this machine, or a tmpfs"
            )

    async def take(self) -> None:
        """Returns when this process is the active one; a holder that does not beat is ended. Raises `ConfigError`."""
        waited = False
        while not self._try():
            if not waited:
                waited = self.standing_by = True
                holder = self._read()
                log.info("controller_standing_by", active=holder.process.pid if holder else None, lock=str(self.path))
            self._watch()
            await asyncio.sleep(POLL_SECONDS)
        self._write()
        self.standing_by = False
        log.info("controller_active", lock=str(self.path), waited=waited)

    async def keep(self) -> None:
        """Beats, for ever. Raises `LockLost`."""
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            self._write()
            self._check()

    def release(self) -> None:
        """Gives the lock to whoever stands by, or just closes the file: nothing may be done as a holder any more.
        Harmless when repeated."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _try(self) -> bool:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            raise ConfigError(f"state_dir: {self.path} cannot be locked: {error.strerror}: use a local disk") from None
        return True

    def _write(self) -> None:
        self._beats += 1
        payload = msgspec.json.encode(Holder(self._me, self._beats)).ljust(_RECORD_BYTES)
        try:
            os.pwrite(self._file, payload, 0)
        except OSError as error:
            # The lock is ours all the same; who stands by cannot write there either, and leaves us alone.
            log.error("lock_not_written", lock=str(self.path), why=error.strerror)

    def _read(self) -> Holder | None:
        try:
            return msgspec.json.decode(os.pread(self._file, _RECORD_BYTES, 0), type=Holder)
        except (msgspec.MsgspecError, OSError):
            return None  # of a holder that has only just taken it

    def _check(self) -> None:
        try:
            same = os.path.samestat(os.stat(self.path), os.fstat(self._file))
        except OSError:
            same = False
        if not same:
            raise LockLost("lock_lost", f"{self.path} was removed or replaced under its holder: never do that")

    def _watch(self) -> None:
        holder = self._read()
        if holder is None or not self._pulse.look(holder, time.monotonic(), POLL_SECONDS):
            return
        self._pulse.forget()
        if self._disk_answers():
            _end(holder.process)

    def _disk_answers(self) -> bool:
        """Whether a beat could have been written: where the disk stands still, or takes nothing, none is missed."""
        began = time.monotonic()
        try:
            os.pwrite(self._file, b"\n", _PROBE_OFFSET)
        except OSError as error:
            log.error("lock_not_writable", lock=str(self.path), why=error.strerror)
            return False
        return time.monotonic() - began < POLL_SECONDS


def _end(process: RunningProcess) -> None:
    """SIGKILL to that very process, and to no other that has got its id since."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except OSError:
        return  # it has ended, and its lock with it
    try:
        if started_ticks(process.pid) != process.started_ticks:
            log.error("holder_not_found", pid=process.pid, why="another process has this id: same PID namespace?")
            return
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        log.error("holder_ended", pid=process.pid, why="it holds the lock and does not beat")
    except ProcessLookupError:
        return  # it has ended in this moment
    except PermissionError:
        log.error("holder_not_ended", pid=process.pid, why="not permitted: run all controllers of a node as one user")
    finally:
        os.close(descriptor)


def file_system(descriptor: int) -> str:
    """The kind of file system that an open file is on (`ext4`, `nfs4`); empty when it cannot be told."""
    device = os.fstat(descriptor).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    # proc(5): the third field is the device; after " - " the file system's name.
    return next((line.partition(" - ")[2].split()[0] for line in lines if line.split()[2] == number), "")
