"""Placement without Redis: what one controller knows of workers, calls and limits by itself.

Its own calls are counted, those of other controllers are not: the workers themselves refuse what is too much for them.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence

from ari_app.fleet.leases import WAIT_SECONDS, Held
from audiosocket.callspec import WorkerInfo

SHUN_SECONDS = 5.0
FORGET_SECONDS = 10.0
"""How long a worker that Redis names no more is remembered: after a loss of its memory it names all again sooner."""


class KnownWorkers:
    """The workers as Redis has named them last. Times are seconds of a clock that only goes forward."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[float, WorkerInfo]] = {}
        self._closed: frozenset[str] = frozenset()
        self._listed: frozenset[str] = frozenset()
        self._shunned: dict[str, float] = {}
        """Until when, by worker and by node."""
        self._turn = 0

    def see(self, workers: Iterable[WorkerInfo], closed_nodes: Iterable[str], now: float) -> None:
        """What Redis names now; `closed_nodes` bear a mark that keeps new calls away."""
        found = {info.worker_id: info for info in workers}
        self._listed = frozenset(found)
        self._closed = frozenset(closed_nodes)
        kept = {name: seen for name, seen in self._seen.items() if now - seen[0] < FORGET_SECONDS}
        self._seen = kept | {name: (now, info) for name, info in found.items()}

    def keep(self, now: float) -> None:
        """Redis was away until now: that it named nobody says nothing."""
        self._seen = {name: (now, info) for name, (_, info) in self._seen.items()}

    def meet(self, worker: WorkerInfo, now: float) -> None:
        """A worker that a call was given to."""
        self._seen.setdefault(worker.worker_id, (now, worker))

    @property
    def workers(self) -> list[WorkerInfo]:
        """All that are remembered, by id."""
        return [self._seen[name][1] for name in sorted(self._seen)]

    def get(self, worker_id: str) -> WorkerInfo | None:
        """The worker, if it is remembered."""
        seen = self._seen.get(worker_id)
        return None if seen is None else seen[1]

    def listed(self, worker_id: str) -> bool:
        """Whether Redis has named the worker when it was asked last."""
        return worker_id in self._listed

    def shun(self, worker_id: str, now: float) -> None:
        """The worker does not answer: for `SHUN_SECONDS` others are tried first, those of other hosts before those of
        its own."""
        worker = self.get(worker_id)
        for name in (worker_id,) if worker is None else (worker_id, worker.node):
            self._shunned[name] = now + SHUN_SECONDS

    def best(
        self, pairs: Sequence[str], calls: Mapping[str, int], exclude: Collection[str], now: float
    ) -> WorkerInfo | None:
        """The worker to try for a call: of the first of `pairs`, then of the others; with the least `calls` per
        capacity, and among equals in turn. One that took no calls when it was heard of last is tried last."""
        open_ones = [
            info
            for info in self.workers
            if info.pair in pairs and info.worker_id not in exclude and info.node not in self._closed
        ]
        self._turn += 1
        turn = self._turn % max(1, len(open_ones))
        return min(
            open_ones[turn:] + open_ones[:turn],
            key=lambda info: (
                self._shunned.get(info.worker_id, now) > now,
                self._shunned.get(info.node, now) > now,
                info.draining or info.overloaded,
                info.pair != pairs[0],
                calls.get(info.worker_id, 0) / max(1, info.capacity),
            ),
            default=None,
        )


class LocalLedger:
    """The leases of one controller's calls, and the calls that wait for a place at an application."""

    def __init__(self) -> None:
        self.held: dict[str, Held] = {}
        """By call id."""
        self.limited: set[str] = set()
        """Applications that were asked for with a limit."""
        self._elsewhere: dict[str, int] = {}
        self._lines: dict[str, OrderedDict[str, float]] = {}

    def on_workers(self) -> Counter[str]:
        """Calls by worker."""
        return Counter(lease.worker_id for lease in self.held.values())

    def of_application(self, application: str) -> int:
        """Calls of an application, those of other controllers as they were counted last included."""
        own = sum(lease.application == application for lease in self.held.values())
        return own + self._elsewhere.get(application, 0)

    def count_elsewhere(self, calls: Mapping[str, int]) -> None:
        """Calls by application in the whole cluster, as Redis counts them now."""
        own = Counter(lease.application for lease in self.held.values())
        self._elsewhere = {name: max(0, count - own[name]) for name, count in calls.items()}

    def place(self, call_id: str, application: str, limit: int | None, line_max: int, now: float) -> int | None:
        """None: the application has room for the call; otherwise its place in the line, from 1, or 0 when that is full
        too."""
        line = self._lines.setdefault(application, OrderedDict())
        for gone in [call for call, until in line.items() if until < now]:
            del line[gone]
        ahead = list(line).index(call_id) if call_id in line else len(line)
        if limit is None or self.of_application(application) + ahead < limit:
            self.leave(call_id, application)
            return None
        if call_id not in line and len(line) >= line_max:
            return 0
        line[call_id] = now + WAIT_SECONDS
        return ahead + 1

    def leave(self, call_id: str, application: str) -> None:
        """The call waits no more."""
        line = self._lines.get(application)
        if line is not None:
            line.pop(call_id, None)
            if not line:
                del self._lines[application]
