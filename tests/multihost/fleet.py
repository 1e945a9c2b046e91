"""A fleet: two pairs of a PBX node and a gateway node, their stores, a carrier and an application, each on a host of
its own. Names and numbers of a pair's parts end in the pair's number."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from ari_app.fleet.leases import Leases
from ari_app.settings import load
from ari_app.store.calls import CallStore
from ari_app.store.migrate import migrate
from ari_app.store.postgres import open_pool
from ari_app.store.records import CallRow
from audiosocket.runtime.stores import open_redis
from tests.multihost.hosts import PATIENCE_SECONDS, SILENCE_SECONDS, Host, Network, machines_network
from tests.multihost.standstills import Standstills
from tests.multihost.stores import StoresOnHost
from tests.multihost.tunnels import CARRIER_ADDRESS, PRIVATE_NETWORK, PrivateLink, TrunkVpn
from tests.worker_rig import until
from tools.asterisk.install import AsteriskInstall
from tools.asterisk.instance import AsteriskInstance
from tools.process import Process
from tools.sip.rtp_peer import RtpTicker
from tools.sip.sipp import Call, Carrier
from tools.system import make_secrets

ECHO = "+918000000002"
"""The number whose application sends the caller's audio back."""
PAIRS = (1, 2)
WORKERS = 2
"""Media workers of a gateway host."""
BY_RTP = (2,)
"""Pairs whose media legs are RTP; those of the others are AudioSocket."""
SIP_PORT, ARI_PORT, AMI_PORT, APP_PORT = 5060, 8088, 5038, 8080
MEDIA_PORT, STATUS_PORT, RTP_PORT = 9092, 9192, 9292
HOLD_SECONDS = 5.0
"""How long a call is held whose media leg is lost (`leg_hold_seconds`)."""
LEASE_SECONDS = 6.0
"""How long a lease lasts that nobody renews (`lease_seconds`): short, for the tests wait until it is over."""


@dataclass
class Pbx:
    """A PBX host: its Asterisk and its controllers, and the carrier's part of the trunk that leads there."""

    host: Host
    asterisk: AsteriskInstance
    carrier: Carrier
    environment: dict[str, str]
    controllers: list[Process] = field(default_factory=list)
    """The active one first; the others stand by."""
    switched: list[tuple[float, float]] = field(default_factory=list)
    """From when until when (monotonic) no controller was active."""
    _controllers_made: int = 0

    async def start_controller(self) -> None:
        """One more controller: the active one, or one that stands by where there is one."""
        argv = [sys.executable, "-m", "ari_app.cli.main", "controller"]
        ready = "controller_standing_by" if self.controllers else "controller_ready"
        self._controllers_made += 1
        self.controllers.append(
            self.host.process(f"controller@{self._controllers_made}", argv, ready, self.environment)
        )
        await self.controllers[-1].start()

    async def start_controllers(self) -> None:
        """The active controller, and one that stands by. They wait for Asterisk."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.start_controller())
            await until(self._any_active, "a controller that is the active one", PATIENCE_SECONDS)
            tasks.create_task(self.start_controller())

    def _any_active(self) -> bool:
        return any("controller_active" in controller.text() for controller in self.controllers)

    async def switch_controllers(self) -> None:
        """The active controller is stopped, which makes the next one active, and another one stands by."""
        began = time.monotonic()
        await self.controllers.pop(0).stop()
        ready = self.controllers[0].text
        await until(lambda: "controller_ready" in ready(), "the standby's readiness", PATIENCE_SECONDS)
        self.switched.append((began, time.monotonic()))
        await self.start_controller()


@dataclass
class Gateway:
    """A gateway host and its media workers."""

    host: Host
    workers: list[Process]

    @property
    def worker_ids(self) -> list[str]:
        """As records and Redis name them."""
        return [f"{self.host.name}/{number}" for number in range(len(self.workers))]


@dataclass
class Fleet:
    """What a test works with."""

    network: Network
    link: PrivateLink
    vpn: TrunkVpn
    stores: StoresOnHost
    standstills: Standstills
    before_vpn: dict[str, str]
    """What became of a connection from each PBX host to the application host while it had no VPN yet."""
    machines_network: list[str]
    """`hosts.machines_network()` before there was a host."""
    cluster_secret: Path
    """File with the secret that all hosts share, made for this run."""
    pbx: dict[int, Pbx] = field(default_factory=dict)
    gateway: dict[int, Gateway] = field(default_factory=dict)
    _callers: int = 0

    def call(self, pair: int) -> Call:
        """A call that the carrier places to the pair's PBX, by a caller who never called before."""
        self._callers += 1
        return self.pbx[pair].carrier.call(ECHO, f"+91900{self._callers:07d}")

    async def records(self) -> list[CallRow]:
        """All records, newest first."""
        pool = await open_pool(self.stores.urls)
        try:
            return await CallStore(pool).list_calls(limit=5000)
        finally:
            await pool.close()

    async def closed(self, calls: Sequence[Call]) -> list[CallRow]:
        """The records of these calls, once all are closed; fails when one has another record besides."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                records = await self.records()
                rows = {row.caller: row for row in records if row.ended_at is not None}
                if all(call.caller in rows for call in calls):
                    break
                await asyncio.sleep(0.2)
        counts = Counter(row.caller for row in records)
        assert {call.caller: counts[call.caller] for call in calls} == {call.caller: 1 for call in calls}
        return [rows[call.caller] for call in calls]

    async def record(self, call: Call) -> CallRow:
        """The record of a call, once it is closed."""
        return (await self.closed([call]))[0]

    async def registered(self) -> set[str]:
        """Ids of the workers that Redis knows to be alive."""
        redis = open_redis(self.stores.urls)
        try:
            return {worker for worker in self._worker_ids() if await redis.exists(f"{{trunkbridge}}:worker:{worker}")}
        finally:
            await redis.aclose()

    async def until_registered(self, workers: set[str]) -> None:
        """Waits until these workers and no others are alive in Redis."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while await self.registered() != workers:
                await asyncio.sleep(0.1)

    async def all_registered(self) -> None:
        """Waits until every worker is alive in Redis."""
        await self.until_registered(set(self._worker_ids()))

    async def kill_gateway(self, pair: int) -> None:
        """A gateway host dies as by loss of power: nobody hears of it."""
        host = self.gateway[pair].host
        self.network.unplug(host.name)
        await asyncio.gather(*(process.kill() for process in host.processes))

    async def revive_gateway(self, pair: int) -> None:
        """It is there again, with all that runs on it."""
        host = self.gateway[pair].host
        self.network.plug_in(host)
        await self.link.join(host)
        await asyncio.gather(*(worker.start() for worker in self.gateway[pair].workers))
        await self.all_registered()
        async with asyncio.timeout(PATIENCE_SECONDS):
            for pbx in self.pbx.values():
                while await pbx.host.tries(self.link.addresses[host.name], MEDIA_PORT, SILENCE_SECONDS) != "connected":
                    pass

    async def nothing_left(self) -> None:
        """Waits until no channel, bridge, lease or session is left, on any host; fails when one stays."""
        left: dict[str, Any] = {}
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            for pair in PAIRS:
                asterisk = self.pbx[pair].asterisk
                left[f"channels {pair}"] = await _lines(asterisk, "core show channels concise")
                left[f"bridges {pair}"] = (await _lines(asterisk, "bridge show all"))[1:]
                left[f"sessions {pair}"] = await self.sessions(self.gateway[pair])
            left["leases"] = {worker: calls for worker, calls in (await self.leases()).items() if calls}
            if not any(left.values()):
                return
            await asyncio.sleep(0.25)
        raise AssertionError(f"left behind: {left}")

    async def leases(self) -> dict[str, int]:
        """How many calls each worker carries, by Redis."""
        redis = open_redis(self.stores.urls)
        try:
            return await Leases(redis, LEASE_SECONDS).active(self._worker_ids())
        finally:
            await redis.aclose()

    async def sessions(self, gateway: Gateway) -> list[Any]:
        """Calls on the workers of a gateway host that run."""
        found: list[Any] = []
        address = self.link.addresses[gateway.host.name]
        async with aiohttp.ClientSession(connector=gateway.host.namespace.connector()) as http:
            for number, worker in enumerate(gateway.workers):
                if worker.running:
                    async with http.get(f"http://{address}:{STATUS_PORT + number}/calls") as answer:
                        found += await answer.json()
        return found

    async def calls_at_application(self) -> list[dict[str, Any]]:
        """What the application knows of its calls, oldest first."""
        host = self.network["app"]
        async with (
            aiohttp.ClientSession(connector=host.namespace.connector()) as http,
            http.get(f"http://{host.address}:{APP_PORT}/stats") as answer,
        ):
            return list((await answer.json())["calls"])

    def _worker_ids(self) -> list[str]:
        return [worker for gateway in self.gateway.values() for worker in gateway.worker_ids]


@asynccontextmanager
async def running_fleet(install: AsteriskInstall, folder: Path) -> AsyncIterator[Fleet]:
    """A fleet that takes calls, below `folder`."""
    pbx_names, gateway_names = [[f"{kind}{pair}" for pair in PAIRS] for kind in ("pbx", "gw")]
    untouched = machines_network()
    async with Network(folder, [*pbx_names, *gateway_names, "store", "carrier", "app"]) as network:
        pbx_hosts = [network[name] for name in pbx_names]
        private = [*pbx_hosts, *(network[name] for name in gateway_names), network["store"]]
        link, vpn = PrivateLink(private), TrunkVpn(network["carrier"], pbx_hosts, private)
        stores = StoresOnHost(folder / "stores", network["store"], link.addresses["store"])
        secret = folder / "cluster-secret"
        fleet = Fleet(network, link, vpn, stores, Standstills(), {}, untouched, secret)
        async with RtpTicker() as ticker, fleet.standstills.watched():
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(_start_private(fleet))
                    tasks.create_task(_start_trunk(fleet, pbx_hosts))
                await _start_nodes(fleet, install, ticker)
                yield fleet
            finally:
                await _stop_nodes(fleet)
                await stores.stop()


async def _start_private(fleet: Fleet) -> None:
    """The private link, and the stores on it."""
    await fleet.link.start()
    await fleet.stores.start()
    await migrate(fleet.stores.urls)


async def _start_trunk(fleet: Fleet, pbx_hosts: Sequence[Host]) -> None:
    """The application, and the carrier's VPN, which takes the PBX hosts' way to it."""
    host = fleet.network["app"]
    argv = [sys.executable, "-m", "tools.apps.echo", "--listen", f"{host.address}:{APP_PORT}"]
    await host.process("echo", argv, "listening on").start()
    fleet.before_vpn.update({pbx.name: await pbx.tries(host.address, APP_PORT) for pbx in pbx_hosts})
    await fleet.vpn.start()


async def _start_nodes(fleet: Fleet, install: AsteriskInstall, ticker: RtpTicker) -> None:
    for pair in PAIRS:
        fleet.gateway[pair] = _gateway(fleet, pair)
        fleet.pbx[pair] = _pbx(fleet, pair, install, ticker)
    async with asyncio.TaskGroup() as tasks:
        for pbx in fleet.pbx.values():
            tasks.create_task(pbx.asterisk.start())
            tasks.create_task(pbx.start_controllers())
            tasks.create_task(pbx.carrier.start())
        for gateway in fleet.gateway.values():
            for worker in gateway.workers:
                tasks.create_task(worker.start())
    await fleet.all_registered()


async def _stop_nodes(fleet: Fleet) -> None:
    for pbx in fleet.pbx.values():
        await pbx.carrier.stop()
    for pbx in fleet.pbx.values():
        for controller in reversed(pbx.controllers):
            await controller.stop()
    await asyncio.gather(*(pbx.asterisk.stop() for pbx in fleet.pbx.values()))
    await asyncio.gather(*(worker.stop() for gateway in fleet.gateway.values() for worker in gateway.workers))


def _gateway(fleet: Fleet, pair: int) -> Gateway:
    host = fleet.network[f"gw{pair}"]
    address = fleet.link.addresses[host.name]
    own: dict[str, Any] = {"rtp_listen": f"{address}:{RTP_PORT}"} if pair in BY_RTP else {}
    settings = _node(fleet, host, pair) | {
        "gateway": own
        | {
            "listen": f"{address}:{MEDIA_PORT}",
            "status_listen": f"{address}:{STATUS_PORT}",
            "workers": WORKERS,
            "drain_seconds": 20,
            "allow": [PRIVATE_NETWORK],
        }
    }
    environment = _written(host, settings)
    argv = [sys.executable, "-m", "ari_app.cli.main", "gateway", "--worker"]
    return Gateway(
        host,
        [host.process(f"gateway@{n}", [*argv, str(n)], "worker_ready", environment) for n in range(WORKERS)],
    )


def _pbx(fleet: Fleet, pair: int, install: AsteriskInstall, ticker: RtpTicker) -> Pbx:
    host, carrier = fleet.network[f"pbx{pair}"], fleet.network["carrier"]
    sip = f"{fleet.vpn.addresses[host.name]}:{SIP_PORT}"
    settings = _node(fleet, host, pair) | {
        "asterisk": {
            "ari": {"listen": f"127.0.0.1:{ARI_PORT}", "password": {"file": "secrets/ari"}},
            "ami": {"listen": f"127.0.0.1:{AMI_PORT}", "password": {"file": "secrets/ami"}},
            "sip_listen": sip,
            "rtp": {"first": 10000, "last": 10999},
        },
        "trunks": {"carrier": {"identify": [f"{CARRIER_ADDRESS}/32"], "codecs": ["ulaw"], "country": "IN"}},
        "applications": {"echo": {"url": f"ws://{fleet.network['app'].address}:{APP_PORT}/"}},
        "routes": [{"did": ECHO, "application": "echo"}],
        "controller": {
            "leg_hold_seconds": HOLD_SECONDS,
            "lease_seconds": LEASE_SECONDS,
            "spill_over": [f"pair-{other}" for other in PAIRS if other != pair],
        },
    }
    environment = _written(host, settings)
    config = load(host.folder / "trunkbridge.yml")
    return Pbx(
        host,
        AsteriskInstance(install, config, host.folder / "asterisk", host.namespace),
        Carrier(sip, CARRIER_ADDRESS, carrier.folder / host.name, ticker, namespace=carrier.namespace),
        environment,
    )


def _node(fleet: Fleet, host: Host, pair: int) -> dict[str, Any]:
    store = fleet.link.addresses["store"]
    return {
        "node": host.name,
        "pair": f"pair-{pair}",
        "state_dir": "state",
        "cluster_secret": {"file": str(fleet.cluster_secret)},
        "store": {"postgres": f"postgresql://trunkbridge@{store}/trunkbridge", "redis": f"redis://{store}:6379/0"},
    }


def _written(host: Host, settings: dict[str, Any]) -> dict[str, str]:
    """Writes the host's configuration file, and the secrets that it names; the environment that leads there."""
    path = host.folder / "trunkbridge.yml"
    path.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    make_secrets(path)
    return {"TRUNKBRIDGE_CONFIG": str(path)}


async def _lines(asterisk: AsteriskInstance, command: str) -> list[str]:
    return [line for line in (await asterisk.rx(command)).splitlines() if line.strip()]
