"""What a `postgresql://` URL may say: one server or several, as asyncpg reads it, nothing passed over.

Source: PostgreSQL documentation, 34.1.1.2 (connection URIs) and 34.1.2 (parameter key words).
"""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import parse_qsl, unquote, urlsplit

MAX_HOSTS = 8
DEFAULT_PORT = 5432

TARGETS = ("any", "primary", "read-write")
"""Of `target_session_attrs`: records are written, a standby is of no use."""
SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")

_NOT_READ = frozenset(
    {
        "channel_binding",
        "client_encoding",
        "connect_timeout",
        "fallback_application_name",
        "gssdelegation",
        "gssencmode",
        "hostaddr",
        "keepalives",
        "keepalives_count",
        "keepalives_idle",
        "keepalives_interval",
        "load_balance_hosts",
        "max_protocol_version",
        "min_protocol_version",
        "oauth_client_id",
        "oauth_client_secret",
        "oauth_issuer",
        "oauth_scope",
        "replication",
        "require_auth",
        "requirepeer",
        "requiressl",
        "scram_client_key",
        "scram_server_key",
        "servicefile",
        "sslcertmode",
        "sslcompression",
        "sslcrldir",
        "sslkeylogfile",
        "sslsni",
        "tcp_user_timeout",
    }
)
"""libpq's key words that asyncpg would hand on to the server, which refuses them."""
_SSL_READ = frozenset(
    {
        "sslmode",
        "sslcert",
        "sslkey",
        "sslrootcert",
        "sslnegotiation",
        "sslcrl",
        "ssl_min_protocol_version",
        "ssl_max_protocol_version",
    }
)

_HOST = re.compile(r"(\[[^\[\]]*\]|[^\[\]:]*)(?::([^:]*))?")
_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252}[A-Za-z0-9_.])?")


def postgres_hosts(url: str) -> list[tuple[str, int]]:
    """(host or folder of the Unix socket, port) of each server, in order; none: where PGHOST says, or this machine.

    Raises `ValueError`, whose text repeats nothing of the URL but a host or the name of a parameter, for a URL that
    names no servers, or says what could not be meant.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ValueError("the host of the URL cannot be read: correct it") from None
    if parts.fragment or "#" in url:
        raise ValueError("the URL has a #fragment, which would be lost: write # as %23")
    user, _, listed = parts.netloc.rpartition("@")
    if "@" in user:
        raise ValueError("the URL has more than one @: write the one that is part of the user's name as %40")
    if ":" in user:
        raise ValueError("the URL carries a password: move it to postgres_password or redis_password")
    query = _query(parts.query)
    if listed and "host" in query:
        raise ValueError("the URL has hosts before its path and in ?host=: leave one of them")
    names = listed or query.get("host", "")
    found = [_host(unquote(text)) for text in names.split(",")] if names else []
    if len(found) > MAX_HOSTS:
        raise ValueError(f"the URL has {len(found)} hosts: at most {MAX_HOSTS} are asked")
    ports = [_port(text) for text in query["port"].split(",")] if "port" in query else []
    if len(ports) > 1 and len(ports) != len(found):
        raise ValueError(f"the URL has {len(found)} hosts and {len(ports)} ports: give one for each, or one for all")
    if ports and any(port is not None for _, port in found):
        raise ValueError("the URL has ports at its hosts and in ?port=: leave one of them")
    if len(ports) == 1:
        ports *= len(found)
    servers = [(host, port or DEFAULT_PORT) for host, port in found]
    if ports:
        servers = [(host, port) for (host, _), port in zip(servers, ports, strict=False)]
    twice = {server for server in servers if servers.count(server) > 1}
    if twice:
        raise ValueError(f"the URL names {min(twice)[0]} twice: remove one")
    return servers


def _query(text: str) -> dict[str, str]:
    try:
        pairs = parse_qsl(text, keep_blank_values=True, strict_parsing=True) if text else []
    except ValueError:
        raise ValueError("the URL's query is not KEY=VALUE&KEY=VALUE: correct it") from None
    found: dict[str, str] = {}
    for key, value in pairs:
        if key in ("password", "sslpassword"):
            raise ValueError("the URL carries a password: move it to postgres_password or redis_password")
        if key in found or not value:
            raise ValueError(f"parameter {key} of the URL is {'given twice' if key in found else 'empty'}: correct it")
        if key in _NOT_READ or (key.startswith("ssl") and key not in _SSL_READ):
            raise ValueError(f"parameter {key} of the URL is not known here: remove it")
        found[key] = value
    for key, known in (("target_session_attrs", TARGETS), ("sslmode", SSL_MODES)):
        if key in found and found[key] not in known:
            raise ValueError(f"{key} in the URL is none of {', '.join(known)}")
    return found


def _host(text: str) -> tuple[str, int | None]:
    if text.startswith("/"):
        return text, None
    match = _HOST.fullmatch(text)
    if match is None:
        raise ValueError("host or port of the URL cannot be read: expected HOST:PORT,HOST:PORT, IPv6 in brackets")
    host, port = match[1], match[2]
    if not host:
        raise ValueError("a host of the URL is empty: remove the comma, or add the host")
    if host.startswith("["):
        host = host[1:-1]
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            raise ValueError("the brackets in the URL hold no IPv6 address: correct it") from None
    elif not _NAME.fullmatch(host):
        raise ValueError("a host of the URL is neither a name nor an address: correct it")
    return host, None if port is None else _port(port)


def _port(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 1 <= int(text) <= 65535:
        raise ValueError("a port of the URL is no number from 1 to 65535: correct it")
    return int(text)
