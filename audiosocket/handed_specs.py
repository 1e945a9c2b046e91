"""Call specs that a controller has handed straight to this worker: each is given out once, while it is good.

Hosts' clocks differ, so a spec is good for as long as it says from when it came, by the clock of this process.
"""

from __future__ import annotations

from collections import OrderedDict

from audiosocket.callspec import CallSpec
from audiosocket.errors import SpecRefused

USED_UUIDS = 10_000
"""UUIDs that are remembered as used or expired."""


class HandedSpecs:
    """At most `most` wait for their legs. Times are seconds of a clock that only goes forward."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._waiting: OrderedDict[str, tuple[float, CallSpec]] = OrderedDict()
        self._used: OrderedDict[str, str] = OrderedDict()

    def put(self, spec: CallSpec, now: float) -> str:
        """Keeps a spec; why it is refused (`reused`, `full`), or nothing. The same spec may come twice."""
        self._expire(now)
        if spec.leg_uuid in self._used:
            return "reused"
        if len(self._waiting) >= self._most and spec.leg_uuid not in self._waiting:
            return "full"
        good_seconds = max(0, spec.expires_at_ms - spec.created_at_ms) / 1000
        self._waiting[spec.leg_uuid] = now + good_seconds, spec
        return ""

    def take(self, leg_uuid: str, now: float) -> CallSpec | None:
        """The spec of a leg; None: it was not handed over. Raises `SpecRefused` (`reused`, `expired`)."""
        self._expire(now)
        if leg_uuid in self._used:
            raise SpecRefused(self._used[leg_uuid])
        found = self._waiting.pop(leg_uuid, None)
        if found is None:
            return None
        self._use(leg_uuid, "reused")
        return found[1]

    def calls(self, now: float) -> set[str]:
        """Ids of the calls that are on their way here."""
        self._expire(now)
        return {spec.call_id for _, spec in self._waiting.values() if spec.begins or not spec.leg_number}

    def _expire(self, now: float) -> None:
        for leg_uuid in [leg for leg, (until, _) in self._waiting.items() if until < now]:
            del self._waiting[leg_uuid]
            self._use(leg_uuid, "expired")

    def _use(self, leg_uuid: str, why: str) -> None:
        self._used[leg_uuid] = why
        if len(self._used) > USED_UUIDS:
            self._used.popitem(last=False)
