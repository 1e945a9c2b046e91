"""What is asked of the call records: lists and lookups for people, and the open calls for a controller that starts."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import fields
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg
import msgspec

from ari_app.errors import StoreUnavailable, TrunkbridgeError
from ari_app.store.postgres import fetch
from ari_app.store.records import CallEvent, CallRow, RecordingPart
from audiosocket.callspec import MediaFigures

MIN_PREFIX = 4
"""Digits of an id that a person must type."""

_CALL_COLUMNS = ", ".join(field.name for field in fields(CallRow))
_EVENT_COLUMNS = ", ".join(field.name for field in fields(CallEvent))


class AmbiguousCall(TrunkbridgeError):
    """More than one call begins with what was given."""


def _call(record: asyncpg.Record) -> CallRow:
    values: dict[str, Any] = dict(record)
    values["call_id"] = str(values["call_id"])
    if values["leg_uuid"] is not None:
        values["leg_uuid"] = str(values["leg_uuid"])
    if values["media"] is not None:
        values["media"] = msgspec.json.decode(values["media"], type=MediaFigures)
    if values["recordings"] is not None:
        values["recordings"] = msgspec.json.decode(values["recordings"], type=tuple[RecordingPart, ...])
    return CallRow(**values)


def _event(record: asyncpg.Record) -> CallEvent:
    values: dict[str, Any] = dict(record)
    values["call_id"] = str(values["call_id"])
    values["detail"] = msgspec.json.decode(values["detail"])
    return CallEvent(**values)


async def _nothing_to_wait_for() -> bool:
    return True


class CallStore:
    """Reads. Every method raises `StoreUnavailable`."""

    def __init__(self, pool: asyncpg.Pool, complete: Callable[[], Awaitable[bool]] = _nothing_to_wait_for) -> None:
        """`complete`: whether PostgreSQL has what earlier processes had to write (`RecordWriter.replayed`)."""
        self._pool = pool
        self._complete = complete

    async def list_calls(
        self,
        *,
        limit: int = 50,
        active_only: bool = False,
        node: str | None = None,
        trunk: str | None = None,
        application: str | None = None,
        caller: str | None = None,
        callee: str | None = None,
        since: datetime | None = None,
    ) -> list[CallRow]:
        """Calls, newest first, that fit all of what is given."""
        where, values = ["true"], list[object]()
        exact = {"node": node, "trunk": trunk, "application": application, "caller": caller, "callee": callee}
        for column, value in exact.items():
            if value is not None:
                values.append(value)
                where.append(f"{column} = ${len(values)}")
        if since is not None:
            values.append(since)
            where.append(f"created_at >= ${len(values)}")
        if active_only:
            where.append("ended_at IS NULL")
        values.append(limit)
        query = (
            f"SELECT {_CALL_COLUMNS} FROM calls WHERE {' AND '.join(where)}"  # noqa: S608 - names of our own
            f" ORDER BY created_at DESC, call_id DESC LIMIT ${len(values)}"
        )
        return [_call(record) for record in await fetch(self._pool, query, *values)]

    async def get_call(self, text: str) -> CallRow | None:
        """The call with this id, call sid, or beginning of an id (4 hex digits or more); None when there is none.

        Raises `AmbiguousCall` when several begin so.
        """
        found = await self._find(text.strip().lower())
        if len(found) > 1:
            detail = f"{text!r} stands for more than one call ({found[0]['call_id']}, ...): give more of the id"
            raise AmbiguousCall("ambiguous_call", detail)
        return _call(found[0]) if found else None

    async def _find(self, text: str) -> list[asyncpg.Record]:
        if re.fullmatch(r"ca[0-9a-f]{32}", text):
            text = text[2:]  # as an application that speaks Twilio's protocol knows the call
        digits = text.replace("-", "")
        if not re.fullmatch(r"[0-9a-f]{1,32}", digits):
            return []
        query = f"SELECT {_CALL_COLUMNS} FROM calls WHERE "  # noqa: S608 - names of our own
        by_sid: list[asyncpg.Record] = await fetch(self._pool, query + "call_sid = $1", digits)
        if by_sid or len(digits) < MIN_PREFIX:
            return by_sid
        first, last = UUID(digits.ljust(32, "0")), UUID(digits.ljust(32, "f"))
        found: list[asyncpg.Record] = await fetch(
            self._pool, query + "call_id BETWEEN $1 AND $2 ORDER BY call_id LIMIT 2", first, last
        )
        return found

    async def events(self, call_id: str) -> list[CallEvent]:
        """The story of a call, in order."""
        query = f"SELECT {_EVENT_COLUMNS} FROM call_events WHERE call_id = $1 ORDER BY at, source, seq"  # noqa: S608
        return [_event(record) for record in await fetch(self._pool, query, UUID(call_id))]

    async def knows_caller(self, node: str, channel_id: str, since: datetime) -> bool:
        """Whether a PBX node has a record of the call of this caller's channel, begun after `since`."""
        query = "SELECT true FROM calls WHERE node = $1 AND caller_channel_id = $2 AND created_at >= $3 LIMIT 1"
        return bool(await fetch(self._pool, query, node, channel_id, since))

    async def open_calls(self, node: str) -> list[CallRow]:
        """The calls of a PBX node that have not ended, oldest first.

        Raises `StoreUnavailable` also while PostgreSQL lacks what an earlier process left to be written: by its word a
        call would be taken for what it was long ago.
        """
        if not await self._complete():
            raise StoreUnavailable("postgres", "records of an earlier controller are not in PostgreSQL yet")
        query = f"SELECT {_CALL_COLUMNS} FROM calls WHERE node = $1 AND ended_at IS NULL ORDER BY created_at"  # noqa: S608
        return [_call(record) for record in await fetch(self._pool, query, node)]
