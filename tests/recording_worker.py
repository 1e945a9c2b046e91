"""A media worker as a process of its own whose every call is recorded: something to kill.

python -m tests.recording_worker DIRECTORY APP_URL
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import uvloop

from audiosocket.callspec import CallSpec
from audiosocket.recording.recordings import RecordingOptions
from audiosocket.runtime.process import StopSignal
from audiosocket.worker import Worker, WorkerOptions
from tests.worker_rig import AnnouncedCalls, until


class AnyCall(AnnouncedCalls):
    """Every leg is a call to the one application; its call sid is the leg's UUID without dashes."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url

    async def take(self, leg_uuid: str, peer: str) -> CallSpec:
        spec = self.announce_call(url=self.url, call_sid=leg_uuid.replace("-", ""), recording=True)
        return self.specs.pop(spec.leg_uuid)


async def main(directory: Path, url: str) -> None:
    """Serves until it is stopped; says `port N` once it listens."""
    recordings = RecordingOptions(directory, min_free_mb=0)
    worker = Worker(WorkerOptions("test/1", "test", "127.0.0.1", 0, "127.0.0.1", recordings=recordings), AnyCall(url))
    running = asyncio.create_task(worker.run(StopSignal()))
    await until(lambda: worker.port or running.done(), "worker listening")
    print(f"port {worker.port}", flush=True)
    await running


if __name__ == "__main__":
    uvloop.run(main(Path(sys.argv[1]), sys.argv[2]))
