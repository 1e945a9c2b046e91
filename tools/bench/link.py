"""A link between this network namespace and one of its own, that delays, loses and stalls real packets, both ways.

    python -m tools.bench.link PROGRAM_IP DELAY_SECONDS

Two TUN devices, one in each namespace, and this program between them. It needs no kernel module beyond `tun`: `tc
netem` is not in every kernel. TCP meets it as it meets any network: a lost packet is gone, an acknowledgement too.
Orders come as datagrams at an abstract socket: `loss 0.02`, `stall 3`. While it stalls everything is dropped.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import select
import socket
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from audiosocket.errors import Unavailable
from tools.namespace import Namespace, system_program
from tools.process import Process, ProcessFailed

NEAR, FAR = "198.18.7.1", "198.18.7.2"
"""This side's address and the other's, of the block that is reserved for measurements (RFC 2544)."""
NAMESPACE = "trunkbridge-bench"
READY = "the link is up"
PACKET_BYTES = 65_536
READS_PER_WAKE = 64
_DEVICES = ("tb-near", "tb-far")
_ORDERS = "\0trunkbridge-bench-link"
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000  # <linux/if_tun.h>
_BEHIND = Namespace(f"/run/netns/{NAMESPACE}")


@dataclass(frozen=True, slots=True)
class Link:
    """A link that is up."""

    _orders: socket.socket

    def lose(self, share: float) -> None:
        """From now on this share (0 to 1) of all packets is lost, in each direction."""
        self._orders.sendto(f"loss {share}".encode(), _ORDERS)

    def stall(self, seconds: float) -> None:
        """For so long nothing passes."""
        self._orders.sendto(f"stall {seconds}".encode(), _ORDERS)

    def carried(self, far_pid: int) -> tuple[int, int]:
        """Bytes of IP packets that this side, and the one on which process `far_pid` runs, have sent so far."""
        return _sent("self", _DEVICES[0]), _sent(str(far_pid), _DEVICES[1])


@asynccontextmanager
async def link(delay_seconds: float, log: Path) -> AsyncIterator[Link]:
    """A link with this delay each way, and `NAMESPACE` behind it; what an earlier run left is removed first.

    Raises `Unavailable` where this machine cannot have one."""
    ip = system_program("ip")
    if os.geteuid() != 0:
        raise Unavailable("the link needs root, for a network namespace and two TUN devices")
    _remove(ip)
    argv = [sys.executable, "-m", "tools.bench.link", ip, str(delay_seconds)]
    process = Process("link", argv, log, READY, {})
    try:
        await process.start()
    except ProcessFailed as error:
        _remove(ip)
        raise Unavailable(f"this machine cannot have the link (/dev/net/tun, network namespaces): {error}") from None
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as orders:
        try:
            yield Link(orders)
        finally:
            await process.stop()
            _remove(ip)


def inside() -> tuple[str, ...]:
    """What to put before a command (an absolute path first) that is to run behind the link."""
    return _BEHIND.command()


def listening_inside() -> socket.socket:
    """A TCP socket of this process that listens on loopback behind the link. Raises OSError."""
    listening = _BEHIND.tcp_socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen(512)
    return listening


def _remove(ip: str) -> None:
    # The devices go with the process that made them.
    if Path(f"/run/netns/{NAMESPACE}").exists():
        subprocess.run([ip, "netns", "del", NAMESPACE], check=False)


def _sent(process: str, device: str) -> int:
    for line in Path(f"/proc/{process}/net/dev").read_text(encoding="utf-8").splitlines():
        name, _, fields = line.partition(":")
        if name.strip() == device:
            return int(fields.split()[8])
    raise OSError(f"no device {device}")


# The program


class _Relay:
    def __init__(self, devices: tuple[int, int], orders: socket.socket, delay: float) -> None:
        self._other = dict(zip(devices, reversed(devices), strict=True))
        self._orders = orders
        self._delay = delay
        self._under_way: deque[tuple[float, int, bytes]] = deque()
        self._random = random.Random(7)
        self._loss = 0.0
        self._stalled_until = 0.0

    def run(self) -> None:
        waiting = select.poll()
        for source in (*self._other, self._orders.fileno()):
            waiting.register(source, select.POLLIN)
        while True:
            due = self._under_way[0][0] - time.monotonic() if self._under_way else 1.0
            for source, _ in waiting.poll(max(0.0, due) * 1000):
                if source == self._orders.fileno():
                    self._obey(self._orders.recv(100).decode().split())
                else:
                    self._take(source)
            now = time.monotonic()
            while self._under_way and self._under_way[0][0] <= now:
                _, target, packet = self._under_way.popleft()
                with contextlib.suppress(OSError):  # a full queue: lost
                    os.write(target, packet)

    def _obey(self, order: list[str]) -> None:
        if order[0] == "loss":
            self._loss = float(order[1])
        else:
            self._stalled_until = time.monotonic() + float(order[1])
            self._under_way.clear()

    def _take(self, source: int) -> None:
        for _ in range(READS_PER_WAKE):
            try:
                packet = os.read(source, PACKET_BYTES)
            except BlockingIOError:
                return
            now = time.monotonic()
            if now >= self._stalled_until and (not self._loss or self._random.random() >= self._loss):
                self._under_way.append((now + self._delay, self._other[source], packet))


def _device(name: str) -> int:
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
    return descriptor


def main() -> None:
    """Makes namespace and devices, and carries packets until it is killed."""
    ip, delay = sys.argv[1], float(sys.argv[2])
    near, far = _DEVICES
    devices = (_device(near), _device(far))
    for arguments in (
        f"netns add {NAMESPACE}",
        f"link set {far} netns {NAMESPACE}",
        f"addr add {NEAR}/30 dev {near}",
        f"link set {near} txqueuelen 2000 up",
        f"-n {NAMESPACE} addr add {FAR}/30 dev {far}",
        f"-n {NAMESPACE} link set {far} txqueuelen 2000 up",
        f"-n {NAMESPACE} link set lo up",
    ):
        subprocess.run([ip, *arguments.split()], check=True)
    with contextlib.suppress(OSError):
        # Its own lateness would be taken for the link's.
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as orders:
        orders.bind(_ORDERS)
        print(READY, flush=True)
        _Relay(devices, orders, delay).run()


if __name__ == "__main__":
    main()
