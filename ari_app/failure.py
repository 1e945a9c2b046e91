"""What is done about an application that fails: the settings `fallback` and `circuit_breaker`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ari_app.after import FailureAfterSettings
from audiosocket.runtime.config import Name, Settings


class FallbackSettings(Settings):
    """What the caller gets in place of an application that has failed."""

    url: Annotated[str, Field(max_length=600)] | None = None
    """Another URL of the application, dialled with the same dialect, options and credentials."""
    prompt: Name | None = None
    """One of `prompts`, played when nothing else is left; none: the special information tone."""
    after: FailureAfterSettings = FailureAfterSettings()


class CircuitBreakerSettings(Settings):
    """When an application that keeps failing is left alone."""

    failures: Annotated[int, Field(ge=0, le=1000)] = 5
    """Calls in a row that cannot be connected, or are lost at once; 0: there is no breaker."""
    seconds: Annotated[float, Field(ge=1, le=3600)] = 30.0
    """How long the application is then not dialled."""
