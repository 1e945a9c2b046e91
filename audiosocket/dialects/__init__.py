"""What applications speak. A dialect is one file with one class behind the interface in `base`, named here."""

from __future__ import annotations

from collections.abc import Callable

from audiosocket.callspec import CallSpec
from audiosocket.dialects import exotel_http
from audiosocket.dialects.base import Dialect, UrlLookup
from audiosocket.dialects.exotel import ExotelDialect
from audiosocket.dialects.twilio import TwilioDialect
from audiosocket.errors import ConfigError

DIALECTS: dict[str, Callable[[CallSpec], Dialect]] = {"exotel": ExotelDialect, "twilio": TwilioDialect}

URL_LOOKUPS: dict[str, UrlLookup] = {"exotel": exotel_http}
"""Of the dialects whose platform has dynamic URLs."""


def open_dialect(spec: CallSpec) -> Dialect:
    """The dialect that a call spec names, with its options. Raises `ConfigError` for one that this worker lacks."""
    factory = DIALECTS.get(spec.dialect)
    if factory is None:
        raise ConfigError(f"dialect {spec.dialect!r} is not known to this worker: one of {', '.join(sorted(DIALECTS))}")
    try:
        return factory(spec)
    except ValueError as error:
        raise ConfigError(f"dialect_options of {spec.dialect}: {error}") from None
