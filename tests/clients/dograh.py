"""dograh: a gate that wants `connected`, then `start` with both ids, and then pipecat's pipeline behind it."""

from __future__ import annotations

from tests.clients.base import Client, Ulaw, decoded, in_real_time, pieces

CHUNK_BYTES = 640
"""40 ms, pipecat's piece of output."""
KEYS = frozenset("0123456789*#")


class Dograh(Client):
    name = "dograh"
    hang_up_reason = "app_closed"
    sid_key = "stream_sid"

    _stream_sid = ""

    async def converse(self) -> None:
        if (await self.receive()).get("event") != "connected":
            return await self._refuse("expected connected first")
        message = await self.receive()
        start = message.get("start")
        if message.get("event") != "start" or not isinstance(start, dict):
            return await self._refuse("expected start second")
        ids = start | {key: message[key] for key in ("streamSid", "stream_sid") if key in message}
        call_sid = ids.get("callSid") or ids.get("call_sid")
        self._stream_sid = ids.get("streamSid") or ids.get("stream_sid") or ""
        if not call_sid or not self._stream_sid:
            return await self._refuse("no stream and call id")
        self.started = True
        self.begin(self.greeting)
        await self._pipeline()

    async def _refuse(self, why: str) -> None:
        self.died = why
        await self.socket.close(code=4400, message=why.encode())

    async def _pipeline(self) -> None:
        while True:
            message = await self.receive()
            if message["event"] == "media":
                self.hear(decoded(message))
            elif message["event"] == "dtmf" and message["dtmf"]["digit"] in KEYS:
                self.digits.append(message["dtmf"]["digit"])
            elif message["event"] == "stop":
                self.stop = message  # passed over: the end is the socket's

    async def say(self, pcm: bytes) -> None:
        await in_real_time(pieces(pcm, CHUNK_BYTES), self._send_chunk)

    async def _send_chunk(self, chunk: bytes) -> None:
        await self.send_audio({"event": "media", self.sid_key: self._stream_sid, "media": {}}, chunk)

    async def clear(self) -> None:
        await self.send({"event": "clear", self.sid_key: self._stream_sid})


class DograhTwilio(Ulaw, Dograh):
    name = "dograh (Twilio)"
    dialect = "twilio"
    sid_key = "streamSid"
