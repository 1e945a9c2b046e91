"""Times by their frequency: hours of them in a few hundred kB. Pure."""

from __future__ import annotations

from array import array
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BIN_SECONDS = 0.0001
BINS = 50_000
"""The last one holds all that is longer: 5 s and more."""


@dataclass(frozen=True, slots=True)
class Spread:
    """How times lie, in ms; quantiles are exact to 0.1 ms, and 5 s where they are longer."""

    count: int
    p50: float
    p95: float
    p99: float
    p999: float
    max: float


class Times:
    """A histogram of times in seconds."""

    def __init__(self) -> None:
        self.counts: NDArray[np.int64] = np.zeros(BINS, np.int64)
        self.longest = 0.0

    def add(self, seconds: array[float]) -> None:
        """More times; negative ones, which a clock's rounding may give, count as 0."""
        if not seconds:
            return
        values = np.frombuffer(seconds, np.float64)
        self.longest = max(self.longest, float(values.max()))
        bins = np.clip((values / BIN_SECONDS).astype(np.int64), 0, BINS - 1)
        self.counts += np.bincount(bins, minlength=BINS)

    def spread(self) -> Spread | None:
        """None: no times."""
        running = np.cumsum(self.counts)
        count = int(running[-1])
        if not count:
            return None

        def quantile(share: float) -> float:
            """The upper edge of the bin in which it lies; never above the longest."""
            at = int(np.searchsorted(running, share * count))
            return min((at + 1) * BIN_SECONDS, self.longest) * 1000

        return Spread(count, quantile(0.5), quantile(0.95), quantile(0.99), quantile(0.999), self.longest * 1000)

    def by_ms(self) -> dict[int, int]:
        """How many times lie in each millisecond, up to the one that holds the 99.9th percentile."""
        spread = self.spread()
        if spread is None:
            return {}
        counts = self.counts.reshape(-1, round(0.001 / BIN_SECONDS)).sum(axis=1)
        first = int(np.flatnonzero(counts)[0])
        return {ms: int(counts[ms]) for ms in range(first, min(int(spread.p999) + 1, len(counts)))}
