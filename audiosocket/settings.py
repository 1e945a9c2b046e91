"""The parts of the configuration file that the media plane reads: `node`, `pair`, `state_dir`, `store`, `log`,
`gateway`, `prompts`."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import SplitResult, parse_qs, parse_qsl, unquote, urlsplit, urlunsplit

from pydantic import AfterValidator, Discriminator, Field, SecretStr, Tag, field_validator, model_validator

from audiosocket.postgres_url import postgres_hosts
from audiosocket.runtime.config import Name, Secret, Settings, read_yaml, validate
from audiosocket.runtime.redis_address import SCHEMES, read_address

CONTROL_SECTIONS = frozenset({"asterisk", "trunks", "phones", "applications", "routes", "controller", "api"})
"""Sections of the same file that a gateway leaves to the control plane."""


def _host_port(value: str) -> str:
    host, sep, port = value.rpartition(":")
    if not sep or not re.fullmatch(r"[0-9]{1,5}", port) or not 1 <= int(port) <= 65535:
        raise ValueError("expected HOST:PORT with a port from 1 to 65535")
    try:
        if host.startswith("[") and host.endswith("]"):
            ipaddress.IPv6Address(host[1:-1])
        elif ":" in host:
            raise ValueError("expected an IPv6 address in brackets, such as [::1]:9092")
        else:
            ipaddress.IPv4Address(host)
    except ipaddress.AddressValueError:
        raise ValueError(
            "expected an IP address before the port: a name would be resolved inside a call's set-up"
        ) from None
    return value


HostPort = Annotated[str, AfterValidator(_host_port)]


def _address(value: str) -> str:
    ipaddress.ip_address(value)
    return value


def _network(value: str) -> str:
    ipaddress.ip_network(value)
    return value


Address = Annotated[str, AfterValidator(_address)]
"""An IP literal."""
Network = Annotated[str, AfterValidator(_network)]
"""An IP literal, or a network as CIDR."""


def split_host_port(value: str) -> tuple[str, int]:
    """`"127.0.0.1:9092"` as `("127.0.0.1", 9092)`; brackets of an IPv6 literal are removed."""
    host, _, port = value.rpartition(":")
    return host.strip("[]"), int(port)


def split_url(value: str) -> SplitResult:
    """A URL's parts. Raises `ValueError` whose text repeats nothing of it, since it may hold a password."""
    try:
        parts = urlsplit(value)
        (parts.hostname or "").encode("idna")  # a name with an empty part, or one of more than 63 characters
        if parts.port == 0:
            raise ValueError
    except ValueError:
        raise ValueError("host or port of the URL cannot be read: correct them") from None
    return parts


def split_credentials(url: str) -> tuple[str, str]:
    """A URL without credentials, and these (`KEY:TOKEN`, or nothing), as hosted platforms take them apart. Raises
    `ValueError` as `split_url` does, and where credentials have no host behind them."""
    parts = split_url(url)
    if parts.username is None:
        return url, ""
    if not parts.hostname:
        raise ValueError("the URL has no host behind its credentials")  # its path would come to be read as one
    bare = urlunsplit(parts._replace(netloc=parts.netloc.rsplit("@", 1)[-1]))
    split_url(bare)  # brackets of the password's may have closed those of the host
    return bare, f"{unquote(parts.username)}:{unquote(parts.password or '')}"


def is_http(url: str) -> bool:
    """Whether a URL is asked over HTTP, rather than dialled."""
    return url.partition("://")[0].lower() in ("http", "https")


_AS_SENT = re.compile(r"[!-~]+")


def check_http(url: str) -> None:
    """Raises `ValueError`, which repeats nothing of the URL, where no HTTP request can be made of it as it stands."""
    parts = split_url(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("expected an http:// or https:// URL with a host")
    if parts.fragment:
        raise ValueError("a #fragment is never sent: remove it")
    check_as_sent(url)


def check_as_sent(url: str) -> None:
    """Raises `ValueError`, which repeats nothing of the URL, where it cannot be sent or signed as it is written."""
    if not _AS_SENT.fullmatch(url):
        raise ValueError("only printable ASCII can be sent: write the rest as %XX, a host's name as xn--...")


MIN_SECRET_CHARACTERS = 16


class LogSettings(Settings):
    """How a process logs."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["json", "console"] = "json"
    mask_numbers: bool = True
    """Phone numbers appear as +9180****02."""


class StoreUrls(Settings):
    """Servers of your own."""

    postgres: Annotated[str, Field(pattern=r"^postgres(ql)?://")]
    redis: Annotated[str, Field(pattern=SCHEMES)]
    """One server, a master that Sentinels watch, or a cluster (see docs/configuration.md)."""
    postgres_password: Secret | None = None
    redis_password: Secret | None = None
    redis_sentinel_password: Secret | None = None
    """Of the Sentinels, where they ask for one."""

    @model_validator(mode="after")
    def _sentinels(self) -> StoreUrls:
        if self.redis_sentinel_password is not None and read_address(self.redis).kind != "sentinel":
            raise ValueError("redis_sentinel_password: no Sentinels are given: remove it")
        return self

    @field_validator("postgres")
    @classmethod
    def _servers(cls, value: str) -> str:
        postgres_hosts(value)
        return value

    @field_validator("redis")
    @classmethod
    def _no_password(cls, value: str) -> str:
        parts = split_url(value if "+" not in value.partition("://")[0] else read_address(value).plain)
        if parts.password or "password" in parse_qs(parts.query):
            raise ValueError("the URL carries a password: move it to postgres_password or redis_password")
        return value


RESERVED_PARAMETERS = frozenset({"sample-rate", "sample_rate"})
"""What Exotel itself reads from the query of an application's URL."""


def query_parameters(url: str) -> dict[str, str]:
    """The custom parameters that ride on an application's URL: its query without what Exotel itself reads there."""
    query = parse_qsl(url.partition("?")[2], keep_blank_values=True)
    return {key: value for key, value in query if key not in RESERVED_PARAMETERS}


MAX_CUSTOM_PARAMETERS = 3
MAX_CUSTOM_PARAMETER_CHARACTERS = 256
MAX_URL_CHARACTERS = 600
"""Of an application's URL: what Exotel documents for a `StreamUrl`, the query included."""


def check_parameters(given: dict[str, str]) -> None:
    """Raises `ValueError` where an application has more custom parameters, or longer ones, than Exotel allows."""
    if len(given) > MAX_CUSTOM_PARAMETERS:
        raise ValueError(
            f"custom_parameters and the URL's query are {len(given)} parameters together: Exotel allows"
            f" {MAX_CUSTOM_PARAMETERS}"
        )
    if sum(len(key) + len(text) for key, text in given.items()) > MAX_CUSTOM_PARAMETER_CHARACTERS:
        raise ValueError(
            f"custom_parameters and the URL's query are too long: Exotel allows {MAX_CUSTOM_PARAMETER_CHARACTERS}"
            " characters in all"
        )


SAMPLE_RATES = (8000, 16000, 24000)
"""In Hz: what an Exotel application may be spoken to at."""


def query_rate(url: str) -> int | None:
    """The sample rate in Hz that an application's URL asks for, as Exotel reads it there; None: it asks for none.

    Raises `ValueError` for one that is not carried, and for two that differ.
    """
    query = parse_qsl(url.partition("?")[2], keep_blank_values=True)
    asked = {value: key for key, value in query if key in RESERVED_PARAMETERS}
    carried = {str(rate): rate for rate in SAMPLE_RATES}
    for value, key in asked.items():
        if value not in carried:
            raise ValueError(f"{key} in the URL is none of {', '.join(carried)}")
    if len(asked) > 1:
        raise ValueError(f"the URL asks for sample rates {' and '.join(sorted(asked))}: leave one of them")
    return carried[next(iter(asked))] if asked else None


def check_rate(url: str, sample_rate: int) -> None:
    """Raises `ValueError` where an application's URL asks for another sample rate (Hz) than its stream has."""
    asked = query_rate(url)
    if asked not in (None, sample_rate):
        # An application that takes its rate from here would be heard at the wrong speed.
        raise ValueError(
            f"the URL asks for a sample rate of {asked}, and the stream has {sample_rate}: make them agree"
        )


class ExotelOptions(Settings):
    """Switches of the Exotel dialect, for what its documents leave open (see docs/protocol-exotel.md)."""

    frame_ms: Annotated[int, Field(ge=20, le=100, multiple_of=20)] = 20
    """Audio per media message towards the application, in ms. The documents say about 100, calls were seen with 20."""
    counters: Literal["string", "integer"] = "string"
    """JSON type of `sequence_number` and `chunk`."""
    encoding: Literal["base64", "raw", "audio/x-raw"] = "base64"
    """`media_format.encoding` in the start message; a name only, the payload is the same."""
    bit_rate: Literal["128kbps", "128", "16"] = "128kbps"
    """`media_format.bit_rate` in the start message at 8 kHz; 128 stands for 256 and 384 at 16 and 24 kHz."""
    number_format: Literal["e164", "national0"] = "e164"
    """`from` and `to`: +918000000001, or 08000000001 as Exotel sends Indian numbers to some accounts."""
    empty_custom_parameters: Literal["send", "omit"] = "send"
    """Whether `custom_parameters` is sent as `{}` when there are none."""
    marks_on_clear: Literal["echo", "drop"] = "echo"
    """Whether marks whose audio a `clear` dropped come back."""
    query: Literal["keep", "strip"] = "keep"
    """Whether the URL's query is dialled. Its pairs are custom parameters in both cases."""
    passthru: Literal["brackets", "json"] = "brackets"
    """How `status_callback` tells of the stream: a key for each fact (`Stream[Status]`), or all as JSON in `Stream`."""


ParameterName = Annotated[str, Field(min_length=1, max_length=64)]


class NumberParameters(Settings):
    """For a platform whose start message names neither caller nor callee: an application that wants them gives them to
    its stream as parameters, under names of its own."""

    caller_parameter: ParameterName | None = None
    """Custom parameter that carries the caller's number, such as `from_number`."""
    callee_parameter: ParameterName | None = None
    """Custom parameter that carries the number dialled, such as `to_number`."""

    @model_validator(mode="after")
    def _two_names(self) -> NumberParameters:
        if self.caller_parameter is not None and self.caller_parameter == self.callee_parameter:
            raise ValueError("caller_parameter and callee_parameter are the same: give them different names")
        return self


class TwilioOptions(NumberParameters):
    """Switches of the Twilio dialect (see docs/protocol-twilio.md)."""

    status_callback_method: Literal["POST", "GET"] = "POST"
    """What `<Stream statusCallbackMethod>` was."""


class PlivoOptions(NumberParameters):
    """Switches of the Plivo dialect (see docs/protocol-plivo.md)."""

    content_type: Literal["audio/x-mulaw;rate=8000", "audio/x-l16;rate=8000"] = "audio/x-mulaw;rate=8000"
    """What `<Stream contentType>` was: the encoding of the caller's audio, and of the application's that names none."""
    extra_headers: Literal["pairs", "braces"] = "pairs"
    """How parameters are written into `extra_headers`: `a=1;b=2` as documented, or `{X-PH-a: 1, X-PH-b: 2}` as seen."""


class RecordingsSettings(Settings):
    """Recordings of calls whose application has `record: true` (see docs/recording.md)."""

    directory: Path | None = None
    """Shared by all workers of the node; none: `recordings` in `state_dir`."""
    url_base: Annotated[str, Field(max_length=600)] | None = None
    """http:// or https:// URL under which you serve the directory: records then name a URL instead of a path."""
    min_free_mb: Annotated[int, Field(ge=0, le=100_000_000)] = 1024
    """With less free space no recording begins, and those that run are ended."""
    retain_days: Annotated[int, Field(ge=0, le=36500)] = 30
    """Recordings of older days are removed; 0: never."""

    @field_validator("url_base")
    @classmethod
    def _http(cls, value: str | None) -> str | None:
        if value is not None:
            parts = split_url(value)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError("expected an http:// or https:// URL with a host")
            if parts.username or parts.password or parts.query or parts.fragment:
                raise ValueError("credentials, query and fragment have no place in it: a path is put behind it")
        return value


class GatewaySettings(Settings):
    """The media workers of a gateway node."""

    listen: HostPort = "127.0.0.1:9092"
    """AudioSocket address of worker 0; worker N listens on port + N."""
    status_listen: HostPort = "127.0.0.1:9192"
    """HTTP status address of worker 0; worker N listens on port + N."""
    rtp_listen: HostPort | None = None
    """UDP address of worker 0 for RTP media legs; worker N listens on port + N. None: AudioSocket carries all calls."""
    websocket_listen: HostPort | None = None
    """Address of worker 0 for media legs by WebSocket (`chan_websocket`), which then carry all calls; worker N listens
    on port + N."""
    advertise: Address | None = None
    """IP literal that Asterisk dials, when it is not the one listened on (0.0.0.0, NAT)."""
    workers: Annotated[int, Field(ge=1, le=64)] = 1
    capacity: Annotated[int, Field(ge=1, le=5000)] = 250
    """Calls per worker."""
    drain_seconds: Annotated[float, Field(ge=0, le=14400)] = 30
    """How long a stopping worker lets its calls end by themselves."""
    allow: list[Network] = Field(default_factory=list)
    """Networks (CIDR) that may connect; empty: any that reaches the port."""
    recordings: RecordingsSettings = RecordingsSettings()

    @model_validator(mode="after")
    def _ports(self) -> GatewaySettings:
        if self.rtp_listen is not None and self.websocket_listen is not None:
            raise ValueError("rtp_listen and websocket_listen: calls go by one kind of leg: remove one of the two")
        for name in ("rtp_listen", "websocket_listen"):
            given = getattr(self, name)
            if given is not None and self.advertise is None:
                dialled, own = split_host_port(self.listen)[0], split_host_port(given)[0]
                if own != dialled and not ipaddress.ip_address(own).is_unspecified:
                    raise ValueError(f"{name}: Asterisk sends to the address of listen, {dialled}: use it here too")
        taken: dict[tuple[str, int], str] = {}
        for name in ("listen", "websocket_listen", "status_listen", "rtp_listen"):
            if getattr(self, name) is None:
                continue
            host, first = split_host_port(getattr(self, name))
            last = first + self.workers - 1
            if last > 65535:
                raise ValueError(f"{name}: {self.workers} workers would need ports {first} to {last}: begin lower")
            if name == "rtp_listen":
                continue  # UDP has ports of its own
            for port in range(first, last + 1):
                other = taken.setdefault((host, port), name)
                if other != name:
                    what = "AudioSocket" if other == "listen" else "WebSocket"
                    raise ValueError(f"{name}: port {port} is a worker's {what} port too: move one")
        return self


Pair = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]{0,62}$")]
"""Name of a pair, written as those of nodes are."""


def _store_tag(value: object) -> str:
    return "embedded" if value == "embedded" else "servers"


class NodeSettings(Settings):
    """What a gateway process reads of the file; the other sections belong to the controller."""

    node: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]{0,62}$")]
    pair: Pair = "main"
    """The PBX node and the gateway node that serve each other's calls have the same."""
    state_dir: Path = Path("/var/lib/trunkbridge")
    store: Annotated[
        Annotated[Literal["embedded"], Tag("embedded")] | Annotated[StoreUrls, Tag("servers")],
        Discriminator(_store_tag),
    ]
    cluster_secret: Secret | None = None
    """The same on all nodes: with it controllers reach workers straight while Redis is away. None: they do not."""
    log: LogSettings = LogSettings()
    gateway: GatewaySettings = GatewaySettings()
    prompts: dict[Name, Path] = Field(default_factory=dict)
    """WAV files by name, which workers can play to callers."""

    @field_validator("cluster_secret")
    @classmethod
    def _long_enough(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and len(value.get_secret_value()) < MIN_SECRET_CHARACTERS:
            raise ValueError(f"shorter than {MIN_SECRET_CHARACTERS} characters: make it a long random word")
        return value

    @field_validator("store", mode="before")
    @classmethod
    def _store_kind(cls, value: object) -> object:
        if value != "embedded" and not isinstance(value, (dict, StoreUrls)):
            raise ValueError("expected 'embedded', or a mapping with postgres: and redis: URLs")
        return value


def load_node(path: Path) -> NodeSettings:
    """The gateway's sections of the file at `path`. Raises `ConfigError`."""
    found = read_yaml(path)
    settings = validate(NodeSettings, {key: found[key] for key in found if key not in CONTROL_SECTIONS}, path)
    return settings.model_copy(update=absolute_paths(settings, path))


def absolute_paths(settings: NodeSettings, path: Path) -> dict[str, object]:
    """The settings that hold paths, with those made absolute that are relative to the file at `path`."""
    base = path.parent.absolute()
    found: dict[str, object] = {"state_dir": base / settings.state_dir}
    recordings = settings.gateway.recordings
    if recordings.directory is not None:
        recordings = recordings.model_copy(update={"directory": base / recordings.directory})
        found["gateway"] = settings.gateway.model_copy(update={"recordings": recordings})
    return found
