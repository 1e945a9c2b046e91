"""`trunkbridge config`: is the file right, and what Asterisk gets from it."""

from __future__ import annotations

from pathlib import Path

import click

from ari_app.asterisk_conf import AsteriskLayout, render, write
from ari_app.settings import load


@click.group()
def config() -> None:
    """Check a configuration file, render Asterisk's."""


@config.command()
@click.argument("file", type=click.Path(path_type=Path))
def check(file: Path) -> None:
    """Check FILE: unknown keys, types, values, references, and whether Asterisk's files can be rendered from it."""
    loaded = load(file)
    render(loaded, AsteriskLayout.production())
    click.echo(
        f"{file}: good: node {loaded.node}, {len(loaded.trunks)} trunks, {len(loaded.applications)} applications,"
        f" {len(loaded.routes)} routes"
    )


@config.command("render")
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option("--dry-run", is_flag=True, help="Name the files, write nothing.")
def render_command(file: Path, directory: Path, dry_run: bool) -> None:
    """Render Asterisk's configuration from FILE into DIRECTORY (for production /etc/asterisk)."""
    files = render(load(file), AsteriskLayout.production())
    if not dry_run:
        write(files, directory)
    for name in sorted(files):
        click.echo(f"{'would write' if dry_run else 'wrote'} {directory / name}")
