"""Playout and session under any order of events, held to their rules by the rigs of tools/fuzz after every step."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from audiosocket.callspec import MediaFormat
from tests.media import call_spec
from tools.fuzz.playout_rig import PlayoutRig
from tools.fuzz.session_rig import LEG_FRAME_BYTES, SessionRig

pytestmark = pytest.mark.unit

AUDIO = bytes(range(1, 251)) * 40


class PlayoutMachine(RuleBasedStateMachine):
    @initialize(
        seconds=st.sampled_from([0.0, 0.1, 0.33337, 2.0, 20.0]),
        rate=st.sampled_from([8000, 16000, 24000]),
        fade_ms=st.sampled_from([0.0, 5.0, 20.0]),
    )
    def begin(self, seconds: float, rate: int, fade_ms: float) -> None:
        self.rig = PlayoutRig(seconds, rate, fade_ms)

    @rule(size=st.integers(0, 5000), silent=st.booleans())
    def push(self, size: int, silent: bool) -> None:
        self.rig.push(size, silent)

    @rule(frames=st.integers(1, 30), silent=st.booleans())
    def push_frames(self, frames: int, silent: bool) -> None:
        for _ in range(frames):
            self.rig.push(320, silent)

    @rule()
    def mark(self) -> None:
        self.rig.mark()

    @rule(ticks=st.integers(1, 40))
    def tick(self, ticks: int) -> None:
        for _ in range(ticks):
            self.rig.tick()

    @rule(frames=st.integers(0, 400))
    def stall(self, frames: int) -> None:
        self.rig.stall(frames)

    @rule()
    def clear(self) -> None:
        self.rig.clear()

    def teardown(self) -> None:
        if hasattr(self, "rig"):
            self.rig.settle()


class SessionMachine(RuleBasedStateMachine):
    @initialize(
        dialect=st.sampled_from(["exotel", "plivo", "twilio"]),
        media_format=st.sampled_from(sorted(LEG_FRAME_BYTES)),
        frame_ms=st.sampled_from([20, 60, 100]),
        marks_on_clear=st.sampled_from(["echo", "drop"]),
        seconds=st.sampled_from([0.1, 300.0]),
    )
    def begin(
        self, dialect: str, media_format: MediaFormat, frame_ms: int, marks_on_clear: str, seconds: float
    ) -> None:
        if dialect != "exotel" and media_format.sample_rate != 8000:
            media_format = MediaFormat.ULAW
        options = {"frame_ms": frame_ms, "marks_on_clear": marks_on_clear} if dialect == "exotel" else {}
        self.rig = SessionRig(
            call_spec(dialect=dialect, media_format=media_format, dialect_options=options, playout_max_seconds=seconds)
        )

    @rule(size=st.integers(0, len(AUDIO)))
    def app_audio(self, size: int) -> None:
        self.rig.app_audio(AUDIO[:size])

    @rule(times=st.integers(1, 3))
    def app_mark(self, times: int) -> None:
        for _ in range(times):
            self.rig.app_mark()

    @rule()
    def app_clear(self) -> None:
        self.rig.app_clear()

    @rule(message=st.binary(max_size=20) | st.sampled_from([b'{"event":"clear"}', b'{"event":"x"}', b"{}"]))
    def app_garbage(self, message: bytes) -> None:
        self.rig.app_garbage(message)

    @rule(blocked=st.booleans())
    def app_blocked(self, blocked: bool) -> None:
        self.rig.block(blocked)

    @rule(size=st.sampled_from([80, 160, 240, 320]) | st.integers(1, 900))
    def caller_audio(self, size: int) -> None:
        self.rig.caller_audio(size)

    @rule(frames=st.integers(1, 60))
    def caller_burst(self, frames: int) -> None:
        self.rig.caller_burst(frames)

    @rule(digit=st.sampled_from("0123456789*#ABCD"))
    def digit(self, digit: str) -> None:
        self.rig.digit(digit)

    @rule(ticks=st.integers(1, 20))
    def tick(self, ticks: int) -> None:
        for _ in range(ticks):
            self.rig.tick()

    @rule(missed=st.integers(1, 300))
    def late_tick(self, missed: int) -> None:
        self.rig.tick(missed)

    def teardown(self) -> None:
        if hasattr(self, "rig"):
            self.rig.settle()


TestPlayout = PlayoutMachine.TestCase
TestPlayout.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestSession = SessionMachine.TestCase
TestSession.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)


def test_the_rig_of_the_playout_notices_a_frame_that_is_lost() -> None:
    rig = PlayoutRig(1.0)
    rig.push(640)
    rig.playout.tick()
    with pytest.raises(AssertionError):
        rig.tick()


def test_the_rig_of_the_session_notices_a_message_that_is_lost() -> None:
    rig = SessionRig(call_spec())
    rig.session._dialect.mark("lost")
    with pytest.raises(AssertionError):
        rig.caller_audio(160)
