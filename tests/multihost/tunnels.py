"""The tunnels between the hosts: the private link (WireGuard, in userspace) and the trunk's VPN (OpenVPN)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from tests.multihost.hosts import PATIENCE_SECONDS, Host
from tests.worker_rig import until
from tools.namespace import system_program
from tools.process import Process

WIREGUARD_PORT = 51820
OPENVPN_PORT = 1194
PRIVATE_NETWORK = "10.20.0.0/24"
CARRIER_ADDRESS = "10.30.0.1"
"""Of the carrier inside its VPN."""

_CERTIFICATE_DAYS = "2"


class PrivateLink:
    """WireGuard between all of `hosts`, each with a tunnel to every other."""

    def __init__(self, hosts: Sequence[Host]) -> None:
        self.addresses = {host.name: f"10.20.0.{number}" for number, host in enumerate(hosts, 1)}
        """Of each host inside the link, by the host's name."""
        self._hosts = hosts
        self._keys: dict[str, str] = {}
        self._daemons: dict[str, Process] = {}

    async def start(self) -> None:
        """Brings the link up on every host."""
        for host in self._hosts:
            self._keys[host.name] = host.run("wg", "genkey").strip()
        await asyncio.gather(*(self.join(host) for host in self._hosts))

    async def join(self, host: Host) -> None:
        """Brings the link up on one host."""
        await self._start_daemon(host)
        settings = f"[Interface]\nPrivateKey = {self._keys[host.name]}\nListenPort = {WIREGUARD_PORT}\n"
        for other in self._hosts:
            if other is not host:
                public = other.run("wg", "pubkey", given=self._keys[other.name]).strip()
                settings += f"[Peer]\nPublicKey = {public}\nAllowedIPs = {self.addresses[other.name]}/32\n"
                settings += f"Endpoint = {other.address}:{WIREGUARD_PORT}\n"
                # A host that is back agrees on new keys at once; the others would hold on to the old ones for 15 s.
                settings += "PersistentKeepalive = 25\n"
        self._configure(host, settings)
        host.run("ip", "address", "add", f"{self.addresses[host.name]}/24", "dev", "wg0")
        host.run("ip", "link", "set", "wg0", "mtu", "1420", "up")

    async def _start_daemon(self, host: Host) -> None:
        daemon = self._daemons.get(host.name)
        if daemon is None:
            # It is spoken to through a socket at a fixed place, which every host gets to itself.
            own_run = f"mount -t tmpfs tmpfs /run && exec {system_program('wireguard-go')} -f wg0"
            argv = [system_program("unshare"), "--mount", "/bin/sh", "-c", own_run]
            daemon = host.process("wireguard", argv, "UAPI listener started", {"LOG_LEVEL": "verbose"})
            self._daemons[host.name] = daemon
        await daemon.start()

    def _configure(self, host: Host, settings: str) -> None:
        mounts = f"--mount=/proc/{self._daemons[host.name].pid}/ns/mnt"
        wg = system_program("wg")
        host.run("nsenter", mounts, wg, "setconf", "wg0", "/dev/stdin", given=settings)


class TrunkVpn:
    """The carrier's VPN: its clients' default route goes through it, and what is not the carrier's ends there."""

    def __init__(self, carrier: Host, clients: Sequence[Host], private: Sequence[Host]) -> None:
        """`private`: hosts to which a client keeps its route, for the private link to go beside the VPN."""
        self.addresses = {client.name: f"10.30.0.{number}" for number, client in enumerate(clients, 11)}
        """Of each client inside the VPN, by the host's name."""
        self._carrier = carrier
        self._clients = clients
        self._private = private
        self._folder = carrier.folder / "openvpn"

    async def start(self) -> None:
        """Brings the VPN up; returns when each client has its address."""
        await asyncio.to_thread(self._make_certificates)
        await self._start_server()
        await asyncio.gather(*(self._start_client(client) for client in self._clients))

    async def _start_server(self) -> None:
        own = self._folder / "clients"
        own.mkdir()
        for name, address in self.addresses.items():
            (own / name).write_text(f"ifconfig-push {address} 255.255.255.0\n")
        settings = f"""
            dev tun0
            dev-type tun
            proto udp4
            port {OPENVPN_PORT}
            topology subnet
            server 10.30.0.0 255.255.255.0
            client-config-dir {own}
            ccd-exclusive
            push "redirect-gateway"
            keepalive 2 10
            dh none
        """
        await self._start_openvpn(self._carrier, settings)

    async def _start_client(self, client: Host) -> None:
        settings = f"""
            client
            dev tun0
            dev-type tun
            proto udp4
            remote {self._carrier.address} {OPENVPN_PORT}
            nobind
            remote-cert-tls server
        """
        for host in self._private:
            if host is not client:
                settings += f"    route {host.address} 255.255.255.255 net_gateway\n"
        await self._start_openvpn(client, settings)
        address = self.addresses[client.name]
        shown = ("ip", "address", "show", "dev", "tun0")
        await until(lambda: address in client.run(*shown), f"{client.name}: {address}", PATIENCE_SECONDS)

    async def _start_openvpn(self, host: Host, settings: str) -> None:
        files = {"ca": "ca.crt", "cert": f"{host.name}.crt", "key": f"{host.name}.key"}
        settings += "".join(f"{option} {self._folder / name}\n" for option, name in files.items())
        path = host.folder / "openvpn.conf"
        path.write_text("\n".join(line.strip() for line in settings.splitlines()))
        argv = [system_program("openvpn"), "--config", str(path), "--verb", "3"]
        await host.process("openvpn", argv, "Initialization Sequence Completed").start()

    def _make_certificates(self) -> None:
        self._folder.mkdir()
        authority = ("-CA", "ca.crt", "-CAkey", "ca.key")
        self._certificate("ca", "basicConstraints=critical,CA:TRUE")
        self._certificate(self._carrier.name, "keyUsage=digitalSignature\nextendedKeyUsage=serverAuth", *authority)
        for client in self._clients:
            self._certificate(client.name, "keyUsage=digitalSignature\nextendedKeyUsage=clientAuth", *authority)

    def _certificate(self, name: str, extension: str, *options: str) -> None:
        key, request = self._folder / f"{name}.key", self._folder / f"{name}.csr"
        extensions = self._folder / f"{name}.ext"
        extensions.write_text(extension + "\n")

        def openssl(*arguments: str | Path) -> None:
            self._carrier.run("env", "-C", str(self._folder), "openssl", *map(str, arguments))

        openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", key)
        openssl("req", "-new", "-key", key, "-subj", f"/CN={name}", "-out", request)
        signing = options or ("-signkey", f"{name}.key")
        if options:
            signing += ("-CAcreateserial",)
        certificate = self._folder / f"{name}.crt"
        openssl(
            *("x509", "-req", "-in", request, "-days", _CERTIFICATE_DAYS, "-extfile", extensions, "-out", certificate),
            *signing,
        )
