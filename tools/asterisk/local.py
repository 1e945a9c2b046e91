"""Configurations for several systems on one machine: the same trunks and routes, ports of their own."""

from __future__ import annotations

import random
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from audiosocket.runtime.config import read_yaml

# Below the ports that the kernel hands out by itself (ip_local_port_range starts at 32768), so that no outgoing
# connection is in the way.
_FIRST_PORT = 20_000
_LAST_PORT = 29_999
_UNIT = 20
# A few ports here and there would leave no room for the hundreds of a system's RTP: they come from the end.
_FEW = 2 * _UNIT
_FIRST_OF_FEW = 28_000

# A claim is an abstract socket name: exclusive, known to the whole machine, and given back by the kernel with the
# process. The ports themselves cannot be held, the programs started later need them.
_claims: list[socket.socket] = []


def free_ports(count: int) -> range:
    """`count` consecutive ports on which nobody listens, TCP or UDP, claimed for the life of this process (or see
    `claims_released`).

    Raises `OSError` when there is no such range.
    """
    units = -(-count // _UNIT)
    starts = list(range(_FIRST_PORT, _LAST_PORT + 2 - units * _UNIT, _UNIT))
    random.shuffle(starts)
    starts.sort(key=lambda start: (start < _FIRST_OF_FEW) if count <= _FEW else (start + count > _FIRST_OF_FEW))
    for start in starts:
        claims: list[socket.socket] = []
        if all(_claim(start + unit * _UNIT, claims) for unit in range(units)) and all(
            _is_free(port) for port in range(start, start + count)
        ):
            _claims.extend(claims)
            return range(start, start + count)
        for claim in claims:
            claim.close()
    raise OSError(f"no {count} consecutive free ports from {_FIRST_PORT} to {_LAST_PORT}: end what listens there")


@contextmanager
def claims_released() -> Iterator[None]:
    """Gives back, at the end, what `free_ports` has claimed inside."""
    before = len(_claims)
    try:
        yield
    finally:
        for claim in _claims[before:]:
            claim.close()
        del _claims[before:]


def _claim(first: int, claims: list[socket.socket]) -> bool:
    claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        claim.bind(f"\0trunkbridge-ports-{first}")
    except OSError:
        claim.close()
        return False
    claims.append(claim)
    return True


def _is_free(port: int) -> bool:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_INET, kind) as probe:
            try:
                probe.bind(("0.0.0.0", port))
            except OSError:
                return False
    return True


def local_config(base: Path, folder: Path, *, calls: int = 20, changes: dict[str, Any] | None = None) -> Path:
    """Writes `folder/trunkbridge.yml`: the configuration `base` with free ports and secrets of its own; its path.

    RTP ports suffice for `calls` SIP legs at once. `changes` are merged in last, mapping by mapping; lists and other
    values replace. Raises `ConfigError` when `base` cannot be read, `OSError` when there are no ports.
    """
    data = read_yaml(base)
    applications = list(data.get("applications") or {})
    workers = 4
    fixed = 3 + 2 * workers + len(applications) + 1
    rtp = 4 * calls
    ports = free_ports(fixed + 1 + rtp)
    ari, ami, sip, first_worker = ports[0], ports[1], ports[2], ports[3]
    first_rtp = ports[fixed] + ports[fixed] % 2
    own: dict[str, Any] = {
        "state_dir": str(folder.absolute() / "state"),
        "cluster_secret": _secret(folder, "cluster"),
        "asterisk": {
            "ari": {"listen": f"127.0.0.1:{ari}", "password": _secret(folder, "ari")},
            "ami": {"listen": f"127.0.0.1:{ami}", "password": _secret(folder, "ami")},
            "sip_listen": f"127.0.0.1:{sip}",
            "rtp": {"first": first_rtp, "last": first_rtp + rtp - 1},
        },
        "phones": {name: {"password": _secret(folder, f"phone-{name}")} for name in data.get("phones") or {}},
        "applications": {
            name: {"url": f"ws://127.0.0.1:{ports[3 + 2 * workers + number]}/"}
            for number, name in enumerate(applications)
        },
        "controller": {"status_listen": f"127.0.0.1:{ports[fixed - 1]}"},
        "gateway": {
            "listen": f"127.0.0.1:{first_worker}",
            "status_listen": f"127.0.0.1:{first_worker + workers}",
        },
    }
    merged = merge(merge(data, own), changes or {})
    path = folder / "trunkbridge.yml"
    path.write_text(yaml.safe_dump(merged, sort_keys=False), encoding="utf-8")
    return path


def _secret(folder: Path, name: str) -> dict[str, str]:
    path = folder / "secrets" / name
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not path.exists():
        path.touch(mode=0o600)
        path.write_text(secrets.token_urlsafe(24), encoding="utf-8")
    return {"file": str(path.absolute())}


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        known = merged.get(key)
        # A secret is one value, not a mapping to be merged.
        secret = isinstance(value, dict) and set(value) in ({"file"}, {"env"})
        both = isinstance(known, dict) and isinstance(value, dict)
        merged[key] = merge(dict(known or {}), value) if both and not secret else value
    return merged
