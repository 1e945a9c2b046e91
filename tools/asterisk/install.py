"""What is known of one Asterisk on this machine, and whether it will do."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

FLOORS = {20: (20, 20, 0), 22: (22, 10, 0), 23: (23, 4, 0)}
"""The oldest usable release of each series: before it, comfort noise from the trunk ends an AudioSocket leg."""

NEEDED_MODULES = ("chan_audiosocket.so", "res_audiosocket.so", "res_ari.so", "chan_pjsip.so")

_VERSION = re.compile(r"Asterisk (?:certified[/-])?(\d+)\.(\d+)(?:\.(\d+))?")
_VERSION_SECONDS = 20


class AsteriskUnavailable(Exception):
    """No usable Asterisk could be found or made; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class AsteriskInstall:
    """An Asterisk that can be started."""

    argv: tuple[str, ...]
    """What runs it; options are appended."""
    modules: Path
    data: Path
    """Folder with `sounds/` and `documentation/`."""
    version: str
    """As it says itself, such as `22.10.1~dfsg+~cs6.15.60671435-1`."""
    origin: Literal["system", "unpacked"]

    @property
    def sounds(self) -> Path:
        """The folder of the English prompts."""
        return self.data / "sounds" / "en"


def release(version: str) -> tuple[int, int, int] | None:
    """`Asterisk 22.10.1~dfsg` as `(22, 10, 1)`; None for what is no release (a development build)."""
    found = _VERSION.match(version)
    return (int(found[1]), int(found[2]), int(found[3] or 0)) if found else None


def new_enough(found: tuple[int, int, int]) -> bool:
    """Whether a release is at or above the floor of its series; series that have ended have none."""
    floor = FLOORS.get(found[0])
    return found >= floor if floor else found[0] > max(FLOORS)


def floors_text() -> str:
    """The floors, for a message."""
    return ", ".join(".".join(map(str, floor)) for floor in sorted(FLOORS.values(), reverse=True))


def ask_version(argv: tuple[str, ...]) -> str:
    """What `asterisk -V` answers, without the leading word. Raises `AsteriskUnavailable` when it does not run."""
    try:
        done = subprocess.run([*argv, "-V"], capture_output=True, text=True, timeout=_VERSION_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise AsteriskUnavailable(f"{argv[-1]} does not run: {error}") from None
    if done.returncode or not done.stdout.startswith("Asterisk "):
        said = (done.stderr or done.stdout).strip().splitlines() or ["nothing said"]
        raise AsteriskUnavailable(f"{argv[-1]} -V failed with status {done.returncode}: {said[-1]}")
    return done.stdout.strip()


def missing_parts(install: AsteriskInstall) -> list[str]:
    """The parts without which a call fails: modules, documentation, English prompts."""
    missing = [str(install.modules / name) for name in NEEDED_MODULES if not (install.modules / name).is_file()]
    if not any((install.data / "documentation").glob("core-*.xml")):
        missing.append(str(install.data / "documentation" / "core-en_US.xml"))
    if not any(install.sounds.glob("*.*")):
        missing.append(str(install.sounds))
    return missing
