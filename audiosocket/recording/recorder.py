"""What a session leaves for its recording on the hot path: references to frames, handed on every half second."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from audiosocket.recording.timeline import Block
from audiosocket.wire import FRAME_MS, HEADER_BYTES

BLOCK_TICKS = 25
_ORIGINS = 20
"""Blocks over which the earliest estimate of tick 0 counts: a tick may be late, but never early."""


class Recorder:
    """One call's ears. Nothing is copied or converted here."""

    __slots__ = ("_first_tick", "_frame_bytes", "_heard", "_heard_at", "_now", "_origins", "_put", "_queue", "_sent")

    def __init__(
        self, rate_hz: int, put: Callable[[Block], None], now: Callable[[], float], queue_ticks: int = 0
    ) -> None:
        """`queue_ticks`: how long what is sent waits before it is heard. It is laid beside what was said then."""
        self._frame_bytes = HEADER_BYTES + 2 * rate_hz * FRAME_MS // 1000
        self._put = put
        self._now = now
        self._queue = queue_ticks * FRAME_MS / 1000
        self._first_tick = 0
        self._origins: deque[float] = deque(maxlen=_ORIGINS)
        self._sent: list[bytes] = []
        self._heard: list[bytes] = []
        self._heard_at: list[float] = []

    @property
    def ticks(self) -> int:
        """Ticks that have been handed on."""
        return self._first_tick

    def heard(self, payload: bytes) -> None:
        """A frame of the caller has arrived; in the call's media format, of any length."""
        self._heard.append(payload)
        self._heard_at.append(self._now())

    def tick(self, missed: int, sent: bytes) -> None:
        """One tick, after `missed` ones: what Asterisk gets for it, as AudioSocket frames of this call's length."""
        if not self._origins:
            self._origins.append(self._now())
        elif missed:
            self._late(missed, sent)
        elif len(self._sent) >= BLOCK_TICKS:
            self.flush()
            self._origins.append(self._now() - self._first_tick * FRAME_MS / 1000)
        self._sent.append(sent)

    def unsent(self) -> None:
        """Asterisk did not get what the last tick gave: it reads nothing."""
        if self._sent:
            self._sent[-1] = bytes(len(self._sent[-1]))

    def flush(self) -> None:
        """Hands on what has been collected."""
        if not self._origins:
            return
        self._put(Block(self._first_tick, self._sent, self._heard, self._heard_at, min(self._origins) + self._queue))
        self._first_tick += sum(map(len, self._sent)) // self._frame_bytes
        self._sent, self._heard, self._heard_at = [], [], []

    def _late(self, missed: int, sent: bytes) -> None:
        # Frames that catch up are heard where they belong, right before this tick's own; what was skipped is silence.
        skipped = 1 + missed - len(sent) // self._frame_bytes
        if skipped or len(self._sent) >= BLOCK_TICKS:
            self.flush()
            self._first_tick += skipped
