"""The application's URL as it is typed on a command line: what is dialled, and the credentials in it."""

from __future__ import annotations

from urllib.parse import urlsplit

import click

from audiosocket.callspec import masked_url
from audiosocket.settings import split_credentials

ACCOUNT_SIDS = {"exotel": "trunkbridge", "twilio": "AC" + "0" * 32}
"""The account of calls without a configured application, in the form that each platform has."""


def split_address(url: str, dialect: str, named: str = "") -> tuple[str, str]:
    """The URL without credentials, and these (`KEY:TOKEN`, or nothing), as the hosted platform takes them apart.

    `named` is what the message calls the URL (`--app`). Raises `click.UsageError`, in which no secret is shown.
    """
    shown = f"{named} {masked_url(url)}".strip()
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("ws", "wss") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable:
        raise click.UsageError(f"{shown}: expected ws://HOST[:PORT]/PATH or wss://HOST[:PORT]/PATH")
    if dialect == "twilio" and (parts.username is not None or "?" in url):
        raise click.UsageError(f"{shown}: Twilio allows neither credentials nor a query in a stream's URL: remove them")
    return split_credentials(url)
