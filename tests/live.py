"""A whole trunkbridge for tests: real stores, Asterisk, workers and controller, with a carrier's and an application's
part played by the test."""

from __future__ import annotations

import asyncio
import base64
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from ari_app.ari.client import AriClient
from ari_app.fleet.leases import Leases
from ari_app.store.records import CallRow
from audiosocket.runtime.stores import open_redis, resolve
from tests.cluster import put_cluster
from tests.worker_rig import Application, serving, until
from tools.asterisk.install import AsteriskInstall
from tools.asterisk.local import free_ports, local_config, merge
from tools.audio.pcm import Pcm
from tools.sip.rtp_peer import Codec, RtpTicker
from tools.sip.sipp import Call, Carrier
from tools.system import System

EXAMPLE = Path(__file__).parent.parent / "trunkbridge.example.yml"
SCRIPTED, ECHO, REFUSED, SLOW, SHORT = (f"+9180000000{number}" for number in (10, 11, 12, 13, 14))
"""Numbers: an application of the test's, an echo, one that refuses, one that does not answer the handshake, and the
scripted one with a limit of 4 kB a message."""

LOUD = 500
"""Samples of tones are louder, and what a fade leaves of a cut is not after a few milliseconds."""

ROUTES = [
    {"did": SCRIPTED, "application": "scripted"},
    {"did": ECHO, "application": "echo"},
    {"did": REFUSED, "application": "refused"},
    {"did": SLOW, "application": "slow"},
    {"did": SHORT, "application": "short"},
]
_numbers = itertools.count(1)


def caller() -> str:
    """A number of its own for every call: it finds the call's record."""
    return f"+9190000{next(_numbers):05d}"


@dataclass
class Live:
    """What a test works with."""

    system: System
    app: Application
    ulaw: Carrier
    alaw: Carrier
    ari: AriClient
    folder: Path

    @asynccontextmanager
    async def fresh(self) -> AsyncIterator[Live]:
        """For one test: the application has forgotten the one before, and nothing may be left behind."""
        app = self.app
        app.messages.clear()
        app.sockets.clear()
        app.requests.clear()
        app.behave = app.before_upgrade = None
        app.closed = 0
        yield self
        await self.nothing_left()

    async def talking(self, number: str = SCRIPTED, carrier: Carrier | None = None) -> Call:
        """A call whose stream to the scripted application has started."""
        before = len(self.app.events("start"))
        call = (carrier or self.ulaw).call(number, caller())
        await call.answered()
        await until(lambda: len(self.app.events("start")) > before, "start message")
        return call

    async def joined(self, call: Call) -> Call:
        """The call, once its caller and its media are bridged: until then its setting up goes on, whoever talks."""
        async with asyncio.timeout(10):
            while (await self.record(call, ended=False)).state != "talking":
                await asyncio.sleep(0.05)
        return call

    def heard_by_app(self, stream_sid: str = "") -> np.ndarray[Any, np.dtype[np.int16]]:
        """What the scripted application has heard, of all streams or of one."""
        heard = [one for one in self.app.events("media") if stream_sid in ("", one["stream_sid"])]
        return np.frombuffer(b"".join(base64.b64decode(one["media"]["payload"]) for one in heard), "<i2")

    async def records(self) -> list[CallRow]:
        """All records, newest first."""
        return await self.system.calls()

    async def record(self, call: Call, ended: bool = True) -> CallRow:
        """The record of a call, once it is closed."""
        async with asyncio.timeout(10):
            while True:
                for row in await self.records():
                    if row.caller == call.caller and (row.ended_at is not None or not ended):
                        return row
                await asyncio.sleep(0.05)

    async def nothing_left(self) -> None:
        """Waits until no channel, bridge, lease or session is left; fails after a few seconds."""
        urls = resolve(self.system.config)
        redis = open_redis(urls)
        try:
            leases = Leases(redis, 30)
            ids = [f"{self.system.config.node}/{index}" for index in range(len(self.system.workers))]
            names = list(self.system.config.applications)
            left: dict[str, Any] = {}
            for _ in range(100):
                left = {
                    "channels": [channel.name for channel in await self.ari.list_channels()],
                    "bridges": [bridge.id for bridge in await self.ari.list_bridges()],
                    "leases": {key: value for key, value in (await leases.active(ids)).items() if value},
                    "slots": {
                        key: value for key, value in (await leases.active_of_applications(names)).items() if value
                    },
                    "waiting": {key: value for key, value in (await leases.waiting(names)).items() if value},
                    "sessions": await self.sessions(),
                }
                if not any(left.values()):
                    return
                await asyncio.sleep(0.05)
            raise AssertionError(f"left behind: {left}")
        finally:
            await redis.aclose()

    async def sessions(self) -> list[Any]:
        """Calls on the workers that run."""
        host, _, port = self.system.config.gateway.status_listen.rpartition(":")
        found: list[Any] = []
        async with aiohttp.ClientSession() as http:
            for index, worker in enumerate(self.system.workers):
                if worker.running:
                    async with http.get(f"http://{host}:{int(port) + index}/calls") as answer:
                        found += await answer.json()
        return found


def loud_packets(call: Call) -> list[tuple[float, Pcm]]:
    """(monotonic arrival, PCM) of the packets in which the caller hears something."""
    packets = [(packet.arrived_at, call.peer.codec.decode(packet.payload)) for packet in call.peer.audio()]
    return [(at, pcm) for at, pcm in packets if np.abs(pcm.astype(int)).max(initial=0) > LOUD]


def leg(kind: str) -> dict[str, Any]:
    """Settings for one kind of media leg: `audiosocket`, `rtp`, `websocket`."""
    return {} if kind == "audiosocket" else {"gateway": {f"{kind}_listen": f"127.0.0.1:{free_ports(4)[0]}"}}


async def _never_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()
    writer.close()


@asynccontextmanager
async def live_system(
    install: AsteriskInstall,
    folder: Path,
    calls: int = 20,
    changes: dict[str, Any] | None = None,
    applications: dict[str, dict[str, Any]] | None = None,
    port: int = 0,
    standbys: int = 0,
) -> AsyncIterator[Live]:
    """A running system of its own below `folder`, with RTP ports for so many calls.

    `changes` go into its settings, and what they say of the application's address holds for `port`; `applications` are
    further ones, at the scripted one's address unless they give theirs. `standbys`: controllers beside the first.
    """
    app_port = port or free_ports(1)[0]
    slow = await asyncio.start_server(_never_answer, "127.0.0.1", 0)
    slow_port = slow.sockets[0].getsockname()[1]
    scripted = f"ws://127.0.0.1:{app_port}/bot"
    (closed_port,) = free_ports(1)
    own: dict[str, Any] = {
        "applications": {
            # No test calls it, and what is not ws:// is not started.
            "conversation": {"url": f"wss://127.0.0.1:{closed_port}/"},
            "scripted": {"url": scripted, "fade_ms": 0},  # what is heard is compared with what was said
            "short": {"url": scripted, "message_max_bytes": 4096},
            "refused": {"url": f"ws://127.0.0.1:{closed_port}/"},
            "slow": {"url": f"ws://127.0.0.1:{slow_port}/", "connect_timeout_seconds": 0.5},
        }
        | {name: {"url": scripted} | settings for name, settings in (applications or {}).items()},
        "routes": ROUTES,
    }
    path = local_config(EXAMPLE, folder, calls=calls, changes=merge(own, changes or {}))
    if "store" not in (changes or {}):
        await put_cluster(folder / "state")
    try:
        async with serving(app_port) as app, System(path, install, standbys=standbys) as system, RtpTicker() as ticker:
            sip, ari = system.config.asterisk.sip_listen, system.config.asterisk.ari
            client = AriClient(f"http://{ari.listen}", ari.username, ari.password.get_secret_value(), "tests")
            async with (
                Carrier(sip, "127.0.0.2", folder / "carrier-ulaw", ticker) as ulaw,
                Carrier(sip, "127.0.0.3", folder / "carrier-alaw", ticker, codec=Codec.ALAW) as alaw,
                client,
            ):
                yield Live(system, app, ulaw, alaw, client, folder)
    finally:
        slow.close()
