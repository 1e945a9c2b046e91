"""One call's media without IO: what goes to the application, what goes to the caller, and what is counted."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pytest

from audiosocket import wire
from audiosocket.callspec import MediaFormat
from audiosocket.dialects import open_dialect
from audiosocket.durations import TurnTimes
from audiosocket.session import GAP_TICKS, STALE_FRAMES, STALL_TICKS, Session
from tests.media import call_spec
from tools.audio import g711 as formula

pytestmark = pytest.mark.unit


class Call:
    """A session, and what it has sent to the application."""

    def __init__(self, opened: bool = True, **changes: Any) -> None:
        spec = call_spec(**changes)
        self.sent: list[dict[str, Any]] = []
        self.notes: list[str] = []
        self.session = Session(
            spec,
            open_dialect(spec),
            lambda message: self.sent.append(json.loads(message)),
            lambda event, detail: self.notes.append(event),
        )
        if opened:
            self.session.open()
            self.sent.clear()

    def media(self) -> list[bytes]:
        return [base64.b64decode(message["media"]["payload"]) for message in self.sent if message["event"] == "media"]

    def marks(self) -> list[str]:
        return [message["mark"]["name"] for message in self.sent if message["event"] == "mark"]

    def app(self, event: str, **fields: Any) -> None:
        self.session.app_text(json.dumps({"event": event} | fields).encode())

    def app_audio(self, pcm: bytes) -> None:
        self.app("media", media={"payload": base64.b64encode(pcm).decode()})

    def app_mark(self, name: str) -> None:
        self.app("mark", mark={"name": name})


def test_caller_audio_reaches_the_application_as_pcm() -> None:
    call = Call()
    call.session.caller_audio(b"\x00" * 160)
    call.session.caller_audio(b"\x80" * 160)
    assert [frame[:2] for frame in call.media()] == [(-32124).to_bytes(2, "little", signed=True), b"\x7c\x7d"]
    assert all(len(frame) == 320 for frame in call.media())


@pytest.mark.parametrize(("media_format", "silence"), [("ulaw", b"\xff"), ("alaw", b"\xd5"), ("slin", b"\0\0")])
def test_every_media_format_gives_the_same_frames(media_format: str, silence: bytes) -> None:
    call = Call(media_format=MediaFormat(media_format))
    call.session.caller_audio(silence * 160)
    (frame,) = call.media()
    assert len(frame) == 320


@pytest.mark.parametrize("size", [80, 240, 320, 480, 33])
def test_another_ptime_is_cut_anew_without_loss(size: int) -> None:
    call = Call(media_format=MediaFormat.SLIN)
    audio = bytes(range(1, 251)) * 64  # 16,000 bytes
    for at in range(0, len(audio), 2 * size):
        call.session.caller_audio(audio[at : at + 2 * size])
    frames = call.media()
    assert all(len(frame) == 320 for frame in frames)
    assert b"".join(frames) == audio[: len(b"".join(frames))]
    assert len(audio) - len(b"".join(frames)) < 320


def test_longer_messages_where_the_application_wants_them() -> None:
    call = Call(dialect_options={"frame_ms": 100})
    for _ in range(10):
        call.session.caller_audio(b"\xff" * 160)
    assert [len(frame) for frame in call.media()] == [1600, 1600]
    assert [message["media"]["timestamp"] for message in call.sent] == ["0", "100"]


CODES = bytes(range(160))
LINEAR = (np.arange(160) * 200 - 16000).astype("<i2")


@pytest.mark.parametrize(
    ("media_format", "frame", "expected"),
    [
        ("ulaw", CODES, CODES),
        ("alaw", CODES, formula.ulaw_encode(formula.alaw_decode(CODES))),
        ("slin", LINEAR.tobytes(), formula.ulaw_encode(LINEAR)),
    ],
)
def test_a_dialect_of_mu_law_gets_mu_law_whatever_asterisk_sends(
    media_format: str, frame: bytes, expected: bytes
) -> None:
    call = Call(dialect="twilio", media_format=MediaFormat(media_format))
    call.session.caller_audio(frame)
    half = len(frame) // 2  # another ptime
    call.session.caller_audio(frame[:half])
    call.session.caller_audio(frame[half:])
    assert call.media() == [expected, expected]
    call.session.caller_audio(frame[:half])
    for _ in range(GAP_TICKS):
        call.session.tick(0)
    # What waited for the rest of its frame comes first, then silence of the dialect's own.
    assert b"".join(call.media()[2:]) == expected[:80] + b"\xff" * (160 * GAP_TICKS - 80)
    assert [message["media"]["timestamp"] for message in call.sent] == [str(20 * n) for n in range(2 + GAP_TICKS)]


def test_mu_law_of_the_application_is_played_as_pcm_in_pieces_of_any_length() -> None:
    call = Call(dialect="twilio")
    codes = bytes(range(256)) * 5
    for at in range(0, len(codes), 133):
        call.app_audio(codes[at : at + 133])
    call.app_mark("end")
    played = b"".join(call.session.tick(0)[3:] for _ in range(8))
    assert played == formula.ulaw_decode(codes).astype("<i2").tobytes()
    assert call.marks() == []
    call.session.tick(0)
    assert call.marks() == ["end"]
    assert call.session.figures().app_bytes_received == 2 * len(codes)


def test_a_dialect_of_mu_law_returns_marks_on_clear() -> None:
    call = Call(dialect="twilio")
    call.app_audio(CODES * 10)
    for name in ("a", "b"):
        call.app_mark(name)
    call.session.tick(0)
    call.app("clear", streamSid="MZ" + call_spec().stream_sid)
    assert call.marks() == ["a", "b"]
    assert call.session.tick(0) == wire.SILENCE_FRAME
    figures = call.session.figures()
    assert (figures.frames_dropped, figures.ignored) == ({"clear": 9}, {})


def test_before_the_start_nothing_is_sent_and_it_is_counted() -> None:
    call = Call(opened=False)
    call.session.caller_audio(b"\xff" * 160)
    call.session.digit("1")
    assert call.sent == []
    assert call.session.figures().caller_frames_dropped == {"before_start": 1}
    call.session.open()
    assert [message["event"] for message in call.sent] == ["connected", "start"]


def test_a_gap_is_filled_with_silence_from_its_beginning() -> None:
    call = Call()
    for _ in range(GAP_TICKS - 1):
        call.session.tick(0)
    assert call.media() == []
    call.session.tick(0)
    assert call.media() == [bytes(320)] * GAP_TICKS
    call.session.tick(0)
    assert len(call.media()) == GAP_TICKS + 1
    call.session.caller_audio(b"\x00" * 160)
    assert any(call.media()[-1])


@pytest.mark.parametrize("burst", [2, 3, 8, 45])
def test_what_comes_late_bit_by_bit_is_dropped_but_for_its_latest(burst: int) -> None:
    """TCP behind a link that stood still for a second: silence has been sent in place of all of it."""
    call = Call()
    for _ in range(20):
        call.session.tick(0)
        call.session.caller_audio(b"\xff" * 160)
    for _ in range(50):
        call.session.tick(0)
    call.sent.clear()
    left, passed = 51, 0
    while left:
        frames = min(burst, left)
        left -= frames - 1  # and one has been said meanwhile
        stale = call.session.caller_backlog(frames) if frames > 1 else 0
        for _ in range(frames - stale):
            call.session.caller_audio(b"\xff" * 160)
        passed += frames - stale - 1
        call.session.tick(0)
        if frames == 1:
            break
    assert STALE_FRAMES <= passed <= STALE_FRAMES + STALL_TICKS + 1
    figures = call.session.figures()
    assert figures.caller_frames_dropped == {"stale": 50 - passed}
    times = [int(message["media"]["timestamp"]) for message in call.sent]
    assert times == list(range(70 * 20, 70 * 20 + 20 * len(times), 20))


@pytest.mark.parametrize("burst", [2, 3])
def test_of_who_speaks_again_after_a_pause_nothing_is_dropped(burst: int) -> None:
    """A digit or a hold leaves a gap, and the first frames may come together."""
    call = Call()
    for _ in range(20):
        call.session.tick(0)
        call.session.caller_audio(b"\xff" * 160)
    for _ in range(30):
        call.session.tick(0)
    for _ in range(burst):
        assert call.session.caller_backlog(burst) == 0
        for _ in range(burst):
            call.session.caller_audio(b"\xff" * 160)
        for _ in range(burst):
            call.session.tick(0)
    assert call.session.figures().caller_frames_dropped == {}


def test_a_worker_that_is_late_takes_no_gap_for_the_callers() -> None:
    call = Call()
    for _ in range(GAP_TICKS * 3):
        call.session.tick(2)  # what the caller has sent meanwhile lies unread in the socket
    assert call.media() == []


def test_a_backlog_keeps_its_latest_and_its_place_in_time() -> None:
    call = Call()
    for _ in range(20):
        call.session.tick(0)
        call.session.caller_audio(b"\xff" * 160)
    call.sent.clear()
    stale = call.session.caller_backlog(40)
    assert stale == 40 - STALE_FRAMES
    for _ in range(40 - stale):
        call.session.caller_audio(b"\xff" * 160)
    assert call.sent[0]["media"]["timestamp"] == str((20 + stale) * 20)
    figures = call.session.figures()
    assert figures.caller_frames_dropped == {"stale": stale}
    assert figures.caller_frames == 60
    assert figures.stalls == 1


def test_what_is_too_old_takes_its_place_in_messages_of_any_length() -> None:
    call = Call(dialect_options={"frame_ms": 100})
    for _ in range(10):
        for _ in range(23):
            call.session.tick(0)
            call.session.caller_audio(b"\xff" * 160)
        stale = call.session.caller_backlog(21)
        assert stale == 11
        for _ in range(21 - stale):
            call.session.caller_audio(b"\xff" * 160)
    last = call.sent[-1]["media"]
    assert 0 <= 10 * 44 * 20 - 100 - int(last["timestamp"]) < 100


def test_a_tick_gives_one_frame_of_audio_or_silence() -> None:
    call = Call()
    assert call.session.tick(0) == wire.SILENCE_FRAME
    call.app_audio(b"\x01\x02" * 160)
    assert call.session.tick(0) == wire.AUDIO_HEADER + b"\x01\x02" * 160
    assert call.session.tick(0) == wire.SILENCE_FRAME
    assert call.notes == ["first_app_audio"]
    figures = call.session.figures()
    assert (figures.frames_played, figures.silence_played, figures.app_bytes_received) == (1, 2, 320)


def test_marks_come_back_in_order_after_their_audio_and_after_clear() -> None:
    call = Call()
    call.app_mark("pre")
    assert call.marks() == ["pre"]
    call.app_audio(bytes(640))
    call.app_mark("a")
    call.app_audio(bytes(3200))
    call.app_mark("b")
    call.app_mark("c")
    for _ in range(3):
        call.session.tick(0)
    assert call.marks() == ["pre", "a"]
    call.app("clear")
    assert call.marks() == ["pre", "a", "b", "c"]
    assert call.session.tick(0) == wire.SILENCE_FRAME
    figures = call.session.figures()
    assert (figures.marks_received, figures.marks_sent, figures.clears) == (4, 4, 1)
    assert figures.frames_dropped == {"clear": 9}


def test_a_clear_does_not_let_marks_overtake_those_that_are_held() -> None:
    call = Call()
    for name in ("a", "b"):  # nothing is before them: one comes back in this tick
        call.app_mark(name)
    call.app_audio(bytes(3200))
    call.app_mark("c")
    call.app("clear")
    call.session.tick(0)
    assert call.marks() == ["a", "b", "c"]


def test_marks_may_be_dropped_with_their_audio() -> None:
    call = Call(dialect_options={"marks_on_clear": "drop"})
    call.app_audio(bytes(3200))
    call.app_mark("a")
    call.app("clear")
    for _ in range(12):
        call.session.tick(0)
    assert call.marks() == []


def test_an_application_that_answers_marks_with_marks_does_not_spin() -> None:
    call = Call()
    for number in range(100):
        call.app_mark(f"m{number}")
    assert call.marks() == ["m0"]
    call.session.tick(0)
    assert call.marks() == [f"m{number}" for number in range(100)]


def test_marks_without_end_are_bounded() -> None:
    call = Call()
    call.app_audio(bytes(320))
    for number in range(10_050):
        call.app_mark(f"m{number}")
    assert call.session.figures().ignored == {"too_many_marks": 50}


@pytest.mark.parametrize("dropping", ["echo", "drop"])
def test_the_names_of_marks_are_bounded_together(dropping: str) -> None:
    call = Call(dialect_options={"marks_on_clear": dropping})
    name = "m" * 262_144
    for expected in (1, 2, 3):  # all room is free again after each round
        call.app_audio(bytes(320))
        for _ in range(5):
            call.app_mark(name)
        assert call.session.figures().ignored == {"too_many_marks": expected}
        if expected == 1:
            call.app("clear")
        call.session.tick(0)
        call.session.tick(0)
        assert call.session.playout.pending_marks == 0
    call.session.tick(0)
    call.app_mark("m" * 1_048_577)
    assert call.session.figures().ignored == {"too_many_marks": 4}


def test_a_stream_s_marks_do_not_count_for_the_next() -> None:
    call = Call()
    call.app_audio(bytes(320))
    call.app_mark("m" * 1_000_000)
    spec = call_spec()
    call.session.switch(spec, open_dialect(spec), TurnTimes())
    call.session.open()
    call.app_audio(bytes(320))
    call.app_mark("m" * 1_000_000)
    assert call.session.figures().ignored == {}


def test_what_cannot_be_used_is_counted_and_the_call_goes_on() -> None:
    call = Call()
    for message in (
        b"{",
        b'{"event":"x"}',
        b'{"event":"media","media":{"payload":"!"}}',
        b'{"event":"clear","stream_sid":"no"}',
    ):
        call.session.app_text(message)
    call.session.ignore("binary")
    assert call.session.figures().ignored == {
        "bad_json": 1,
        "unknown_event": 1,
        "bad_base64": 1,
        "binary": 1,
        "wrong_stream_sid": 1,
    }
    call.app_audio(b"\x01\x02" * 160)
    assert call.session.tick(0) != wire.SILENCE_FRAME


def test_a_late_tick_catches_up_a_little_and_only_with_audio() -> None:
    call = Call()
    call.app_audio(bytes(range(1, 251)) * 32)  # 25 frames
    assert len(call.session.tick(1)) == 2 * 323
    assert len(call.session.tick(30)) == 3 * 323
    assert call.session.figures().ticks_late == 2
    quiet = Call()
    assert quiet.session.tick(5) == wire.SILENCE_FRAME
    nearly = Call()
    nearly.app_audio(b"\x01\x02" * 320)
    assert len(nearly.session.tick(1)) == 2 * 323  # two frames, and nothing behind them


def test_a_freeze_is_one_stall_though_it_shows_twice() -> None:
    call = Call()
    for _ in range(30):
        call.session.tick(0)
        call.session.caller_audio(b"\xff" * 160)
    call.session.tick(15)
    call.session.caller_backlog(15)
    assert call.session.figures().stalls == 1


def test_a_slow_application_loses_caller_frames_not_time() -> None:
    call = Call()
    call.session.app_blocked = True
    for _ in range(10):
        call.session.caller_audio(b"\xff" * 160)
    call.session.app_blocked = False
    call.session.caller_audio(b"\xff" * 160)
    (message,) = call.sent
    assert message["media"]["timestamp"] == "200"
    assert call.session.figures().caller_frames_dropped == {"app_slow": 10}


def test_digits_and_stop() -> None:
    call = Call()
    call.session.digit("#")
    call.session.stop("callended")
    call.session.stop("callended")
    call.session.caller_audio(b"\xff" * 160)
    assert [message["event"] for message in call.sent] == ["dtmf", "stop"]
    assert call.sent[0]["dtmf"]["digit"] == "#"
    assert call.session.figures().digits == 1


def test_digits_outside_of_a_stream_are_told_and_reach_nobody() -> None:
    call = Call(opened=False)
    call.session.digit("1")
    call.session.open()
    assert "dtmf" not in [message["event"] for message in call.sent]
    call.session.digit("2")
    call.session.lost()
    call.session.digit("3")
    assert call.notes == ["dtmf_unheard", "dtmf", "dtmf_unheard"]
    assert call.session.figures().digits == 3


def test_thirty_seconds_at_once_are_played_at_twenty_milliseconds_a_frame() -> None:
    call = Call()
    audio = bytes(range(1, 251)) * 1920  # 30 s
    for at in range(0, len(audio), 3200):
        call.app_audio(audio[at : at + 3200])
    played = b"".join(call.session.tick(0)[3:] for _ in range(1500))
    assert played == audio
    assert call.session.tick(0) == wire.SILENCE_FRAME
    assert call.session.figures().playout_peak_ms == 30_000
