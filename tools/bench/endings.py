"""Ten thousand calls that end every possible way, while workers and controllers are killed: is anything left?"""

from __future__ import annotations

import asyncio
import shutil
import struct
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from socket import SO_LINGER, SOL_SOCKET
from typing import Any

import aiohttp
from aiohttp import web

from ari_app.ari.client import AriClient
from ari_app.fleet.leases import Leases
from ari_app.store.records import CallRow
from audiosocket.runtime.stores import open_redis, resolve
from tools.asterisk.local import free_ports
from tools.bench import live
from tools.bench.options import Options
from tools.bench.report import Outcome, Table, Value
from tools.process import ProcessFailed, guarded
from tools.system import System

CALLS = 10_000
RATE = 50.0
AT_ONCE = 120
"""Calls that the system has room for."""
WORKERS = 3
KILL_SECONDS = 10.0
"""Between two kills."""
ANSWER_SECONDS = 12
"""SIPp gives a call up that waits so long for a message: of a call that a kill has cut off, it may never come."""
SETTLE_SECONDS = 60.0
CLOSES, RESETS, REFUSES, RINGS, FULL, UNKNOWN = (f"+91800000002{number}" for number in range(6))
FEW = 1
"""Calls at once that one of the applications may have."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One way to end."""

    name: str
    number: str
    share: int
    """Of a hundred calls."""
    steps: str
    """The scenario behind the INVITE."""


_HEAD = """      Via: SIP/2.0/[transport] [local_ip]:[local_port];branch=[branch]
      From: <sip:[caller]@[local_ip]:[local_port]>;tag=[pid]t[call_number]
      To: <sip:[service]@[remote_ip]:[remote_port]>{to}
      Call-ID: [call_id]
      CSeq: {number} {method}
      Max-Forwards: 70
      Content-Length: 0
"""


def _send(method: str, number: int, uri: str = "[next_url]", to: str = "[peer_tag_param]", via: str = "") -> str:
    head = _HEAD.format(to=to, number=number, method=method)
    if via:
        head = head.replace("Via: SIP/2.0/[transport] [local_ip]:[local_port];branch=[branch]", via)
    retrans = ' retrans="500"' if method != "ACK" else ""
    return f"<send{retrans}><![CDATA[\n\n      {method} {uri} SIP/2.0\n{head}\n]]></send>\n"


_URI = "sip:[service]@[remote_ip]:[remote_port]"
_RINGING = '<recv response="100" optional="true"/>\n<recv response="180" optional="true"/>\n'
_ANSWERED = _RINGING + '<recv response="200" rrs="true"/>\n' + _send("ACK", 1)
_TALKS = '<pause distribution="uniform" min="5" max="900"/>\n'
_WE_HANG_UP = _send("BYE", 2) + '<recv response="200"/>\n'
_THEY_HANG_UP = """<recv request="BYE"/>
<send><![CDATA[

      SIP/2.0 200 OK
      [last_Via:]
      [last_From:]
      [last_To:]
      [last_Call-ID:]
      [last_CSeq:]
      Content-Length: 0

]]></send>
"""
_REFUSED = _send("ACK", 1, _URI, via="[last_Via:]")
_CANCELLED = (
    '<recv response="100"/>\n<pause distribution="uniform" min="5" max="350"/>\n'
    + _send("CANCEL", 1, _URI, to="", via="[last_Via:]")
    + '<recv response="180" optional="true"/>\n<recv response="200"/>\n<recv response="487"/>\n'
    + _REFUSED
)
_MAY_BE_FULL = (
    '<recv response="100" optional="true"/>\n<recv response="486" optional="true" next="full"/>\n'
    '<recv response="200" rrs="true"/>\n'
    + _send("ACK", 1)
    + '<pause milliseconds="700"/>\n'
    + _WE_HANG_UP.replace('<recv response="200"/>', '<recv response="200" next="over"/>')
    + '<label id="full"/>\n'
    + _REFUSED
    + '<label id="over"/>\n'
)
KINDS = (
    Kind(
        "caller hangs up", live.ECHO, 30, _ANSWERED + '<pause distribution="uniform" min="5" max="900"/>' + _WE_HANG_UP
    ),
    Kind("application closes", CLOSES, 20, _ANSWERED + _THEY_HANG_UP),
    Kind("application resets", RESETS, 10, _ANSWERED + _THEY_HANG_UP),
    Kind("application refuses", REFUSES, 10, _ANSWERED + _THEY_HANG_UP),
    Kind("caller cancels", RINGS, 10, _CANCELLED),
    Kind("application is full", FULL, 10, _MAY_BE_FULL),
    Kind("number is unknown", UNKNOWN, 10, '<recv response="100" optional="true"/>\n<recv response="404"/>' + _REFUSED),
)
_INVITE = """<?xml version="1.0" encoding="UTF-8"?>
<scenario name="ending">
<send retrans="500"><![CDATA[

      INVITE sip:[service]@[remote_ip]:[remote_port] SIP/2.0
      Via: SIP/2.0/[transport] [local_ip]:[local_port];branch=[branch]
      From: <sip:[caller]@[local_ip]:[local_port]>;tag=[pid]t[call_number]
      To: <sip:[service]@[remote_ip]:[remote_port]>
      Call-ID: [call_id]
      CSeq: 1 INVITE
      Contact: <sip:[caller]@[local_ip]:[local_port]>
      Max-Forwards: 70
      Content-Type: application/sdp
      Content-Length: [len]

      v=0
      o=carrier 1 1 IN IP4 [local_ip]
      s=-
      c=IN IP4 [media_ip]
      t=0 0
      m=audio [media_port] RTP/AVP 0
      a=rtpmap:0 PCMU/8000

]]></send>
"""


def limit_seconds(options: Options) -> float:
    """The longest that it may take."""
    calls = options.calls[0] if options.calls else CALLS
    return 300 + 3 * calls / (options.rate or RATE)


@dataclass(frozen=True, slots=True)
class Ended:
    """What there is to say of calls that are over."""

    placed: int
    exit_codes: set[int]
    """SIPp's; 1: some call went otherwise than planned, as of those that a kill has cut off."""
    kills: Counter[str]
    left: dict[str, int]
    rows: list[CallRow]
    seconds: float

    @property
    def twice(self) -> int:
        """Records beyond the first of a caller's channel."""
        return len(self.rows) - len({row.caller_channel_id for row in self.rows})

    @property
    def open(self) -> int:
        """Records that are not closed."""
        return sum(row.ended_at is None for row in self.rows)


async def end_calls(folder: Path, calls: int, rate: float, at_once: int = AT_ONCE) -> Ended:
    """So many calls of all kinds, and what is left of them; the system has room for `at_once`."""
    of_each = {kind: max(1, calls * kind.share // 100) for kind in KINDS}
    kills: Counter[str] = Counter()
    async with ending_system(folder, at_once) as system:
        began = time.monotonic()
        callers = asyncio.gather(
            *(_callers(system, folder, kind, count, rate * kind.share / 100) for kind, count in of_each.items())
        )
        killing = asyncio.create_task(kill_in_turn(system, kills), name="kills")
        try:
            codes = set(await callers)
        finally:
            killing.cancel()
            await asyncio.gather(killing, return_exceptions=True)
        await all_running(system)
        seconds = time.monotonic() - began
        left = await leftovers(system)
        rows = await _closed(system, calls)
    return Ended(sum(of_each.values()), codes, kills, left, rows, seconds)


async def run(options: Options) -> Outcome:
    """Ten thousand calls, or `--calls`, at `--rate`."""
    calls, rate = options.calls[0] if options.calls else CALLS, options.rate or RATE
    ended = await end_calls(options.folder / "endings", calls, rate)
    rows: list[tuple[Value, ...]] = [
        ("calls placed", ended.placed),
        ("SIPp's exit codes (1: some call went otherwise than planned)", str(sorted(ended.exit_codes))),
        ("kills: workers, controllers", f"{ended.kills['worker']}, {ended.kills['controller']}"),
        ("records", len(ended.rows)),
        ("records of one caller's channel twice", ended.twice),
        ("records that are not closed", ended.open),
        *((f"left: {name}", number) for name, number in ended.left.items()),
        ("took, s", round(ended.seconds)),
    ]
    counted = Counter(f"{row.result}/{row.reason}" for row in ended.rows)
    return Outcome(
        f"{calls:,} calls that end in {len(KINDS)} ways at {rate:g} a second, a worker or the controller killed every"
        f" {KILL_SECONDS:g} s",
        [
            Table("what is left", ("what", "value"), rows),
            Table("records", ("ending", "calls"), [(name, count) for name, count in counted.most_common()]),
        ],
        ["callers who come while no controller is there for three seconds hear the fallback prompt and have no record"],
    )


@asynccontextmanager
async def ending_system(folder: Path, at_once: int) -> AsyncIterator[System]:
    """A system with an application for every ending."""
    (port, dead) = free_ports(2)
    url = f"ws://127.0.0.1:{port}"
    more: dict[str, Any] = {
        "applications": {
            "closes": {"url": f"{url}/closes"},
            "resets": {"url": f"{url}/resets", "circuit_breaker": {"failures": 0}},
            "rings": {"url": f"{url}/rings", "circuit_breaker": {"failures": 0}},
            "refuses": {"url": f"ws://127.0.0.1:{dead}/", "connect_attempts": 1, "circuit_breaker": {"failures": 0}},
            "few": {"url": f"{url}/stays", "limit": {"calls": FEW, "when_full": "reject", "reject_with": "busy"}},
        },
        "routes": [
            {"did": CLOSES, "application": "closes"},
            {"did": RESETS, "application": "resets"},
            {"did": REFUSES, "application": "refuses"},
            {"did": RINGS, "application": "rings", "answer": "when_connected", "answer_within_seconds": 5},
            {"did": FULL, "application": "few"},
            {"did": live.ECHO, "application": "echo"},
        ],
        "gateway": {"workers": WORKERS, "capacity": at_once},
        "controller": {"lease_seconds": 10},
    }
    async with live.live_system(folder, at_once, more) as system:
        application = web.Application()
        application.add_routes([web.get("/{how}", _application)])
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", port).start()
            yield system
        finally:
            await runner.cleanup()


async def _application(request: web.Request) -> web.StreamResponse:
    how = request.match_info["how"]
    if how == "rings":
        await asyncio.sleep(10)
        return web.Response(status=503)
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    async for message in socket:
        if message.type is not aiohttp.WSMsgType.TEXT or '"start"' not in message.data[:40]:
            continue
        if how == "closes":
            await socket.close()
        elif how == "resets" and request.transport is not None:
            connection = request.transport.get_extra_info("socket")
            connection.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
            request.transport.abort()
    return socket


async def _callers(system: System, folder: Path, kind: Kind, calls: int, rate: float) -> int:
    sipp = shutil.which("sipp")
    if sipp is None:
        raise ProcessFailed("sipp is not installed (Debian: apt install sip-tester)")
    place = folder / kind.name.replace(" ", "-")
    place.mkdir()
    (place / "scenario.xml").write_text(f"{_INVITE}{kind.steps}</scenario>\n", encoding="utf-8")
    (port,) = free_ports(1)
    with (place / "output.log").open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *guarded(sipp, system.config.asterisk.sip_listen, "-sf", "scenario.xml", "-i", live.CARRIER),
            *("-mi", live.CARRIER, "-bind_local", "-nostdin", "-p", str(port), "-timer_resol", "1", "-aa"),
            *("-s", kind.number, "-key", "caller", "+919000000001", "-m", str(calls), "-l", str(AT_ONCE)),
            *("-r", "1", "-rp", str(round(1000 / rate)), "-recv_timeout", str(ANSWER_SECONDS * 1000)),
            *("-trace_err", "-error_file", "errors.log"),
            cwd=place,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
        return await process.wait()


async def kill_in_turn(system: System, kills: Counter[str]) -> None:
    """Kills a worker, then the controller, then the next worker, and so on, for ever; each is started again. They are
    counted in `kills`."""
    turn = 0
    while True:
        await asyncio.sleep(KILL_SECONDS)
        process = system.controller if turn % 2 else system.workers[turn // 2 % len(system.workers)]
        await process.kill()
        kills["controller" if turn % 2 else "worker"] += 1
        await process.start()
        turn += 1


async def all_running(system: System) -> None:
    """Starts what was killed last."""
    for process in (system.controller, *system.workers):
        if not process.running:
            await process.start()


async def leftovers(system: System) -> dict[str, int]:
    """What stands of calls that are over: waits until it is nothing, or for a while."""
    config = system.config
    ari = config.asterisk.ari
    host, _, port = config.gateway.status_listen.rpartition(":")
    workers = [f"{config.node}/{index}" for index in range(len(system.workers))]
    redis = open_redis(resolve(config))
    leases = Leases(redis, 30)
    client = AriClient(f"http://{ari.listen}", ari.username, ari.password.get_secret_value(), "bench")
    try:
        async with client, aiohttp.ClientSession() as http:
            deadline = time.monotonic() + SETTLE_SECONDS
            while True:
                sessions = 0
                for index in range(len(workers)):
                    try:
                        async with http.get(f"http://{host}:{int(port) + index}/calls") as answer:
                            sessions += len(await answer.json())
                    except aiohttp.ClientConnectionError:
                        sessions += 1  # it is only just starting, and is asked again
                left = {
                    "channels": len(await client.list_channels()),
                    "bridges": len(await client.list_bridges()),
                    "leases of workers": sum((await leases.active(workers)).values()),
                    "leases of the PBX node": sum((await leases.active_on_nodes([config.node])).values()),
                    "slots": sum((await leases.active_of_applications(sorted(config.applications))).values()),
                    "calls on workers": sessions,
                }
                if not any(left.values()) or time.monotonic() > deadline:
                    return left
                await asyncio.sleep(0.2)
    finally:
        await redis.aclose()


async def _closed(system: System, calls: int) -> list[CallRow]:
    deadline = time.monotonic() + live.SETTLE_SECONDS
    while True:
        rows = await system.calls(2 * calls + 100)
        if all(row.ended_at is not None for row in rows) or time.monotonic() > deadline:
            return rows
        await asyncio.sleep(0.25)
