"""What a worker tells its supervisor, its status port and the controllers: whether it is ready, alive, and done."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from audiosocket.callspec import WorkerInfo
from audiosocket.errors import SpecRefused, Unavailable
from audiosocket.load import Load
from audiosocket.sources import StandaloneSource
from tests.media import call_spec
from tests.worker_rig import AnnouncedCalls, rig, until

pytestmark = [pytest.mark.loop, pytest.mark.virtual_time]


class Supervisor:
    """systemd's end of the notification socket."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.setblocking(False)
        self._told: list[str] = []
        # The kernel keeps ten datagrams for who does not read.
        asyncio.get_running_loop().add_reader(self._socket, self.told)

    def told(self) -> list[str]:
        """Every line so far."""
        with suppress(BlockingIOError):
            while True:
                self._told += self._socket.recv(4096).decode().split("\n")
        return self._told

    def count(self, line: str) -> int:
        return self.told().count(line)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()


@pytest_asyncio.fixture
async def supervisor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Supervisor]:
    found = Supervisor(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setattr("audiosocket.readiness.HEARTBEAT_SECONDS", 0.02)
    yield found
    found.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def test_a_worker_is_ready_when_calls_can_come(supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    reached = False
    announce = AnnouncedCalls.announce

    async def away(self: AnnouncedCalls, info: WorkerInfo) -> set[str]:
        if not reached:
            raise Unavailable("Redis does not answer")
        return await announce(self, info)

    monkeypatch.setattr(AnnouncedCalls, "announce", away)
    waiting = "STATUS=0 of 50 calls, 0% of a core; takes no new ones: not announced: Redis does not answer"
    async with rig() as r:
        await until(lambda: supervisor.count(waiting) > 2, "it says what it waits for")
        assert supervisor.count("WATCHDOG=1") > 2
        assert supervisor.count("READY=1") == 0
        reached = True
        await until(lambda: supervisor.count("READY=1"), "ready")
        before = len(r.source.announced)
        await until(lambda: len(r.source.announced) > before + 2, "heartbeats")
        assert supervisor.count("READY=1") == 1


async def test_a_clock_that_has_died_is_told_and_feeds_no_watchdog(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audiosocket.readiness.STALLED_SECONDS", 0.3)
    port = free_port()
    async with rig(status_host="127.0.0.1", status_port=port) as r, aiohttp.ClientSession() as http:

        async def get(path: str) -> tuple[int, str]:
            async with http.get(f"http://127.0.0.1:{port}{path}") as answer:
                return answer.status, await answer.text()

        await r.talking()
        assert await get("/healthz") == (200, "ok\n")
        timer = r.worker.clock._timer
        assert timer is not None
        timer.cancel()
        await until(r.worker.readiness.why_not_alive, "the worker notices")
        status, text = await get("/healthz")
        assert (status, text[:23]) == (503, "the clock stands still ")
        assert (await get("/readyz"))[0] == 503
        await until(lambda: r.source.announced[-1].overloaded, "no new calls")
        fed = supervisor.count("WATCHDOG=1")
        announced = len(r.source.announced)
        await until(lambda: len(r.source.announced) > announced + 5, "heartbeats go on")
        assert supervisor.count("WATCHDOG=1") == fed
        assert any("takes no new ones: the clock stands still" in line for line in supervisor.told())
        r.worker.clock._wake()  # the timer is back
        await until(lambda: supervisor.count("WATCHDOG=1") > fed, "fed again")
        assert await get("/healthz") == (200, "ok\n")


async def test_a_worker_without_calls_waits_for_one_that_is_on_its_way(supervisor: Supervisor) -> None:
    async with rig() as r:
        spec = r.source.announce_call(url=r.app.url)
        r.source.given = {spec.call_id}  # leased before anybody knew that the worker is to stop
        r.stop.requested.set()
        await until(lambda: r.source.announced[-1].draining, "draining")
        assert supervisor.count("STOPPING=1") == 1
        extended = supervisor.count("EXTEND_TIMEOUT_USEC=30000000")
        await until(lambda: supervisor.count("EXTEND_TIMEOUT_USEC=30000000") > extended + 2, "asks for more time")
        channel = await r.connect(spec.leg_uuid)
        await until(lambda: r.app.events("start"), "start message")
        await until(lambda: supervisor.count("EXTEND_TIMEOUT_USEC=30000000") > extended + 4, "heartbeats go on")
        assert any(line.startswith("STATUS=draining: 1 calls left, for at most ") for line in supervisor.told())
        await channel.hang_up()
        assert (await r.report()).reason == "leg_closed"
        # The controller may give the lease back later, or be dead: the call was here and is over.
        await until(lambda: r.source.closed, "the end")
        assert supervisor.count("STATUS=ending") == 1


async def test_a_call_that_never_comes_is_waited_for_until_the_deadline(supervisor: Supervisor) -> None:
    async with rig(drain_seconds=0.3) as r:
        r.source.given = {"never"}
        began = time.monotonic()
        r.stop.requested.set()
        await until(lambda: r.source.closed, "the end")
        assert time.monotonic() - began >= 0.3


async def test_a_call_that_ended_before_the_drain_is_not_waited_for() -> None:
    async with rig(drain_seconds=3600) as r:
        spec = r.source.announce_call(url=r.app.url)
        channel = await r.connect(spec.leg_uuid)
        await until(lambda: r.app.events("start"), "start message")
        await channel.hang_up()
        await r.report()
        r.source.given = {spec.call_id}
        r.stop.requested.set()
        await until(lambda: r.source.closed, "the end")


async def test_a_worker_that_is_to_end_at_once_waits_for_nobody(supervisor: Supervisor) -> None:
    async with rig(drain_seconds=3600) as r:
        channel = await r.talking()
        r.source.given = {"never"}
        r.stop.requested.set()
        await until(lambda: r.worker.draining, "draining")
        r.stop.at_once.set()
        await channel.ended()
        assert (await r.report()).reason == "worker_stopped"
        await until(lambda: r.source.closed, "the end")


async def test_an_announcement_never_overtakes_a_later_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A heartbeat that is under way says that calls are welcome; stored last, it would send calls to a worker that is
    about to end."""
    monkeypatch.setattr("audiosocket.readiness.HEARTBEAT_SECONDS", 0.01)
    stored: list[bool] = []
    held, go_on = asyncio.Event(), asyncio.Event()

    async def slow(self: AnnouncedCalls, info: WorkerInfo) -> set[str]:
        if not info.draining and len(stored) == 3:
            held.set()
            await go_on.wait()
        stored.append(info.draining)
        return set()

    monkeypatch.setattr(AnnouncedCalls, "announce", slow)
    async with rig() as r:
        await held.wait()
        r.stop.requested.set()
        await until(lambda: r.worker.draining, "draining")
        await asyncio.sleep(0.05)
        assert not any(stored)
        go_on.set()
        await until(lambda: r.source.closed, "the end")
        assert stored[:4] == [False] * 4
        assert all(stored[4:])
        assert stored[4:]


async def test_an_overloaded_worker_says_so_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("audiosocket.readiness.HEARTBEAT_SECONDS", 0.02)
    monkeypatch.setattr("audiosocket.load.MEASURE_SECONDS", 0.1)
    monkeypatch.setattr("audiosocket.load.SAMPLE_SECONDS", 0.02)
    busy = True

    async def hog() -> None:
        while busy:
            time.sleep(0.1)
            await asyncio.sleep(0)

    port = free_port()
    async with rig(status_host="127.0.0.1", status_port=port) as r, aiohttp.ClientSession() as http:
        channel = await r.talking()
        hogging = asyncio.create_task(hog())
        await until(lambda: r.source.announced[-1].overloaded, "overloaded")
        assert r.source.announced[-1].lateness_ms >= 20
        async with http.get(f"http://127.0.0.1:{port}/readyz") as answer:
            assert answer.status == 503
            assert (await answer.text()).startswith("overloaded: ")
        async with http.get(f"http://127.0.0.1:{port}/healthz") as answer:
            assert answer.status == 200
        busy = False
        await hogging
        await until(lambda: not r.source.announced[-1].overloaded, "recovered")
        assert r.worker.active == 1  # who is there stays there
        await channel.hang_up()


@pytest.mark.virtual_time(False)
async def test_the_share_of_a_core_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("audiosocket.load.MEASURE_SECONDS", 0.05)
    monkeypatch.setattr("audiosocket.load.SAMPLE_SECONDS", 0.02)
    load = Load()
    watching = asyncio.create_task(load.watch(lambda: None))
    loop = asyncio.get_running_loop()
    try:
        await until(lambda: load.last.worst > 0, "a first second")
        worst = 0.0
        deadline = loop.time() + 10
        while worst < 0.4 and loop.time() < deadline:
            until_then = time.thread_time() + 0.05
            while time.thread_time() < until_then:
                pass
            await asyncio.sleep(0)
            worst = max(worst, load.last.cpu)
        assert worst >= 0.4
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


async def test_a_standalone_worker_that_drains_refuses_calls() -> None:
    source = StandaloneSource(call_spec(), accept_any=False)
    info = {"worker_id": "standalone/0", "node": "standalone", "host": "127.0.0.1", "port": 1, "status_url": ""}
    info |= {"capacity": 1, "active": 0, "version": "1", "started_at_ms": 0}
    assert await source.announce(WorkerInfo(**info, draining=False)) == set()
    assert (await source.take("00000000-0000-4000-8000-000000000001", "127.0.0.1")).leg_uuid
    assert await source.announce(WorkerInfo(**info, draining=True)) == set()
    with pytest.raises(SpecRefused) as refused:
        await source.take("00000000-0000-4000-8000-000000000002", "127.0.0.1")
    assert refused.value.why == "draining"
