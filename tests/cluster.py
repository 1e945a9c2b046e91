"""A PostgreSQL cluster with the tables of today, made once in a test process and copied for every system of its tests.

To make one takes longer than anything else at a system's start, and that it works is tested elsewhere (test_embedded,
test_migrate, test_demo). What tests write need not outlive this machine, either: the copies never wait for the disk.
"""

from __future__ import annotations

import asyncio
import atexit
import shutil
import tempfile
from pathlib import Path

from ari_app.store.embedded import EmbeddedStores
from ari_app.store.migrate import migrate

_made: Path | None = None


async def put_cluster(state_dir: Path) -> None:
    """Into a state directory of embedded stores that have never run: they will find their PostgreSQL cluster."""
    if _made is None:
        await _make()
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    # With its owner, who is not the tests' user where that is root.
    copying = await asyncio.create_subprocess_exec("cp", "-a", f"{_made}/postgres", str(state_dir))
    assert await copying.wait() == 0


async def _make() -> None:
    global _made
    folder = Path(tempfile.mkdtemp(prefix="trunkbridge-cluster-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    async with EmbeddedStores(folder) as stores:
        await migrate(stores.urls)
    with (folder / "postgres" / "postgresql.conf").open("a", encoding="utf-8") as options:
        options.write("fsync = off\n")
    _made = folder
