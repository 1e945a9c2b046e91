"""Calls that end every possible way while workers and controllers are killed leave nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.bench.endings import end_calls

pytestmark = [pytest.mark.asterisk, pytest.mark.alone]

CALLS = 500


@pytest.mark.timeout(240)
async def test_nothing_is_left_of_calls_however_they_end(tmp_path: Path) -> None:
    ended = await end_calls(tmp_path / "endings", CALLS, rate=16, at_once=50)
    assert min(ended.kills["worker"], ended.kills["controller"]) >= 1
    assert not any(ended.left.values()), ended.left
    assert (ended.open, ended.twice) == (0, 0)
    assert len(ended.rows) > CALLS / 2
    reasons = {row.reason for row in ended.rows}
    assert reasons >= {
        *("caller_hangup", "caller_cancelled", "application_ended", "application_lost", "application_refused"),
        *("unknown_number", "app_full"),
    }
