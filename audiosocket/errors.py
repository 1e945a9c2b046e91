"""Errors of the media plane.

MediaError
├── ConfigError             the operator's: a file or an option is wrong
├── RemoteProtocolError     the peer's: what it sent breaks its protocol
│   ├── WireError           Asterisk broke AudioSocket framing
│   └── ApplicationError    the application broke its dialect or RFC 6455
├── Unavailable             the environment's: a peer does not answer; `retryable` is True
└── SpecRefused             a connection whose call spec is unknown, used or expired
"""

from __future__ import annotations


class MediaError(Exception):
    """Base of every error that the media plane raises on purpose."""

    retryable = False


class ConfigError(MediaError):
    """A configuration value is wrong. The text says file, path, value and remedy."""


class RemoteProtocolError(MediaError):
    """A peer sent what its protocol does not allow."""


class WireError(RemoteProtocolError):
    """An AudioSocket connection is not decodable any further."""


class ApplicationError(RemoteProtocolError):
    """The application's WebSocket cannot go on; `reason` names the ending (see `callspec.EndReason`)."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class Unavailable(MediaError):
    """A peer (application, Redis) could not be reached or did not answer in time."""

    retryable = True


class SpecRefused(MediaError):
    """An AudioSocket UUID does not stand for a call here; `why` is `unknown`, `reused`, `expired`, or `draining`."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why
