"""A media worker by itself, as measurements need it: standalone, with its status endpoint, and on a core of its own.

The process is `python -m tools.bench.standalone PORT STATUS_PORT APPLICATION_URL CAPACITY [PROFILE_FILE]`.
"""

from __future__ import annotations

import cProfile
import sys
from pathlib import Path

import aiohttp
import uvloop
from prometheus_client.parser import text_string_to_metric_families

from audiosocket.callspec import CallSpec, MediaFormat
from audiosocket.runtime import logs
from audiosocket.runtime.process import StopSignal
from audiosocket.sources import StandaloneSource
from audiosocket.worker import Worker, WorkerOptions
from tools.asterisk.local import free_ports
from tools.bench import machine
from tools.process import Process


class StandaloneWorker:
    """The process, seen from outside."""

    def __init__(
        self, folder: Path, url: str, capacity: int, core: int | None = None, profile: Path | None = None
    ) -> None:
        self.port, self._status_port = free_ports(2)
        self._core = core
        argv = [sys.executable, "-m", "tools.bench.standalone", str(self.port), str(self._status_port), url]
        argv += [str(capacity), *([] if profile is None else [str(profile)])]
        self._process = Process("worker", argv, folder / "worker.log", "worker_ready", {})

    @property
    def pid(self) -> int:
        """Process id. Raises `ProcessFailed` when it has ended."""
        return self._process.pid

    async def start(self) -> None:
        """Raises `ProcessFailed`."""
        self._process.log_file.unlink(missing_ok=True)
        await self._process.start()
        if self._core is not None:
            machine.pin(self.pid, self._core)

    async def stop(self) -> None:
        """SIGTERM."""
        await self._process.stop()

    async def counters(self) -> dict[str, float]:
        """Its metrics now, as `name` or `name.label`; without the prefix `trunkbridge_` and the ending `_total`."""
        async with (
            aiohttp.ClientSession() as http,
            http.get(f"http://127.0.0.1:{self._status_port}/metrics") as answer,
        ):
            text = await answer.text()
        found = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                name = sample.name.removeprefix("trunkbridge_").removesuffix("_total")
                found[".".join((name, *sample.labels.values()))] = sample.value
        return found


def difference(before: dict[str, float], after: dict[str, float], prefix: str) -> dict[str, int]:
    """What was added to the counters `prefix.<label>`, by label, zeros left out."""
    return {
        name.removeprefix(prefix + "."): int(value - before.get(name, 0.0))
        for name, value in after.items()
        if name.startswith(prefix + ".") and value > before.get(name, 0.0)
    }


def main(port: int, status_port: int, url: str, capacity: int, profile: str | None) -> None:
    """Run the worker until SIGTERM; with `profile`, under cProfile, whose figures are left in that file."""
    logs.set_up("worker", form="console")
    template = CallSpec(
        call_id="",
        leg_uuid="",
        call_sid="",
        stream_sid="",
        account_sid="bench",
        application="bench",
        url=url,
        caller="+919000000001",
        callee="+918000000001",
        media_format=MediaFormat.ULAW,
        fade_ms=0,  # frames are compared bit by bit
        report_stream="",
        created_at_ms=0,
        expires_at_ms=0,
    )
    options = WorkerOptions(
        worker_id="bench/0",
        node="bench",
        host="127.0.0.1",
        port=port,
        advertise="127.0.0.1",
        status_host="127.0.0.1",
        status_port=status_port,
        capacity=capacity,
        drain_seconds=0,
    )

    async def run() -> None:
        await Worker(options, StandaloneSource(template, accept_any=False)).run(StopSignal())

    if profile is None:
        uvloop.run(run())
        return
    profiler = cProfile.Profile()
    profiler.runcall(uvloop.run, run())
    profiler.dump_stats(profile)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), sys.argv[5] if len(sys.argv) > 5 else None)
