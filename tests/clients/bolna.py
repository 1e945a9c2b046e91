"""bolna: marks before and after every piece of audio drive its turns; a listener that ends at the first surprise."""

from __future__ import annotations

import uuid
from typing import Any

from tests.clients.base import Client, Ulaw, decoded, pieces

CHUNK_BYTES = 4096
"""No multiple of 320."""
MESSAGES_A_BATCH = 10
"""Meant to be 100 ms: the recogniser gets this many messages at once."""


class Bolna(Client):
    name = "bolna"
    hang_up_reason = "app_closed"
    call_sid_key, stream_sid_key, top_sid_key = "call_sid", "stream_sid", "stream_sid"

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.playing = False
        """What it believes: by its marks alone, and only then may the caller interrupt it."""
        self._stream_sid = ""
        self._waiting: dict[str, str] = {}

    async def converse(self) -> None:
        try:
            await self._listen()
        except (KeyError, TypeError, ValueError) as error:
            # Its listener catches what it chokes on, tells the recogniser that the call is over, and listens no more.
            self.died = f"{type(error).__name__}: {error}"
            await self.until_gone()

    async def _listen(self) -> None:
        batch: list[bytes] = []
        while True:
            message = await self.receive()
            match message["event"]:
                case "start":
                    start = message["start"]
                    self._stream_sid = start[self.stream_sid_key]
                    assert start[self.call_sid_key]
                    self.started = True
                    self.begin(self.greeting)
                case "media":
                    media = message["media"]
                    audio = decoded(message)
                    int(media["timestamp"])
                    if "chunk" in media or media.get("track") == "inbound":
                        batch.append(audio)
                    if len(batch) == MESSAGES_A_BATCH:
                        self.hear(b"".join(batch))
                        batch.clear()
                case "mark":
                    self._mark(message["mark"]["name"])
                case "dtmf":
                    self.digits.append(message["dtmf"]["digit"])
                case "stop":
                    self.stop = message
                    return

    def _mark(self, name: str) -> None:
        self.marks_back.append(name)
        kind = self._waiting.pop(name, "")
        if kind == "before":
            self.playing = True
        elif kind == "last":
            self.playing = False

    async def say(self, pcm: bytes) -> None:
        chunks = pieces(pcm, CHUNK_BYTES)
        for number, chunk in enumerate(chunks, 1):
            await self._send_mark("before")
            await self.send_audio({"event": "media", self.top_sid_key: self._stream_sid, "media": {}}, chunk)
            await self._send_mark("last" if number == len(chunks) else "after")

    async def _send_mark(self, kind: str) -> None:
        name = str(uuid.uuid4())
        self._waiting[name] = kind
        await self.send_mark({"event": "mark", self.top_sid_key: self._stream_sid, "mark": {"name": name}})

    async def clear(self) -> None:
        await self.send({"event": "clear", self.top_sid_key: self._stream_sid})
        self._waiting.clear()  # late echoes find nothing
        self.playing = False

    def marks_problem(self) -> str:
        if self._waiting:
            return f"{len(self._waiting)} marks not back"
        return "it believes that it is still heard" if self.playing else ""


class BolnaTwilio(Ulaw, Bolna):
    name = "bolna (Twilio)"
    dialect = "twilio"
    call_sid_key, stream_sid_key, top_sid_key = "callSid", "streamSid", "streamSid"
