"""A real Asterisk for tests, a caller for it, and ears."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from ari_app.settings import Config, load
from tools.asterisk.install import AsteriskInstall
from tools.asterisk.instance import AsteriskInstance, basic_authorization
from tools.asterisk.local import free_ports, local_config
from tools.asterisk.provide import provide

EXAMPLE = Path(__file__).parent.parent / "trunkbridge.example.yml"
SCENARIOS = Path(__file__).parent / "asterisk" / "scenarios"

ULAW_CARRIER = "127.0.0.2"
STRANGER = "127.0.0.9"
SIPP_SECONDS = 30

StartPbx = Callable[..., Awaitable[AsteriskInstance]]


@pytest.fixture(scope="session")
def asterisk_install() -> AsteriskInstall:
    return provide(progress=print)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pbx(
    asterisk_install: AsteriskInstall, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[AsteriskInstance]:
    """One Asterisk with the example's trunks for all tests of a module that leave it as it is."""
    folder = tmp_path_factory.mktemp("pbx")
    changes = {"asterisk": {"fallback_prompt": "hello-world"}}  # the example's is longer
    instance = AsteriskInstance(asterisk_install, config_for(folder, changes), folder)
    await instance.start()
    yield instance
    await instance.stop()


@pytest_asyncio.fixture
async def start_pbx(asterisk_install: AsteriskInstall, tmp_path: Path) -> AsyncIterator[StartPbx]:
    """Starts Asterisks with the example's trunks; `changes` are merged into its settings. All are stopped."""
    started: list[AsteriskInstance] = []

    async def start(changes: dict[str, Any] | None = None, prepare: Callable[[Path], None] | None = None) -> Any:
        folder = tmp_path / f"pbx{len(started)}"
        folder.mkdir()
        instance = AsteriskInstance(asterisk_install, config_for(folder, changes), folder)
        started.append(instance)
        if prepare is not None:
            prepare(instance.layout.etc)
        await instance.start()
        return instance

    yield start
    for instance in started:
        await instance.stop()


def config_for(folder: Path, changes: dict[str, Any] | None = None) -> Config:
    return load(local_config(EXAMPLE, folder, changes=changes))


async def sipp(
    pbx: AsteriskInstance, scenario: str, source: str, *options: str, status: int = 200, **keys: str
) -> None:
    """Plays `scenario` once from the address `source`; the test fails when the other side departs from it.

    In a scenario file `.in`, @STATUS@ stands for `status`; `keys` fill the scenario's [keys].
    """
    path = SCENARIOS / scenario
    if path.suffix == ".in":
        filled = pbx.folder / f"{status}-{path.stem}"
        filled.write_text(path.read_text().replace("@STATUS@", str(status)))
        path = filled
    port = free_ports(1)[0]
    errors = pbx.folder / f"sipp-{port}.log"
    settings = [text for key, value in keys.items() for text in ("-key", key, value)]
    process = await asyncio.create_subprocess_exec(
        *("sipp", "-sf", str(path), "-i", source, "-p", str(port), "-m", "1", "-nostdin"),
        *("-timeout", f"{SIPP_SECONDS - 5}s", "-timeout_error", "-trace_err", "-error_file", str(errors)),
        *settings,
        *options,
        pbx.config.asterisk.sip_listen,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        cwd=pbx.folder,
    )
    try:
        async with asyncio.timeout(SIPP_SECONDS):
            said, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        story = errors.read_text(errors="replace") if errors.exists() else said.decode(errors="replace")[-3000:]
        pytest.fail(f"{path.name} from {source}: SIPp ended with {process.returncode}\n{story}\n{pbx.tail()}")


@dataclass
class Ears(asyncio.DatagramProtocol):
    """What arrives at an RTP port: payload type and payload of every packet."""

    port: int = 0
    heard: list[tuple[int, bytes]] = field(default_factory=list)

    def datagram_received(self, data: bytes, addr: Any) -> None:
        # RFC 3550 5.1: version 2, twelve bytes of header without CSRCs.
        if len(data) > 12 and data[0] >> 6 == 2:
            self.heard.append((data[1] & 0x7F, data[12:]))

    @property
    def seconds_of_sound(self) -> float:
        """Length of the audio that is not silence, at 8,000 bytes a second."""
        return sum(len(payload) for _, payload in self.heard if len(set(payload)) > 8) / 8000


@contextlib.asynccontextmanager
async def ears(address: str) -> AsyncIterator[Ears]:
    transport, protocol = await asyncio.get_running_loop().create_datagram_endpoint(
        Ears, local_addr=(address, 0), family=socket.AF_INET
    )
    protocol.port = transport.get_extra_info("sockname")[1]
    try:
        yield protocol
    finally:
        transport.close()


class Controller:
    """A controller that does only what the test tells it."""

    def __init__(self, session: aiohttp.ClientSession, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._session, self._socket = session, socket
        self.seen: list[str] = []
        """Types of the events so far."""
        self._events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def listen(self) -> None:
        async for message in self._socket:
            event = message.json()
            self.seen.append(event["type"])
            self._events.put_nowait(event)

    async def next(self, kind: str) -> dict[str, Any]:
        async with asyncio.timeout(10):
            while True:
                event = await self._events.get()
                if event["type"] == kind:
                    return event

    async def post(self, path: str) -> None:
        async with self._session.post(f"/ari/{path}") as response:
            assert response.status < 300, await response.text()

    async def delete(self, path: str) -> None:
        async with self._session.delete(f"/ari/{path}") as response:
            assert response.status < 300, await response.text()


@contextlib.asynccontextmanager
async def listening(pbx: AsteriskInstance) -> AsyncIterator[Controller]:
    """A connected controller; while it is, calls are handed to it."""
    ari = pbx.config.asterisk.ari
    headers = basic_authorization(ari.username, ari.password.get_secret_value())
    async with (
        aiohttp.ClientSession(f"http://{ari.listen}", headers=headers) as session,
        session.ws_connect(f"/ari/events?app={pbx.config.asterisk.app}") as socket,
    ):
        controller = Controller(session, socket)
        reader = asyncio.create_task(controller.listen())
        try:
            yield controller
        finally:
            await socket.close()
            await reader
