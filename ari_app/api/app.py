"""The paths of the HTTP interface (docs/api.md)."""

from __future__ import annotations

from collections.abc import Mapping

import structlog
from aiohttp import web

from ari_app.api.answers import (
    CALLER,
    MAX_BODY_BYTES,
    Limit,
    Utilisation,
    bearer_only,
    check_utilisation,
    errors_as_json,
    json_answer,
    read_body,
)
from ari_app.fleet.app_limits import AppLimits

log = structlog.get_logger(__name__)


def api_app(limits: AppLimits, tokens: Mapping[str, str]) -> web.Application:
    """The HTTP application; `tokens`: name to token."""

    async def healthz(_request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def applications(_request: web.Request) -> web.Response:
        return json_answer({"applications": await limits.states()})

    async def get_limit(request: web.Request) -> web.Response:
        return json_answer(await limits.state(request.match_info["name"]))

    async def put_limit(request: web.Request) -> web.Response:
        body = await read_body(request, Limit)
        state = await limits.put(request.match_info["name"], body.limit, _by())
        log.info("limit_set", application=state.application, limit=state.limit, by=_by())
        return json_answer(state)

    async def delete_limit(request: web.Request) -> web.Response:
        state = await limits.take_back(request.match_info["name"])
        log.info("limit_taken_back", application=state.application, limit=state.limit, by=_by())
        return json_answer(state)

    async def utilisation(request: web.Request) -> web.Response:
        body = await read_body(request, Utilisation)
        value = check_utilisation(body.utilisation)
        state = await limits.report(request.match_info["name"], value, _by())
        log.info("utilisation_reported", application=state.application, utilisation=value, limit=state.limit)
        return json_answer(state)

    app = web.Application(
        middlewares=[errors_as_json, bearer_only(tokens)],
        client_max_size=MAX_BODY_BYTES,
    )
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/v1/applications", applications)
    app.router.add_get("/v1/applications/{name}/limit", get_limit)
    app.router.add_put("/v1/applications/{name}/limit", put_limit)
    app.router.add_delete("/v1/applications/{name}/limit", delete_limit)
    app.router.add_post("/v1/applications/{name}/utilisation", utilisation)
    return app


def _by() -> str:
    return f"api {CALLER.get()}"
