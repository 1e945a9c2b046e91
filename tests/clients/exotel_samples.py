"""Exotel's samples without a model of their own: the host that its recipes share, the echo bot, the demo of 2021."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.clients.base import Client, at_rate, decoded, in_real_time, pieces

RATES = ("8000", "16000", "24000")


def rate_of(client: Client) -> int:
    """From the URL alone, as all of Exotel's newer samples have it."""
    query = client.socket._req.query if client.socket._req is not None else {}
    rate = query.get("sample-rate") or query.get("sample_rate") or "8000"
    return int(rate) if rate in RATES else 8000


class SharedHost(Client):
    """Takes ids in any spelling, and sends them in camelCase, with counters that nobody asked for."""

    name = "Exotel's shared host"
    reads_digits = False

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.rate = 8000
        self._stream_sid = ""
        self._chunk = 0

    async def converse(self) -> None:
        self.rate = rate_of(self)
        while True:
            message = await self.receive()
            event = message.get("event") or message.get("Event")
            if event == "start":
                start = message.get("start") or message
                ids = (message.get("streamSid"), start.get("streamSid"), start.get("stream_sid"))
                self._stream_sid = next((sid for sid in ids if sid), f"stream-{id(self)}")
                self.started = True
                self.begin(self.greeting)
            elif event == "media" and self.started:
                media = message.get("media") or {}
                if media.get("payload") or media.get("Payload"):
                    self.hear(decoded(message))
            elif event in ("stop", "closed") and self.started:
                self.stop = message
                return

    async def say(self, pcm: bytes) -> None:
        share = 0.9 * 8000 / self.rate
        await in_real_time(pieces(at_rate(pcm, self.rate), self.rate * 2 // 10), self._send_chunk, share)

    async def _send_chunk(self, chunk: bytes) -> None:
        self._chunk += 1
        count = str(self._chunk)
        media = {"chunk": self._chunk, "timestamp": str(100 * self._chunk), "sequenceNumber": count}
        await self.send_audio({"event": "media", "streamSid": self._stream_sid, "media": media}, chunk)

    async def clear(self) -> None:
        await self.send({"event": "clear", "streamSid": self._stream_sid})


class EchoBot(Client):
    """Sends back whatever it gets: the whole media object, marks, digits."""

    name = "Exotel's echo bot"
    greets = False
    echoes = True

    digits_echoed = 0

    async def converse(self) -> None:
        while True:
            message = await self.receive()
            match message.get("event"):
                case "start":
                    self.started = True
                case "media":
                    pcm = decoded(message)
                    self.hear(pcm)
                    await self.send_audio(message | {"media": dict(message["media"])}, pcm)
                case "mark":
                    self.marks_back.append(message["mark"]["name"])
                    await self.send_mark(message)
                case "dtmf":
                    self.digits.append(message["dtmf"]["digit"])
                    self.digits_echoed += 1
                    await self.send(message)
                case "stop":
                    self.stop = message
                    return

    def ignored(self) -> dict[str, int]:
        return {"dtmf_off": self.digits_echoed} if self.digits_echoed else {}


class Demo2021(Client):
    """Plays what it has collected, with long sleeps between; takes the stream's id from the first media message."""

    name = "Exotel's demo of 2021"
    greets = False
    echoes = True
    reads_digits = False

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._collected = bytearray()

    async def converse(self) -> None:
        playing = False
        while True:
            message = await self.receive()
            match message["event"]:
                case "start":
                    self.started = True
                case "media":
                    pcm = decoded(message)
                    self.hear(pcm)
                    self._collected += pcm
                    if not playing:
                        playing = True
                        self.background(self._play_back(message["stream_sid"]), "plays back")
                case "stop":
                    self.stop = message
                    return

    async def _play_back(self, stream_sid: str) -> None:
        while True:
            pcm = bytes(self._collected)
            self._collected.clear()
            await asyncio.sleep(0.25)
            if pcm:
                await self.send_audio({"event": "media", "stream_sid": stream_sid, "media": {}}, pcm)
            await asyncio.sleep(0.20)
