"""AOAI-phone: believes that timestamps are 20 ms apart, and fills what is missing with mu-law silence, into PCM."""

from __future__ import annotations

from typing import Any

from tests.clients.base import Client, decoded

BATCH_BYTES = 3200


class AoaiPhone(Client):
    name = "AOAI-phone"
    greets = False
    echoes = True

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._buffer = bytearray()
        self._latest_ms = -1

    async def converse(self) -> None:
        stream_sid = ""
        while True:
            message = await self.receive()
            match message["event"]:
                case "start":
                    stream_sid = message["stream_sid"]
                    assert message["start"]["call_sid"]
                    self.started = True
                case "media":
                    pcm = decoded(message)
                    self._take(pcm, int(message["media"]["timestamp"]))
                    await self.send_audio({"event": "media", "stream_sid": stream_sid, "media": {}}, pcm)
                case "dtmf":
                    self.digits.append(message["dtmf"]["digit"])
                case "stop":
                    assert message["stop"]["reason"]
                    self.stop = message
                    return

    def _take(self, pcm: bytes, at_ms: int) -> None:
        if self._latest_ms >= 0 and self._latest_ms + 20 < at_ms:
            self._buffer += b"\xff" * (8 * (at_ms - self._latest_ms - 20))
        self._latest_ms = at_ms
        self._buffer += pcm
        while len(self._buffer) >= BATCH_BYTES:
            self.hear(bytes(self._buffer[:BATCH_BYTES]))
            del self._buffer[:BATCH_BYTES]
