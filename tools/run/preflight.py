"""What must hold before anything is started: one run at a time, its ports free, and a line to call over."""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import os
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from ari_app.settings import Config
from audiosocket.settings import split_host_port
from tools.sip.rtp_peer import Codec
from tools.system import APPLICATIONS, runs_here

APPLICATION = "conversation"
"""Whose number is called."""


class NotReady(Exception):
    """It cannot be started like this; the text says what is in the way and what to do."""


@dataclass(frozen=True, slots=True)
class Line:
    """How the scripted call comes in."""

    trunk: str
    source: str
    """IP address that the trunk is known by, and that is this machine's."""
    codec: Codec
    number: str


@contextlib.contextmanager
def only_run(state_dir: Path) -> Iterator[None]:
    """Holds the lock of `state_dir`, which the kernel gives back however this process ends. Raises `NotReady`."""
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(state_dir / "run.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
            raise NotReady(
                f"it runs already: process {owner} uses {state_dir}. Press Ctrl-C in its terminal (or: kill {owner}),"
                " or give this one a configuration of its own with --config (another state_dir, other ports)"
            ) from None
        os.truncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(descriptor)


def require_embedded(config: Config, path: Path) -> None:
    """Raises `NotReady` for a configuration that names database servers."""
    if config.store != "embedded":
        raise NotReady(
            f"{path}: store: names servers of your own, and everything started here comes and goes: use"
            " `store: embedded`, or start the controller and the workers yourself (see docs/)"
        )


def require_ports(config: Config, path: Path) -> None:
    """Raises `NotReady` with a line for every listening address that is taken, saying by whom."""
    taken = []
    for place, listen, kind in _listeners(config):
        host, port = split_host_port(listen)
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, kind) as probe:
            if kind == socket.SOCK_STREAM:
                # Connections of an earlier run that are only timing out are in nobody's way.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                transport = "TCP" if kind == socket.SOCK_STREAM else "UDP"
                users = "".join(f", by {user}" for user in _users(port, kind))
                taken.append(f"{transport} port {port} ({place}: {listen}): {error.strerror}{users}")
    if taken:
        raise NotReady(
            "\n".join(taken) + f"\nEnd what uses them, or copy {path}, change the addresses and give it with --config"
        )


def _listeners(config: Config) -> Iterator[tuple[str, str, socket.SocketKind]]:
    yield "asterisk.ari.listen", config.asterisk.ari.listen, socket.SOCK_STREAM
    yield "asterisk.ami.listen", config.asterisk.ami.listen, socket.SOCK_STREAM
    yield "asterisk.sip_listen", config.asterisk.sip_listen, socket.SOCK_DGRAM
    for name in ("listen", "status_listen"):
        host, _, port = getattr(config.gateway, name).rpartition(":")
        for index in range(config.gateway.workers):
            yield f"gateway.{name}, worker {index}", f"{host}:{int(port) + index}", socket.SOCK_STREAM
    for name, application in config.applications.items():
        if name in APPLICATIONS and runs_here(application.url):
            parts = urlsplit(application.url)
            host = "127.0.0.1" if parts.hostname == "localhost" else str(parts.hostname)
            yield f"applications.{name}.url", f"{host}:{parts.port or 80}", socket.SOCK_STREAM


def _users(port: int, kind: socket.SocketKind) -> list[str]:
    """The processes that have `port`, as far as this user may see them (proc(5), `net/tcp` and `net/udp`)."""
    inodes = set()
    for table in ("tcp", "tcp6") if kind == socket.SOCK_STREAM else ("udp", "udp6"):
        with contextlib.suppress(OSError):
            for line in Path("/proc/net", table).read_text().splitlines()[1:]:
                fields = line.split()
                listens = kind == socket.SOCK_DGRAM or fields[3] == "0A"
                if listens and int(fields[1].rpartition(":")[2], 16) == port:
                    inodes.add(f"socket:[{fields[9]}]")
    found = []
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            if any(os.readlink(descriptor) in inodes for descriptor in (process / "fd").iterdir()):
                words = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                found.append(f"process {process.name} ({re.sub(r'[^ -~]', '?', words).strip()[:80]})")
    return found


def find_line(config: Config, path: Path) -> Line:
    """The number of the conversation application, and a trunk to call it over. Raises `NotReady` when there is none."""
    numbers = [route for route in config.routes if route.application == APPLICATION and route.did != "*"]
    # A trunk gives numbers in E.164; short ones are for softphones.
    numbers.sort(key=lambda route: not route.did.startswith("+"))
    for route in numbers:
        for name in route.trunks or config.trunks:
            trunk = config.trunks[name]
            for network in map(ipaddress.ip_network, trunk.identify):
                if network.version == 4 and network.is_loopback:
                    host = network[min(1, network.num_addresses - 1)]
                    return Line(name, str(host), Codec[trunk.codecs[0].upper()], route.did)
    raise NotReady(
        f"{path}: nobody can be called from this machine: needed are a route to an application named {APPLICATION!r}"
        " and a trunk whose identify: has a loopback address, as in trunkbridge.example.yml"
    )
