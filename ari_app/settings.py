"""The whole configuration file: what the gateway reads (`audiosocket.settings`) and the control plane's sections.

`load` is the one way in. It checks shape and values first, then what only the whole can show: a route that names no
application, a trunk without codecs, two trunks that claim the same address.
"""

from __future__ import annotations

import ipaddress
import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, field_validator, model_validator

from ari_app.after import check_after
from ari_app.applications import ApplicationSettings
from ari_app.limit import check_limits
from audiosocket.callspec import WIDEBAND
from audiosocket.runtime.config import Name, Secret, Settings, read_yaml, validate
from audiosocket.settings import Address, HostPort, Network, NodeSettings, Pair, absolute_paths

MIN_TOKEN_CHARACTERS = 16
"""Of a token of the HTTP interface: what nobody guesses."""


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
    external_address: Address | None = None
    """Address that the trunk sees, when it is not the one listened on."""
    local_networks: list[Network] = Field(default_factory=list)
    """Networks (CIDR) that are reached without `external_address`."""
    rtp: RtpRange = RtpRange()
    fallback_prompt: Annotated[str, Field(pattern=r"^[A-Za-z0-9_/-]{1,80}$")] = "please-try-call-later"
    """Sound that a caller hears when the controller is away."""
    fallback_extension: Annotated[str, Field(pattern=r"^[0-9A-Za-z_-]{1,40}$")] | None = None
    """Extension in the dialplan's `trunkbridge-fallback` context to continue at, after the prompt."""
    music: dict[Name, Annotated[str, Field(pattern=r"^/", max_length=400)]] = Field(default_factory=dict)
    """Music on hold: names, and folders on this node with the sound files."""

    @field_validator("music")
    @classmethod
    def _class_of_ours(cls, value: dict[str, str]) -> dict[str, str]:
        if "general" in value:
            raise ValueError("general names a section of Asterisk's own: choose another name")
        return value


class TrunkSettings(Settings):
    """A SIP trunk, recognised by the addresses that it calls from."""

    identify: Annotated[list[Network], Field(min_length=1)]
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

    @model_validator(mode="after")
    def _qualify(self) -> TrunkSettings:
        if self.qualify_seconds and self.contact is None:
            raise ValueError("qualify_seconds needs contact: the address to send OPTIONS to")
        return self


class PhoneSettings(Settings):
    """A softphone that registers with a password, to try the system by hand."""

    password: Secret
    caller_id: Annotated[str, Field(pattern=r"^\+[1-9][0-9]{6,14}$")] = "+919000000000"


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
    max_seconds: Annotated[int, Field(ge=1, le=14400)] = 14400
    """The longest that a call may take; Exotel's `TimeLimit` goes as far. Longer than a stream may take, which begins
    later: at its end the application's `after` is to follow."""
    answer: Literal["at_once", "when_connected", "when_speaking"] = "at_once"
    """When the caller is answered: before the application is dialled, or, after ringing, when it is connected or is to
    be heard for the first time."""
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

    @model_validator(mode="after")
    def _rings(self) -> RouteSettings:
        if self.answer == "at_once" and "answer_within_seconds" in self.model_fields_set:
            raise ValueError(
                "answer_within_seconds: the caller is answered at once: set answer to when_connected or when_speaking,"
                " or remove it"
            )
        return self


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
    spill_over: list[Pair] = Field(default_factory=list)
    """Other pairs, whose workers the private link reaches: they carry a call when the node's own pair cannot."""
    status_listen: HostPort | None = "127.0.0.1:9191"
    """HTTP status address; of several controllers on one host it is the active one's. None: there is none."""
    leg_hold_seconds: Annotated[float, Field(ge=0, le=60)] = 5.0
    """How long a call is held whose media leg is lost while both ends live, for another one to take its place; 0: it
    ends with its leg."""
    spool_mb: Annotated[int, Field(ge=1, le=1_000_000)] = 1024
    """Room on disk for call records while PostgreSQL is away."""


class ApiSettings(Settings):
    """The HTTP interface that applications' operators and inference clusters call (see docs/api.md)."""

    listen: HostPort = "127.0.0.1:8090"
    tokens: dict[Name, Secret] = Field(default_factory=dict)
    """Bearer tokens, each under the name of whom it was given to; none: nobody is let in."""

    @field_validator("tokens")
    @classmethod
    def _long_enough(cls, value: dict[str, SecretStr]) -> dict[str, SecretStr]:
        short = [name for name, token in value.items() if len(token.get_secret_value()) < MIN_TOKEN_CHARACTERS]
        if short:
            raise ValueError(f"the token of {short[0]} is too short: at least {MIN_TOKEN_CHARACTERS} characters")
        return value


class Config(NodeSettings):
    """The whole file."""

    asterisk: AsteriskSettings
    trunks: Annotated[dict[Name, TrunkSettings], Field(min_length=1)]
    phones: dict[Name, PhoneSettings] = Field(default_factory=dict)
    applications: Annotated[dict[Name, ApplicationSettings], Field(min_length=1)]
    routes: Annotated[list[RouteSettings], Field(min_length=1)]
    controller: ControllerSettings = ControllerSettings()
    api: ApiSettings = ApiSettings()

    @model_validator(mode="after")
    def _whole(self) -> Config:
        if self.pair in self.controller.spill_over:
            raise ValueError(f"controller.spill_over: {self.pair!r} is this node's own pair: remove it")
        for index, route in enumerate(self.routes):
            if route.application not in self.applications:
                known = ", ".join(sorted(self.applications))
                raise ValueError(f"routes[{index}].application {route.application!r} is not defined: one of {known}")
            for trunk in route.trunks:
                if trunk not in self.trunks:
                    known = ", ".join(sorted(self.trunks))
                    raise ValueError(f"routes[{index}].trunks: {trunk!r} is not defined: one of {known}")
            self._takes(index, route, route.application)
        self._unreachable_routes()
        contacts = {name: trunk.contact for name, trunk in self.trunks.items()}
        check_after(
            {name: (application.after, application.fallback.after) for name, application in self.applications.items()},
            contacts,
        )
        limits = {name: application.limit for name, application in self.applications.items()}
        check_limits(limits, contacts, self.asterisk.music)
        for index, route in enumerate(self.routes):
            redirected = limits[route.application].redirect.application
            while redirected is not None:
                self._takes(index, route, redirected)
                redirected = limits[redirected].redirect.application
        for name, application in self.applications.items():
            redirected = application.limit.redirect.application
            if redirected is not None and self.applications[redirected].forks:
                raise ValueError(
                    f"applications.{name}.limit.redirect.application {redirected!r} listens while the caller goes on"
                    " elsewhere (one_way and after): only the first application of a call can"
                )
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

    def _takes(self, index: int, route: RouteSettings, name: str) -> None:
        """Raises `ValueError` when application `name` cannot take the calls of a route."""
        application = self.applications[name]
        rate = application.media_rate()
        if rate != 8000 and route.media_format != "trunk":
            raise ValueError(
                f"routes[{index}].media_format: {route.media_format} has 8000 Hz and application {name!r} {rate}:"
                f" remove it, which makes it {WIDEBAND[rate]}"
            )
        if route.answer == "when_speaking" and application.one_way:
            raise ValueError(
                f"routes[{index}].answer: application {name!r} only listens (one_way) and never speaks: make it"
                " when_connected"
            )
        given = application.custom_parameters | route.custom_parameters
        try:
            application.check_custom_parameters(given)
            application.check_resumed(given)
            if application.fallback.url is not None:
                application.model_copy(update={"url": application.fallback.url}).check_custom_parameters(given)
        except ValueError as error:
            raise ValueError(f"routes[{index}] with application {name!r}: {error}") from None

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
