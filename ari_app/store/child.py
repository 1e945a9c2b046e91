"""Run as a program: become another user, end with the parent, then become the given server.

    python child.py PARENT_PID DEATH_SIGNAL UID GID DIRECTORY PROGRAM [ARGUMENT...]

A launcher of its own, rather than `preexec_fn`, because Python code between fork and exec is unsafe in a process with
threads. It imports nothing of the project, so that it starts fast and under any user.

PostgreSQL refuses to run as root, so root's embedded server runs as a system user. That user often cannot reach a
checkout below /root. Instead of opening the parents of the state directory to everyone, for good, the server then
keeps one capability: to search directories and read files. Nobody gains by it: only root can reach its socket.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys

# linux/prctl.h, linux/capability.h
_PR_SET_PDEATHSIG = 1
_PR_SET_KEEPCAPS = 8
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_CAPABILITY_VERSION_3 = 0x20080522
_CAP_DAC_OVERRIDE = 1
_CAP_DAC_READ_SEARCH = 2

UNREACHABLE = 126
"""Exit status when the user cannot reach the program or the directory; the reason is on stderr."""

_libc = ctypes.CDLL(None, use_errno=True)


def _permitted() -> int:
    with open("/proc/self/status", "rb") as status:
        return next(int(line.split()[1], 16) for line in status if line.startswith(b"CapPrm:"))


def _keep_only(mask: int) -> None:
    """Permitted, effective and inheritable capabilities become `mask` (capset(2))."""
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    data = struct.pack("=6I", mask, mask, mask, 0, 0, 0)
    if _libc.capset(header, data) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def _become(uid: int, gid: int, directory: str, program: str) -> None:
    # Python's own library may be out of reach from here on: nothing may be imported after the change of user.
    held = _permitted()
    _libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0)
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    # access(2) asks for the user alone, whatever capabilities are still held.
    if os.access(directory, os.W_OK | os.X_OK) and os.access(program, os.X_OK):
        _keep_only(0)
        return
    for capability in (_CAP_DAC_READ_SEARCH, _CAP_DAC_OVERRIDE):
        if held >> capability & 1:
            _keep_only(1 << capability)
            if _libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, capability, 0, 0) == 0:
                return
    sys.stderr.write(f"uid {uid} cannot reach {directory} or {program}\n")
    sys.exit(UNREACHABLE)


def main(arguments: list[str]) -> None:
    parent, death_signal, uid, gid = (int(text) for text in arguments[:4])
    directory, program = arguments[4:6]
    if uid != os.geteuid():
        _become(uid, gid, directory, program)
    # After the change of user, which clears it. The parent may have died before: then nobody would tell us.
    _libc.prctl(_PR_SET_PDEATHSIG, death_signal, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(0)
    os.umask(0o077)
    os.chdir(directory)
    os.execv(program, arguments[5:])  # noqa: S606 - the whole point: no shell


if __name__ == "__main__":
    main(sys.argv[1:])
