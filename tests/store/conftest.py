"""The servers of this rung."""

from tests.stores import empty_stores, pool, redis_client, servers, stores

__all__ = ["empty_stores", "pool", "redis_client", "servers", "stores"]
