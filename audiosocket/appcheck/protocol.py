"""Judgement: does the application keep to the protocol? Handshake, messages, ids, and the form of its audio. Pure."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from audiosocket.appcheck.findings import Finding, Severity, finding
from audiosocket.appcheck.trace import AUDIBLE_DBFS, SPURT_GAP_SECONDS, Trace
from audiosocket.appcheck.voice import clipped_share, guess_encoding, level_dbfs
from audiosocket.dialects import DIALECTS
from audiosocket.g711 import Encoding

SLOW_HANDSHAKE_MS = 3000
CERTIFICATE_DAYS = 14
QUIET_DBFS, CLIPPED_SHARE = -38.0, 0.01

_CAUSES = {
    "binary": "binary messages: nobody reads them",
    "bad_json": "messages are no JSON",
    "bad_base64": "media messages whose payload is no base64",
    "bad_shape": "messages lack what their event needs (media.payload, `mark.name`)",
    "mark_name": "marks whose name is no string: they are ignored and never come back",
}
_SILENCING = (*_CAUSES, "unknown_event")
"""Messages that may have been meant to be audio."""
_READ_AS = {
    "ulaw": "it is μ-law, sent as if it were 16 bits: callers hear noise",
    "pcm16": "it is 16-bit PCM, sent as if it were μ-law: callers hear noise",
    "swapped": "its bytes are the wrong way round, or shifted by one: callers hear noise",
}
_ENDED = ("the connection ended during the WebSocket handshake", os.strerror(errno.ECONNRESET))
_TRY_TLS = (
    "Try wss://: ports that expect TLS answer ws:// so, most of them with no word at all. Otherwise look into the"
    " application's log: it was reached."
)


@dataclass(frozen=True, slots=True)
class Case:
    """What is judged."""

    dialect: str
    encoding: Encoding
    exposed: bool = False
    """Whether the calls went unencrypted to another machine."""
    tls: bool = False
    """Whether TLS was spoken."""
    words: bool = False
    """Whether callers said something that can be understood."""


def judge_protocol(traces: Sequence[Trace], case: Case) -> Iterator[Finding]:
    """What is wrong with handshake, messages, ids and audio."""
    yield from _handshake(traces, case)
    yield from _messages(traces, case)
    yield from _ids(traces, case)
    documented = DIALECTS[case.dialect].chunk
    if documented is not None:
        yield from _chunks(traces, case, documented)
    yield from _sound(traces, case)


def silenced(traces: Sequence[Trace]) -> bool:
    """Whether no usable audio came, and unusable messages explain it."""
    return not any(trace.media for trace in traces) and any(
        trace.unusable.get(reason) for trace in traces for reason in _SILENCING
    )


def _handshake(traces: Sequence[Trace], case: Case) -> Iterator[Finding]:
    open_ones = [trace for trace in traces if trace.refusal is None]
    # That some calls at once are not taken is another matter: see `together`.
    some = any(trace.scenario == "concurrency" for trace in open_ones)
    refused = [trace for trace in traces if trace.refusal and not (some and trace.scenario == "concurrency")]
    if refused:
        assert refused[0].refusal is not None
        reason, detail = refused[0].refusal.reason, refused[0].refusal.detail
        before = f", though {len(open_ones)} other calls were taken" if open_ones else ""
        code = _refusal_code(reason, detail)
        remedy = _TRY_TLS if not case.tls and (code == "handshake_ended" or " 400 " in detail) else ""
        yield finding(case.dialect, code, detail + before, refused, remedy=remedy)
    shakes = [(trace.handshake, trace) for trace in traces if trace.handshake is not None]
    if not shakes:
        return
    worst, trace = max(shakes, key=lambda shake: shake[0].milliseconds)
    if worst.milliseconds > SLOW_HANDSHAKE_MS:
        seen = f"the WebSocket was open after {worst.milliseconds:.0f} ms"
        yield finding(case.dialect, "handshake_slow", seen, [trace])
    first, trace = shakes[0]
    chosen = [what for what in (first.protocol, first.extensions) if what]
    if chosen:
        yield finding(case.dialect, "not_offered", f"the answer selects {', '.join(chosen)}", [trace])
    if first.certificate_days is not None and first.certificate_days < CERTIFICATE_DAYS:
        seen = f"the certificate is good for {first.certificate_days:.0f} more days"
        yield finding(case.dialect, "certificate_expires", seen, [trace])
    if case.exposed:
        yield finding(case.dialect, "plain_ws", "callers' audio travels unencrypted", [trace])


def _refusal_code(reason: str, detail: str) -> str:
    if reason == "app_timeout":
        return "handshake_timeout"
    if reason == "app_protocol_error":
        return "handshake_broken"
    if detail.startswith("TLS"):
        return "certificate" if "certificate" in detail else "no_tls"
    if detail.startswith(("HTTP status 401", "HTTP status 403")):
        return "unauthorised"
    if detail.startswith("HTTP status"):
        return "status"
    return "handshake_ended" if detail in _ENDED else "unreachable"


def _messages(traces: Sequence[Trace], case: Case) -> Iterator[Finding]:
    for code, words in _CAUSES.items():
        with_it = [trace for trace in traces if trace.unusable.get(code)]
        if with_it:
            count = sum(trace.unusable[code] for trace in with_it)
            example = with_it[0].examples.get(code, "")
            yield finding(case.dialect, code, f"{count} {words}" + (f": {example}" if example else ""), with_it)
    strange = [trace for trace in traces if trace.events]
    if strange:
        names = ", ".join(sorted(set().union(*(trace.events for trace in strange))))
        seen = f"events that are not the protocol's and are ignored: {names}"
        mute = silenced(traces)
        yield finding(
            case.dialect,
            "unknown_event",
            seen + ("; and no audio in any `media` message" if mute else ""),
            strange,
            Severity.ERROR if mute else None,
        )


def _ids(traces: Sequence[Trace], case: Case) -> Iterator[Finding]:
    ours = {trace.stream_sid for trace in traces}
    misspelt = [trace for trace in traces if trace.misspelt_sids]
    if misspelt:
        seen = f"messages name their stream as {misspelt[0].misspelt_key}"
        yield finding(case.dialect, "misspelt_sid", seen, misspelt)
    # The id of another call of ours is another matter: see `together`.
    invented = [trace for trace in traces if set(trace.foreign_sids) - ours]
    if invented:
        example = min(set(invented[0].foreign_sids) - ours)
        seen = f"messages carry a stream id that is not the call's: {example!r}"
        yield finding(case.dialect, "wrong_stream_sid", seen, invented)


def _chunks(traces: Sequence[Trace], case: Case, documented: range) -> Iterator[Finding]:
    least, most, unit = documented.start, documented.stop - 1, documented.step
    sizes = [media.size for trace in traces for media in trace.media if media.size]
    if not sizes:
        return
    sending = [trace for trace in traces if trace.media]
    odd = [size for size in sizes if size % 2]
    if odd:
        seen = f"{_share(len(odd), sizes)} end in the middle of a sample, such as one of {odd[0]:,} bytes"
        yield finding(case.dialect, "chunk_odd", seen, sending)
    broken = [size for trace in traces for size in _unaligned(trace, unit)]
    if broken:
        seen = (
            f"{_share(len(broken), sizes)} are no multiple of {unit} bytes though more audio follows, such as one of"
            f" {broken[0]:,}: the hosted platform plays a gap there"
        )
        yield finding(case.dialect, "chunk_unaligned", seen, sending)
    big = [size for size in sizes if size > most]
    if big:
        seen = f"{_share(len(big), sizes)} carry more than {most:,} bytes, up to {max(big):,}"
        yield finding(case.dialect, "chunk_big", seen, sending)
    if median(sizes) < least:
        seen = f"most media messages carry {median(sizes):,.0f} bytes; the documents ask for {least:,} at the least"
        yield finding(case.dialect, "chunk_small", seen, sending)


def _unaligned(trace: Trace, unit: int) -> list[int]:
    """Sizes of messages of whole samples that break the unit in the middle of an utterance."""
    breaks = sorted([mark.at for mark in trace.marks] + trace.clears)
    found = []
    for media, following in pairwise(trace.media):
        if media.size % 2 or not media.size % unit:
            continue
        if following.at - media.at < SPURT_GAP_SECONDS and not any(media.at <= at <= following.at for at in breaks):
            found.append(media.size)
    return found


def _share(count: int, sizes: Sequence[int]) -> str:
    return f"{count:,} of {len(sizes):,} media messages"


def _sound(traces: Sequence[Trace], case: Case) -> Iterator[Finding]:
    sending = [trace for trace in traces if trace.media]
    wrong: dict[str, list[Trace]] = {}
    for trace in sending:
        really = guess_encoding(b"".join(media.pcm for media in trace.media[:2000]), case.encoding)
        if really != case.encoding.value:
            wrong.setdefault(really, []).append(trace)
    for really, where in wrong.items():
        yield finding(case.dialect, "wrong_encoding", f"the audio makes no sense: {_READ_AS[really]}", where)
    if wrong:
        return
    loud = [trace for trace in sending if clipped_share(b"".join(media.pcm for media in trace.media)) > CLIPPED_SHARE]
    if loud:
        yield finding(case.dialect, "clipped", f"more than {CLIPPED_SHARE:.0%} of its samples are at full scale", loud)
    peaks = [max(frame.dbfs for frame in trace.heard) for trace in sending if trace.heard]
    if peaks and AUDIBLE_DBFS <= max(peaks) < QUIET_DBFS:
        yield finding(case.dialect, "too_quiet", f"its loudest moment is {max(peaks):.0f} dBFS", sending)


def speech_level(traces: Sequence[Trace]) -> float | None:
    """Median level in dBFS of what was audible."""
    levels = [frame.dbfs for trace in traces for frame in trace.heard if frame.dbfs >= AUDIBLE_DBFS]
    return median(levels) if levels else None


def silent_audio(traces: Sequence[Trace]) -> float | None:
    """Level of the audio that was sent, when all of it is too quiet to be heard; None when there was none."""
    pcm = b"".join(media.pcm for trace in traces for media in trace.media)
    return level_dbfs(pcm) if pcm else None
