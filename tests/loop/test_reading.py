"""The sockets that compiled code reads for all calls of a worker at once."""

from __future__ import annotations

import asyncio
import socket
import uuid

import pytest

from audiosocket import wire
from audiosocket.clock import Clock
from audiosocket.compiled import FRAMES
from audiosocket.legs.audiosocket import AudioSocketLeg
from audiosocket.legs.base import MediaLeg

pytestmark = [pytest.mark.loop, pytest.mark.virtual_time]

CALLS = 400
"""More than the kernel names in one answer."""


class Owner:
    def __init__(self) -> None:
        self.identified: list[str] = []

    def leg_connected(self, leg: MediaLeg) -> None:
        pass

    def leg_identified(self, leg: MediaLeg, leg_uuid: str) -> None:
        self.identified.append(leg_uuid)

    def leg_closed(self, leg: MediaLeg) -> None:
        pass


async def test_one_turn_of_the_loop_reads_all_sockets_that_are_ready() -> None:
    """However many they are: a worker that is late would otherwise serve its clock again and again between them."""
    assert FRAMES is not None
    poll, owner, clock = FRAMES.Poll(), Owner(), Clock(asyncio.get_running_loop())
    pairs = [socket.socketpair() for _ in range(CALLS)]
    names = [str(uuid.uuid4()) for _ in pairs]
    try:
        for (here, there), name in zip(pairs, names, strict=True):
            poll.watch(here.fileno(), AudioSocketLeg(clock, owner))
            there.send(wire.encode(wire.KIND_UUID, uuid.UUID(name).bytes))
        poll.read()
        assert sorted(owner.identified) == sorted(names)
    finally:
        for here, there in pairs:
            poll.forget(here.fileno())
            here.close()
            there.close()
