"""A fleet in a real Redis, without its processes: who announces himself, and the clock that all are told."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import redis.asyncio

from ari_app.fleet.leases import Leases
from ari_app.store.controllers import ControllerInfo, Controllers
from audiosocket.callspec import WorkerInfo
from audiosocket.runtime.announcing import Announcer, announcement_of

NOW_MS = 1_795_000_000_000
LEASE_MS = 60_000


class Fleet:
    """Workers and controllers that announce themselves. Redis' clock, as it is told to the scripts, stands until a test
    moves it."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self.client = client
        self.now_ms = NOW_MS
        self.announcer = Announcer(client, self.clock)
        self.controllers = Controllers(client, self.clock)

    def clock(self) -> int:
        return self.now_ms

    def leases(
        self,
        node: str = "pbx-1",
        pair: str = "main",
        spill_over: Iterable[str] = (),
        client: redis.asyncio.Redis | None = None,
    ) -> Leases:
        return Leases(
            client or self.client, LEASE_MS / 1000, node=node, pair=pair, spill_over=spill_over, clock=self.clock
        )

    async def worker(self, worker_id: str, capacity: int, **values: Any) -> WorkerInfo:
        given: dict[str, Any] = {"host": "127.0.0.1", "port": 9092, "status_url": "", "active": 0, "draining": False}
        info = WorkerInfo(
            worker_id=worker_id,
            node=worker_id.partition("/")[0],
            capacity=capacity,
            version="1",
            started_at_ms=0,
            **(given | values),
        )
        await self.announcer.announce(announcement_of(info))
        return info

    async def pbx(self, node: str, capacity: int, **values: Any) -> ControllerInfo:
        given: dict[str, Any] = {"instance": "a", "role": "active", "accepting": True, "calls": 0}
        info = ControllerInfo(node=node, capacity=capacity, version="1", started_at_ms=0, **(given | values))
        await self.controllers.announce_controller(info)
        return info
