"""The compiled steps of a frame, `audiosocket._frames`: whether they are in use, and how a class takes them up.

The rules are in Python, and complete. Where the package was built with a C compiler, a type of `_frames` holds the
state that a class uses for every frame, and stands in front of some of its methods: it does the usual frame and hands
all else to the method in Python. `TRUNKBRIDGE_COMPILED=no` leaves them aside.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TypeVar

SWITCH = "TRUNKBRIDGE_COMPILED"
"""An environment variable; `no` means that everything is done in Python."""

_Class = TypeVar("_Class", bound=type)


def _load() -> tuple[ModuleType | None, str]:
    if os.environ.get(SWITCH, "").lower() in ("no", "0", "off", "false"):
        return None, f"off: {SWITCH}"
    try:
        module = importlib.import_module("audiosocket._frames")
    except ImportError:
        return None, "not built: no C compiler, or no Python headers, when the package was installed"
    sources = sorted(Path(__file__).parent.glob("_*.[ch]"))
    if sources:
        # A checkout: what is compiled may be older than what stands there.
        digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()
        if digest != getattr(module, "SOURCE", ""):
            why = "out of date: audiosocket/_*.c was edited after it was compiled, install the package again"
            warnings.warn(f"compiled steps of a frame {why}", RuntimeWarning, stacklevel=2)
            return None, why
    return module, "in use"


FRAMES, STATE = _load()
"""The module, None when it is not in use; and the reason, for the log."""


def usual(*methods: str, **constants: int) -> Callable[[_Class], _Class]:
    """Puts the compiled `methods` of a class's first base in front of its own; `constants` are told to them.

    Without compiled steps the class stays what it is.
    """

    def take(taken: _Class) -> _Class:
        if FRAMES is not None:
            for name, value in constants.items():
                FRAMES.constant(name, value)
            for method in methods:
                FRAMES.refer(f"{taken.__name__}.{method}", taken.__dict__[method])
                delattr(taken, method)
        return taken

    return take
