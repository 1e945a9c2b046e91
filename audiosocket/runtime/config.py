"""Configuration files: YAML read with PyYAML, checked with pydantic, and every complaint made readable.

An error names the file, the path inside it, the value found and what to do. Secrets are never values in the file:
a secret is `{file: PATH}` or `{env: NAME}`, read once, and never part of a message or a repr.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError, ValidationInfo

from audiosocket.errors import ConfigError

ModelT = TypeVar("ModelT", bound="Settings")

MAX_FILE_BYTES = 1_048_576
_SHOWN_VALUE = 80


class Settings(BaseModel):
    """Base of every settings model: unknown keys are errors, and loaded settings do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, str_strip_whitespace=True)


def _read_secret(value: Any, info: ValidationInfo) -> Any:
    if isinstance(value, SecretStr):
        return value
    if not isinstance(value, dict) or len(value) != 1 or next(iter(value)) not in ("file", "env"):
        raise ValueError("a secret is not written in this file: give {file: PATH} or {env: NAME}")
    (kind, where), *_ = value.items()
    if not isinstance(where, str) or not where:
        raise ValueError(f"{kind}: expects a non-empty string")
    if kind == "env":
        found = os.environ.get(where)
        if not found:
            raise ValueError(f"environment variable {where} is not set: export it or use {{file: PATH}}")
        return found
    base = (info.context or {}).get("base", Path())
    path = base / Path(where).expanduser()
    try:
        found = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"secret file {path} cannot be read: {getattr(error, 'strerror', error)}") from None
    if not found or "\n" in found:
        raise ValueError(f"secret file {path} must hold exactly one non-empty line")
    return found


Secret = Annotated[SecretStr, BeforeValidator(_read_secret)]
"""A value given as `{file: PATH}` (relative to the configuration file) or `{env: NAME}`."""

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,39}$")]
"""A short lower-case name: letters, digits, `-` and `_`."""


class _UniqueKeyLoader(yaml.SafeLoader):
    """A SafeLoader that refuses a key given twice: the first would be lost in silence."""


def _unique_mapping(loader: _UniqueKeyLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if isinstance(key, (str, int, float, bool)):
            if key in seen:
                line = key_node.start_mark.line + 1
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} given twice (line {line})")
            seen.add(key)
    return loader.construct_mapping(node, deep=True)


_UniqueKeyLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises `ConfigError` when it cannot be read, parsed, or is no mapping."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ConfigError(f"{path}: larger than {MAX_FILE_BYTES} bytes: is this the right file?")
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}: check the path and its permissions") from None
    try:
        loaded = yaml.load(text, Loader=_UniqueKeyLoader)  # noqa: S506 - a SafeLoader subclass
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply to be a configuration") from None
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        raise ConfigError(f"{path}{where}: not valid YAML: {problem}") from None
    if loaded is None:
        raise ConfigError(f"{path}: empty: start from trunkbridge.example.yml")
    if not isinstance(loaded, dict):
        raise ConfigError(f"{path}: expected a mapping at the top, found {type(loaded).__name__}")
    return loaded


def validate(model: type[ModelT], data: dict[str, Any], path: Path) -> ModelT:
    """`data` as `model`. Raises `ConfigError` with one line per problem: file, path, value, remedy."""
    try:
        return model.model_validate(data, context={"base": path.parent})
    except ValidationError as error:
        lines = [_explain(problem, data, path) for problem in error.errors(include_url=False)]
        raise ConfigError("\n".join(lines)) from None


def _explain(problem: Any, data: dict[str, Any], path: Path) -> str:
    location = problem["loc"]
    # pydantic inserts the union member's name into the path; only what is in the file helps its reader.
    shown: list[str] = []
    value: Any = data
    found = True
    for part in location:
        if (isinstance(value, dict) and part in value) or (
            isinstance(value, list) and isinstance(part, int) and part < len(value)
        ):
            value = value[part]
        elif problem["type"] == "missing" and part == location[-1]:
            found = False
        else:
            continue
        shown.append(f"[{part}]" if isinstance(part, int) else (f".{part}" if shown else str(part)))
    where = "".join(shown) or "(top)"
    kind = problem["type"]
    if kind == "extra_forbidden":
        return f"{path}: {where}: unknown key: remove it, or correct its spelling (see docs/configuration.md)"
    if kind == "missing" or not found:
        return f"{path}: {where}: required and not given: add it (see docs/configuration.md)"
    message = problem["msg"].removeprefix("Value error, ")
    if isinstance(value, (dict, list)):
        return f"{path}: {where}: {message}"
    text = repr(value)
    if len(text) > _SHOWN_VALUE:
        text = text[:_SHOWN_VALUE] + "..."
    return f"{path}: {where}: found {text}: {message}"
