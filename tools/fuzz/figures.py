"""What libFuzzer prints, read."""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_GROWTH_MB = 96
"""By how much a target's memory may grow after its seeds have been run: corpus, caches and counters fit in well."""
LEAST_FEATURES = 2
"""A target that reaches less has not been instrumented."""

_PULSE = re.compile(r"^#\d+\s+(\w+)\s+cov: (\d+) ft: (\d+) .*?rss: (\d+)Mb", re.MULTILINE)
_STAT = re.compile(r"^stat::(\w+):\s+(\d+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Figures:
    """One target's run."""

    executions: int
    per_second: int
    edges: int
    """Branches of the product that were reached (libFuzzer's `cov`)."""
    features: int
    """The same told apart by how often, and by values compared (`ft`)."""
    growth_mb: int

    def problem(self) -> str:
        """What is wrong though no input failed; empty: nothing."""
        if self.features < LEAST_FEATURES:
            return f"reached {self.features} features: is the product instrumented?"
        if self.growth_mb > MAX_GROWTH_MB:
            return f"memory grew by {self.growth_mb} MB, over {MAX_GROWTH_MB}: something is kept of every input"
        return ""


def read(output: str, ended_unix_ms: int) -> Figures:
    """The figures in a child's output; zeros for what is not in it. When it began the child says itself."""
    pulses = [(name, *map(int, numbers)) for name, *numbers in _PULSE.findall(output)]
    stats = {name: int(value) for name, value in _STAT.findall(output)}
    begun = next((rss for name, _, _, rss in pulses if name == "INITED"), 0)
    _, edges, features, rss = pulses[-1] if pulses else ("", 0, 0, 0)
    executions = stats.get("number_of_executed_units", 0)
    took_ms = max(1, ended_unix_ms - stats.get("began_unix_ms", ended_unix_ms))
    return Figures(
        executions=executions,
        per_second=executions * 1000 // took_ms,
        edges=edges,
        features=features,
        growth_mb=max(0, rss - begun) if begun else 0,
    )
