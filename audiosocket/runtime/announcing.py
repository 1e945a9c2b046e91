"""How workers and controllers announce themselves in Redis: a registration for whoever wants to know, and a short form
of it in their pair's hash, which placement reads for every call. Both are one step, and end by Redis' clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal

import msgspec
import redis.asyncio

from audiosocket.callspec import HEARTBEAT_TTL_MS, WorkerInfo
from audiosocket.keys import KEY_PREFIX, WORKERS_KEY, pair_key, worker_key

ANNOUNCE = (resources.files("audiosocket.runtime") / "announce.lua").read_text(encoding="utf-8")

Takes = Literal[0, 1, 2]
"""Calls: 0: it takes them; 1: it is draining; 2: it cannot take any for now."""


@dataclass(frozen=True, slots=True)
class Announcement:
    """Who is there."""

    kind: Literal["w", "c"]
    """A media worker, or a controller."""
    key: str
    """Of the registration."""
    members: str
    """Key of the set of all ids."""
    identity: str
    node: str
    pair: str
    info: msgspec.Struct
    """The registration, written as JSON; has a field `pair`."""
    takes: Takes
    capacity: int
    """Calls."""
    calls: int

    @property
    def field(self) -> str:
        """Name in the pair's hash."""
        return f"{self.kind} {self.identity}"


def announcement_of(info: WorkerInfo) -> Announcement:
    """That of a media worker."""
    return Announcement(
        kind="w",
        key=worker_key(info.worker_id),
        members=WORKERS_KEY,
        identity=info.worker_id,
        node=info.node,
        pair=info.pair,
        info=info,
        takes=1 if info.draining else 2 if info.overloaded else 0,
        capacity=info.capacity,
        calls=info.active,
    )


def arguments(who: Announcement, clock_ms: int = 0, leases: str = "") -> list[Any]:
    """Those of the script `ANNOUNCE`, whose one key is `who.key`."""
    read = f"{who.capacity} {who.takes} {who.calls} {who.node}"
    payload = msgspec.json.encode(who.info)
    identity = [who.members, who.identity, who.pair, who.field]
    return [KEY_PREFIX, HEARTBEAT_TTL_MS, clock_ms, payload, *identity, read, leases]


class Announcer:
    """Announces; what Redis raises, and how long it takes, is the caller's to deal with."""

    def __init__(self, client: redis.asyncio.Redis, clock: Callable[[], int] = lambda: 0) -> None:
        """`clock`: Unix time in ms that takes the place of Redis', as a simulation needs it; 0: Redis' clock."""
        self._redis = client
        self._clock = clock
        self._announce = client.register_script(ANNOUNCE)

    async def announce(self, who: Announcement, leases: str = "") -> tuple[bytes | None, set[str]]:
        """Announce for `HEARTBEAT_TTL_MS`; the registration until now, and the calls whose leases are at the key
        `leases`."""
        answer: Any = await self._announce(keys=[who.key], args=arguments(who, self._clock(), leases))
        before, calls = answer
        return before, {call_id.decode() for call_id in calls}

    async def withdraw(self, who: Announcement) -> None:
        """Take the announcement back."""
        async with self._redis.pipeline(transaction=True) as pipeline:
            pipeline.delete(who.key)
            pipeline.srem(who.members, who.identity)
            pipeline.hdel(pair_key(who.pair), who.field)
            await pipeline.execute()
