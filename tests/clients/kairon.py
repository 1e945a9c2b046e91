"""kairon: 20 ms a message in real time, and nothing is read while the greeting is said."""

from __future__ import annotations

from tests.clients.base import Client, decoded, in_real_time, padded, pieces

FRAME_BYTES = 320


class Kairon(Client):
    name = "kairon"

    _sid = ""
    _utterances = 0
    _rate = 8000
    """Announced: its pace, not its audio, goes by it."""

    async def converse(self) -> None:
        while True:
            message = await self.receive()
            match str(message.get("event", "")).lower():
                case "start" if not self.started:
                    start = message.get("start") or {}
                    self._sid = message.get("stream_sid") or message.get("streamSid") or start.get("stream_sid", "")
                    self._rate = int((start.get("media_format") or {}).get("sample_rate") or 8000)
                    self.started = True
                    await self.say(self.greeting)
                case "media" if (message.get("media") or {}).get("payload"):
                    self.hear(decoded(message))
                case "dtmf" if (message.get("dtmf") or {}).get("digit"):
                    self.digits.append(message["dtmf"]["digit"])
                case "mark":
                    self.marks_back.append((message.get("mark") or {}).get("name"))
                case "stop":
                    self.stop = message  # ends its own side, and reads on until the socket is closed

    async def say(self, pcm: bytes) -> None:
        if not self._sid:
            return
        await in_real_time(pieces(padded(pcm), FRAME_BYTES), self._send_frame, 8000 / self._rate)
        self._utterances += 1
        mark = {"name": f"utt-{self._utterances}"}
        await self.send_mark({"event": "mark", "stream_sid": self._sid, "mark": mark})

    async def _send_frame(self, frame: bytes) -> None:
        await self.send_audio({"event": "media", "stream_sid": self._sid, "media": {}}, frame)

    async def clear(self) -> None:
        await self.send({"event": "clear", "stream_sid": self._sid})
