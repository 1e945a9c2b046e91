"""A picture of a call: both directions as waveforms, one above the other, on one time axis."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tools.audio.pcm import FULL_SCALE, Pcm

WIDTH = 1800
MARGIN_LEFT, MARGIN_RIGHT = 24, 24
TRACK_HEIGHT = 210
TITLE_HEIGHT = 40
AXIS_HEIGHT = 56
LABEL_ROW = 26
GAP_BETWEEN_TRACKS = 14
MARKER_ROWS_MAX = 6

PAPER = "#ffffff"
INK = "#1f2933"
FAINT = "#e4e9ee"
QUIET = "#8896a5"
TRACK_PAPER = "#f8fafb"
TRACK_COLOURS = (("#9ec5e8", "#1f6fb5"), ("#f6c49a", "#d9680f"))
"""Per track: the colour of the peaks and the colour of the RMS body."""
MARKER_COLOUR = "#b3202c"
TICK_STEPS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0)
MIN_TICK_PIXELS = 90


@dataclass(frozen=True, slots=True)
class Marker:
    """Something that happened: a line through both waveforms with a label above them."""

    seconds: float
    """On the picture's time axis: 0 is the first sample."""
    label: str


Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def _tick_step(seconds: float, pixels: int) -> float:
    """The finest round step whose labels do not touch."""
    for step in TICK_STEPS:
        if step / seconds * pixels >= MIN_TICK_PIXELS:
            return step
    return TICK_STEPS[-1]


def _columns(samples: Pcm, columns: int, total: int) -> list[tuple[float, float, float]]:
    """(lowest, highest, rms), each -1 to 1, for every pixel column of a track that is `total` samples wide."""
    edges = np.linspace(0, total, columns + 1).astype(np.int64)
    result = []
    for start, end in itertools.pairwise(edges):
        piece = samples[start : max(end, start + 1)].astype(np.float64) / FULL_SCALE
        result.append(
            (float(piece.min()), float(piece.max()), float(np.sqrt(np.mean(piece**2)))) if len(piece) else (0.0,) * 3
        )
    return result


def _rows(draw: ImageDraw.ImageDraw, font: Font, markers: Sequence[Marker], x_of: Pixels) -> list[int]:
    """A row for every label (markers in order of time) so that labels do not overlap while there are rows left."""
    ends = [float("-inf")] * MARKER_ROWS_MAX
    rows = []
    for marker in markers:
        x = x_of(marker.seconds)
        row = next((r for r, end in enumerate(ends) if end + 10 <= x), int(np.argmin(ends)))
        ends[row] = x + 8 + draw.textlength(marker.label, font=font)
        rows.append(row)
    return rows


class Pixels:
    """Seconds to x."""

    def __init__(self, seconds: float) -> None:
        self.left = MARGIN_LEFT
        self.right = WIDTH - MARGIN_RIGHT
        self.scale = (self.right - self.left) / seconds

    def __call__(self, seconds: float) -> float:
        return self.left + seconds * self.scale


def waveforms_png(
    path: Path | str,
    left: Pcm,
    right: Pcm,
    rate: int = 8000,
    titles: tuple[str, str] = ("caller", "application"),
    markers: Sequence[Marker] = (),
) -> None:
    """Draw `left` above `right` into a PNG. Samples of the same index are at the same x.

    Light is the peak of a column, dark its RMS; full height is full scale. Markers are red lines through both tracks.
    Raises ValueError when there is nothing to draw, OSError when the file cannot be written.
    """
    total = max(len(left), len(right))
    if not total:
        raise ValueError("both channels are empty: there is nothing to draw")
    seconds = total / rate
    x_of = Pixels(seconds)
    small, bold = ImageFont.load_default(17), ImageFont.load_default(22)
    ordered = sorted(markers, key=lambda marker: marker.seconds)
    probe = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    rows = _rows(probe, small, ordered, x_of)
    top = 14 + (max(rows) + 1 if rows else 0) * LABEL_ROW
    tracks_height = 2 * (TITLE_HEIGHT + TRACK_HEIGHT) + GAP_BETWEEN_TRACKS
    image = Image.new("RGB", (WIDTH, top + tracks_height + AXIS_HEIGHT), PAPER)
    draw = ImageDraw.Draw(image)

    step = _tick_step(seconds, int(x_of.right - x_of.left))
    ticks = [index * step for index in range(int(seconds / step + 1e-9) + 1)]
    bottom = top + tracks_height
    tops = [top + index * (TITLE_HEIGHT + TRACK_HEIGHT + GAP_BETWEEN_TRACKS) + TITLE_HEIGHT for index in (0, 1)]
    for samples, track_top, colours in zip((left, right), tops, TRACK_COLOURS, strict=True):
        _track(draw, samples, total, track_top, colours, [x_of(tick) for tick in ticks])

    draw.line((x_of.left, bottom + 4, x_of.right, bottom + 4), fill=INK, width=2)
    decimals = 2 if step < 0.1 else 1 if step < 1 else 0
    for tick in ticks:
        x = x_of(tick)
        draw.line((x, bottom + 4, x, bottom + 12), fill=INK, width=2)
        anchor = "la" if tick == 0 else "ra" if x > x_of.right - 20 else "ma"
        draw.text((x, bottom + 18), f"{tick:.{decimals}f} s", font=small, fill=INK, anchor=anchor)

    # All lines before any text, so that no line crosses a word.
    for marker, row in zip(ordered, rows, strict=True):
        x = x_of(marker.seconds)
        for y in range(10 + row * LABEL_ROW, bottom + 4, 8):
            draw.line((x, y, x, min(y + 4, bottom + 4)), fill=MARKER_COLOUR, width=1)
    for marker, row in zip(ordered, rows, strict=True):
        x = x_of(marker.seconds)
        flipped = x + 5 + draw.textlength(marker.label, font=small) > WIDTH
        at = (x - 5 if flipped else x + 5, 10 + row * LABEL_ROW)
        _text_on_paper(draw, at, marker.label, small, MARKER_COLOUR, "ra" if flipped else "la")
    for title, track_top, colours in zip(titles, tops, TRACK_COLOURS, strict=True):
        _text_on_paper(draw, (x_of.left, track_top - 10), title, bold, colours[1], "ls")
    image.save(path, format="PNG", optimize=True)


def _text_on_paper(
    draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, font: Font, colour: str, anchor: str
) -> None:
    box = draw.textbbox(at, text, font=font, anchor=anchor)
    draw.rectangle((box[0] - 2, box[1] - 2, box[2] + 2, box[3] + 2), fill=PAPER)
    draw.text(at, text, font=font, fill=colour, anchor=anchor)


def _track(
    draw: ImageDraw.ImageDraw, samples: Pcm, total: int, top: int, colours: tuple[str, str], ticks: Sequence[float]
) -> None:
    peak_colour, rms_colour = colours
    left, right = MARGIN_LEFT, WIDTH - MARGIN_RIGHT
    draw.rectangle((left, top, right, top + TRACK_HEIGHT), fill=TRACK_PAPER)
    for x in ticks:
        draw.line((x, top, x, top + TRACK_HEIGHT), fill=FAINT)
    middle, half = top + TRACK_HEIGHT / 2, TRACK_HEIGHT / 2 - 4
    for column, (low, high, rms) in enumerate(_columns(samples, right - left, total)):
        x = left + column
        draw.line((x, middle - high * half, x, middle - low * half), fill=peak_colour)
        draw.line((x, middle - min(rms, high) * half, x, middle - max(-rms, low) * half), fill=rms_colour)
    draw.line((left, middle, right, middle), fill=QUIET)
