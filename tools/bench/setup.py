"""From the INVITE to the first audio each way, and from the application's `clear` to silence at the telephone."""

from __future__ import annotations

import asyncio
import time
from base64 import b64decode, b64encode
from dataclasses import dataclass
from typing import Any

import numpy as np

from ari_app.settings import RouteSettings
from audiosocket.errors import ConfigError
from audiosocket.loadtest.applications import Stream, serve
from tools.audio.tones import tone
from tools.bench import live
from tools.bench.options import Options
from tools.bench.report import Outcome, Table, Value, spread
from tools.process import ProcessFailed
from tools.sip.rtp_peer import RtpTicker
from tools.sip.sipp import Call, Carrier

CALLS = 40
CALLS_MAX = 500
LOUD = 500
GREETING_SECONDS = 5
BARGE_IN_SECONDS = 0.6
"""After the first audio, when the application clears its greeting."""
AFTER_CLEAR_SECONDS = 0.3
GIVE_UP_SECONDS = 10
MODES: tuple[str, ...] = tuple(RouteSettings.model_fields["answer"].annotation.__args__)  # type: ignore[union-attr]


class Greeter(Stream):
    """Greets at once, in one burst, and notes when it first hears something."""

    def __init__(self) -> None:
        super().__init__()
        self.heard_at = 0.0
        self.cleared_at = 0.0

    def started(self) -> None:
        self.say(b64encode(tone(700, GREETING_SECONDS).astype("<i2").tobytes()))

    def media(self, payload: bytes) -> None:
        if not self.heard_at and np.abs(np.frombuffer(b64decode(payload), "<i2").astype(int)).max(initial=0) > LOUD:
            self.heard_at = time.monotonic()

    def clear(self) -> None:
        """Interrupts the greeting."""
        self.cleared_at = time.monotonic()
        self.send(b'{"event":"clear"}')


@dataclass(frozen=True, slots=True)
class Times:
    """Of one call, in ms."""

    answered: float
    app_heard: float
    """From the INVITE to the first application audio at the telephone."""
    caller_heard: float
    """From the INVITE to the first caller audio at the application."""
    barge_in: float
    """From `clear` being sent to the last audible packet at the telephone."""


def limit_seconds(options: Options) -> float:
    """The longest that it may take."""
    return 120 + 12 * len(MODES) * (options.calls or (CALLS,))[0]


async def run(options: Options) -> Outcome:
    """One call after the other, for each way to answer."""
    count = (options.calls or (CALLS,))[0]
    if count > CALLS_MAX:
        raise ConfigError(f"--calls {count}: {CALLS_MAX} at most, they are placed one after the other")
    streams: list[Greeter] = []

    def make() -> Greeter:
        streams.append(Greeter())
        return streams[-1]

    rows: list[tuple[Value, ...]] = []
    async with serve(make) as url:
        numbers = {mode: f"+91800000002{index}" for index, mode in enumerate(MODES)}
        changes: dict[str, Any] = {
            "applications": {"greeter": {"url": url}},
            "routes": [{"did": number, "application": "greeter", "answer": mode} for mode, number in numbers.items()],
        }
        async with live.live_system(options.folder / "setup", 4, changes) as system, RtpTicker() as ticker:
            sip = system.config.asterisk.sip_listen
            async with Carrier(sip, live.CARRIER, options.folder / "setup" / "carrier", ticker) as carrier:
                for mode, number in numbers.items():
                    seen = [await _one_call(carrier, number, streams, index) for index in range(count)]
                    for name in Times.__dataclass_fields__:
                        values = [getattr(times, name) for times in seen]
                        rows.append((mode, _NAMES[name], *spread(values, 50, 95, 100)))
    notes = [
        "caller audio counts from the INVITE as well: a telephone that speaks from its first packet on",
        "audio is audible from a peak of 500 on; packets are 20 ms, and a cut may fall anywhere in one",
    ]
    what = f"{count} calls for each way to answer, one after the other; the application greets at once"
    return Outcome(what, [Table("times", ("answer", "ms from ... to ...", "p50", "p95", "max"), rows)], notes)


_NAMES = {
    "answered": "INVITE to 200",
    "app_heard": "INVITE to the application's first audio at the telephone",
    "caller_heard": "INVITE to the caller's first audio at the application",
    "barge_in": "clear to the last audible packet at the telephone",
}


async def _one_call(carrier: Carrier, number: str, streams: list[Greeter], index: int) -> Times:
    before = len(streams)
    call = carrier.call(number)
    call.peer.play(tone(425, 1))
    await call.answered()
    first = await _until(lambda: _loud(call)[:1], "application's audio")
    await _until(lambda: len(streams) > before and streams[-1].heard_at, "caller's audio")
    stream = streams[-1]
    # The ticks of a call follow from its own beginning: a clear is to fall anywhere between two.
    await asyncio.sleep(BARGE_IN_SECONDS + index * 7 % 20 / 1000)
    stream.clear()
    await asyncio.sleep(AFTER_CLEAR_SECONDS)
    last = _loud(call)[-1]
    await call.hang_up()
    invited = call.invited_at
    if invited is None or call.answered_at is None:
        raise ProcessFailed("SIPp did not say when it sent the INVITE")
    return Times(
        answered=(call.answered_at - invited) * 1000,
        app_heard=(first[0] - invited) * 1000,
        caller_heard=(stream.heard_at - invited) * 1000,
        barge_in=(last - stream.cleared_at) * 1000,
    )


def _loud(call: Call) -> list[float]:
    """When the packets arrived in which something is heard."""
    codec = call.peer.codec
    return [
        packet.arrived_at
        for packet in call.peer.audio()
        if np.abs(codec.decode(packet.payload).astype(int)).max(initial=0) > LOUD
    ]


async def _until(condition: Any, what: str) -> Any:
    deadline = time.monotonic() + GIVE_UP_SECONDS
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        await asyncio.sleep(0.02)
    raise ProcessFailed(f"no {what} within {GIVE_UP_SECONDS} s")
