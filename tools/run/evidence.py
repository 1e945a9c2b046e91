"""Did the call carry audio both ways? Judged by what was recorded: nothing counts because it was meant to happen.

What the caller heard is told by correlating his RTP with the recordings that the application says it sent; what the
application heard, by its own record of when a caller spoke, against when the caller did.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tools.audio.pcm import Pcm, silence
from tools.audio.pictures import Marker
from tools.audio.speech import speech
from tools.run.call import SENTENCES, LiveCall, Sentence, is_silent
from tools.sip.reception import Reception
from tools.sip.rtp_packet import RtpPacket
from tools.sip.rtp_peer import RATE, Codec
from tools.sip.sipp import Ending

MATCH_MIN = 0.5
"""Correlation from which two recordings are the same: a perfect path gives 0.99, another recording up to 0.3, and a
glitch in the middle still leaves more than half."""
MATCH_SECONDS = 2.0
"""How late a turn may begin after it was sent."""
HEARD_SECONDS = 1.5
"""How much later than the caller the application may find that he speaks, or has finished (it waits for 0.5 s)."""
HUSH_SECONDS = 0.5
"""How long it may take until the caller hears nothing more after a clear."""
HUSH_PACKETS = 3
"""So many silent packets in a row are the silence after a clear, and not a pause between two words."""
TURNS = ("the greeting", "the first answer", "the second answer's beginning", "the third answer", "the goodbye")
MARKER_LABELS = {1: "greeting", 2: "answer 1", 3: "answer 2", 4: "answer 3", 5: "goodbye"}


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that had to be so."""

    what: str
    good: bool
    found: str


@dataclass(frozen=True, slots=True)
class HeardTurn:
    """One turn of the application in the caller's RTP. Times are monotonic seconds."""

    number: int
    says: str
    sent_at: float
    heard_at: float | None
    """Arrival of its first sample; None when nothing like it arrived."""
    match: float
    response_ms: float | None = None
    """From the end of what it answers (a sentence, `#`) to `heard_at`."""


@dataclass(slots=True)
class Verdict:
    """Everything that was found."""

    checks: list[Check]
    turns: list[HeardTurn]
    reception: Reception
    answer_ms: float | None = None
    first_audio_ms: float | None = None
    """INVITE to the greeting's first sample in the caller's RTP."""
    clear_ms: float | None = None
    """The application's clear to silence in the caller's RTP."""
    yield_ms: float | None = None
    """The caller's first sound of the interruption to silence in his RTP."""
    markers: list[Marker] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether all is as it had to be."""
        return all(check.good for check in self.checks)


class Heard:
    """What the caller's endpoint received, as one piece with the arrival time of every sample."""

    def __init__(self, packets: Sequence[RtpPacket], codec: Codec) -> None:
        self._pieces = [codec.decode(packet.payload) for packet in packets]
        self._arrivals = [packet.arrived_at for packet in packets]
        self._starts = [0, *itertools.accumulate(len(piece) for piece in self._pieces)]
        self._pcm = np.concatenate([*self._pieces, silence(0.2)])  # the end of the last turn may be cut off by the BYE

    def find(self, piece: Pcm, after: float) -> tuple[float | None, float]:
        """Arrival time of the first sample of `piece`, which was sent at `after`, and how well it matches (0 to 1)."""
        first = self._starts[bisect_left(self._arrivals, after)]
        heard = self._pcm[first : first + len(piece) + round(MATCH_SECONDS * RATE)]
        at, match = correlate(piece, heard)
        if match < MATCH_MIN:
            return None, match
        sample = first + at
        index = min(bisect_right(self._starts, sample), len(self._arrivals)) - 1
        return self._arrivals[index] + (sample - self._starts[index]) / RATE, match

    def silent_from(self, after: float) -> float | None:
        """Arrival of the first of `HUSH_PACKETS` silent packets in a row after a time; None when there are none."""
        first = bisect_left(self._arrivals, after)
        for index in range(first, len(self._pieces) - HUSH_PACKETS + 1):
            if all(is_silent(piece) for piece in self._pieces[index : index + HUSH_PACKETS]):
                return self._arrivals[index]
        return None


def correlate(piece: Pcm, heard: Pcm) -> tuple[int, float]:
    """Where in `heard` `piece` begins, and the normalised correlation there, 0 to 1."""
    places = len(heard) - len(piece) + 1
    wanted, found = piece.astype(np.float64), heard.astype(np.float64)
    energy = float(np.sum(wanted**2))
    if places < 1 or not energy:
        return 0, 0.0
    size = 1 << (len(heard) + len(piece)).bit_length()
    product = np.fft.irfft(np.fft.rfft(found, size) * np.conj(np.fft.rfft(wanted, size)), size)[:places]
    sums = np.concatenate(([0.0], np.cumsum(found**2)))
    windows = sums[len(piece) :] - sums[: -len(piece)]
    # Next to nothing correlates with everything: it must be loud enough to be the piece at all.
    scores = np.where(windows > energy / 100, product / np.sqrt(np.maximum(windows, energy / 100) * energy), 0.0)
    at = int(np.argmax(scores))
    return at, max(0.0, float(scores[at]))


def judge(live: LiveCall) -> Verdict:
    """All checks and figures of a call that is over."""
    call, events = live.call, live.events
    heard = Heard(call.peer.audio(), live.line.codec)
    turns = _turns(live, heard)
    verdict = Verdict([], turns, call.peer.reception())
    invited_at = call.invited_at or live.began_at
    if call.answered_at is not None:
        verdict.answer_ms = (call.answered_at - invited_at) * 1000
    if turns and turns[0].heard_at is not None:
        verdict.first_audio_ms = (turns[0].heard_at - invited_at) * 1000
    clear_at = next((event["at"] for event in events if event["event"] == "clear"), None)
    silent_at = None if clear_at is None else heard.silent_from(clear_at)
    if clear_at is not None and silent_at is not None:
        verdict.clear_ms = (silent_at - clear_at) * 1000
        spoke = live.said[-1].speech_at if live.said else None
        verdict.yield_ms = None if spoke is None else (silent_at - spoke[0]) * 1000
    verdict.checks = [
        Check("the call was answered", call.answered_at is not None, _ms(verdict.answer_ms) or live.cut_short or "no"),
        *(_caller_heard(index, turns, verdict.reception.packets) for index in range(len(TURNS))),
        *(_application_heard(index, live.said, events) for index in range(len(SENTENCES))),
        _barge_in(verdict.clear_ms, clear_at is not None),
        _marks(events),
        _digit(events),
        Check(
            "the application ended the call, by BYE",
            call.ending is Ending.BY_THEM and any(event["event"] == "close" for event in events),
            f"{call.ending}{f', {call.reason}' if call.reason else ''}",
        ),
        _recorded(live),
    ]
    verdict.markers = _markers(live, turns, clear_at, invited_at)
    return verdict


def _turns(live: LiveCall, heard: Heard) -> list[HeardTurn]:
    found = []
    answered = [None, *(sentence.speech_at and sentence.speech_at[1] for sentence in live.said), live.digit_at]
    clear_at = next((event["at"] for event in live.events if event["event"] == "clear"), float("inf"))
    for event in live.events:
        if event["event"] != "turn":
            continue
        number, says, sent_at = event["number"], event["says"], event["at"]
        piece = speech(live.sounds, *says.split("+"))
        if sent_at < clear_at:  # of an interrupted turn only its beginning can be heard
            piece = piece[: round(max(0.0, min(clear_at - sent_at - 0.1, 1e6)) * RATE)]
        heard_at, match = heard.find(piece, sent_at)
        asked_at = answered[number - 1] if number <= len(answered) else None
        response = None if heard_at is None or asked_at is None else (heard_at - asked_at) * 1000
        found.append(HeardTurn(number, says, sent_at, heard_at, match, response))
    return found


def _caller_heard(index: int, turns: Sequence[HeardTurn], packets: int) -> Check:
    what = f"the caller heard {TURNS[index]}"
    if index >= len(turns):
        return Check(what, False, "the application did not send it")
    turn = turns[index]
    if turn.heard_at is None:
        return Check(what, False, f'nothing like "{turn.says}" in {packets} RTP packets (match {turn.match:.2f})')
    late_ms = (turn.heard_at - turn.sent_at) * 1000
    return Check(what, True, f"match {turn.match:.2f}, {late_ms:.0f} ms after it was sent")


def _application_heard(index: int, said: Sequence[Sentence], events: Sequence[dict[str, Any]]) -> Check:
    what = f"the application heard sentence {index + 1}"
    times = said[index].speech_at if index < len(said) else None
    if times is None:
        return Check(what, False, "the caller did not get to say it")
    start, stop = (
        next((e["at"] - at for e in events if e["event"] == name and -0.1 < e["at"] - at < HEARD_SECONDS), None)
        for name, at in zip(("speech_start", "speech_stop"), times, strict=True)
    )
    if start is None or stop is None:
        return Check(what, False, f"it noticed no {'beginning' if start is None else 'end'} of speech at that time")
    return Check(what, True, f"{start * 1000:.0f} ms after its start, noticed its end after {stop * 1000:.0f} ms")


def _barge_in(clear_ms: float | None, cleared: bool) -> Check:
    what = "interrupted, the application fell silent"
    if clear_ms is None:
        return Check(what, False, "its audio went on" if cleared else "it sent no clear")
    return Check(what, clear_ms <= HUSH_SECONDS * 1000, f"{clear_ms:.0f} ms after its clear")


def _marks(events: Sequence[dict[str, Any]]) -> Check:
    sent = [event["name"] for event in events if event["event"] == "mark_sent"]
    echoed = [event["name"] for event in events if event["event"] == "mark_echoed"]
    missing = [name for name in sent if name not in echoed]
    found = f"{len(echoed)} of {len(sent)}" + (f", missing {', '.join(missing)}" if missing else "")
    return Check("the application's marks came back", bool(echoed) and not missing, found)


def _digit(events: Sequence[dict[str, Any]]) -> Check:
    digits = "".join(event["digit"] for event in events if event["event"] == "dtmf")
    return Check("the application got #, once", digits == "#", digits or "no digit")


def _recorded(live: LiveCall) -> Check:
    what = "the record in PostgreSQL says success"
    row = live.row
    if row is None:
        return Check(what, False, "no record of it")
    media = row.media
    carried = "no media figures" if media is None else f"{media.caller_frames} frames in, {media.frames_played} out"
    good = row.ended_at is not None and row.result == "success" and media is not None
    good = good and bool(media and media.caller_frames and media.frames_played)
    how = f"state {row.state}" if row.ended_at is None else f"{row.result}, {row.reason}"
    return Check(what, good, f"{how}{f' ({row.detail})' if row.detail else ''}, {carried}")


def _markers(live: LiveCall, turns: Sequence[HeardTurn], clear_at: float | None, invited_at: float) -> list[Marker]:
    call = live.call
    found: list[tuple[float | None, str]] = [(call.answered_at, "answered"), (clear_at, "clear")]
    found += [(turn.heard_at, MARKER_LABELS.get(turn.number, f"turn {turn.number}")) for turn in turns]
    for index, sentence in enumerate(live.said):
        if sentence.speech_at is not None:
            found.append((sentence.speech_at[0], "caller interrupts" if index == 2 else "caller speaks"))
    found += [(event["at"], f"mark {event['name']}") for event in live.events if event["event"] == "mark_echoed"]
    found += [(live.digit_at, "#"), (call.ended_at, "BYE")]
    return [Marker(at - invited_at, label) for at, label in found if at is not None]


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.0f} ms after its INVITE"
