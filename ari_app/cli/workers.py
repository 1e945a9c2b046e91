"""`trunkbridge workers`: the media workers that are registered."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ari_app.cli.options import config_option, emit_rows, output_option, run
from ari_app.fleet.overview import worker_state
from ari_app.store.present import Present
from audiosocket.callspec import WorkerInfo
from audiosocket.runtime.stores import open_redis, resolve
from audiosocket.settings import load_node


def up(info: Any) -> str:
    """How long a process that has announced itself has been running."""
    minutes = max(0, int(time.time() - info.started_at_ms / 1000)) // 60
    return f"{minutes // 1440}d {minutes // 60 % 24:02}:{minutes % 60:02}"


WORKER_COLUMNS: list[tuple[str, Callable[[Any], Any]]] = [
    ("WORKER", lambda info: info.worker_id),
    ("PAIR", lambda info: info.pair),
    ("STATE", worker_state),
    ("CALLS", lambda info: f"{info.active} of {info.capacity}"),
    ("CORE", lambda info: f"{info.cpu_percent}%"),
    ("LATE", lambda info: f"{info.lateness_ms} ms"),
    ("ADDRESS", lambda info: f"{info.host}:{info.port}"),
    ("VERSION", lambda info: info.version),
    ("UP", up),
]


@click.command()
@config_option
@output_option
def workers(config_path: Path, form: str) -> None:
    """List the media workers that are registered, with their load."""
    emit_rows(run(_registered(config_path)), WORKER_COLUMNS, form, "no worker is registered: does a gateway run?")


async def _registered(config_path: Path) -> list[WorkerInfo]:
    client = open_redis(resolve(load_node(config_path)))
    try:
        return await Present(client).workers()
    finally:
        await client.aclose()
