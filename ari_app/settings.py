"""The whole configuration file: what the gateway reads (`audiosocket.settings`) and the control plane's sections.

`load` is the one way in. It checks shape and values first, then what only the whole can show: a route that names no
application, a trunk without codecs, two trunks that claim the same address.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Discriminator, Field, SecretStr, Tag, ValidationError, field_validator, model_validator

from ari_app.after import AfterSettings, check_after
from ari_app.failure import CircuitBreakerSettings, FallbackSettings
from audiosocket.callspec import WIDEBAND
from audiosocket.runtime.config import Name, Secret, Settings, read_yaml, validate
from audiosocket.settings import (
    MAX_URL_CHARACTERS,
    ExotelOptions,
    HostPort,
    NodeSettings,
    NumberParameters,
    PlivoOptions,
    TwilioOptions,
    absolute_paths,
    check_as_sent,
    check_http,
    check_parameters,
    check_rate,
    is_http,
    query_parameters,
    query_rate,
    split_url,
)

MAX_EXTRA_HEADERS_BYTES = 512


class Codec(StrEnum):
    """Codecs that a trunk may carry."""

    ULAW = "ulaw"
    ALAW = "alaw"


class AriSettings(Settings):
    """Asterisk's REST interface."""

    listen: HostPort = "127.0.0.1:8088"
    """Where Asterisk's HTTP server listens, and where the controller finds it."""
    username: Name = "trunkbridge"
    password: Secret
    timeout_seconds: Annotated[float, Field(gt=0, le=60)] = 5.0
    """Limit of one request."""


class AmiSettings(Settings):
    """Asterisk's Manager Interface, for the operator's commands."""

    listen: HostPort = "127.0.0.1:5038"
    username: Name = "trunkbridge"
    password: Secret


class RtpRange(Settings):
    """UDP ports for RTP; Asterisk takes two a call leg."""

    first: Annotated[int, Field(ge=1024, le=65534)] = 10000
    last: Annotated[int, Field(ge=1025, le=65535)] = 59999

    @model_validator(mode="after")
    def _ordered(self) -> RtpRange:
        if self.last - self.first < 3:
            raise ValueError(f"the range {self.first}-{self.last} holds less than one call: widen it")
        return self


class AsteriskSettings(Settings):
    """The Asterisk of this PBX node."""

    app: Name = "trunkbridge"
    """Name of the Stasis application."""
    ari: AriSettings
    ami: AmiSettings
    sip_listen: HostPort = "0.0.0.0:5060"
    """UDP address of the PJSIP transport."""
    external_address: str | None = None
    """Address that the trunk sees, when it is not the one listened on."""
    local_networks: list[str] = Field(default_factory=list)
    """Networks (CIDR) that are reached without `external_address`."""
    rtp: RtpRange = RtpRange()
    fallback_prompt: Annotated[str, Field(pattern=r"^[A-Za-z0-9_/-]{1,80}$")] = "please-try-call-later"
    """Sound that a caller hears when the controller is away."""
    fallback_extension: Annotated[str, Field(pattern=r"^[0-9A-Za-z_-]{1,40}$")] | None = None
    """Extension in the dialplan's `trunkbridge-fallback` context to continue at, after the prompt."""

    @field_validator("external_address")
    @classmethod
    def _address(cls, value: str | None) -> str | None:
        if value is not None:
            ipaddress.ip_address(value)
        return value

    @field_validator("local_networks")
    @classmethod
    def _networks(cls, value: list[str]) -> list[str]:
        for network in value:
            ipaddress.ip_network(network)
        return value


class TrunkSettings(Settings):
    """A SIP trunk, recognised by the addresses that it calls from."""

    identify: Annotated[list[str], Field(min_length=1)]
    """Addresses or networks (CIDR) of the carrier."""
    codecs: Annotated[list[Codec], Field(min_length=1)] = Field(default_factory=lambda: [Codec.ALAW, Codec.ULAW])
    country: Annotated[str, Field(pattern=r"^[A-Z]{2}$")] = "IN"
    """ISO 3166 country in whose national format the trunk may give numbers."""
    max_calls: Annotated[int, Field(ge=1, le=10000)] | None = None
    """Calls at once that the trunk was bought for."""
    contact: HostPort | None = None
    """The carrier's SIP address: calls are transferred to it, and it is watched when `qualify_seconds` is set."""
    qualify_seconds: Annotated[int, Field(ge=0, le=3600)] = 0
    rtp_timeout_seconds: Annotated[int, Field(ge=0, le=3600)] = 60
    """A caller who sends no RTP for so long is hung up; 0: never."""

    @field_validator("identify")
    @classmethod
    def _networks(cls, value: list[str]) -> list[str]:
        for network in value:
            ipaddress.ip_network(network)
        return value

    @model_validator(mode="after")
    def _qualify(self) -> TrunkSettings:
        if self.qualify_seconds and self.contact is None:
            raise ValueError("qualify_seconds needs contact: the address to send OPTIONS to")
        return self


class PhoneSettings(Settings):
    """A softphone that registers with a password, to try the system by hand."""

    password: Secret
    caller_id: Annotated[str, Field(pattern=r"^\+[1-9][0-9]{6,14}$")] = "+919000000000"


class _Application(Settings):
    """What all applications have, whichever dialect they speak."""

    credentials_remedy: ClassVar[str]
    """What to do about credentials in the URL."""
    dynamic_url: ClassVar[bool] = False
    """Whether the platform asks an http:// or https:// URL for the one to dial."""

    url: Annotated[str, Field(max_length=MAX_URL_CHARACTERS)]
    """ws:// or wss:// URL, without credentials; for exotel also an http:// or https:// one that answers with it."""
    dialect: Literal["exotel", "plivo", "twilio"] = "exotel"
    """The protocol that the application was written for; it decides which further keys there are."""
    custom_parameters: dict[str, str] = Field(default_factory=dict)
    connect_timeout_seconds: Annotated[float, Field(gt=0, le=60)] = 10.0
    """Limit of one WebSocket handshake. Exotel documents 10 s."""
    connect_attempts: Annotated[int, Field(ge=1, le=5)] = 2
    """Exotel documents one automatic retry."""
    playout_max_seconds: Annotated[float, Field(ge=1, le=3600)] = 300.0
    """How much audio the application may send ahead."""
    fade_ms: Annotated[float, Field(ge=0, le=20)] = 5.0
    """How long audio that is cut off takes to fade out, and to fade in after an underrun; 0: it does not."""
    message_max_bytes: Annotated[int, Field(ge=4096, le=16_777_216)] = 1_048_576
    close_without_frame: Literal["failure", "end"] = "failure"
    """What it means that the application ends its connection without a WebSocket close frame."""
    status_callback: Annotated[str, Field(max_length=2048)] | None = None
    """http:// or https:// URL that is told of each stream's start and end, in the platform's way."""
    after: AfterSettings = AfterSettings()

    @field_validator("status_callback")
    @classmethod
    def _callback(cls, value: str | None) -> str | None:
        if value is not None:
            if split_url(value).username is not None:
                raise ValueError("the URL carries credentials: remove them, a token may be part of path or query")
            check_http(value)
        return value

    record: bool = False
    """Whether its calls are recorded (see docs/recording.md)."""
    first_audio_seconds: Annotated[float, Field(ge=0, le=3600)] = 30.0
    """How long the application may take to its first audio; 0: for ever."""
    max_silence_seconds: Annotated[float, Field(ge=0, le=3600)] = 60.0
    """How long it may then play nothing while the caller is silent too; 0: for ever."""
    max_seconds: Annotated[float, Field(ge=1, le=14400)] = 3600.0
    """The longest that its stream may take. Exotel documents 60 minutes."""
    one_way: bool = False
    """It only listens: what it sends is ignored. With an `after` in the dialplan the caller goes on meanwhile."""
    digits_to_caller: bool = False
    """Whether it may send digits to the caller."""
    fallback: FallbackSettings = FallbackSettings()
    circuit_breaker: CircuitBreakerSettings = CircuitBreakerSettings()

    @model_validator(mode="after")
    def _fallback_url(self) -> Self:
        if self.fallback.url is not None:
            # It is dialled in the place of `url`: every rule about that one holds for it too.
            values = {name: getattr(self, name) for name in self.model_fields_set - {"fallback"}}
            try:
                type(self).model_validate(values | {"url": self.fallback.url})
            except ValidationError as error:
                why = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
                raise ValueError(f"fallback.url: {why}") from None
        return self

    @property
    def forks(self) -> bool:
        """Whether callers go on in the dialplan at once, while the application listens to them."""
        return self.one_way and not self.after.hangs_up

    @model_validator(mode="after")
    def _nobody_hears_a_fallback(self) -> Self:
        unheard = {"prompt": self.fallback.prompt is not None, "after": not self.fallback.after.hangs_up}
        for key, given in unheard.items():
            if self.forks and given:
                raise ValueError(
                    f"fallback.{key}: with one_way and after.extension or after.transfer the caller has gone on when"
                    " the application fails: remove it"
                )
        return self

    def media_rate(self) -> int:
        """The sample rate in Hz of both directions."""
        return 8000

    @field_validator("url")
    @classmethod
    def _websocket(cls, value: str) -> str:
        parts = split_url(value)
        schemes = ("ws", "wss", "http", "https") if cls.dynamic_url else ("ws", "wss")
        if parts.scheme not in schemes or not parts.hostname:
            or_http = ", or an http:// or https:// one that answers with it" if cls.dynamic_url else ""
            raise ValueError(f"expected a ws:// or wss:// URL with a host{or_http}")
        if parts.username is not None:
            raise ValueError(f"the URL carries credentials: {cls.credentials_remedy}")
        if parts.fragment:
            raise ValueError("a WebSocket URL has no #fragment")
        check_as_sent(value)
        return value

    def check_custom_parameters(self, given: Mapping[str, str]) -> None:
        """Raises `ValueError` when `given` cannot be the custom parameters of a call to this application."""
        raise NotImplementedError

    @model_validator(mode="after")
    def _parameters(self) -> Self:
        self.check_custom_parameters(self.custom_parameters)
        return self

    @model_validator(mode="before")
    @classmethod
    def _keys_of_this_dialect(cls, value: Any) -> Any:
        for key in value if isinstance(value, dict) else ():
            owners = " or ".join(name for name, other in APPLICATIONS.items() if key in other.model_fields)
            if owners and key not in cls.model_fields:
                raise ValueError(f"{key} belongs to dialect {owners}: remove it, or set dialect: {owners}")
        return value


class ExotelApplication(_Application):
    """An application written for Exotel's Voicebot applet."""

    credentials_remedy = "move them to credentials: {file: PATH}"
    dynamic_url = True

    dialect_options: ExotelOptions = ExotelOptions()
    """Switches of the dialect, see docs/protocol-exotel.md."""
    credentials: Secret | None = None
    """`KEY:TOKEN`, sent as HTTP Basic authorization."""
    account_sid: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")] = "trunkbridge"

    sample_rate: Literal[8000, 16000, 24000] | None = None
    """In Hz, for both directions; none: what the URL's query asks for, otherwise 8000."""

    def handshake_secret(self) -> SecretStr | None:
        """What the handshake is authorised with (`CallSpec.credentials`)."""
        return self.credentials

    def media_rate(self) -> int:
        # Of a URL that is asked the answer comes too late: Asterisk has been told the rate by then.
        return self.sample_rate or (None if is_http(self.url) else query_rate(self.url)) or 8000

    @field_validator("account_sid")
    @classmethod
    def _not_twilio(cls, value: str) -> str:
        if value.upper().startswith("AC") and len(value) == 34:
            raise ValueError("looks like a Twilio account id, which applications take for Twilio's protocol")
        return value

    @field_validator("url")
    @classmethod
    def _carried_rate(cls, value: str) -> str:
        if not is_http(value):
            query_rate(value)
        return value

    @model_validator(mode="after")
    def _one_rate(self) -> ExotelApplication:
        if not is_http(self.url):
            check_rate(self.url, self.media_rate())
        if self.fallback.url is not None and not is_http(self.fallback.url):
            try:
                check_rate(self.fallback.url, self.media_rate())
            except ValueError as error:
                raise ValueError(f"fallback.url: {error}") from None
        return self

    def check_custom_parameters(self, given: Mapping[str, str]) -> None:
        # The query of a URL that is asked is part of the question; the answer brings its own.
        asked = {} if is_http(self.url) else query_parameters(self.url)
        check_parameters(asked | dict(given))


class TwilioApplication(_Application):
    """An application written for Twilio Media Streams (`<Connect><Stream>`)."""

    credentials_remedy = "remove them, Twilio signs instead: auth_token: {file: PATH}"

    dialect_options: TwilioOptions = TwilioOptions()
    """Switches of the dialect, see docs/protocol-twilio.md."""
    auth_token: Secret | None = None
    """What signs the handshake (X-Twilio-Signature): the token that the application checks it with."""
    account_sid: Annotated[str, Field(pattern=r"^AC[0-9a-f]{32}$")]

    def handshake_secret(self) -> SecretStr | None:
        """What the handshake is authorised with (`CallSpec.credentials`)."""
        return self.auth_token

    @field_validator("url")
    @classmethod
    def _no_query(cls, value: str) -> str:
        if "?" in value:
            raise ValueError("Twilio allows no query in a stream's URL: move its pairs to custom_parameters")
        return value

    def check_custom_parameters(self, given: Mapping[str, str]) -> None:
        _keep_apart(given, self.dialect_options)


class PlivoApplication(_Application):
    """An application written for Plivo Audio Streaming (`<Stream bidirectional="true">`)."""

    credentials_remedy = "remove them, Plivo signs instead: auth_token: {file: PATH}"

    dialect_options: PlivoOptions = PlivoOptions()
    """Switches of the dialect, see docs/protocol-plivo.md."""
    auth_token: Secret | None = None
    """What signs the handshake (X-Plivo-Signature-V3): the token that the application checks it with."""
    account_sid: Annotated[str, Field(pattern=r"^[MS]A[0-9A-Z]{18}$")]

    def handshake_secret(self) -> SecretStr | None:
        """What the handshake is authorised with (`CallSpec.credentials`)."""
        return self.auth_token

    def check_custom_parameters(self, given: Mapping[str, str]) -> None:
        _keep_apart(given, self.dialect_options)
        for name in given:
            if not re.fullmatch(r"[0-9A-Za-z_-]+", name):
                raise ValueError(f"custom_parameters: {name!r} is no name for Plivo: use letters, digits, - and _")
        if sum(len(f"{name}={text};".encode()) for name, text in given.items()) > MAX_EXTRA_HEADERS_BYTES:
            raise ValueError(f"custom_parameters are too long: Plivo allows {MAX_EXTRA_HEADERS_BYTES} bytes in all")


def _keep_apart(parameters: Mapping[str, str], options: NumberParameters) -> None:
    for name in (options.caller_parameter, options.callee_parameter):
        if name in parameters:
            raise ValueError(f"custom_parameters.{name}: dialect_options puts a number there: rename one")


APPLICATIONS: dict[str, type[_Application]] = {
    "exotel": ExotelApplication,
    "plivo": PlivoApplication,
    "twilio": TwilioApplication,
}
"""The applications of each dialect of `audiosocket.dialects`."""


def _dialect_tag(value: object) -> str:
    # What is no dialect is Exotel's, whose `dialect` then says which ones there are.
    dialect = value.get("dialect") if isinstance(value, dict) else getattr(value, "dialect", None)
    return dialect if isinstance(dialect, str) and dialect in APPLICATIONS else "exotel"


ApplicationSettings = Annotated[
    Annotated[ExotelApplication, Tag("exotel")]
    | Annotated[PlivoApplication, Tag("plivo")]
    | Annotated[TwilioApplication, Tag("twilio")],
    Discriminator(_dialect_tag),
]
"""An AI voice application."""


_DID = re.compile(r"^(\*|\+[1-9][0-9]{6,14}|[0-9]{2,15})$")


class RouteSettings(Settings):
    """Which application answers which number."""

    did: str
    """A number in E.164 (+918000000002), a short number as dialled (1000), or `*` for any other."""
    application: Name
    trunks: list[Name] = Field(default_factory=list)
    """Trunks that the route holds for; empty: all, and softphones."""
    media_format: Literal["trunk", "slin", "ulaw", "alaw"] = "trunk"
    """What Asterisk sends the worker; `trunk`: the trunk's first codec, which spares Asterisk a transcode, and signed
    linear at the application's rate where that is not 8000."""
    max_seconds: Annotated[int, Field(ge=1, le=14400)] = 3600
    """The longest that a call may take. Exotel documents 60 minutes a stream."""
    answer: Literal["at_once", "when_connected", "when_speaking"] = "at_once"
    """When the caller is answered: before the application is dialled, or, after ringing, when it is connected or sends
    its first audio."""
    answer_within_seconds: Annotated[float, Field(ge=0.5, le=30)] = 5.0
    """How long after his arrival a ringing caller is answered in any case."""
    custom_parameters: dict[str, str] = Field(default_factory=dict)
    """Merged over the application's."""

    @field_validator("did")
    @classmethod
    def _number(cls, value: str) -> str:
        if not _DID.match(value):
            raise ValueError("expected +E.164, a short number of 2 to 15 digits, or *")
        return value


class ControllerSettings(Settings):
    """The call controller."""

    max_calls: Annotated[int, Field(ge=1, le=10000)] = 1000
    """Calls at once on this PBX node."""
    setup_timeout_seconds: Annotated[float, Field(gt=0, le=60)] = 10.0
    """Limit from the caller's arrival to caller and media being bridged. A route that does not answer at once has its
    `answer_within_seconds` besides."""
    spec_seconds: Annotated[float, Field(gt=0, le=120)] = 15.0
    """How long a call spec waits for its media leg."""
    lease_seconds: Annotated[float, Field(ge=5, le=600)] = 30.0
    """A lease that nobody renews ends after this time."""


class Config(NodeSettings):
    """The whole file."""

    asterisk: AsteriskSettings
    trunks: Annotated[dict[Name, TrunkSettings], Field(min_length=1)]
    phones: dict[Name, PhoneSettings] = Field(default_factory=dict)
    applications: Annotated[dict[Name, ApplicationSettings], Field(min_length=1)]
    routes: Annotated[list[RouteSettings], Field(min_length=1)]
    controller: ControllerSettings = ControllerSettings()

    @model_validator(mode="after")
    def _whole(self) -> Config:
        for index, route in enumerate(self.routes):
            if route.application not in self.applications:
                known = ", ".join(sorted(self.applications))
                raise ValueError(f"routes[{index}].application {route.application!r} is not defined: one of {known}")
            rate = self.applications[route.application].media_rate()
            if rate != 8000 and route.media_format != "trunk":
                raise ValueError(
                    f"routes[{index}].media_format: {route.media_format} has 8000 Hz and application"
                    f" {route.application!r} {rate}: remove it, which makes it {WIDEBAND[rate]}"
                )
            for trunk in route.trunks:
                if trunk not in self.trunks:
                    known = ", ".join(sorted(self.trunks))
                    raise ValueError(f"routes[{index}].trunks: {trunk!r} is not defined: one of {known}")
            application = self.applications[route.application]
            if route.answer == "when_speaking" and application.one_way:
                raise ValueError(
                    f"routes[{index}].answer: application {route.application!r} only listens (one_way) and never"
                    " speaks: make it when_connected"
                )
            given = application.custom_parameters | route.custom_parameters
            try:
                application.check_custom_parameters(given)
                if application.fallback.url is not None:
                    application.model_copy(update={"url": application.fallback.url}).check_custom_parameters(given)
            except ValueError as error:
                raise ValueError(f"routes[{index}] with application {route.application!r}: {error}") from None
        self._unreachable_routes()
        check_after(
            {name: (application.after, application.fallback.after) for name, application in self.applications.items()},
            {name: trunk.contact for name, trunk in self.trunks.items()},
        )
        for name, application in self.applications.items():
            following = application.after.application
            if following is not None and self.applications[following].forks:
                raise ValueError(
                    f"applications.{name}.after.application {following!r} listens while the caller goes on elsewhere"
                    " (one_way and after): only the first application of a call can"
                )
            if following is not None and self.applications[following].media_rate() != application.media_rate():
                raise ValueError(
                    f"applications.{name}.after.application {following!r} has another sample_rate: on one media leg all"
                    " have the same"
                )
            prompt = application.fallback.prompt
            if prompt is not None and prompt not in self.prompts:
                known = ", ".join(sorted(self.prompts)) or "none is defined"
                raise ValueError(f"applications.{name}.fallback.prompt {prompt!r} is not in prompts: {known}")
        both = sorted(set(self.trunks) & set(self.phones))
        if both:
            raise ValueError(f"phones.{both[0]}: a trunk has this name too: rename one")
        claimed: list[tuple[Any, str]] = []
        for name, carrier in self.trunks.items():
            for text in carrier.identify:
                network = ipaddress.ip_network(text)
                for other, owner in claimed:
                    if network.version == other.version and network.overlaps(other) and owner != name:
                        raise ValueError(f"trunks.{name}.identify: {text} is claimed by trunk {owner!r} too")
                claimed.append((network, name))
        return self

    def _unreachable_routes(self) -> None:
        seen: dict[tuple[str, str], int] = {}
        for index, route in enumerate(self.routes):
            for trunk in route.trunks or ["*"]:
                for key in ((route.did, trunk), (route.did, "*")):
                    if key in seen:
                        raise ValueError(
                            f"routes[{index}]: number {route.did} is taken by routes[{seen[key]}] already:"
                            " this route can never be reached, remove one"
                        )
                seen[(route.did, trunk)] = index


def load(path: Path) -> Config:
    """The configuration at `path`, checked. Raises `ConfigError` with one line per problem."""
    config = validate(Config, read_yaml(path), path)
    return config.model_copy(update=absolute_paths(config, path))
