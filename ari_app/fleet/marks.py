"""Marks of nodes that an operator has taken out of placement: no new call goes to their workers, or comes in on their
Asterisk; the calls that they have go on.

PostgreSQL has the truth. What placement reads is a copy in Redis with a lifetime, which every controller renews
(`Marks.keep`): one that Redis lost is back within `KEEP_SECONDS`, and one that is taken away while a controller renews
it is gone for good within `COPY_SECONDS`. While PostgreSQL is away the marks stay as they were.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal, NoReturn

import asyncpg
import redis.asyncio

from ari_app.fleet.keeping import keep
from ari_app.store.postgres import execute, fetch
from ari_app.store.present import redis_unavailable
from audiosocket.keys import mark_key
from audiosocket.runtime.stores import redis_call

COPY_SECONDS = 30.0

MarkKind = Literal["cordoned", "draining"]


@dataclass(frozen=True, slots=True)
class Mark:
    """Why no new calls go to a node."""

    node: str
    mark: MarkKind
    """`cordoned`: until further notice; `draining`: somebody waits for its calls to end."""
    set_by: str
    since: datetime


class Marks:
    """Sets and reads marks. Every method raises `StoreUnavailable`."""

    def __init__(self, pool: asyncpg.Pool, client: redis.asyncio.Redis) -> None:
        self._pool = pool
        self._redis = client
        self.known: dict[str, Mark] = {}
        """By node, as they were read last."""

    async def read(self) -> dict[str, Mark]:
        """All marks, by node."""
        rows = await fetch(self._pool, "SELECT node, mark, set_by, since FROM node_marks ORDER BY node")
        self.known = {row["node"]: Mark(**row) for row in rows}
        return self.known

    async def put(self, node: str, mark: MarkKind, by: str) -> None:
        """Takes a node out of placement, from now on."""
        await execute(
            self._pool,
            "INSERT INTO node_marks (node, mark, set_by) VALUES ($1, $2, $3)"
            " ON CONFLICT (node) DO UPDATE SET mark = excluded.mark, set_by = excluded.set_by, since = now()",
            *(node, mark, by),
        )
        await self._copy([(node, mark)])

    async def clear(self, node: str) -> bool:
        """Lets a node take calls again; whether it had a mark."""
        status = await execute(self._pool, "DELETE FROM node_marks WHERE node = $1", node)
        async with redis_call(redis_unavailable):
            await self._redis.delete(mark_key(node))
        return not status.endswith(" 0")

    async def keep(self) -> NoReturn:
        """Keeps the copy in Redis, for ever."""
        await keep(self._renew, "marks_not_renewed")

    async def _renew(self) -> None:
        try:
            await self.read()
        finally:
            await self._copy([(mark.node, mark.mark) for mark in self.known.values()])

    async def _copy(self, marks: list[tuple[str, MarkKind]]) -> None:
        if not marks:
            return
        async with redis_call(redis_unavailable), self._redis.pipeline(transaction=True) as pipeline:
            for node, mark in marks:
                pipeline.set(mark_key(node), mark, px=int(COPY_SECONDS * 1000))
            await pipeline.execute()
