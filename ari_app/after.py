"""What becomes of the caller after an application: the settings `after` and `fallback.after`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, model_validator

from audiosocket.runtime.config import Name, Settings


class TransferSettings(Settings):
    """A number that the caller is put through to, on one of the trunks."""

    to: Annotated[str, Field(pattern=r"^(\+[1-9][0-9]{6,14}|[0-9A-Za-z][0-9A-Za-z_.-]{0,39})$")]
    """A number in E.164, or an extension of what answers at the trunk's `contact`."""
    trunk: Name
    timeout_seconds: Annotated[int, Field(ge=1, le=300)] = 30
    """How long it may ring."""


class FailureAfterSettings(Settings):
    """What becomes of the caller after an application that has failed: hung up, unless one of these is given."""

    extension: Annotated[str, Field(pattern=r"^[0-9A-Za-z_-]{1,40}$")] | None = None
    """Extension in the dialplan's `trunkbridge-after-application` context to continue at."""
    transfer: TransferSettings | None = None

    @property
    def hangs_up(self) -> bool:
        """Whether the caller goes nowhere in the dialplan."""
        return self.extension is None and self.transfer is None

    @model_validator(mode="before")
    @classmethod
    def _choice(cls, value: Any) -> Any:
        if isinstance(value, cls):
            return value  # read already
        if value == "hangup":
            return {}
        choices = ", ".join(cls.model_fields)
        if not isinstance(value, dict):
            raise ValueError(f"expected hangup, or one of {choices}")
        if len(value) > 1:
            raise ValueError(f"expected only one of {choices}")
        if "application" in value and "application" not in cls.model_fields:
            raise ValueError("no application follows one that failed: fallback.url is dialled in its place")
        return value


class AfterSettings(FailureAfterSettings):
    """What becomes of the caller when the application has ended the stream: hung up, unless one of these is given."""

    application: Name | None = None
    """Takes over on the same media leg."""


def check_after(
    applications: Mapping[str, tuple[AfterSettings, FailureAfterSettings]],
    contacts: Mapping[str, str | None],
    keys: tuple[str, str] = ("after", "fallback.after"),
) -> None:
    """Raises `ValueError` for what only the whole file shows: an application or trunk that is not there, a circle.

    `applications`: of each the settings under the two `keys`. `contacts`: the trunks' SIP addresses.
    """
    for name, (after, failure_after) in applications.items():
        for key, transfer in zip(keys, (after.transfer, failure_after.transfer), strict=True):
            if transfer is None:
                continue
            place = f"applications.{name}.{key}.transfer.trunk {transfer.trunk!r}"
            if transfer.trunk not in contacts:
                raise ValueError(f"{place} is not defined: one of {', '.join(sorted(contacts))}")
            if contacts[transfer.trunk] is None:
                raise ValueError(f"{place} has no contact to be called at: add it to the trunk")
        chain = [name]
        while (following := applications[chain[-1]][0].application) is not None:
            place = f"applications.{chain[-1]}.{keys[0]}.application {following!r}"
            if following not in applications:
                raise ValueError(f"{place} is not defined: one of {', '.join(sorted(applications))}")
            if following in chain:
                raise ValueError(f"{place} leads in a circle, {' -> '.join([*chain, following])}: hang up somewhere")
            chain.append(following)
