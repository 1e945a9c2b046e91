"""Durations in milliseconds: the percentiles of one call, and the histogram of all calls."""

from __future__ import annotations

from bisect import bisect_left, insort

MAX_SAMPLES = 500
"""Percentiles are those of a call's first so many; `count` and `max` are those of all."""

RESPONSE_BUCKETS_MS = (200, 300, 400, 500, 600, 800, 1000, 1250, 1500, 2000, 2500, 3000, 4000, 5000, 7500, 10_000)
BARGE_IN_BUCKETS_MS = (60, 100, 150, 200, 300, 400, 500, 600, 800, 1000, 1500, 2000, 3000, 5000)


class Histogram:
    """How many durations were at most so long. Only ever added to."""

    __slots__ = ("_bounds_ms", "_counts", "_sum_ms")

    def __init__(self, bounds_ms: tuple[int, ...]) -> None:
        self._bounds_ms = bounds_ms
        self._counts = [0] * (len(bounds_ms) + 1)
        self._sum_ms = 0

    def add(self, duration_ms: int) -> None:
        self._counts[bisect_left(self._bounds_ms, duration_ms)] += 1
        self._sum_ms += duration_ms

    def buckets(self) -> list[tuple[str, int]]:
        """Upper bounds in seconds, as Prometheus writes them, with the count of all durations up to each."""
        total, found = 0, []
        bounds = [repr(bound / 1000) for bound in self._bounds_ms] + ["+Inf"]
        for bound, count in zip(bounds, self._counts, strict=True):
            total += count
            found.append((bound, total))
        return found

    @property
    def sum_seconds(self) -> float:
        """All durations together."""
        return self._sum_ms / 1000


class TurnTimes:
    """What the calls of one application have measured together."""

    __slots__ = ("barge_in", "response")

    def __init__(self) -> None:
        self.response = Histogram(RESPONSE_BUCKETS_MS)
        self.barge_in = Histogram(BARGE_IN_BUCKETS_MS)


class Durations:
    """One kind of duration in one call; each goes into the histogram of all calls too."""

    __slots__ = ("_histogram", "_max_ms", "_samples", "count")

    def __init__(self, histogram: Histogram) -> None:
        self._histogram = histogram
        self._samples: list[int] = []  # in order of size
        self._max_ms = 0
        self.count = 0

    def share(self, histogram: Histogram) -> None:
        """From now on they go into another histogram."""
        self._histogram = histogram

    def add(self, duration_ms: int) -> None:
        self._histogram.add(duration_ms)
        self.count += 1
        self._max_ms = max(self._max_ms, duration_ms)
        if len(self._samples) < MAX_SAMPLES:
            insort(self._samples, duration_ms)

    def figures(self) -> dict[str, int]:
        """`count`, `p50`, `p95`, `p99` (by nearest rank) and `max` in ms; nothing when there were none."""
        if not self.count:
            return {}
        samples = self._samples
        ranks = {f"p{percent}": samples[-(-percent * len(samples) // 100) - 1] for percent in (50, 95, 99)}
        return {"count": self.count} | ranks | {"max": self._max_ms}
