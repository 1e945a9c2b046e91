"""A whole check: the scripted calls one after the other, then the judgement over all that was seen."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import urlsplit

from audiosocket.appcheck.endings import judge_endings
from audiosocket.appcheck.figures import Figures, figures
from audiosocket.appcheck.findings import Finding, in_order
from audiosocket.appcheck.protocol import Case, judge_protocol
from audiosocket.appcheck.scenarios import SCENARIOS, Lab, Pace
from audiosocket.appcheck.talk import judge_talk
from audiosocket.appcheck.together import judge_together
from audiosocket.appcheck.trace import Trace
from audiosocket.appcheck.voice import Samples
from audiosocket.callspec import CallSpec
from audiosocket.dialects import open_dialect
from audiosocket.errors import ApplicationError


class Audience(Protocol):
    """Who is told how far the check is."""

    def begins(self, scenario: str) -> None:
        """The calls of this scenario are placed now."""

    def ended(self, scenario: str, traces: Sequence[Trace]) -> None:
        """They are over."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a check brought."""

    traces: list[Trace]
    findings: list[Finding]
    figures: Figures
    abandoned: bool
    """Whether calls were left out because none could be held."""


async def check(
    spec: CallSpec, names: Sequence[str], pace: Pace, recorded: Samples | None, audience: Audience
) -> Outcome:
    """Plays the scenarios `names`, each over real calls, and judges. Raises `ConfigError` for a dialect's option.

    `recorded` is what callers say instead of the synthetic voice. When the first scenario's call cannot be placed, or
    is ended by the application at once, the rest is left out: they would all say the same.
    """
    encoding = open_dialect(spec).encoding
    lab = Lab(spec, pace, recorded)
    abandoned = False
    for number, name in enumerate(names):
        audience.begins(name)
        before = len(lab.traces)
        try:
            await SCENARIOS[name][0](lab)
        except ApplicationError:
            abandoned = number == 0 and len(names) > 1  # it is on the trace
        placed = lab.traces[before:]
        audience.ended(name, placed)
        if name == "handshake" and placed[0].ending is not None:
            abandoned = len(names) > 1
        if abandoned:
            break
    tls = urlsplit(spec.url).scheme == "wss"
    case = Case(spec.dialect, encoding, _exposed(spec.url), tls, words=recorded is not None)
    spoken = {number: lab.says(number) for number in {trace.number for trace in lab.traces}}
    return Outcome(lab.traces, judge(lab.traces, case, spoken), figures(lab.traces), abandoned)


def judge(traces: Sequence[Trace], case: Case, spoken: dict[int, Samples]) -> list[Finding]:
    """All that is wrong, the worst first. `spoken` is what each caller said, by its number."""
    return in_order(
        [
            *judge_protocol(traces, case),
            *judge_endings(traces, case),
            *judge_talk(traces, case, spoken),
            *judge_together(traces, case, spoken),
        ]
    )


def _exposed(url: str) -> bool:
    parts = urlsplit(url)
    if parts.scheme != "ws" or parts.hostname == "localhost":
        return False
    try:
        return not ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return True
