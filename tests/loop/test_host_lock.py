"""One controller of a node is active, never two: whoever is killed, frozen or thawed, and however many stand by."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
import pytest_asyncio
import structlog

from ari_app.controller import host_lock as host_lock_module
from ari_app.controller.host_lock import Holder, HostLock, LockLost
from ari_app.errors import ConfigError
from audiosocket.runtime.stores import RunningProcess, started_ticks
from tests.worker_rig import until

pytestmark = pytest.mark.loop

CANDIDATES = 5
ROUNDS = 20


@dataclass
class Candidates:
    """Processes that want one lock."""

    folder: Path
    processes: dict[str, asyncio.subprocess.Process] = field(default_factory=dict)

    async def start(self, name: str) -> None:
        self.processes[name] = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.loop.lock_holder", str(self.folder), name
        )

    def held(self, name: str) -> list[tuple[int, float]]:
        """When a process was the holder: its id, and monotonic times."""
        path = self.folder / name
        lines = path.read_text().splitlines() if path.exists() else []
        return [(int(line.split()[0]), float(line.split()[1])) for line in lines if line.count(" ") == 1]

    def holders(self) -> list[str]:
        """Who has the lock, among those that live."""
        return [name for name, process in self.processes.items() if process.returncode is None and self.held(name)]

    async def one(self, seconds: float = 60) -> str:
        """Waits for a holder."""
        await until(self.holders, "a holder", seconds)
        (name,) = self.holders()
        return name

    async def kill(self, name: str) -> float:
        process = self.processes[name]
        process.kill()
        await process.wait()
        return time.monotonic()


@pytest_asyncio.fixture
async def candidates(tmp_path: Path) -> AsyncIterator[Candidates]:
    found = Candidates(tmp_path)
    yield found
    for process in found.processes.values():
        if process.returncode is None:
            os.kill(process.pid, signal.SIGKILL)
            await process.wait()


@pytest.mark.timeout(600)
async def test_five_at_once_and_always_one_wins(candidates: Candidates) -> None:
    await asyncio.gather(*(candidates.start(f"c{number}") for number in range(CANDIDATES)))
    gaps = []
    for number in range(CANDIDATES, CANDIDATES + ROUNDS):
        holder = await candidates.one()
        killed = await candidates.kill(holder)
        await candidates.start(f"c{number}")  # in the middle of the others' race
        following = await candidates.one()
        gaps.append(candidates.held(following)[0][1] - killed)
    await candidates.kill(await candidates.one())
    # What each wrote while it believed itself the holder: no two spans overlap.
    spans = sorted(
        (times[0][1], times[-1][1], name) for name in candidates.processes if len(times := candidates.held(name))
    )
    assert len(spans) == ROUNDS + 1
    for (_, ended, before), (began, _, after) in pairwise(spans):
        assert ended < began, f"{before} and {after} were active at once"
    # At once: a look every tenth of a second, and what the machine takes to run it.
    assert sorted(gaps)[len(gaps) // 2] < 0.5, gaps


@pytest.mark.timeout(300)
async def test_a_frozen_holder_is_ended_and_its_place_taken(candidates: Candidates) -> None:
    await candidates.start("first")
    await until(lambda: candidates.held("first"), "the first", 60)
    await candidates.start("second")
    await until((candidates.folder / "second").exists, "the second", 60)
    await asyncio.sleep(1)
    assert candidates.holders() == ["first"], "one that beats is left alone"
    os.kill(candidates.processes["first"].pid, signal.SIGSTOP)
    frozen = time.monotonic()
    async with asyncio.timeout(60):
        assert await candidates.processes["first"].wait() == -signal.SIGKILL
    await until(lambda: candidates.held("second"), "the second", 60)
    took_over = candidates.held("second")[0][1]
    assert candidates.held("first")[-1][1] < took_over
    assert 1.4 < took_over - frozen < 3


@pytest.mark.timeout(300)
async def test_a_holder_that_thaws_in_time_goes_on(candidates: Candidates) -> None:
    await candidates.start("first")
    await until(lambda: candidates.held("first"), "the first", 60)
    await candidates.start("second")
    await until((candidates.folder / "second").exists, "the second", 60)
    pid = candidates.processes["first"].pid
    for _ in range(3):
        os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(1)
        os.kill(pid, signal.SIGCONT)
        await asyncio.sleep(1)
    assert candidates.holders() == ["first"]


# In this process


@pytest.fixture(autouse=True)
def plain() -> None:
    structlog.configure(processors=[structlog.processors.KeyValueRenderer()])


async def taken(lock: HostLock) -> None:
    async with asyncio.timeout(5):
        await lock.take()


async def test_a_released_lock_is_the_next_ones(tmp_path: Path) -> None:
    first, second = HostLock(tmp_path / "state", "pbx-1"), HostLock(tmp_path / "state", "pbx-1")
    await taken(first)
    taking = asyncio.create_task(taken(second))
    await until(lambda: second.standing_by, "standing by")
    first.release()
    first.release()
    await taking
    assert not second.standing_by
    third = HostLock(tmp_path / "state", "pbx-2")
    await taken(third)  # another node's
    third.release()
    second.release()


async def test_a_holder_whose_file_is_removed_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_lock_module, "BEAT_SECONDS", 0.01)
    lock = HostLock(tmp_path, "pbx-1")
    await taken(lock)
    keeping = asyncio.create_task(lock.keep())
    await asyncio.sleep(0.05)
    assert not keeping.done()
    lock.path.unlink()
    lock.path.touch()
    with pytest.raises(LockLost, match="removed or replaced"):
        async with asyncio.timeout(5):
            await keeping
    lock.release()


async def test_only_the_process_that_took_it_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record may name a process id that another process has now: nobody is ended by its number alone."""
    innocent = await asyncio.create_subprocess_exec("sleep", "60")
    try:
        holder, waiting = HostLock(tmp_path, "pbx-1"), HostLock(tmp_path, "pbx-1")
        await taken(holder)
        ticks = started_ticks(innocent.pid)
        assert ticks is not None
        named = Holder(RunningProcess(innocent.pid, ticks + 1), 7)
        holder.path.write_bytes(msgspec.json.encode(named).ljust(256))
        clock = iter(range(1000))
        monkeypatch.setattr(host_lock_module, "time", SimpleNamespace(monotonic=lambda: next(clock) / 10))
        for _ in range(100):
            waiting._watch()
        await asyncio.sleep(0.1)
        assert innocent.returncode is None
        # And with the right one it is.
        named = Holder(RunningProcess(innocent.pid, ticks), 7)
        holder.path.write_bytes(msgspec.json.encode(named).ljust(256))
        monkeypatch.setattr(waiting, "_disk_answers", lambda: False)
        for _ in range(100):
            waiting._watch()  # where the disk stands still, no beat is missed
        monkeypatch.setattr(waiting, "_disk_answers", lambda: True)
        for _ in range(30):
            waiting._watch()
        monkeypatch.undo()
        async with asyncio.timeout(5):
            assert await innocent.wait() == -signal.SIGKILL
        holder.release()
        waiting.release()
    finally:
        if innocent.returncode is None:
            innocent.kill()


def test_a_holder_that_ends_by_itself_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is gone and reaped before the signal reaches it: whoever stands by goes on."""
    frozen = subprocess.Popen(["sleep", "60"])
    ticks = started_ticks(frozen.pid)
    assert ticks is not None

    def reaped(pid: int) -> int | None:
        assert pid == frozen.pid
        frozen.kill()
        frozen.wait()
        return ticks

    monkeypatch.setattr(host_lock_module, "started_ticks", reaped)
    host_lock_module._end(RunningProcess(frozen.pid, ticks))
    assert frozen.returncode == -signal.SIGKILL
    monkeypatch.undo()
    host_lock_module._end(RunningProcess(frozen.pid, ticks))


@pytest.mark.parametrize("content", [b"", b"\0" * 256, b"no json", b'{"process": 1}'])
async def test_a_file_with_something_else_in_it(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "controller-pbx-1.lock").write_bytes(content)
    first, second = HostLock(tmp_path, "pbx-1"), HostLock(tmp_path, "pbx-1")
    await taken(first)
    first.path.write_bytes(content)
    for _ in range(3):
        second._watch()
    first.release()
    second.release()


async def test_a_state_dir_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"state_dir: .*file/controller-pbx-1.lock: .*make it writable"):
        HostLock(tmp_path / "file", "pbx-1")
    monkeypatch.setattr(host_lock_module, "file_system", lambda _file: "nfs4")
    with pytest.raises(ConfigError, match=r"is on nfs4: .*a disk of this machine"):
        HostLock(tmp_path, "pbx-1")


async def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_file: int, _how: int) -> None:
        raise OSError(95, "Operation not supported")

    lock = HostLock(tmp_path, "pbx-1")
    monkeypatch.setattr(host_lock_module.fcntl, "flock", refused)
    with pytest.raises(ConfigError, match="cannot be locked: Operation not supported"):
        await lock.take()
    lock.release()
