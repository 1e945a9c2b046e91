"""Addresses of Redis as they are written in the settings: one server, a master watched by Sentinels, or a cluster.

    redis://HOST[:6379][/DB]      rediss:// with TLS      unix:///PATH
    redis+sentinel://HOST[:26379],HOST[:26379],.../MASTER[/DB]
    redis+cluster://HOST[:6379],HOST[:6379],...

`rediss+sentinel` and `rediss+cluster` mean TLS to all of them. A user's name stands before the hosts (`NAME@`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import unquote, urlsplit

SCHEMES = r"^(rediss?(\+sentinel|\+cluster)?|unix)://"

_PORTS = {"sentinel": 26379, "cluster": 6379}
_MASTER = re.compile(r"[A-Za-z0-9._-]{1,100}")


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """One server, or where it is asked which server it is."""

    kind: Literal["server", "sentinel", "cluster"]
    plain: str
    """URL of the server as redis-py reads it. Of the other kinds it has the options, and a host that does not count."""
    hosts: tuple[tuple[str, int], ...] = ()
    """The Sentinels, or servers of the cluster."""
    master: str = ""
    """The name under which Sentinels know the master."""


def read_address(url: str) -> RedisAddress:
    """The address that a URL is. Raises `ValueError`, whose text repeats nothing of it: it may hold a password."""
    scheme, _, rest = url.partition("://")
    plain, _, kind = scheme.partition("+")
    if kind == "":
        return RedisAddress("server", url)
    authority, path, query = _split(rest)
    user, at, listed = authority.rpartition("@")
    hosts = tuple(_host(text, _PORTS[kind]) for text in listed.split(","))
    server = f"{plain}://{user}{at}{_written(hosts[0])}"
    if kind == "cluster":
        if path.strip("/") not in ("", "0"):
            raise ValueError("a Redis cluster has database 0 only: remove the path")
        return RedisAddress("cluster", f"{server}/0{query}", hosts)
    master, _, database = path.strip("/").partition("/")
    master = unquote(master)
    if not _MASTER.fullmatch(master):
        raise ValueError("expected the master's name behind the Sentinels: redis+sentinel://HOST:26379,.../NAME")
    if database and not database.isdecimal():
        raise ValueError("the database behind the master's name is no number")
    return RedisAddress("sentinel", f"{server}/{database or 0}{query}", hosts, master)


def _split(rest: str) -> tuple[str, str, str]:
    found = re.fullmatch(r"([^/?#]*)([^?#]*)(\?[^#]*)?", rest)
    if found is None:
        raise ValueError("a #fragment has no place in the URL: remove it")
    return found[1], found[2], found[3] or ""


def _host(text: str, default_port: int) -> tuple[str, int]:
    wrong = "host or port of the URL cannot be read: expected HOST:PORT,HOST:PORT,..."
    try:
        parts = urlsplit(f"redis://{text}")
        host, port = parts.hostname or "", parts.port if parts.port is not None else default_port
        host.encode("idna")
    except ValueError:
        raise ValueError(wrong) from None
    if not host or not port or not re.fullmatch(r"[A-Za-z0-9._:-]+", host):
        raise ValueError(wrong)
    return host, port


def _written(host: tuple[str, int]) -> str:
    name, port = host
    return f"[{name}]:{port}" if ":" in name else f"{name}:{port}"
