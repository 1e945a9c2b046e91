"""Judgement: are calls at once independent of each other? Pure.

The callers speak one after the other, so that what turns up in the call of somebody who is silent is not that
somebody's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from statistics import median

from audiosocket.appcheck.findings import Finding, finding
from audiosocket.appcheck.protocol import Case
from audiosocket.appcheck.talk import turns
from audiosocket.appcheck.trace import AUDIBLE_DBFS, Span, Trace
from audiosocket.appcheck.voice import AUDIBLE_RESEMBLANCE, Samples, level_dbfs, resemblance

SAME_MOMENT_SECONDS = 0.05
COMPARED_BYTES = 160
QUIET_BEFORE_SECONDS = 1.0
REPROMPT_SECONDS = 2.0
SLOWER_TIMES, SLOWER_MS = 2.0, 500.0


def at_once(traces: Sequence[Trace]) -> list[Trace]:
    """The calls that were made at once."""
    return [trace for trace in traces if trace.scenario == "concurrency"]


def judge_together(traces: Sequence[Trace], case: Case, spoken: dict[int, Samples]) -> Iterator[Finding]:
    """What is wrong with calls at once."""
    calls = at_once(traces)
    refused = [trace for trace in calls if trace.refusal is not None]
    if 0 < len(refused) < len(calls):
        assert refused[0].refusal is not None
        seen = f"{len(refused)} of {len(calls)} calls at once were refused: {refused[0].refusal.detail}"
        yield finding(case.dialect, "refused_together", seen, refused)
    # Who speaks up by itself when nobody speaks would be mistaken for one who answers somebody else.
    prompts = any(reprompts(trace) for trace in traces)
    for why, trace in crossings(calls, spoken, prompts):
        yield finding(case.dialect, "crossed", why, [trace])
        return
    alone = _responses([trace for trace in traces if trace.scenario in ("speech", "marks")])
    together = _responses(calls)
    if alone and together:
        before, now = median(alone), median(together)
        if now > SLOWER_TIMES * before and now > before + SLOWER_MS:
            seen = f"answers take {now:,.0f} ms with {len(calls)} calls at once, {before:,.0f} ms with one"
            yield finding(case.dialect, "slower_together", seen, calls)


def reprompts(trace: Trace) -> list[float]:
    """When the application spoke up again though the caller was silent all the time, in a call made for that."""
    spurts = trace.spurts() if trace.scenario == "silence" else []
    return [later.start for before, later in pairwise(spurts) if later.start - before.end > REPROMPT_SECONDS]


def crossings(calls: Sequence[Trace], spoken: dict[int, Samples], prompts: bool) -> Iterator[tuple[str, Trace]]:
    """What of one call was seen in another: in words, and where. `prompts`: the application speaks up by itself."""
    for call in calls:
        for other in calls:
            if other is call:
                continue
            if call.stream_sid in other.foreign_sids:
                why = f"messages on the socket of call {other.number + 1} carry the stream id of call {call.number + 1}"
                yield why, other
            if call.said:
                yield from ((why, other) for why in _crossed(call, other, _turn_of(call, calls), spoken, prompts))


def _turn_of(call: Trace, calls: Sequence[Trace]) -> Span:
    """From when the caller here begins to speak until the next one does, in monotonic seconds."""
    start = call.opened_at + call.said[0].start
    begins = [other.opened_at + other.said[0].start for other in calls if other.said]
    return Span(start, min((at for at in begins if at > start), default=float("inf")))


def _crossed(call: Trace, other: Trace, turn: Span, spoken: dict[int, Samples], prompts: bool) -> Iterator[str]:
    here, there = f"call {call.number + 1}", f"call {other.number + 1}"
    start, until = turn.start - other.opened_at, turn.end - other.opened_at
    heard = [media for media in other.media if start <= media.at < until]
    if resemblance(b"".join(media.pcm for media in heard), spoken[call.number]) > AUDIBLE_RESEMBLANCE:
        yield f"what the caller of {here} said was heard in {there}"
    answers = {
        media.pcm: media.at + call.opened_at - other.opened_at
        for media in call.media
        if len(media.pcm) >= COMPARED_BYTES and media.at >= call.said[0].start and level_dbfs(media.pcm) >= AUDIBLE_DBFS
    }
    if any(abs(media.at - answers.get(media.pcm, float("inf"))) < SAME_MOMENT_SECONDS for media in heard):
        yield f"the answer to the caller of {here} was sent to {there} too"
    answered = any(taken.response_ms is not None or taken.over for taken in turns(call))
    if not answered and not prompts and _begins(other, start, until):
        yield f"the caller of {here} spoke, and {there} was answered"


def _begins(trace: Trace, start: float, until: float) -> bool:
    """Whether the application began to speak out of a silence."""
    spurts = trace.spurts()
    return any(
        start < spurt.start < until and (not number or spurt.start - spurts[number - 1].end > QUIET_BEFORE_SECONDS)
        for number, spurt in enumerate(spurts)
    )


def _responses(traces: Sequence[Trace]) -> list[float]:
    return [turn.response_ms for trace in traces for turn in turns(trace) if turn.response_ms is not None]
