"""A check on the screen, while it runs and when it is done, and as JSON."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec
from rich.console import Console
from rich.padding import Padding
from rich.status import Status
from rich.table import Table
from rich.text import Text

from audiosocket.appcheck.check import Outcome
from audiosocket.appcheck.figures import Figures, Spread
from audiosocket.appcheck.findings import Finding, Severity
from audiosocket.appcheck.scenarios import SCENARIOS
from audiosocket.appcheck.trace import Trace
from audiosocket.appcheck.words import outcome

_COLOURS = {Severity.ERROR: "bold red", Severity.WARNING: "bold yellow", Severity.INFO: "bold cyan"}
_NAMES = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.INFO: "remark"}
LISTED = 100
"""Of marks and clears of a call, the report has so many; how many more there were is said in `left_out`."""


class Screen:
    """Tells a person how far the check is: a line for every scenario, and on a terminal what is under way."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status: Status | None = None
        self._began = 0.0

    def begins(self, scenario: str) -> None:
        self._began = time.monotonic()
        if self._console.is_terminal:
            self._status = self._console.status(f"{scenario}: {SCENARIOS[scenario][1]}")
            self._status.start()

    def ended(self, scenario: str, traces: Sequence[Trace]) -> None:
        self.quiet()
        line = Table.grid(padding=(0, 2))
        line.add_column(width=11)
        line.add_column(width=7, justify="right")
        line.add_column(overflow="fold")
        seconds = time.monotonic() - self._began
        line.add_row(Text(scenario, "bold"), f"{seconds:.1f} s", Text(outcome(scenario, traces)))
        self._console.print(Padding(line, (0, 0, 0, 2), expand=False))

    def quiet(self) -> None:
        """Takes away what is under way."""
        if self._status is not None:
            self._status.stop()
            self._status = None


def show(console: Console, found: Outcome) -> None:
    """Figures, findings and the verdict."""
    if found.figures.connect_ms is not None:
        console.print()
        console.print(_figures(found.figures))
    played = len({trace.scenario for trace in found.traces})
    for one in found.findings:
        console.print()
        console.print(_finding(one, played))
    console.print()
    if found.abandoned:
        console.print("The other calls were left out: without a call that stands they would say the same.")
    console.print(verdict(found.findings))


def verdict(found: Sequence[Finding]) -> Text:
    """One sentence."""
    counts = Counter(one.severity for one in found)
    parts = [
        f"{count} {_NAMES[severity]}{'' if count == 1 else 's'}" for severity in Severity if (count := counts[severity])
    ]
    said = ", ".join(parts) or "nothing to remark"
    if counts[Severity.ERROR]:
        return Text.assemble(("Not ready for callers: ", "bold red"), said)
    return Text.assemble(("Ready for callers: ", "bold green"), said)


def _finding(one: Finding, played: int) -> Table:
    where = "in every call" if len(one.scenarios) == played > 1 else f"in {', '.join(one.scenarios)}"
    block = Table.grid(padding=(0, 2))
    block.add_column(width=9)
    block.add_column(overflow="fold")
    title = Text.assemble((one.code, "bold"), (f"   {where}", "dim"))
    block.add_row(Text(_NAMES[one.severity], _COLOURS[one.severity]), title)
    block.add_row("", Text(one.seen[:1].upper() + one.seen[1:] + "."))
    block.add_row(Text("do", "dim"), Text(one.remedy))
    if one.documents:
        block.add_row(Text("see", "dim"), Text(one.documents))
    return block


def _figures(found: Figures) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2))
    table.add_column("  FIGURE")
    for heading in ("LEAST", "P50", "MOST", "TIMES"):
        table.add_column(heading, justify="right")
    spreads: list[tuple[str, Spread | None, str]] = [
        ("WebSocket open", found.connect_ms, " ms"),
        ("first sound of a greeting", found.first_audio_ms, " ms"),
        ("answer after the caller's last sound", found.response_ms, " ms"),
        ("the same on a slow network", found.response_slow_network_ms, " ms"),
        ("clear after the caller cuts in", found.barge_in_ms, " ms"),
        ("close after ours", found.close_ms, " ms"),
        ("audio in a media message", found.message_bytes, " B"),
    ]
    for name, spread, unit in spreads:
        if spread is None:
            table.add_row(f"  {name}", "", "none", "", "", style="dim")
            continue
        values = (f"{value:,.0f}{unit}" for value in (spread.least, spread.p50, spread.most))
        table.add_row(f"  {name}", *values, f"{spread.count:,}")
    pace = "in bursts" if found.burst else "" if found.pace is None else f"{found.pace:.2f} x"
    level = "" if found.level_dbfs is None else f"{found.level_dbfs:.0f} dBFS"
    for name, value in (
        ("audio sent against audio played", pace),
        ("most audio waiting to be played", f"{found.lead_ms:,} ms" if found.lead_ms else ""),
        ("level of its voice", level),
        ("marks sent / returned", f"{found.marks:,} / {found.marks_returned:,}" if found.marks else ""),
        ("gaps for want of audio", f"{found.underruns:,}"),
    ):
        if value:
            table.add_row(f"  {name}", "", value, "", "")
    return table


def as_json(found: Outcome, about: dict[str, Any]) -> bytes:
    """The report as JSON, for programs: `about`, verdict, figures, findings and the calls one by one."""
    report = about | {
        "good": not any(one.severity is Severity.ERROR for one in found.findings),
        "abandoned": found.abandoned,
        "findings": found.findings,
        "figures": found.figures,
        "calls": [_call(trace) for trace in found.traces],
    }
    return msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"


def _call(trace: Trace) -> dict[str, Any]:
    lists: dict[str, list[Any]] = {"marks": trace.marks, "marks_returned": trace.echoes, "clears": trace.clears}
    return {
        "scenario": trace.scenario,
        "number": trace.number,
        "stream_sid": trace.stream_sid,
        "seconds": round(trace.seconds, 3),
        "handshake": trace.handshake,
        "refusal": trace.refusal,
        "caller_speaks": trace.said,
        "application_speaks": trace.spurts(),
        "media_messages": len(trace.media),
        "media_bytes": sum(media.size for media in trace.media),
        **{key: found[:LISTED] for key, found in lists.items()},
        "left_out": {key: max(0, len(found) - LISTED) for key, found in lists.items()},
        "digits_at": trace.digits,
        "ignored": trace.unusable,
        "ignored_events": sorted(trace.events),
        "ending": trace.ending,
        "closing": trace.closing,
        "gateway_figures": trace.figures,
    }
