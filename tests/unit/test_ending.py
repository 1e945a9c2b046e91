"""How an ending is told: who has to look, and why, for everything that can end a call."""

from __future__ import annotations

import re

import pytest

from ari_app.call import ending
from ari_app.call.machine import OVER, TABLE, Trigger
from ari_app.call.routing import NotAdmitted
from ari_app.domain.hangup import Cause, sip_from_cause
from ari_app.domain.termination import Result, Termination
from audiosocket.callspec import CallReport, EndReason, MediaFigures

pytestmark = pytest.mark.unit

ENDING_TRIGGERS = sorted({trigger for (_, trigger), (target, _) in TABLE.items() if target in OVER})


def report(reason: EndReason, detail: str = "") -> CallReport:
    return CallReport(
        call_id="c",
        leg_uuid="l",
        worker_id="gw/0",
        reason=reason,
        detail=detail,
        started_at_ms=1,
        ended_at_ms=2,
        figures=MediaFigures(),
    )


@pytest.mark.parametrize(
    ("trigger", "connected", "reason", "cause", "expected"),
    [
        (Trigger.CALLER_GONE, True, "", 16, (Result.SUCCESS, "caller_hangup", 16)),
        (Trigger.CALLER_GONE, True, "", None, (Result.SUCCESS, "caller_hangup", None)),
        (Trigger.CALLER_GONE, False, "", 127, (Result.CLIENT_ERROR, "caller_cancelled", 127)),
        (Trigger.CALLER_GONE, True, "gone_unseen", None, (Result.INDETERMINATE, "gone_unseen", None)),
        (Trigger.CALLER_GONE, False, "gone_unseen", None, (Result.INDETERMINATE, "gone_unseen", None)),
        (Trigger.CALLER_GONE, True, "asterisk_restarted", None, (Result.SERVER_ERROR, "asterisk_restarted", None)),
        (Trigger.HANGUP_ORDERED, True, "", None, (Result.SUCCESS, "operator_hangup", 16)),
        (Trigger.HANGUP_ORDERED, True, "controller_restarted", None, (Result.SERVER_ERROR, "controller_restarted", 42)),
        (Trigger.TIME_LIMIT, True, "", None, (Result.SUCCESS, "time_limit", 16)),
        (Trigger.SETUP_TIMEOUT, False, "", None, (Result.SERVER_ERROR, "setup_timeout", 42)),
        (Trigger.PLACE_FAILED, False, "no_workers", None, (Result.SERVER_ERROR, "no_workers", 42)),
        (Trigger.PLACE_FAILED, False, "redis", 34, (Result.SERVER_ERROR, "redis", 34)),
        (Trigger.ANSWER_FAILED, False, "", None, (Result.SERVER_ERROR, "answer_failed", 42)),
        (Trigger.MEDIA_FAILED, False, "", None, (Result.SERVER_ERROR, "media_failed", 42)),
        (Trigger.BRIDGE_FAILED, False, "", None, (Result.SERVER_ERROR, "bridge_failed", 42)),
        (Trigger.CONTINUE_FAILED, True, "", None, (Result.SERVER_ERROR, "continue_failed", 42)),
    ],
)
def test_what_a_trigger_stands_for(
    trigger: Trigger, connected: bool, reason: str, cause: int | None, expected: tuple[Result, str, int | None]
) -> None:
    found = ending.of_trigger(trigger, connected=connected, reason=reason, detail="why", cause=cause)
    assert found == Termination(expected[0], expected[1], "why", expected[2])


@pytest.mark.parametrize(
    "trigger",
    [Trigger.MEDIA_GONE, Trigger.REPORTED, Trigger.REPORT_TIMEOUT, Trigger.SETTLED, Trigger.END_TIMEOUT],
)
def test_what_only_the_report_can_tell(trigger: Trigger) -> None:
    assert ending.of_trigger(trigger, connected=True) is None


@pytest.mark.parametrize("trigger", ENDING_TRIGGERS)
@pytest.mark.parametrize("connected", [True, False])
@pytest.mark.parametrize("reason", ["", "something_else"])
def test_every_trigger_that_ends_a_call_has_a_reason_fit_for_a_label(
    trigger: Trigger, connected: bool, reason: str
) -> None:
    found = ending.of_trigger(trigger, connected=connected, reason=reason)
    assert found is None or re.fullmatch(r"[a-z_]+", found.reason)


def test_our_faults_are_told_so_that_a_carrier_may_try_another_way() -> None:
    assert sip_from_cause(ending.OUR_FAULT) == 503


@pytest.mark.parametrize(
    ("reason", "result"),
    [
        ("trunk_full", Result.SERVER_ERROR),
        ("node_full", Result.SERVER_ERROR),
        ("unknown_number", Result.CLIENT_ERROR),
        ("unknown_trunk", Result.CLIENT_ERROR),
        ("invalid_number", Result.CLIENT_ERROR),
    ],
)
def test_whose_matter_a_refusal_is(reason: str, result: Result) -> None:
    refusal = NotAdmitted(reason, "in words", Cause.UNALLOCATED_NUMBER)
    assert ending.of_refusal(refusal) == Termination(result, reason, "in words", 1)


@pytest.mark.parametrize("answered", [True, False])
@pytest.mark.parametrize("reason", EndReason)
def test_a_report_tells_the_end_unless_it_saw_only_the_leg_close(reason: EndReason, answered: bool) -> None:
    found = ending.of_report(report(reason, "close code 1000"), answered=answered)
    if reason is EndReason.LEG_CLOSED:
        assert found is None
    else:
        assert found is not None
        good = reason in (EndReason.APP_CLOSED, EndReason.STREAM_LIMIT)
        cause = 42 if not answered else 16 if good else 38
        assert (found.detail, found.hangup_cause) == ("close code 1000", cause)


@pytest.mark.parametrize(("answered", "cause"), [(True, 38), (False, 42)])
def test_media_that_went_without_a_word(answered: bool, cause: int) -> None:
    lost = Termination(Result.SERVER_ERROR, "media_lost", "the worker did not report", cause)
    assert ending.of_nothing(None, answered=answered) == lost
    closed = report(EndReason.LEG_CLOSED, "ConnectionResetError")
    leg_lost = Termination(Result.SERVER_ERROR, "media_leg_lost", "ConnectionResetError", cause)
    assert ending.of_nothing(closed, answered=answered) == leg_lost
