"""A voice bot without a mind: it greets, listens, answers when the caller has stopped, and yields when interrupted.

    python -m tools.apps.conversation --listen 127.0.0.1:19301 --sounds /usr/share/asterisk/sounds/en_US_f_Allison

It works as real bots do. A turn is sent in one burst of 3,200-byte messages, with a mark behind it; the bot is speaking
until that mark comes back. Speech is told by its energy, over audio time (not over arrival time). A caller who speaks
while the bot does is answered with `clear`. A digit is read back; `#` ends the call: goodbye, its mark, and close.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tools.apps.service import CallSocket, Conversation, Message, arguments, main
from tools.audio.pcm import Pcm
from tools.audio.speech import SoundError, prompt, speech

log = logging.getLogger("app")

RATE = 8000
CHUNK_BYTES = 3200
SPEECH_RMS = 400
"""About -38 dBFS: well above line noise, well below a voice."""
SPEECH_MS = 60
"""So much of it makes speech: shorter is a click."""
QUIET_MS = 500
"""So much quiet means that the caller has finished."""
ECHO_SPARE_SECONDS = 10.0
"""How long beyond its length the goodbye may take to be played before the bot closes all the same."""

GREETING = ("hello-world", "demo-enterkeywords")
REPLIES = ("queue-thankyou", "demo-moreinfo", "tt-weasels", "tt-allbusy")
GOODBYE = ("vm-goodbye",)
KEYS = {**{digit: f"digits/{digit}" for digit in "0123456789"}, "*": "digits/star"}


@dataclass(frozen=True, slots=True)
class Turn:
    """Something to say, ready to be sent."""

    text: str
    """Names of the prompts."""
    chunks: tuple[str, ...]
    """base64, up to `CHUNK_BYTES` each."""
    size: int

    @classmethod
    def of(cls, folder: Path, *names: str) -> Turn:
        """Load prompts. Raises SoundError when one is missing."""
        return cls.spoken("+".join(names), speech(folder, *names))

    @classmethod
    def spoken(cls, text: str, samples: Pcm) -> Turn:
        """From PCM16 at 8 kHz."""
        pcm = samples.astype("<i2").tobytes()
        chunks = (pcm[at : at + CHUNK_BYTES] for at in range(0, len(pcm), CHUNK_BYTES))
        return cls(text, tuple(base64.b64encode(chunk).decode() for chunk in chunks), len(pcm))

    @property
    def seconds(self) -> float:
        """How long it takes to say."""
        return self.size / 2 / RATE


@dataclass(frozen=True, slots=True)
class Script:
    """Everything the bot can say, in memory."""

    greeting: Turn
    replies: tuple[Turn, ...]
    goodbye: Turn
    keys: dict[str, Turn]

    @classmethod
    def load(cls, folder: Path, greeting: Sequence[str] = GREETING, replies: Sequence[str] = REPLIES) -> Script:
        """From a sounds folder. Raises SoundError when a prompt is missing."""
        return cls(
            greeting=Turn.of(folder, *greeting),
            replies=tuple(Turn.of(folder, name) for name in replies),
            goodbye=Turn.of(folder, *GOODBYE),
            keys={key: Turn.spoken(name, prompt(folder, name)) for key, name in KEYS.items()},
        )


class Ears:
    """Tells speech from quiet, over audio time."""

    def __init__(self) -> None:
        self.speaking = False
        self._loud_ms = 0.0
        self._quiet_ms = 0.0

    def hear(self, samples: Pcm) -> str | None:
        """Take the next samples; `start` or `stop` when that is what they bring."""
        ms = len(samples) * 1000 / RATE
        loud = len(samples) > 0 and float(np.sqrt(np.mean(np.square(samples.astype(np.float32))))) >= SPEECH_RMS
        self._loud_ms = self._loud_ms + ms if loud else 0.0
        self._quiet_ms = 0.0 if loud else self._quiet_ms + ms
        if not self.speaking and self._loud_ms >= SPEECH_MS:
            self.speaking = True
            return "start"
        if self.speaking and self._quiet_ms >= QUIET_MS:
            self.speaking = False
            return "stop"
        return None


class Bot:
    """One call."""

    def __init__(self, call: CallSocket, script: Script) -> None:
        self._call = call
        self._script = script
        self._replies = itertools.cycle(script.replies)
        self._ears = Ears()
        self._awaited: str | None = None
        """Mark of the turn that is being played; None while the bot is silent."""
        self._leaving = False
        self._farewell: asyncio.Task[None] | None = None

    async def talk(self) -> None:
        """Carry the call to its end."""
        try:
            async for message in self._call.messages():
                match message["event"]:
                    case "start":
                        if not await self._start(message):
                            return
                    case "media" if not self._leaving:
                        await self._listen(message)
                    case "dtmf" if not self._leaving:
                        await self._key(message["dtmf"]["digit"])
                    case "mark" if message["mark"]["name"] == self._awaited:
                        self._awaited = None
                        if self._leaving:
                            await self._call.close("said goodbye")
                            return
                    case "stop":
                        return
        finally:
            if self._farewell is not None:
                self._farewell.cancel()
                await asyncio.gather(self._farewell, return_exceptions=True)

    async def _start(self, message: Message) -> bool:
        rate = str(message["start"]["media_format"]["sample_rate"])
        if rate != str(RATE):
            log.error("call %s: %s Hz: this bot speaks 8000", self._call.stats.call_sid, rate)
            await self._call.close("wrong sample rate", 1003)
            return False
        await self._say(self._script.greeting)
        return True

    async def _say(self, turn: Turn) -> None:
        stats = self._call.stats
        stats.turns += 1
        mark = f"turn-{stats.turns}"
        self._awaited = mark
        self._call.event("turn", number=stats.turns, says=turn.text, seconds=turn.seconds)
        for chunk in turn.chunks:
            await self._call.send_media(chunk)
        await self._call.send_mark(mark)

    async def _hush(self) -> None:
        if self._awaited is not None:
            self._awaited = None
            await self._call.send_clear()

    async def _listen(self, message: Message) -> None:
        heard = self._ears.hear(np.frombuffer(base64.b64decode(message["media"]["payload"]), dtype="<i2"))
        if heard == "start":
            self._call.event("speech_start", while_speaking=self._awaited is not None)
            if self._awaited is not None:
                self._call.stats.barge_ins += 1
                await self._hush()
        elif heard == "stop":
            self._call.event("speech_stop")
            await self._say(next(self._replies))

    async def _key(self, digit: str) -> None:
        if digit == "#":
            await self._hush()
            self._leaving = True
            await self._say(self._script.goodbye)
            self._farewell = asyncio.create_task(self._leave_anyway(), name="farewell")
        elif digit in self._script.keys:
            await self._hush()
            await self._say(self._script.keys[digit])

    async def _leave_anyway(self) -> None:
        # The mark may never come back: nobody should stay on the line for that.
        await asyncio.sleep(self._script.goodbye.seconds + ECHO_SPARE_SECONDS)
        await self._call.close("the goodbye's mark did not come back")


def conversation(script: Script) -> Conversation:
    """The application, for any number of calls at once."""

    async def carry(call: CallSocket) -> None:
        await Bot(call, script).talk()

    return carry


if __name__ == "__main__":
    parser = arguments("Converses with callers, by recorded prompts.", "127.0.0.1:19301")
    parser.add_argument(
        "--sounds", type=Path, required=True, metavar="DIR", help="a language folder of Asterisk's sounds"
    )
    parser.add_argument(
        "--greeting", nargs="+", default=GREETING, metavar="PROMPT", help="prompts that make the greeting"
    )
    parser.add_argument("--replies", nargs="+", default=REPLIES, metavar="PROMPT", help="answers, used in turn")
    options = parser.parse_args()
    try:
        loaded = Script.load(options.sounds, options.greeting, options.replies)
    except SoundError as error:
        raise SystemExit(f"--sounds: {error}") from error
    main(conversation(loaded), options)
