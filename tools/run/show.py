"""What the reader sees: on a terminal a live picture of the call, elsewhere plain lines without control characters."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from tools.apps.conversation import QUIET_MS
from tools.run.call import LiveCall, ended
from tools.run.evidence import TURNS, Verdict

LOOK_SECONDS = 0.2
PLAIN_FIGURES_SECONDS = 2.0
HOLD_SECONDS = 0.6
"""Plain lines wait so long: the application's record comes late, and what was told cannot be put in order later."""
BAR_CELLS = 20
BAR_FLOOR_DBFS = -48.0
MOMENTS_SHOWN = 11


class Show:
    """Standard output. When nobody reads it any more the run is asked to stop, as a SIGTERM would."""

    def __init__(self) -> None:
        self.live = sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        self.console = (
            Console(highlight=False)
            if self.live
            else Console(force_terminal=False, color_system=None, width=150, highlight=False)
        )
        self._lost = False

    def say(self, text: str = "", style: str = "") -> None:
        """One line or several."""
        self._print(Text(text, style=style if self.live else ""))

    def error(self, text: str) -> None:
        """What went wrong, to standard error."""
        with contextlib.suppress(OSError):
            print(f"trunkbridge: {text}", file=sys.stderr, flush=True)

    def lose(self) -> None:
        """The terminal has gone: whatever is still written goes nowhere."""
        if not self._lost:
            self._lost = True
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for descriptor in (1, 2):
                os.dup2(nowhere, descriptor)
            os.close(nowhere)

    @contextlib.asynccontextmanager
    async def following(self, call: LiveCall) -> AsyncIterator[None]:
        """Shows the call while it goes on."""
        task = asyncio.create_task(self._draw(call) if self.live else self._list(call), name="show-call")
        try:
            yield
        finally:
            await ended(task)

    def verdict(self, verdict: Verdict, live: LiveCall) -> None:
        """The figures and the checks, as two tables."""
        self.say()
        figures = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2))
        for name, value in _figures(verdict, live):
            if value:
                figures.add_row(name, value)
        self._print(figures)
        if any(turn.response_ms is not None for turn in verdict.turns):
            self.say(f"  ({QUIET_MS} ms of every answer's are the application's: so much quiet ends a sentence for it)")
        self.say()
        checks = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2))
        checks.add_column(no_wrap=True)
        for check in verdict.checks:
            word = Text("good" if check.good else "MISSING", style="green" if check.good else "bold red")
            checks.add_row(word, Text(check.what), Text(check.found, style="dim"))
        self._print(checks)

    def _print(self, what: Text | Table) -> None:
        try:
            if self.live:
                self.console.print(what, soft_wrap=isinstance(what, Text))
                return
            with self.console.capture() as captured:
                self.console.print(what, soft_wrap=isinstance(what, Text))
            # Tables are filled up with spaces, which a log has no use for.
            for line in captured.get().splitlines():
                print(line.rstrip())
            sys.stdout.flush()
        except OSError:
            self._unread()

    def _unread(self) -> None:
        if not self._lost:
            self.lose()
            signal.raise_signal(signal.SIGTERM)

    async def _draw(self, call: LiveCall) -> None:
        try:
            with Live(_picture(call), console=self.console, auto_refresh=False) as live:
                try:
                    while True:
                        await asyncio.sleep(LOOK_SECONDS)
                        live.update(_picture(call), refresh=True)
                finally:
                    live.update(_picture(call), refresh=True)
        except OSError:
            self._unread()

    async def _list(self, call: LiveCall) -> None:
        told = 0
        next_figures = time.monotonic() + PLAIN_FIGURES_SECONDS
        try:
            while True:
                told = self._tell(call, told, time.monotonic() - HOLD_SECONDS)
                if time.monotonic() >= next_figures:
                    next_figures += PLAIN_FIGURES_SECONDS
                    values = "  ".join(f"{name} {value}" for name, value in _live_figures(call))
                    self.say(f"{call.seconds:5.1f} s  [{values}]")
                await asyncio.sleep(LOOK_SECONDS)
        finally:
            self._tell(call, told)

    def _tell(self, call: LiveCall, told: int, until: float = float("inf")) -> int:
        due = [moment for moment in call.story() if moment.at < until]
        for moment in due[told:]:
            self.say(_moment(call, moment.at, moment.text))
        return len(due)


def _moment(call: LiveCall, at: float, text: str) -> str:
    return f"{max(0.0, at - (call.call.invited_at or call.began_at)):5.1f} s  {text}"


def _live_figures(call: LiveCall) -> list[tuple[str, str]]:
    figures = call.figures
    response = call.response_ms
    return [
        ("state", call.row.state if call.row is not None else "calling"),
        ("frames from caller", str(figures.caller_frames if figures else 0)),
        ("played to caller", str(figures.frames_played if figures else 0)),
        ("queued", f"{call.playout_ms / 1000:.1f} s"),
        ("marks", f"{figures.marks_sent}/{figures.marks_received}" if figures else "0/0"),
        ("clears", str(figures.clears if figures else 0)),
        ("digits", str(figures.digits if figures else 0)),
        ("response", "-" if response is None else f"{response:.0f} ms"),
    ]


def _picture(call: LiveCall) -> Panel:
    caller_level, application_level = call.levels()
    values = dict(_live_figures(call))
    grid = Table.grid(padding=(0, 2))
    grid.add_row("state", Text(values["state"], style="bold"), f"{call.seconds:.1f} s")
    grid.add_row("caller", _bar(caller_level, "blue"), f"{values['frames from caller']} frames")
    grid.add_row(
        "application",
        _bar(application_level, "dark_orange"),
        f"{values['played to caller']} frames, {values['queued']} queued",
    )
    counts = Text(
        f"marks {values['marks']}   clears {values['clears']}   digits {values['digits']}"
        f"   response {values['response']}"
    )
    story = Table.grid(padding=(0, 2))
    for moment in call.story()[-MOMENTS_SHOWN:]:
        story.add_row(Text(_moment(call, moment.at, moment.text), style="dim", no_wrap=True, overflow="ellipsis"))
    title = f"{call.call.caller} to {call.call.callee}, trunk {call.line.trunk}"
    return Panel(Group(grid, counts, Text(), story), title=title, title_align="left")


def _bar(level_dbfs: float, style: str) -> Text:
    share = max(0.0, 1 - level_dbfs / BAR_FLOOR_DBFS)
    cells = min(BAR_CELLS, round(share * BAR_CELLS))
    return Text("█" * cells, style=style) + Text("·" * (BAR_CELLS - cells), style="dim")


def _figures(verdict: Verdict, live: LiveCall) -> list[tuple[str, str]]:
    reception, media = verdict.reception, live.row.media if live.row is not None else None
    responses = [
        (
            "# to the goodbye" if turn.number == len(TURNS) else f"end of speech to answer {turn.number - 1}",
            _ms(turn.response_ms),
        )
        for turn in verdict.turns
        if turn.response_ms is not None
    ]
    rows = [
        ("INVITE to 200", _ms(verdict.answer_ms)),
        ("INVITE to first application audio", _ms(verdict.first_audio_ms)),
        *responses,
        ("barge-in: clear to silence", _ms(verdict.clear_ms)),
        ("barge-in: caller speaks to silence", _ms(verdict.yield_ms)),
        ("RTP packets to the caller, lost", f"{reception.packets}, {reception.lost}"),
        (
            "RTP gaps p50, p99, max",
            f"{reception.gap_p50_ms:.1f}, {reception.gap_p99_ms:.1f}, {reception.gap_max_ms:.1f} ms",
        ),
    ]
    if media is not None:
        rows += [
            ("frames from the caller, to the caller", f"{media.caller_frames}, {media.frames_played}"),
            ("underruns, late ticks", f"{media.underruns} ({media.underruns_stall} of a stall), {media.ticks_late}"),
        ]
    rows.append(("length of the call", f"{live.seconds:.1f} s"))
    return rows


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.0f} ms"
