"""Percentiles of a call and histograms of all calls."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audiosocket.durations import MAX_SAMPLES, Durations, Histogram

pytestmark = pytest.mark.unit

_durations = st.lists(st.integers(0, 20_000), min_size=1, max_size=300)


def test_nothing_measured_is_nothing() -> None:
    assert Durations(Histogram((100,))).figures() == {}


@pytest.mark.parametrize(
    ("given_ms", "expected"),
    [
        ([740], {"count": 1, "p50": 740, "p95": 740, "p99": 740, "max": 740}),
        ([300, 100, 200], {"count": 3, "p50": 200, "p95": 300, "p99": 300, "max": 300}),
        (list(range(1, 101)), {"count": 100, "p50": 50, "p95": 95, "p99": 99, "max": 100}),
    ],
)
def test_percentiles_by_nearest_rank(given_ms: list[int], expected: dict[str, int]) -> None:
    durations = Durations(Histogram((100,)))
    for duration in given_ms:
        durations.add(duration)
    assert durations.figures() == expected


def test_a_long_call_keeps_its_first_samples_and_counts_all() -> None:
    durations = Durations(Histogram((100,)))
    for duration in [100] * MAX_SAMPLES + [900] * 5000:
        durations.add(duration)
    assert durations.figures() == {"count": MAX_SAMPLES + 5000, "p50": 100, "p95": 100, "p99": 100, "max": 900}


@given(_durations)
def test_percentiles_are_durations_that_were_measured(given_ms: list[int]) -> None:
    histogram = Histogram((100, 1000))
    durations = Durations(histogram)
    for duration in given_ms:
        durations.add(duration)
    figures = durations.figures()
    assert {figures["p50"], figures["p95"], figures["p99"], figures["max"]} <= set(given_ms)
    assert figures["p50"] <= figures["p95"] <= figures["p99"] <= figures["max"] == max(given_ms)
    assert sum(duration <= figures["p95"] for duration in given_ms) >= 0.95 * len(given_ms)
    assert histogram.buckets() == [
        ("0.1", sum(duration <= 100 for duration in given_ms)),
        ("1.0", sum(duration <= 1000 for duration in given_ms)),
        ("+Inf", len(given_ms)),
    ]
    assert histogram.sum_seconds == pytest.approx(sum(given_ms) / 1000)
