"""What comes after what on a media leg."""

from __future__ import annotations

import pytest

from audiosocket.callspec import EndReason
from audiosocket.stages import FAILURES, GOOD_ENDS, Dial, Ending, Finish, Play, Stages, of_stream, stop_word
from tests.media import call_spec

pytestmark = pytest.mark.unit

REFUSED = Ending(EndReason.APP_REFUSED, "HTTP status 503 instead of 101")
LOST = Ending(EndReason.APP_LOST, "no close frame")
CLOSED = Ending(EndReason.APP_CLOSED, "close code 1000")
LIMIT = Ending(EndReason.STREAM_LIMIT)
HUNG_UP = Ending(EndReason.LEG_CLOSED)
STOPPED = Ending(EndReason.WORKER_STOPPED)
SPARE = "ws://spare/"


def test_every_ending_is_a_failure_a_good_end_or_none_of_the_applications() -> None:
    others = {reason for reason in EndReason if reason.startswith(("leg_", "worker_"))}
    assert set(EndReason) == FAILURES | GOOD_ENDS | others
    assert not FAILURES & GOOD_ENDS


@pytest.mark.parametrize("reason", sorted(FAILURES))
def test_a_failure_is_followed_by_the_tone_and_then_by_the_end_that_it_is(reason: EndReason) -> None:
    stages = Stages(call_spec())
    assert stages.first() == Dial(call_spec())
    failure = Ending(reason, "why")
    assert stages.after(failure, opened=True) == Play("")
    assert stages.after(None) == Finish(failure)
    assert stages.failed


@pytest.mark.parametrize("ending", [CLOSED, LIMIT])
def test_a_good_end_is_the_calls_end(ending: Ending) -> None:
    stages = Stages(call_spec(fallback_url=SPARE, fallback_prompt="sorry"))
    stages.first()
    assert stages.after(ending, opened=True) == Finish(ending)
    assert not stages.failed


@pytest.mark.parametrize("ending", [HUNG_UP, STOPPED, Ending(EndReason.LEG_SILENT), Ending(EndReason.WORKER_ERROR)])
def test_what_is_no_matter_of_the_applications_ends_everything(ending: Ending) -> None:
    stages = Stages(call_spec(fallback_url=SPARE, next=call_spec()))
    stages.first()
    assert stages.after(ending, opened=True) == Finish(ending)
    assert not stages.failed


def test_the_fallback_url_is_dialled_once_with_all_else_the_same() -> None:
    stages = Stages(call_spec(fallback_url=SPARE, fallback_prompt="sorry", dialect="twilio", connect_attempts=3))
    stages.first()
    step = stages.after(REFUSED)
    assert isinstance(step, Dial)
    assert (step.fallback, step.spec.url) == (True, SPARE)
    assert (step.spec.dialect, step.spec.connect_attempts) == ("twilio", 3)
    assert stages.after(LOST, opened=True) == Play("sorry")
    assert stages.after(None) == Finish(REFUSED)


@pytest.mark.parametrize("ending", [CLOSED, HUNG_UP])
def test_a_fallback_that_carries_the_call_to_a_good_end_makes_it_the_end(ending: Ending) -> None:
    stages = Stages(call_spec(fallback_url=SPARE))
    stages.first()
    stages.after(REFUSED)
    assert stages.after(ending, opened=True) == Finish(ending)
    assert stages.failed


def test_who_hangs_up_before_the_fallback_is_there_has_had_the_failure() -> None:
    stages = Stages(call_spec(fallback_url=SPARE))
    stages.first()
    stages.after(REFUSED)
    assert stages.after(HUNG_UP, opened=False) == Finish(REFUSED)


def test_who_hangs_up_on_the_prompt_has_had_the_failure() -> None:
    stages = Stages(call_spec())
    stages.first()
    stages.after(LOST, opened=True)
    assert stages.after(HUNG_UP) == Finish(LOST)


def test_a_worker_that_is_stopped_during_the_prompt_says_so() -> None:
    stages = Stages(call_spec())
    stages.first()
    stages.after(LOST, opened=True)
    assert stages.after(STOPPED) == Finish(STOPPED)


def test_a_held_caller_is_refused_rather_than_played_a_tone() -> None:
    stages = Stages(call_spec(held=True))
    stages.first()
    assert stages.after(REFUSED, answered=False) == Finish(REFUSED)


def test_a_caller_who_goes_on_elsewhere_hears_no_tone_but_a_prompt() -> None:
    stages = Stages(call_spec(fallback_tone=False))
    stages.first()
    assert stages.after(LOST, opened=True) == Finish(LOST)
    stages = Stages(call_spec(fallback_tone=False, fallback_prompt="sorry"))
    stages.first()
    assert stages.after(LOST, opened=True) == Play("sorry")
    assert stages.after(None) == Finish(LOST)


def test_a_held_caller_is_played_a_prompt_that_the_operator_has_chosen() -> None:
    stages = Stages(call_spec(held=True, fallback_prompt="sorry"))
    stages.first()
    assert stages.after(REFUSED, answered=False) == Play("sorry")


def test_a_released_caller_hears_the_tone() -> None:
    stages = Stages(call_spec(held=True))
    stages.first()
    assert stages.after(LOST, opened=True, answered=True) == Play("")


@pytest.mark.parametrize("ending", [CLOSED, LIMIT])
def test_the_next_application_has_stages_of_its_own(ending: Ending) -> None:
    following = call_spec(application="second", url="ws://second/", fallback_url="ws://second-spare/")
    stages = Stages(call_spec(application="first", fallback_url=SPARE, next=following))
    stages.first()
    assert stages.application == "first"
    stages.after(REFUSED)  # the first one's fallback carries the call ...
    assert stages.after(ending, opened=True) == Dial(following)
    assert stages.application == "second"
    step = stages.after(LOST, opened=True)
    assert isinstance(step, Dial)
    assert (step.spec.url, step.fallback) == ("ws://second-spare/", True)
    stages.after(REFUSED)
    # ... so that the first failure of what came after it is what the call ended with.
    assert stages.after(None) == Finish(LOST)
    assert stages.failed


@pytest.mark.parametrize(
    ("reason", "word"),
    [
        (EndReason.LEG_CLOSED, "callended"),
        (EndReason.LEG_PROTOCOL_ERROR, "callended"),
        (EndReason.LEG_SILENT, "callended"),
        (EndReason.APP_SILENT, "stopped"),
        (EndReason.STREAM_LIMIT, "stopped"),
        (EndReason.WORKER_STOPPED, "stopped"),
        (EndReason.WORKER_ERROR, "stopped"),
        (EndReason.APP_CLOSED, ""),
        (EndReason.APP_LOST, ""),
        (EndReason.APP_PROTOCOL_ERROR, ""),
    ],
)
def test_what_an_application_is_told_at_the_end_of_its_stream(reason: EndReason, word: str) -> None:
    assert stop_word(reason) == word


@pytest.mark.parametrize(
    ("setting", "reset", "reason"),
    [
        ("failure", False, EndReason.APP_LOST),
        ("failure", True, EndReason.APP_LOST),
        ("end", False, EndReason.APP_CLOSED),
        ("end", True, EndReason.APP_LOST),
    ],
)
def test_what_the_end_without_a_close_frame_is(setting: str, reset: bool, reason: EndReason) -> None:
    spec = call_spec(close_without_frame=setting)
    assert of_stream(spec, EndReason.APP_LOST, "why", reset=reset) == Ending(reason, "why")
    protocol = of_stream(spec, EndReason.APP_PROTOCOL_ERROR, "why", reset=reset)
    assert protocol.reason is EndReason.APP_PROTOCOL_ERROR
