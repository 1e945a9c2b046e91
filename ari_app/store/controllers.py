"""Controllers announce themselves in Redis as workers do, so that placement knows which PBX nodes accept calls, and
operators who runs where."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import msgspec
import redis.asyncio

from ari_app.store.present import redis_unavailable
from audiosocket.keys import KEY_PREFIX
from audiosocket.runtime.announcing import Announcement, Announcer
from audiosocket.runtime.stores import decoded, redis_call

CONTROLLERS_KEY = f"{KEY_PREFIX}controllers"
"""Set of the ids of all controllers ever announced."""


class ControllerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A controller's registration, announced every `HEARTBEAT_SECONDS`; without that it ends after
    `HEARTBEAT_TTL_MS`."""

    node: str
    """PBX node."""
    instance: str
    """Tells the controllers of one PBX node apart."""
    pair: str = "main"
    role: Literal["active", "standby"]
    accepting: bool
    """Whether this PBX node takes new calls."""
    calls: int
    capacity: int
    """Calls at once that the PBX node may have."""
    version: str
    started_at_ms: int
    """Unix time in ms."""
    status_url: str = ""
    """`http://host:port` of the controller's status endpoint; empty: it has none."""

    @property
    def controller_id(self) -> str:
        """`<node>/<instance>`."""
        return f"{self.node}/{self.instance}"


def controller_key(controller_id: str) -> str:
    """Key of a controller's registration (string with a lifetime, `ControllerInfo` as JSON)."""
    return f"{KEY_PREFIX}controller:{controller_id}"


def announcement_of_controller(info: ControllerInfo) -> Announcement:
    return Announcement(
        kind="c",
        key=controller_key(info.controller_id),
        members=CONTROLLERS_KEY,
        identity=info.controller_id,
        node=info.node,
        pair=info.pair,
        info=info,
        takes=0 if info.role == "active" and info.accepting else 2,
        capacity=info.capacity,
        calls=info.calls,
    )


class Controllers:
    """The controllers of a cluster. Every method ends within the time limit of `redis_call` and raises
    `StoreUnavailable`."""

    def __init__(self, client: redis.asyncio.Redis, clock: Callable[[], int] = lambda: 0) -> None:
        """`clock`: as of an `Announcer`."""
        self._redis = client
        self._announcer = Announcer(client, clock)

    async def announce_controller(self, info: ControllerInfo) -> None:
        """Announce a controller, to be repeated every `HEARTBEAT_SECONDS`."""
        async with redis_call(redis_unavailable):
            await self._announcer.announce(announcement_of_controller(info))

    async def withdraw_controller(self, info: ControllerInfo) -> None:
        """Take the announcement back. Without Redis it ends by itself."""
        async with redis_call(redis_unavailable):
            await self._announcer.withdraw(announcement_of_controller(info))

    async def controllers(self) -> list[ControllerInfo]:
        """The controllers that are alive, by id."""
        async with redis_call(redis_unavailable):
            members: Any = await self._redis.smembers(CONTROLLERS_KEY)
            keys = [controller_key(member.decode()) for member in sorted(members)]
            payloads: Any = await self._redis.mget(keys) if keys else []
        found = (decoded(payload, ControllerInfo) for payload in payloads if payload is not None)
        return [info for info in found if info is not None]

    async def ids(self) -> list[str]:
        """The ids of all controllers that have announced themselves and not taken it back, dead or alive."""
        async with redis_call(redis_unavailable):
            members: Any = await self._redis.smembers(CONTROLLERS_KEY)
        return sorted(member.decode() for member in members)

    async def forget(self, controller_ids: list[str]) -> None:
        """Strikes dead controllers off the list."""
        async with redis_call(redis_unavailable):
            await self._redis.srem(CONTROLLERS_KEY, *controller_ids)
