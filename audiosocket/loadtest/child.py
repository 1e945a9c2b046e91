"""The worker that a load test starts: `trunkbridge gateway` in a process that ends with the one that started it.

python -m audiosocket.loadtest.child PARENT_PID [GATEWAY OPTION...]
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

from audiosocket.cli import gateway

_PR_SET_PDEATHSIG = 1
"""prctl(2)"""


def main() -> None:
    """Set the death signal, then be a gateway."""
    parent = int(sys.argv[1])
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    # The parent may have died before the line above took hold.
    if os.getppid() != parent:
        sys.exit(1)
    gateway(sys.argv[2:])


if __name__ == "__main__":
    main()
