"""Leases: which media worker carries which call, chosen and recorded in one step.

The policy is in the scripts below and nowhere else: only inside Redis can the choice and the record of it be one step
that no other controller gets between. A worker is chosen among those that are alive (`WorkerInfo` not expired) and not
draining or overloaded: the least leases per capacity, and among equals in turn.

Invariants, whatever the order of calls and whoever dies in between:
- No grant takes a worker above its capacity.
- A call holds at most one lease; asking again returns the same worker, unless that one is dead.
- Every lease ends: one that is not renewed expires, by Redis' clock.

A worker's leases are a sorted set, call id by expiry in ms: that set alone says what is leased. `lease:<call id>` only
finds the set, and may outlive the lease a little. Both expire with the last lease in them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from itertools import islice
from typing import Any

import msgspec
import redis.asyncio

from ari_app.errors import NoCapacity
from ari_app.store.present import redis_unavailable
from audiosocket.callspec import KEY_PREFIX, WORKERS_KEY, WorkerInfo
from audiosocket.runtime.stores import redis_call

RENEW_BATCH = 500
"""Leases that one script renews: Redis does nothing else meanwhile."""

_WHY = {
    b"no_workers": "no media worker is registered: is a gateway running, and does it reach this Redis?",
    b"all_draining": "every media worker is draining",
    b"all_full": "every media worker is at its capacity, or does not keep its 20 ms",
}

# All keys carry one hash tag, so they are in one slot of a cluster although only KEYS[1] is declared.
# ARGV[1]: key prefix, ARGV[2]: length of a lease in ms.
_COMMON = """
local prefix, lease_ms = ARGV[1], tonumber(ARGV[2])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function set_of(worker) return prefix .. 'leases:' .. worker end
local function index_of(call) return prefix .. 'lease:' .. call end

local function worker_info(worker)
    local payload = redis.call('GET', prefix .. 'worker:' .. worker)
    if payload then
        local readable, info = pcall(cjson.decode, payload)
        if readable then return info, payload end
    end
end

local function holder(call)
    local worker = redis.call('GET', index_of(call))
    local expires = worker and redis.call('ZSCORE', set_of(worker), call)
    if expires and tonumber(expires) > now then return worker end
end

local function count(worker)
    redis.call('ZREMRANGEBYSCORE', set_of(worker), '-inf', now)
    return redis.call('ZCARD', set_of(worker))
end

local function grant(call, worker)
    local set = set_of(worker)
    redis.call('ZADD', set, now + lease_ms, call)
    redis.call('PEXPIRE', set, math.max(lease_ms + 1000, redis.call('PTTL', set)))
    redis.call('SET', index_of(call), worker, 'PX', lease_ms + 1000)
end

local function revoke(call)
    local worker = redis.call('GET', index_of(call))
    if not worker then return 0 end
    redis.call('DEL', index_of(call))
    return redis.call('ZREM', set_of(worker), call)
end
"""

# ARGV[3]: call id. Returns {1, WorkerInfo} or {0, reason}.
_ACQUIRE = (
    _COMMON
    + """
local call = ARGV[3]
local held = holder(call)
if held then
    local _, payload = worker_info(held)
    if payload then
        grant(call, held)
        return {1, payload}
    end
end
revoke(call)

local workers = redis.call('SMEMBERS', KEYS[1])
table.sort(workers)
local why, best = 'no_workers', {}
for _, worker in ipairs(workers) do
    local info, payload = worker_info(worker)
    if info and info.draining then
        if why == 'no_workers' then why = 'all_draining' end
    elseif info then
        why = 'all_full'
        local active = count(worker)
        if active < info.capacity and not info.overloaded then
            -- active / capacity, compared without dividing
            local order = best[1] and active * best[1].capacity - best[1].active * info.capacity or -1
            if order < 0 then best = {} end
            if order <= 0 then
                table.insert(best, {worker = worker, payload = payload, active = active, capacity = info.capacity})
            end
        end
    end
end
if not best[1] then return {0, why} end
local turn = redis.call('INCR', prefix .. 'lease-turn')
local chosen = best[turn % #best + 1]
grant(call, chosen.worker)
return {1, chosen.payload}
"""
)

# ARGV[3...]: call id, worker id, call id, worker id, ... Returns the calls without a lease on that worker.
_RENEW = (
    _COMMON
    + """
local lost = {}
for i = 3, #ARGV, 2 do
    local call, worker = ARGV[i], ARGV[i + 1]
    local held = holder(call)
    if held == worker then
        grant(call, worker)
    else
        local info = not held and worker_info(worker)
        if info and count(worker) < info.capacity then
            revoke(call)
            grant(call, worker)
        else
            table.insert(lost, call)
        end
    end
end
return lost
"""
)

# ARGV[3]: call id.
_RELEASE = _COMMON + "return revoke(ARGV[3])"

# ARGV[3...]: worker ids.
_ACTIVE = (
    _COMMON
    + """
local counts = {}
for i = 3, #ARGV do table.insert(counts, count(ARGV[i])) end
return counts
"""
)


class Leases:
    """The leases of a cluster. Every method ends within `redis_call`'s time limit and raises `StoreUnavailable`."""

    def __init__(self, client: redis.asyncio.Redis, lease_seconds: float) -> None:
        self._redis = client
        self._lease_ms = int(lease_seconds * 1000)
        self._acquire = client.register_script(_ACQUIRE)
        self._renew = client.register_script(_RENEW)
        self._release = client.register_script(_RELEASE)
        self._active = client.register_script(_ACTIVE)
        self._not_renewing = asyncio.Event()
        self._not_renewing.set()

    async def acquire(self, call_id: str) -> WorkerInfo:
        """The worker for a call, leased for `lease_seconds`. Raises `NoCapacity`."""
        async with redis_call(redis_unavailable):
            granted, what = await self._run(self._acquire, [call_id])
        if not granted:
            raise NoCapacity(what.decode(), _WHY[what])
        return msgspec.json.decode(what, type=WorkerInfo)

    async def renew(self, workers: Mapping[str, str]) -> set[str]:
        """Renew the leases of calls (call id to worker id); the calls that now have none on that worker.

        A lease that Redis forgot, or that expired, is granted again where there is room, so that the ledger of a Redis
        that lost its memory is rebuilt by the next renewals. A call without a lease is not to be ended for that.
        Calls whose lease is being released must not be among them: it would be granted again.
        """
        lost: set[str] = set()
        pairs = iter(workers.items())
        self._not_renewing.clear()
        try:
            while batch := list(islice(pairs, RENEW_BATCH)):
                async with redis_call(redis_unavailable):
                    answer = await self._run(self._renew, [text for pair in batch for text in pair])
                lost.update(call_id.decode() for call_id in answer)
        finally:
            self._not_renewing.set()
        return lost

    async def release(self, call_id: str) -> bool:
        """Give a call's lease back; whether it held one. Harmless when repeated."""
        # A renewal under way may name this call, and would grant the lease again behind the release.
        await self._not_renewing.wait()
        async with redis_call(redis_unavailable):
            return bool(await self._run(self._release, [call_id]))

    async def active(self, worker_ids: list[str]) -> dict[str, int]:
        """How many leases each of these workers has."""
        async with redis_call(redis_unavailable):
            counts = await self._run(self._active, worker_ids)
        return dict(zip(worker_ids, counts, strict=True))

    async def _run(self, script: Any, arguments: list[str]) -> Any:
        return await script(keys=[WORKERS_KEY], args=[KEY_PREFIX, self._lease_ms, *arguments])
