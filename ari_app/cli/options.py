"""Options that commands share, and the one way that rows are printed."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import asdict, is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec
import yaml
from rich.console import Console
from rich.table import Table

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])
ResultT = TypeVar("ResultT")

config_option = click.option(
    "-c",
    "--config",
    "config_path",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar="TRUNKBRIDGE_CONFIG",
    default="trunkbridge.yml",
    show_default=True,
    help="Configuration file (or TRUNKBRIDGE_CONFIG).",
)
output_option = click.option(
    "-o", "--output", "form", type=click.Choice(["table", "json", "yaml"]), default="table", show_default=True
)


def run(work: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Runs one command's coroutine; Ctrl-C ends it without a traceback."""
    try:
        return asyncio.run(work)
    except KeyboardInterrupt:
        raise click.exceptions.Exit(130) from None


def plain(value: Any) -> Any:
    """`value` as what JSON and YAML know."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, msgspec.Struct):
        return plain(msgspec.to_builtins(value))
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="milliseconds")
    return value


def emit(value: Any, form: str) -> None:
    """Prints `value` as JSON or YAML."""
    if form == "json":
        click.echo(json.dumps(plain(value), indent=2))
    else:
        click.echo(yaml.safe_dump(plain(value), sort_keys=False, allow_unicode=True), nl=False)


def emit_rows(rows: Sequence[Any], columns: Sequence[tuple[str, Callable[[Any], Any]]], form: str, empty: str) -> None:
    """Prints rows: a table of `columns` (heading, cell) for people, everything for programs."""
    if form != "table":
        emit(list(rows), form)
        return
    if not rows:
        click.echo(empty, err=True)
        return
    console().print(table(rows, columns))


def table(rows: Sequence[Any], columns: Sequence[tuple[str, Callable[[Any], Any]]]) -> Table:
    """Rows as a rich table."""
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for heading, _ in columns:
        drawn.add_column(heading)
    for row in rows:
        cells = [cell(row) for _, cell in columns]
        drawn.add_row(*("" if cell is None else str(cell) for cell in cells))
    return drawn


def console() -> Console:
    """Standard output; a pipe gets lines that are not folded."""
    return Console() if sys.stdout.isatty() else Console(width=240)


def clock(value: datetime | None) -> str:
    """Local wall-clock time for a table."""
    return "" if value is None else value.astimezone().strftime("%Y-%m-%d %H:%M:%S")
