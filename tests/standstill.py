"""Writes down when this machine stood still: a program of its own, with a thread on each processor.

    python -I -S standstill.py FILE

Each line of the file is a time in which a processor ran nothing: two monotonic times. What keeps only one process busy
is none of the machine's and is not in it.
"""

from __future__ import annotations

import os
import sys
import threading
import time

TICK_SECONDS = 0.01
NOTED_SECONDS = 0.05
"""A processor that is merely full keeps a thread that sleeps most of the time waiting for less."""


def watch(processor: int, notes: int) -> None:
    os.sched_setaffinity(0, {processor})
    before = time.monotonic()
    while True:
        time.sleep(TICK_SECONDS)
        now = time.monotonic()
        if now - before > NOTED_SECONDS:
            os.write(notes, f"{before} {now}\n".encode())  # in one piece, whoever else writes
        before = now


if __name__ == "__main__":
    file = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    for number in os.sched_getaffinity(0):
        threading.Thread(target=watch, args=(number, file)).start()
