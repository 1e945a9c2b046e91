"""Application limits that were set at run time: who set which, and when. This table is the truth."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import asyncpg

from ari_app.store.postgres import unavailable

Source = Literal["operator", "webhook"]


@dataclass(frozen=True, slots=True)
class LimitRow:
    """One limit. The field names are the columns of `application_limits`."""

    application: str
    calls: int
    source: Source
    """An operator's stays until it is taken back; a webhook's follows the next report."""
    set_by: str
    set_at: datetime


class LimitStore:
    """Reads and writes. Every method raises `StoreUnavailable`."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def all(self) -> dict[str, LimitRow]:
        """All limits that were set, by application."""
        with unavailable():
            records = await self._pool.fetch(
                "SELECT application, calls, source, set_by, set_at FROM application_limits ORDER BY application"
            )
        return {record["application"]: LimitRow(**dict(record)) for record in records}

    async def get(self, application: str) -> LimitRow | None:
        """The limit that was set for an application; None: none."""
        with unavailable():
            record = await self._pool.fetchrow(
                "SELECT application, calls, source, set_by, set_at FROM application_limits WHERE application = $1",
                application,
            )
        return None if record is None else LimitRow(**dict(record))

    async def put(self, application: str, calls: int, source: Source, set_by: str) -> LimitRow:
        """Sets a limit, and returns the one that then holds: a webhook's never takes the place of an operator's."""
        with unavailable():
            record = await self._pool.fetchrow(
                """
                INSERT INTO application_limits AS held (application, calls, source, set_by) VALUES ($1, $2, $3, $4)
                ON CONFLICT (application) DO UPDATE SET
                    calls = excluded.calls, source = excluded.source, set_by = excluded.set_by, set_at = now()
                    WHERE excluded.source = 'operator' OR held.source = 'webhook'
                RETURNING application, calls, source, set_by, set_at
                """,
                application,
                calls,
                source,
                set_by,
            )
        found = await self.get(application) if record is None else LimitRow(**dict(record))
        # It was an operator's, and has been taken back since: the next report counts.
        return found or await self.put(application, calls, source, set_by)

    async def remove(self, application: str) -> bool:
        """Takes a limit back: the configuration's holds again. Whether there was one."""
        with unavailable():
            done: str = await self._pool.execute("DELETE FROM application_limits WHERE application = $1", application)
        return done != "DELETE 0"
