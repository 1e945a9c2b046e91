"""`trunkbridge db`."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path

import click

from ari_app.cli.options import clock, config_option, run
from ari_app.errors import StoreUnavailable
from ari_app.store.migrate import migrate
from ari_app.store.postgres import open_pool
from ari_app.store.spool import SPOOL_FOLDER, Spool, SpoolUnavailable, survey
from ari_app.store.writer import RecordWriter, WriterFigures
from audiosocket.runtime.stores import resolve
from audiosocket.settings import StoreUrls, load_node

WRITE_ATTEMPTS = 3


@click.group()
def db() -> None:
    """Migrate the database; write records that it lacks."""


@db.command("migrate")
@config_option
def migrate_command(config_path: Path) -> None:
    """Bring the database's tables up to this version. Safe to repeat, and to run on several nodes at once."""
    applied = run(migrate(resolve(load_node(config_path))))
    for name in applied:
        click.echo(f"applied {name}")
    if not applied:
        click.echo("up to date")


@db.command("spool")
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False, exists=True), required=False)
@click.option("--write", is_flag=True, help="Write the records to PostgreSQL, and empty the spool.")
@config_option
def spool_command(directory: Path | None, write: bool, config_path: Path) -> None:
    """Call records that wait on disk for PostgreSQL: this node's, or of a copy in DIRECTORY."""
    settings = load_node(config_path)
    directory = directory or settings.state_dir / SPOOL_FOLDER
    try:
        found = survey(directory)
        click.echo(f"{found.records} records ({found.calls} states of calls) in {found.bytes} bytes")
        if found.first_at_ms is not None and found.last_at_ms is not None:
            first, last = (datetime.fromtimestamp(ms / 1000, UTC) for ms in (found.first_at_ms, found.last_at_ms))
            click.echo(f"queued from {clock(first)} to {clock(last)}")
        if found.damaged or found.torn:
            click.echo(f"damaged pieces: {found.damaged}, unfinished lines: {found.torn}")
        if write:
            spool = Spool(directory, found.bytes + 1)
            spool.open()
            figures = run(_write(resolve(settings), spool))
            click.echo(f"written {figures.written}, refused by PostgreSQL {figures.refused}")
    except SpoolUnavailable as error:
        raise click.ClickException(f"{error}: a controller that runs writes its own spool") from None


async def _write(urls: StoreUrls, spool: Spool) -> WriterFigures:
    pool = await open_pool(urls)
    writer = RecordWriter(pool, spool)
    writer.start()
    try:
        while not await writer.replayed(1):
            if writer.figures.attempts_failed >= WRITE_ATTEMPTS:
                raise StoreUnavailable(
                    "postgres", "PostgreSQL does not take them (see the log): they stay in the spool"
                )
            await asyncio.sleep(0.1)
    finally:
        await writer.stop(0)
        await pool.close()
    return writer.figures
