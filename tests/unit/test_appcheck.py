"""appcheck's judgement over calls that are written down here, its voice, its eye for messages, and its words."""

from __future__ import annotations

import json
import wave
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from ari_app.cli.main import trunkbridge
from audiosocket.appcheck.check import judge
from audiosocket.appcheck.figures import Spread, figures, pace
from audiosocket.appcheck.findings import DOCUMENTS, RULES, Severity, finding, in_order
from audiosocket.appcheck.observe import Observer
from audiosocket.appcheck.protocol import Case
from audiosocket.appcheck.report import verdict
from audiosocket.appcheck.scenarios import SCENARIOS
from audiosocket.appcheck.talk import interruptions, ping_pongs, turns
from audiosocket.appcheck.trace import (
    Closing,
    Ending,
    Farewell,
    Handshake,
    Heard,
    Media,
    Named,
    Refusal,
    Span,
    Trace,
)
from audiosocket.appcheck.voice import (
    AUDIBLE_RESEMBLANCE,
    Line,
    Samples,
    guess_encoding,
    level_dbfs,
    narrowed,
    read_speech,
    resemblance,
    utterance,
    widened,
)
from audiosocket.appcheck.words import outcome
from audiosocket.callspec import MediaFigures
from audiosocket.dialects import DIALECTS, open_dialect
from audiosocket.errors import ConfigError
from audiosocket.g711 import Encoding, pcm_to_ulaw, ulaw_to_pcm
from tests.media import call_spec
from tools.audio.tones import tone

pytestmark = pytest.mark.unit

EXOTEL = Case("exotel", Encoding.PCM16)
CHUNK = utterance(0.2, 9).tobytes()
SPOKEN = {number: utterance(1.5, number) for number in range(3)}


def heard(*spans: tuple[float, float], dbfs: float = -20.0) -> list[Heard]:
    """The application's audio, frame by frame."""
    return [
        Heard(round(start + 0.02 * number, 4), dbfs)
        for start, end in spans
        for number in range(round((end - start) / 0.02))
    ]


def trace(scenario: str = "speech", **changes: Any) -> Trace:
    """A call in which everything is right: a greeting, a turn, a close."""
    values: dict[str, Any] = {
        "stream_sid": "0f3c" * 8,
        "handshake": Handshake(12.0),
        "media": [Media(0.1 + 0.001 * number, CHUNK, len(CHUNK)) for number in range(5)],
        "heard": heard((0.12, 1.12)),
        "closing": Closing(9.0, 0.01, Farewell.ANSWERED),
        "seconds": 9.0,
    }
    if scenario in ("speech", "marks", "slow"):
        values |= {"said": [Span(3.0, 4.5)], "heard": heard((0.12, 1.12), (5.0, 6.0))}
    return Trace(scenario, **(values | changes))


def codes(*traces: Trace, case: Case = EXOTEL) -> list[str]:
    return [one.code for one in judge(traces, case, SPOKEN)]


def test_nothing_is_found_where_nothing_is_wrong() -> None:
    assert codes(*(trace(name) for name in ("handshake", "greeting", "speech", "silence", "slow", "hangup"))) == []


@pytest.mark.parametrize(
    ("reason", "detail", "code"),
    [
        ("app_refused", "HTTP status 401 instead of 101", "unauthorised"),
        ("app_refused", "HTTP status 403 instead of 101", "unauthorised"),
        ("app_refused", "HTTP status 502 instead of 101", "status"),
        ("app_refused", "TLS certificate refused: certificate has expired", "certificate"),
        ("app_refused", "TLS failed: WRONG_VERSION_NUMBER", "no_tls"),
        ("app_refused", "Connection refused", "unreachable"),
        ("app_refused", "Connection reset by peer", "handshake_ended"),
        ("app_refused", "the connection ended during the WebSocket handshake", "handshake_ended"),
        ("app_timeout", "no WebSocket within 10 s", "handshake_timeout"),
        ("app_protocol_error", "handshake: malformed header", "handshake_broken"),
    ],
)
def test_a_refusal_says_what_to_do(reason: str, detail: str, code: str) -> None:
    refused = Trace("handshake", refusal=Refusal(reason, detail))
    assert codes(refused) == [code]
    assert codes(trace("handshake"), Trace("speech", refusal=Refusal(reason, detail))) == [code]


@pytest.mark.parametrize(
    ("reason", "detail"),
    [
        ("app_refused", "the connection ended during the WebSocket handshake"),
        ("app_refused", "HTTP status 400 instead of 101"),
        ("app_protocol_error", "handshake: unknown protocol in upgrade response: http/1.0 400 bad request"),
    ],
)
def test_what_a_port_with_tls_may_answer_to_one_without_it_is_told(reason: str, detail: str) -> None:
    refused = Trace("handshake", refusal=Refusal(reason, detail))
    (plain,) = judge([refused], EXOTEL, SPOKEN)
    (secure,) = judge([refused], replace(EXOTEL, tls=True), SPOKEN)
    assert plain.code == secure.code
    assert "Try wss://" in plain.remedy
    assert "wss://" not in secure.remedy


def test_calls_at_once_that_are_refused_are_another_matter() -> None:
    refused = Trace("concurrency", number=2, refusal=Refusal("app_refused", "HTTP status 503 instead of 101"))
    assert codes(trace(), trace("concurrency"), refused) == ["refused_together"]


def test_the_handshake_is_looked_at() -> None:
    assert codes(trace("handshake", handshake=Handshake(4000.0))) == ["handshake_slow"]
    assert codes(trace("handshake", handshake=Handshake(4.0, extensions="permessage-deflate"))) == ["not_offered"]
    assert codes(trace("handshake", handshake=Handshake(4.0, tls="TLSv1.3", certificate_days=3.0))) == [
        "certificate_expires"
    ]
    assert codes(trace("handshake"), case=Case("exotel", Encoding.PCM16, exposed=True)) == ["plain_ws"]


@pytest.mark.parametrize("reason", ["binary", "bad_json", "bad_base64", "bad_shape", "mark_name"])
def test_unusable_messages_explain_silence(reason: str) -> None:
    mute = trace(unusable={reason: 3}, media=[], heard=[])
    found = judge([mute], EXOTEL, SPOKEN)
    assert [one.code for one in found] == [reason]
    assert found[0].severity is Severity.ERROR


def test_unknown_events_are_a_trifle_while_there_is_audio() -> None:
    (one,) = judge([trace(unusable={"unknown_event": 1}, events={"ping"})], EXOTEL, SPOKEN)
    assert (one.code, one.severity) == ("unknown_event", Severity.WARNING)
    (one,) = judge([trace(unusable={"unknown_event": 1}, events={"audio"}, media=[], heard=[])], EXOTEL, SPOKEN)
    assert (one.code, one.severity) == ("unknown_event", Severity.ERROR)


def test_ids_of_nobody_and_of_another_call() -> None:
    assert codes(trace(foreign_sids={"mine": 4})) == ["wrong_stream_sid"]
    assert codes(trace(misspelt_sids=4)) == ["misspelt_sid"]
    first, second = (trace("concurrency", number=number, stream_sid=f"sid-{number}") for number in range(2))
    second.foreign_sids["sid-0"] = 1
    assert codes(first, second) == ["crossed"]


def pieces(*sizes: int, gap: float = 0.01) -> list[Media]:
    sound = CHUNK * 100
    return [Media(0.1 + gap * number, sound[:size], size) for number, size in enumerate(sizes)]


def test_the_sizes_of_messages() -> None:
    assert codes(trace(media=pieces(3200, 3200, 1234))) == []  # the last one may be short
    assert codes(trace(media=pieces(3200, 1234, 3200))) == ["chunk_unaligned"]
    assert codes(trace(media=pieces(3200, 1234, 3200, gap=1.0))) == []  # utterances
    assert codes(trace(media=pieces(3200, 1234, 3200), marks=[Named(0.115, "end")])) == []
    assert codes(trace(media=pieces(3201, 3201, 3200))) == ["chunk_odd"]
    assert codes(trace(media=pieces(320, 320, 320))) == ["chunk_small"]
    assert codes(trace(media=pieces(160_000))) == ["chunk_big"]
    assert codes(trace(media=pieces(1234, 1233, 1233)), case=Case("twilio", Encoding.ULAW)) == []


def test_audio_of_another_encoding() -> None:
    voice = utterance(2.0, 4)

    def found(pcm: bytes, case: Case = EXOTEL) -> list[str]:
        whole = len(pcm) // 3200 * 3200
        return codes(
            trace(media=[Media(0.1, pcm[at : at + 3200], 3200) for at in range(0, whole, 3200)]),
            case=case,
        )

    assert found(voice.tobytes()) == []
    assert found(pcm_to_ulaw(voice.tobytes())) == ["wrong_encoding"]
    assert found(voice.byteswap().tobytes()) == ["wrong_encoding"]
    assert found(b"\x01" + voice.tobytes()) == ["wrong_encoding"]
    twilio = Case("twilio", Encoding.ULAW)
    assert found(ulaw_to_pcm(pcm_to_ulaw(voice.tobytes())), twilio) == []
    assert found(ulaw_to_pcm(voice.tobytes()), twilio) == ["wrong_encoding"]


def test_the_level_of_the_voice() -> None:
    assert codes(trace(heard=heard((0.1, 1.0), (5.0, 6.0), dbfs=-45.0))) == ["too_quiet"]
    square = (np.sign(np.sin(np.arange(1600) * 0.3)) * 32767).astype("<i2").tobytes()
    assert codes(trace(media=[Media(0.1, square, 3200)])) == ["clipped"]


def test_an_application_that_is_never_heard() -> None:
    assert codes(trace(media=[], heard=[])) == ["never_speaks"]
    (one,) = judge([trace(media=[Media(0.1, bytes(3200), 3200)], heard=[])], EXOTEL, SPOKEN)
    assert one.code == "never_speaks"
    assert "silence (-100 dBFS)" in one.seen
    assert codes(trace("hangup", media=[], heard=[])) == []  # nobody spoke to it


def test_greetings() -> None:
    assert codes(trace("greeting", media=[], heard=[])) == ["no_greeting"]
    assert codes(trace("greeting", heard=heard((3.5, 5.0)))) == ["late_greeting"]


def test_answers() -> None:
    assert codes(trace(heard=heard((0.12, 1.12)))) == ["no_response"]
    assert codes(trace(heard=heard((0.12, 1.12), (7.4, 8.0)))) == ["slow_response"]
    assert codes(trace(heard=heard((0.12, 1.12), (3.5, 5.5)))) == ["talks_over"]
    (turn,) = turns(trace())
    assert turn.response_ms == pytest.approx(500)
    assert codes(trace(), trace("slow", slow=True, heard=heard((0.12, 1.12)))) == ["slow_network_silent"]


def test_who_answers_nothing_though_it_is_given_words_is_not_ready() -> None:
    words = replace(EXOTEL, words=True)
    deaf = [trace(name, heard=heard((0.12, 1.12)), number=0) for name in ("speech", "marks")]
    for scenario in ("concurrency", "slow"):
        silent = trace(scenario, heard=heard((0.12, 1.12)), said=[Span(3.0, 4.5)], slow=scenario == "slow")
        (one,) = judge([silent], words, SPOKEN)
        assert (one.code, one.severity, one.scenarios) == ("no_response", Severity.ERROR, (scenario,))
        assert judge([silent], EXOTEL, SPOKEN) == []
    (one,) = judge(deaf, words, SPOKEN)
    assert (one.code, one.severity, one.scenarios) == ("no_response", Severity.ERROR, ("speech", "marks"))
    assert one.seen.startswith("2 of 2 times")
    assert "recogniser" in one.remedy
    assert "--speech" not in one.remedy
    # It may well be the voice, or a turn of several.
    (one,) = judge(deaf, EXOTEL, SPOKEN)
    assert one.severity is Severity.WARNING
    assert "--speech" in one.remedy
    (one,) = judge([deaf[0], trace("marks")], words, SPOKEN)
    assert (one.code, one.severity) == ("no_response", Severity.WARNING)
    assert "--speech" not in one.remedy
    assert judge([trace(heard=heard((0.12, 1.12), (3.5, 4.6)))], words, SPOKEN)[0].code == "talks_over"


def test_the_callers_own_audio_is_recognised() -> None:
    back = SPOKEN[0].tobytes()
    assert codes(trace(media=[Media(3.2, back, 24_000)])) == ["echoes_caller"]
    assert codes(trace(media=[Media(3.2, SPOKEN[1].tobytes(), 24_000)])) == []


def barged(talks: tuple[float, float], **changes: Any) -> Trace:
    return trace("barge-in", **({"said": [Span(0.5, 2.0)], "heard": heard(talks)} | changes))


def test_interruptions() -> None:
    good = barged((0.12, 0.64), clears=[0.62])
    assert codes(good) == []
    (one,) = interruptions(good)
    assert one.clear_ms == pytest.approx(120)
    assert codes(barged((0.12, 1.9), clears=[1.88])) == ["slow_clear"]
    assert codes(barged((0.12, 3.0))) == ["no_clear"]
    assert codes(barged((0.12, 0.9))) == ["stops_without_clear"]
    assert codes(barged((0.12, 0.3))) == ["barge_in_untested"]
    late = barged((0.12, 0.64), clears=[0.62], media=[Media(0.1, CHUNK, 3200), Media(0.9, CHUNK, 3200)])
    assert codes(late) == ["audio_after_clear"]
    answered = barged((0.12, 0.64), clears=[0.62], media=[Media(0.1, CHUNK, 3200), Media(2.4, CHUNK, 3200)])
    assert codes(answered) == []


def test_marks_that_are_sent_back_and_forth() -> None:
    echoes = [Named(1.0 + 0.1 * number, "m") for number in range(4)]
    marks = [Named(0.9, "m")] + [Named(echo.at + 0.01, "m") for echo in echoes]
    assert ping_pongs(trace(marks=marks, echoes=echoes)) == 4
    assert codes(trace(marks=marks, echoes=echoes)) == ["ping_pong"]
    # The same name behind every piece of audio is no ping-pong.
    media = [Media(echo.at + 0.005, CHUNK, 3200) for echo in echoes]
    assert codes(trace(marks=marks, echoes=echoes, media=media)) == []


@pytest.mark.parametrize(
    ("scenario", "ending", "more", "code"),
    [
        ("handshake", Ending(0.1, "app_closed", "close code 1000"), {}, "closes_at_once"),
        ("greeting", Ending(6.0, "app_closed", "close code 1000"), {}, "ends_call"),
        ("greeting", Ending(6.0, "app_closed", "close code 1011 'oops'"), {}, "closes_with_error"),
        ("greeting", Ending(6.0, "app_lost", "no close frame"), {}, "lost"),
        ("greeting", Ending(6.0, "app_protocol_error", "reserved bits"), {}, "protocol_error"),
        ("greeting", Ending(6.0, "app_message_too_big", "over 1048576 bytes"), {}, "message_too_big"),
        ("silence", Ending(6.0, "app_closed", "close code 1000"), {}, "closes_on_silence"),
        ("dtmf", Ending(6.0, "app_closed", "close code 1011"), {"digits": [5.5]}, "closes_on_dtmf"),
        ("marks", Ending(6.0, "app_lost", "gone"), {"echoes": [Named(5.9, "m")], "said": []}, "closes_on_mark"),
        ("slow", Ending(6.0, "app_closed", "close code 1000"), {"slow": True}, "slow_network_ends"),
    ],
)
def test_an_ending_is_named_for_what_came_before_it(
    scenario: str, ending: Ending, more: dict[str, Any], code: str
) -> None:
    assert codes(trace(scenario, ending=ending, closing=None, **more)) == [code]


def test_how_our_close_is_answered() -> None:
    assert codes(trace(closing=Closing(9.0, 2.0, Farewell.IGNORED))) == ["close_unanswered"]
    assert codes(trace(closing=Closing(9.0, 0.1, Farewell.DROPPED))) == ["close_without_frame"]


def test_gaps_are_weighed_by_what_was_played() -> None:
    def played(gaps: int, frames: int, **more: Any) -> Trace:
        return trace(figures=MediaFigures(underruns=gaps, frames_played=frames), **more)

    assert codes(played(20, 500)) == ["choppy"]
    assert codes(played(4, 500)) == ["underruns"]
    assert codes(played(2, 500)) == []
    ours = trace(figures=MediaFigures(underruns=20, underruns_stall=18, frames_played=500))
    assert codes(ours) == []  # this machine stood still, not the application
    starved = played(6, 500, slow=True)
    starved.scenario = "slow"
    assert codes(starved) == ["no_lead"]


def together(*answers: tuple[float, float] | None, media: dict[int, list[Media]] | None = None) -> list[Trace]:
    """Calls whose callers speak one after the other, 4 s each; when each of them hears what."""
    return [
        trace(
            "concurrency",
            number=number,
            stream_sid=f"sid-{number}",
            said=[Span(3.0 + 4 * number, 4.5 + 4 * number)],
            heard=heard((0.12, 1.12), *([answer] if answer else [])),
            media=(media or {}).get(number, []),
        )
        for number, answer in enumerate(answers)
    ]


def test_calls_at_once_are_independent() -> None:
    assert codes(*together((5.0, 6.0), (9.0, 10.0), (13.0, 14.0))) == []
    # The caller of the first call spoke, and the last one was answered.
    assert codes(*together(None, None, (5.0, 6.0))) == ["crossed"]
    own = SPOKEN[0].tobytes()
    assert codes(*together((5.0, 6.0), (9.0, 10.0), media={1: [Media(3.3, own, 24_000)]})) == ["crossed"]
    same = {0: [Media(5.0, CHUNK, 3200)], 1: [Media(5.01, CHUNK, 3200)]}
    assert codes(*together((5.0, 6.0), (9.0, 10.0), media=same)) == ["crossed"]
    # The same prompt as an answer to everybody's own words is not.
    same[1] = [Media(9.0, CHUNK, 3200)]
    assert codes(*together((5.0, 6.0), (9.0, 10.0), media=same)) == []
    assert codes(trace(), *together((6.5, 7.0), (10.9, 11.0))) == ["slower_together"]


def test_who_speaks_up_by_itself_is_not_taken_for_one_who_answers_another() -> None:
    prompting = trace("silence", heard=heard((0.12, 1.12), (6.0, 7.0)))
    assert "crossed" not in codes(prompting, *together(None, None, (5.0, 6.0)))


def test_pace() -> None:
    def sent(gap: float) -> Trace:
        return trace(media=[Media(gap * number, CHUNK, 3200) for number in range(10)])  # 200 ms each

    assert pace([sent(0.2)]) == (1.0, False)
    assert pace([sent(0.1)]) == (2.0, False)
    assert pace([sent(0.0001)]) == (None, True)
    assert pace([trace(media=[])]) == (None, False)


def test_figures() -> None:
    taken = figures([trace(), trace("slow", slow=True), barged((0.12, 0.64), clears=[0.62])])
    assert taken.response_ms == Spread(500.0, 500.0, 500.0, 1)
    assert taken.response_slow_network_ms is not None
    assert taken.barge_in_ms == Spread(120.0, 120.0, 120.0, 1)
    assert taken.first_audio_ms == Spread(120.0, 120.0, 120.0, 2)
    assert taken.connect_ms is not None
    assert taken.calls == 3


def test_every_rule_has_its_documents_and_the_worst_comes_first() -> None:
    for dialect, topics in DOCUMENTS.items():
        for code, (_, topic, remedy) in RULES.items():
            assert remedy.endswith("."), code
            assert (
                not topic
                or topic in topics
                or (dialect, topic)
                in {
                    ("twilio", "handshake"),
                    ("twilio", "tls"),
                    ("twilio", "chunk"),
                }
            ), (dialect, code)
    found = in_order(finding("exotel", code, "", []) for code in ("chunk_small", "talks_over", "binary"))
    assert [one.code for one in found] == ["binary", "talks_over", "chunk_small"]
    assert verdict(found).plain == "Not ready for callers: 1 error, 1 warning, 1 remark"
    assert verdict([]).plain == "Ready for callers: nothing to remark"


def test_messages_are_put_on_record() -> None:
    spec = call_spec()
    seen = Trace("speech")
    observer = Observer(seen, open_dialect(spec), DIALECTS[spec.dialect])
    for message in open_dialect(spec).opening():
        observer.sent(message, 0.0)
    assert seen.stream_sid == spec.stream_sid

    def app(at: float, **message: Any) -> None:
        observer.text(json.dumps(message).encode(), at)

    app(1.0, event="media", stream_sid=spec.stream_sid, media={"payload": "AAAA"})
    app(1.1, event="mark", streamSid=spec.stream_sid, mark={"name": "a"})
    app(1.2, event="clear", stream_sid="mine")
    app(1.3, event="mark", mark={"name": 7})
    app(1.4, event="audio", data="AAAA")
    observer.text(b"{\xff\x00", 1.5)
    observer.binary()
    observer.sent(open_dialect(spec).mark("a"), 1.6)
    assert seen.media == [Media(1.0, bytes(3), 3)]
    assert seen.marks == [Named(1.1, "a")]
    assert seen.echoes == [Named(1.6, "a")]
    assert seen.clears == [1.2]
    assert seen.misspelt_sids == 1
    assert seen.foreign_sids == {"mine": 1}
    assert seen.unusable == {"mark_name": 1, "unknown_event": 1, "bad_json": 1, "binary": 1}
    assert seen.events == {"audio"}
    assert seen.examples["bad_json"].isprintable()


@pytest.mark.parametrize("odd", [b"[1e999]", b'"\xff"'])
def test_a_value_that_the_gateway_does_not_look_at_may_be_anything(odd: bytes) -> None:
    seen = Trace("speech")
    Observer(seen, open_dialect(call_spec()), DIALECTS["exotel"]).text(
        b'{"event":"mark","mark":{"name":"a","more":%b}}' % odd, 1.0
    )
    assert seen.marks == [Named(1.0, "a")]


def test_sizes_are_those_of_the_dialect() -> None:
    spec = call_spec(dialect="twilio")
    seen = Trace("speech")
    observer = Observer(seen, open_dialect(spec), DIALECTS[spec.dialect])
    for message in open_dialect(spec).opening():
        observer.sent(message, 0.0)
    observer.text(b'{"event":"media","streamSid":"MZ%s","media":{"payload":"////"}}' % spec.stream_sid.encode(), 0.5)
    assert [(media.size, len(media.pcm)) for media in seen.media] == [(3, 6)]
    assert not seen.foreign_sids
    assert not seen.misspelt_sids


def test_the_voice_is_loud_enough_lasts_and_is_nobody_elses() -> None:
    voices: list[Samples] = [utterance(1.5, number) for number in range(4)]
    for number, voice in enumerate(voices):
        assert len(voice) == 12_000
        assert level_dbfs(voice.tobytes()) == pytest.approx(-20, abs=0.5)
        assert np.array_equal(voice, utterance(1.5, number))
        # No pause in it is as long as a detector of turns takes for an end.
        quiet = [level_dbfs(voice[at : at + 160].tobytes()) < -45 for at in range(0, 12_000, 160)]
        assert "1" * 5 not in "".join(str(int(one)) for one in quiet)
        for other, another in enumerate(voices):
            alike = resemblance(ulaw_to_pcm(pcm_to_ulaw(another.tobytes())), voice)
            assert (alike > AUDIBLE_RESEMBLANCE) == (number == other)
    assert guess_encoding(voices[0].tobytes(), Encoding.PCM16) == "pcm16"


def test_the_line_carries_speech_then_noise() -> None:
    line = Line(0)
    assert level_dbfs(ulaw_to_pcm(line.frame())) < -60
    assert line.speak(utterance(0.1, 0)) == pytest.approx(0.1)
    frames = [line.frame() for _ in range(6)]
    assert {len(frame) for frame in frames} == {160}
    assert not line.speaking
    assert [level_dbfs(ulaw_to_pcm(frame)) > -45 for frame in frames].count(True) >= 4
    assert level_dbfs(ulaw_to_pcm(frames[5])) < -60


@pytest.mark.parametrize("times", [2, 3])
def test_what_was_said_at_a_higher_rate_is_found_again(times: int) -> None:
    codes = pcm_to_ulaw(utterance(0.3, 1).tobytes())
    wide = widened(codes, times)
    assert len(wide) == 2 * len(codes) * times
    assert narrowed(wide, times) == narrowed(ulaw_to_pcm(codes), 1) == ulaw_to_pcm(codes)
    assert narrowed(wide + b"\1", times) == ulaw_to_pcm(codes)
    assert level_dbfs(wide) == pytest.approx(level_dbfs(ulaw_to_pcm(codes)), abs=2)


def write_wav(path: Path, rate: int, seconds: float, dbfs: float = -20) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(tone(440, seconds, rate, dbfs).tobytes())
    return path


def test_recorded_speech(tmp_path: Path) -> None:
    assert len(read_speech(write_wav(tmp_path / "good.wav", 8000, 1.0))) == 8000
    with pytest.raises(ConfigError, match="16000 Hz: convert it"):
        read_speech(write_wav(tmp_path / "rate.wav", 16000, 1.0))
    with pytest.raises(ConfigError, match=r"0\.1 s long"):
        read_speech(write_wav(tmp_path / "short.wav", 8000, 0.1))
    with pytest.raises(ConfigError, match=r"nothing is heard in it \(-60 dBFS\)"):
        read_speech(write_wav(tmp_path / "quiet.wav", 8000, 1.0, dbfs=-60))
    (tmp_path / "none.wav").write_bytes(b"MP3")
    with pytest.raises(ConfigError, match="not readable as a WAV file"):
        read_speech(tmp_path / "none.wav")


def test_every_scenario_has_words() -> None:
    for name in SCENARIOS:
        assert outcome(name, [trace(name)])
        assert outcome(name, [trace(name, media=[], heard=[], said=[], handshake=Handshake(1.0))])
    assert outcome("handshake", [Trace("handshake", refusal=Refusal("app_refused", "no"))]) == "no call: no"
    assert outcome("speech", [trace()]) == "1 of 1 turns answered, after 500 ms"
    ended = trace("silence", ending=Ending(6.0, "app_closed", "close code 1000"))
    assert outcome("silence", [ended]).endswith("it ended the call after 6.0 s: close code 1000")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["http://host/"], "expected ws://"),
        (["wss://"], "expected ws://"),
        (["ws://h:99999/"], "expected ws://"),
        (["ws://h/", "--option", "frame_ms"], "expected KEY=VALUE"),
        (["ws://h/", "--option", "frame_ms=7"], "frame_ms"),
        (["ws://h/", "--option", "nonsense=1"], "nonsense"),
        (["ws://h/", "--only", "nonsense"], "nonsense"),
        (["ws://h/", "--credentials-file", "/nonexistent"], "does not exist"),
        (["ws://h/", "--json", "/nonexistent/report.json"], "no such folder"),
        (["ws://k:t@h/", "--credentials-file", "FILE"], "give one of them"),
        (["ws://h/", "--credentials-file", "EMPTY"], "exactly one non-empty line"),
        (["ws://h/", "--parameter", "=x"], "expected KEY=VALUE"),
        (["ws://h/", "--speech", "EMPTY"], "not readable as a WAV file"),
        (["wss://h/?a=b", "--dialect", "twilio"], "Twilio allows no query"),
        (["wss://h/", "--dialect", "twilio", "--sample-rate", "16000"], "Twilio's streams have 8000 Hz"),
        (["wss://h/", "--sample-rate", "44100"], "'44100' is not one of '8000', '16000', '24000'"),
        (["wss://h/?sample-rate=44100"], "one of 8000, 16000, 24000"),
        (["wss://h/?sample-rate=24000", "--sample-rate", "16000"], "make them agree"),
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str], complaint: str, tmp_path: Path) -> None:
    (tmp_path / "FILE").write_text("key:token\n")
    (tmp_path / "EMPTY").write_text("\n")
    given = [str(tmp_path / one) if one in ("FILE", "EMPTY") else one for one in arguments]
    result = CliRunner().invoke(trunkbridge, ["appcheck", *given])
    assert result.exit_code == 2
    assert complaint in result.output
    assert "k:t" not in result.output
