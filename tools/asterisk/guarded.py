"""Becomes another program, one that ends when the process that started it ends, however that happens.

    python -I -S guarded.py PARENT_PID PROGRAM [ARGUMENT...]

A program of its own because what it sets must be set between fork and exec, where a process with threads may run no
Python. The kernel watches the parent's *thread*: whoever starts this does so from a thread that lasts.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Sets the death signal and the descriptor limit, then replaces itself."""
    parent, argv = int(sys.argv[1]), sys.argv[2:]
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    # The parent may have died before the line above took hold.
    if os.getppid() != parent:
        sys.exit(1)
    # Eight descriptors a call: the customary soft limit of 1,024 ends at about 120 calls.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    os.execv(argv[0], argv)  # noqa: S606 - no shell is the point


main()
