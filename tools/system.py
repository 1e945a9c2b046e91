"""A whole trunkbridge on this machine: stores, Asterisk, media workers, controller and the two applications.

One supervisor starts them in order, each when the one before answers, and stops them in reverse; none outlives it.
"""

from __future__ import annotations

import asyncio
import ipaddress
import secrets
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from urllib.parse import urlsplit

from ari_app.settings import Config, load
from ari_app.store.calls import CallStore
from ari_app.store.migrate import migrate
from ari_app.store.postgres import open_pool
from ari_app.store.records import CallEvent, CallRow
from audiosocket.runtime.config import read_yaml
from audiosocket.runtime.stores import resolve
from tools.asterisk.install import AsteriskInstall
from tools.asterisk.instance import AsteriskInstance
from tools.process import Process, ProcessFailed

APPLICATIONS = ("conversation", "echo")


def make_secrets(config_path: Path) -> None:
    """Writes the secrets that a configuration names as files and that do not exist yet, each a random word."""

    def visit(value: object) -> None:
        if isinstance(value, dict):
            if set(value) == {"file"} and isinstance(value["file"], str):
                path = config_path.parent / value["file"]
                if not path.exists():
                    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                    path.touch(mode=0o600)
                    path.write_text(secrets.token_urlsafe(18) + "\n", encoding="utf-8")
            for item in value.values():
                visit(item)
        elif isinstance(value, list):
            for item in value:
                visit(item)

    visit(read_yaml(config_path))


def runs_here(url: str) -> bool:
    """Whether an application of ours is to listen at `url`: ws:// on a loopback address. Any other is its owner's."""
    parts = urlsplit(url)
    try:
        return parts.scheme == "ws" and ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return parts.scheme == "ws" and parts.hostname == "localhost"


class System:
    """An async context manager. `progress` is told each step as it is done."""

    def __init__(
        self,
        config_path: Path,
        install: AsteriskInstall,
        progress: Callable[[str], None] = lambda line: None,
        worker_prefix: tuple[str, ...] = (),
        standbys: int = 0,
    ) -> None:
        """`worker_prefix`: a command that becomes the workers' own, such as `ip netns exec NAME`; `standbys`: further
        controllers, which stand by."""
        make_secrets(config_path)
        self.config_path = config_path
        self.config: Config = load(config_path)
        self.install = install
        self.logs = self.config.state_dir / "log"
        self.asterisk = AsteriskInstance(install, self.config, self.config.state_dir / "asterisk")
        own = self.config.store == "embedded"
        self.stores = [self._trunkbridge("stores", "stores_ready", str(config_path))] if own else []
        """The process of the embedded ones."""
        self.controller = self._trunkbridge("controller", "controller_ready")
        self.standbys: list[Process] = []
        for number in range(standbys):
            self.standby(f"standby@{number}")
        self.apis = [self._trunkbridge("api", "api_ready")] if self.config.api.tokens else []
        self.workers = [
            self._trunkbridge(
                "gateway", "worker_ready", "--worker", str(index), name=f"gateway@{index}", prefix=worker_prefix
            )
            for index in range(self.config.gateway.workers)
        ]
        self.applications = {
            name: self._application(name, settings.url)
            for name, settings in self.config.applications.items()
            if name in APPLICATIONS and runs_here(settings.url)
        }
        self._progress = progress

    async def __aenter__(self) -> System:
        try:
            await self.start()
        except BaseException:
            await asyncio.shield(self.stop())
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Starts everything. Raises `ProcessFailed`, `AsteriskFailed` or `ConfigError`."""
        began = time.monotonic()

        def done(what: str) -> None:
            self._progress(f"{time.monotonic() - began:5.1f} s  {what}")

        try:
            async with asyncio.TaskGroup() as tasks:
                # Asterisk needs nothing of the others, and takes the longest.
                asterisk = tasks.create_task(self.asterisk.start())
                for process in self.stores:
                    await process.start()
                applied = await migrate(resolve(self.config))
                done(f"PostgreSQL and Redis answer{f', {len(applied)} migrations applied' if applied else ''}")
                async with asyncio.TaskGroup() as starting:
                    for process in (*self.applications.values(), *self.workers):
                        starting.create_task(process.start())
                done(f"{len(self.applications)} application(s) and {len(self.workers)} media worker(s) listen")
                await asterisk
                done(f"Asterisk {self.install.version} is up ({self.install.origin})")
        except BaseExceptionGroup as group:
            # What failed first is what the reader can act on; the others ended because of it.
            error: BaseException = group
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            raise error from None
        await self.controller.start()
        await asyncio.gather(*(process.start() for process in self.standbys))
        done("the controller is connected: calls are answered")
        await asyncio.gather(*(process.start() for process in self.apis))

    async def stop(self) -> None:
        """Stops everything, in reverse; what does not run is passed over."""
        # Who stands by goes first, and takes over nothing.
        await asyncio.gather(*(process.stop() for process in (*self.apis, *self.standbys)))
        await self.controller.stop()
        await self.asterisk.stop()
        await asyncio.gather(*(process.stop() for process in (*self.workers, *self.applications.values())))
        await asyncio.gather(*(process.stop() for process in self.stores))

    async def kill(self) -> None:
        """Ends everything at once, calls or not; only the stores are let close their files, which takes no time."""
        processes = (*self.apis, *self.standbys, self.controller, *self.workers, *self.applications.values())
        await asyncio.gather(self.asterisk.kill(), *(process.kill() for process in processes))
        await asyncio.gather(*(process.stop() for process in self.stores))

    def standby(self, name: str, *arguments: str, ready: str = "controller_standing_by") -> Process:
        """A further controller of this node, to be started by the caller. It is stopped with the others."""
        process = self._trunkbridge("controller", ready, *arguments, name=name)
        self.standbys.append(process)
        return process

    async def wait_failed(self) -> ProcessFailed:
        """Returns when one of the processes has ended by itself."""
        processes = [*self.stores, self.controller, *self.workers, *self.applications.values(), *self.apis]
        while True:
            for process in processes:
                if not process.running:
                    return process.failure("ended by itself")
            if not self.asterisk.running:
                return ProcessFailed(f"Asterisk ended by itself; the end of its log:\n{self.asterisk.tail()}")
            await asyncio.sleep(0.2)

    async def calls(self, limit: int = 5000) -> list[CallRow]:
        """The call records, newest first."""
        pool = await open_pool(resolve(self.config))
        try:
            return await CallStore(pool).list_calls(limit=limit)
        finally:
            await pool.close()

    async def events(self, call_id: str) -> list[CallEvent]:
        """The story of one call."""
        pool = await open_pool(resolve(self.config))
        try:
            return await CallStore(pool).events(call_id)
        finally:
            await pool.close()

    def _trunkbridge(
        self, command: str, ready: str, *arguments: str, name: str = "", prefix: tuple[str, ...] = ()
    ) -> Process:
        argv = [*prefix, sys.executable, "-m", "ari_app.cli.main", command, *arguments]
        environment = {"TRUNKBRIDGE_CONFIG": str(self.config_path.absolute())}
        name = name or command
        return Process(name, argv, self.logs / f"{name}.log", ready, environment)

    def _application(self, name: str, url: str) -> Process:
        parts = urlsplit(url)
        address = f"{parts.hostname}:{parts.port or 80}"
        argv = [sys.executable, "-m", f"tools.apps.{name}", "--listen", address]
        argv += ["--record", str(self.logs / f"{name}.jsonl")]
        if name == "conversation":
            argv += ["--sounds", str(self.install.sounds)]
        return Process(name, argv, self.logs / f"{name}.log", "listening on", {})
