"""Addresses as they are typed on a command line: the application's URL with the credentials in it, and HOST:PORT."""

from __future__ import annotations

import re
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


def host_port(named: str, address: str) -> tuple[str, int]:
    """`127.0.0.1:9092` or `[::1]:9092` taken apart, the brackets removed; `named` is the option.

    Raises `click.UsageError`.
    """
    host, sep, port = address.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not sep or not bare or (":" in host and bare == host) or not re.fullmatch(r"0*[1-9][0-9]{0,4}", port):
        raise click.UsageError(f"{named} {address}: expected HOST:PORT, such as 127.0.0.1:9092 or [::1]:9092")
    if int(port) > 65535:
        raise click.UsageError(f"{named} {address}: the highest port is 65535")
    return bare, int(port)
