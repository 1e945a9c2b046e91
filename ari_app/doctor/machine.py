"""The machine: its clock, its limits, its disks, its name."""

from __future__ import annotations

import asyncio
import ctypes
import os
import resource
import shutil
import socket
from pathlib import Path

from ari_app.doctor.finding import Finding, bad, good, warning
from audiosocket.settings import NodeSettings

DESCRIPTORS_PER_CALL = 9
"""A worker takes two, Asterisk eight for a call over AudioSocket; the rest is spare."""
FREE_MB = 1024
SOMAXCONN = 1024
NAME_SECONDS = 1.0
_TIME_ERROR = 5
"""What adjtimex(2) gives for a clock that nobody keeps in step."""
_TIMEX_BYTES = 512


def clock() -> Finding:
    """Whether the machine's clock is kept in step with the world's, adjtimex(2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    state = libc.adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))
    if state < 0:
        why = os.strerror(ctypes.get_errno())
        return warning("clock", f"whether it is kept in step is not known: {why}", "see `timedatectl`")
    if state == _TIME_ERROR:
        return warning("clock", "nobody keeps it in step", "run chrony: records bear this clock's times")
    return good("clock", "kept in step")


def descriptors(calls: int) -> Finding:
    """Whether a process here may open as many files as so many calls need."""
    needed = calls * DESCRIPTORS_PER_CALL + 256
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    said = "unlimited" if hard == resource.RLIM_INFINITY else str(hard)
    if hard != resource.RLIM_INFINITY and hard < needed:
        return bad(
            "descriptors",
            f"at most {said}, and {calls} calls need {needed}",
            f"LimitNOFILE={needed} in the units, or nofile in /etc/security/limits.conf",
        )
    return good("descriptors", f"at most {said}, {needed} needed for {calls} calls")


def backlog() -> Finding:
    """How many connections may wait to be accepted when a storm of calls comes."""
    path = Path("/proc/sys/net/core/somaxconn")
    try:
        value = int(path.read_text(encoding="ascii"))
    except (OSError, ValueError) as error:
        return warning("somaxconn", f"not known: {error}", "see `sysctl net.core.somaxconn`")
    if value < SOMAXCONN:
        return warning("somaxconn", f"{value}", f"sysctl net.core.somaxconn={SOMAXCONN}: it is for storms of calls")
    return good("somaxconn", str(value))


def cores(workers: int) -> Finding:
    """Whether each worker has a core."""
    here = len(os.sched_getaffinity(0))
    if workers > here:
        return warning(
            "cores", f"{workers} workers on {here} cores", f"gateway.workers: {here}: a worker needs its core"
        )
    return good("cores", f"{here}, for {workers} workers")


def disk(name: str, folder: Path, free_mb: int = FREE_MB) -> Finding:
    """Whether a folder can be written to and its disk has room."""
    what = f"disk of {name}"
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    if not os.access(there, os.W_OK | os.X_OK):
        return bad(what, f"{there} cannot be written to", "give it to the user that runs trunkbridge")
    free = shutil.disk_usage(there).free // 2**20
    if free < free_mb:
        return bad(what, f"{free} MB free at {there}", f"make room: {free_mb} MB at least")
    return good(what, f"{free} MB free at {folder}")


async def host_name() -> Finding:
    """Whether the machine's own name resolves: Asterisk looks it up for every call, and stands still meanwhile."""
    name = socket.gethostname()
    try:
        async with asyncio.timeout(NAME_SECONDS):
            found = await asyncio.get_running_loop().getaddrinfo(name, None)
    except (OSError, TimeoutError) as error:
        why = f"no answer within {NAME_SECONDS:g} s" if isinstance(error, TimeoutError) else str(error)
        return bad("host name", f"{name} does not resolve: {why}", f"add `127.0.1.1 {name}` to /etc/hosts")
    return good("host name", f"{name} is {found[0][4][0]}")


async def of_every_node(settings: NodeSettings) -> list[Finding]:
    """What every machine is looked at for."""
    return [clock(), await host_name(), disk("state_dir", settings.state_dir)]


def of_gateway(settings: NodeSettings) -> list[Finding]:
    """What a gateway node is looked at for."""
    gateway = settings.gateway
    found = [cores(gateway.workers), descriptors(gateway.capacity), backlog()]
    recordings = gateway.recordings
    if recordings.directory is not None:
        found.append(disk("recordings", recordings.directory, recordings.min_free_mb))
    return found
