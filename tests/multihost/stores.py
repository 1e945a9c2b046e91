"""PostgreSQL and Redis of a store host, on the private link; the test itself uses their Unix sockets."""

from __future__ import annotations

import asyncio
from pathlib import Path

from ari_app.store.embedded import EmbeddedStores
from ari_app.store.server import Server, ServerUser
from tests.multihost.hosts import Host
from tests.multihost.tunnels import PRIVATE_NETWORK


class StoresOnHost(EmbeddedStores):
    """The servers from wheels, which otherwise have no TCP port, listening on `address` of `host`."""

    def __init__(self, state_dir: Path, host: Host, address: str) -> None:
        super().__init__(state_dir)
        self._host = host
        self._address = address

    async def restart_redis(self, away_seconds: float) -> None:
        """Redis is stopped, and comes back with nothing in it."""
        await self._restart(self.redis, away_seconds)

    async def restart_postgres(self, away_seconds: float) -> None:
        """PostgreSQL is stopped, and comes back."""
        await self._restart(self.postgres, away_seconds)

    async def _restart(self, server: Server, away_seconds: float) -> None:
        await server.stop()
        await asyncio.sleep(away_seconds)
        server.start()
        await self.ready()

    def _redis_server(self, binary: Path, user: ServerUser) -> Server:
        options = ["--port", "6379", "--bind", self._address, "--protected-mode", "no"]
        return self._there(super()._redis_server(binary, user), options)

    def _postgres_server(self, binary: Path, user: ServerUser) -> Server:
        return self._there(super()._postgres_server(binary, user), ["-c", f"listen_addresses={self._address}"])

    async def _ensure_cluster(self, initdb: Path, user: ServerUser) -> None:
        await super()._ensure_cluster(initdb, user)
        with (self._data / "pg_hba.conf").open("a") as clients:
            clients.write(f"host all all {PRIVATE_NETWORK} trust\n")

    def _there(self, server: Server, options: list[str]) -> Server:
        server._argv += options
        start = server.start

        def start_there() -> None:
            with self._host.namespace.entered():
                start()

        server.start = start_there  # type: ignore[method-assign]
        return server
