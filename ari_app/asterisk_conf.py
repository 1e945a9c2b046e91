"""Asterisk's configuration files, rendered from trunkbridge's own.

The templates are `asterisk-conf/*.j2`. Every value that reaches a line of them is checked on its way: Asterisk's files
know no quoting, so what could end a line, start a comment or be silently trimmed is refused, with the place that it
came from.
"""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import os
import platform
import secrets
import sys
import unicodedata
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jinja2
from pydantic import BaseModel, SecretStr

from ari_app.limit import hold_sounds
from ari_app.settings import Config
from audiosocket.errors import ConfigError
from audiosocket.settings import split_host_port

SECRET_FILES = frozenset({"ari.conf", "manager.conf", "pjsip.conf"})
"""Files that hold passwords."""

MAX_VALUE_BYTES = 512
"""Asterisk reads lines of 8,192 bytes and AMI ones of 1,024; what is longer would go on as a line of its own."""

_RESERVED_SECTIONS = frozenset({"general"})


@dataclass(frozen=True, slots=True)
class AsteriskLayout:
    """Where an Asterisk has its folders, and whom it runs as."""

    etc: Path
    modules: Path
    data: Path
    """Sounds and documentation; Asterisk does not load without the latter."""
    varlib: Path
    db: Path
    key: Path
    spool: Path
    run: Path
    log: Path
    agi: Path
    runuser: str | None = None
    rungroup: str | None = None
    max_files: int | None = None
    """Descriptors that Asterisk asks for; None: what it was started with."""

    @classmethod
    def production(cls, machine: str | None = None) -> AsteriskLayout:
        """Debian's folders, for `machine` (as `uname -m` names it; None: this one)."""
        state = Path("/var/lib/asterisk")
        share = Path("/usr/share/asterisk")
        return cls(
            etc=Path("/etc/asterisk"),
            modules=Path(f"/usr/lib/{machine or platform.machine()}-linux-gnu/asterisk/modules"),
            data=share,
            varlib=state,
            db=state,
            key=state,
            spool=Path("/var/spool/asterisk"),
            run=Path("/run/asterisk"),
            log=Path("/var/log/asterisk"),
            agi=share / "agi-bin",
            runuser="asterisk",
            rungroup="asterisk",
            max_files=262_144,
        )


class _Value(str):
    """A text of the operator's, with the place that it came from."""

    __slots__ = ("place",)
    place: str

    def __new__(cls, text: str, place: str) -> _Value:
        value = super().__new__(cls, text)
        value.place = place
        return value


def templates_folder() -> Path:
    """The folder of the templates: beside this package, or installed. Raises `ConfigError` when there is none."""
    candidates = (
        Path(__file__).resolve().parent.parent / "asterisk-conf",
        Path(sys.prefix) / "share" / "trunkbridge" / "asterisk-conf",
    )
    for folder in candidates:
        if (folder / "asterisk.conf.j2").is_file():
            return folder
    looked = " or ".join(str(folder) for folder in candidates)
    raise ConfigError(f"Asterisk's templates are not in {looked}: install trunkbridge again")


def render(config: Config, layout: AsteriskLayout) -> dict[str, str]:
    """Asterisk's files for `config`: name -> text. Raises `ConfigError` for a value that Asterisk could misread."""
    folder = templates_folder()
    environment = _environment(folder)
    context = _context(config, layout)
    names = sorted(path.name for path in folder.glob("*.j2"))
    return {name.removesuffix(".j2"): environment.get_template(name).render(context) for name in names}


@functools.cache
def _environment(folder: Path) -> jinja2.Environment:
    return jinja2.Environment(  # noqa: S701 - no HTML here; `_checked` guards every value instead
        loader=jinja2.FileSystemLoader(folder),
        undefined=jinja2.StrictUndefined,
        finalize=_checked,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def write(files: Mapping[str, str], directory: Path) -> None:
    """Write `files` (name -> text) into `directory`, each at once or not at all; those with secrets with mode 0640.

    Raises `ConfigError` when the folder cannot be written.
    """
    try:
        directory.mkdir(mode=0o750, parents=True, exist_ok=True)
        for name, text in files.items():
            _write_file(directory / name, text, 0o640 if name in SECRET_FILES else 0o644)
    except OSError as error:
        raise ConfigError(f"{error.filename or directory}: cannot be written: {error.strerror}") from None


def _write_file(path: Path, text: str, mode: int) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise


def _context(config: Config, layout: AsteriskLayout) -> dict[str, Any]:
    asterisk = _placed(config.asterisk, "asterisk")
    for section in ("ari", "ami"):
        listener = getattr(asterisk, section)
        listener.host, listener.port = _listener(listener.listen)
        if listener.username in _RESERVED_SECTIONS:
            raise ConfigError(
                f"{listener.username.place}: {listener.username!s} names a section of Asterisk's own: choose another"
            )
    asterisk.ami.permit = _clients(asterisk.ami.host)
    asterisk.sip_host, _ = _listener(asterisk.sip_listen)
    afters = [
        after
        for each in config.applications.values()
        for after in (each.after, each.fallback.after, each.limit.redirect)
    ]
    asterisk.sip_wildcard = ipaddress.ip_address(asterisk.sip_host).is_unspecified
    return {
        "node": _placed(config.node, "node"),
        "asterisk": asterisk,
        "trunks": _placed(config.trunks, "trunks"),
        "phones": _placed(config.phones, "phones"),
        "controller": _placed(config.controller, "controller"),
        "after_extension": any(after.extension is not None for after in afters),
        "after_transfer": any(after.transfer is not None for after in afters),
        "hold_sounds": _placed(
            hold_sounds(each.limit for each in config.applications.values()), "a sound in limit.queue.hold_audio"
        ),
        "layout": SimpleNamespace(
            **{name: _placed(value, f"{name} of the layout") for name, value in asdict(layout).items()}
        ),
    }


def _listener(listen: _Value) -> tuple[_Value, int]:
    host, port = split_host_port(listen)
    return _Value(host, listen.place), port


def _clients(host: _Value) -> list[str]:
    """Who may log in to AMI: this machine, by the address listened on or by loopback."""
    address = ipaddress.ip_address(host)
    if address.is_unspecified or address.is_loopback:
        return ["127.0.0.0/255.0.0.0", "::1/128"]
    return [f"{address}/{address.max_prefixlen}", "127.0.0.0/255.0.0.0", "::1/128"]


def _placed(value: Any, place: str) -> Any:
    """`value` with every text of it carrying its place, so that a complaint can name it."""
    match value:
        case BaseModel():
            fields = {name: _placed(getattr(value, name), f"{place}.{name}") for name in type(value).model_fields}
            return SimpleNamespace(**fields)
        case dict():
            return {_Value(key, f"{place}.{key}"): _placed(item, f"{place}.{key}") for key, item in value.items()}
        case list():
            return [_placed(item, f"{place}[{index}]") for index, item in enumerate(value)]
        case SecretStr():
            return _Value(value.get_secret_value(), place)
        case str() | Path():
            return _Value(str(value), place)
        case _:
            return value


def _checked(value: Any) -> Any:
    """Jinja's last word on every value: it is handed on as it is, or refused."""
    if not isinstance(value, str):
        return value
    problem = _problem(value)
    if problem:
        place = value.place if isinstance(value, _Value) else "a value for Asterisk's configuration"
        # The value itself is not shown: it may be a secret.
        raise ConfigError(f"{place}: {problem}")
    return value


def _problem(text: str) -> str | None:
    if not text:
        return "empty: give a value"
    if text != text.strip():
        return "starts or ends with blanks, which Asterisk would drop: remove them"
    if ";" in text:
        return "holds ';', which starts a comment in Asterisk's files: choose a value without"
    if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in text):
        return "holds a line break or a control character: choose a value without"
    if len(text.encode()) > MAX_VALUE_BYTES:
        return f"longer than {MAX_VALUE_BYTES} bytes, more than Asterisk reads: choose a shorter value"
    return None
