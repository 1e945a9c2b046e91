"""One line for every scripted call: what the application did. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from audiosocket.appcheck.figures import Spread, pace
from audiosocket.appcheck.talk import interruptions, turns
from audiosocket.appcheck.together import reprompts
from audiosocket.appcheck.trace import Farewell, Trace


def outcome(scenario: str, traces: Sequence[Trace]) -> str:
    """What was seen in the calls of one scenario."""
    refused = [trace for trace in traces if trace.refusal is not None]
    if len(refused) == len(traces):
        return f"no call: {refused[0].refusal.detail if refused and refused[0].refusal else 'not placed'}"
    trace = next(trace for trace in traces if trace.refusal is None)
    if scenario == "concurrency":
        return _together(traces)
    text = _WORDS[scenario](trace)
    if trace.ending is not None:
        text += f"; it ended the call after {trace.ending.at:.1f} s: {trace.ending.detail}"
    return text


def milliseconds(spread: Spread) -> str:
    """`530 ms`, or `530 ms, at most 541 ms`."""
    if spread.count == 1 or round(spread.p50) == round(spread.most):
        return f"{spread.p50:,.0f} ms"
    return f"{spread.p50:,.0f} ms, at most {spread.most:,.0f} ms"


def _handshake(trace: Trace) -> str:
    shake = trace.handshake
    assert shake is not None
    security = shake.tls or "no TLS"
    if shake.certificate_days is not None:
        security += f", certificate good for {shake.certificate_days:.0f} days"
    return f"open in {shake.milliseconds:.0f} ms, {security}"


def _greeting(trace: Trace) -> str:
    spurts = trace.spurts()
    if not spurts:
        return f"{len(trace.media)} messages of silence" if trace.media else "nothing was heard"
    tempo, burst = pace([trace])
    length = spurts[-1].end - spurts[0].start
    sizes = Spread.of(media.size for media in trace.media)
    assert sizes is not None
    sent = "sent in one burst" if burst else f"sent at {tempo:.1f} times its pace" if tempo else "too short for a pace"
    return (
        f"first sound after {spurts[0].start * 1000:,.0f} ms, {length:.1f} s long, {sent},"
        f" messages of {sizes.p50:,.0f} bytes"
    )


def _turns(trace: Trace) -> str:
    taken = turns(trace)
    if not taken:
        return "the caller did not get to speak"
    answered = Spread.of(turn.response_ms for turn in taken if turn.response_ms is not None)
    over = sum(turn.over for turn in taken)
    spoken = f"; in {over} of {len(taken)} it spoke while the caller did" if over else ""
    if answered is None:
        return f"0 of {len(taken)} turns answered{spoken}"
    return f"{answered.count} of {len(taken)} turns answered, after {milliseconds(answered)}{spoken}"


def _silence(trace: Trace) -> str:
    again = reprompts(trace)
    if not again:
        return f"stays for {trace.seconds:.0f} s and says nothing more"
    return "asks again after " + ", ".join(f"{at:.1f} s" for at in again[:5])


def _dtmf(trace: Trace) -> str:
    if not trace.digits:
        return "no key was pressed"
    pressed = trace.digits[0]
    onset = trace.onset_after(pressed)
    if onset is not None:
        return f"speaks {(onset - pressed) * 1000:,.0f} ms after the key"
    return "clears at the key" if any(at >= pressed for at in trace.clears) else "no reaction to the key"


def _marks(trace: Trace) -> str:
    if not trace.marks:
        return "sends none"
    names = sorted({mark.name for mark in trace.marks})
    some = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(trace.marks)} sent, {len(trace.echoes)} returned: {some:.60}"


def _barge_in(trace: Trace) -> str:
    attempts = interruptions(trace)
    if not attempts:
        return "there was nothing to interrupt"
    cleared = Spread.of(attempt.clear_ms for attempt in attempts if attempt.clear_ms is not None)
    if cleared is None:
        return f"no clear; heard for {max(attempt.talked_on for attempt in attempts):.1f} s more"
    late = max(attempt.after_clear for attempt in attempts)
    behind = f", {late:.1f} s of audio behind it" if late else ", nothing behind it"
    return f"cleared {milliseconds(cleared)} after the caller's first sound{behind}"


def _hangup(trace: Trace) -> str:
    if trace.closing is None:
        return "the caller did not get to hang up"
    if trace.closing.farewell is Farewell.ANSWERED:
        return f"closes within {max(1, round(trace.closing.seconds * 1000))} ms"
    if trace.closing.farewell is Farewell.DROPPED:
        return "ends the connection without a close frame"
    return f"does not close: the connection was cut after {trace.closing.seconds:.0f} s"


def _together(traces: Sequence[Trace]) -> str:
    connected = [trace for trace in traces if trace.refusal is None]
    taken = [turn for trace in connected for turn in turns(trace)]
    times = Spread.of(turn.response_ms for turn in taken if turn.response_ms is not None)
    over = sum(turn.over for turn in taken)
    spoken = f"; in {over} it spoke while the caller did" if over else ""
    answered = "0 answered" if times is None else f"{times.count} answered, after {milliseconds(times)}"
    return f"{len(connected)} of {len(traces)} calls open, {answered}{spoken}"


_WORDS: dict[str, Callable[[Trace], str]] = {
    "handshake": _handshake,
    "greeting": _greeting,
    "speech": _turns,
    "silence": _silence,
    "dtmf": _dtmf,
    "marks": _marks,
    "barge-in": _barge_in,
    "hangup": _hangup,
    "slow": _turns,
}
