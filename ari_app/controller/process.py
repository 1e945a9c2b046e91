"""`trunkbridge controller`: the controller's tasks put together, with their start and their end."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click
import structlog
import uvloop

from ari_app.ari.client import AriClient
from ari_app.ari.stream import EventStream
from ari_app.cli.options import config_option
from ari_app.controller.controller import Controller
from ari_app.fleet.leases import Leases
from ari_app.settings import Config, load
from ari_app.store.calls import CallStore
from ari_app.store.postgres import open_pool
from ari_app.store.present import CommandReader, Present, ReportReader
from ari_app.store.spool import SPOOL_FOLDER, Spool
from ari_app.store.writer import RecordWriter
from audiosocket.runtime import logs
from audiosocket.runtime.process import StopSignal, notify
from audiosocket.runtime.stores import open_redis, resolve

FLUSH_SECONDS = 10.0
"""How long the last records may take to reach PostgreSQL when the controller stops."""
REPLAY_SECONDS = 5.0
"""How long calls that are to be adopted, and new ones behind them, wait for a PostgreSQL that is written to."""
WATCHDOG_SECONDS = 5.0

log = structlog.get_logger(__name__)


async def serve(config: Config, stop: StopSignal) -> None:
    """Runs until `stop`. Calls that live go on without a controller, and the next one adopts them."""
    urls = resolve(config)
    ari = config.asterisk.ari
    redis = open_redis(urls)
    pool = await open_pool(urls)
    writer = RecordWriter(pool, Spool(config.state_dir / SPOOL_FOLDER, config.controller.spool_mb * 1_000_000))
    writer.start()
    try:
        async with AriClient(
            f"http://{ari.listen}",
            ari.username,
            ari.password.get_secret_value(),
            config.asterisk.app,
            ari.timeout_seconds,
        ) as client:
            leases = Leases(
                redis,
                config.controller.lease_seconds,
                node=config.node,
                pair=config.pair,
                spill_over=config.controller.spill_over,
            )
            # What an earlier controller could not write comes first: calls are adopted by what the records say.
            calls = CallStore(pool, lambda: writer.replayed(REPLAY_SECONDS))
            controller = Controller(config, client, leases, Present(redis), calls, writer)
            stream = EventStream(
                client,
                on_event=controller.on_event,
                on_connected=controller.on_connected,
                on_lost=controller.on_lost,
            )
            # A report is acknowledged only when the record that it went into is in PostgreSQL or, while that is away,
            # safe on this machine's disk.
            reports = ReportReader(redis, config.node, writer.barrier)
            commands = CommandReader(redis, config.node)

            async def read_reports() -> None:
                # Not before the calls are adopted that they are about: how a call goes on depends on its report.
                await controller.connected.wait()
                await reports.run(controller.on_report, controller.on_notice)

            async with asyncio.TaskGroup() as tasks:
                parts = [
                    tasks.create_task(stream.run(), name="ari events"),
                    tasks.create_task(read_reports(), name="reports"),
                    tasks.create_task(commands.run(controller.on_command), name="commands"),
                    tasks.create_task(controller.renew_leases(), name="leases"),
                    tasks.create_task(controller.watch_workers(), name="workers"),
                    tasks.create_task(_watch(controller), name="watchdog"),
                ]
                await stop.requested.wait()
                notify("STOPPING=1")
                log.info("controller_stopping", calls=controller.active)
                for part in parts:
                    part.cancel()
            await controller.stop()
    finally:
        await writer.stop(FLUSH_SECONDS)
        await redis.aclose()
        await pool.close()
        log.info("controller_ended")


async def _watch(controller: Controller) -> None:
    await controller.connected.wait()
    log.info("controller_ready", calls=controller.active)
    notify("READY=1")
    while True:
        await asyncio.sleep(WATCHDOG_SECONDS)
        notify("WATCHDOG=1")


@click.command()
@config_option
def controller(config_path: Path) -> None:
    """Run the call controller of a PBX node.

    It may be stopped and started at any time: live calls go on, and the next controller adopts them.
    """
    config = load(config_path)
    logs.set_up("controller", config.log.level, config.log.format, config.log.mask_numbers)

    async def main() -> None:
        await serve(config, StopSignal())

    uvloop.run(main())
