"""What one controller process is: its role, and what it works with while it is the active one.

Status port, announcement and watchdog read this; `ari_app.controller.process` writes it.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Literal

from ari_app.ari.client import AriClient
from ari_app.ari.stream import EventStream
from ari_app.controller.controller import Controller
from ari_app.store.writer import RecordWriter

STUCK_SECONDS = 30.0
"""An event stream that is not live moves far more often than this: an attempt to connect has limits of its own."""
LATENESS_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Parts:
    """What an active controller works with."""

    controller: Controller
    client: AriClient
    stream: EventStream
    writer: RecordWriter


@dataclass(slots=True)
class Duty:
    """Of this process."""

    node: str
    max_calls: int
    started_at_ms: int = field(default_factory=lambda: time.time_ns() // 1_000_000)
    parts: Parts | None = None
    """None: it stands by."""
    stopping: bool = False
    status_at: str = ""
    """Where its status port is (`IP:PORT`); empty: it has none."""
    lateness_max_seconds: float = 0.0
    """Latest wake-up of the event loop since it was last asked for."""

    @property
    def role(self) -> Literal["active", "standby"]:
        """What this process is now."""
        return "standby" if self.parts is None else "active"

    @property
    def calls(self) -> int:
        """Calls that live here."""
        return 0 if self.parts is None else self.parts.controller.active

    @property
    def why_not_accepting(self) -> str:
        """Why no new call is begun here; empty: calls are."""
        if self.stopping:
            return "stopping"
        if self.parts is None:
            return "standing by"
        if self.calls >= self.max_calls:
            return "full"
        return self.parts.controller.why_not_accepting

    @property
    def why_not_alive(self) -> str:
        """Why this process had better be restarted; empty: it lives. Asked from its own loop, which lives then."""
        if self.parts is None or self.parts.stream.live:
            return ""
        stuck = time.monotonic() - self.parts.stream.moved_at
        return f"Asterisk's events have not been tried for {stuck:.0f} s" if stuck > STUCK_SECONDS else ""

    async def watch_loop(self) -> None:
        """Measures how late the event loop wakes up, for ever."""
        while True:
            due = time.monotonic() + LATENESS_SECONDS
            await asyncio.sleep(LATENESS_SECONDS)
            self.lateness_max_seconds = max(self.lateness_max_seconds, time.monotonic() - due)

    def take_lateness(self) -> float:
        """The latest wake-up since this was asked last."""
        found, self.lateness_max_seconds = self.lateness_max_seconds, 0.0
        return found
