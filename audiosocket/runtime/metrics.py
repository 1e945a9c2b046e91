"""Prometheus families from plain numbers, and the two endpoints' ways to say them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest


def gauge(name: str, text: str, value: float, **labels: str) -> GaugeMetricFamily:
    """A gauge with one sample."""
    family = GaugeMetricFamily(name, text, labels=list(labels))
    family.add_metric(list(labels.values()), value)
    return family


def gauges(name: str, text: str, label: str, values: Mapping[str, float]) -> GaugeMetricFamily:
    """A gauge with one sample for each value of a label."""
    family = GaugeMetricFamily(name, text, labels=[label])
    for key, value in sorted(values.items()):
        family.add_metric([key], value)
    return family


def counter(name: str, text: str, value: float) -> CounterMetricFamily:
    """A counter with one sample."""
    return CounterMetricFamily(name, text, value)


def counters(
    name: str, text: str, labels: tuple[str, ...], values: Mapping[tuple[str, ...], float]
) -> CounterMetricFamily:
    """A counter with one sample for each combination of labels."""
    family = CounterMetricFamily(name, text, labels=list(labels))
    for key, value in sorted(values.items()):
        family.add_metric(list(key), value)
    return family


def metrics_response(registry: CollectorRegistry) -> web.Response:
    """What a scrape gets."""
    return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})


def json_response(value: Any) -> web.Response:
    """JSON of what msgspec knows."""
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")
