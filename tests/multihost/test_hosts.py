"""The hosts are what the other tests take them for: who reaches whom, what a cut is, and what is left alone."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

import pytest

from tests.multihost.fleet import APP_PORT, ARI_PORT, MEDIA_PORT, PAIRS, Fleet
from tests.multihost.hosts import PATIENCE_SECONDS, SILENCE_SECONDS, machines_network
from tests.worker_rig import until

pytestmark = [pytest.mark.multihost, pytest.mark.asyncio(loop_scope="session")]

TWO_HOSTS = """
import asyncio, sys
from pathlib import Path
from tests.multihost.hosts import Network

async def main():
    async with Network(Path(sys.argv[1]), ["one", "two"]) as network:
        network["one"].run("ip", "tuntap", "add", "mode", "tun", "name", "tun0")
        print(*(host.pid for host in (network.router, *network.hosts.values())), flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""


async def test_the_carriers_vpn_takes_a_pbx_hosts_other_ways_and_leaves_the_private_link(fleet: Fleet) -> None:
    application = fleet.network["app"].address
    assert set(fleet.before_vpn.values()) == {"connected"}
    for pair in PAIRS:
        pbx, gateway = fleet.pbx[pair].host, fleet.gateway[pair].host
        assert await pbx.tries(application, APP_PORT, SILENCE_SECONDS) == "silence"
        assert await gateway.tries(application, APP_PORT) == "connected"
        for host in (*(other.host for other in fleet.gateway.values()), fleet.network["store"]):
            port = 6379 if host.name == "store" else MEDIA_PORT
            assert await pbx.tries(fleet.link.addresses[host.name], port) == "connected"
        assert await pbx.tries("127.0.0.1", ARI_PORT) == "connected"
        # Trunk and private link are each in their tunnel, and there is no other way to what they lead to.
        assert "dev tun0" in pbx.run("ip", "route", "get", application)
        assert "dev wg0" in pbx.run("ip", "route", "get", fleet.link.addresses[gateway.name])
        assert await pbx.tries(gateway.address, MEDIA_PORT) == "refused"


async def test_a_cut_is_silent_and_leaves_connections_that_go_on_when_it_is_mended(fleet: Fleet) -> None:
    loop = asyncio.get_running_loop()
    one, other = fleet.pbx[1].host, fleet.network["store"]
    address = fleet.link.addresses["store"]
    connection = one.namespace.tcp_socket()
    try:
        await loop.sock_connect(connection, (address, 6379))
        async with fleet.network.cut((one.name, other.name)):
            assert await one.tries(address, 6379, SILENCE_SECONDS) == "silence"
            assert await one.tries(fleet.link.addresses["gw1"], MEDIA_PORT) == "connected"
            assert await fleet.pbx[2].host.tries(address, 6379) == "connected"
            await loop.sock_sendall(connection, b"PING\r\n")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.5):
                    await loop.sock_recv(connection, 100)
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert await loop.sock_recv(connection, 100) == b"+PONG\r\n"
    finally:
        connection.close()


async def test_the_machines_own_network_has_nothing_of_the_hosts(fleet: Fleet) -> None:
    # Others may change it meanwhile: only what is new, and of the kind that the hosts are made of, is ours.
    ours = ("198.51.100.", "10.20.0.", "10.30.0.", "table inet cuts")
    new = set(machines_network()) - set(fleet.machines_network)
    assert [line for line in new if any(part in line for part in ours)] == []
    assert "table inet cuts {" in fleet.network.router.run("nft", "list", "ruleset")


async def test_a_run_that_is_killed_leaves_no_host_behind(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", TWO_HOSTS, str(tmp_path)]
    run = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE)
    assert run.stdout is not None
    async with asyncio.timeout(PATIENCE_SECONDS):
        pids = (await run.stdout.readline()).split()
    assert len(pids) == 3
    run.send_signal(signal.SIGKILL)
    await run.wait()
    await until(
        lambda: not any(Path(f"/proc/{pid.decode()}").exists() for pid in pids), "the hosts' end", PATIENCE_SECONDS
    )
