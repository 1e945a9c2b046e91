"""Applications whose timing is known: they act a set time after the caller's speech, and know what it really took."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator

import numpy as np
from aiohttp import WSMsgType, web

LOUD_PEAK = 2000


async def loud_frames(socket: web.WebSocketResponse) -> AsyncIterator[float]:
    """The times, by the loop's clock, at which media messages with speech in them arrive."""
    async for message in socket:
        event = json.loads(message.data) if message.type is WSMsgType.TEXT else {}
        if event.get("event") == "media":
            samples = np.frombuffer(base64.b64decode(event["media"]["payload"]), "<i2").astype(np.int32)
            if np.abs(samples).max() >= LOUD_PEAK:
                yield asyncio.get_running_loop().time()


class Replying:
    """Says `reply` at each delay in turn after a last loud frame; `behave` is for a scripted application."""

    def __init__(self, reply: bytes, delays_ms: list[int]) -> None:
        self._message = {"event": "media", "media": {"payload": base64.b64encode(reply).decode()}}
        self._delays_ms = delays_ms
        self._sending: asyncio.Task[None] | None = None
        self.took_ms: list[float] = []
        """What each reply took by this process's clock."""

    async def behave(self, socket: web.WebSocketResponse) -> None:
        due: asyncio.TimerHandle | None = None
        async for at in loud_frames(socket):
            if due is not None:
                due.cancel()
            if len(self.took_ms) < len(self._delays_ms):
                delay = self._delays_ms[len(self.took_ms)] / 1000
                due = asyncio.get_running_loop().call_at(at + delay, self._say, socket, at)
        if due is not None:
            due.cancel()

    def _say(self, socket: web.WebSocketResponse, loud_at: float) -> None:
        self.took_ms.append(round((asyncio.get_running_loop().time() - loud_at) * 1000, 3))
        self._sending = asyncio.create_task(socket.send_json(self._message))


class GivingWay:
    """Says `speech`, and clears it a set time after the first loud frame."""

    def __init__(self, speech: bytes, delay_ms: int) -> None:
        self._message = {"event": "media", "media": {"payload": base64.b64encode(speech).decode()}}
        self._delay_ms = delay_ms
        self.took_ms = 0.0
        """What it took by this process's clock."""

    async def behave(self, socket: web.WebSocketResponse) -> None:
        await socket.send_json(self._message)
        async for at in loud_frames(socket):
            await asyncio.sleep(self._delay_ms / 1000)
            self.took_ms = round((asyncio.get_running_loop().time() - at) * 1000, 3)
            await socket.send_json({"event": "clear"})
            return
