"""What a benchmark saw: tables for people, the same as JSON for machines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table as RichTable

Value = int | float | str | bool | None
"""One cell; None: not measured."""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of figures. Units stand in the columns' names."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[Value, ...]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One benchmark's end."""

    what: str
    """What was done, in one sentence with its figures."""
    tables: list[Table]
    notes: list[str] = field(default_factory=list)
    """What a reader must know to read the figures rightly, such as a generator at its limit."""


def spread(values: Sequence[float] | NDArray[np.float64], *quantiles: float) -> tuple[float | None, ...]:
    """The quantiles (0 to 100) of `values`; None for each when there are no values."""
    if not len(values):
        return (None,) * len(quantiles)
    return tuple(float(value) for value in np.percentile(values, quantiles))


def write(folder: Path, name: str, outcome: Outcome, machine: dict[str, Any], command: str) -> Path:
    """Write `folder/name.json`; its path. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    document = {
        "name": name,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "what": outcome.what,
        "machine": machine,
        "tables": [
            {"title": table.title, "rows": [dict(zip(table.columns, row, strict=True)) for row in table.rows]}
            for table in outcome.tables
        ],
        "notes": outcome.notes,
    }
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return path


def show(console: Console, name: str, outcome: Outcome) -> None:
    """Print the tables."""
    console.print(f"\n[bold]{name}[/bold]: {outcome.what}")
    for table in outcome.tables:
        shown = RichTable(title=table.title, title_justify="left")
        for index, column in enumerate(table.columns):
            shown.add_column(column, justify="left" if index == 0 else "right")
        for row in table.rows:
            shown.add_row(*(_text(value) for value in row))
        console.print(shown)
    for note in outcome.notes:
        console.print(f"note: {note}", highlight=False)


def _text(value: Value) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
        case _:
            return value
