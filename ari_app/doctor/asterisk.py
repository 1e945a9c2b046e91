"""The Asterisk of a PBX node: ARI, AMI, version, modules, and whether its files are those of the configuration."""

from __future__ import annotations

import re
from pathlib import Path

from ari_app.ami import AmiClient, AmiError
from ari_app.ari.client import AriClient
from ari_app.ari.errors import AriError
from ari_app.asterisk_conf import AsteriskLayout, render
from ari_app.doctor.finding import Finding, bad, good, warning
from ari_app.settings import Config
from audiosocket.settings import split_host_port

# Before these, AudioSocket legs ended at comfort noise, and ARI had holes.
OLDEST = {20: (20, 20, 0), 22: (22, 10, 1), 23: (23, 4, 0)}
_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)")
_REQUIRED = re.compile(r"^require = (\S+)", re.MULTILINE)


async def check(config: Config, layout: AsteriskLayout) -> list[Finding]:
    """All that is to be known of it; `layout`: where its files are."""
    found = [await _ami(config), *_files(config, layout), _ports(config)]
    ari = config.asterisk.ari
    password = ari.password.get_secret_value()
    try:
        async with AriClient(f"http://{ari.listen}", ari.username, password, config.asterisk.app, 5.0) as client:
            found.append(_version((await client.info()).system.version))
            found.append(_modules(config, layout, await client.modules()))
    except AriError as error:
        remedy = "does Asterisk run, and is asterisk.ari what it was rendered from? see `config render`"
        found.append(bad("ari", f"{ari.listen}: {error}", remedy))
    else:
        found.append(good("ari", f"{ari.listen} answers to {ari.username}"))
    return found


def _version(text: str) -> Finding:
    match = _VERSION.search(text)
    version = tuple(int(part) for part in match.groups()) if match else ()
    oldest = OLDEST.get(version[0]) if version else None
    if not version or (oldest is None and version[0] < max(OLDEST)):
        known = ", ".join(".".join(map(str, one)) for one in OLDEST.values())
        return warning("asterisk version", text, f"tested are {known} and newer of the same series")
    if oldest is not None and version < oldest:
        return bad("asterisk version", text, f"{'.'.join(map(str, oldest))} or newer: media legs break in earlier ones")
    return good("asterisk version", text)


def _modules(config: Config, layout: AsteriskLayout, running: dict[str, str]) -> Finding:
    needed = _REQUIRED.findall(render(config, layout)["modules.conf"])
    missing = [name for name in needed if running.get(name) != "Running"]
    if missing:
        return bad("asterisk modules", f"not running: {', '.join(missing)}", "`config render`, then restart Asterisk")
    return good("asterisk modules", f"all {len(needed)} run")


async def _ami(config: Config) -> Finding:
    ami = config.asterisk.ami
    host, port = split_host_port(ami.listen)
    try:
        async with AmiClient(host, port, ami.username, ami.password.get_secret_value()) as client:
            channels = await client.channels()
    except AmiError as error:
        return bad("ami", f"{ami.listen}: {error}", "is it what Asterisk was rendered from? see `config render`")
    return good("ami", f"{ami.listen} answers to {ami.username}, {len(channels)} channels")


def _files(config: Config, layout: AsteriskLayout) -> list[Finding]:
    """Whether what lies in Asterisk's folder is what this configuration gives."""
    if not layout.etc.is_dir():
        said = f"there is no folder {layout.etc}"
        return [warning("asterisk files", said, "name the one it was started with: --asterisk-etc DIRECTORY")]
    differ, unread = [], []
    for name, text in render(config, layout).items():
        if name == "asterisk.conf":
            continue  # folders and limits: an installation's own
        path = layout.etc / name
        try:
            there = path.read_text(encoding="utf-8")
        except PermissionError:
            unread.append(name)
        except (OSError, UnicodeDecodeError):
            differ.append(name)
        else:
            if there != text:
                differ.append(name)
    if differ:
        remedy = f"trunkbridge config render FILE {layout.etc}, then restart Asterisk (its calls end)"
        return [warning("asterisk files", f"other than this configuration gives: {', '.join(sorted(differ))}", remedy)]
    if unread:
        return [warning("asterisk files", f"may not be read: {', '.join(sorted(unread))}", "run as root")]
    return [good("asterisk files", f"{layout.etc} is as this configuration gives it")]


def _ports(config: Config) -> Finding:
    """Whether the kernel may give away RTP's ports to outgoing connections."""
    rtp = config.asterisk.rtp
    said = f"{rtp.first} to {rtp.last}, {(rtp.last - rtp.first + 1) // 2} call legs"
    if (rtp.last - rtp.first + 1) // 2 < config.controller.max_calls:
        return bad(
            "rtp ports", f"{said}, and controller.max_calls is {config.controller.max_calls}", "widen asterisk.rtp"
        )
    try:
        low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split())
        kept = Path("/proc/sys/net/ipv4/ip_local_reserved_ports").read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        return warning("rtp ports", f"{said}; the kernel's own are not known: {error}", "see `sysctl net.ipv4`")
    if low <= rtp.last and rtp.first <= high and not _reserved(kept, rtp.first, rtp.last):
        return warning(
            "rtp ports",
            f"{said}; the kernel gives {low} to {high} to outgoing connections too",
            f"sysctl net.ipv4.ip_local_reserved_ports={max(low, rtp.first)}-{min(high, rtp.last)}",
        )
    return good("rtp ports", said)


def _reserved(kept: str, first: int, last: int) -> bool:
    """Whether the kernel's list (`1-5,9`) keeps all of a range free."""
    for part in filter(None, kept.split(",")):
        low, _, high = part.partition("-")
        if int(low) <= first and last <= int(high or low):
            return True
    return False
