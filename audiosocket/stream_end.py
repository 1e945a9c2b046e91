"""How a stream ended, as the platforms' callbacks tell it, from how the worker saw it end."""

from __future__ import annotations

from typing import Literal

from audiosocket.callspec import EndReason
from audiosocket.dialects.base import StreamEnd

MAX_ERROR_CHARACTERS = 200

_COMPLETED: dict[EndReason, Literal["caller", "application", "platform"]] = {
    EndReason.LEG_CLOSED: "caller",
    EndReason.APP_CLOSED: "application",
    EndReason.STREAM_LIMIT: "platform",
    EndReason.WORKER_STOPPED: "platform",
}


def stream_end(reason: EndReason, detail: str, seconds: float | None, recording: str = "") -> StreamEnd:
    """`seconds`: how long the stream was open; None: it never was."""
    if seconds is None and reason is EndReason.LEG_CLOSED:
        return StreamEnd(False, "caller", 0, recording=recording)
    ended_by = _COMPLETED.get(reason)
    if seconds is not None and ended_by is not None:
        return StreamEnd(True, ended_by, seconds, recording=recording)
    error = f"{reason.value}: {detail}" if detail else reason.value
    lost = reason is EndReason.APP_LOST
    return StreamEnd(
        False, "application" if lost else "platform", seconds or 0, error[:MAX_ERROR_CHARACTERS], recording
    )
