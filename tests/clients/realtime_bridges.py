"""Exotel's bridges to speech-to-speech models: OpenAI, ElevenLabs, Gemini."""

from __future__ import annotations

import time
from typing import Any

from tests.clients.base import Client, Message, at_rate, decoded, in_real_time, pieces
from tests.clients.exotel_samples import RATES, rate_of
from tools.audio.tones import tone

FRAME_BYTES = 3200


class OpenAiBridge(Client):
    """Keeps everything under the id that stands on top of each message, and sends a tone before there is one."""

    name = "OpenAI bridge"
    reads_digits = False

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._sid = "unknown"
        self._rate = 8000
        self._connected: set[str] = set()
        self._number = 0

    async def converse(self) -> None:
        self._rate = rate_of(self)
        while True:
            message = await self.receive()
            self._sid = message.get("streamSid") or message.get("stream_sid") or self._sid
            match message.get("event", ""):
                case "connected":
                    await self._send_frame(tone(440, 0.1, self._rate, -30).astype("<i2").tobytes())
                case "start" if self._sid != "unknown":
                    self._connected.add(self._sid)
                    self.started = True
                    self.begin(self.greeting)
                case "media" if self._sid in self._connected:
                    payload = message.get("media", {}).get("payload", "")
                    if payload:
                        self.hear(decoded(message))
                case "mark":
                    mark = message.get("mark", {})
                    self.marks_back.append(mark.get("name"))
                    mark.get("timestamp")
                case "stop":
                    self.stop = message
                    return

    async def say(self, pcm: bytes) -> None:
        for frame in pieces(at_rate(pcm, self._rate), FRAME_BYTES):
            await self._send_frame(frame)
        self._number += 1
        mark = {"name": f"response_{self._number}", "timestamp": int(time.time() * 1000)}
        await self.send_mark({"event": "mark", "streamSid": self._sid, "mark": mark})

    async def _send_frame(self, frame: bytes) -> None:
        now = time.time()
        media = {"timestamp": str(int(now * 1000)), "sequenceNumber": str(int(now))}
        await self.send_audio({"event": "media", "streamSid": self._sid, "media": media}, frame)

    async def clear(self) -> None:
        await self.send({"event": "clear", "streamSid": self._sid})

    def ignored(self) -> dict[str, int]:
        return {"wrong_stream_sid": 1}  # the tone


class ElevenLabsBridge(Client):
    """Has a default for everything, speaks at the rate that the start message tells, and closes the socket to go on in
    the flow."""

    name = "ElevenLabs bridge"
    hang_up_reason = "app_closed"

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._sid = ""
        self._began = 0.0
        self._rate = 8000
        self._sequence = 0
        self.variables: dict[str, str] = {}
        """What the agent's prompt may use."""

    async def converse(self) -> None:
        while True:
            message = await self.receive()
            match message.get("event"):
                case "start":
                    self._start(message)
                    self.begin(self.greeting)
                case "media" if self.started and message.get("media", {}).get("payload"):
                    self.hear(decoded(message))
                case "dtmf":
                    self.digits.append(message.get("dtmf", {}).get("digit"))
                case "mark":
                    self.marks_back.append(message.get("mark", {}).get("name", "N/A"))
                case "stop":
                    self.stop = message
                    return

    def _start(self, message: Message) -> None:
        start = message.get("start", {})
        self._sid = message.get("stream_sid") or start.get("stream_sid")
        media_format = start.get("media_format", {})
        rate = str(media_format.get("sample_rate", 8000)).removesuffix("Hz").strip()
        self._rate = int(rate) if rate in RATES else 8000
        self.variables = {"caller_number": start.get("from", ""), "called_number": start.get("to", "")}
        self.variables |= {"call_sid": start.get("call_sid", "")} | start.get("custom_parameters", {})
        self._began = time.monotonic()
        self.started = True

    async def say(self, pcm: bytes) -> None:
        share = 0.9 * 8000 / self._rate
        await in_real_time(pieces(at_rate(pcm, self._rate), self._rate * 2 // 10), self._send_chunk, share)
        self._sequence += 1
        mark = {"name": f"mark_{self._sequence}"}
        await self.send_mark(
            {"event": "mark", "sequence_number": self._sequence, "stream_sid": self._sid, "mark": mark}
        )

    async def _send_chunk(self, chunk: bytes) -> None:
        self._sequence += 1
        elapsed = int((time.monotonic() - self._began) * 1000)
        media = {"timestamp": str(elapsed), "sequenceNumber": str(self._sequence)}
        await self.send_audio({"event": "media", "streamSid": self._sid, "media": media}, chunk)

    async def clear(self) -> None:
        await self.send({"event": "clear", "stream_sid": self._sid})


class GeminiBridge(Client):
    """Speaks under a stream id of its own making, with a mark of one and the same name after every piece."""

    name = "Gemini bridge"
    clears = False
    reads_digits = False
    path = "/bot"

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._sid = f"node-1-{int(time.time())}"
        self._rate = 8000
        self._sequence = 0

    async def converse(self) -> None:
        if self.socket._req is None or self.socket._req.path != self.path:
            self.died = "another path"
            return
        self._rate = rate_of(self)
        while True:
            message = await self.receive()
            match message.get("event"):
                case "start":
                    self.started = True
                    self.begin(self.greeting)
                case "media":
                    self.hear(decoded(message))
                case "mark":
                    self.marks_back.append(message["mark"]["name"])
                    if message["mark"]["name"] in ("clear", "interrupt"):
                        self.died = "took a mark for an interruption"
                        return
                case "stop":
                    self.stop = message
                    return

    async def say(self, pcm: bytes) -> None:
        for frame in pieces(at_rate(pcm, self._rate), FRAME_BYTES):
            await self.send_audio(self._message("media", {}), frame)
            await self.send_mark(self._message("mark", {"name": "playback_chunk"}))

    def _message(self, event: str, body: Message) -> Message:
        self._sequence += 1
        return {"event": event, "sequence_number": str(self._sequence), "stream_sid": self._sid, event: body}

    def ignored(self) -> dict[str, int]:
        return {"wrong_stream_sid": self.messages_sent}
