"""The machine that measures: its cores, what its processes use, and how much of it was taken away by others."""

from __future__ import annotations

import contextlib
import gc
import os
import platform
import resource
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_TICKS = os.sysconf("SC_CLK_TCK")
_STEAL_FIELD = 8
"""Of a `cpu` line of /proc/stat (proc_stat(5)): time in which the hypervisor ran something else."""


def describe() -> dict[str, Any]:
    """What figures must be read with: processor, cores, kernel, Python, load at the start."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    return {
        "processor": model,
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_average": os.getloadavg()[0],
    }


def two_cores() -> tuple[int, int] | None:
    """A core for what is measured and another one for who measures; None on a machine of one core."""
    cores = sorted(os.sched_getaffinity(0))
    return (cores[0], cores[-1]) if len(cores) > 1 else None


def pin(pid: int, core: int) -> None:
    """Keep all threads of a process on one core. Raises OSError when the process is gone or not ours."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), {core})


@contextmanager
def pinned(core: int) -> Iterator[None]:
    """Keep this thread, and what it starts meanwhile, on one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """What a generator keeps grows, and a collection would look like a pause of what is measured."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def cpu_seconds(pid: int) -> float:
    """Processor time of a process so far, to 10 ms. Raises OSError when it is gone."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def rss_mib(pid: int) -> float:
    """Resident memory of a process, in MiB. Raises OSError when it is gone."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def descriptors(pid: int) -> int:
    """Files and sockets that a process has open. Raises OSError when it is gone or another user's."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def listener(port: int) -> int | None:
    """The process that listens on a TCP port of this machine; None: none, or another user's."""
    tables = (Path(f"/proc/net/{name}") for name in ("tcp", "tcp6"))
    inodes = {f"socket:[{inode}]" for table in tables if table.exists() for inode in listening(table.read_text(), port)}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # gone meanwhile, or not ours to look at
            for entry in os.listdir(process / "fd"):
                with contextlib.suppress(FileNotFoundError):
                    if os.readlink(process / "fd" / entry) in inodes:
                        return int(process.name)
    return None


def listening(table: str, port: int) -> list[int]:
    """The inodes of sockets that listen on `port` in a table like /proc/net/tcp (proc_pid_net(5))."""
    rows = (line.split() for line in table.splitlines()[1:])
    return [int(row[9]) for row in rows if row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == port]


def allow_descriptors(count: int) -> bool:
    """Raise this process's limit of open files, and so its children's, to `count` or more; False: not allowed to."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= count:
        return True
    if hard != resource.RLIM_INFINITY and hard < count:
        return False
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
    return True


@dataclass(frozen=True, slots=True)
class Usage:
    """One stretch of time, seen by `Meter`."""

    seconds: float
    cores: dict[str, float]
    """Processor time per second, by process."""
    busy: float
    """Cores of the whole machine that were not idle."""
    others: float
    """Of these, used by other processes than the ones measured."""
    stolen: float
    """Cores that the hypervisor took away. Above a few hundredths, figures of latency are the machine's, not ours."""


class Meter:
    """Processor time of some processes and of the machine, from its making to `read`."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        self._pids = dict(pids)
        self._began = time.monotonic()
        self._before = {name: cpu_seconds(pid) for name, pid in self._pids.items()}
        self._machine = _machine_seconds()

    def read(self) -> Usage:
        """What was used since the meter was made. Raises OSError when a process is gone."""
        seconds = time.monotonic() - self._began
        idle, stolen, total = (now - then for now, then in zip(_machine_seconds(), self._machine, strict=True))
        cores = {name: (cpu_seconds(pid) - self._before[name]) / seconds for name, pid in self._pids.items()}
        busy = (total - idle - stolen) / seconds
        return Usage(
            seconds=seconds,
            cores=cores,
            busy=busy,
            others=max(0.0, busy - sum(cores.values())),
            stolen=stolen / seconds,
        )


def _machine_seconds() -> tuple[float, float, float]:
    """(idle, stolen, all) since boot, over all cores."""
    with open("/proc/stat", encoding="utf-8") as stat:
        fields = [int(field) / _TICKS for field in stat.readline().split()[1:]]
    # Guest time, the last two, is part of user time already.
    return fields[3] + fields[4], fields[_STEAL_FIELD - 1], sum(fields[:_STEAL_FIELD])
