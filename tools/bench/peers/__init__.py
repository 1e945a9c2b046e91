"""Other projects' AudioSocket servers beside ours: the same calls, the same application, one core each.

A relay passes each frame of the caller to the application over WebSocket, in Exotel's protocol, and plays what comes
back. Ours is the worker as it is; the others are their published packages, used as their documents say, with as little
as possible around them to dial the application.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from audiosocket.errors import Unavailable
from audiosocket.loadtest import machine
from audiosocket.loadtest.applications import Echo, serve
from audiosocket.loadtest.generator import Generator
from audiosocket.loadtest.standalone import StandaloneWorker
from tools.bench import stretch
from tools.bench.options import Options
from tools.bench.peers import install
from tools.bench.report import Outcome, Table, Value
from tools.bench.stretch import Stretch
from tools.bench.worker import OTHERS
from tools.process import Process, ProcessFailed

CALLS = (10, 25, 50, 100, 200, 300, 400)
SECONDS = 8.0
MAX_LOSS_PERCENT, MAX_GAP_MS = 1.0, 60.0
"""A relay that loses more frames, or lets 1 % of its gaps be longer than three frames, is not given more calls."""
ROUND_SECONDS = 25.0
"""What a step takes besides its measuring, at most."""
NOT_RUN = (
    ("AVA (AI Voice Agent for Asterisk)", "in no package registry; the whole engine needs an ARI and a provider"),
    ("AVR core", "a container image without source"),
    ("Fonoster", "containers; its AudioSocket package is measured by itself"),
    ("Dograh, Bolna", "chan_websocket instead of AudioSocket; in no package registry"),
    ("Pipecat", "has no AudioSocket transport: it is an application behind a gateway"),
    ("jambonz", "a FreeSWITCH module; its npm packages are for applications"),
    ("LiveKit SIP, SiphonAI, VoiceBlender, sipgate bridge", "speak SIP themselves: no AudioSocket to compare"),
    (
        "CyCoreSystems/audiosocket, fastaudiosocket",
        "Go modules, in neither PyPI nor npm; without a way to an application",
    ),
)


class _Relay(NamedTuple):
    name: str
    version: str
    argv: Callable[[int, str], list[str]]
    """The command, by its port and the application's URL."""


def limit_seconds(options: Options) -> float:
    """The longest that it may take."""
    steps = len(options.calls or CALLS)
    return 2 * install.INSTALL_SECONDS + steps * 4 * 2 * ((options.seconds or SECONDS) + ROUND_SECONDS)


async def run(options: Options) -> Outcome:
    """More and more calls, each number on every relay in turn, until a relay breaks a limit twice."""
    seconds = options.seconds or SECONDS
    folder = options.folder / "peers"
    relays, missing = await _relays(folder)
    machine.allow_descriptors(2 * max(options.calls or CALLS) + 200)
    ended: dict[str, str] = {}
    rows: list[tuple[Value, ...]] = []
    notes: list[str] = []
    others = 0.0
    for calls in options.calls or CALLS:
        for relay in relays:
            if relay.name in ended:
                continue
            for _attempt in range(2):
                try:
                    found = await _measure(relay, folder, calls, seconds)
                except (OSError, ProcessFailed, Unavailable) as error:
                    why = f"did not go on: {str(error) or type(error).__name__}"
                    continue
                why = _broken(found)
                rows.append((relay.name, calls, *stretch.cells(found), why or "kept"))
                notes += [f"{relay.name}, {calls} calls: {doubt}" for doubt in found.doubts()]
                others = max(others, found.others)
                if not why:
                    break
            else:
                ended[relay.name] = f"{why} at {calls} calls"
    stopped: list[tuple[Value, ...]] = [
        (relay.name, relay.version, ended.get(relay.name, "no limit was reached")) for relay in relays
    ]
    not_run: list[tuple[Value, ...]] = [*missing, *NOT_RUN]
    tables = [
        Table("relays", ("relay", "calls", *stretch.COLUMNS, "limits"), rows),
        Table("where each stopped", ("relay", "package", "limit"), stopped),
        Table("not run", ("project", "why"), not_run),
    ]
    if others > OTHERS:
        notes.append(
            f"other processes took up to {others:.2f} cores: see the column, and read such rows as upper bounds"
        )
    notes.append(
        "trunkbridge's rows hold more work than the others': it starts, paces and ends the stream as Exotel does, with"
        " marks, clear and DTMF, works delay off, measures turns and guards itself against both sides; the others relay"
    )
    notes.append(
        "round trip: ours waits for the next tick of its clock (20 ms in all); the two of ICT play a frame at once when"
        " none waits, and keep the delay of every stall; Fonoster's pacing is for files alone: nothing is paced here"
    )
    what = f"{seconds:g} s of echoed calls, PCM16 at 8 kHz, 20 ms messages of Exotel's protocol; each relay on one core"
    return Outcome(what, tables, notes)


async def _relays(folder: Path) -> tuple[list[_Relay], list[tuple[str, str]]]:
    """Those that can be run here, ours first, and why the others cannot."""
    found, missing = [_Relay("trunkbridge", "this tree", lambda port, url: [])], []
    ict_py, ict_node, fonoster = "ICT, Python", "ICT, Node", "Fonoster, Node"
    try:
        interpreter, version = await install.python(folder / "python")
    except install.NotInstalled as error:
        missing.append((ict_py, str(error)))
    else:
        relay = str(install.HERE / "relay_ict.py")
        found.append(
            _Relay(
                ict_py,
                f"PyPI asterisk-ai-voice-agent {version}",
                lambda port, url: [str(interpreter), "-I", relay, str(port), url],
            )
        )
    try:
        scripts, versions = await install.node(folder / "node")
    except install.NotInstalled as error:
        missing += [(ict_node, str(error)), (fonoster, str(error))]
    else:
        for name, package, script in (
            (ict_node, "asterisk-audiosocket", "relay_ict.mjs"),
            (fonoster, "@fonoster/streams", "relay_fonoster.mjs"),
        ):
            found.append(_Relay(name, f"npm {package} {versions[package]}", _node(str(scripts / script))))
    return found, missing


def _node(script: str) -> Callable[[int, str], list[str]]:
    return lambda port, url: [install.program("node"), script, str(port), url]


def _broken(found: Stretch) -> str:
    if found.closed:
        return f"{found.closed} calls were ended"
    if found.loss_percent > MAX_LOSS_PERCENT:
        return f"{found.loss_percent:.3g} % of the frames were lost"
    if found.gap_p99 is None or found.gap_p99 > MAX_GAP_MS:
        return "no frame came" if found.gap_p99 is None else f"gap p99 {found.gap_p99:.0f} ms"
    return ""


async def _measure(relay: _Relay, folder: Path, calls: int, seconds: float) -> Stretch:
    cores = machine.two_cores()
    own_core = machine.pinned(cores[1]) if cores else contextlib.nullcontext()
    start = _ours if relay.version == "this tree" else _theirs
    async with serve(Echo) as url, start(relay, folder, url, calls) as (port, pid):
        if cores:
            machine.pin(pid, cores[0])
        generator = Generator(port, slin=True)
        try:
            with own_core, machine.no_garbage_collection():
                return await stretch.echoed(generator, pid, calls, seconds)
        finally:
            generator.stop()


@asynccontextmanager
async def _ours(_relay: _Relay, folder: Path, url: str, calls: int) -> AsyncIterator[tuple[int, int]]:
    worker = StandaloneWorker(folder / "trunkbridge", url, calls, more=("--format", "slin", "--fade-ms", "0"))
    await worker.start()
    try:
        yield worker.port, worker.pid
    finally:
        await worker.stop()


@asynccontextmanager
async def _theirs(relay: _Relay, folder: Path, url: str, _calls: int) -> AsyncIterator[tuple[int, int]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    log = folder / f"{relay.name.replace(', ', '-').replace(' ', '-')}.log"
    # Their way of logging is theirs, but a full disk would be ours.
    log.unlink(missing_ok=True)
    process = Process(relay.name, relay.argv(port, url), log, "listening", {"NODE_ENV": "production"})
    await process.start()
    try:
        yield port, process.pid
    finally:
        await process.stop()
