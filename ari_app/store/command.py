"""`trunkbridge stores`: the embedded PostgreSQL and Redis in the foreground."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import click
import structlog

from ari_app.errors import ConfigError
from ari_app.store.embedded import EmbeddedStores
from audiosocket.settings import load_node

log = structlog.get_logger(__name__)


async def serve(state_dir: Path) -> None:
    """Run the stores until SIGTERM, SIGINT or SIGHUP. Raises `StoreUnavailable` when one of them ends by itself."""
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, asked.set)
    async with EmbeddedStores(state_dir) as stores:
        log.info("stores_ready", state_dir=str(state_dir), postgres=stores.urls.postgres, redis=stores.urls.redis)
        failed = asyncio.create_task(stores.wait_failed())
        stopped = asyncio.create_task(asked.wait())
        await asyncio.wait((failed, stopped), return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if failed.done():
            raise failed.result()
        failed.cancel()
    log.info("stores_stopped", state_dir=str(state_dir))


@click.command("stores")
@click.argument("config", type=click.Path(path_type=Path))
def stores(config: Path) -> None:
    """Run the PostgreSQL and Redis of `store: embedded` until interrupted."""
    settings = load_node(config)
    if settings.store != "embedded":
        raise ConfigError(f"{config}: store: names servers of your own: there is nothing to run")
    asyncio.run(serve(settings.state_dir))
