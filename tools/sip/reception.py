"""What an RTP endpoint received: a time line to listen to, and figures to judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tools.audio.pcm import Pcm
from tools.sip.rtp_packet import RtpPacket

BUNCHED_MS = 2.0
"""Packets closer together than this came in a bunch; a telephone's jitter buffer would have to spread them."""
JITTER_SECONDS = 0.06
"""Up to this much lateness a telephone's jitter buffer hides; a later packet leaves a hole."""


@dataclass(frozen=True, slots=True)
class Reception:
    """Figures of one stretch of received audio packets."""

    packets: int
    lost: int
    """Sequence numbers that never came, between the first and the last of each SSRC."""
    duplicated: int
    reordered: int
    """Packets that came after one with a higher sequence number."""
    gap_p50_ms: float
    gap_p99_ms: float
    gap_max_ms: float
    """Time between two arrivals; 0 when there are fewer than two packets."""
    bunched: int
    """Packets that came less than `BUNCHED_MS` after the one before."""


def measure(packets: Sequence[RtpPacket]) -> Reception:
    """Figures of `packets`, which are in order of arrival."""
    lost = duplicated = reordered = 0
    seen: dict[int, set[int]] = {}
    highest: dict[int, int] = {}
    for packet in packets:
        numbers = seen.setdefault(packet.ssrc, set())
        top = highest.get(packet.ssrc, packet.sequence)
        # Extended sequence number: the 16 bits that lie nearest to the highest so far.
        number = top + ((packet.sequence - top + 0x8000) & 0xFFFF) - 0x8000
        if number in numbers:
            duplicated += 1
        elif number < top:
            reordered += 1
        numbers.add(number)
        highest[packet.ssrc] = max(top, number)
    for numbers in seen.values():
        lost += max(numbers) - min(numbers) + 1 - len(numbers)
    gaps = np.diff([packet.arrived_at for packet in packets]) * 1000 if len(packets) > 1 else np.zeros(1)
    return Reception(
        packets=len(packets),
        lost=lost,
        duplicated=duplicated,
        reordered=reordered,
        gap_p50_ms=float(np.percentile(gaps, 50)),
        gap_p99_ms=float(np.percentile(gaps, 99)),
        gap_max_ms=float(np.max(gaps)),
        bunched=int(np.sum(gaps < BUNCHED_MS)) if len(packets) > 1 else 0,
    )


def by_arrival(pieces: Sequence[tuple[float, Pcm]], start: float, seconds: float | None, rate: int = 8000) -> Pcm:
    """What a telephone plays: each (arrival, samples) right after the one before, unless it came too late for that.

    `start` (monotonic) becomes sample 0; what came before it is left out. A packet later than `JITTER_SECONDS` leaves
    silence in front of it. `seconds` cuts or fills up the result; None ends it with the last packet.
    """
    placed: list[tuple[int, Pcm]] = []
    end = 0
    for arrived_at, samples in pieces:
        due = round((arrived_at - start) * rate)
        if due < 0:
            continue
        if due > end + JITTER_SECONDS * rate or not placed:
            end = due
        placed.append((end, samples))
        end += len(samples)
    return _laid_out(placed, end if seconds is None else round(seconds * rate))


def by_timestamp(pieces: Sequence[tuple[int, Pcm]]) -> Pcm:
    """Each (RTP timestamp, samples) where its timestamp says; sample 0 is the earliest timestamp, gaps are silence."""
    if not pieces:
        return np.zeros(0, dtype=np.int16)
    first = pieces[0][0]
    offsets = [((stamp - first + 0x80000000) & 0xFFFFFFFF) - 0x80000000 for stamp, _ in pieces]
    earliest = min(offsets)
    placed = [(offset - earliest, samples) for offset, (_, samples) in zip(offsets, pieces, strict=True)]
    return _laid_out(placed, max(at + len(samples) for at, samples in placed))


def _laid_out(placed: Sequence[tuple[int, Pcm]], length: int) -> Pcm:
    line = np.zeros(length, dtype=np.int16)
    for at, samples in placed:
        room = line[at : at + len(samples)]
        room[:] = samples[: len(room)]
    return line
