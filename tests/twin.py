"""The media path a second time in this process, as it is where nothing could be compiled."""

from __future__ import annotations

import importlib
import sys
from collections import deque
from types import ModuleType
from typing import Any

import pytest

from audiosocket.compiled import SWITCH

_NAMES = (
    "callspec",
    "carried",
    "dialects",
    "dialects.media_messages",
    "durations",
    "legs.audiosocket",
    "loudness",
    "playout",
    "recording.recorder",
    "session",
    "turns",
)


def _is_ours(name: str) -> bool:
    return name == "audiosocket" or name.startswith("audiosocket.")


def in_python() -> dict[str, ModuleType]:
    """Modules of `audiosocket`, by name, imported anew with the compiled steps switched off."""
    kept = {name: module for name, module in sys.modules.items() if _is_ours(name)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SWITCH, "no")
        for name in kept:
            del sys.modules[name]
        try:
            return {name: importlib.import_module(f"audiosocket.{name}") for name in _NAMES}
        finally:
            for name in [name for name in sys.modules if _is_ours(name)]:
                del sys.modules[name]
            sys.modules.update(kept)


def as_it_is() -> dict[str, ModuleType]:
    """The same modules as everybody imports them."""
    return {name: importlib.import_module(f"audiosocket.{name}") for name in _NAMES}


def state(thing: object, names: tuple[str, ...]) -> dict[str, Any]:
    """What is in the attributes, as values that may be compared."""
    found: dict[str, Any] = {}
    for name in names:
        value = getattr(thing, name)
        if isinstance(value, deque):
            value = list(value)
        if value is None or isinstance(value, (bool, int, float, str, bytes, list, dict, tuple)):
            found[name] = (type(value).__name__, value)
    return found


def slots(kind: type) -> tuple[str, ...]:
    """All attributes of a class of the Python twin."""
    return tuple(name for base in kind.__mro__ for name in base.__dict__.get("__slots__", ()))
