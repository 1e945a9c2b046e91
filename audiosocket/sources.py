"""Where a worker's calls come from: announced by the controller through Redis, or, standalone, from a dialplan."""

from __future__ import annotations

import asyncio
import ipaddress
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol

import msgspec
import structlog

from audiosocket.breakers import Breakers, MemoryBreakers
from audiosocket.callspec import CallNotice, CallReport, CallSpec, LegOrder, WorkerInfo
from audiosocket.clock import now_ms
from audiosocket.errors import SpecRefused, Unavailable
from audiosocket.handed_specs import HandedSpecs

if TYPE_CHECKING:
    from audiosocket.registry import Registry

REMEMBERED_UUIDS = 100_000
HANDED_SECONDS = 4.0
"""How long a leg waits for a spec that Redis does not give out, for want of an answer."""
HANDED_POLL_SECONDS = 0.05
HEARD_SECONDS = 1.0
"""How long an announcement waits for orders to be heard."""

log = structlog.get_logger(__name__)


class CallSource(Protocol):
    """What a worker asks about its calls."""

    breakers: Breakers
    """Where the circuit breakers of applications are kept."""

    async def take(self, leg_uuid: str, peer: str) -> CallSpec:
        """The call that a leg stands for. Raises `SpecRefused`, or `Unavailable` when it cannot be known now."""

    async def report(self, spec: CallSpec, report: CallReport) -> None:
        """The end of a call."""

    def notify(self, spec: CallSpec, notice: CallNotice) -> None:
        """What the controller is to know at once. Returns at once; one that cannot be told is logged and forgotten."""

    def not_here(self, order: LegOrder) -> None:
        """The worker was asked for a call that it has not had. As `notify`."""

    async def orders(self, worker_id: str, handle: Callable[[LegOrder], None]) -> None:
        """Hands every order to `handle`, for as long as the worker runs."""

    async def announce(self, info: WorkerInfo) -> set[str]:
        """The worker's registration, every `HEARTBEAT_SECONDS`. Of one that drains: the ids of the calls that it has
        been given, those that are still on their way to it included. Raises `Unavailable`."""

    async def given_away(self, worker_id: str, calls: Mapping[str, int]) -> set[str]:
        """Which of these calls, by id with the tokens of their leases, another worker has, or this one under a later
        lease. Raises `Unavailable`."""

    async def close(self, worker_id: str) -> None:
        """The worker ends: it is no longer announced, and no report stays behind."""


class RegistrySource:
    """Calls that a controller announced in Redis, or has handed over straight."""

    def __init__(self, registry: Registry, handed: HandedSpecs | None = None) -> None:
        self._registry = registry
        self._handed = handed
        self.breakers: Breakers = registry.breakers

    async def take(self, leg_uuid: str, peer: str) -> CallSpec:
        if self._handed is None:
            return await self._registry.take(leg_uuid)
        if (found := self._handed.take(leg_uuid, time.monotonic())) is not None:
            return found
        asked = asyncio.ensure_future(self._registry.take(leg_uuid))
        try:
            return await self._first(asked, self._handed, leg_uuid)
        finally:
            if not asked.done():
                asked.cancel()
                await asyncio.gather(asked, return_exceptions=True)

    async def _first(self, asked: asyncio.Future[CallSpec], handed: HandedSpecs, leg_uuid: str) -> CallSpec:
        """The spec from Redis or, where that goes just now, from the controller, as soon as it finds out too."""
        over = time.monotonic() + HANDED_SECONDS
        while True:
            if asked.done():
                await asyncio.sleep(HANDED_POLL_SECONDS)
            else:
                await asyncio.wait((asked,), timeout=HANDED_POLL_SECONDS)
            lost = asked.done() and isinstance(asked.exception(), Unavailable)
            if asked.done() and not lost:
                return asked.result()
            if (found := handed.take(leg_uuid, time.monotonic())) is not None:
                return found
            if lost and time.monotonic() > over:
                return asked.result()

    async def report(self, spec: CallSpec, report: CallReport) -> None:
        await self._registry.report(spec.report_stream, report)

    def notify(self, spec: CallSpec, notice: CallNotice) -> None:
        self._registry.notify(spec.report_stream, notice)

    def not_here(self, order: LegOrder) -> None:
        notice = CallNotice(call_id=order.call_id, leg_uuid=order.leg_uuid, event="not_here", at_ms=now_ms())
        self._registry.notify(order.report_stream, notice)

    async def orders(self, worker_id: str, handle: Callable[[LegOrder], None]) -> None:
        await self._registry.orders(worker_id, handle)

    async def announce(self, info: WorkerInfo) -> set[str]:
        # A call may come at once, and with it an order that would not be heard.
        try:
            async with asyncio.timeout(HEARD_SECONDS):
                await self._registry.listening.wait()
        except TimeoutError:
            raise Unavailable("orders cannot be heard") from None
        return await self._registry.heartbeat(info)

    async def given_away(self, worker_id: str, calls: Mapping[str, int]) -> set[str]:
        return await self._registry.given_away(worker_id, calls)

    async def close(self, worker_id: str) -> None:
        await self._registry.deregister(worker_id)
        await self._registry.close()


class StandaloneSource:
    """Every connection is a call to the one application given on the command line.

    Without `accept_any` only this machine may connect, and a UUID is good for one call: what a dialplan on the same
    host does. With it, whoever reaches the port reaches the application, with any UUID, as often as wanted.
    """

    def __init__(self, template: CallSpec, accept_any: bool) -> None:
        self._template = template
        self._accept_any = accept_any
        self._draining = False
        self._seen: OrderedDict[str, None] = OrderedDict()
        self.breakers: Breakers = MemoryBreakers()

    async def take(self, leg_uuid: str, peer: str) -> CallSpec:
        if self._draining:  # nobody else keeps calls away: the dialplan goes on, to another worker or a prompt
            raise SpecRefused("draining")
        if not self._accept_any:
            if not ipaddress.ip_address(peer).is_loopback:
                raise SpecRefused("unknown")
            if leg_uuid in self._seen:
                raise SpecRefused("reused")
            self._seen[leg_uuid] = None
            if len(self._seen) > REMEMBERED_UUIDS:
                self._seen.popitem(last=False)
        now_ms = time.time_ns() // 1_000_000
        return msgspec.structs.replace(
            self._template,
            # The dialplan's UUID is what its author can look up again; every call gets ids of its own all the same.
            call_id=leg_uuid if not self._accept_any else str(uuid.uuid4()),
            leg_uuid=leg_uuid,
            call_sid=leg_uuid.replace("-", ""),
            stream_sid=uuid.uuid4().hex,
            created_at_ms=now_ms,
            expires_at_ms=now_ms,
        )

    async def report(self, spec: CallSpec, report: CallReport) -> None:
        return None  # the log line of the ended call is all that a standalone worker leaves

    def notify(self, spec: CallSpec, notice: CallNotice) -> None:
        return None  # there is no controller

    def not_here(self, order: LegOrder) -> None:
        return None

    async def orders(self, worker_id: str, handle: Callable[[LegOrder], None]) -> None:
        await asyncio.Event().wait()

    async def announce(self, info: WorkerInfo) -> set[str]:
        self._draining = info.draining
        return set()

    async def given_away(self, worker_id: str, calls: Mapping[str, int]) -> set[str]:
        return set()

    async def close(self, worker_id: str) -> None:
        return None
