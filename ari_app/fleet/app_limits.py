"""The limits of applications as they hold now: the configuration's, or what has been set over it at run time.

PostgreSQL has what was set (`ari_app.store.limits`), and Redis a copy, which the script that grants leases reads: so a
change holds for the next call of every controller. The copy is written after the truth, and put back by every
controller that runs. While PostgreSQL is away nothing can be changed, and what is known stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, NoReturn

import redis.asyncio
import structlog

from ari_app.errors import StoreUnavailable, TrunkbridgeError
from ari_app.fleet.keeping import keep
from ari_app.fleet.leases import LIMITS_KEY, Leases
from ari_app.fleet.utilisation import next_limit
from ari_app.limit import MAX_CALLS, LimitSettings
from ari_app.store.limits import LimitRow, LimitStore
from ari_app.store.present import redis_unavailable
from audiosocket.runtime.stores import redis_call

# What has been written since it was read is not written over. ARGV: application, the copy as it was read, and as it is
# to be; empty: none.
_REPLACE = """
if (redis.call('HGET', KEYS[1], ARGV[1]) or '') ~= ARGV[2] then return 0 end
if ARGV[3] == '' then return redis.call('HDEL', KEYS[1], ARGV[1]) end
return redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
"""

log = structlog.get_logger(__name__)


class UnknownApplication(TrunkbridgeError):
    """The configuration has no application of this name."""


class WrongLimit(TrunkbridgeError):
    """What was asked for cannot be a limit, or not of this application."""


@dataclass(frozen=True, slots=True)
class ApplicationState:
    """An application's limit, and its calls."""

    application: str
    limit: int | None
    """Calls at once; None: there is no limit."""
    source: Literal["none", "configuration", "operator", "webhook"]
    """Where the limit comes from."""
    configured: int | None
    set_by: str | None
    set_at: datetime | None
    when_full: str
    calls: int
    """Calls that count now, over all PBX nodes."""
    waiting: int
    pairs: dict[str, int]
    """`calls` by the pair that carries them."""


class AppLimits:
    """Reads and changes limits. Every method raises `StoreUnavailable`, and those that name an application
    `UnknownApplication`."""

    def __init__(
        self,
        client: redis.asyncio.Redis,
        leases: Leases,
        store: LimitStore,
        applications: Mapping[str, LimitSettings],
    ) -> None:
        self._redis = client
        self._leases = leases
        self._store = store
        self._applications = applications
        self._replace = client.register_script(_REPLACE)
        self._known: dict[str, LimitRow] | None = None

    async def states(self) -> list[ApplicationState]:
        """All applications, by name."""
        return await self._states(sorted(self._applications), await self._store.all())

    async def state(self, application: str) -> ApplicationState:
        """One application."""
        self._settings(application)
        row = await self._store.get(application)
        return (await self._states([application], {} if row is None else {application: row}))[0]

    async def put(self, application: str, calls: int, by: str) -> ApplicationState:
        """An operator's limit, which holds until it is taken back. Raises `WrongLimit`."""
        self._settings(application)
        if not 0 <= calls <= MAX_CALLS:
            raise WrongLimit("wrong_limit", f"a limit is a number of calls from 0 to {MAX_CALLS}, not {calls}")
        row = await self._store.put(application, calls, "operator", by)
        await self._copy(application, str(row.calls))
        return (await self._states([application], {application: row}))[0]

    async def take_back(self, application: str) -> ApplicationState:
        """The configuration's limit holds again."""
        self._settings(application)
        await self._store.remove(application)
        await self._copy(application, "")
        return (await self._states([application], {}))[0]

    async def report(self, application: str, utilisation: float, by: str) -> ApplicationState:
        """What the application's cluster says of its utilisation (1: all of it), and the limit that follows.

        An operator's limit stays. Raises `WrongLimit` for an application whose limit follows nothing.
        """
        webhook = self._settings(application).webhook
        if webhook is None:
            raise WrongLimit(
                "no_webhook",
                f"application {application!r} follows no utilisation: give it limit.webhook in the configuration",
            )
        state = await self.state(application)
        limit = next_limit(utilisation, calls=state.calls, limit=state.limit, settings=webhook)
        if state.source == "operator" or (state.source == "webhook" and state.limit == limit):
            return state
        row = await self._store.put(application, limit, "webhook", by)
        await self._copy(application, str(row.calls))
        return (await self._states([application], {application: row}))[0]

    async def keep(self) -> NoReturn:
        """Puts the copy back into a Redis that has lost it, for ever."""
        await keep(self.compare, "limits_not_compared")

    async def compare(self) -> None:
        """Compares the copy with the truth once; while PostgreSQL is away, with what was known last."""
        async with redis_call(redis_unavailable):
            found: Any = await self._redis.hgetall(LIMITS_KEY)
        copies = {name.decode(): calls.decode() for name, calls in found.items()}
        try:
            self._known = await self._store.all()
        finally:
            if self._known is not None:
                wanted = {name: str(row.calls) for name, row in self._known.items()}
                for name in sorted(wanted.keys() | copies.keys()):
                    if wanted.get(name) != copies.get(name):
                        await self._put(name, copies.get(name, ""), wanted.get(name, ""))

    async def _put(self, application: str, read: str, calls: str) -> None:
        async with redis_call(redis_unavailable):
            if await self._replace(keys=[LIMITS_KEY], args=[application, read, calls]):
                log.warning("limit_put_back", application=application, calls=calls or "none", was=read or "none")

    async def _copy(self, application: str, calls: str) -> None:
        try:
            async with redis_call(redis_unavailable):
                if calls:
                    await self._redis.hset(LIMITS_KEY, application, calls)
                else:
                    await self._redis.hdel(LIMITS_KEY, application)
        except StoreUnavailable as error:
            text = f"the limit is kept, and holds as soon as Redis answers: {error}"
            raise StoreUnavailable(error.reason, text) from error

    async def _states(self, names: list[str], rows: Mapping[str, LimitRow]) -> list[ApplicationState]:
        calls = await self._leases.active_of_applications(names)
        waiting = await self._leases.waiting(names)
        found = []
        for name in names:
            row, settings = rows.get(name), self._applications[name]
            limit = settings.calls if row is None else row.calls
            by_default: Literal["none", "configuration"] = "none" if settings.calls is None else "configuration"
            found.append(
                ApplicationState(
                    application=name,
                    limit=limit,
                    source=by_default if row is None else row.source,
                    configured=settings.calls,
                    set_by=None if row is None else row.set_by,
                    set_at=None if row is None else row.set_at,
                    when_full=settings.when_full,
                    calls=calls[name],
                    waiting=waiting[name],
                    pairs=await self._leases.pairs_of_application(name) if calls[name] else {},
                )
            )
        return found

    def _settings(self, application: str) -> LimitSettings:
        settings = self._applications.get(application)
        if settings is None:
            known = ", ".join(sorted(self._applications))
            raise UnknownApplication("unknown_application", f"no application {application!r}: one of {known}")
        return settings
