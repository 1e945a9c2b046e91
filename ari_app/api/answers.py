"""What the HTTP interface reads and answers: who asks, the bodies of requests, and JSON for every outcome."""

from __future__ import annotations

import asyncio
import hmac
import math
from collections.abc import Mapping
from contextvars import ContextVar

import msgspec
import structlog
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from ari_app.errors import StoreUnavailable, TrunkbridgeError
from audiosocket.runtime.stores import T

MAX_BODY_BYTES = 16_384
REQUEST_SECONDS = 10.0
"""Limit of one request, its body included."""
CALLER: ContextVar[str] = ContextVar("caller")
"""Name of the token that the request came with."""

_REMEDIES = {
    "unauthorized": "send Authorization: Bearer TOKEN, with one of the tokens in api.tokens of the configuration",
    "not_found": "see docs/api.md for the paths that there are",
    "method_not_allowed": "see docs/api.md for the methods of this path",
    "body_too_large": f"send at most {MAX_BODY_BYTES} bytes",
    "timeout": f"send the request within {REQUEST_SECONDS:g} s, and try again",
    "postgres": "try again in a few seconds",
    "redis": "try again in a few seconds",
    "internal_error": "the log of trunkbridge api has a traceback: report it",
}
_STATUSES = {"unknown_application": 404, "wrong_limit": 422, "no_webhook": 409}

log = structlog.get_logger(__name__)


class Limit(msgspec.Struct, frozen=True):
    """Body of a `PUT`."""

    limit: int


class Utilisation(msgspec.Struct, frozen=True):
    """Body of a report: other keys may be there, and are not read."""

    utilisation: float


class BadBody(TrunkbridgeError):
    """A request's body is not what it should be."""


async def read_body(request: web.Request, kind: type[T]) -> T:
    """The body as `kind`. Raises `BadBody`, `web.HTTPRequestEntityTooLarge`."""
    content = await request.read()
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        fields = ", ".join(f'"{name}": ...' for name in kind.__struct_fields__)
        raise BadBody("bad_body", f"the body cannot be read ({error}): send JSON, {{{fields}}}") from None


def check_utilisation(value: float) -> float:
    """A utilisation that can be one. Raises `BadBody`."""
    if not (math.isfinite(value) and value >= 0):
        raise BadBody("bad_body", f"utilisation: {value} is none: send a number from 0, of which 1 is all there is")
    return value


def json_answer(value: object, status: int = 200) -> web.Response:
    """`value` as JSON."""
    return web.Response(body=msgspec.json.encode(value) + b"\n", status=status, content_type="application/json")


def failure(status: int, code: str, message: str, where: str, remedy: str = "") -> web.Response:
    """What went wrong, where, and what to do."""
    answer = {"error": code, "where": where, "message": message, "remedy": remedy or _REMEDIES.get(code, "")}
    return json_answer({name: text for name, text in answer.items() if text}, status)


@web.middleware
async def errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answers every failure in JSON, within the time limit."""
    where = f"{request.method} {request.path}"
    try:
        async with asyncio.timeout(REQUEST_SECONDS):
            return await handler(request)
    except TimeoutError:
        return failure(503, "timeout", f"not done within {REQUEST_SECONDS:g} s", where)
    except StoreUnavailable as error:
        return failure(503, error.reason, str(error), where)
    except BadBody as error:
        return failure(400, error.reason, str(error), where)
    except TrunkbridgeError as error:
        return failure(_STATUSES.get(error.reason, 500), error.reason, str(error), where)
    except web.HTTPException as error:
        code = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}.get(error.status, "bad_request")
        answer = failure(error.status, code, error.reason, where)
        if "Allow" in error.headers:
            answer.headers["Allow"] = error.headers["Allow"]
        return answer
    except Exception:
        log.exception("request_failed", where=where)
        return failure(500, "internal_error", "a fault of trunkbridge's", where)


def bearer_only(tokens: Mapping[str, str]) -> Middleware:
    """Lets in who has one of these tokens (name to token), and knows him by its name; /healthz is everybody's."""
    known = {name: f"Bearer {token}".encode() for name, token in tokens.items()}

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path == "/healthz":
            return await handler(request)
        given = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
        # All are compared, each in a time that does not depend on where it differs.
        matching = [name for name, token in known.items() if hmac.compare_digest(given, token)]
        if not matching:
            where = f"{request.method} {request.path}"
            answer = failure(401, "unauthorized", "no token, or none that is known", where)
            answer.headers["WWW-Authenticate"] = "Bearer"
            return answer
        CALLER.set(matching[0])
        return await handler(request)

    return check
