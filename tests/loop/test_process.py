"""What a process owes its supervisor: signals are heard, and readiness is told without ever standing still for it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from audiosocket.runtime.process import StopSignal, notify

pytestmark = pytest.mark.loop


@pytest_asyncio.fixture
async def stop() -> AsyncIterator[StopSignal]:
    yield StopSignal()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.remove_signal_handler(number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_one_signal_asks_and_a_second_insists(stop: StopSignal, number: signal.Signals) -> None:
    assert not stop.requested.is_set()
    os.kill(os.getpid(), number)
    async with asyncio.timeout(5):
        await stop.requested.wait()
    assert not stop.at_once.is_set()
    os.kill(os.getpid(), signal.SIGINT)
    async with asyncio.timeout(5):
        await stop.at_once.wait()
    os.kill(os.getpid(), signal.SIGTERM)  # a third changes nothing
    await asyncio.sleep(0.02)


@pytest.fixture
def supervisor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> socket.socket:
    """systemd's end of the notification socket."""
    path = str(tmp_path / "notify")
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listening.bind(path)
    listening.settimeout(5)
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    return listening


def test_states_arrive_one_by_one(supervisor: socket.socket) -> None:
    with supervisor:
        for state in ("READY=1", "WATCHDOG=1", "STOPPING=1", "STATUS=ünder way"):
            notify(state)
        assert [supervisor.recv(100).decode() for _ in range(4)] == [
            "READY=1",
            "WATCHDOG=1",
            "STOPPING=1",
            "STATUS=ünder way",
        ]


def test_an_abstract_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"trunkbridge-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind("\0" + name)
        listening.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + name)
        notify("READY=1")
        assert listening.recv(100) == b"READY=1"


def test_without_a_supervisor_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", "")
    notify("READY=1")


@pytest.mark.parametrize("address", ["/nowhere/notify", "/" + "x" * 300, "@" + "x" * 300, "relative"])
def test_a_supervisor_that_is_gone_is_no_error(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    notify("WATCHDOG=1")


def test_a_supervisor_that_does_not_read_stops_nobody(supervisor: socket.socket) -> None:
    """The kernel holds a few datagrams; one more would make a blocking sender wait, and with it every call's audio."""
    with supervisor:
        began = time.monotonic()
        for _ in range(1000):
            notify("WATCHDOG=1")
        assert time.monotonic() - began < 5
        supervisor.setblocking(False)
        received = 0
        while True:
            try:
                supervisor.recv(100)
            except BlockingIOError:
                break
            received += 1
        assert 0 < received < 1000
        notify("READY=1")
        assert supervisor.recv(100) == b"READY=1"
