"""Which route takes a call: the configuration's routes as a look-up, and the limits that a call is admitted by."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ari_app.applications import ApplicationSettings
from ari_app.domain.hangup import Cause
from ari_app.domain.numbers import InvalidNumber, normalise
from ari_app.errors import TrunkbridgeError
from ari_app.settings import Config, RouteSettings
from audiosocket.callspec import WIDEBAND, MediaFormat

ANY = "*"


class NotAdmitted(TrunkbridgeError):
    """A call that is refused before anything is done for it; `cause` is the Q.850 value that the trunk is told."""

    def __init__(self, reason: str, detail: str, cause: Cause) -> None:
        super().__init__(reason, detail)
        self.cause = cause


@dataclass(frozen=True, slots=True)
class Admission:
    """What a call that may come in is for."""

    route: RouteSettings
    application_name: str
    application: ApplicationSettings
    caller: str
    """E.164 where it can be, otherwise as the trunk gave it; empty for a withheld number."""
    callee: str
    narrowband: MediaFormat
    """What the media leg carries to an application that has 8 kHz."""
    answered: bool = False
    """Whether the caller has been answered already, since he had to wait."""

    @property
    def held(self) -> bool:
        """Whether the caller rings until the application's first word."""
        return self.route.answer != "at_once" and not self.answered

    @property
    def media_format(self) -> MediaFormat:
        """What the media leg carries."""
        return WIDEBAND.get(self.application.media_rate()) or self.narrowband

    def redirected(self, name: str, application: ApplicationSettings, *, answered: bool) -> Admission:
        """The admission to another application."""
        return replace(self, application_name=name, application=application, answered=answered)

    def is_first_word(self, event: str) -> bool:
        """Whether a notice of this event is what the route answers on. Whoever speaks is connected."""
        return event == "speaking" or (event == "connected" and self.route.answer == "when_connected")


class Router:
    """Admission by number. Pure: the counts of calls that live are given to it."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._routes: dict[tuple[str, str], RouteSettings] = {}
        for route in config.routes:
            for trunk in route.trunks or [ANY]:
                self._routes[route.did, trunk] = route

    def admit(self, line: str, dialled: str, caller: str, calls: int, calls_on_line: int) -> Admission:
        """The admission of a call from trunk or phone `line` to `dialled`. Raises `NotAdmitted`.

        `calls` and `calls_on_line` are the live calls of this node and of the line, this one not counted.
        """
        config = self._config
        trunk = config.trunks.get(line)
        phone = config.phones.get(line)
        if trunk is None and phone is None:
            raise NotAdmitted("unknown_trunk", f"no trunk or phone {line!r}", Cause.CALL_REJECTED)
        country = "IN" if trunk is None else trunk.country
        try:
            callee = normalise(dialled, country)
        except InvalidNumber as error:
            raise NotAdmitted("invalid_number", str(error), Cause.INVALID_NUMBER_FORMAT) from None
        route = self.find(line, callee)
        if route is None:
            raise NotAdmitted("unknown_number", f"no route for {callee} on {line}", Cause.UNALLOCATED_NUMBER)
        if trunk is not None and trunk.max_calls is not None and calls_on_line >= trunk.max_calls:
            raise NotAdmitted("trunk_full", f"{line} carries its {trunk.max_calls} calls", Cause.NO_CIRCUIT_AVAILABLE)
        if calls >= config.controller.max_calls:
            raise NotAdmitted(
                "node_full",
                f"this node carries its {config.controller.max_calls} calls",
                Cause.SWITCHING_EQUIPMENT_CONGESTION,
            )
        if phone is not None:
            caller = phone.caller_id
        codec = trunk.codecs[0].value if trunk else "ulaw"
        return Admission(
            route=route,
            application_name=route.application,
            application=config.applications[route.application],
            caller=_caller(caller, country),
            callee=callee,
            narrowband=MediaFormat(codec if route.media_format == "trunk" else route.media_format),
        )

    def readmit(self, line: str, callee: str, caller: str, name: str) -> Admission | None:
        """The admission of a call that was admitted before, and waits for application `name`; None: the configuration
        has changed, and takes it no more."""
        application = self._config.applications.get(name)
        try:
            admission = self.admit(line, callee, caller, 0, 0)
        except NotAdmitted:
            return None
        return None if application is None else admission.redirected(name, application, answered=False)

    def find(self, line: str, callee: str) -> RouteSettings | None:
        """The route for a normalised number, the most particular first. A phone is on no trunk's routes."""
        for key in ((callee, line), (callee, ANY), (ANY, line), (ANY, ANY)):
            route = self._routes.get(key)
            if route is not None:
                return route
        return None


def _caller(caller: str, country: str) -> str:
    # What a carrier gives as the caller is often no number ("anonymous", a name): that is no reason to lose the call.
    try:
        return normalise(caller, country)
    except InvalidNumber:
        return caller[:64]
