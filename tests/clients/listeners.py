"""Applications that only listen: rtaafin, and a validator that forgives nothing."""

from __future__ import annotations

import base64
import binascii
import json
import re
from typing import Any

from tests.clients.base import Client, Message, decoded
from tests.media import call_spec

BASE64 = re.compile(r"[A-Za-z0-9+/]*={0,2}")
JAVASCRIPT_INT = re.compile(r"\s*\d+")
LOOKS_LIKE_JSON = b"{["


class Rtaafin(Client):
    """Drops whatever is not strictly base64, or begins like JSON once it is decoded."""

    name = "rtaafin"
    greets = False
    reads_digits = False

    async def converse(self) -> None:
        while True:
            message = await self.receive()
            match message["event"]:
                case "start":
                    self._start(message)
                case "media" if self.started:
                    payload = message["media"].get("payload")
                    if isinstance(payload, str) and payload and BASE64.fullmatch(payload):
                        pcm = decoded(message)
                        if pcm and pcm[0] not in LOOKS_LIKE_JSON:
                            self.hear(pcm)
                case "stop":
                    self.stop = message

    def _start(self, message: Message) -> None:
        """Without these it registers no call, and then hears nothing."""
        start = message["start"]
        rate = JAVASCRIPT_INT.match(str(start["media_format"]["sample_rate"]))
        if isinstance(message.get("stream_sid"), str) and start.get("call_sid") and rate and int(rate[0]) == 8000:
            self.started = True


class StrictValidator(Client):
    """Raises at the first message that is not exactly as it should be."""

    name = "strict validator"
    greets = False
    reads_digits = False

    START_KEYS = frozenset(("stream_sid", "call_sid", "account_sid", "from", "to", "custom_parameters", "media_format"))
    ENCODINGS = ("raw", "base64")
    MAX_BYTES = 100_000
    MAX_NUMBER = 2**31 - 1
    MAX_PARAMETERS = 3
    MAX_MS = 7_200_000

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        expected = call_spec()
        self._ids = {"call_sid": expected.call_sid, "account_sid": expected.account_sid}
        self._stream_sid = expected.stream_sid
        self._sequence = 0
        self._chunk = 0

    async def converse(self) -> None:
        self._require(await self.receive() == {"event": "connected"}, "connected first, and nothing else in it")
        self._start(await self.receive())
        self.started = True
        while self.stop is None:
            message = await self.receive()
            self._envelope(message)
            if message["event"] == "media":
                self.hear(self._audio(message["media"]))
            elif message["event"] == "stop":
                self._require(self._ids.items() <= message["stop"].items(), "stop with this call's ids")
                self.stop = message

    def _start(self, message: Message) -> None:
        self._require(message["event"] == "start", "start second")
        self._envelope(message)
        start = message["start"]
        self._require(set(start) <= self.START_KEYS, f"unknown keys in start: {set(start) - self.START_KEYS}")
        expected = self._ids | {"stream_sid": self._stream_sid}
        self._require(expected.items() <= start.items(), "start with this call's ids")
        parameters = start.get("custom_parameters", {})
        self._require(isinstance(parameters, dict) and len(parameters) <= self.MAX_PARAMETERS, "three parameters")
        media_format = start["media_format"]
        self._require(media_format["encoding"] in self.ENCODINGS, f"encoding {media_format['encoding']}")
        self._require(self._number(media_format["sample_rate"]) == 8000, "a rate")

    def _envelope(self, message: Message) -> None:
        self._require(message["stream_sid"] == self._stream_sid, "this stream's id on top")
        sequence = self._number(message["sequence_number"])
        self._require(sequence > self._sequence, f"sequence {sequence} after {self._sequence}")
        self._sequence = sequence

    def _audio(self, media: Message) -> bytes:
        chunk = self._number(media["chunk"])
        self._require(chunk > self._chunk, f"chunk {chunk} after {self._chunk}")
        self._chunk = chunk
        self._require(re.fullmatch(r"\d+", str(media["timestamp"])) is not None, "a timestamp of digits")
        try:
            pcm = base64.b64decode(media["payload"], validate=True)
        except binascii.Error as error:
            raise ValueError("payload is no base64") from error
        self._require(0 < len(pcm) <= self.MAX_BYTES and len(pcm) % 2 == 0, f"{len(pcm)} bytes of audio")
        self._require(int(media["timestamp"]) + len(pcm) / 16 <= self.MAX_MS, "no more than two hours")
        return pcm

    def _number(self, value: Any) -> int:
        number = int(value)
        self._require(isinstance(value, int | str) and 0 <= number <= self.MAX_NUMBER, json.dumps(value))
        return number

    @staticmethod
    def _require(fulfilled: bool, what: str) -> None:
        if not fulfilled:
            raise ValueError(what)
