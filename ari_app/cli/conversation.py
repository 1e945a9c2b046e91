"""How a call went as a conversation, for people: docs/response-time.md says what each figure means."""

from __future__ import annotations

from audiosocket.callspec import MediaFigures

FRAME_MS = 20
FIELDS = frozenset(
    (
        "turns",
        "unanswered_turns",
        "interruptions",
        "barge_ins_ignored",
        "response_ms",
        "barge_in_ms",
        "caller_talk_ms",
        "app_talk_ms",
        "both_talk_ms",
    )
)
"""The media figures that are told here and need not be listed with the others."""


def conversation(figures: MediaFigures) -> list[str]:
    """A line each for turns, response time, barge-in and talk; none for what did not happen."""
    lines = []
    if figures.turns or figures.interruptions:
        lines.append(
            f"turns: {figures.turns}, {figures.unanswered_turns} unanswered, {figures.interruptions} interrupted"
        )
    if figures.response_ms:
        lines.append(f"response time: {_spread(figures.response_ms)}")
    if figures.barge_in_ms or figures.barge_ins_ignored:
        told = [_spread(figures.barge_in_ms)] if figures.barge_in_ms else []
        told += [f"{figures.barge_ins_ignored} ignored"] if figures.barge_ins_ignored else []
        lines.append(f"barge-in: {', '.join(told)}")
    if figures.caller_talk_ms or figures.app_talk_ms:
        sides = zip(("caller", "application", "both"), _talk_ms(figures), _shares(figures), strict=True)
        lines.append("talk: " + ", ".join(f"{side} {ms / 1000:.1f} s ({share} %)" for side, ms, share in sides))
    return lines


def half_and_most(durations_ms: dict[str, int]) -> str | None:
    """p50 and p95 in ms, for a cell of a table."""
    return f"{durations_ms['p50']}/{durations_ms['p95']}" if durations_ms else None


def talk_shares(figures: MediaFigures) -> str | None:
    """The parts of the time in which the caller, the application and both talked, in %, for a cell of a table."""
    return "/".join(str(share) for share in _shares(figures)) if any(_talk_ms(figures)) else None


def _spread(durations_ms: dict[str, int]) -> str:
    values = ", ".join(f"{name} {durations_ms[name]} ms" for name in ("p50", "p95", "p99", "max"))
    return f"{values} ({durations_ms['count']} measured)"


def _talk_ms(figures: MediaFigures) -> tuple[int, int, int]:
    return figures.caller_talk_ms, figures.app_talk_ms, figures.both_talk_ms


def _shares(figures: MediaFigures) -> list[int]:
    """Of the time of the media leg, in which a frame is played every 20 ms, be it of silence."""
    whole = max(1, (figures.frames_played + figures.silence_played) * FRAME_MS)
    return [round(100 * ms / whole) for ms in _talk_ms(figures)]
