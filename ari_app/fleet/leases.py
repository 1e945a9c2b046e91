"""Leases: which media worker carries which call, chosen and recorded in one step.

The policy is in the Lua scripts beside this module and nowhere else: only inside Redis can the choice and the record of
it be one step that no other controller gets between. Eligible is a worker that is alive (its `WorkerInfo` has not
expired), not draining, not overloaded, below its capacity, not excluded, and whose node bears no mark; chosen is the
one with the least leases per capacity, and among equals in turn.

- Inbound (`acquire`): among the workers of the PBX node's own pair. Only when none of these is eligible, among those of
  all pairs of its spill-over together.
- Outbound (`acquire_outbound`): among the pairs that have an eligible worker and a PBX node that accepts calls, the
  least loaded, by its workers (leases per capacity) or its PBX nodes (calls per capacity), whichever is more; then the
  worker and the PBX node within it.

Invariants, whatever the order of calls and whoever dies in between:
- No grant takes a worker above its capacity.
- A call holds at most one lease. Asking again gives the same one, unless its worker is dead or excluded; then another
  takes its place, under a new token. A refusal changes nothing.
- Every lease ends: one that is not renewed expires, by Redis' clock.
- Tokens only grow, also over a Redis that lost its memory, as long as its clock does not go back. A stale token changes
  nothing: what was given back, or is held under a newer token, is neither renewed nor released by it.
- An application is never granted more than its limit, its waiting calls in their order. Renewals alone may exceed it,
  where a lease had expired, or was forgotten by Redis, and others were quicker: the calls that they stand for are
  there.

`lease-ends` (sorted set, call id by expiry in ms) alone says which leases there are; each script begins by removing
those that have expired. A worker's leases are a sorted set of the same kind, those of pairs, PBX nodes and applications
are sets, all written in the same step. `lease:<call id>` finds them, and remembers for the length of a lease which
token was given back. All of these keys expire by themselves, some minutes after the last lease in them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from itertools import islice
from typing import Any

import msgspec
import redis.asyncio

from ari_app.errors import NoCapacity
from ari_app.store.present import redis_unavailable
from audiosocket.callspec import WorkerInfo
from audiosocket.keys import KEY_PREFIX, PAIRS_KEY
from audiosocket.runtime.stores import redis_call

RENEW_BATCH = 200
"""Leases that one script renews: Redis does nothing else meanwhile."""
WAIT_SECONDS = 5.0
"""How long a waiting call keeps its place in an application's line without asking again."""

LIMITS_KEY = f"{KEY_PREFIX}app-limits"
"""Limits that were set at run time (hash, application to calls): they take the place of `acquire`'s `limit`."""

_WHY = {
    "no_workers": "no media worker is registered: is a gateway running, and does it reach this Redis?",
    "all_draining": "every media worker is draining",
    "all_full": "every media worker is at its capacity, or does not keep its 20 ms",
    "no_pbx": "no PBX node accepts calls",
    "app_full": "the application has as many calls as it may",
}


def _script(name: str) -> str:
    folder = resources.files("ari_app.fleet")
    return "\n".join((folder / file).read_text(encoding="utf-8") for file in ("common.lua", f"{name}.lua"))


_ACQUIRE, _RENEW, _RELEASE, _COUNT = (_script(name) for name in ("acquire", "renew", "release", "count"))


@dataclass(frozen=True, slots=True)
class Lease:
    """What a call was given."""

    worker: WorkerInfo
    token: int
    """Fencing token: every lease has a greater one than those granted before it."""
    node: str
    """PBX node of the call."""


@dataclass(frozen=True, slots=True)
class Held:
    """A lease as its holder knows it."""

    worker_id: str
    token: int = 0
    """0: not known, as of a call that a controller has just adopted."""
    application: str = ""
    node: str = ""
    """PBX node; empty: the one that these `Leases` are for."""


@dataclass(frozen=True, slots=True)
class Renewal:
    """What became of leases that were to be renewed."""

    lost: set[str] = field(default_factory=set)
    """Calls that have no lease under their token."""
    tokens: dict[str, int] = field(default_factory=dict)
    """Of the calls whose token was not known."""


class Leases:
    """The leases of a cluster, as one PBX node asks for them. Every method ends within `redis_call`'s time limit and
    raises `StoreUnavailable`."""

    def __init__(
        self,
        client: redis.asyncio.Redis,
        lease_seconds: float,
        *,
        node: str = "",
        pair: str = "main",
        spill_over: Iterable[str] = (),
        clock: Callable[[], int] = lambda: 0,
    ) -> None:
        """`node`: the PBX node; `pair` and `spill_over`: where its inbound calls are carried. `clock`: Unix time in ms
        that takes the place of Redis', as a simulation needs it; 0: Redis' clock."""
        self._redis = client
        self._lease_ms = int(lease_seconds * 1000)
        self._node = node
        self._pairs = [pair, *spill_over]
        self._clock = clock
        self._acquire = client.register_script(_ACQUIRE)
        self._renew = client.register_script(_RENEW)
        self._release = client.register_script(_RELEASE)
        self._count = client.register_script(_COUNT)

    async def acquire(
        self,
        call_id: str,
        *,
        application: str = "",
        limit: int | None = None,
        line_max: int = 0,
        exclude: Collection[str] = (),
    ) -> Lease:
        """A worker for an inbound call of this PBX node, leased for `lease_seconds`. Raises `NoCapacity`.

        `limit`: calls that `application` may have at once, in the whole cluster, unless `LIMITS_KEY` has another for
        it. `line_max` over 0: the call waits when the limit is reached, unless so many wait already; it asks again
        within `WAIT_SECONDS` or loses its place, and the refusal says which place it has. `exclude`: ids of workers
        that are not to be chosen.
        """
        return await self._grant(call_id, self._node, self._pairs, application, limit, line_max, exclude)

    async def acquire_outbound(
        self,
        call_id: str,
        *,
        application: str = "",
        limit: int | None = None,
        line_max: int = 0,
        exclude: Collection[str] = (),
    ) -> Lease:
        """The PBX node that is to place an outbound call, and a worker of its pair; as `acquire` otherwise. `exclude`
        may name PBX nodes too."""
        return await self._grant(call_id, "", [], application, limit, line_max, exclude)

    async def _grant(
        self,
        call_id: str,
        node: str,
        pairs: list[str],
        application: str,
        limit: int | None,
        line_max: int,
        exclude: Collection[str],
    ) -> Lease:
        wait_ms = int(WAIT_SECONDS * 1000)
        slots = [application, -1 if limit is None else limit, line_max, wait_ms]
        arguments = [call_id, *slots, node, len(pairs), *pairs, *exclude]
        async with redis_call(redis_unavailable):
            granted, what, *more = await self._run(self._acquire, arguments)
        if not granted:
            reason = what.decode()
            raise NoCapacity(reason, _WHY[reason], more[0])
        try:
            worker = msgspec.json.decode(what, type=WorkerInfo)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise redis_unavailable(f"the worker's registration cannot be read: {error}") from error
        return Lease(worker, more[0], more[1].decode())

    async def leave_queue(self, call_id: str, application: str) -> None:
        """Give up a call's place in the line of an application."""
        async with redis_call(redis_unavailable), self._redis.pipeline(transaction=True) as pipeline:
            pipeline.zrem(f"{KEY_PREFIX}app-line:{application}", call_id)
            pipeline.zrem(f"{KEY_PREFIX}app-line-ends:{application}", call_id)
            await pipeline.execute()

    async def renew(self, held: Mapping[str, Held]) -> Renewal:
        """Renew the leases of calls, by call id.

        A lease that Redis forgot, or that expired, is granted again where there is room, under its token, so that the
        ledger of a Redis that lost its memory is rebuilt by the next renewals. A call without a lease is not to be
        ended for that.
        """
        done = Renewal()
        calls = iter(held.items())
        while batch := list(islice(calls, RENEW_BATCH)):
            arguments: list[str | int] = []
            for call_id, lease in batch:
                arguments += (call_id, lease.worker_id, lease.token, lease.application, lease.node or self._node)
            async with redis_call(redis_unavailable):
                lost, learned = await self._run(self._renew, arguments)
            done.lost.update(call_id.decode() for call_id in lost)
            done.tokens.update(zip((call_id.decode() for call_id in learned[::2]), learned[1::2], strict=True))
        return done

    async def release(self, call_id: str, token: int) -> bool:
        """Give a call's lease back; whether it held one under this token (0: not known). Harmless when repeated, or
        while a renewal of the same lease is under way."""
        async with redis_call(redis_unavailable):
            return bool(await self._run(self._release, [call_id, token]))

    async def active(self, worker_ids: Collection[str]) -> dict[str, int]:
        """How many leases each of these workers has."""
        return await self._counted("", worker_ids)

    async def active_on_nodes(self, nodes: Collection[str]) -> dict[str, int]:
        """How many leases the calls of each of these PBX nodes have."""
        return await self._counted("node-leases:", nodes)

    async def active_of_applications(self, applications: Collection[str]) -> dict[str, int]:
        """How many leases the calls of each of these applications have."""
        return await self._counted("app-leases:", applications)

    async def waiting(self, applications: Collection[str]) -> dict[str, int]:
        """How many calls wait in the line of each of these applications."""
        return await self._counted("app-line-ends:", applications)

    async def pairs_of_application(self, application: str) -> dict[str, int]:
        """How many leases the calls of an application have on the workers of each pair."""
        async with redis_call(redis_unavailable):
            calls: Any = await self._redis.smembers(f"{KEY_PREFIX}app-leases:{application}")
            records: Any = await self._redis.mget([f"{KEY_PREFIX}lease:{call.decode()}" for call in calls] or ["-"])
        # token, worker, PBX node, pair, application: see common.lua
        return dict(Counter(record.decode().split(" ")[3] for record in records if record is not None))

    async def _counted(self, kind: str, names: Collection[str]) -> dict[str, int]:
        async with redis_call(redis_unavailable):
            counts = await self._run(self._count, [kind + name for name in names])
        return dict(zip(names, counts, strict=True))

    async def _run(self, script: Any, arguments: list[Any]) -> Any:
        return await script(keys=[PAIRS_KEY], args=[KEY_PREFIX, self._lease_ms, self._clock(), *arguments])
