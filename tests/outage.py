"""A system whose PostgreSQL and Redis the test stops, freezes and starts again, under calls that come all the time."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ari_app.store.embedded import EmbeddedStores
from tests.cluster import put_cluster
from tests.live import ECHO, Live, live_system
from tools.asterisk.install import AsteriskInstall
from tools.asterisk.local import merge
from tools.sip.sipp import Call, Ending


@dataclass
class Outage:
    """What a test works with."""

    live: Live
    stores: EmbeddedStores

    async def restart_redis(self, seconds: float) -> None:
        """Redis is away for so long, and comes back with nothing in it."""
        os.kill(self.stores.redis.running().pid, signal.SIGKILL)
        await self.stores.redis.exited(10)
        await asyncio.sleep(seconds)
        self.stores.redis.start()

    async def restart_postgres(self, seconds: float) -> None:
        """PostgreSQL is away for so long."""
        await self.stores.postgres.stop()
        await asyncio.sleep(seconds)
        self.stores.postgres.start()

    async def freeze_redis(self, seconds: float) -> None:
        """Redis does not answer for so long, and remembers everything."""
        pid = self.stores.redis.running().pid
        os.kill(pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            os.kill(pid, signal.SIGCONT)


@dataclass
class Traffic:
    """Calls to an echo, begun at an even pace; each is `seconds` long."""

    live: Live
    seconds: float
    calls: list[Call] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    answer_seconds: list[float] = field(default_factory=list)

    async def run(self, for_seconds: float, a_second: float) -> None:
        """Begins calls for so long, and returns when the last has ended."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with asyncio.TaskGroup() as tasks:
            for number in range(round(for_seconds * a_second)):
                await asyncio.sleep(max(0.0, began + number / a_second - loop.time()))
                tasks.create_task(self._call(f"+9190770{len(self.calls):05d}"))

    async def _call(self, caller: str) -> None:
        loop = asyncio.get_running_loop()
        call = self.live.ulaw.call(ECHO, caller)
        self.calls.append(call)
        began = loop.time()
        try:
            await call.answered()
        except Exception as error:
            self.refused.append(f"{caller}: {error!r} after {loop.time() - began:.1f} s")
            return
        self.answer_seconds.append(loop.time() - began)
        ended = asyncio.ensure_future(call.ended())
        await asyncio.wait((ended,), timeout=self.seconds)
        if ended.done():
            self.dropped.append(f"{caller}: {ended.result()} {loop.time() - began:.1f} s after its INVITE")
            return
        await call.hang_up()
        if await ended is not Ending.BY_US:
            self.dropped.append(f"{caller}: {ended.result()} at its end")


@asynccontextmanager
async def outage_system(
    install: AsteriskInstall, folder: Path, changes: dict[str, Any] | None = None, calls: int = 60
) -> AsyncIterator[Outage]:
    """A running system of its own below `folder`, with servers that the test holds."""
    await put_cluster(folder / "stores")
    async with EmbeddedStores(folder / "stores") as stores:
        own = {"store": {"postgres": stores.urls.postgres, "redis": stores.urls.redis}}
        async with live_system(install, folder, calls=calls, changes=merge(own, changes or {})) as live:
            yield Outage(live, stores)
