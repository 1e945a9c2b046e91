"""The numbers of a check. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from audiosocket.appcheck.protocol import speech_level
from audiosocket.appcheck.talk import interruptions, turns
from audiosocket.appcheck.trace import Farewell, Media, Trace

RUN_GAP_SECONDS = 0.5
SHORTEST_RUN_SECONDS = 0.3
"""Of less audio than this no pace is told."""
BURST_PACE = 20.0
"""Audio that comes so much faster than it is played is a burst, not a pace."""
BYTES_PER_SECOND = 16_000


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure that was taken several times."""

    least: float
    p50: float
    most: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread | None:
        """None when there are no values."""
        found = sorted(values)
        if not found:
            return None
        return cls(round(found[0], 1), round(median(found), 1), round(found[-1], 1), len(found))


@dataclass(frozen=True, slots=True)
class Figures:
    """None: not measured, or it did not happen."""

    connect_ms: Spread | None
    first_audio_ms: Spread | None
    """From the start message to the first sound that the caller hears, where the application spoke first."""
    response_ms: Spread | None
    """From the caller's last sound to the application's first."""
    response_slow_network_ms: Spread | None
    barge_in_ms: Spread | None
    """From the caller's first sound, over the application's, to its `clear`."""
    close_ms: Spread | None
    """From our close frame to the application's."""
    message_bytes: Spread | None
    """Audio in a media message, in the dialect's encoding."""
    pace: float | None
    """How much faster than it is played audio is sent; None also when it comes in a burst."""
    burst: bool
    """Whether what it says comes in one go."""
    lead_ms: int
    """The most audio that was waiting to be played."""
    level_dbfs: float | None
    """Median of what is audible."""
    marks: int
    marks_returned: int
    underruns: int
    """On a good network."""
    calls: int


def figures(traces: Sequence[Trace]) -> Figures:
    """The numbers of all calls together."""
    normal = [trace for trace in traces if not trace.slow]
    taken = [turn for trace in normal for turn in turns(trace)]
    slow = [turn for trace in traces if trace.slow for turn in turns(trace)]
    attempts = [attempt for trace in traces for attempt in interruptions(trace)]
    closings = [trace.closing for trace in traces if trace.closing is not None]
    tempo, burst = pace(normal)
    return Figures(
        connect_ms=Spread.of(trace.handshake.milliseconds for trace in traces if trace.handshake is not None),
        first_audio_ms=Spread.of(first * 1000 for trace in normal if (first := greeting_onset(trace)) is not None),
        response_ms=Spread.of(turn.response_ms for turn in taken if turn.response_ms is not None),
        response_slow_network_ms=Spread.of(turn.response_ms for turn in slow if turn.response_ms is not None),
        barge_in_ms=Spread.of(attempt.clear_ms for attempt in attempts if attempt.clear_ms is not None),
        close_ms=Spread.of(one.seconds * 1000 for one in closings if one.farewell is Farewell.ANSWERED),
        message_bytes=Spread.of(media.size for trace in traces for media in trace.media),
        pace=tempo,
        burst=burst,
        lead_ms=max((trace.figures.playout_peak_ms for trace in traces), default=0),
        level_dbfs=None if (level := speech_level(traces)) is None else round(level, 1),
        marks=sum(len(trace.marks) for trace in traces),
        marks_returned=sum(len(trace.echoes) for trace in traces),
        underruns=sum(trace.figures.underruns_app for trace in normal),
        calls=len(traces),
    )


def greeting_onset(trace: Trace) -> float | None:
    """When the application began to speak, if that was before the caller did."""
    first = trace.onset_after(0)
    return first if first is not None and (not trace.said or first < trace.said[0].start) else None


def pace(traces: Sequence[Trace]) -> tuple[float | None, bool]:
    """(how much faster than played, whether in bursts), by the longest piece that was sent without a pause."""
    longest: tuple[float, float] = (0.0, 0.0)
    for trace in traces:
        for run in _runs(trace.media):
            # The last message's audio has not taken its time yet when it arrives.
            seconds = sum(len(media.pcm) for media in run[:-1]) / BYTES_PER_SECOND
            whole = seconds + len(run[-1].pcm) / BYTES_PER_SECOND
            if whole > longest[0]:
                longest = (whole, seconds / max(1e-6, run[-1].at - run[0].at) if len(run) > 1 else float("inf"))
    whole, tempo = longest
    if whole < SHORTEST_RUN_SECONDS:
        return None, False
    return (None, True) if tempo >= BURST_PACE else (round(tempo, 2), False)


def _runs(messages: Sequence[Media]) -> list[list[Media]]:
    runs: list[list[Media]] = []
    for media in messages:
        if runs and media.at - runs[-1][-1].at < RUN_GAP_SECONDS:
            runs[-1].append(media)
        else:
            runs.append([media])
    return runs
