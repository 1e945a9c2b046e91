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
    """The dialect that a call spec names, with its options. Raises `ConfigError` for one that this worker lacks
    and for a rate that it does not have."""
    platform = DIALECTS.get(spec.dialect)
    if platform is None:
        raise ConfigError(f"dialect {spec.dialect!r} is not known to this worker: one of {', '.join(sorted(DIALECTS))}")
    if spec.media_format.sample_rate != 8000 and not platform.wideband:
        raise ConfigError(
            f"media format {spec.media_format}: {platform.title}'s streams have 8000 Hz: use slin, ulaw or alaw"
        )
    try:
        return platform.open(spec)
    except ValueError as error:
        raise ConfigError(f"dialect_options of {spec.dialect}: {error}") from None
