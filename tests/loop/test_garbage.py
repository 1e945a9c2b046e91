"""What a call leaves when it has ended: nothing that only a full collection finds, for which all other calls wait."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from aiohttp import web

from audiosocket.app_gate import Gate
from audiosocket.app_stage import AppStage
from audiosocket.app_stream import AppStream
from audiosocket.call_legs import CallLegs
from audiosocket.legs.audiosocket import AudioSocketLeg
from audiosocket.media_call import MediaCall
from audiosocket.session import Session
from tests.worker_rig import Rig, rig, until

pytestmark = [pytest.mark.loop, pytest.mark.virtual_time]

SPEECH = (np.arange(160) * 100).astype("<i2").tobytes()
PARTS = (MediaCall, CallLegs, AudioSocketLeg, Session, AppStage, AppStream, Gate)


def parts() -> dict[str, int]:
    """The parts of calls that are in memory."""
    return dict(Counter(type(found).__name__ for found in gc.get_objects() if isinstance(found, PARTS)))


@pytest.fixture
async def no_collection() -> AsyncIterator[None]:
    gc.collect()
    before = parts()
    assert not before, before
    gc.disable()
    yield
    gc.enable()


async def the_caller_hangs_up(r: Rig) -> None:
    channel = await r.talking()
    await channel.talk(10)
    await r.app.say(SPEECH * 5)
    await until(lambda: len(channel.audio()) == 5, "five frames heard")
    await channel.hang_up()


async def the_application_closes(r: Rig) -> None:
    channel = await r.talking()
    await r.app.say(SPEECH)
    await r.app.sockets[-1].close()
    await channel.ended()


async def the_application_is_lost(r: Rig) -> None:
    channel = await r.talking()
    r.app.sockets[-1]._req.transport.abort()  # type: ignore[union-attr]
    await channel.ended()


async def a_message_is_too_big(r: Rig) -> None:
    channel = await r.talking(message_max_bytes=2000)
    await r.app.say(SPEECH * 10)
    await channel.ended()


async def the_application_refuses(r: Rig) -> None:
    async def refuse(_request: web.Request) -> web.StreamResponse:
        return web.Response(status=503)

    r.app.before_upgrade = refuse
    channel = await r.call(connect_attempts=1)
    await channel.ended()
    r.app.before_upgrade = None


ENDS: list[Any] = [
    the_caller_hangs_up,
    the_application_closes,
    the_application_is_lost,
    a_message_is_too_big,
    the_application_refuses,
]


@pytest.mark.parametrize("end", ENDS)
async def test_a_call_that_has_ended_leaves_no_circles(end: Any, no_collection: None) -> None:
    async with rig() as r:
        for number in range(3):
            await end(r)
            await until(lambda number=number: len(r.source.reports) > number, "a report")
        await until(lambda: not parts(), f"nothing of a call in memory: {parts()}")
