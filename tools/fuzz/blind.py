"""python -m tools.fuzz.blind TARGET RUNS LAST FOLDER...: one target with changed inputs of folders, led by nothing.

It is for a process in which a sanitizer watches over compiled code, which atheris cannot lead. Such a process is ended
on the spot: the input that it is at is always in the file LAST, which goes when all was good.
"""

from __future__ import annotations

import logging
import os
import random
import sys
import time
from pathlib import Path

import structlog

from tools.fuzz.targets import TARGETS

_MOST_CHANGES = 6


def varied(inputs: list[bytes], chance: random.Random) -> bytes:
    """One of `inputs` with some bytes changed, left out, put in between, or with the end of another one."""
    data = bytearray(chance.choice(inputs))
    for _ in range(chance.randrange(_MOST_CHANGES)):
        at = chance.randrange(len(data) + 1)
        if chance.random() < 0.1:
            other = chance.choice(inputs)
            data[at:] = other[chance.randrange(len(other) + 1) :]
        else:
            data[at : at + chance.randrange(4)] = chance.randbytes(chance.randrange(5))
    return bytes(data)


def main() -> None:
    """Raises what the target raises."""
    name, runs, last, *folders = sys.argv[1:]
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    logging.disable(logging.CRITICAL)
    inputs = [file.read_bytes() for folder in folders for file in sorted(Path(folder).iterdir())] or [b""]
    seed = time.time_ns()
    chance = random.Random(seed)
    print(f"{len(inputs)} inputs, seed {seed}", flush=True)
    run = TARGETS[name].run
    file = os.open(last, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for number in range(int(runs)):
        data = inputs[number] if number < len(inputs) else varied(inputs, chance)
        os.pwrite(file, data, 0)
        os.ftruncate(file, len(data))
        run(data)
    os.unlink(last)


if __name__ == "__main__":
    main()
