"""A message of the application put on record: what the gateway would make of it, and what it hides by being tolerant.

The gateway takes a wrong stream id, a name in another spelling and an event that it does not know without a word; who
checks an application wants to hear of them.
"""

from __future__ import annotations

from typing import Any

import msgspec

from audiosocket.appcheck.trace import Media, Named, Trace
from audiosocket.appcheck.voice import RATE, narrowed
from audiosocket.dialects import DIALECTS
from audiosocket.dialects.app_messages import UNREADABLE
from audiosocket.dialects.base import Clear, Dialect, Ignored, Mark, Platform
from audiosocket.g711 import Encoding

KEPT_AUDIO_BYTES = 20_000_000
"""Of one call's audio; what is beyond it (20 minutes) is not looked at."""
KEPT_NAMES = 20
EXAMPLE_CHARACTERS = 100


_SPELLINGS = sorted({platform.stream_id for platform in DIALECTS.values()})


class Observer:
    """Puts the messages of one call at `sample_rate` (Hz) on its trace. `dialect` is used to decode alone."""

    def __init__(self, trace: Trace, dialect: Dialect, platform: Platform, sample_rate: int = RATE) -> None:
        trace.stream_sid = dialect.stream_sid
        self._trace = trace
        self._dialect = dialect
        self._platform = platform
        self._times = sample_rate // RATE
        self._kept = 0
        self._sample_bytes = 2 if dialect.encoding is Encoding.PCM16 else 1

    def text(self, message: bytes, at: float) -> None:
        """A text message, `at` seconds into the call."""
        trace = self._trace
        asked = self._dialect.decode(message)
        if isinstance(asked, Ignored):
            self._unusable(asked.reason, message)
            return
        if isinstance(asked, Mark):
            trace.marks.append(Named(at, asked.name))
        elif isinstance(asked, Clear):
            trace.clears.append(at)
        elif isinstance(asked, bytes) and self._kept < KEPT_AUDIO_BYTES:
            self._kept += len(asked)
            trace.media.append(Media(at, narrowed(asked, self._times), len(asked) * self._sample_bytes // 2))
        self._ids(_looked_at(message))

    def binary(self) -> None:
        """A binary message."""
        self._count("binary", "")

    def sent(self, message: bytes, at: float) -> None:
        """A message of ours other than media: a mark goes back."""
        sent = msgspec.json.decode(message)
        if sent["event"] == self._platform.returned:
            self._trace.echoes.append(Named(at, str(_mark_name(sent))))

    def _ids(self, message: dict[str, Any]) -> None:
        trace = self._trace
        sid = message.get(self._platform.stream_id)
        for key in _SPELLINGS:
            if sid is None and message.get(key) is not None:
                sid = message[key]
                trace.misspelt_sids += 1
                trace.misspelt_key = key
        if sid is not None and sid != trace.stream_sid:
            sid = str(sid)[:EXAMPLE_CHARACTERS]
            if sid in trace.foreign_sids or len(trace.foreign_sids) < KEPT_NAMES:
                trace.foreign_sids[sid] = trace.foreign_sids.get(sid, 0) + 1

    def _unusable(self, reason: str, message: bytes) -> None:
        found = _looked_at(message)
        event = found.get("event")
        if reason == "unknown_event" and len(self._trace.events) < KEPT_NAMES:
            self._trace.events.add(str(event)[:EXAMPLE_CHARACTERS])
        if event == self._platform.mark and not isinstance(_mark_name(found), (str, type(None))):
            reason = "mark_name"
        self._count(reason, message[: EXAMPLE_CHARACTERS * 4].decode("utf-8", "replace")[:EXAMPLE_CHARACTERS])

    def _count(self, reason: str, example: str) -> None:
        trace = self._trace
        trace.unusable[reason] = trace.unusable.get(reason, 0) + 1
        trace.examples.setdefault(reason, "".join(c if c.isprintable() else "." for c in example))


def _looked_at(message: bytes) -> dict[str, Any]:
    """What can be seen of a message. Nothing, where a value that the gateway does not look at cannot be read."""
    try:
        found = msgspec.json.decode(message)
    except UNREADABLE:
        return {}
    return found if isinstance(found, dict) else {}


def _mark_name(message: dict[str, Any]) -> Any:
    """The name in a mark's message, which some protocols wrap up once more."""
    body = message.get("mark", message)
    return body.get("name") if isinstance(body, dict) else None
