"""The application's URL as it is typed on a command line: what is dialled, and the credentials in it."""

from __future__ import annotations

from urllib.parse import urlsplit

import click

from audiosocket.callspec import masked_url
from audiosocket.dialects import DIALECTS
from audiosocket.settings import check_as_sent, split_credentials


def split_address(url: str, dialect: str, named: str = "") -> tuple[str, str]:
    """The URL without credentials, and these (`KEY:TOKEN`, or nothing), as the hosted platform takes them apart.

    `named` is what the message calls the URL (`--app`). Raises `click.UsageError`, in which no secret is shown.
    """
    shown = f"{named} {masked_url(url)}".strip()
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("ws", "wss") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
        usable = usable and not parts.fragment
        bare, credentials = split_credentials(url)
        check_as_sent(bare)
    except ValueError:
        usable = False
    if not usable:
        raise click.UsageError(f"{shown}: expected ws://HOST[:PORT]/PATH or wss://HOST[:PORT]/PATH")
    platform = DIALECTS[dialect]
    if platform.signs and parts.username is not None:
        raise click.UsageError(f"{shown}: {platform.title} allows no credentials in a stream's URL: remove them")
    if not platform.query and "?" in url:
        raise click.UsageError(f"{shown}: {platform.title} allows no query in a stream's URL: remove it")
    return bare, credentials
