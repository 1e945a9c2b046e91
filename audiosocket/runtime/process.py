"""What a long-running process owes its supervisor: signals, readiness (sd_notify) and a watchdog."""

from __future__ import annotations

import asyncio
import os
import signal
import socket


class StopSignal:
    """SIGTERM and SIGINT as an event of the running loop; a second one means at once."""

    def __init__(self) -> None:
        self.requested = asyncio.Event()
        self.at_once = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)

    def _on_signal(self) -> None:
        if self.requested.is_set():
            self.at_once.set()
        self.requested.set()


def notify(state: str) -> None:
    """Tells systemd (`READY=1`, `STOPPING=1`, `WATCHDOG=1`); without systemd it does nothing (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
        connection.setblocking(False)  # a supervisor that does not read must not hold up every call's audio
        try:
            connection.sendto(state.encode(), address)
        except OSError:
            return  # the supervisor is gone or busy; whether to go on is not decided here
