"""Room for the descriptors of many calls, before they come.

Linux doubles a process' table of descriptors when it is full, and where there are threads it waits until all cores have
seen the new one: 6 to 19 ms at 256, 512, 1,024 and 2,048 descriptors, in which no frame moves.
"""

from __future__ import annotations

import fcntl
import os
import resource

OF_A_CALL = 3
"""Its leg, its application and its recording."""


def make_room(number: int, count: int) -> None:
    """Has the table grow to `count` descriptors, or as many as this process may have; `number` is any that is open."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    os.close(fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, min(count, allowed) - 1))
