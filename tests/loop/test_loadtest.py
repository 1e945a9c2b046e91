"""`trunkbridge loadtest` as a process, against real workers and ones that misbehave."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from audiosocket import wire
from audiosocket.loadtest import machine
from audiosocket.loadtest.applications import Echo, serve
from audiosocket.loadtest.standalone import StandaloneWorker
from tests.worker_rig import until

pytestmark = [pytest.mark.loop, pytest.mark.timeout(240)]

SMALL = ("--calls", "10", "--rate", "50")


@dataclass
class Ran:
    status: int
    output: str
    report: dict[str, Any]

    @property
    def measured(self) -> dict[str, Any]:
        found = self.report["result"]["measured"][-1]
        assert isinstance(found, dict)
        return found

    @property
    def frames(self) -> dict[str, Any]:
        found = self.measured["frames"]
        assert isinstance(found, dict)
        return found

    def lost(self) -> int:
        return int(self.frames["sent"] - self.frames["returned"] - self.frames["altered"])


async def started(folder: Path, *arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "ari_app.cli.main", "loadtest", *arguments, "--json", str(folder / "report.json")),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )


async def ended(process: asyncio.subprocess.Process, folder: Path) -> Ran:
    async with asyncio.timeout(60):
        output, _ = await process.communicate()
    path = folder / "report.json"
    assert process.returncode is not None
    return Ran(process.returncode, output.decode(), json.loads(path.read_text()) if path.exists() else {})


async def said(process: asyncio.subprocess.Process, beginning: bytes) -> None:
    """Returns once it has printed a line that begins so."""
    assert process.stdout is not None
    async with asyncio.timeout(60):
        while not (await process.stdout.readline()).startswith(beginning):
            pass


async def measuring(process: asyncio.subprocess.Process) -> None:
    """Returns when it has looked at its calls for a second."""
    await said(process, b"steady: ")
    await asyncio.sleep(1.2)


async def loadtest(folder: Path, *arguments: str) -> Ran:
    folder.mkdir(exist_ok=True)
    return await ended(await started(folder, *arguments), folder)


@asynccontextmanager
async def a_worker(folder: Path) -> AsyncIterator[StandaloneWorker]:
    """A worker of ours with an echo behind it."""
    async with serve(Echo) as url:
        worker = StandaloneWorker(folder, url, 50)
        await worker.start()
        try:
            yield worker
        finally:
            await worker.stop()


@asynccontextmanager
async def lossy(port: int, drop_every: int) -> AsyncIterator[str]:
    """Stands before a worker and swallows every so-manieth frame that it plays."""
    carrying: set[asyncio.Task[None]] = set()

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", port)
        to = asyncio.create_task(pass_on(reader, back))
        try:
            number = 0
            while True:
                frame = await there.readexactly(len(wire.SILENCE_FRAME))
                number += 1
                if number % drop_every:
                    writer.write(frame)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            to.cancel()
            await asyncio.gather(to, return_exceptions=True)
            writer.close()
            back.close()

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(4096):
            writer.write(data)
        writer.close()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(carry(reader, writer))
        carrying.add(task)
        task.add_done_callback(carrying.discard)

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in list(carrying):
            task.cancel()
        await asyncio.gather(*carrying, return_exceptions=True)


async def test_steady_on_a_worker_of_its_own(tmp_path: Path) -> None:
    picture = tmp_path / "steady.png"
    ran = await loadtest(tmp_path, "steady", "--start", *SMALL, "--seconds", "2", "--picture", str(picture))
    assert ran.status == 0, ran.output
    assert ran.frames["sent"] == pytest.approx(10 * 2 * 50, rel=0.2)
    assert ran.frames["returned"] > 0.9 * ran.frames["sent"]
    assert 0 < ran.frames["delay"]["p50"] < 2000
    assert ran.measured["worker"]["cores"] > 0
    assert ran.measured["worker"]["rss_mib"] > 20
    assert ran.measured["worker"]["descriptors"] > 20
    # Of two seconds it is known roughly; test_loadtest.py of the unit rung holds it to what it must be.
    assert abs(ran.measured["rate_error_percent"]) < 5
    assert ran.measured["points"][-1]["late_ms"] > 0
    assert ran.report["result"]["calls"] == {
        "attempted": 10,
        "failed": {},
        "ended_early": 0,
        "silent": 0,
        "set_up": None,
    }
    assert "round trip, p50" in ran.output
    with Image.open(picture) as image:
        assert image.format == "PNG"


async def test_ramp_stops_at_a_limit_and_says_what_was_held(tmp_path: Path) -> None:
    most = ("--calls", "10", "--step", "5", "--rate", "50", "--seconds", "1")
    good, bad = await asyncio.gather(
        loadtest(tmp_path / "good", "ramp", "--start", *most, "--max-loss", "90"),
        # An echo cannot be faster than the wait for the next tick.
        loadtest(tmp_path / "bad", "ramp", "--start", *most, "--max-p99-ms", "0.2"),
    )
    assert (good.status, good.report["result"]["capacity"]["held"]) == (0, 10), good.output
    assert [step["calls"] for step in good.report["result"]["steps"]] == [5, 10]
    assert (bad.status, bad.report["result"]["capacity"]["broke"]) == (1, 5), bad.output
    assert "round trip p99" in bad.output


async def test_bursts_are_played_whole_and_slow_applications_counted_apart(tmp_path: Path) -> None:
    burst, slow = await asyncio.gather(
        loadtest(tmp_path / "burst", "burst", "--start", *SMALL, "--seconds", "2.5", "--utterance", "1"),
        loadtest(
            tmp_path / "slow", "slow", "--start", *SMALL, "--seconds", "3", "--slow-percent", "30", "--stall", "1"
        ),
    )
    assert burst.status == 0, burst.output
    # Every two seconds each call is told a second: at least one of them begins while it is measured.
    assert burst.frames["sent"] >= 10 * 50
    assert burst.frames["sent"] % 50 == 0
    assert burst.lost() < 0.1 * burst.frames["sent"]
    assert slow.status == 0, slow.output
    assert (slow.measured["calls"], slow.measured["apart_calls"]) == (7, 3)
    assert slow.measured["apart"]["delay"]["max"] > 700
    assert slow.measured["apart"]["delay"]["p50"] > 2 * slow.frames["delay"]["p50"]


async def test_churn_finds_nothing_left(tmp_path: Path) -> None:
    ran = await loadtest(tmp_path, "churn", "--start", "--rate", "10", "--seconds", "3", "--hold", "0.5")
    assert ran.status == 0, ran.output
    result = ran.report["result"]
    assert result["calls"]["attempted"] == 30
    assert result["calls"]["failed"] == {}
    assert result["calls"]["set_up"]["count"] + result["calls"]["silent"] == 30
    assert result["left"]["sessions"] == 0
    left = result["left"]
    assert left["descriptors_after"] <= left["descriptors_before"] + 5
    assert 0 < left["tasks_after"] <= left["tasks_before"] + 5
    assert left["timers_after"] <= left["timers_before"] + 5
    assert [moment["calls"] for moment in left["moments"]] == list(range(3, 31, 3))
    assert all(moment["rss_mib"] > 20 for moment in left["moments"])
    assert "Left behind: no session, no descriptor, no task, no timer" in " ".join(ran.output.split())


async def test_a_worker_that_drops_frames_is_told_from_one_that_does_not(tmp_path: Path) -> None:
    limits = ("--seconds", "2", "--format", "ulaw", "--app", "ws://127.0.0.1/", "--max-loss", "3")
    async with a_worker(tmp_path) as worker, lossy(worker.port, drop_every=10) as address:
        good, bad = await asyncio.gather(
            loadtest(tmp_path / "good", "steady", "--worker", f"127.0.0.1:{worker.port}", *SMALL, *limits),
            loadtest(tmp_path / "bad", "steady", "--worker", address, *SMALL, *limits),
        )
    assert good.status == 0, good.output
    assert bad.status == 1, bad.output
    assert bad.lost() == pytest.approx(0.1 * bad.frames["sent"], rel=0.3)
    assert "of the frames were lost, over 3 %" in bad.output


async def test_a_worker_that_runs_already_and_two_wrong_ways_to_ask_it(tmp_path: Path) -> None:
    async with a_worker(tmp_path) as worker:
        assert machine.listener(worker.port) == worker.pid
        ours = ("steady", "--worker", f"127.0.0.1:{worker.port}", *SMALL, "--seconds", "1")
        echo = ("--app", "ws://127.0.0.1/")
        found, other_format, other_application = await asyncio.gather(
            loadtest(
                tmp_path / "1", *ours, *echo, "--format", "ulaw", "--status", worker.status, "--max-p99-ms", "5000"
            ),
            loadtest(tmp_path / "2", *ours, *echo, "--format", "slin", "--max-loss", "1"),
            loadtest(tmp_path / "3", *ours, "--listen", "127.0.0.1:19377"),
        )
    assert found.status == 0, found.output
    assert found.measured["worker"]["rss_mib"] > 20
    assert found.report["result"]["late_ticks"] is not None
    assert other_format.status == 1
    assert "does the worker expect --format slin" in " ".join(other_format.output.split())
    assert other_application.status == 1
    assert "start the worker with --app ws://127.0.0.1:19377/" in " ".join(other_application.output.split())


async def test_nobody_there_is_one_clear_line(tmp_path: Path) -> None:
    ran = await loadtest(tmp_path, "steady", "--worker", "127.0.0.1:9", "--app", "ws://127.0.0.1/", *SMALL)
    assert ran.status == 1
    assert "Error: the worker takes no connection" in ran.output
    assert "Traceback" not in ran.output


async def test_a_worker_that_dies_under_the_load_is_a_broken_limit(tmp_path: Path) -> None:
    async with a_worker(tmp_path) as worker:
        process = await started(
            tmp_path,
            *("steady", "--worker", f"127.0.0.1:{worker.port}", "--status", worker.status, "--format", "ulaw"),
            *("--app", "ws://127.0.0.1/", *SMALL, "--seconds", "3", "--max-loss", "50"),
        )
        await measuring(process)
        os.kill(worker.pid, signal.SIGKILL)
        ran = await ended(process, tmp_path)
    assert ran.status == 1, ran.output
    assert "10 calls failed or ended early" in ran.output
    assert "it has ended" in ran.output


async def test_ctrl_c_stops_the_worker_and_tells_what_was_seen(tmp_path: Path) -> None:
    process = await started(tmp_path, "steady", "--start", *SMALL, "--minutes", "10")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    pids = await until(lambda: [int(pid) for pid in children.read_text().split()], "its worker")
    await measuring(process)
    process.send_signal(signal.SIGINT)
    ran = await ended(process, tmp_path)
    assert ran.status == 130, ran.output
    assert "stopped early" in ran.output
    assert ran.frames["returned"] > 0
    await until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "end of its worker")


async def test_a_killed_load_test_takes_its_worker_along(tmp_path: Path) -> None:
    process = await started(tmp_path, "steady", "--start", *SMALL, "--minutes", "10")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    (pid,) = await until(lambda: [int(pid) for pid in children.read_text().split()], "its worker")
    await said(process, b"setting up")  # its worker takes calls
    process.kill()
    await process.wait()
    await until(lambda: not Path(f"/proc/{pid}").exists() or "Z" in machine_state(pid), "end of its worker")


def machine_state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"
