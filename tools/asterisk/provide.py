"""Provides a real Asterisk: the machine's own where it will do, otherwise one unpacked from Debian's packages."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from tools.asterisk.install import (
    AsteriskInstall,
    AsteriskUnavailable,
    ask_version,
    floors_text,
    missing_parts,
    new_enough,
    release,
)
from tools.asterisk.unpack import unpacked

Progress = Callable[[str], None]

_MODULE_FOLDERS = (
    "/usr/lib/{machine}-linux-gnu/asterisk/modules",
    "/usr/lib/asterisk/modules",
    "/usr/lib64/asterisk/modules",
    "/usr/local/lib/asterisk/modules",
)
_DATA_FOLDERS = ("/usr/share/asterisk", "/var/lib/asterisk", "/usr/local/share/asterisk")
_MODULES_OPTION = re.compile(r"^\s*astmoddir\s*=>?\s*(\S+)", re.MULTILINE)
_DATA_OPTION = re.compile(r"^\s*astdatadir\s*=>?\s*(\S+)", re.MULTILINE)


def default_cache_dir() -> Path:
    """`$XDG_CACHE_HOME/trunkbridge/asterisk`, by default below `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "trunkbridge" / "asterisk"


def provide(cache_dir: Path | None = None, progress: Progress = lambda line: None) -> AsteriskInstall:
    """A usable Asterisk; `progress` is told, line by line, what is going on.

    The first use on a machine without one downloads about 80 MB. Concurrent callers wait for the one who does it.
    Raises `AsteriskUnavailable`.
    """
    system = system_asterisk(progress)
    if system is not None:
        return system
    return unpacked(cache_dir or default_cache_dir(), progress)


def system_asterisk(progress: Progress) -> AsteriskInstall | None:
    """The machine's own Asterisk, or None when there is none that will do (`progress` is told why)."""
    # Not every user has the sbin folders in PATH.
    places = (os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin")
    binary = shutil.which("asterisk", path=os.pathsep.join(places))
    if binary is None:
        return None
    try:
        said = ask_version((binary,))
    except AsteriskUnavailable as error:
        progress(f"{error}; another one is used")
        return None
    found = release(said)
    if found is None or not new_enough(found):
        progress(f"{binary} is {said}, older than {floors_text()}: another one is used")
        return None
    options = _system_options()
    modules = _first_folder(_MODULES_OPTION, options, _MODULE_FOLDERS)
    data = _first_folder(_DATA_OPTION, options, _DATA_FOLDERS)
    install = AsteriskInstall((binary,), modules, data, said.removeprefix("Asterisk "), "system")
    missing = missing_parts(install)
    if missing:
        progress(f"{binary} is {said}, but has no {missing[0]}: another one is used")
        return None
    return install


def _system_options() -> str:
    try:
        return Path("/etc/asterisk/asterisk.conf").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _first_folder(option: re.Pattern[str], options: str, candidates: tuple[str, ...]) -> Path:
    machine = os.uname().machine
    given = option.findall(options)
    folders = [Path(text.format(machine=machine)) for text in candidates]
    return next((folder for folder in (*map(Path, given), *folders) if folder.is_dir()), folders[0])
