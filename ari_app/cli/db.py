"""`trunkbridge db`."""

from __future__ import annotations

from pathlib import Path

import click

from ari_app.cli.options import config_option, run
from ari_app.store.migrate import migrate
from audiosocket.runtime.stores import resolve
from audiosocket.settings import load_node


@click.group()
def db() -> None:
    """Migrate the database."""


@db.command("migrate")
@config_option
def migrate_command(config_path: Path) -> None:
    """Bring the database's tables up to this version. Safe to repeat, and to run on several nodes at once."""
    applied = run(migrate(resolve(load_node(config_path))))
    for name in applied:
        click.echo(f"applied {name}")
    if not applied:
        click.echo("up to date")
