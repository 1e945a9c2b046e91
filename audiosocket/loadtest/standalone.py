"""A media worker by itself, as measurements need it: standalone, with its status endpoint, and on a core of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from audiosocket.errors import Unavailable
from audiosocket.loadtest import machine

START_SECONDS = 30.0
STOP_SECONDS = 15.0
ASK_SECONDS = 5.0
_TAIL_LINES = 15


class StandaloneWorker:
    """`trunkbridge gateway --listen ...` as a child process. It ends with this process, however that ends."""

    def __init__(
        self,
        folder: Path,
        url: str,
        capacity: int,
        core: int | None = None,
        profile: Path | None = None,
        more: Sequence[str] = ("--format", "ulaw", "--fade-ms", "0"),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """`core`: pin it there. `profile`: run it under cProfile, whose figures are left in that file. `more`: options
        of the gateway; those that stand there let frames be compared bit by bit. `environment`: added to ours."""
        self.port, self._status_port = _free_ports()
        self.status = f"127.0.0.1:{self._status_port}"
        """Where its status is served."""
        self._log = folder / "worker.log"
        self._core = core
        self._argv = [sys.executable, *(["-m", "cProfile", "-o", str(profile)] if profile else [])]
        self._argv += ["-m", "audiosocket.loadtest.child", str(os.getpid())]
        self._argv += ["--listen", f"127.0.0.1:{self.port}", "--status", self.status, "--app", url]
        self._argv += ["--capacity", str(capacity), "--accept-any", *more]
        self._environment = os.environ | {"PYTHONUNBUFFERED": "1"} | dict(environment or {})
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        """Process id. Raises `Unavailable` when it does not run."""
        if self._process is None or self._process.returncode is not None:
            raise self._failure("does not run")
        return self._process.pid

    async def start(self) -> None:
        """Returns when it takes calls. Raises `Unavailable`."""
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("wb") as output:
            self._process = await asyncio.create_subprocess_exec(
                *self._argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self._environment,
                # A Ctrl-C at the terminal is for us, who then stop it in order.
                start_new_session=True,
            )
        deadline = time.monotonic() + START_SECONDS
        while b"worker_ready" not in self._log.read_bytes():
            if self._process.returncode is not None or time.monotonic() > deadline:
                await self.stop()
                raise self._failure("did not start")
            await asyncio.sleep(0.02)
        if self._core is not None:
            with contextlib.suppress(OSError):  # not everybody may; `machine` shows whether others were in the way
                machine.pin(self.pid, self._core)

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL for one that does not end in time. May be called twice."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_SECONDS):
                    await process.wait()
                    return

    async def counters(self) -> dict[str, float]:
        """Its metrics now, see `counters`. Raises `Unavailable`."""
        return await counters(self.status)

    def _failure(self, what: str) -> Unavailable:
        text = self._log.read_text(errors="replace") if self._log.exists() else ""
        tail = "\n".join(text.splitlines()[-_TAIL_LINES:])
        return Unavailable(f"the worker {what}; the end of its log:\n{tail}")


async def held(status: str) -> tuple[int | None, int | None]:
    """asyncio's tasks and timers on the worker whose status is served at HOST:PORT; None: one that does not tell.
    Raises `Unavailable`."""
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=ASK_SECONDS)) as http,
            http.get(f"http://{status}/held") as answer,
        ):
            if answer.status == 404:
                return None, None
            answer.raise_for_status()
            found = await answer.json()
        return int(sum(found["tasks"].values())), int(found["timers"])
    except (aiohttp.ClientError, TimeoutError, ValueError, KeyError) as error:
        raise Unavailable(f"http://{status}/held: {error or type(error).__name__}: is it a worker's?") from None


async def counters(status: str) -> dict[str, float]:
    """The metrics of the worker whose status is served at HOST:PORT, as `name` or `name.label`; without the prefix
    `trunkbridge_` and the ending `_total`. Raises `Unavailable`."""
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=ASK_SECONDS)) as http,
            http.get(f"http://{status}/metrics") as answer,
        ):
            answer.raise_for_status()
            text = await answer.text()
        families = list(text_string_to_metric_families(text))
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        raise Unavailable(f"http://{status}/metrics: {error or type(error).__name__}: is it a worker's?") from None
    found = {}
    for family in families:
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


def _free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1]), int(other.getsockname()[1])
