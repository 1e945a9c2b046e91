"""`trunkbridge api`: the HTTP interface as a process. It keeps nothing: any number of them may run."""

from __future__ import annotations

from pathlib import Path

import click
import structlog
import uvloop
from aiohttp import web

from ari_app.api.app import api_app
from ari_app.cli.options import config_option
from ari_app.errors import ConfigError
from ari_app.fleet.app_limits import AppLimits
from ari_app.fleet.leases import Leases
from ari_app.settings import Config, load
from ari_app.store.limits import LimitStore
from ari_app.store.postgres import open_pool
from audiosocket.runtime import logs
from audiosocket.runtime.process import StopSignal, notify
from audiosocket.runtime.stores import open_redis, resolve
from audiosocket.settings import split_host_port

STOP_SECONDS = 5.0
"""How long requests may still take that are under way when it is stopped."""

log = structlog.get_logger(__name__)


async def serve(config: Config, stop: StopSignal) -> None:
    """Runs until `stop`. Raises `ConfigError`."""
    if not config.api.tokens:
        raise ConfigError("api.tokens: none given, so nobody would be let in: add one (see docs/api.md)")
    urls = resolve(config)
    redis = open_redis(urls)
    pool = await open_pool(urls)
    settings = {name: application.limit for name, application in config.applications.items()}
    limits = AppLimits(redis, Leases(redis, config.controller.lease_seconds), LimitStore(pool), settings)
    tokens = {name: token.get_secret_value() for name, token in config.api.tokens.items()}
    runner = web.AppRunner(api_app(limits, tokens), access_log=None, shutdown_timeout=STOP_SECONDS)
    await runner.setup()
    host, port = split_host_port(config.api.listen)
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            raise ConfigError(
                f"api.listen {config.api.listen}: {error.strerror}: does another one run there?"
            ) from None
        log.info("api_ready", listen=config.api.listen)
        notify("READY=1")
        await stop.requested.wait()
        notify("STOPPING=1")
    finally:
        await runner.cleanup()
        await redis.aclose()
        await pool.close()
        log.info("api_ended")


@click.command()
@config_option
def api(config_path: Path) -> None:
    """Run the HTTP interface: applications' limits, and the webhook of their inference clusters.

    It keeps nothing: any number of them may run, on any machine that reaches PostgreSQL and Redis.
    """
    config = load(config_path)
    logs.set_up("api", config.log.level, config.log.format, config.log.mask_numbers)

    async def main() -> None:
        await serve(config, StopSignal())

    uvloop.run(main())
