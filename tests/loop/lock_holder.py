"""A process that takes a host lock and writes down when it has it: argv: folder, name of its log."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path

from ari_app.controller.host_lock import HostLock


async def main() -> None:
    folder, name = Path(sys.argv[1]), sys.argv[2]
    lock = HostLock(folder, "pbx-1")
    story = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(story, b"waits\n")
    await lock.take()
    keeping = asyncio.create_task(lock.keep())
    while not keeping.done():
        os.write(story, f"{os.getpid()} {time.monotonic():.6f}\n".encode())
        await asyncio.sleep(0.005)
    await keeping


asyncio.run(main())
