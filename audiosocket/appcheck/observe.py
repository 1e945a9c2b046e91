"""A message of the application put on record: what the gateway would make of it, and what it hides by being tolerant.

The gateway takes a wrong stream id, a name in another spelling and an event that it does not know without a word; who
checks an application wants to hear of them.
"""

from __future__ import annotations

from typing import Any

import msgspec

from audiosocket.appcheck.trace import Media, Named, Trace
from audiosocket.dialects.base import Clear, Dialect, Ignored, Mark
from audiosocket.g711 import Encoding

KEPT_AUDIO_BYTES = 20_000_000
"""Of one call's audio; what is beyond it (20 minutes) is not looked at."""
KEPT_NAMES = 20
EXAMPLE_CHARACTERS = 100


class _Glance(msgspec.Struct):
    event: Any = None
    stream_sid: Any = None
    streamSid: Any = None
    mark: Any = None


_glance = msgspec.json.Decoder(_Glance).decode


class Observer:
    """Puts the messages of one call on its trace. `dialect` is used to decode alone."""

    def __init__(self, trace: Trace, dialect: Dialect) -> None:
        self._trace = trace
        self._dialect = dialect
        self._kept = 0
        self._camel_case = False
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
            trace.media.append(Media(at, asked, len(asked) * self._sample_bytes // 2))
        self._ids(_glance(message))

    def binary(self) -> None:
        """A binary message."""
        self._count("binary", "")

    def sent(self, message: bytes, at: float) -> None:
        """A message of ours other than media: the start names the stream, a mark goes back."""
        glance = _glance(message)
        if glance.event == "start":
            self._camel_case = glance.streamSid is not None
            self._trace.stream_sid = str(glance.streamSid if self._camel_case else glance.stream_sid)
        elif glance.event == "mark" and isinstance(glance.mark, dict):
            self._trace.echoes.append(Named(at, str(glance.mark.get("name"))))

    def _ids(self, glance: _Glance) -> None:
        trace = self._trace
        right, wrong = glance.stream_sid, glance.streamSid
        if self._camel_case:
            right, wrong = wrong, right
        if right is None and wrong is not None:
            trace.misspelt_sids += 1
        sid = right if right is not None else wrong
        if sid is not None and sid != trace.stream_sid:
            sid = str(sid)[:EXAMPLE_CHARACTERS]
            if sid in trace.foreign_sids or len(trace.foreign_sids) < KEPT_NAMES:
                trace.foreign_sids[sid] = trace.foreign_sids.get(sid, 0) + 1

    def _unusable(self, reason: str, message: bytes) -> None:
        try:
            glance = _glance(message)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            glance = _Glance()
        if reason == "unknown_event" and len(self._trace.events) < KEPT_NAMES:
            self._trace.events.add(str(glance.event)[:EXAMPLE_CHARACTERS])
        if glance.event == "mark" and isinstance(glance.mark, dict) and not isinstance(glance.mark.get("name"), str):
            reason = "mark_name"
        self._count(reason, message[: EXAMPLE_CHARACTERS * 4].decode("utf-8", "replace")[:EXAMPLE_CHARACTERS])

    def _count(self, reason: str, example: str) -> None:
        trace = self._trace
        trace.unusable[reason] = trace.unusable.get(reason, 0) + 1
        trace.examples.setdefault(reason, "".join(c if c.isprintable() else "." for c in example))
