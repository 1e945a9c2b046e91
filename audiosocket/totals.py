"""What the calls of a worker come to in sum: their figures added up, as far as figures can be."""

from __future__ import annotations

from audiosocket.callspec import MediaFigures

_TIMES = ("connect_ms", "first_audio_ms", "setup_app_ms", "setup_caller_ms")
_NOT_COUNTED = (*_TIMES, "playout_peak_ms", "response_ms", "barge_in_ms")
"""Figures of calls that cannot be added up."""
_REASONS = ("caller_frames_dropped", "frames_dropped", "ignored")
_COUNTERS = tuple(name for name in MediaFigures.__struct_fields__ if name not in (*_NOT_COUNTED, *_REASONS))


def add(total: MediaFigures, figures: MediaFigures) -> None:
    """Adds what can be added. A scrape does this for every live call between two frames: nothing is built for it."""
    for name in _COUNTERS:
        value = getattr(figures, name)
        if value:
            setattr(total, name, getattr(total, name) + value)
    for name in _REASONS:
        counts = getattr(figures, name)
        if counts:
            sums = getattr(total, name)
            for reason, count in counts.items():
                sums[reason] = sums.get(reason, 0) + count
