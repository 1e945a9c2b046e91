"""Numbered SQL files, applied in order, each once and whole.

Invariants: a file's number and checksum are recorded in the savepoint that applies it, so a database is always at the
end of some file; a recorded file never changes; one process migrates at a time (advisory lock), others wait and then
find nothing to do.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable

import asyncpg
import structlog

from ari_app.errors import ConfigError
from ari_app.store.postgres import connect, unavailable
from audiosocket.settings import StoreUrls

LOCK_KEY = 0x7472756E6B62  # "trunkb"
LOCK_SECONDS = 60
MIGRATION_SECONDS = 600.0

_FILE_NAME = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")

_LEDGER = """
CREATE TABLE IF NOT EXISTS schema_migrations (
    version    integer PRIMARY KEY,
    name       text NOT NULL,
    checksum   text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
)
"""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Migration:
    """One file."""

    version: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """SHA-256 of the text, in hex."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


def load_migrations(folder: Traversable | None = None) -> list[Migration]:
    """The files of `folder` (default: those of this package) in order. Raises `ConfigError` for a gap or a double."""
    folder = folder or files("ari_app.store") / "migrations"
    found = []
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        match = _FILE_NAME.fullmatch(entry.name)
        if match:
            found.append(Migration(int(match[1]), entry.name, entry.read_text(encoding="utf-8")))
    for expected, migration in enumerate(found, start=1):
        if migration.version != expected:
            raise ConfigError(f"migrations: expected number {expected:04}, found {migration.name}: renumber it")
    return found


async def migrate(urls: StoreUrls, migrations: list[Migration] | None = None) -> list[str]:
    """Bring the database up to date; the names of the files applied now.

    Raises `ConfigError` when the database and the files contradict each other, `StoreUnavailable` when PostgreSQL
    cannot be used.
    """
    migrations = load_migrations() if migrations is None else migrations
    with unavailable():
        connection = await connect(urls, command_timeout=MIGRATION_SECONDS)
        try:
            # One transaction, so that the lock is held throughout behind a pooler of transactions too.
            async with connection.transaction():
                await connection.execute(f"SET LOCAL lock_timeout = '{LOCK_SECONDS}s'")
                await connection.execute("SELECT pg_advisory_xact_lock($1)", LOCK_KEY)
                names, failure = await _migrate(connection, migrations)
            if failure is not None:
                raise failure
            return names
        finally:
            await connection.close()


async def _migrate(
    connection: asyncpg.Connection, migrations: list[Migration]
) -> tuple[list[str], asyncpg.PostgresError | None]:
    """Names of the files applied, and why not all are."""
    await connection.execute(_LEDGER)
    applied = await connection.fetch("SELECT version, name, checksum FROM schema_migrations ORDER BY version")
    for row in applied:
        if row["version"] > len(migrations):
            raise ConfigError(
                f"the database has migration {row['name']}, which this version does not know: upgrade trunkbridge"
            )
        ours = migrations[row["version"] - 1]
        if ours.checksum != row["checksum"]:
            raise ConfigError(
                f"migration {ours.name} differs from what was applied to this database as {row['name']}:"
                " restore the file, and put the change into a new one"
            )
    names: list[str] = []
    for migration in migrations[len(applied) :]:
        try:
            async with connection.transaction():
                await connection.execute(migration.sql)
                await connection.execute(
                    "INSERT INTO schema_migrations (version, name, checksum) VALUES ($1, $2, $3)",
                    migration.version,
                    migration.name,
                    migration.checksum,
                )
        except asyncpg.PostgresError as error:
            return names, error  # what was applied before stays
        log.info("migration_applied", name=migration.name)
        names.append(migration.name)
    return names, None
