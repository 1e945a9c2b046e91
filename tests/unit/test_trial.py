"""What a stream tells its application's circuit breaker, on a session without IO."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from audiosocket.breaker import Outcome
from audiosocket.callspec import EndReason
from audiosocket.dialects import open_dialect
from audiosocket.session import Session
from audiosocket.stages import FAILURES, GOOD_ENDS, Ending
from audiosocket.trial import START_TICKS, Trial
from tests.media import call_spec

pytestmark = pytest.mark.unit

GOOD, BAD, NONE = Outcome.GOOD, Outcome.BAD, Outcome.NONE


class Stream:
    """A stream that has just been opened."""

    def __init__(self, spoken_before: bool = False, **changes: Any) -> None:
        spec = call_spec(**({"first_audio_seconds": 30.0} | changes))
        self.session = Session(spec, open_dialect(spec), lambda message: None, lambda event, detail: None)
        if spoken_before:
            self.say()
        heard = self.session.bytes_received
        self.session.open()
        self.trial = Trial(spec, self.session, heard)

    def say(self, audio: bytes = bytes(320)) -> Stream:
        message = {"event": "media", "media": {"payload": base64.b64encode(audio).decode()}}
        self.session.app_text(json.dumps(message).encode())
        return self

    def run(self, ticks: int) -> Stream:
        for _ in range(ticks):
            self.session.tick(0)
        return self

    def passed(self) -> bool:
        return self.trial.passed(self.session)

    def ended(self, reason: EndReason | None) -> Outcome:
        return self.trial.ended(self.session, None if reason is None else Ending(reason))


@pytest.mark.parametrize("reason", sorted(FAILURES))
def test_any_failure_before_the_first_audio_is_one_however_late_it_comes(reason: EndReason) -> None:
    stream = Stream().run(10 * START_TICKS)
    assert not stream.passed()
    assert stream.ended(reason) is BAD


@pytest.mark.parametrize("reason", sorted(FAILURES))
def test_a_failure_at_the_start_is_one_whatever_was_heard(reason: EndReason) -> None:
    stream = Stream().say().run(START_TICKS - 1)
    assert not stream.passed()
    assert stream.ended(reason) is BAD
    assert stream.run(1).passed()
    assert stream.ended(reason) is GOOD


def test_it_has_passed_with_the_first_audio_behind_its_start() -> None:
    stream = Stream().run(5 * START_TICKS)
    assert not stream.say(b"").passed()  # of no length
    assert stream.say().passed()
    assert stream.ended(EndReason.APP_SILENT) is GOOD  # later, in the middle of a conversation


def test_audio_that_is_held_back_from_a_caller_who_still_rings_is_audio() -> None:
    assert Stream(held=True).say().run(START_TICKS).passed()


def test_what_the_application_before_it_has_sent_is_not_its_own() -> None:
    assert not Stream(spoken_before=True).run(START_TICKS).passed()


@pytest.mark.parametrize("changes", [{"one_way": True}, {"first_audio_seconds": 0.0}])
def test_one_that_need_not_speak_is_good_when_its_start_is_over(changes: dict[str, Any]) -> None:
    stream = Stream(**changes).run(START_TICKS - 1)
    assert not stream.passed()
    assert stream.ended(EndReason.APP_PROTOCOL_ERROR) is BAD
    assert stream.ended(None) is NONE
    assert stream.run(1).passed()
    assert stream.ended(EndReason.APP_PROTOCOL_ERROR) is GOOD


def test_a_caller_who_goes_before_the_first_audio_says_nothing() -> None:
    stream = Stream().run(START_TICKS)
    assert stream.ended(None) is NONE
    assert stream.say().ended(None) is GOOD
    assert Stream().say().ended(None) is GOOD


@pytest.mark.parametrize("reason", sorted(GOOD_ENDS))
def test_one_that_ends_its_stream_in_order_has_not_failed(reason: EndReason) -> None:
    assert Stream().ended(reason) is GOOD
