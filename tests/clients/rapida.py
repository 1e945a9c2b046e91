"""Rapida, written in Go: a message is decoded into typed fields, and the end of a call is the end of the connection."""

from __future__ import annotations

import base64
import binascii
from typing import Any, ClassVar

from tests.clients.base import Client, Message, in_real_time, pieces

CHUNK_BYTES = 640


class Rapida(Client):
    name = "Rapida"
    reads_digits = False
    hang_up_reason = "app_closed"
    spec: ClassVar[dict[str, Any]] = {"close_without_frame": "end"}

    _stream_sid = ""

    async def converse(self) -> None:
        while True:
            message = await self.receive()
            if not self._decodes(message):
                continue
            match message.get("event"):
                case "start":
                    self._stream_sid = message.get("stream_sid", "")
                    self.started = True
                    self.begin(self.greeting)
                case "media" if message.get("media"):
                    try:
                        self.hear(base64.b64decode(message["media"].get("payload", ""), validate=True))
                    except binascii.Error:
                        continue
                case "stop":
                    self.stop = message
                    await self.hang_up()
                    return

    @staticmethod
    def _decodes(message: Message) -> bool:
        """A field of another type than the struct's fails the whole message, which is then passed over."""
        media = message.get("media")
        texts = [message.get("event", ""), message.get("stream_sid", "")]
        texts += [media.get("payload", "")] if isinstance(media, dict) else []
        return all(isinstance(text, str) for text in texts) and isinstance(media, dict | None)

    async def say(self, pcm: bytes) -> None:
        if self._stream_sid:
            await in_real_time(pieces(pcm, CHUNK_BYTES), self._send_chunk)

    async def _send_chunk(self, chunk: bytes) -> None:
        await self.send_audio({"event": "media", "streamSid": self._stream_sid, "media": {}}, chunk)

    async def clear(self) -> None:
        await self.send({"event": "clear", "streamSid": self._stream_sid})

    async def hang_up(self) -> None:
        transport = self.socket._req.transport if self.socket._req is not None else None
        if transport is not None:
            # No close frame. A close of the socket would be a reset while audio waits unread; its reader leaves none.
            transport.write_eof()
