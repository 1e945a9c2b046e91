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
from pydantic_core import PydanticCustomError

from audiosocket.errors import ConfigError

ModelT = TypeVar("ModelT", bound="Settings")

MAX_FILE_BYTES = 1_048_576
MAX_SECRET_BYTES = 65_536
MAX_PROBLEMS = 50
"""Problems of one file that are told; beyond it they are only counted."""
_SHOWN_VALUE = 80
_EXPECTED = {
    "model_type": "expected a mapping of keys to values",
    "dict_type": "expected a mapping of keys to values",
    "list_type": "expected a list",
    "path_type": "expected a path",
}
"""What pydantic says with the names of Python's types, by its own name of the problem."""


class Settings(BaseModel):
    """Base of every settings model: unknown keys are errors, and loaded settings do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, str_strip_whitespace=True)


def _read_secret(value: Any, info: ValidationInfo) -> Any:
    if isinstance(value, SecretStr):
        return value
    try:
        return _found_secret(value, (info.context or {}).get("base", Path()))
    except ValueError as error:
        # A type of its own, by which `_explain` knows that the value in the file is not to be shown.
        raise PydanticCustomError("secret", "{why}", {"why": _one_line(str(error))}) from None


def _found_secret(value: Any, base: Path) -> str:
    if not isinstance(value, dict) or len(value) != 1 or next(iter(value)) not in ("file", "env"):
        raise ValueError("a secret is not written in this file: give {file: PATH} or {env: NAME}")
    (kind, where), *_ = value.items()
    if not isinstance(where, str) or not where:
        raise ValueError(f"{kind}: expects a non-empty string")
    if kind == "env":
        source = f"environment variable {where}"
        found = os.environ.get(where, "")
        if not found:
            raise ValueError(f"{source} is not set: export it or use {{file: PATH}}")
    else:
        source = f"secret file {where}"
        try:
            path = base / Path(where).expanduser()
            source = f"secret file {path}"
            with path.open("rb") as file:
                data = file.read(MAX_SECRET_BYTES + 1)
            found = data.decode("utf-8")
        except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: `~name` of a user who does not exist
            why = getattr(error, "strerror", None) or error
            raise ValueError(f"{source} cannot be read: {why}: check the path and its permissions") from None
    if len(found) > MAX_SECRET_BYTES or len(found.strip().splitlines()) != 1:
        raise ValueError(f"{source} must hold exactly one non-empty line")
    return found.strip()


def secret_file(path: Path) -> str:
    """The one line in the file at `path`. Raises `ConfigError`."""
    try:
        return _found_secret({"file": str(path)}, Path())
    except ValueError as error:
        raise ConfigError(_one_line(str(error))) from None


Secret = Annotated[SecretStr, BeforeValidator(_read_secret)]
"""A value given as `{file: PATH}` (relative to the configuration file) or `{env: NAME}`."""

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,39}$")]
"""A short lower-case name: letters, digits, `-` and `_`."""


class _UniqueKeyLoader(yaml.SafeLoader):
    """A SafeLoader that refuses a key given twice: the first would be lost in silence."""


def _unique_mapping(loader: _UniqueKeyLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[str] = set()
    for key_node, _ in node.value:
        problem = None
        if key_node.tag == "tag:yaml.org,2002:merge":
            # Merges of merges multiply: a few lines of them would fill the memory.
            problem = "merge keys (<<) are not read: write the values out"
        elif key_node.tag != "tag:yaml.org,2002:str":
            problem = "a key is text: put it in quotes"  # 1:, on: and null: are no text in YAML
        elif key_node.value in seen:
            problem = f"key {key_node.value!r} given twice: remove one"
        if problem:
            raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
        seen.add(key_node.value)
    return loader.construct_mapping(node, deep=True)


_UniqueKeyLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)
# A set would be read as a mapping behind the function above.
_UniqueKeyLoader.add_constructor("tag:yaml.org,2002:set", yaml.SafeLoader.construct_undefined)  # type: ignore[type-var]


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises `ConfigError` when it cannot be read, parsed, or is no mapping."""
    try:
        # Not by the size that is stated: a device or a pipe states none.
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}: check the path and its permissions") from None
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"{path}: larger than {MAX_FILE_BYTES} bytes: is this the right file?")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start}): is this the right file?") from None
    try:
        loaded = yaml.load(text, Loader=_UniqueKeyLoader)  # noqa: S506 - a SafeLoader subclass
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply to be a configuration") from None
    except Exception as error:  # PyYAML's constructors raise half a dozen classes for a value that is not its tag's
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        if not isinstance(error, (yaml.YAMLError, ValueError)):
            problem = f"a value is not what its tag says ({type(error).__name__}: {problem})"
        raise ConfigError(f"{path}{where}: not valid YAML: {_one_line(problem)}") from None
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
        problems = error.errors(include_url=False)
        lines = [f"{path}: {_one_line(_explain(problem, data))}" for problem in problems[:MAX_PROBLEMS]]
        if len(problems) > MAX_PROBLEMS:
            lines.append(f"{path}: and {len(problems) - MAX_PROBLEMS} more problems")
        raise ConfigError("\n".join(lines)) from None


def _one_line(text: str) -> str:
    """`text` fit for a line of a terminal, whatever the file put into it."""
    text = " ".join(text.split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _explain(problem: Any, data: dict[str, Any]) -> str:
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
    if not shown and problem["type"] == "value_error":
        # What only the whole file shows names its place itself.
        return str(problem["msg"]).removeprefix("Value error, ")
    where = "".join(shown) or "(top)"
    kind = problem["type"]
    if kind == "extra_forbidden":
        return f"{where}: unknown key: remove it, or correct its spelling (see docs/configuration.md)"
    if kind == "missing" or not found:
        return f"{where}: required and not given: add it (see docs/configuration.md)"
    message = _EXPECTED.get(kind, problem["msg"].removeprefix("Value error, "))
    if kind == "string_type":
        # A number, a date, or a word such as yes: YAML takes +918000000001 for one.
        bare = value is not None and not isinstance(value, (dict, list))
        message = "expected text" + (": put it in quotes" if bare else "")
    if kind == "secret" or isinstance(value, (dict, list, tuple, set)):
        return f"{where}: {message}"
    return f"{where}: found {_shown(value)}: {message}"


def _shown(value: Any) -> str:
    if isinstance(value, str) and "://" in value:
        # A URL that is refused is often refused for the password in it.
        return repr(value.partition("://")[0] + "://...")
    try:
        text = repr(value)
    except ValueError:
        return "a number of thousands of digits"  # which Python refuses to write in decimal
    return text if len(text) <= _SHOWN_VALUE else text[:_SHOWN_VALUE] + "..."
