"""Hosts as network namespaces, on one network whose paths can be cut.

A host is a process that does nothing, in a network namespace of its own. The namespace has no name and nothing outside
of it: it is gone, with all its interfaces, when the last process in it has ended, and every one of them ends with the
test process, however that ends. So nothing is left by a run that crashed, and two runs are in nobody's way.

The network is one more namespace, a router that each host has a cable to. A cut is made there and drops packets in
silence, as a broken line does: nobody is told, neither by a reset nor by an ICMP message.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from tests.worker_rig import until
from tools.namespace import Namespace, system_program
from tools.process import Process, guarded, send_signal

ROUTER = "net"
COMMAND_SECONDS = 60.0
SILENCE_SECONDS = 1.5
"""After so long without any answer a connection is taken to be to nowhere, where that is what is expected."""
PATIENCE_SECONDS = 60.0
"""How long a test waits for what is to come; nothing is concluded from how long it took."""

_CUTS = """
table inet cuts {
    chain forward {
        type filter hook forward priority 0
        policy accept
    }
}
flush chain inet cuts forward
"""


class Host:
    """One host; `address` is its own on the network that all hosts are on."""

    def __init__(self, name: str, number: int, folder: Path) -> None:
        self.name = name
        self.address = f"198.51.100.{4 * number + 2}"
        """One of the addresses that are reserved for examples (RFC 5737)."""
        self.gateway = f"198.51.100.{4 * number + 1}"
        """The router's address on this host's cable."""
        self.folder = folder / name
        self.processes: list[Process] = []
        """All that was ever started on this host by `process`."""
        self._holder: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Makes the namespace."""
        self.folder.mkdir(parents=True)
        unshare, sleep = system_program("unshare"), system_program("sleep")
        self._holder = await asyncio.create_subprocess_exec(
            *guarded(unshare, "--net", sleep, "infinity"),
            stdin=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
        ours = os.readlink("/proc/self/ns/net")
        await until(
            lambda: self._holder.returncode is not None or _network(self.pid) not in ("", ours),
            self.name,
            PATIENCE_SECONDS,
        )
        self.run("ip", "link", "set", "lo", "up")

    async def stop(self) -> None:
        """Ends what runs on the host, last started first, and the host."""
        for process in reversed(self.processes):
            await process.stop()
        if self._holder is not None and self._holder.returncode is None:
            send_signal(self._holder, signal.SIGKILL)
            await self._holder.wait()

    @property
    def pid(self) -> int:
        """The process that keeps the namespace."""
        assert self._holder is not None
        return self._holder.pid

    @property
    def namespace(self) -> Namespace:
        """The host's network."""
        return Namespace(f"/proc/{self.pid}/ns/net")

    def run(self, program: str, *arguments: str, given: str = "", check: bool = True) -> str:
        """What a command on this host writes, `given` on its standard input; fails the test when the command fails."""
        argv = self.namespace.command(system_program(program), *arguments)
        done = subprocess.run(argv, input=given, capture_output=True, text=True, timeout=COMMAND_SECONDS)
        if check and done.returncode:
            raise AssertionError(f"{self.name}: {program} {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def process(self, name: str, argv: Sequence[str], ready: str, environment: dict[str, str] | None = None) -> Process:
        """A process on this host (an absolute path first), not started yet; `ready` as for `Process`."""
        log = self.folder / "log" / f"{name}.log"
        made = Process(f"{self.name}: {name}", [*self.namespace.command(*argv)], log, ready, environment or {})
        self.processes.append(made)
        return made

    async def tries(self, address: str, port: int, seconds: float = PATIENCE_SECONDS) -> str:
        """What becomes of a TCP connection from here to there: `connected`, `refused`, or, for `seconds`, `silence`."""
        connection = self.namespace.tcp_socket()
        try:
            async with asyncio.timeout(seconds):
                await asyncio.get_running_loop().sock_connect(connection, (address, port))
            return "connected"
        except ConnectionRefusedError:
            return "refused"
        except TimeoutError:
            return "silence"
        finally:
            connection.close()


@dataclass
class Cut:
    """A cut of paths, with its monotonic times."""

    began: float
    ended: float | None = None
    """When it was mended; None: not yet."""

    async def lasted(self, seconds: float) -> None:
        """Returns when it is so old."""
        await asyncio.sleep(max(0.0, self.began + seconds - time.monotonic()))


class Network:
    """The hosts and the router between them. An async context manager."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.router = Host(ROUTER, 0, folder)
        self.hosts = {name: Host(name, number, folder) for number, name in enumerate(names, 1)}
        self._cuts: set[frozenset[str]] = set()

    async def __aenter__(self) -> Network:
        try:
            await self.router.start()
            self.router.run("sysctl", "-q", "-w", "net.ipv4.ip_forward=1")
            await asyncio.gather(*(host.start() for host in self.hosts.values()))
            for host in self.hosts.values():
                self._plug_in(host)
        except BaseException:
            await asyncio.shield(self._stop())
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop()

    def __getitem__(self, name: str) -> Host:
        return self.hosts[name]

    @asynccontextmanager
    async def cut(self, *paths: tuple[str, str], seconds: float | None = None) -> AsyncIterator[Cut]:
        """Nothing passes between the two hosts of each path: for so long, or until the end of the block.

        The block ends after the cut. One that takes longer sees a path that is mended, and no cut that is longer than
        it was to be.
        """
        cut = Cut(time.monotonic())
        self._cuts.update(map(frozenset, paths))
        self._apply()

        def mend() -> None:
            self._cuts.difference_update(map(frozenset, paths))
            self._apply()
            cut.ended = time.monotonic()

        async def mend_later(seconds: float) -> None:
            await cut.lasted(seconds)
            mend()

        mending = None if seconds is None else asyncio.create_task(mend_later(seconds), name="mend")
        try:
            yield cut
            if mending is not None:
                await mending
        finally:
            if mending is not None:
                mending.cancel()
                await asyncio.gather(mending, return_exceptions=True)
            if cut.ended is None:
                mend()

    def unplug(self, name: str) -> None:
        """The host's cable is pulled."""
        self.router.run("ip", "link", "set", "dev", name, "down")

    def plug_in(self, host: Host) -> None:
        """Undoes `unplug`."""
        self.router.run("ip", "link", "set", "dev", host.name, "up")

    def _plug_in(self, host: Host) -> None:
        self.router.run(
            *("ip", "link", "add", "name", host.name, "type", "veth"),
            *("peer", "name", "eth0", "netns", str(host.pid)),
        )
        self.router.run("ip", "address", "add", f"{host.gateway}/30", "dev", host.name)
        self.router.run("ip", "link", "set", "dev", host.name, "up")
        host.run("ip", "address", "add", f"{host.address}/30", "dev", "eth0")
        host.run("ip", "link", "set", "eth0", "up")
        host.run("ip", "route", "add", "default", "via", host.gateway)

    def _apply(self) -> None:
        rules = _CUTS
        for one, other in map(sorted, self._cuts):
            for source, target in ((one, other), (other, one)):
                addresses = self.hosts[source].address, self.hosts[target].address
                rules += "add rule inet cuts forward ip saddr {} ip daddr {} drop\n".format(*addresses)
        self.router.run("nft", "-f", "-", given=rules)

    async def _stop(self) -> None:
        await asyncio.gather(*(host.stop() for host in self.hosts.values()))
        await self.router.stop()


def machines_network() -> list[str]:
    """Interfaces, addresses, routes and packet filters of the machine itself, as lines."""
    commands = (("ip", "address"), ("ip", "route", "show", "table", "all"), ("ip", "rule"), ("nft", "list", "ruleset"))
    said = [
        subprocess.run([system_program(argv[0]), *argv[1:]], capture_output=True, text=True, check=True).stdout
        for argv in commands
    ]
    return "".join(said).splitlines()


def _network(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/net")
    except FileNotFoundError:
        return ""
