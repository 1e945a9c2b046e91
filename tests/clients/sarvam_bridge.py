"""The Sarvam bridge: a single loop that reads nothing while it speaks, at about twice the pace of hearing."""

from __future__ import annotations

import asyncio

from tests.clients.base import Client, decoded, padded, pieces

CHUNK_BYTES = 3200
EVERY_SECONDS = 0.09


class SarvamBridge(Client):
    name = "Sarvam bridge"
    clears = False
    reads_digits = False

    _stream_sid = ""

    async def converse(self) -> None:
        while True:
            message = await self.receive()
            match message.get("event"):
                case "start":
                    self._stream_sid = message["start"]["stream_sid"]
                    self.started = True
                    await self.say(self.greeting)
                case "media":
                    self.hear(decoded(message))
                case "stop":
                    self.stop = message
                    return

    async def say(self, pcm: bytes) -> None:
        for chunk in pieces(pcm, CHUNK_BYTES):
            message = {"event": "media", "stream_sid": self._stream_sid, "media": {}}
            await self.send_audio(message, padded(chunk))
            await asyncio.sleep(EVERY_SECONDS)
