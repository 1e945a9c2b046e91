"""`trunkbridge controller`: the controller's tasks put together, with their start and their end.

Of the controllers of one node on this host one is active; the others stand by (`ari_app.controller.host_lock`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path

import click
import structlog
import uvloop
from redis.asyncio import Redis

from ari_app.ari.client import AriClient
from ari_app.ari.errors import AppReplaced
from ari_app.ari.stream import EventStream
from ari_app.cli.options import config_option
from ari_app.controller.announcing import announce
from ari_app.controller.controller import Controller
from ari_app.controller.duty import Duty, Parts
from ari_app.controller.host_lock import HostLock
from ari_app.controller.status import serve_status
from ari_app.fleet.app_limits import AppLimits
from ari_app.fleet.direct import DirectWay
from ari_app.fleet.marks import Marks
from ari_app.fleet.reach import Reach, ReachedLeases, ReachedPresent
from ari_app.fleet.remembered import RememberedWorkers
from ari_app.settings import Config, ControllerSettings, load
from ari_app.store.calls import CallStore
from ari_app.store.controllers import Controllers
from ari_app.store.limits import LimitStore
from ari_app.store.postgres import open_pool
from ari_app.store.present import CommandReader, ReportReader
from ari_app.store.spool import SPOOL_FOLDER, Spool
from ari_app.store.writer import RecordWriter
from audiosocket.runtime import logs
from audiosocket.runtime.config import validate
from audiosocket.runtime.process import StopSignal, notify
from audiosocket.runtime.stores import open_redis, resolve
from audiosocket.settings import StoreUrls

FLUSH_SECONDS = 10.0
"""How long the last records may take to reach PostgreSQL when the controller stops."""
REPLAY_SECONDS = 5.0
"""How long calls that are to be adopted, and new ones behind them, wait for a PostgreSQL that is written to."""
WATCHDOG_SECONDS = 5.0
POLL_SECONDS = 0.05
EXIT_REPLACED = 3
"""Not to be started again by a supervisor: each of two would take the calls' events from the other, for ever."""

log = structlog.get_logger(__name__)


async def serve(config: Config, stop: StopSignal, status_listen: str | None = None) -> None:
    """Runs until `stop`: stands by until this process is the active controller of its node, and is that then.

    Calls that live go on without a controller, and the next one adopts them. `status_listen` takes the place of the
    configured address. Raises `ConfigError`, `AppReplaced` when somebody else took the calls' events, `LockLost`.
    """
    lock = HostLock(config.state_dir, config.node)
    duty = Duty(config.node, config.controller.max_calls)
    listen = status_listen or config.controller.status_listen
    urls = resolve(config)
    redis = open_redis(urls)
    try:
        async with asyncio.TaskGroup() as tasks:
            beside = [tasks.create_task(duty.watch_loop(), name="lateness")]
            beside.append(tasks.create_task(announce(duty, config, Controllers(redis)), name="announcement"))
            beside.append(tasks.create_task(_supervised(duty, lock), name="watchdog"))
            if listen is not None:
                beside.append(tasks.create_task(serve_status(duty, listen), name="status"))
            if await _before(stop, lock.take()):
                keeping = tasks.create_task(lock.keep(), name="lock")
                await _serve_calls(config, urls, redis, stop, duty)
                keeping.cancel()
                lock.release()  # before anything else: who stands by takes over now
            for task in beside:
                task.cancel()
    finally:
        lock.release()
        await redis.aclose()
        log.info("controller_ended")


async def _before(stop: StopSignal, work: Coroutine[None, None, None]) -> bool:
    """Does `work`; False when it is to be stopped before it is done."""
    working, stopping = asyncio.ensure_future(work), asyncio.ensure_future(stop.requested.wait())
    try:
        await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            await working
        return working.done() and not stopping.done()
    finally:
        working.cancel()
        stopping.cancel()
        await asyncio.gather(working, stopping, return_exceptions=True)


async def _serve_calls(config: Config, urls: StoreUrls, redis: Redis, stop: StopSignal, duty: Duty) -> None:
    """The active controller, until `stop`. When this returns, all that it knew is in the records."""
    ari = config.asterisk.ari
    pool = await open_pool(urls)
    writer = RecordWriter(pool, Spool(config.state_dir / SPOOL_FOLDER, config.controller.spool_mb * 1_000_000))
    writer.start()
    try:
        async with (
            _reach(config, redis) as reach,
            AriClient(
                f"http://{ari.listen}",
                ari.username,
                ari.password.get_secret_value(),
                config.asterisk.app,
                ari.timeout_seconds,
            ) as client,
        ):
            leases = ReachedLeases(reach, config.controller.lease_seconds, node=config.node)
            # What an earlier controller could not write comes first: calls are adopted by what the records say.
            calls = CallStore(pool, lambda: writer.replayed(REPLAY_SECONDS))
            marks = Marks(pool, redis)
            present = ReachedPresent(reach)
            controller = Controller(
                config, client, leases, present, calls, writer, marked=lambda: config.node in marks.known
            )
            settings = {name: application.limit for name, application in config.applications.items()}
            limits = AppLimits(redis, leases, LimitStore(pool), settings)
            stream = EventStream(
                client,
                on_event=controller.on_event,
                on_connected=controller.on_connected,
                on_lost=controller.on_lost,
            )

            async def durable() -> None:
                # A report is acknowledged only when the record that it went into is in PostgreSQL or, while that is
                # away, safe on this machine's disk; of a call that is not adopted yet it has gone into none.
                await controller.adopted.wait()
                await controller.late.settled()
                await writer.barrier()

            reports = ReportReader(redis, config.node, durable)
            commands = CommandReader(redis, config.node)

            async def read_reports() -> None:
                # Not before the calls are adopted that they are about: how a call goes on depends on its report.
                await controller.connected.wait()
                await reports.run(controller.on_report, controller.on_notice)

            async def reach_workers() -> None:
                await controller.connected.wait()  # as above
                await reach.run(leases, controller.on_report, controller.on_notice)

            duty.parts = Parts(controller, client, stream, writer)
            try:
                async with asyncio.TaskGroup() as tasks:
                    parts = [
                        tasks.create_task(stream.run(), name="ari events"),
                        tasks.create_task(read_reports(), name="reports"),
                        tasks.create_task(reach_workers(), name="reach"),
                        tasks.create_task(controller.take_early_reports(), name="early reports"),
                        tasks.create_task(controller.late.run(), name="late reports"),
                        tasks.create_task(commands.run(controller.on_command), name="commands"),
                        tasks.create_task(controller.renew_leases(), name="leases"),
                        tasks.create_task(marks.keep(), name="marks"),
                        tasks.create_task(limits.keep(), name="limits"),
                        tasks.create_task(controller.watch_asterisk(), name="asterisk"),
                        tasks.create_task(controller.watch_workers(), name="workers"),
                        tasks.create_task(controller.end_leftovers(), name="leftovers"),
                    ]
                    await stop.requested.wait()
                    duty.stopping = True
                    notify("STOPPING=1")
                    log.info("controller_stopping", calls=controller.active)
                    await controller.settle()
                    for part in parts:
                        part.cancel()
            finally:
                await controller.stop()
    finally:
        await writer.stop(FLUSH_SECONDS)
        await pool.close()


@asynccontextmanager
async def _reach(config: Config, redis: Redis) -> AsyncIterator[Reach]:
    remembered = RememberedWorkers(config.state_dir, config.node)
    pairs = [config.pair, *config.controller.spill_over]
    if config.cluster_secret is None:
        yield Reach(redis, None, config.node, pairs, remembered)
        return
    async with DirectWay(config.cluster_secret.get_secret_value()) as direct:
        yield Reach(redis, direct, config.node, pairs, remembered)


async def _supervised(duty: Duty, lock: HostLock) -> None:
    """Tells the supervisor when this process is ready, and that it lives, for ever.

    Who stands by is ready at once: it is there. An active one is when it is connected to Asterisk.
    """
    ready = standing_by = False
    fed = 0.0
    while True:
        if lock.standing_by and not standing_by:
            standing_by = True
            notify("READY=1\nSTATUS=standing by")
        elif duty.parts is not None and not ready and duty.parts.controller.connected.is_set():
            ready = True
            log.info("controller_ready", calls=duty.calls)
            notify("READY=1\nSTATUS=active")
        if time.monotonic() - fed >= WATCHDOG_SECONDS and not duty.why_not_alive:
            fed = time.monotonic()
            notify("WATCHDOG=1")
        await asyncio.sleep(POLL_SECONDS)


@click.command()
@config_option
@click.option("--status-listen", metavar="IP:PORT", help="This process' status port, in place of the configured one.")
def controller(config_path: Path, status_listen: str | None) -> None:
    """Run the call controller of a PBX node.

    It may be stopped and started at any time: live calls go on, and the next controller adopts them. Started a second
    time on the same host it stands by, and takes over when the first one ends or hangs.
    """
    config = load(config_path)
    if status_listen is not None:
        validate(ControllerSettings, {"status_listen": status_listen}, Path("--status-listen"))
    logs.set_up("controller", config.log.level, config.log.format, config.log.mask_numbers)

    async def main() -> None:
        await serve(config, StopSignal(), status_listen)

    try:
        uvloop.run(main())
    except BaseExceptionGroup as group:
        replaced, rest = group.split(AppReplaced)
        if replaced is None or rest is not None:
            raise
        log.error("controller_stands_down", why=str(AppReplaced(config.asterisk.app)))
        raise click.exceptions.Exit(EXIT_REPLACED) from None
