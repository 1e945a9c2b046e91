"""The order of one caller's RTP packets: put right where the network changed it, and what is missing counted.

A packet that is in order passes at once. Behind a missing one packets wait until it comes, or until there are two of
them, or for 40 ms: then it is lost. The wait is fixed, and it is no playout delay: whoever listens is an application
that takes audio as it comes, for which delay costs more than jitter does, and a private link that changes the order of
packets 20 ms apart does so by one place. What comes after it was given up is late, and is dropped.

A stream that makes a leap (another SSRC, or a sequence number far from the one expected) is followed from its second
packet in sequence on (RFC 3550 appendix A.1): a single stray packet changes nothing. Time is counted in ticks of 20 ms
and given as an argument.
"""

from __future__ import annotations

WAIT_PACKETS = 2
"""So many packets behind a missing one, or so many ticks, are waited for it."""
MAX_LOST = 3000
"""A step of more than a minute ahead is a leap (RFC 3550 calls it MAX_DROPOUT)."""
MAX_LATE = 100
"""A packet that is late by more than 2 s is a leap too (MAX_MISORDER)."""

Ready = list[tuple[int, bytes]]
"""Payloads in order, each with the number of packets before it that are lost."""


class JitterBuffer:
    """See the module's text. Counters only grow. What `in_order` accepts is passed on by the caller itself."""

    __slots__ = (
        "_candidate",
        "_given_up",
        "_held",
        "_held_since",
        "duplicates",
        "expected",
        "late",
        "leaps",
        "lost",
        "ssrc",
        "waiting",
    )

    def __init__(self) -> None:
        self.ssrc = b""
        """The stream's, as four bytes; empty before the first packet."""
        self.expected = 0
        self.waiting = False
        """Whether packets wait for one that is missing."""
        self.lost = 0
        self.late = 0
        """Packets that came after they were counted as lost."""
        self.duplicates = 0
        self.leaps = 0
        """Packets that belonged nowhere, and that no second one followed."""
        self._held: dict[int, bytes] = {}
        self._held_since = 0
        self._given_up: set[int] = set()
        self._candidate: tuple[bytes, int, bytes] | None = None

    def in_order(self, ssrc: bytes, sequence: int) -> bool:
        """Whether a packet is the one expected, with nothing before it: nearly all are."""
        if sequence != self.expected or self.waiting or ssrc != self.ssrc or self._candidate is not None:
            return False
        self.expected = (sequence + 1) & 0xFFFF
        return True

    def put(self, ssrc: bytes, sequence: int, payload: bytes, now: int) -> Ready:
        """Takes any packet; gives what may be passed on by it."""
        if not self.ssrc:
            self.ssrc, self.expected = ssrc, sequence
        ahead = (sequence - self.expected) & 0xFFFF
        behind = 0x10000 - ahead
        if ssrc != self.ssrc or (ahead >= MAX_LOST and behind > MAX_LATE):
            return self._leap(ssrc, sequence, payload)
        if self._candidate is not None:
            self._candidate = None
            self.leaps += 1
        if behind <= MAX_LATE:
            if sequence in self._given_up:
                self._given_up.remove(sequence)
                self.late += 1
            else:
                self.duplicates += 1
            return []
        if sequence in self._held:
            self.duplicates += 1
            return []
        if not self._held:
            self._held_since = now
        self._held[sequence] = payload
        return self._release(len(self._held) >= WAIT_PACKETS)

    def expire(self, now: int) -> Ready:
        """What has waited for long enough, to be asked at every tick while `waiting`."""
        return self._release(True) if now - self._held_since >= WAIT_PACKETS else []

    def _release(self, give_up: bool) -> Ready:
        """Passes what follows; with `give_up`, what is missing before it is lost."""
        ready: Ready = []
        held = self._held
        while held:
            lost = 0
            if self.expected not in held:
                if not give_up:
                    break
                lost = self._give_up()
            ready.append((lost, held.pop(self.expected)))
            self.expected = (self.expected + 1) & 0xFFFF
            give_up = give_up and len(held) >= WAIT_PACKETS
        self.waiting = bool(held)
        return ready

    def _give_up(self) -> int:
        """Counts what is missing before the first packet that waits as lost."""
        missing = min((sequence - self.expected) & 0xFFFF for sequence in self._held)
        first = (self.expected + missing) & 0xFFFF
        self._given_up = {sequence for sequence in self._given_up if (first - sequence) & 0xFFFF <= MAX_LATE}
        self._given_up.update((first - back) & 0xFFFF for back in range(1, min(missing, MAX_LATE) + 1))
        self.lost += missing
        self.expected = first
        return missing

    def _leap(self, ssrc: bytes, sequence: int, payload: bytes) -> Ready:
        candidate, self._candidate = self._candidate, (ssrc, (sequence + 1) & 0xFFFF, payload)
        if candidate is None:
            return []
        if candidate[:2] != (ssrc, sequence):
            self.leaps += 1
            return []
        ready: Ready = []
        while self._held:
            ready += self._release(True)
        self.ssrc, self.expected = ssrc, (sequence + 1) & 0xFFFF
        self._candidate = None
        self._given_up.clear()
        return [*ready, (0, candidate[2]), (0, payload)]
