"""A session with several streams, a held caller, a prompt; and applications with less or more than the usual."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from audiosocket import wire
from audiosocket.callspec import MediaFormat
from audiosocket.dialects import open_dialect
from audiosocket.durations import TurnTimes
from audiosocket.session import Session
from tests.media import call_spec

pytestmark = pytest.mark.unit

SPEECH = (1000).to_bytes(2, "little", signed=True) * 160
QUIET = b"\xff" * 160


class Call:
    """A session; what it has sent to the applications, noted and told."""

    def __init__(self, opened: bool = True, **changes: Any) -> None:
        self.spec = call_spec(**({"fade_ms": 0} | changes))
        self.sent: list[dict[str, Any]] = []
        self.notes: list[str] = []
        self.told: list[tuple[str, str]] = []
        self.session = Session(
            self.spec,
            open_dialect(self.spec),
            lambda message: self.sent.append(json.loads(message)),
            lambda event, detail: self.notes.append(event),
            notify=lambda event, digits: self.told.append((event, digits)),
        )
        if opened:
            self.open()

    def open(self) -> None:
        self.session.open()
        self.sent.clear()

    def switch(self, **changes: Any) -> None:
        spec = call_spec(**({"fade_ms": 0} | changes))
        self.session.switch(spec, open_dialect(spec), TurnTimes())

    def events(self) -> list[str]:
        return [message["event"] for message in self.sent]

    def app(self, event: str, **fields: Any) -> None:
        self.session.app_text(json.dumps({"event": event} | fields).encode())

    def say(self, pcm: bytes = SPEECH) -> None:
        self.app("media", media={"payload": base64.b64encode(pcm).decode()})

    def mark(self, name: str) -> None:
        self.app("mark", mark={"name": name})

    def heard(self, ticks: int) -> list[bytes]:
        frames = [self.session.tick(0) for _ in range(ticks)]
        assert {len(frame) for frame in frames} == {323}
        return [frame[3:] for frame in frames if frame != wire.SILENCE_FRAME]


# One stream after the other


def test_the_next_stream_begins_with_nothing_of_the_one_before() -> None:
    call = Call()
    call.session.caller_audio(QUIET[:80])  # half a frame, which waits
    call.say(SPEECH * 10)
    call.mark("late")
    call.session.app_blocked = True
    assert len(call.heard(3)) == 3
    call.session.lost()
    call.switch(stream_sid="11" * 16)
    assert not call.heard(5)
    call.open()
    call.session.caller_audio(QUIET)
    call.say()
    assert call.heard(3) == [SPEECH]
    assert call.events() == ["media"]
    assert call.sent[0]["stream_sid"] == "11" * 16
    assert call.sent[0]["media"]["chunk"] == "1"
    figures = call.session.figures()
    assert figures.frames_dropped == {"stream_ended": 7}
    assert (figures.frames_played, figures.marks_received, figures.marks_sent) == (4, 1, 0)


def test_between_two_streams_the_caller_is_not_heard_and_that_is_counted() -> None:
    call = Call(opened=False)
    call.session.caller_audio(QUIET)
    call.open()
    call.session.caller_audio(QUIET)
    call.session.stop("stopped")
    call.session.caller_audio(QUIET)
    call.switch()
    call.session.caller_audio(QUIET)
    call.session.digit("5")
    assert call.events() == ["media", "stop"]
    call.open()
    call.session.caller_audio(QUIET)
    assert call.events() == ["media"]
    figures = call.session.figures()
    assert (figures.caller_frames, figures.digits) == (5, 1)
    assert figures.caller_frames_dropped == {"before_start": 1, "between_streams": 2}
    assert call.notes == ["first_caller_audio", "dtmf_unheard"]


def test_the_next_application_may_speak_another_dialect() -> None:
    call = Call()
    call.session.caller_audio(QUIET)
    call.switch(dialect="twilio", account_sid="AC" + "0" * 32)
    call.open()
    call.session.caller_audio(QUIET)
    assert base64.b64decode(call.sent[-1]["media"]["payload"]) == QUIET
    call.say(b"\x80" * 160)  # μ-law
    assert call.heard(2) == [(32124).to_bytes(2, "little", signed=True) * 160]


def test_a_gap_is_not_filled_between_two_streams() -> None:
    call = Call()
    call.session.caller_audio(QUIET)
    call.session.lost()
    call.heard(50)
    assert call.events() == ["media"]


def test_every_stream_has_its_own_bound_and_its_own_turn_times() -> None:
    call = Call(playout_max_seconds=1)
    call.say(SPEECH * 100)
    assert call.session.figures().frames_dropped == {"overrun": 50}
    call.switch(playout_max_seconds=10)
    call.open()
    call.say(SPEECH * 400)
    assert call.session.figures().frames_dropped == {"overrun": 50, "stream_ended": 50}
    assert len(call.heard(500)) == 400


def test_what_an_application_did_wrong_stays_counted() -> None:
    call = Call()
    call.app("media", stream_sid="made-up", media={"payload": ""})
    call.app("sing")
    call.switch()
    call.open()
    call.app("media", stream_sid="made-up", media={"payload": ""})
    assert call.session.figures().ignored == {"wrong_stream_sid": 2, "unknown_event": 1}


# A prompt


def test_a_prompt_takes_the_applications_place_and_says_when_it_is_over() -> None:
    call = Call()
    call.say(SPEECH * 10)
    call.heard(2)
    over: list[int] = []
    frames = [bytes([number, 1]) * 160 for number in range(5)]
    call.session.play(iter(frames), lambda: over.append(call.session.ticks))
    assert call.heard(5) == frames
    assert not over
    assert not call.heard(10)
    assert over == [2 + 5 + 1]
    figures = call.session.figures()
    assert (figures.prompt_played, figures.frames_played, figures.silence_played) == (5, 2, 10)
    assert figures.app_talk_ms == 40  # a prompt is nobody's talk


def test_audio_that_a_prompt_cuts_off_fades_out_before_it() -> None:
    call = Call(fade_ms=5)
    call.say(SPEECH * 10)
    call.heard(2)
    call.session.play(iter([SPEECH]), lambda: None)
    ending, prompt = call.heard(5)
    assert 900 < int.from_bytes(ending[:2], "little") < 1000
    assert not any(ending[80:])
    assert prompt == SPEECH


@pytest.mark.parametrize("media_format", ["slin16", "slin24"])
def test_a_prompt_at_the_rate_of_a_wideband_leg(media_format: str) -> None:
    form = MediaFormat(media_format)
    call = Call(media_format=form)
    frame = bytes([1, 2]) * (form.sample_rate // 50)
    call.session.play(iter([frame]), lambda: None)
    assert call.session.tick(0) == call.session.linear.header + frame
    assert call.session.tick(0) == call.session.linear.silence


def test_a_prompt_is_no_application_audio_in_the_calls_story() -> None:
    call = Call(opened=False)
    call.session.play(iter([SPEECH]), lambda: None)
    assert call.heard(3) == [SPEECH]
    assert call.notes == []


# A held caller


def test_nothing_is_played_to_a_held_caller() -> None:
    call = Call(held=True)
    call.mark("before")
    call.say(SPEECH * 3)
    call.mark("after")
    assert not call.heard(100)
    assert "mark" not in call.events()
    call.session.release()
    assert call.heard(10) == [SPEECH] * 3
    assert [message["mark"]["name"] for message in call.sent if message["event"] == "mark"] == ["before", "after"]
    assert call.notes == ["released", "first_app_audio"]


def test_the_callers_first_frame_releases_him() -> None:
    call = Call(held=True)
    call.say()
    assert not call.heard(5)
    call.session.caller_audio(QUIET)
    assert call.heard(5) == [SPEECH]
    assert call.notes == ["released", "first_caller_audio", "first_app_audio"]


def test_the_controller_is_told_once_that_the_application_speaks() -> None:
    call = Call(held=True)
    call.say(b"")
    assert call.told == []
    call.say()
    call.say()
    assert call.told == [("speaking", "")]
    call = Call()
    call.say()
    assert call.told == []


@pytest.mark.parametrize("chunk", [7, 319, 640, 32_000])
def test_who_sends_silence_does_not_speak(chunk: int) -> None:
    call = Call(held=True)
    silence, faint = bytes(16_000), b"\x40\x00" * 8_000  # the second is of -54 dBFS
    for audio in (silence, faint, silence[:6], b"\xff\x7f" * 5, silence[:33], SPEECH):
        assert call.told == []
        for at in range(0, len(audio), chunk):
            call.say(audio[at : at + chunk])
    call.say(SPEECH)
    assert call.told == [("speaking", "")]


def test_a_clear_is_obeyed_while_the_caller_is_held() -> None:
    call = Call(held=True)
    call.say(SPEECH * 10)
    call.mark("gone")
    call.app("clear")
    call.session.release()
    assert not call.heard(5)
    assert "mark" in call.events()


def test_a_prompt_waits_for_a_held_caller() -> None:
    call = Call(opened=False, held=True)
    call.session.play(iter([SPEECH]), lambda: None)
    assert not call.heard(10)
    call.session.caller_audio(QUIET)
    assert call.heard(3) == [SPEECH]


# A leg that is not in the bridge yet


def test_nothing_is_played_before_the_leg_is_joined() -> None:
    call = Call(joining_seconds=1)
    call.say(SPEECH * 3)
    call.mark("after")
    assert not call.heard(40)
    assert "mark" not in call.events()
    call.session.release()
    assert call.heard(10) == [SPEECH] * 3
    assert "mark" in call.events()
    # He has been answered: nobody waits for the first word.
    assert (call.told, call.notes) == ([], ["first_app_audio"])


def test_the_callers_first_frame_shows_that_the_leg_is_joined() -> None:
    call = Call(joining_seconds=1)
    call.say()
    assert not call.heard(5)
    call.session.caller_audio(QUIET)
    assert call.heard(5) == [SPEECH]


def test_a_leg_that_nobody_calls_joined_is_played_to_in_the_end() -> None:
    call = Call(joining_seconds=1)
    call.say(SPEECH * 3)
    assert not call.heard(49)
    assert call.heard(10) == [SPEECH] * 3
    call.say()
    assert call.heard(5) == [SPEECH]


def test_the_first_audio_is_waited_for_from_the_joining_on() -> None:
    call = Call(joining_seconds=1)
    call.heard(30)
    call.session.release()
    assert call.session.began == call.session.ticks


# Less, and more


def test_an_application_that_only_listens_is_sent_audio_alone_and_ignored() -> None:
    call = Call(one_way=True)
    call.session.caller_audio(QUIET)
    call.session.digit("5")
    call.say()
    call.mark("x")
    call.app("clear")
    call.session.app_text(b"{")
    assert not call.heard(10)
    assert set(call.events()) == {"media"}
    figures = call.session.figures()
    assert (figures.ignored, figures.digits, figures.clears) == ({"one_way": 4}, 1, 0)


@pytest.mark.parametrize("body", [{"digit": "5"}, {"digits": "5"}, {"digit": "5", "duration": "100"}])
def test_digits_for_the_caller_are_handed_to_the_controller(body: dict[str, str]) -> None:
    call = Call(digits_to_caller=True)
    call.app("dtmf", dtmf=body)
    assert call.told == [("digits", "5")]
    assert call.notes == ["digits_to_caller"]
    assert call.session.figures().ignored == {}


def test_digits_for_the_caller_are_ignored_unless_they_are_allowed() -> None:
    call = Call()
    call.app("dtmf", dtmf={"digits": "12#"})
    assert call.told == []
    assert call.session.figures().ignored == {"dtmf_off": 1}


@pytest.mark.parametrize(
    "body", [{}, {"digits": ""}, {"digits": "5" * 33}, {"digits": "5,6"}, {"digits": "a"}, {"digit": 5}, "5", None]
)
def test_what_are_no_digits_is_counted(body: object) -> None:
    call = Call(digits_to_caller=True)
    call.app("dtmf", dtmf=body)
    assert call.told == []
    assert call.session.figures().ignored == {"bad_shape": 1}


def test_thirty_two_digits_of_every_kind() -> None:
    call = Call(digits_to_caller=True)
    call.app("dtmf", dtmf={"digits": "0123456789*#ABCD" * 2})
    assert call.told == [("digits", "0123456789*#ABCD" * 2)]


def test_no_more_digits_than_a_telephone_takes_are_handed_to_the_controller() -> None:
    call = Call(digits_to_caller=True)
    for _ in range(1000):
        call.app("dtmf", dtmf={"digits": "0123456789"})
    assert call.told == [("digits", "0123456789")] * 6
    assert call.session.figures().ignored == {"too_many_digits": 994}
    call.heard(59)
    call.app("dtmf", dtmf={"digits": "0123456789"})
    assert len(call.told) == 6
    call.heard(1)  # 60 digits less six that have been sent: ten more fit
    call.app("dtmf", dtmf={"digits": "0123456789"})
    assert len(call.told) == 7
