"""The clock of tests in virtual time: it waits for nothing, skips nothing, and hangs on nothing."""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from time import sleep as real_sleep

import pytest

from tests.virtual_time import Deadlock, run

pytestmark = [pytest.mark.loop, pytest.mark.virtual_time]

HOUR = 3600.0


async def test_waiting_takes_no_time_and_ends_at_the_very_moment() -> None:
    really, began = time.perf_counter(), time.monotonic()
    order: list[str] = []
    asyncio.get_running_loop().call_later(2 * HOUR, order.append, "later")
    asyncio.get_running_loop().call_later(HOUR, order.append, "first")
    await asyncio.sleep(2 * HOUR)
    assert order == ["first", "later"]
    assert time.monotonic() - began == pytest.approx(2 * HOUR)
    assert time.perf_counter() - really < HOUR / 60


async def test_a_machine_that_stands_still_is_not_noticed() -> None:
    began = time.monotonic()
    async with asyncio.timeout(0.01):
        real_sleep(0.05)
        await asyncio.sleep(0.005)
    assert time.monotonic() - began == pytest.approx(0.005)


async def test_a_loop_that_stands_still_is() -> None:
    began = time.monotonic()
    soon = asyncio.create_task(asyncio.sleep(0.01))
    await asyncio.sleep(0)
    time.sleep(0.05)
    await soon
    assert time.monotonic() - began == pytest.approx(0.05)


async def test_time_stands_still_for_a_thread_and_for_what_is_on_its_way() -> None:
    began = time.monotonic()
    await asyncio.to_thread(real_sleep, 0.05)
    near, far = socket.socketpair()
    with near, far:
        far.setblocking(False)
        near.send(b"x")
        assert await asyncio.get_running_loop().sock_recv(far, 1) == b"x"
    assert time.monotonic() == began


def test_a_deadlock_is_told() -> None:
    with pytest.raises(Deadlock, match="Event.wait"):
        run(asyncio.Event().wait())


async def test_a_process_is_refused() -> None:
    with pytest.raises(RuntimeError, match="real time"):
        await asyncio.create_subprocess_exec(sys.executable)


def test_outside_of_it_time_is_real() -> None:
    before = time.monotonic
    run(asyncio.sleep(HOUR))
    assert time.monotonic is before
