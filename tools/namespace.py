"""Another network namespace than this process's: commands that run there, sockets of this process that are there."""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import aiohttp

from audiosocket.errors import Unavailable

PACKAGES = {
    "ip": "iproute2",
    "nft": "nftables",
    "nsenter": "util-linux",
    "sysctl": "procps",
    "unshare": "util-linux",
    "wg": "wireguard-tools",
}
"""Debian's package of a program, where that is not its name."""
_CLONE_NEWNET = 0x40000000  # <linux/sched.h>


@dataclass(frozen=True, slots=True)
class Namespace:
    """A network namespace that lives."""

    path: str
    """What stands for it: `/proc/PID/ns/net`, or a name's file below `/run/netns`."""

    def command(self, *argv: str) -> tuple[str, ...]:
        """The command that becomes `argv` (an absolute path first) inside. Raises `Unavailable` without `nsenter`."""
        return (system_program("nsenter"), f"--net={self.path}", *argv)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """What this thread opens or starts meanwhile is inside; nothing may be awaited. Raises OSError.

        A socket stays where it was made, and so does a process."""
        libc = ctypes.CDLL(None, use_errno=True)

        def enter(path: str) -> None:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                if libc.setns(descriptor, _CLONE_NEWNET) != 0:
                    raise OSError(ctypes.get_errno(), f"setns {path}")
            finally:
                os.close(descriptor)

        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            enter(self.path)
            try:
                yield
            finally:
                enter(f"/proc/self/fd/{home}")
        finally:
            os.close(home)

    def tcp_socket(self) -> socket.socket:
        """A TCP socket (IPv4) inside, non-blocking. Raises OSError."""
        with self.entered():
            made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        made.setblocking(False)
        return made

    def connector(self) -> aiohttp.TCPConnector:
        """For an HTTP client of this process whose connections are made inside."""
        return aiohttp.TCPConnector(socket_factory=lambda _: self.tcp_socket())


def system_program(name: str) -> str:
    """The absolute path of a program, which may be where a user's PATH does not lead. Raises `Unavailable`."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    if found is None:
        raise Unavailable(f"the program `{name}` is not installed: apt install {PACKAGES.get(name, name)}")
    return found
