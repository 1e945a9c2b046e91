"""Both neighbours of a media worker in one process: Asterisk's AudioSocket channels, many and cheap, and their ticker.

A channel sends a marked μ-law frame every 20 ms and recognises it when the application's echo of it is played. Frames
are built beforehand and compared as bytes: whoever measures 500 calls has 20 µs for a frame, there and back.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from array import array
from dataclasses import dataclass, field
from typing import cast

from audiosocket import wire
from tools.bench import marked

SLOTS = 20
SLOT_SECONDS = 0.001
CALLS_PER_SECOND = 200
"""How fast calls are set up."""
CONNECT_SECONDS = 10.0

_HEADER_ULAW = bytes((wire.KIND_AUDIO, 0, marked.FRAME_SAMPLES))
_FRAME_BYTES = len(wire.SILENCE_FRAME)
_WHICH_AT = wire.HEADER_BYTES + 2 * marked.WHOSE_SAMPLES
_FILL_AT = wire.HEADER_BYTES + 2 * marked.TAG_SAMPLES


@dataclass(slots=True)
class Seen:
    """What came back on all channels since the generator's `watch`. Times are `time.perf_counter` seconds."""

    arrived: array[float] = field(default_factory=lambda: array("d"))
    """When each marked frame came back."""
    round_trips: array[float] = field(default_factory=lambda: array("d"))
    """Seconds from its sending to then, in the same order."""
    gaps: array[float] = field(default_factory=lambda: array("d"))
    """Seconds between two frames on one channel, silence included."""
    silence: int = 0
    altered: int = 0
    """Frames that are neither silence nor a frame that was sent: mixed, cut, or another call's."""
    reordered: int = 0
    sent: int = 0
    """Frames sent since `watch`."""
    returned: int = 0
    """Of these, how many came back."""
    closed: int = 0
    """Channels that the worker ended."""


class Channel(asyncio.Protocol):
    """One AudioSocket connection."""

    def __init__(self, number: int, seen: Seen) -> None:
        self.leg_uuid = uuid.uuid4()
        self.seen = seen
        self.sent = 0
        self.watched_from = 0
        self.open = False
        self._sends = _HEADER_ULAW + marked.ulaw_whose(number)
        self._expects = wire.AUDIO_HEADER + marked.pcm_whose(number)
        self._sent_at = array("d", bytes(8 * marked.NUMBERS))
        self._highest = -1
        self._highest_at = 0.0
        self._last_at = 0.0
        self._rest = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(wire.encode(wire.KIND_UUID, self.leg_uuid.bytes))
        self.open = True

    def connection_lost(self, exc: Exception | None) -> None:
        if self.open:
            self.seen.closed += 1
        self.open = False

    def send(self) -> None:
        """The next frame."""
        if not self.open:
            return
        assert self._transport is not None
        which = self.sent % marked.NUMBERS
        self._sent_at[which] = time.perf_counter()
        self._transport.write(self._sends + marked.ULAW_WHICH[which])
        self.sent += 1

    def position(self) -> tuple[float, int]:
        """When the latest marked frame came back, and which it was; -1: none yet."""
        return self._highest_at, self._highest

    def hang_up(self) -> None:
        """Close the connection, as Asterisk does at the end of a call."""
        self.open = False
        if self._transport is not None:
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        if len(data) == _FRAME_BYTES and not self._rest:
            self._frame(data, now)
            return
        data = self._rest + data
        at = 0
        while len(data) - at >= wire.HEADER_BYTES:
            end = at + wire.HEADER_BYTES + (data[at + 1] << 8 | data[at + 2])
            if end > len(data):
                break
            if data[at] == wire.KIND_AUDIO:
                self._frame(data[at:end], now)
            at = end
        self._rest = data[at:]

    def _frame(self, frame: bytes, now: float) -> None:
        seen = self.seen
        if self._last_at:
            seen.gaps.append(now - self._last_at)
        self._last_at = now
        if not frame.startswith(self._expects):
            if frame == wire.SILENCE_FRAME:
                seen.silence += 1
            else:
                seen.altered += 1
            return
        which = marked.NUMBER_OF_PCM.get(frame[_WHICH_AT:_FILL_AT], -1)
        if which < 0 or not frame.endswith(marked.PCM_FILL):
            seen.altered += 1
            return
        # Numbers wrap: the one that lies nearest to the highest so far.
        half = marked.NUMBERS // 2
        number = self._highest + (which - self._highest + half) % marked.NUMBERS - half
        if number > self._highest:
            self._highest, self._highest_at = number, now
        else:
            seen.reordered += 1
        if number >= self.watched_from:
            seen.returned += 1
        seen.arrived.append(now)
        seen.round_trips.append(now - self._sent_at[which])


class Generator:
    """`calls` channels against the worker at `port`, spread evenly over the 20 ms."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._loop = asyncio.get_running_loop()
        self._began = 0.0
        self._done = 0
        self._timer: asyncio.TimerHandle | None = None
        self.channels: list[Channel] = []
        self.seen = Seen()

    async def start(self, calls: int) -> None:
        """Connect the channels and let them speak. Raises OSError when the worker does not take them."""
        self._began = time.perf_counter()
        self._wake()
        due = time.monotonic()
        for number in range(calls):
            due += 1 / CALLS_PER_SECOND
            channel = Channel(number, self.seen)
            async with asyncio.timeout(CONNECT_SECONDS):
                await self._loop.create_connection(lambda made=channel: made, "127.0.0.1", self._port)  # type: ignore[misc]
            self.channels.append(channel)
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    def watch(self) -> Seen:
        """Forget what was seen so far; what is returned fills from now on."""
        self.seen = Seen()
        for channel in self.channels:
            channel.seen = self.seen
            channel.watched_from = channel.sent
        return self.seen

    def quieten(self) -> None:
        """Send no more, keep listening: what is under way comes back."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.seen.sent = sum(channel.sent - channel.watched_from for channel in self.channels)

    def stop(self) -> None:
        """Hang up."""
        self.quieten()
        for channel in self.channels:
            channel.hang_up()

    def _wake(self) -> None:
        reached = int((time.perf_counter() - self._began) / SLOT_SECONDS)
        # Who was held up sends all that is due, as a carrier does.
        for slot in range(self._done, reached):
            for channel in self.channels[slot % SLOTS :: SLOTS]:
                channel.send()
        self._done = reached
        self._timer = self._loop.call_later(SLOT_SECONDS, self._wake)
