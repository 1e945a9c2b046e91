"""Whether media workers live, told from their heartbeats and from whether they answer: pure, for `WorkerWatch`.

A worker is *suspected* when its heartbeat in Redis is late, and *gone* when besides it does not answer on its status
port. Each alone says too little: a Redis that stood still forgets all workers at once, and an answer may be late. Where
neither Redis nor any worker answers, it is this node that is cut off, and nobody is gone.
Times are monotonic, in seconds, and come in as arguments.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from audiosocket.callspec import WorkerInfo

LATE_SECONDS = 1.75
"""A heartbeat, due every second, that is older than this is late."""
EXPIRED_SECONDS = 2.5
"""The same of a worker that never answered here: only its heartbeat tells."""
STEADY_SECONDS = 4.0
"""For so long Redis has to have answered before a late heartbeat is the worker's fault."""
FRESH_SECONDS = 1.2


@dataclass(slots=True)
class _Known:
    info: WorkerInfo
    seen_at: float
    """When its heartbeat was made."""
    answers: bool = False
    """It has answered on its status port."""
    gone: bool = False


class Pulse:
    """What is known of the workers."""

    def __init__(self) -> None:
        self._known: dict[str, _Known] = {}
        self._steady_since: float | None = None
        self._answered_at = -math.inf
        """When a worker, whichever, answered last."""

    def unknown(self) -> None:
        """Redis did not answer, or late."""
        self._steady_since = None

    def heard(self, now: float, beats: Mapping[str, tuple[WorkerInfo, float]]) -> tuple[list[WorkerInfo], list[str]]:
        """The workers' registrations, each with the age of its heartbeat. Returns runs of workers that are over, since
        another one has taken their place, and the workers that are back though they were gone."""
        self._steady_since = now if self._steady_since is None else self._steady_since
        over: list[WorkerInfo] = []
        back: list[str] = []
        for worker, (info, age) in beats.items():
            known = self._known.get(worker)
            if known is not None and known.info.started_at_ms != info.started_at_ms:
                if not known.gone:
                    over.append(known.info)
                back.append(worker)
                known = None
            if known is None:
                known = self._known[worker] = _Known(info, now - age)
            known.info, known.seen_at = info, now - age
            if known.gone and age < FRESH_SECONDS:
                known.gone = False
                back.append(worker)
        return over, back

    def suspects(self, now: float) -> list[WorkerInfo]:
        """Workers to be asked whether they live: those whose heartbeat is late, and those never asked before."""
        steady = self._steady_since is not None and now - self._steady_since >= STEADY_SECONDS
        return [
            known.info
            for known in self._known.values()
            if not known.gone
            and (
                (self._late(known, now) and (steady or known.answers))
                or (not known.answers and bool(known.info.status_url) and not self._late(known, now))
            )
        ]

    def answered(self, info: WorkerInfo, now: float, *, yes: bool) -> bool:
        """A worker has answered, or not, or cannot be asked. Returns whether it is gone, by what is known now."""
        known = self._known.get(info.worker_id)
        if known is None or known.gone or known.info.started_at_ms != info.started_at_ms:
            return False
        if yes:
            known.answers = True
            self._answered_at = now
            return False
        if self._steady_since is None and now - self._answered_at >= LATE_SECONDS:
            return False
        limit = LATE_SECONDS if known.answers else EXPIRED_SECONDS
        if now - known.seen_at < limit:
            return False
        known.gone = True
        return True

    def forget(self, now: float, seconds: float) -> None:
        """Workers that have been gone for so long are known no more."""
        self._known = {
            worker: known for worker, known in self._known.items() if not known.gone or now - known.seen_at < seconds
        }

    def _late(self, known: _Known, now: float) -> bool:
        return now - known.seen_at >= LATE_SECONDS
