"""The lines and cells that tell how a call went as a conversation."""

from __future__ import annotations

import msgspec
import pytest

from ari_app.cli.conversation import FIELDS, conversation, half_and_most, talk_shares
from audiosocket.callspec import MediaFigures

pytestmark = pytest.mark.unit

TALKED = MediaFigures(
    caller_frames=3000,
    frames_played=1200,
    silence_played=1800,
    turns=12,
    unanswered_turns=1,
    interruptions=2,
    barge_ins_ignored=1,
    response_ms={"count": 9, "p50": 740, "p95": 1220, "p99": 1300, "max": 1300},
    barge_in_ms={"count": 2, "p50": 240, "p95": 300, "p99": 300, "max": 300},
    caller_talk_ms=12_300,
    app_talk_ms=24_000,
    both_talk_ms=900,
)


def test_a_conversation_in_four_lines() -> None:
    assert conversation(TALKED) == [
        "turns: 12, 1 unanswered, 2 interrupted",
        "response time: p50 740 ms, p95 1220 ms, p99 1300 ms, max 1300 ms (9 measured)",
        "barge-in: p50 240 ms, p95 300 ms, p99 300 ms, max 300 ms (2 measured), 1 ignored",
        "talk: caller 12.3 s (20 %), application 24.0 s (40 %), both 0.9 s (2 %)",
    ]
    assert half_and_most(TALKED.response_ms) == "740/1220"
    assert talk_shares(TALKED) == "20/40/2"


def test_what_did_not_happen_is_not_told() -> None:
    assert conversation(MediaFigures()) == []
    assert half_and_most({}) is None
    assert talk_shares(MediaFigures()) is None
    assert conversation(MediaFigures(app_talk_ms=400, frames_played=20, silence_played=80)) == [
        "talk: caller 0.0 s (0 %), application 0.4 s (20 %), both 0.0 s (0 %)"
    ]
    assert conversation(MediaFigures(barge_ins_ignored=3)) == ["barge-in: 3 ignored"]


def test_only_figures_that_exist_are_taken_out_of_the_list() -> None:
    assert {field.name for field in msgspec.structs.fields(MediaFigures)} > FIELDS
