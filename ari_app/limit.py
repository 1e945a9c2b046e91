"""How many calls an application carries at once, and what becomes of those beyond: the setting `limit`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator

from ari_app.after import AfterSettings, FailureAfterSettings, check_after
from audiosocket.runtime.config import Settings

MUSIC, SOUND = "music:", "sound:"
SOUND_CLASS = "trunkbridge/"
"""Begins the name under which a sound is music on hold, see asterisk-conf/musiconhold.conf.j2. No folder of music can
be called so."""
MAX_CALLS = 100_000
"""The largest limit: more than any system carries."""

RejectWith = Literal["busy", "congestion", "unavailable"]


class QueueSettings(Settings):
    """Callers who wait, first come, first served, for a call of the application's to end."""

    max_waiting: Annotated[int, Field(ge=1, le=10000)] = 20
    """The next one finds the line full."""
    max_seconds: Annotated[float, Field(ge=1, le=3600)] = 60.0
    """How long one may wait."""
    hold_audio: Annotated[str, Field(pattern=r"^(ring|music:[a-z][a-z0-9_-]{0,39}|sound:[A-Za-z0-9_/-]{1,80})$")] = (
        "ring"
    )
    """What he hears: ringing, unanswered; `music:NAME`, one of `asterisk.music`; `sound:NAME`, a sound of Asterisk's,
    over and over. For the last two he is answered."""

    @property
    def music_class(self) -> str | None:
        """Asterisk's name of what he hears; None: ringing."""
        if self.hold_audio == "ring":
            return None
        return self.hold_audio.removeprefix(MUSIC).replace(SOUND, SOUND_CLASS)


class WebhookSettings(Settings):
    """How the limit follows what the application's inference cluster says of its utilisation."""

    target: Annotated[float, Field(gt=0, le=1)] = 0.8
    """The utilisation (1: all of it) that the limit is steered to, from below."""
    min: Annotated[int, Field(ge=1, le=MAX_CALLS)] = 1
    """At least 1: what a call costs is learned from calls."""
    max: Annotated[int, Field(ge=1, le=MAX_CALLS)]

    @model_validator(mode="after")
    def _ordered(self) -> WebhookSettings:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}: exchange them")
        return self


class LimitSettings(Settings):
    """The calls of one application. None given: as many as there are workers for."""

    calls: Annotated[int, Field(ge=0, le=MAX_CALLS)] | None = None
    """Calls at once, over all PBX nodes; it may be changed at run time, and then holds until that is taken back."""
    when_full: Literal["reject", "queue", "redirect"] = "reject"
    reject_with: RejectWith = "busy"
    """What the carrier is told: SIP 486, 503 or 480."""
    queue: QueueSettings = QueueSettings()
    redirect: AfterSettings = AfterSettings()
    """Where callers go when the application is full, or their waiting was in vain; none: they are rejected."""
    webhook: WebhookSettings | None = None

    @model_validator(mode="after")
    def _agrees(self) -> LimitSettings:
        if self.when_full == "redirect" and self.redirect_hangs_up:
            raise ValueError("when_full: redirect needs redirect: application, extension or transfer")
        if self.when_full == "reject" and not self.redirect_hangs_up:
            raise ValueError("redirect: when_full is reject: make it redirect or queue, or remove redirect")
        if self.when_full != "queue" and "queue" in self.model_fields_set:
            raise ValueError(f"queue: when_full is {self.when_full}: make it queue, or remove queue")
        return self

    @property
    def redirect_hangs_up(self) -> bool:
        """Whether nothing is said of where callers go."""
        return self.redirect.hangs_up and self.redirect.application is None


def check_limits(
    limits: Mapping[str, LimitSettings], contacts: Mapping[str, str | None], music: Mapping[str, object]
) -> None:
    """Raises `ValueError` for what only the whole file shows: an application, trunk or music that is not there, a
    circle."""
    redirects = {name: (limit.redirect, FailureAfterSettings()) for name, limit in limits.items()}
    check_after(redirects, contacts, ("limit.redirect", ""))
    for name, limit in limits.items():
        wanted = limit.queue.hold_audio.removeprefix(MUSIC)
        if limit.queue.hold_audio.startswith(MUSIC) and wanted not in music:
            known = ", ".join(sorted(music)) or "none is defined"
            raise ValueError(f"applications.{name}.limit.queue.hold_audio {wanted!r} is not in asterisk.music: {known}")


def hold_sounds(limits: Iterable[LimitSettings]) -> list[str]:
    """Asterisk's sounds that callers hear who wait, each once."""
    audio = {limit.queue.hold_audio for limit in limits}
    return sorted(name.removeprefix(SOUND) for name in audio if name.startswith(SOUND))
