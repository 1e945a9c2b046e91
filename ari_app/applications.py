"""Sections of the configuration file: the applications, with the keys of each dialect."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Discriminator, Field, SecretStr, Tag, ValidationError, field_validator, model_validator

from ari_app.after import AfterSettings
from ari_app.failure import CircuitBreakerSettings, FallbackSettings
from ari_app.limit import LimitSettings
from audiosocket.runtime.config import Secret, Settings
from audiosocket.settings import (
    MAX_URL_CHARACTERS,
    ExotelOptions,
    NumberParameters,
    PlivoOptions,
    TwilioOptions,
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


RESUMED = "1"
"""Value of the parameter that says that a stream goes on with a call that had one before."""


class ResumeSettings(Settings):
    """What becomes of a call whose media worker is gone."""

    calls: bool = True
    """Whether it goes on with another worker, which opens a new stream; false: it ends."""
    parameter: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,63}$")] = "trunkbridge_resumed"
    """Custom parameter of such a stream, with the value 1; off: there is none."""

    @field_validator("parameter", mode="before")
    @classmethod
    def _off(cls, value: object) -> object:
        return "off" if value is False else value  # YAML reads `off` as false

    @property
    def says_so(self) -> bool:
        """Whether there is a parameter."""
        return self.parameter != "off"


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
    limit: LimitSettings = LimitSettings()
    resume: ResumeSettings = ResumeSettings()

    @model_validator(mode="after")
    def _nobody_sends_digits(self) -> Self:
        if self.one_way and self.digits_to_caller:
            raise ValueError("digits_to_caller: an application that only listens (one_way) cannot send any: remove one")
        return self

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

    @model_validator(mode="after")
    def _fork_is_never_kept_waiting(self) -> Self:
        if self.forks and self.limit.when_full != "reject":
            raise ValueError(
                f"limit.when_full: {self.limit.when_full}: with one_way and after.extension or after.transfer the"
                " caller goes on at once when the application is full: remove it"
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

    @abstractmethod
    def check_custom_parameters(self, given: Mapping[str, str]) -> None:
        """Raises `ValueError` when `given` cannot be the custom parameters of a call to this application."""

    @model_validator(mode="after")
    def _parameters(self) -> Self:
        self.check_custom_parameters(self.custom_parameters)
        self.check_resumed(self.custom_parameters)
        return self

    def check_resumed(self, given: Mapping[str, str]) -> None:
        """Raises `ValueError` when a parameter that the operator asked for does not fit beside `given`. The one that is
        there by itself gives way."""
        resume = self.resume
        if "parameter" in resume.model_fields_set and resume.says_so:
            if resume.parameter in given:
                raise ValueError(f"resume.parameter {resume.parameter!r} is a custom parameter already: rename one")
            try:
                self.check_custom_parameters(dict(given) | {resume.parameter: RESUMED})
            except ValueError as error:
                raise ValueError(f"resume.parameter: with {resume.parameter} besides, {error}") from None

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
    account_sid: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")] = "trunkbridge"

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
        if value.startswith("AC") or (value.upper().startswith("AC") and len(value) == 34):
            raise ValueError(
                "looks like a Twilio account id (AC...), which applications take for Twilio's: write it otherwise"
            )
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


def resumed_parameters(application: _Application, given: Mapping[str, str]) -> dict[str, str]:
    """`given` and the parameter that says that the call is resumed, where that is wanted and there is room for it."""
    name = application.resume.parameter
    if not application.resume.says_so or name in given:
        return dict(given)
    told = dict(given) | {name: RESUMED}
    try:
        application.check_custom_parameters(told)
    except ValueError:
        return dict(given)
    return told


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
