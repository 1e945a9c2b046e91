"""`trunkbridge apps`: the applications, how many calls each may carry and carries."""

from __future__ import annotations

import getpass
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import click

from ari_app.cli.options import clock, config_option, emit, emit_rows, output_option, run
from ari_app.fleet.app_limits import ApplicationState, AppLimits
from ari_app.fleet.leases import Leases
from ari_app.settings import load
from ari_app.store.limits import LimitStore
from ari_app.store.postgres import open_pool
from audiosocket.runtime.stores import open_redis, resolve


@asynccontextmanager
async def _limits(config_path: Path) -> AsyncIterator[AppLimits]:
    config = load(config_path)
    urls = resolve(config)
    pool = await open_pool(urls)
    client = open_redis(urls)
    settings = {name: application.limit for name, application in config.applications.items()}
    try:
        yield AppLimits(client, Leases(client, config.controller.lease_seconds), LimitStore(pool), settings)
    finally:
        await client.aclose()
        await pool.close()


def _by(state: ApplicationState) -> str:
    return "" if state.set_by is None else f"{state.set_by}, {clock(state.set_at)}"


_COLUMNS: list[tuple[str, Callable[[Any], Any]]] = [
    ("APPLICATION", lambda state: state.application),
    ("LIMIT", lambda state: "none" if state.limit is None else state.limit),
    ("FROM", lambda state: "" if state.source == "none" else state.source),
    ("CONFIGURED", lambda state: state.configured),
    ("WHEN FULL", lambda state: state.when_full),
    ("CALLS", lambda state: state.calls),
    ("WAITING", lambda state: state.waiting),
    ("PAIRS", lambda state: " ".join(f"{pair}:{calls}" for pair, calls in sorted(state.pairs.items()))),
    ("SET BY", _by),
]


@click.group()
def apps() -> None:
    """List applications, show and change their limits."""


@apps.command("list")
@config_option
@output_option
def list_command(config_path: Path, form: str) -> None:
    """List the applications: limit, where it comes from, calls now, callers who wait."""

    async def read() -> list[ApplicationState]:
        async with _limits(config_path) as limits:
            return await limits.states()

    emit_rows(run(read()), _COLUMNS, form, "no applications")


@apps.command()
@click.argument("application")
@click.argument("calls", type=click.IntRange(min=0), required=False)
@click.option(
    "--default", "default", is_flag=True, help="Take back what was set: the configuration's limit holds again."
)
@config_option
@output_option
def limit(application: str, calls: int | None, default: bool, config_path: Path, form: str) -> None:
    """Show the limit of APPLICATION, or set it to so many CALLS; it holds from the next call on."""
    if default and calls is not None:
        raise click.UsageError("give a number of calls or --default, not both")
    who = f"cli {getpass.getuser()}"

    async def change() -> ApplicationState:
        async with _limits(config_path) as limits:
            if default:
                return await limits.take_back(application)
            return await limits.state(application) if calls is None else await limits.put(application, calls, who)

    state = run(change())
    if form == "table":
        emit_rows([state], _COLUMNS, form, "")
    else:
        emit(state, form)
