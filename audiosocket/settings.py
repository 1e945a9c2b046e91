"""The parts of the configuration file that the media plane reads: `node`, `state_dir`, `store`, `log`, `gateway`."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, field_validator

from audiosocket.runtime.config import Secret, Settings, read_yaml, validate


def _host_port(value: str) -> str:
    host, sep, port = value.rpartition(":")
    if not sep or not port.isdigit() or not 1 <= int(port) <= 65535:
        raise ValueError("expected HOST:PORT with a port from 1 to 65535")
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        raise ValueError(
            "expected an IP address before the port: a name would be resolved inside a call's set-up"
        ) from None
    return value


HostPort = Annotated[str, AfterValidator(_host_port)]


def split_host_port(value: str) -> tuple[str, int]:
    """`"127.0.0.1:9092"` as `("127.0.0.1", 9092)`; brackets of an IPv6 literal are removed."""
    host, _, port = value.rpartition(":")
    return host.strip("[]"), int(port)


class LogSettings(Settings):
    """How a process logs."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["json", "console"] = "json"
    mask_numbers: bool = True
    """Phone numbers appear as +9180******02."""


class StoreUrls(Settings):
    """Servers of your own."""

    postgres: Annotated[str, Field(pattern=r"^postgres(ql)?://")]
    redis: Annotated[str, Field(pattern=r"^(redis|rediss|unix)://")]
    postgres_password: Secret | None = None
    redis_password: Secret | None = None

    @field_validator("postgres", "redis")
    @classmethod
    def _no_password(cls, value: str) -> str:
        if urlsplit(value).password:
            raise ValueError("the URL carries a password: move it to postgres_password or redis_password")
        return value


class ExotelOptions(Settings):
    """Switches of the Exotel dialect, for what its documents leave open (see docs/protocol-exotel.md)."""

    frame_ms: Annotated[int, Field(ge=20, le=100, multiple_of=20)] = 20
    """Audio per media message towards the application, in ms."""


class GatewaySettings(Settings):
    """The media workers of a gateway node."""

    listen: HostPort = "127.0.0.1:9092"
    """AudioSocket address of worker 0; worker N listens on port + N."""
    status_listen: HostPort = "127.0.0.1:9192"
    """HTTP status address of worker 0; worker N listens on port + N."""
    advertise: str | None = None
    """IP literal that Asterisk dials, when it is not the one listened on (0.0.0.0, NAT)."""
    workers: Annotated[int, Field(ge=1, le=64)] = 1
    capacity: Annotated[int, Field(ge=1, le=5000)] = 250
    """Calls per worker."""
    drain_seconds: Annotated[float, Field(ge=0, le=3600)] = 30
    """How long a stopping worker lets its calls end by themselves."""
    allow: list[str] = Field(default_factory=list)
    """Networks (CIDR) that may connect; empty: any that reaches the port."""

    @field_validator("advertise")
    @classmethod
    def _literal(cls, value: str | None) -> str | None:
        if value is not None:
            ipaddress.ip_address(value)
        return value

    @field_validator("allow")
    @classmethod
    def _networks(cls, value: list[str]) -> list[str]:
        for network in value:
            ipaddress.ip_network(network)
        return value


class NodeSettings(Settings):
    """What a gateway process reads of the file; the other sections belong to the controller."""

    node: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]{0,62}$")]
    state_dir: Path = Path("/var/lib/trunkbridge")
    store: Literal["embedded"] | StoreUrls
    log: LogSettings = LogSettings()
    gateway: GatewaySettings = GatewaySettings()

    @field_validator("store", mode="before")
    @classmethod
    def _store_kind(cls, value: object) -> object:
        if isinstance(value, str) and value != "embedded":
            raise ValueError("expected 'embedded', or a mapping with postgres: and redis: URLs")
        return value


def load_node(path: Path) -> NodeSettings:
    """The gateway's sections of the file at `path`. Raises `ConfigError`."""
    known = {key: value for key, value in read_yaml(path).items() if key in NodeSettings.model_fields}
    settings = validate(NodeSettings, known, path)
    return settings.model_copy(update={"state_dir": path.parent.absolute() / settings.state_dir})
