"""A whole system for measurements, with the echo application behind one number, and what is left of its calls."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from ari_app.ari.client import AriClient
from ari_app.fleet.leases import Leases
from ari_app.store.records import CallRow
from audiosocket.runtime.stores import open_redis, resolve
from tools.asterisk.local import free_ports, local_config, merge
from tools.asterisk.provide import provide
from tools.system import System

EXAMPLE = Path(__file__).parents[2] / "trunkbridge.example.yml"
ECHO = "+918000000002"
CARRIER = "127.0.0.2"
SETTLE_SECONDS = 15.0


@asynccontextmanager
async def live_system(
    folder: Path, calls: int, more: dict[str, Any] | None = None, worker_prefix: tuple[str, ...] = ()
) -> AsyncIterator[System]:
    """A system that carries `calls` at once; `more` goes into its settings, `worker_prefix` before a worker's command.

    Raises what `System.start` and `provide` raise."""
    install = await asyncio.to_thread(provide)
    _empty(folder)
    conversation, echo = free_ports(2)
    changes: dict[str, Any] = {
        "applications": {
            "conversation": {"url": f"ws://127.0.0.1:{conversation}/"},
            "echo": {"url": f"ws://127.0.0.1:{echo}/"},
        },
        "gateway": {"capacity": calls},
        "controller": {"max_calls": calls},
    }
    path = local_config(EXAMPLE, folder, calls=calls, changes=merge(changes, more or {}))
    async with System(path, install, worker_prefix=worker_prefix) as system:
        yield system


def _empty(folder: Path) -> None:
    # Records of an earlier run would be counted as this one's.
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def pids(system: System) -> dict[str, int]:
    """The processes on a call's way."""
    return {
        "worker": system.workers[0].pid,
        "controller": system.controller.pid,
        "Asterisk": system.asterisk.pid,
        "echo application": system.applications["echo"].pid,
    }


async def closed_records(system: System, expected: int) -> list[CallRow]:
    """The records, once `expected` are closed and have their media figures, or a while later."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        rows = await system.calls()
        whole = sum(row.ended_at is not None and row.media is not None for row in rows)
        if whole >= expected or time.monotonic() > deadline:
            return rows
        await asyncio.sleep(0.25)


async def leftovers(system: System) -> dict[str, int]:
    """What still stands of calls that are over: waits until it is nothing, or for a while."""
    ari = system.config.asterisk.ari
    worker_id = f"{system.config.node}/0"
    redis = open_redis(resolve(system.config))
    client = AriClient(f"http://{ari.listen}", ari.username, ari.password.get_secret_value(), "bench")
    try:
        async with client, aiohttp.ClientSession() as http:
            deadline = time.monotonic() + SETTLE_SECONDS
            while True:
                async with http.get(f"http://{system.config.gateway.status_listen}/calls") as answer:
                    sessions = len(await answer.json())
                left = {
                    "Asterisk channels": len(await client.list_channels()),
                    "Asterisk bridges": len(await client.list_bridges()),
                    "leases in Redis": (await Leases(redis, 30).active([worker_id]))[worker_id],
                    "calls on the worker": sessions,
                }
                if not any(left.values()) or time.monotonic() > deadline:
                    return left
                await asyncio.sleep(0.1)
    finally:
        await redis.aclose()


def endings(rows: list[CallRow]) -> str:
    """How the calls of these records ended, with counts."""
    counts = Counter(f"{row.result or 'open'}/{row.reason or '-'}" for row in rows)
    return ", ".join(f"{count} {ending}" for ending, count in counts.most_common())
