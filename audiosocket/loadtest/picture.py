"""A picture of a load test: how its times lie, and how it went on. Needs Pillow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from audiosocket.loadtest.figures import Point

WIDTH, PANEL_HEIGHT = 1400, 230
LEFT, RIGHT, TITLE, AXIS = 90, 30, 44, 40
PAPER, INK, FAINT, QUIET = "#ffffff", "#1f2933", "#e4e9ee", "#8896a5"
COLOURS = ("#1f6fb5", "#d9680f", "#3a8f3a")
STEPS = (1, 2, 5)


@dataclass(frozen=True, slots=True)
class Line:
    """One curve; None: nothing known at that moment."""

    name: str
    values: Sequence[float | None]


@dataclass(frozen=True, slots=True)
class Panel:
    """Curves over one axis."""

    title: str
    at: Sequence[float]
    """Of each value, on the panel's own axis."""
    lines: tuple[Line, ...]
    unit: str
    """Of the axis below."""
    filled: bool = False
    """Drawn as bars from zero, which a distribution is."""


def panels(points: Sequence[Point], delays: Mapping[int, int]) -> list[Panel]:
    """What there is to draw: the frames by their delay in ms, and the moments of the run."""
    found = []
    if delays:
        shares = [100 * count / sum(delays.values()) for count in delays.values()]
        title = "% of the frames by their round trip, without the slowest thousandth"
        found.append(Panel(title, list(delays), (Line("", shares),), "ms", filled=True))
    at = [point.at for point in points]
    for title, lines in (
        ("round trip, ms", (Line("p50", [p.p50 for p in points]), Line("p99", [p.p99 for p in points]))),
        ("behind 50 frames a second, ms (median call)", (Line("", [p.drift_ms for p in points]),)),
        ("frames missing so far", (Line("", [p.missing for p in points]),)),
        ("worker: % of a core", (Line("", [None if p.cores is None else 100 * p.cores for p in points]),)),
        ("worker: memory, MiB", (Line("", [p.rss_mib for p in points]),)),
        ("worker: open descriptors", (Line("", [p.descriptors for p in points]),)),
        ("the machine: cores that others took", (Line("", [p.others_cores for p in points]),)),
        ("the generator's own clock, latest, ms", (Line("", [p.late_ms for p in points]),)),
    ):
        if len(points) > 1 and any(value is not None for line in lines for value in line.values):
            found.append(Panel(title, at, lines, "s"))
    return found


def draw(path: Path, title: str, drawn: Sequence[Panel]) -> None:
    """Write the PNG. Raises OSError."""
    image = Image.new("RGB", (WIDTH, 50 + len(drawn) * (TITLE + PANEL_HEIGHT + AXIS)), PAPER)
    pen = ImageDraw.Draw(image)
    pen.text((LEFT, 16), title, font=ImageFont.load_default(22), fill=INK)
    for number, panel in enumerate(drawn):
        _panel(pen, panel, 50 + number * (TITLE + PANEL_HEIGHT + AXIS) + TITLE)
    image.save(path, format="PNG", optimize=True)


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round values from `low` to `high`, no more than twice `about`."""
    rough = max(high - low, 1e-9) / about
    scale = 1.0
    while scale > rough:
        scale /= 10
    while scale * 10 <= rough:
        scale *= 10
    step = next((scale * step for step in STEPS if scale * step >= rough), scale * 10)
    first = int(-(-low // step))
    return [number * step for number in range(first, int(high / step + 1e-9) + 1)]


def _panel(pen: ImageDraw.ImageDraw, panel: Panel, top: int) -> None:
    small, bold = ImageFont.load_default(15), ImageFont.load_default(18)
    bottom, right = top + PANEL_HEIGHT, WIDTH - RIGHT
    values = [value for line in panel.lines for value in line.values if value is not None]
    highest, lowest = max(1.0, *values) * 1.08, min(0.0, *values) * 1.08
    up = PANEL_HEIGHT / (highest - lowest)
    first, last = min(panel.at), max(panel.at) + panel.filled
    across = (right - LEFT) / max(last - first, 1e-9)
    pen.text((LEFT, top - 26), panel.title, font=bold, fill=INK)
    for value in ticks(lowest, highest, 4):
        y = bottom - (value - lowest) * up
        pen.line((LEFT, y, right, y), fill=FAINT)
        pen.text((LEFT - 8, y), f"{value:g}", font=small, fill=QUIET, anchor="rm")
    for value in ticks(first, last, 10):
        x = LEFT + (value - first) * across
        pen.line((x, bottom, x, bottom + 5), fill=INK)
        pen.text((x, bottom + 9), f"{value:g} {panel.unit}", font=small, fill=QUIET, anchor="ma")
    name_at: float = right
    for line, colour in zip(panel.lines, cycle(COLOURS), strict=False):
        known = [
            (LEFT + (at - first) * across, bottom - (value - lowest) * up)
            for at, value in zip(panel.at, line.values, strict=True)
            if value is not None
        ]
        if panel.filled:
            for x, y in known:
                pen.rectangle((x, y, x + max(1.0, across - 1), bottom), fill=colour)
        else:
            pen.line(known, fill=colour, width=2)
        if line.name:
            pen.text((name_at, top - 24), line.name, font=small, fill=colour, anchor="ra")
            name_at -= pen.textlength(line.name, font=small) + 20
    pen.line((LEFT, bottom, right, bottom), fill=INK)
