"""Both neighbours of a media worker in one process: Asterisk's AudioSocket channels, many and cheap, and their ticker.

A channel sends a marked frame every 20 ms and recognises it when the application's echo of it is played. Frames are
built beforehand and compared as bytes: whoever measures 500 calls has 20 µs for a frame, there and back.
"""

from __future__ import annotations

import asyncio
import math
import time
import uuid
from array import array
from dataclasses import dataclass, field
from typing import cast

from audiosocket import wire
from audiosocket.g711 import ULAW_SILENCE
from audiosocket.loadtest import marked
from audiosocket.wire import FRAME_MS

SLOTS = 20
SLOT_SECONDS = 0.001
FRAME_SECONDS = FRAME_MS / 1000
CALLS_PER_SECOND = 200
"""How fast calls are set up where nothing else is asked for."""
CONNECT_SECONDS = 10.0

_HEADER_ULAW = bytes((wire.KIND_AUDIO, 0, marked.FRAME_SAMPLES))
_FRAME_BYTES = len(wire.SILENCE_FRAME)
_WHICH_AT = wire.HEADER_BYTES + 2 * marked.WHOSE_SAMPLES
_FILL_AT = wire.HEADER_BYTES + 2 * marked.TAG_SAMPLES
_HALF = marked.NUMBERS // 2


def times() -> array[float]:
    """An empty array of seconds."""
    return array("d")


@dataclass(slots=True)
class Seen:
    """What came back on channels since the generator's `watch`. Times are `time.perf_counter` seconds."""

    arrived: array[float] = field(default_factory=times)
    """When each marked frame came back."""
    round_trips: array[float] = field(default_factory=times)
    """Seconds from its sending to then, in the same order. Of an utterance sent at once: from when it could have been
    played."""
    gaps: array[float] = field(default_factory=times)
    """Seconds between two frames on one channel, silence included."""
    silence: int = 0
    altered: int = 0
    """Frames that are neither silence nor a frame that was sent: mixed, faded, cut, or another call's."""
    reordered: int = 0
    sent: int = 0
    """Frames sent in the time that is watched; known from `shut` or `quieten` on."""
    returned: int = 0
    """Of these, how many came back."""
    closed: int = 0
    """Channels that the worker ended."""

    def take(self) -> tuple[array[float], array[float]]:
        """Round trips and gaps since this was asked last; they are forgotten here, so that hours can be watched."""
        taken = self.round_trips, self.gaps
        self.arrived, self.round_trips, self.gaps = times(), times(), times()
        return taken


class Channel(asyncio.Protocol):
    """One AudioSocket connection: what it sends (`slin`: PCM16 instead of μ-law), and what it gets back."""

    def __init__(
        self, number: int, seen: Seen, *, apart: bool = False, slin: bool = False, speaks: bool = True
    ) -> None:
        self.leg_uuid = uuid.uuid4()
        self.number = number
        self.seen = seen
        self.apart = apart
        self.sent = 0
        self.watched_from, self.watched_until = 0, 1 << 62
        self.open = False
        self.ended_by_worker = False
        self.connected_at = 0.0
        self.first = -1
        """The first frame that came back, by its number; -1: none."""
        self.first_at = 0.0
        self.returned = 0
        self.altered = 0
        self._heard = 0
        self._early, self._early_heard = math.inf, 0
        header, whose = (wire.AUDIO_HEADER, marked.pcm_whose) if slin else (_HEADER_ULAW, marked.ulaw_whose)
        silence = wire.SILENCE_FRAME if slin else _HEADER_ULAW + bytes([ULAW_SILENCE]) * marked.FRAME_SAMPLES
        self._silence = None if speaks else silence
        self._sends = header + whose(number % marked.CALLS_MAX)
        self._which = marked.PCM_WHICH if slin else marked.ULAW_WHICH
        self._expects = wire.AUDIO_HEADER + marked.pcm_whose(number % marked.CALLS_MAX)
        self._sent_at = array("d", bytes(8 * marked.NUMBERS))
        self._highest = -1
        self._highest_at = 0.0
        self._last_at = 0.0
        self._rest = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(wire.encode(wire.KIND_UUID, self.leg_uuid.bytes))
        self.connected_at = time.perf_counter()
        self.open = True

    def connection_lost(self, exc: Exception | None) -> None:
        if self.open:
            self.seen.closed += 1
            self.ended_by_worker = True
        self.open = False

    def send(self) -> None:
        """The next frame."""
        if not self.open:
            return
        assert self._transport is not None
        if self._silence is not None:
            self._transport.write(self._silence)
            return
        which = self.sent % marked.NUMBERS
        self._sent_at[which] = time.perf_counter()
        self._transport.write(self._sends + self._which[which])
        self.sent += 1

    def expect(self, frames: int) -> None:
        """The application says so many frames now, in one go: each could be played 20 ms after the one before it."""
        now = time.perf_counter()
        for frame in range(frames):
            self._sent_at[(self.sent + frame) % marked.NUMBERS] = now + frame * FRAME_SECONDS
        self.sent += frames

    def position(self) -> tuple[float, int]:
        """When the latest marked frame came back, and which it was; -1: none yet."""
        return self._highest_at, self._highest

    def take_earliest(self) -> tuple[float, int] | None:
        """Of the frames of any kind since this was asked last, the one that came earliest for its number: when it
        came, and how many had come then. None: no frame. What holds frames up makes them late, never early, so two of
        these tell the rate at which a channel is played, whatever stood still in between."""
        early, heard = self._early, self._early_heard
        self._early = math.inf
        return (early + heard * FRAME_SECONDS, heard) if heard and early < math.inf else None

    def missing(self) -> int:
        """Frames between the first and the latest that came back which did not, not even altered."""
        return max(0, self._highest - self.first + 1 - self.returned - self.altered) if self.first >= 0 else 0

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
        self._heard += 1
        early = now - self._heard * FRAME_SECONDS
        if early < self._early:
            self._early, self._early_heard = early, self._heard
        if not frame.startswith(self._expects):
            if frame == wire.SILENCE_FRAME:
                seen.silence += 1
            else:
                self._altered()
            return
        which = marked.NUMBER_OF_PCM.get(frame[_WHICH_AT:_FILL_AT], -1)
        if which < 0 or not frame.endswith(marked.PCM_FILL):
            self._altered()
            return
        # Numbers wrap: the one that lies nearest to the highest so far.
        number = self._highest + (which - self._highest + _HALF) % marked.NUMBERS - _HALF
        if number > self._highest:
            if self.first < 0:
                self.first, self.first_at = number, now
            self._highest, self._highest_at = number, now
        else:
            seen.reordered += 1
        self.returned += 1
        if self.watched_from <= number < self.watched_until:
            seen.returned += 1
        seen.arrived.append(now)
        seen.round_trips.append(now - self._sent_at[which])

    def _altered(self) -> None:
        self.seen.altered += 1
        self.altered += 1


class Generator:
    """Channels against the worker at an address, spread evenly over the 20 ms."""

    def __init__(self, port: int, host: str = "127.0.0.1", *, slin: bool = False, speaks: bool = True) -> None:
        self._host, self._port = host, port
        self._slin, self._speaks = slin, speaks
        self._loop = asyncio.get_running_loop()
        self._began = 0.0
        self._done = 0
        self._timer: asyncio.TimerHandle | None = None
        self._slots: list[list[Channel]] = [[] for _ in range(SLOTS)]
        self._next = 0
        self.channels: list[Channel] = []
        self.by_sid: dict[str, Channel] = {}
        """Channels, also ones that are just being connected, by the `call_sid` that a standalone worker gives them."""
        self.seen = Seen()
        self.apart = Seen()
        """By channels that are not to be counted with the others."""
        self.lateness = times()
        """How late this side's own clock woke up each time, in seconds."""

    async def start(self, calls: int) -> None:
        """Connect the channels and let them speak. Raises OSError when the worker does not take them."""
        due = time.monotonic()
        for _ in range(calls):
            due += 1 / CALLS_PER_SECOND
            await self.add()
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    async def add(self, *, apart: bool = False) -> Channel:
        """One more channel. Raises OSError (`TimeoutError` is one) when the worker does not take it."""
        if self._timer is None:
            self._began, self._done = time.perf_counter(), 0
            self._wake()
        seen = self.apart if apart else self.seen
        channel = Channel(self._next, seen, apart=apart, slin=self._slin, speaks=self._speaks)
        self._next += 1
        self.by_sid[channel.leg_uuid.hex] = channel
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await self._loop.create_connection(lambda: channel, self._host, self._port)
        except BaseException:
            del self.by_sid[channel.leg_uuid.hex]
            raise
        channel.seen = self.apart if apart else self.seen  # another one, if `watch` was called meanwhile
        self.channels.append(channel)
        self._slots[channel.number % SLOTS].append(channel)
        return channel

    def remove(self, channel: Channel) -> None:
        """Hang one channel up and forget it."""
        channel.hang_up()
        self.channels.remove(channel)
        self._slots[channel.number % SLOTS].remove(channel)
        del self.by_sid[channel.leg_uuid.hex]

    def watch(self) -> Seen:
        """Forget what was seen so far; what is returned fills from now on, and so does `apart`."""
        self.seen, self.apart = Seen(), Seen()
        for channel in self.channels:
            channel.seen = self.apart if channel.apart else self.seen
            channel.watched_from, channel.watched_until = channel.sent, 1 << 62
        return self.seen

    def shut(self) -> None:
        """What is sent from now on is not watched; what is under way still is."""
        for channel in self.channels:
            channel.watched_until = channel.sent
            channel.seen.sent += channel.sent - channel.watched_from

    def quieten(self) -> None:
        """Send no more, keep listening: what is under way comes back."""
        self._still()
        self.seen.sent = sum(channel.sent - channel.watched_from for channel in self.channels)

    def stop(self) -> None:
        """Hang up."""
        self._still()
        for channel in self.channels:
            channel.hang_up()

    def _still(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wake(self) -> None:
        elapsed = time.perf_counter() - self._began
        reached = int(elapsed / SLOT_SECONDS)
        self.lateness.append(elapsed - self._done * SLOT_SECONDS)
        # Who was held up sends all that is due, as a carrier does.
        for slot in range(self._done, reached):
            for channel in self._slots[slot % SLOTS]:
                channel.send()
        self._done = reached
        self._timer = self._loop.call_later(SLOT_SECONDS, self._wake)
