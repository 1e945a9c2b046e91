"""How long a stream may take and its application may be silent, on a session without IO."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pytest

from audiosocket.callspec import EndReason
from audiosocket.dialects import open_dialect
from audiosocket.session import Session
from audiosocket.stages import Ending
from audiosocket.stream_limits import LOOK_TICKS, StreamLimits
from tests.media import call_spec
from tools.audio.g711 import ulaw_encode

pytestmark = pytest.mark.unit

LOUD = ulaw_encode((np.sin(np.arange(160) * 0.6) * 12_000).astype(np.int16))
QUIET = b"\xff" * 160


class Stream:
    """A stream that has just been opened, looked at as the shell does."""

    def __init__(self, **changes: Any) -> None:
        spec = call_spec(**changes)
        self.session = Session(spec, open_dialect(spec), lambda message: None, lambda event, detail: None)
        for _ in range(100):  # noise, from which talking can be told
            self.tick(QUIET)
        self.session.open()
        self.limits = StreamLimits(spec, self.session)
        self.opened = self.session.ticks
        self._next = self.opened
        self.ended: Ending | None = None
        self.ended_at = -1

    def tick(self, caller: bytes = QUIET) -> None:
        self.session.caller_audio(caller)
        self.session.tick(0)

    def say(self, ticks: int) -> None:
        payload = base64.b64encode(b"\x10\x00" * 160 * ticks).decode()
        self.session.app_text(json.dumps({"event": "media", "media": {"payload": payload}}).encode())

    def run(self, ticks: int, caller: bytes = QUIET) -> None:
        for _ in range(ticks):
            if self.ended is not None:
                return
            if self.session.ticks == self._next:
                found = self.limits.look(self.session)
                if isinstance(found, Ending):
                    self.ended, self.ended_at = found, self.session.ticks - self.opened
                    return
                assert 1 <= found <= LOOK_TICKS
                self._next = self.session.ticks + found
            self.tick(caller)


def test_without_limits_a_silent_application_may_stay() -> None:
    stream = Stream()
    stream.run(100_000)
    assert stream.ended is None


def test_the_first_audio_is_waited_for_to_the_tick() -> None:
    stream = Stream(first_audio_seconds=1.5)
    stream.run(1000)
    assert stream.ended == Ending(EndReason.APP_SILENT, "no audio within 1.5 s")
    assert stream.ended_at == 75


def test_the_callers_talking_does_not_put_the_first_audio_off() -> None:
    stream = Stream(first_audio_seconds=3)
    stream.run(1000, LOUD)
    assert stream.ended_at == 150


def test_an_application_that_has_spoken_once_is_measured_by_its_silence() -> None:
    stream = Stream(first_audio_seconds=1, max_silence_seconds=2)
    stream.run(20)
    stream.say(10)
    stream.run(1000)
    assert stream.ended == Ending(EndReason.APP_SILENT, "silent for 2 s")
    assert stream.ended_at == pytest.approx(20 + 10 + 100, abs=1)


def test_audio_that_is_being_played_is_no_silence_however_long() -> None:
    stream = Stream(max_silence_seconds=1)
    stream.say(1000)
    stream.run(1000)
    assert stream.ended is None
    stream.run(100)
    assert stream.ended_at == pytest.approx(1050, abs=1)


def test_the_callers_talking_pauses_it_and_does_not_start_it_anew() -> None:
    stream = Stream(max_silence_seconds=4)
    stream.say(1)
    stream.run(101)  # 2 s of it are used up
    talked = stream.session.turns.caller_ticks
    for _ in range(20):  # as people do, with short pauses
        stream.run(20, LOUD)
        stream.run(6)
    talked = stream.session.turns.caller_ticks - talked
    assert talked > 400
    stream.run(1000)
    assert stream.ended_at == pytest.approx(1 + 200 + talked, abs=2)


def test_the_applications_audio_starts_it_anew() -> None:
    stream = Stream(max_silence_seconds=2)
    for _ in range(10):
        stream.say(1)
        stream.run(90)
    assert stream.ended is None
    stream.run(100)
    assert stream.ended is not None


def test_a_held_caller_is_waited_for_before_the_application_is() -> None:
    spec = call_spec(held=True, first_audio_seconds=1)
    session = Session(spec, open_dialect(spec), lambda message: None, lambda event, detail: None)
    session.open()
    limits = StreamLimits(spec, session)
    for _ in range(200):
        session.tick(0)
        assert limits.look(session) == LOOK_TICKS
    session.release()
    for _ in range(49):
        session.tick(0)
        assert not isinstance(limits.look(session), Ending)
    session.tick(0)
    assert limits.look(session) == Ending(EndReason.APP_SILENT, "no audio within 1 s")


def test_an_application_that_only_listens_may_be_silent() -> None:
    stream = Stream(one_way=True, first_audio_seconds=1, max_silence_seconds=1, stream_seconds=10)
    stream.run(1000)
    assert (stream.ended, stream.ended_at) == (Ending(EndReason.STREAM_LIMIT, "the stream was 10 s long"), 500)


def test_the_stream_ends_at_its_limit_though_it_talks() -> None:
    stream = Stream(stream_seconds=2.5, first_audio_seconds=1, max_silence_seconds=1)
    stream.say(500)
    stream.run(1000)
    assert (stream.ended, stream.ended_at) == (Ending(EndReason.STREAM_LIMIT, "the stream was 2.5 s long"), 125)
