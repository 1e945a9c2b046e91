"""Errors of the ARI client; each says by its class what the caller can do about it.

TrunkbridgeError
└── AriError                one request failed: method, path, status, Asterisk's message
    ├── AriNotFound         404: the channel, bridge or application is gone
    ├── AriConflict         409: the id is taken, or the channel is not in a state (or application) for this
    ├── AriInvalid          400 or 422: the request is wrong
    ├── AriRejected         Asterisk would not or could not: 5xx and every other status
    │   └── AriUnauthorized 401: user or password is wrong
    ├── AriUnavailable      refused, reset or not answered in time; `retryable`. Also an `Unavailable`
    └── AriMalformed        the answer cannot be read. Also a `RemoteProtocolError`
└── AppReplaced             another process took the Stasis application's name
"""

from __future__ import annotations

from ari_app.errors import RemoteProtocolError, TrunkbridgeError, Unavailable


class AriError(TrunkbridgeError):
    """A request to Asterisk failed. `status` is 0 when there was no HTTP answer."""

    REASON = "ari_error"

    def __init__(self, method: str, path: str, status: int, message: str) -> None:
        answer = f"{status} {message}" if status else message
        super().__init__(self.REASON, f"{method} {path}: {answer}")
        self.method = method
        self.path = path
        self.status = status
        self.message = message


class AriNotFound(AriError):
    """What the path names does not exist (any more)."""

    REASON = "ari_not_found"


class AriConflict(AriError):
    """The id is taken, or the object is in no state for the request: `Channel not in Stasis application`."""

    REASON = "ari_conflict"


class AriInvalid(AriError):
    """A parameter is missing or wrong. `Channel not found` is one of these where the channel is a parameter."""

    REASON = "ari_invalid"


class AriRejected(AriError):
    """Asterisk would not or could not. External media that cannot connect to its host is a 500."""

    REASON = "ari_rejected"


class AriUnauthorized(AriRejected):
    """Asterisk does not accept the user or the password."""

    REASON = "ari_unauthorized"

    def __init__(self, method: str, path: str, status: int, message: str) -> None:
        super().__init__(method, path, status, f"{message}: compare the ARI user and password with Asterisk's ari.conf")


class AriUnavailable(AriError, Unavailable):
    """Asterisk could not be reached or did not answer in time. What was asked for may have happened."""

    REASON = "ari_unavailable"


class AriMalformed(AriError, RemoteProtocolError):
    """Asterisk answered what ARI does not allow."""

    REASON = "ari_malformed"


class AppReplaced(TrunkbridgeError):
    """Another process connected with the same application name; this one gets no events any more."""

    def __init__(self, app: str) -> None:
        super().__init__(
            "app_replaced",
            f"another process took the Stasis application {app!r}: stop it, or give each controller a name of its own",
        )


def from_status(method: str, path: str, status: int, message: str) -> AriError:
    """The error that stands for an HTTP status other than 2xx."""
    if status == 404:
        return AriNotFound(method, path, status, message)
    if status == 409:
        return AriConflict(method, path, status, message)
    if status in (400, 422):
        return AriInvalid(method, path, status, message)
    if status == 401:
        return AriUnauthorized(method, path, status, message)
    return AriRejected(method, path, status, message)
