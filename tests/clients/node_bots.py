"""Two bots in JavaScript: both take the stream's id where they find it, neither knows `clear`."""

from __future__ import annotations

import asyncio

from tests.clients.base import Client, Message, decoded, padded, pieces

SHWEY_BYTES = 3200
FRAME_BYTES = 320
KEEPALIVE_SECONDS = 0.2
SYNTHESIS_SECONDS = 0.3


class Shwey(Client):
    """The greeting in one go, 3,200 bytes a message, as soon as there is an id."""

    name = "shwey"
    clears = False
    reads_digits = False

    _sid = ""
    _sequence = 0

    async def converse(self) -> None:
        while True:
            message = await self.receive()
            if message.get("event") in ("start", "media"):
                self._take_sid(message.get("stream_sid") or message.get("streamSid") or "")
            match message.get("event"):
                case "media" if (message.get("media") or {}).get("payload"):
                    if message["media"].get("track") != "outbound":
                        self.hear(decoded(message))
                case "stop":
                    self.stop = message
                    await self.socket.close(code=1000, message=b"Call ended")
                    return

    def _take_sid(self, sid: str) -> None:
        if not self._sid and sid:
            self._sid = sid
            self.started = True
            self.begin(self.greeting)

    async def say(self, pcm: bytes) -> None:
        for chunk in pieces(pcm, SHWEY_BYTES):
            message = {"event": "media", "stream_sid": self._sid, "sequence_number": str(self._sequence), "media": {}}
            self._sequence += 1
            await self.send_audio(message, chunk)


class NodeBot(Client):
    """Silence as a keep-alive while it synthesises, then 20 ms a message without any pause, and a mark."""

    name = "Node bot"
    clears = False
    reads_digits = False

    _sid = ""

    async def converse(self) -> None:
        while True:
            message = await self.receive()
            match message.get("event"):
                case "start":
                    self._take_sid(message, message.get("start") or {})
                case "media":
                    self.hear(decoded(message))
                    self._take_sid(message, message["media"])
                case "mark":
                    self.marks_back.append((message.get("mark") or {}).get("name"))
                case "stop":
                    self.stop = message  # and waits for the socket's end

    def _take_sid(self, message: Message, inner: Message) -> None:
        found = [part.get(key) for part in (message, inner) for key in ("stream_sid", "streamSid")]
        if not self._sid and any(found):
            self._sid = next(sid for sid in found if sid)
            self.started = True
            self.begin(self.greeting)

    async def say(self, pcm: bytes) -> None:
        keepalive = asyncio.create_task(self._keep_alive(), name="keep-alive")
        try:
            await asyncio.sleep(SYNTHESIS_SECONDS)
        finally:
            keepalive.cancel()
            await asyncio.gather(keepalive, return_exceptions=True)
        for frame in pieces(padded(pcm), FRAME_BYTES):
            await self._send_frame(frame)
        await self.send_mark({"event": "mark", "stream_sid": self._sid, "mark": {"name": "tts_done"}})

    async def _keep_alive(self) -> None:
        while True:
            await asyncio.sleep(KEEPALIVE_SECONDS)
            for _ in range(10):
                await self._send_frame(bytes(FRAME_BYTES))

    async def _send_frame(self, frame: bytes) -> None:
        await self.send_audio({"event": "media", "stream_sid": self._sid, "media": {}}, frame)
