"""What could not be ended in Asterisk when its call was over: tried again until Asterisk says that it is gone.

Few at a time, and less and less often while Asterisk does not answer: an Asterisk that has trouble gets no storm of
requests on top of it. Nothing is forgotten meanwhile; what a controller leaves here when it ends is an orphan for the
next one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from ari_app.ari.client import AriClient
from ari_app.ari.errors import AriError
from ari_app.domain.ids import BridgeId, ChannelId

PARALLEL = 4
BACKOFF_FIRST_SECONDS = 0.25
BACKOFF_MAX_SECONDS = 5.0

log = structlog.get_logger(__name__)


class Leftovers:
    """Channels to be hung up and bridges to be removed, of one Asterisk."""

    def __init__(self, ari: AriClient) -> None:
        self._ari = ari
        self._ends: dict[str, Callable[[], Awaitable[object]]] = {}
        self._queue: asyncio.Queue[str] = asyncio.Queue()

    def __len__(self) -> int:
        """How many there are."""
        return len(self._ends)

    def __contains__(self, identifier: str) -> bool:
        """Whether a channel or bridge is among them."""
        return identifier in self._ends

    def hang_up(self, channel: ChannelId, cause: int) -> None:
        """Has a channel hung up with this Q.850 cause."""
        self._add(channel, lambda: self._ari.hangup(channel, cause, missing_ok=True))

    def remove_bridge(self, bridge: BridgeId) -> None:
        """Has a bridge removed."""
        self._add(bridge, lambda: self._ari.destroy_bridge(bridge, missing_ok=True))

    async def run(self) -> None:
        """Ends them, for ever."""
        async with asyncio.TaskGroup() as tasks:
            for _ in range(PARALLEL):
                tasks.create_task(self._work(), name="leftovers")

    def _add(self, identifier: str, end: Callable[[], Awaitable[object]]) -> None:
        if self._ends.setdefault(identifier, end) is end:
            self._queue.put_nowait(identifier)

    async def _work(self) -> None:
        failures = 0
        while True:
            identifier = await self._queue.get()
            try:
                await self._ends[identifier]()
            except AriError as error:
                self._queue.put_nowait(identifier)
                if failures == 0:
                    log.warning("leftover_stays", what=identifier, left=len(self), detail=str(error))
                await asyncio.sleep(min(BACKOFF_MAX_SECONDS, BACKOFF_FIRST_SECONDS * 2 ** min(failures, 10)))
                failures += 1
            else:
                failures = 0
                del self._ends[identifier]
