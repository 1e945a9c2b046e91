"""Names to addresses: what calls share, and what a resolver that hangs keeps from nobody."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from audiosocket import resolver
from audiosocket.resolver import KNOWN_SECONDS, Resolver
from tests.worker_rig import until

pytestmark = [pytest.mark.loop, pytest.mark.virtual_time]

DEAD, GOOD = "dead.example", "good.example"
TWO = [
    (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("fe80::1", 0, 0, 2)),
    (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 0)),
]


class SystemResolver:
    """In place of `socket.getaddrinfo`, for names that end in `.example`: it hangs over those of `dead.example`."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.released = threading.Event()
        self.addresses: list[Any] = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))]
        """Of `good.example`."""
        self._real = socket.getaddrinfo

    def getaddrinfo(self, host: Any, *arguments: Any, flags: int = 0, **more: Any) -> Any:
        """As `socket.getaddrinfo`."""
        if flags & socket.AI_NUMERICHOST or not host.endswith(".example"):
            return self._real(host, *arguments, flags=flags, **more)
        self.asked[host] += 1
        if host.endswith(DEAD):
            self.released.wait(60)
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        if host != GOOD:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return self.addresses


@pytest.fixture
def system_resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[SystemResolver]:
    system = SystemResolver()
    monkeypatch.setattr(socket, "getaddrinfo", system.getaddrinfo)
    yield system
    system.released.set()


def threads() -> int:
    return sum(thread.name == "resolver" for thread in threading.enumerate())


async def test_an_answer_is_used_for_a_while_by_everybody(system_resolver: SystemResolver) -> None:
    system_resolver.addresses = TWO
    names = Resolver()
    found = await asyncio.gather(*(names.addresses(GOOD, port) for port in range(1, 51)))
    assert [one[1][4] for one in found] == [("192.0.2.1", port) for port in range(1, 51)]
    assert found[0][0][4] == ("fe80::1", 1, 0, 2)
    assert system_resolver.asked == {GOOD: 1}
    await asyncio.sleep(KNOWN_SECONDS - 0.1)
    await names.addresses(GOOD, 1)
    assert system_resolver.asked == {GOOD: 1}
    await asyncio.sleep(0.2)
    await names.addresses(GOOD, 1)
    assert system_resolver.asked == {GOOD: 2}


async def test_http_has_the_same_answer(system_resolver: SystemResolver) -> None:
    system_resolver.addresses = TWO
    names = Resolver()
    await names.addresses(GOOD, 1)
    found = await names.resolve(GOOD, 443, socket.AF_UNSPEC)
    assert [(one["host"], one["port"], one["hostname"]) for one in found] == [
        ("fe80::1%2", 443, GOOD),
        ("192.0.2.1", 443, GOOD),
    ]
    assert [one["host"] for one in await names.resolve(GOOD, 443)] == ["192.0.2.1"]
    assert system_resolver.asked == {GOOD: 1}


async def test_a_failure_is_everybodys_who_waits_and_not_kept(system_resolver: SystemResolver) -> None:
    names = Resolver()
    failures = await asyncio.gather(*(names.addresses("nobody.example", 1) for _ in range(5)), return_exceptions=True)
    assert [str(failure) for failure in failures] == ["[Errno -2] Name or service not known"] * 5
    assert len({id(failure) for failure in failures}) == 5
    assert system_resolver.asked == {"nobody.example": 1}
    with pytest.raises(socket.gaierror):
        await names.addresses("nobody.example", 1)
    assert system_resolver.asked == {"nobody.example": 2}


async def test_what_can_be_no_name() -> None:
    with pytest.raises(ValueError, match="label"):
        await Resolver().addresses("a" * 64, 1)


@pytest.mark.virtual_time(False)
async def test_a_resolver_that_hangs_over_one_name_holds_up_no_other(system_resolver: SystemResolver) -> None:
    names = Resolver()
    stuck = [asyncio.create_task(names.addresses(DEAD, 1)) for _ in range(100)]
    await until(lambda: system_resolver.asked[DEAD], "the name looked up")
    for task in stuck[:99]:
        task.cancel()
    await asyncio.wait(stuck[:99])
    assert (await names.addresses(GOOD, 1))[0][4] == ("127.0.0.1", 1)
    another = asyncio.create_task(names.addresses(DEAD, 1))  # it waits with the one that is left
    await asyncio.sleep(0.1)
    assert system_resolver.asked == {DEAD: 1, GOOD: 1}
    await until(lambda: threads() == 1, "one thread")
    system_resolver.released.set()
    for task in (stuck[99], another):
        with pytest.raises(socket.gaierror, match="Temporary failure"):
            await task


@pytest.mark.virtual_time(False)
async def test_lookups_are_bounded_and_those_beyond_wait(
    system_resolver: SystemResolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolver, "LOOKUPS_MAX", 3)
    names = Resolver()
    stuck = [asyncio.create_task(names.addresses(f"{number}.{DEAD}", 1)) for number in range(3)]
    await until(lambda: len(system_resolver.asked) == 3, "three names looked up")
    waits = asyncio.create_task(names.addresses(GOOD, 1))
    await asyncio.sleep(0.1)
    await until(lambda: threads() == 3, "three threads")
    assert system_resolver.asked[GOOD] == 0
    system_resolver.released.set()
    assert (await waits)[0][4] == ("127.0.0.1", 1)
    await asyncio.wait(stuck)
    assert all(isinstance(task.exception(), socket.gaierror) for task in stuck)
    await until(lambda: not threads(), "no thread left")


@pytest.mark.virtual_time(False)
async def test_a_worker_that_ends_does_not_wait_for_a_resolver(system_resolver: SystemResolver) -> None:
    names = Resolver()
    stuck = asyncio.create_task(names.addresses(DEAD, 1))
    await until(lambda: system_resolver.asked[DEAD], "the name looked up")
    await names.close()
    with pytest.raises(asyncio.CancelledError):
        await stuck
    left = [thread.daemon for thread in threading.enumerate() if thread.name == "resolver"]
    assert left
    assert all(left)
