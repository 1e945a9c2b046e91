"""Judgement: does the application converse? Greeting, answers, interruptions, marks and pacing. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from audiosocket.appcheck.findings import Finding, Severity, finding
from audiosocket.appcheck.protocol import Case, silenced, silent_audio
from audiosocket.appcheck.trace import Span, Trace
from audiosocket.appcheck.voice import AUDIBLE_RESEMBLANCE, Samples, resemblance

LATE_GREETING_SECONDS = 3.0
SLOW_RESPONSE_MS = 2500
SLOW_CLEAR_MS = 1000
TALKED_ON_SECONDS = 1.0
"""Who speaks on for longer when the caller cuts in was not interrupted."""
TALK_OVER_SECONDS = 0.3
AFTER_CLEAR_SECONDS = 0.05
CHOPPY_PER_SECOND, CHOPPY_TIMES, UNDERRUN_TIMES = 0.5, 5, 3
PING_PONG_TIMES, PING_PONG_SECONDS = 3, 0.2
NO_LEAD_TIMES = 3
_UNHEARD = (
    "Look into the application's log for what its recogniser made of the caller: rate, encoding and language have to"
    " be what it is set to. If it only takes longer, raise --seconds."
)


@dataclass(frozen=True, slots=True)
class Turn:
    """The caller spoke, and what came of it."""

    said: Span
    response_ms: float | None
    """From the caller's last sound to the application's first."""
    over: bool
    """The application began while the caller was speaking."""


@dataclass(frozen=True, slots=True)
class Interruption:
    """The caller spoke while the application did."""

    clear_ms: float | None
    talked_on: float
    """Seconds for which the application was heard on."""
    after_clear: float
    """Seconds of audio that came behind the clear while the caller was still speaking."""


def turns(trace: Trace) -> list[Turn]:
    """The turns of a call in which the caller did not interrupt."""
    if trace.scenario == "barge-in":
        return []
    found = []
    spurts = trace.spurts()
    for number, said in enumerate(trace.said):
        until = trace.said[number + 1].start if number + 1 < len(trace.said) else float("inf")
        onset = next((spurt.start for spurt in spurts if said.end <= spurt.start < until), None)
        during = [spurt for spurt in spurts if said.start < spurt.start < said.end]
        over = any(spurt.end > said.start + TALK_OVER_SECONDS for spurt in during)
        found.append(Turn(said, None if onset is None else (onset - said.end) * 1000, over))
    return found


def interruptions(trace: Trace) -> list[Interruption]:
    """The interruptions of a call that was made for them."""
    if trace.scenario != "barge-in":
        return []
    found = []
    for said in trace.said:
        spoken = next((spurt for spurt in trace.spurts() if spurt.start < said.start <= spurt.end), None)
        if spoken is None:
            continue
        clear = next((at for at in trace.clears if said.start <= at <= said.end + TALKED_ON_SECONDS), None)
        late = 0
        if clear is not None:
            late = sum(len(media.pcm) for media in trace.media if clear + AFTER_CLEAR_SECONDS < media.at < said.end)
        found.append(
            Interruption(None if clear is None else (clear - said.start) * 1000, spoken.end - said.start, late / 16_000)
        )
    return found


def judge_talk(traces: Sequence[Trace], case: Case, spoken: dict[int, Samples]) -> Iterator[Finding]:
    """What is wrong with how it converses. `spoken` is what each caller said, by its number."""
    if not silenced(traces):
        yield from _voice(traces, case)
        echoing = [trace for trace in traces if _echoes(trace, spoken)]
        if echoing:
            seen = "the caller's own audio comes back: callers hear themselves"
            yield finding(case.dialect, "echoes_caller", seen, echoing)
        elif any(trace.spurts() for trace in traces):
            yield from _answers(traces, case)
            yield from _interrupted(traces, case)
    yield from _marks(traces, case)
    yield from _pacing(traces, case)


def _voice(traces: Sequence[Trace], case: Case) -> Iterator[Finding]:
    heard = any(trace.spurts() for trace in traces)
    spoken_to = [trace for trace in traces if trace.said]
    if not heard and spoken_to:
        level = silent_audio(traces)
        seen = "no audio in any call, though the caller spoke"
        if level is not None:
            seen = f"all audio that it sent is silence ({level:.0f} dBFS), though the caller spoke"
        yield finding(case.dialect, "never_speaks", seen, traces)
        return
    for trace in traces:
        if trace.scenario != "greeting" or trace.refusal is not None or (trace.ending and not trace.heard):
            continue
        first = trace.onset_after(0)
        if first is None:
            yield finding(case.dialect, "no_greeting", f"nothing was heard in {trace.seconds:.0f} s", [trace])
        elif first > LATE_GREETING_SECONDS:
            yield finding(case.dialect, "late_greeting", f"the caller hears nothing for {first:.1f} s", [trace])


def _echoes(trace: Trace, spoken: dict[int, Samples]) -> bool:
    if not trace.said or trace.number not in spoken:
        return False
    since = trace.said[0].start
    back = b"".join(media.pcm for media in trace.media if media.at >= since)
    return resemblance(back, spoken[trace.number]) > AUDIBLE_RESEMBLANCE


def _answers(traces: Sequence[Trace], case: Case) -> Iterator[Finding]:
    normal = [trace for trace in traces if trace.scenario in ("speech", "marks") and trace.said]
    taken = [(turn, trace) for trace in normal for turn in turns(trace)]
    every = [(turn, trace) for trace in traces for turn in turns(trace)]
    deaf = case.words and all(_unanswered(turn) for turn, _ in every)
    asked = every if deaf else taken
    unanswered = [trace for turn, trace in asked if _unanswered(turn) and not trace.ending]
    if unanswered:
        seen = f"{len(unanswered)} of {len(asked)} times that the caller spoke, no answer was heard in time"
        severity, remedy = Severity.ERROR if deaf else None, _UNHEARD if case.words else ""
        yield finding(case.dialect, "no_response", seen, unanswered, severity, remedy)
    times = [turn.response_ms for turn, _ in taken if turn.response_ms is not None]
    if times and median(times) > SLOW_RESPONSE_MS:
        seen = f"half of the answers begin later than {median(times):,.0f} ms after the caller's last word"
        yield finding(case.dialect, "slow_response", seen, normal)
    over = [trace for turn, trace in taken if turn.over]
    if over:
        seen = f"it began to speak while the caller was speaking, {len(over)} of {len(taken)} times"
        yield finding(case.dialect, "talks_over", seen, over)
    slow = [trace for trace in traces if trace.slow and trace.said and not trace.ending]
    mute = [trace for trace in slow if not any(turn.response_ms is not None or turn.over for turn in turns(trace))]
    if times and mute:
        seen = "it answers on a good network, and not when audio arrives in bursts of half a second"
        yield finding(case.dialect, "slow_network_silent", seen, mute)


def _unanswered(turn: Turn) -> bool:
    return turn.response_ms is None and not turn.over


def _interrupted(traces: Sequence[Trace], case: Case) -> Iterator[Finding]:
    calls = [trace for trace in traces if trace.scenario == "barge-in" and trace.refusal is None]
    tried = [attempt for trace in calls for attempt in interruptions(trace)]
    cleared = [attempt for attempt in tried if attempt.clear_ms is not None]
    longest = max((attempt.talked_on for attempt in tried), default=0.0)
    if cleared:
        slowest = max(attempt.clear_ms or 0 for attempt in cleared)
        if slowest > SLOW_CLEAR_MS:
            seen = f"`clear` came {slowest:,.0f} ms after the caller had begun to speak"
            yield finding(case.dialect, "slow_clear", seen, calls)
        late = max(attempt.after_clear for attempt in cleared)
        if late:
            seen = f"{late:.1f} s of audio came after the `clear`, while the caller was still speaking"
            yield finding(case.dialect, "audio_after_clear", seen, calls)
    elif longest > TALKED_ON_SECONDS:
        seen = f"no `clear` came, and it was heard for {longest:.1f} s more while the caller spoke"
        yield finding(case.dialect, "no_clear", seen, calls)
    elif tried:
        seen = f"no `clear` came; it was quiet after {longest:.1f} s"
        yield finding(case.dialect, "stops_without_clear", seen, calls)
    elif calls and not any(trace.ending for trace in calls):
        yield finding(case.dialect, "barge_in_untested", "there was nothing to interrupt", calls)


def _marks(traces: Sequence[Trace], case: Case) -> Iterator[Finding]:
    playing = [trace for trace in traces if ping_pongs(trace) >= PING_PONG_TIMES]
    if playing:
        count = max(ping_pongs(trace) for trace in playing)
        seen = f"marks that came back were sent again, {count} times in one call: this never ends"
        yield finding(case.dialect, "ping_pong", seen, playing)


def ping_pongs(trace: Trace) -> int:
    """How often a mark that had just come back was sent again with no audio before it."""
    count = 0
    for mark in trace.marks:
        echo = next((echo for echo in reversed(trace.echoes) if echo.at <= mark.at), None)
        if echo is None or echo.name != mark.name or mark.at - echo.at > PING_PONG_SECONDS:
            continue
        count += not any(echo.at < media.at <= mark.at for media in trace.media)
    return count


def _pacing(traces: Sequence[Trace], case: Case) -> Iterator[Finding]:
    normal = [trace for trace in traces if not trace.slow]
    choppy = [trace for trace in normal if _choppy(trace)]
    often = [trace for trace in normal if trace.figures.underruns_app >= UNDERRUN_TIMES and trace not in choppy]
    if choppy:
        worst = max(choppy, key=lambda trace: trace.figures.underruns_app)
        seen = (
            f"audio arrives more slowly than it is played: {worst.figures.underruns_app} gaps in"
            f" {worst.figures.frames_played * 0.02:.1f} s"
        )
        yield finding(case.dialect, "choppy", seen, choppy)
    if often:
        count = max(trace.figures.underruns_app for trace in often)
        yield finding(case.dialect, "underruns", f"up to {count} gaps in a call, for want of audio", often)
    starved = [trace for trace in traces if trace.slow and trace.figures.underruns_app >= NO_LEAD_TIMES]
    if starved and not choppy:
        seen = (
            f"{starved[0].figures.underruns_app} gaps when audio arrives in bursts of half a second: it keeps no lead"
        )
        yield finding(case.dialect, "no_lead", seen, starved)


def _choppy(trace: Trace) -> bool:
    gaps, seconds = trace.figures.underruns_app, trace.figures.frames_played * 0.02
    return gaps >= CHOPPY_TIMES and gaps > CHOPPY_PER_SECOND * seconds
