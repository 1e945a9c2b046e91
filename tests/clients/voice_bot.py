"""AI-voice-bot: Basic auth, a lead of 0.8 s, and a hang-up that waits for its last mark."""

from __future__ import annotations

import asyncio
import base64
from typing import Any, ClassVar

from tests.clients.base import Client, Message, at_rate, padded, pieces

CHUNK_BYTES = 3200
LEAD_SECONDS = 0.8
START_SECONDS = 20.0
CREDENTIALS = "voice-key:voice-token"


class VoiceBot(Client):
    name = "AI-voice-bot"
    hang_up_reason = "app_closed"
    spec: ClassVar[dict[str, Any]] = {"credentials": CREDENTIALS}

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._stream_sid = ""
        self._rate = 8000
        self._utterances = 0
        self._playout = 0.0
        self._awaiting = ""
        self._hang_up_mark = ""

    async def converse(self) -> None:
        header = self.socket._req.headers.get("Authorization", "") if self.socket._req is not None else ""
        if header != "Basic " + base64.b64encode(CREDENTIALS.encode()).decode():
            self.died = "not authorised"
            await self.socket.close(code=4401)
            return
        async with asyncio.timeout(START_SECONDS):
            await self._await_start()
        self.begin(self.greeting)
        while True:
            message = await self.receive()
            match message.get("event"):
                case "media":
                    self.hear(base64.b64decode((message.get("media") or {}).get("payload") or ""))
                case "mark":
                    if self._mark((message.get("mark") or {}).get("name") or ""):
                        return
                case "dtmf":
                    self.digits.append((message.get("dtmf") or {}).get("digit"))
                case "stop":
                    self.stop = message
                    return

    async def _await_start(self) -> None:
        while not self.started:
            message = await self.receive()
            if message.get("event") != "start":
                continue
            start = message.get("start") or {}
            self._stream_sid = message.get("stream_sid") or start.get("stream_sid")
            try:
                self._rate = int((start.get("media_format") or {}).get("sample_rate") or 8000)
            except ValueError:
                self._rate = 8000
            self.started = True

    def _mark(self, name: str) -> bool:
        """Whether the call is over: the caller has heard the last word."""
        self.marks_back.append(name)
        if name in self.cleared:
            return False
        if name == self._awaiting:
            self._awaiting = ""
        return bool(name) and name == self._hang_up_mark

    async def say(self, pcm: bytes) -> None:
        loop = asyncio.get_running_loop()
        for chunk in pieces(at_rate(pcm, self._rate), CHUNK_BYTES):
            now = loop.time()
            self._playout = max(self._playout, now) + len(chunk) / (2 * self._rate)
            await asyncio.sleep(max(0.0, self._playout - now - LEAD_SECONDS))
            await self.send_audio(self._message("media", {"media": {}}), padded(chunk))
        self._utterances += 1
        self._awaiting = name = f"utt-{self._utterances}"
        await self.send_mark(self._message("mark", {"mark": {"name": name}}))

    async def clear(self) -> None:
        self._playout = 0.0
        self._awaiting = ""
        await self.send(self._message("clear", {}))

    async def hang_up(self) -> None:
        self._hang_up_mark = f"utt-{self._utterances + 1}"
        await self.say(self.greeting[:CHUNK_BYTES])  # goodbye

    def _message(self, event: str, body: Message) -> Message:
        return {"event": event, "stream_sid": self._stream_sid} | body

    def marks_problem(self) -> str:
        return f"still waits for {self._awaiting}" if self._awaiting else ""
