"""The way between controllers and a worker that needs no Redis: requests to the worker's status port, below `/private`,
each with the secret that all nodes share. What comes here is used before Redis is asked.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import msgspec
import structlog
from aiohttp import web

from audiosocket.callspec import DIRECT_PATH, CallSpec, LegOrder
from audiosocket.handed_specs import HandedSpecs
from audiosocket.outbox import Outbox

if TYPE_CHECKING:
    from audiosocket.worker import Worker

BODY_BYTES = 262_144
"""The largest body of a request; a call spec has a few kB."""
LOG_EVERY_SECONDS = 30.0

_Handler = Callable[[web.Request], Awaitable[web.Response]]

log = structlog.get_logger(__name__)


class DirectWay:
    """A worker's end of it."""

    def __init__(self, secret: str, specs: HandedSpecs, outbox: Outbox) -> None:
        self._expected = f"Bearer {secret}".encode()
        self._specs = specs
        self._outbox = outbox
        self._logged = -LOG_EVERY_SECONDS

    def calls(self) -> set[str]:
        """Ids of the calls that are on their way here."""
        return self._specs.calls(time.monotonic())

    def add_routes(self, app: web.Application, worker: Worker) -> None:
        """Adds the requests of controllers to the worker's HTTP application.

        `PUT specs` (`CallSpec`): 201, or 409 with why the worker does not take it. `POST orders` (`LegOrder`): 204.
        `GET told`: 200 with `Told`. A wrong secret: 401; what cannot be read: 400.
        """

        async def put_spec(request: web.Request) -> web.Response:
            spec = msgspec.json.decode(await request.read(), type=CallSpec)
            why = self._why_not(spec, worker) or self._specs.put(spec, time.monotonic())
            if why:
                return web.Response(text=why, status=409)
            return web.Response(status=201)

        async def order(request: web.Request) -> web.Response:
            worker.order(msgspec.json.decode(await request.read(), type=LegOrder))
            return web.Response(status=204)

        async def told(request: web.Request) -> web.Response:
            query = request.query
            answer = await self._outbox.told(query["stream"], query.get("run", ""), int(query.get("after", "0")))
            return web.Response(body=answer, content_type="application/json")

        app.router.add_put(f"{DIRECT_PATH}/specs", self._guarded(put_spec))
        app.router.add_post(f"{DIRECT_PATH}/orders", self._guarded(order))
        app.router.add_get(f"{DIRECT_PATH}/told", self._guarded(told))

    def _why_not(self, spec: CallSpec, worker: Worker) -> str:
        if spec.leg_number and not spec.begins:
            return "" if spec.call_id in worker.calls else "not_held"
        if spec.call_id in worker.calls:
            return "duplicate"
        on_their_way = len(self.calls() - {spec.call_id})
        if worker.draining:
            return "draining"
        if worker.load.overloaded or worker.readiness.why_not_alive():
            return "overloaded"
        return "full" if worker.active + on_their_way >= worker.capacity else ""

    def _guarded(self, handler: _Handler) -> _Handler:
        async def guarded(request: web.Request) -> web.Response:
            given = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
            if not hmac.compare_digest(given, self._expected):
                self._log_stranger(request)
                return web.Response(text="the secret of the cluster is another\n", status=401)
            try:
                return await handler(request)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, KeyError, ValueError) as error:
                # A call spec may hold credentials: msgspec names the field, and repeats no value.
                why = str(error) if isinstance(error, msgspec.ValidationError) else type(error).__name__
                return web.Response(text=f"not understood: {why}\n", status=400)

        return guarded

    def _log_stranger(self, request: web.Request) -> None:
        now = time.monotonic()
        if now - self._logged >= LOG_EVERY_SECONDS:
            self._logged = now
            log.warning("cluster_secret_wrong", peer=request.remote, remedy="give all nodes the same cluster_secret")
