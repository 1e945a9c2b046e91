"""vocode: a queue of what it said and a queue of marks, paired one to one, for ever."""

from __future__ import annotations

import itertools
from collections import deque
from typing import Any

from tests.clients.base import BYTES_PER_SECOND, Client, Ulaw, decoded, pieces

CHUNK_BYTES = BYTES_PER_SECOND


class Vocode(Client):
    name = "vocode"
    reads_digits = False
    sid_key = "stream_sid"

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._sid = ""
        self._ids = itertools.count()
        self._unprocessed: deque[str] = deque()
        self.out_of_step = 0
        """Marks that were paired with another chunk than their own."""

    async def converse(self) -> None:
        while not self.started:
            message = await self.receive()
            if message["event"] == "start":
                self._sid = message["start"][self.sid_key]
                self.started = True
        self.begin(self.greeting)
        while True:
            message = await self.receive()
            if message["event"] == "media":
                self.hear(decoded(message))
            elif message["event"] == "mark":
                self._mark(message["mark"]["name"])
            elif message["event"] == "stop":
                self.stop = message
                await self.socket.close(code=1000)
                return

    def _mark(self, name: str) -> None:
        self.marks_back.append(name)
        self.out_of_step += not self._unprocessed or self._unprocessed.popleft() != name

    async def say(self, pcm: bytes) -> None:
        for chunk in pieces(pcm, CHUNK_BYTES):
            name = str(next(self._ids))
            self._unprocessed.append(name)
            await self.send_audio({"event": "media", self.sid_key: self._sid, "media": {}}, chunk)
            await self.send_mark({"event": "mark", self.sid_key: self._sid, "mark": {"name": name}})

    async def clear(self) -> None:
        await self.send({"event": "clear", self.sid_key: self._sid})

    def marks_problem(self) -> str:
        if self.out_of_step:
            return f"{self.out_of_step} marks out of step"
        return f"{len(self._unprocessed)} chunks without their mark" if self._unprocessed else ""


class VocodeTwilio(Ulaw, Vocode):
    name = "vocode (Twilio)"
    dialect = "twilio"
    sid_key = "streamSid"
