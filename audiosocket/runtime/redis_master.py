"""Connections to the one Redis server that counts now: the master that Sentinels name, or the server of a cluster that
holds our keys.

All keys carry one hash tag, so they are in one slot, and a cluster is to us one server that may change. That is why
redis-py's client for Sentinel serves for both: its `RedisCluster` would count the listeners of a channel on some server
of the cluster instead of those that were subscribed on ours, and refuses work when all its connections are in use
instead of waiting for one. What is lost in a change of servers is what the old one had not replicated.
"""

from __future__ import annotations

from typing import Any

import redis.asyncio
from redis.asyncio.connection import BlockingConnectionPool, SSLConnection, parse_url
from redis.asyncio.sentinel import MasterNotFoundError, Sentinel, SentinelConnectionPool, SentinelManagedConnection
from redis.crc import key_slot
from redis.exceptions import AskError, ClusterDownError, ConnectionError, MovedError, RedisError, ResponseError

from audiosocket.keys import KEY_PREFIX
from audiosocket.runtime.redis_address import RedisAddress

_SLOT = key_slot(KEY_PREFIX.encode())


class _MasterConnection(SentinelManagedConnection):
    """Ends when its server says that it is not the one any more: the next one is made to whichever is."""

    async def read_response(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return await super().read_response(*args, **kwargs)
        except (MovedError, AskError) as error:
            self.connection_pool.sentinel_manager.prefer((error.host, error.port))
            await self.disconnect()
            raise ConnectionError("another server of the cluster has our keys now") from None
        except ClusterDownError:
            await self.disconnect()
            raise ConnectionError("the cluster is down") from None
        except ResponseError as error:
            # Within a script Redis 6.2 says it in the middle of an error of the script.
            if "READONLY" not in str(error):
                raise
            await self.disconnect()
            raise ConnectionError("the server is no master any more") from None


class _TlsMasterConnection(_MasterConnection, SSLConnection):
    """The same with TLS."""


class _MasterPool(SentinelConnectionPool, BlockingConnectionPool):
    """As many connections as there may be; who finds all in use waits."""

    async def aclose(self) -> None:
        await super().aclose()
        await self.sentinel_manager.aclose()


class _Sentinels(Sentinel):
    """redis-py's own, and all of them for ever.

    It exchanges the one that has answered with the first by the place where it stood when it was asked. Where several
    ask at once the first is gone from the list then, and never closed.
    """

    async def discover_master(self, name: str) -> tuple[str, int]:
        """Where the master is now."""
        all_of_them = list(self.sentinels)
        try:
            return await super().discover_master(name)  # type: ignore[no-any-return]
        finally:
            self.sentinels = list(dict.fromkeys([*self.sentinels, *all_of_them]))

    def prefer(self, host: tuple[str, int]) -> None:
        """Who is the master is not for a server to say."""


class _SlotOwner:
    """Finds the server of a cluster that holds our slot, as `Sentinel` finds a master."""

    def __init__(self, hosts: tuple[tuple[str, int], ...], options: dict[str, Any]) -> None:
        self._given = hosts
        self._hosts = list(hosts)
        self._options = options

    def prefer(self, host: tuple[str, int]) -> None:
        """This one is asked first the next time."""
        self._hosts = [host, *(other for other in self._hosts if other != host)]

    async def discover_master(self, _name: str) -> tuple[str, int]:
        """Where our keys are now."""
        why = "none of its servers was asked"
        for host in list(self._hosts):
            try:
                async with redis.asyncio.Redis(host=host[0], port=host[1], **self._options) as server:
                    slots: Any = await server.execute_command("CLUSTER", "SLOTS")  # type: ignore[no-untyped-call]
            except (RedisError, OSError) as error:
                why = f"{host[0]}:{host[1]}: {error}"
                self._hosts = [*(other for other in self._hosts if other != host), host]
                continue
            for first, last, *servers in slots:
                if first <= _SLOT <= last:
                    # A server that knows no address of its own stands for the one that was asked.
                    found = [((name or b"").decode() or host[0], int(port)) for name, port, *_ in servers]
                    self._hosts = list(dict.fromkeys([host, *found, *self._given]))
                    return found[0]
            why = f"{host[0]}:{host[1]} knows no server for our keys: is every slot assigned?"
        raise MasterNotFoundError(f"the cluster cannot be used: {why}")

    async def aclose(self) -> None:
        """Nothing is kept open."""


def open_pool(
    address: RedisAddress, options: dict[str, Any], pool: dict[str, Any], timeout_seconds: float
) -> BlockingConnectionPool:
    """A pool of connections to the server that `address` stands for at the time when each is made.

    `options` are those of every connection, `pool` those of the pool. Asking for the server takes less than
    `timeout_seconds` altogether, whichever of those that are asked does not answer.
    """
    found: dict[str, Any] = {**parse_url(address.plain), **options}
    tls = found.pop("connection_class", None) is SSLConnection
    for name in ("host", "port"):
        found.pop(name, None)
    each = timeout_seconds / (len(address.hosts) + 1)
    asking = {"socket_timeout": each, "socket_connect_timeout": each, "retry": options["retry"], "protocol": 2}
    asking |= {"ssl": tls, **{name: value for name, value in found.items() if name.startswith("ssl_")}}
    sentinel_password = pool.pop("sentinel_password", None)
    manager: Any
    if address.kind == "sentinel":
        manager = _Sentinels(address.hosts, sentinel_kwargs=asking | {"password": sentinel_password})  # type: ignore[no-untyped-call]
    else:
        login = {name: value for name, value in found.items() if name in ("username", "password")}
        manager = _SlotOwner(address.hosts, asking | login)
    kind = _TlsMasterConnection if tls else _MasterConnection
    return _MasterPool(address.master, manager, connection_class=kind, **pool, **found)  # type: ignore[no-untyped-call]
