"""Judgement: how calls end, whoever ends them. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from audiosocket.appcheck.findings import Finding, finding
from audiosocket.appcheck.protocol import Case
from audiosocket.appcheck.trace import Ending, Farewell, Trace

AFTER_DIGIT_SECONDS = 3.0
AFTER_MARK_SECONDS = 1.0
NORMAL_CODES = ("close code 1000", "close code 1005")
"""How an application ends a call on purpose; 1005 stands for a close frame without a code."""


def judge_endings(traces: Sequence[Trace], case: Case) -> Iterator[Finding]:
    """What is wrong with the ends of the calls."""
    ended: dict[str, list[tuple[Trace, Ending]]] = {}
    for trace in traces:
        if trace.ending is not None:
            ended.setdefault(_code(trace, trace.ending), []).append((trace, trace.ending))
    for code, cases in ended.items():
        trace, ending = cases[0]
        seen = f"it ended {_calls(len(cases))}, {ending.at:.1f} s after the start: {ending.detail}"
        yield finding(case.dialect, code, seen, [trace for trace, _ in cases])
    closed = [(trace, trace.closing) for trace in traces if trace.closing is not None]
    ignored = [(trace, closing) for trace, closing in closed if closing.farewell is Farewell.IGNORED]
    if ignored:
        seen = f"{_calls(len(ignored))} of {len(closed)}: no close frame within {ignored[0][1].seconds:.0f} s of ours"
        yield finding(case.dialect, "close_unanswered", seen, [trace for trace, _ in ignored])
    dropped = [trace for trace, closing in closed if closing.farewell is Farewell.DROPPED]
    if dropped:
        seen = f"{_calls(len(dropped))} of {len(closed)}: the connection ended without a close frame"
        yield finding(case.dialect, "close_without_frame", seen, dropped)


def _code(trace: Trace, ending: Ending) -> str:
    if ending.reason == "app_protocol_error":
        return "protocol_error"
    if ending.reason == "app_message_too_big":
        return "message_too_big"
    if trace.scenario == "handshake":
        return "closes_at_once"
    if trace.digits and 0 <= ending.at - trace.digits[-1] < AFTER_DIGIT_SECONDS and not trace.said:
        return "closes_on_dtmf"
    if trace.echoes and ending.at - trace.echoes[0].at < AFTER_MARK_SECONDS and not _normal(ending):
        return "closes_on_mark"
    if trace.slow:
        return "slow_network_ends"
    if ending.reason == "app_lost":
        return "lost"
    if not _normal(ending):
        return "closes_with_error"
    return "closes_on_silence" if trace.scenario == "silence" else "ends_call"


def _normal(ending: Ending) -> bool:
    return ending.reason == "app_closed" and ending.detail.startswith(NORMAL_CODES)


def _calls(count: int) -> str:
    return "one call" if count == 1 else f"{count} calls"
