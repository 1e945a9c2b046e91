"""What applications speak. A dialect is one file behind the interface in `base`, named here."""

from __future__ import annotations

from audiosocket.callspec import CallSpec
from audiosocket.dialects.base import Dialect, Platform, UrlLookup
from audiosocket.dialects.exotel import EXOTEL
from audiosocket.dialects.plivo import PLIVO
from audiosocket.dialects.twilio import TWILIO
from audiosocket.errors import ConfigError

DIALECTS: dict[str, Platform] = {platform.name: platform for platform in (EXOTEL, PLIVO, TWILIO)}

URL_LOOKUPS: dict[str, UrlLookup] = {
    name: platform.url_lookup for name, platform in DIALECTS.items() if platform.url_lookup is not None
}
"""Of the dialects whose platform has dynamic URLs."""


def open_dialect(spec: CallSpec) -> Dialect:
    """The dialect that a call spec names, with its options. Raises `ConfigError` for one that this worker lacks."""
    platform = DIALECTS.get(spec.dialect)
    if platform is None:
        raise ConfigError(f"dialect {spec.dialect!r} is not known to this worker: one of {', '.join(sorted(DIALECTS))}")
    try:
        return platform.open(spec)
    except ValueError as error:
        raise ConfigError(f"dialect_options of {spec.dialect}: {error}") from None
