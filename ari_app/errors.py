"""Errors of the control plane.

    TrunkbridgeError
    ├── RemoteProtocolError     the peer's: what it sent breaks its protocol
    ├── Unavailable             the environment's: a peer does not answer; `retryable` is True
    │   └── StoreUnavailable    PostgreSQL or Redis
    ├── NoCapacity              no media worker may take a call now; `reason` says why
    └── NotTaken                this media worker does not take the call that it was handed straight

The operator's errors are `ConfigError`, one class for both planes. What belongs to one room is defined there and
derives from these.
"""

from __future__ import annotations

from audiosocket.errors import ConfigError

__all__ = [
    "ConfigError",
    "NoCapacity",
    "NotTaken",
    "RemoteProtocolError",
    "StoreUnavailable",
    "TrunkbridgeError",
    "Unavailable",
]


class TrunkbridgeError(Exception):
    """Base of every error that the control plane raises on purpose.

    `reason` is a short snake_case word for records and metrics, `str()` a sentence for people, and `retryable` says
    whether the same attempt may succeed later without anything being changed.
    """

    retryable = False

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(detail or reason)
        self.reason = reason


class RemoteProtocolError(TrunkbridgeError):
    """A peer sent what its protocol does not allow."""


class Unavailable(TrunkbridgeError):
    """A peer could not be reached or did not answer in time."""

    retryable = True


class StoreUnavailable(Unavailable):
    """PostgreSQL or Redis could not be reached, did not answer in time, or refuses work for now."""


class NoCapacity(TrunkbridgeError):
    """No media worker may take a call; `reason` is `no_workers`, `all_draining`, `all_full`, `no_pbx` (of an outbound
    call: no PBX node accepts it) or `app_full` (the application has as many calls as it may).

    `place`: the call's place in its application's line, from 1; 0: it does not wait.
    """

    def __init__(self, reason: str, detail: str = "", place: int = 0) -> None:
        super().__init__(reason, detail)
        self.place = place


class NotTaken(TrunkbridgeError):
    """A media worker does not take the call that it was handed straight: `full`, `draining`, `overloaded`,
    `worker_unreachable`, `worker_silent`, and so on. Another may."""
