"""Turns, response times, barge-ins and talk ratios from frames alone, against what is known of the frames."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audiosocket.callspec import MediaFormat
from audiosocket.durations import Durations, TurnTimes
from audiosocket.turns import Turns
from tools.audio import g711
from tools.audio.pcm import Pcm
from tools.audio.tones import tone

pytestmark = pytest.mark.unit

FORMATS = ("ulaw", "alaw", "slin", "slin16", "slin24")
SPEECH = tone(440, 0.02)
SILENCE = np.zeros(160, np.int16)
PLAYED = tone(620, 0.02).astype("<i2").tobytes()
PLAYED_SILENCE = bytes(320)


def encoded(media_format: str, pcm: Pcm) -> bytes:
    if media_format.startswith("slin"):
        return at_rate(media_format, pcm.astype("<i2").tobytes())
    return g711.ulaw_encode(pcm) if media_format == "ulaw" else g711.alaw_encode(pcm)


def at_rate(media_format: str, pcm: bytes) -> bytes:
    """PCM16 of 8 kHz at the rate of a media format."""
    return np.repeat(np.frombuffer(pcm, "<i2"), MediaFormat(media_format).sample_rate // 8000).tobytes()


def noise(level_dbfs: float, frames: int = 1, seed: int = 1) -> Pcm:
    rms = 32768 * 10 ** (level_dbfs / 20)
    samples = np.random.default_rng(seed).normal(0, rms, frames * 160)
    return np.clip(np.round(samples), -32768, 32767).astype(np.int16)


class Talk:
    """Two sides talking into `Turns`, frame by frame; `at` is the tick of the latest frame."""

    def __init__(self, media_format: str = "ulaw", line: Pcm = SILENCE) -> None:
        self.turns = Turns(media_format, TurnTimes())
        self.format = media_format
        self.line = line
        self.at = 0

    def tick(self, caller: Pcm | None, played: bytes | None = None) -> None:
        self.at += 1
        self.turns.heard = None if caller is None else encoded(self.format, caller)
        self.turns.tick(self.at, None if played is None else at_rate(self.format, played))

    def caller(self, ticks: int, played: bytes | None = None, speech: Pcm = SPEECH) -> Talk:
        for _ in range(ticks):
            self.tick(speech, played)
        return self

    def app(self, ticks: int) -> Talk:
        return self.caller(ticks, PLAYED, self.line)

    def nobody(self, ticks: int, played: bytes | None = None) -> Talk:
        return self.caller(ticks, played, self.line)

    def no_frames(self, ticks: int, played: bytes | None = None) -> Talk:
        for _ in range(ticks):
            self.tick(None, played)
        return self

    def samples(self, pcm: Pcm, played: bytes | None = None) -> Talk:
        for frame in pcm.reshape(-1, 160):
            self.tick(frame, played)
        return self

    def end(self) -> Turns:
        self.turns.end(self.at)
        return self.turns

    def counts(self) -> tuple[int, int, int, int]:
        turns = self.turns
        return turns.turns, turns.unanswered, turns.interruptions, turns.barge_ins_ignored


def measured(durations: Durations) -> tuple[int, int, int]:
    """How many, the shortest half's longest, the longest."""
    figures = durations.figures()
    return (figures["count"], figures["p50"], figures["max"]) if figures else (0, 0, 0)


# Response times


@pytest.mark.parametrize("media_format", FORMATS)
@pytest.mark.parametrize("delay", [1, 5, 9, 10, 11, 15, 50, 300])
def test_the_response_time_is_from_the_last_loud_frame_to_the_first_audible_one(media_format: str, delay: int) -> None:
    talk = Talk(media_format).nobody(20).caller(40).nobody(delay - 1).app(50).nobody(50)
    assert measured(talk.turns.responses) == (1, delay * 20, delay * 20)
    assert talk.counts() == (1, 0, 0, 0)
    assert (talk.turns.caller_ticks, talk.turns.app_ticks, talk.turns.both_ticks) == (40, 50, 0)


def test_a_conversation_of_many_turns() -> None:
    talk = Talk().nobody(10).app(60)  # the greeting is no reply
    for delay in range(20, 60):
        talk.nobody(15).caller(30).nobody(delay - 1).app(40)
    talk.nobody(20)
    assert measured(talk.turns.responses) == (40, 39 * 20, 59 * 20)
    assert talk.counts() == (40, 0, 0, 0)


def test_silence_that_is_streamed_is_no_reply() -> None:
    talk = Talk().nobody(20, PLAYED_SILENCE).caller(40, PLAYED_SILENCE).nobody(49, PLAYED_SILENCE).app(30)
    talk.nobody(60, PLAYED_SILENCE).caller(20, PLAYED_SILENCE).nobody(24, PLAYED_SILENCE).app(30)
    assert measured(talk.turns.responses) == (2, 500, 1000)
    assert talk.turns.app_ticks == 60
    quiet = noise(-48).astype("<i2").tobytes()
    assert Talk().nobody(500, quiet).turns.app_ticks == 0


def test_an_application_that_streams_silence_and_is_asked_in_a_short_pause() -> None:
    talk = Talk().nobody(20, PLAYED_SILENCE).app(50).nobody(15, PLAYED_SILENCE)
    talk.caller(10, PLAYED_SILENCE).nobody(14, PLAYED_SILENCE).app(20).nobody(60, PLAYED_SILENCE)
    assert measured(talk.turns.responses) == (1, 300, 300)
    assert measured(talk.turns.barge_ins) == (0, 0, 0)
    assert talk.counts() == (1, 0, 0, 0)


def test_a_pause_within_a_sentence_is_part_of_the_turn() -> None:
    talk = Talk().nobody(20).caller(30).nobody(25).caller(30).nobody(95).caller(30).nobody(29).app(20)
    assert measured(talk.turns.responses) == (1, 600, 600)
    assert talk.counts() == (1, 0, 0, 0)
    assert talk.turns.caller_ticks == 90


def test_a_caller_who_must_ask_again_was_not_answered() -> None:
    talk = Talk().nobody(20).caller(30).nobody(150).caller(30).nobody(150).caller(30).nobody(29).app(20)
    assert measured(talk.turns.responses) == (1, 600, 600)
    assert talk.counts() == (3, 2, 0, 0)


@pytest.mark.parametrize(("wait", "unanswered"), [(0, 0), (50, 0), (99, 0), (101, 1), (500, 1)])
def test_a_call_that_ends_without_a_reply(wait: int, unanswered: int) -> None:
    talk = Talk().nobody(20).caller(30).nobody(wait)
    talk.end()
    assert talk.counts() == (1, unanswered, 0, 0)
    talk.end()
    assert talk.counts() == (1, unanswered, 0, 0)


def test_a_reply_into_the_callers_speech_is_an_interruption() -> None:
    talk = Talk().nobody(20).caller(30).caller(30, PLAYED).app(40).nobody(200)
    assert talk.counts() == (1, 0, 1, 0)
    assert measured(talk.turns.responses) == (0, 0, 0)
    assert measured(talk.turns.barge_ins) == (0, 0, 0)
    assert talk.turns.both_ticks == 30
    assert talk.end().unanswered == 0


def test_an_interruption_that_gives_way_leaves_the_turn_waiting() -> None:
    talk = Talk().nobody(20).caller(30).caller(5, PLAYED).caller(40).nobody(34).app(40)
    assert talk.counts() == (1, 0, 1, 0)
    assert measured(talk.turns.responses) == (1, 700, 700)


def test_a_reply_that_comes_while_the_caller_goes_on_is_an_interruption() -> None:
    talk = Talk().nobody(20).caller(30).nobody(25).caller(20).caller(20, PLAYED).app(20).nobody(20)
    assert talk.counts() == (1, 0, 1, 0)
    assert measured(talk.turns.responses) == (0, 0, 0)


def test_who_starts_a_moment_later_interrupts() -> None:
    talk = Talk().nobody(20).caller(1).caller(20, PLAYED).caller(30)
    assert measured(talk.turns.barge_ins) == (0, 0, 0)
    assert talk.end().interruptions == 1


# Barge-in


@pytest.mark.parametrize("reaction", [4, 10, 20, 60])
@pytest.mark.parametrize("clear", [True, False])
def test_barge_in_is_from_the_first_loud_frame_to_the_end_of_the_applications_audio(reaction: int, clear: bool) -> None:
    talk = Talk().nobody(20).app(100).caller(reaction, PLAYED)
    if clear:
        talk.turns.cleared()
    talk.caller(25).nobody(34).app(50)
    assert measured(talk.turns.barge_ins) == (1, reaction * 20, reaction * 20)
    assert measured(talk.turns.responses) == (1, 700, 700)
    assert talk.counts() == (1, 0, 0, 0)
    assert talk.turns.both_ticks == reaction


def test_an_utterance_is_over_when_nothing_is_played_for_200_ms() -> None:
    for pause, reaction in ((9, 34), (10, 5)):
        talk = Talk().nobody(20).app(50).caller(5, PLAYED).caller(pause).caller(20, PLAYED).caller(30)
        assert measured(talk.turns.barge_ins) == (1, reaction * 20, reaction * 20)


def test_a_short_word_silences_the_application_after_its_end() -> None:
    talk = Talk().nobody(20).app(100).caller(15, PLAYED).app(20)
    talk.turns.cleared()
    talk.nobody(50).app(30)
    assert measured(talk.turns.barge_ins) == (1, 700, 700)
    assert measured(talk.turns.responses) == (1, 71 * 20, 71 * 20)


def test_new_audio_right_after_a_clear_is_a_new_utterance() -> None:
    talk = Talk().nobody(20).app(100).caller(15, PLAYED).app(5)
    talk.turns.cleared()
    talk.app(30).nobody(20)
    assert measured(talk.turns.barge_ins) == (1, 400, 400)
    assert measured(talk.turns.responses) == (1, 120, 120)


def test_an_application_that_talks_on_has_ignored_the_caller() -> None:
    talk = Talk().nobody(20).app(100).caller(15, PLAYED).app(300).nobody(300)
    assert talk.counts() == (1, 0, 0, 1)
    assert measured(talk.turns.barge_ins) == (0, 0, 0)
    assert measured(talk.turns.responses) == (0, 0, 0)
    assert talk.end().unanswered == 0


def test_an_application_that_never_yields_to_a_caller_who_goes_on() -> None:
    talk = Talk().nobody(20).app(50)
    for _ in range(4):
        talk.caller(80, PLAYED).nobody(12, PLAYED)
    talk.nobody(12)
    assert measured(talk.turns.barge_ins) == (1, 4 * 92 * 20, 4 * 92 * 20)


def test_pauses_between_sentences_do_not_end_an_utterance_that_is_streamed() -> None:
    talk = Talk().nobody(20).app(50).nobody(30, PLAYED_SILENCE).app(20).caller(20, PLAYED)
    talk.caller(30, PLAYED_SILENCE).caller(10, PLAYED).caller(20)
    assert measured(talk.turns.barge_ins) == (1, 1200, 1200)


# What is no speech


@pytest.mark.parametrize("media_format", FORMATS)
def test_line_noise_is_never_speech(media_format: str) -> None:
    talk = Talk(media_format).samples(noise(-45, 3000))
    assert (talk.end().turns, talk.turns.caller_ticks) == (0, 0)


@pytest.mark.parametrize("media_format", FORMATS)
@pytest.mark.parametrize(
    ("level_dbfs", "known_after"),
    [(-60, 5), (-45, 5), (-38, 105)],  # the noise of a bad line is known after two seconds
)
def test_turns_on_a_noisy_line_are_those_of_a_quiet_one(media_format: str, level_dbfs: float, known_after: int) -> None:
    talk = Talk(media_format)
    talk.samples(noise(level_dbfs, known_after))
    talked = talk.turns.caller_ticks
    assert talk.turns.turns == 0
    for turn in range(10):
        talk.samples(noise(-22, 30, turn)).samples(noise(level_dbfs, 39, turn))
        talk.samples(noise(level_dbfs, 50, turn), PLAYED).samples(noise(level_dbfs, 50, turn))
    assert talk.counts() == (10, 0, 0, 0)
    assert measured(talk.turns.responses) == (10, 800, 800)
    assert talk.turns.caller_ticks - talked == 300


@pytest.mark.parametrize("sound", [tone(425, 0.02), noise(-30)], ids=["tone", "noise"])
def test_a_sound_that_lasts_is_no_speech_and_no_turn(sound: Pcm) -> None:
    talk = Talk().nobody(200).caller(2000, None, sound)
    assert 150 <= talk.turns.caller_ticks <= 310
    talk.nobody(50).caller(30).nobody(29).app(20)
    assert talk.counts() == (1, 0, 0, 0)
    assert measured(talk.turns.responses) == (1, 600, 600)


def test_a_sound_that_lasts_from_the_start_of_the_call() -> None:
    talk = Talk().caller(500)
    assert talk.turns.caller_ticks <= 110
    assert talk.end().turns == 0


def test_a_steady_sound_leaves_the_turn_before_it_waiting() -> None:
    talk = Talk().nobody(200).caller(30).nobody(30).caller(400).nobody(20).app(20)
    assert talk.counts() == (1, 0, 0, 0)
    assert measured(talk.turns.responses) == (1, 451 * 20, 451 * 20)


def test_a_reply_into_a_steady_sound_is_the_reply_to_the_turn_before_it() -> None:
    talk = Talk().nobody(200).caller(30).nobody(30).caller(100).caller(30, PLAYED).caller(300).nobody(20)
    assert talk.counts() == (1, 0, 0, 0)
    assert measured(talk.turns.responses) == (1, 131 * 20, 131 * 20)


def test_a_long_speech_with_the_shortest_of_pauses_stays_speech() -> None:
    talk = Talk().nobody(53)
    for _ in range(100):
        talk.caller(9).nobody(1)
    talk.nobody(24).app(20)
    assert measured(talk.turns.responses) == (1, 520, 520)
    assert talk.turns.caller_ticks == 999


def test_a_tone_of_three_seconds_is_a_turn() -> None:
    talk = Talk().nobody(100).caller(150).nobody(24).app(20)
    assert measured(talk.turns.responses) == (1, 500, 500)


@given(st.lists(st.tuples(st.integers(1, 2), st.integers(1, 40)), max_size=60))
def test_clicks_are_no_speech(clicks: list[tuple[int, int]]) -> None:
    talk = Talk().nobody(20)
    for loud, quiet in clicks:
        talk.caller(loud).nobody(quiet)
    assert (talk.end().turns, talk.turns.caller_ticks) == (0, 0)


def test_clicks_before_and_after_a_gap_or_a_digit_are_no_speech() -> None:
    talk = Talk().nobody(20).caller(2).no_frames(12).caller(2).nobody(10).caller(2)
    talk.turns.digit(talk.at)
    talk.caller(2).nobody(20)
    assert (talk.end().turns, talk.turns.caller_ticks) == (0, 0)


@given(st.integers(0, 145), st.integers(1, 14))
def test_a_crackle_of_less_than_two_milliseconds_in_every_frame_is_nothing(start: int, length: int) -> None:
    crackle = np.zeros(160, np.int16)
    crackle[start : start + length] = 30_000
    talk = Talk().caller(100, None, crackle)
    assert (talk.end().turns, talk.turns.caller_ticks) == (0, 0)


def test_the_tone_of_a_digit_is_no_turn_and_what_follows_no_response() -> None:
    talk = Talk().nobody(50)
    for _ in range(5):
        talk.caller(8)
        talk.turns.digit(talk.at)
        talk.nobody(25).app(30).nobody(30)
    assert talk.counts() == (0, 0, 0, 0)
    assert measured(talk.turns.responses) == (0, 0, 0)


def test_a_digit_comes_as_a_gap() -> None:
    talk = Talk().nobody(50).caller(2).no_frames(12)
    talk.turns.digit(talk.at)
    talk.nobody(25).app(30)
    assert talk.counts() == (0, 0, 0, 0)


def test_a_digit_within_a_sentence_does_not_undo_it() -> None:
    talk = Talk().nobody(50).caller(60)
    talk.turns.digit(talk.at)
    talk.caller(20).nobody(24).app(20)
    assert measured(talk.turns.responses) == (1, 500, 500)


def test_a_barge_in_by_a_digit_is_none() -> None:
    talk = Talk().nobody(50).app(50).caller(8, PLAYED)
    talk.turns.digit(talk.at)
    talk.turns.cleared()
    talk.nobody(100)
    assert measured(talk.turns.barge_ins) == (0, 0, 0)


# How the caller's frames come


@pytest.mark.parametrize("gap", [1, 5, 9])
def test_a_short_gap_in_the_callers_audio_is_part_of_the_speech(gap: int) -> None:
    talk = Talk().nobody(20).caller(20).no_frames(gap).caller(20).nobody(24).app(20)
    assert measured(talk.turns.responses) == (1, 500, 500)
    assert talk.turns.caller_ticks == 40 + gap


def test_frames_that_stop_end_the_speech_where_they_stop() -> None:
    talk = Talk().nobody(20).caller(20).no_frames(39).no_frames(30, PLAYED)
    assert measured(talk.turns.responses) == (1, 800, 800)


def test_a_call_without_any_caller_audio() -> None:
    talk = Talk().no_frames(50).no_frames(50, PLAYED).no_frames(500)
    assert talk.counts() == (0, 0, 0, 0)
    assert (talk.end().app_ticks, talk.turns.both_ticks) == (50, 0)


def test_frames_without_samples_are_nothing() -> None:
    talk = Talk()
    for _ in range(100):
        talk.caller(1, None, np.zeros(0, np.int16))
    assert talk.turns.turns == 0
    talk.caller(30).caller(39, None, np.zeros(0, np.int16)).no_frames(20, PLAYED)
    assert measured(talk.turns.responses) == (1, 800, 800)


def test_frames_faster_than_real_time_are_not_more_speech_than_time() -> None:
    turns = Turns("ulaw", TurnTimes())
    for at in range(1, 41):
        turns.heard = encoded("ulaw", SPEECH)
        for _ in range(2):
            turns.hear_more(encoded("ulaw", SPEECH))
        turns.tick(at, PLAYED)
    assert (turns.caller_ticks, turns.app_ticks, turns.both_ticks) == (42, 40, 40)


def test_a_flood_of_frames_is_bounded() -> None:
    turns = Turns("ulaw", TurnTimes())
    frame = encoded("ulaw", SPEECH)
    turns.heard = frame
    for _ in range(10_000):
        turns.hear_more(frame)
    assert len(turns._earlier) <= 10
    turns.tick(1, None)
    assert turns.heard is None
    assert not turns._earlier


@given(st.lists(st.integers(0, 3), min_size=200, max_size=200), st.integers(10, 40), st.integers(20, 60))
def test_jitter_between_the_callers_frames_and_our_ticks_moves_a_response_by_one_tick(
    holds: list[int], spoken: int, delay: int
) -> None:
    """Frames that come up to 60 ms late and then together: what comes together is put back in time."""
    frames = [SILENCE] * 20 + [SPEECH] * spoken + [SILENCE] * (200 - 20 - spoken)
    reply_at = 20 + spoken + delay
    turns = Turns("ulaw", TurnTimes())
    waiting: list[bytes] = []
    until = 0
    for at, frame in enumerate(frames, 1):
        waiting.append(encoded("ulaw", frame))
        until = max(until, at + holds[at - 1] if not waiting[:-1] else until)
        if at >= until:
            for each in waiting:
                if turns.heard is None:
                    turns.heard = each
                else:
                    turns.hear_more(each)
            waiting.clear()
        turns.tick(at, PLAYED if at >= reply_at else None)
    assert turns.turns == 1
    assert measured(turns.responses)[0] == 1
    assert abs(measured(turns.responses)[1] - delay * 20) <= 20


@pytest.mark.parametrize("ptime", [2, 3, 4])
def test_frames_of_another_length_give_the_same_times(ptime: int) -> None:
    turns = Turns("ulaw", TurnTimes())
    caller = [SILENCE] * 24 + [SPEECH] * 36 + [SILENCE] * 240
    for at in range(1, 301):
        if not at % ptime:
            turns.heard = encoded("ulaw", np.concatenate(caller[at - ptime : at]))
        turns.tick(at, PLAYED if 100 <= at < 120 else None)
    assert turns.turns == 1
    assert abs(measured(turns.responses)[1] - 40 * 20) <= ptime * 20
    assert turns.caller_ticks == pytest.approx(36, abs=ptime)


# Against what can be seen from outside


def spurts(loud: Iterable[bool], at_least: int) -> list[tuple[int, int]]:
    """First and last tick of each talkspurt: pauses of less than ten ticks bridged, shorter starts left out."""
    found: list[tuple[int, int]] = []
    run: list[int] = []
    for at, is_loud in enumerate(loud, 1):
        if found and at - found[-1][1] <= 10 and not run:
            if is_loud:
                found[-1] = (found[-1][0], at)
        elif is_loud:
            run.append(at)
            if len(run) == at_least:
                found.append((run[0], at))
                run = []
        else:
            run = []
    return found


_side = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 40)), max_size=12)


def _ticks(side: list[tuple[int, int]]) -> list[bool]:
    return [loud for quiet, talk in side for loud in [False] * quiet + [True] * talk]


@settings(max_examples=300)
@given(_side, _side, st.sampled_from(FORMATS), st.booleans())
def test_talk_is_what_the_talkspurts_say(
    caller: list[tuple[int, int]], app: list[tuple[int, int]], media_format: str, streams_silence: bool
) -> None:
    heard, played = _ticks(caller), _ticks(app)
    length = max(len(heard), len(played)) + 150
    heard += [False] * (length - len(heard))
    played += [False] * (length - len(played))
    loud, quiet = encoded(media_format, SPEECH), encoded(media_format, SILENCE)
    sounding, silent = at_rate(media_format, PLAYED), at_rate(media_format, PLAYED_SILENCE)
    turns = Turns(media_format, TurnTimes())
    before: tuple[int, ...] = ()
    for at, (speaks, sounds) in enumerate(zip(heard, played, strict=True), 1):
        turns.heard = loud if speaks else quiet
        turns.tick(at, sounding if sounds else silent if streams_silence else None)
        now = (
            turns.turns,
            turns.unanswered,
            turns.interruptions,
            turns.barge_ins_ignored,
            turns.caller_ticks,
            turns.app_ticks,
            turns.both_ticks,
            turns.responses.count,
            turns.barge_ins.count,
        )
        assert all(then <= later for then, later in zip(before, now, strict=False)), "figures only grow"
        before = now
    turns.end(length)

    said, uttered = spurts(heard, 3), spurts(played, 1)
    caller_ticks = {at for start, last in said for at in range(start, last + 1)}
    app_ticks = {at for start, last in uttered for at in range(start, last + 1)}
    assert turns.caller_ticks == len(caller_ticks)
    assert turns.app_ticks == len(app_ticks)
    assert turns.both_ticks == len(caller_ticks & app_ticks)

    # Every turn has one outcome; only one that was cut off by the end of the call has none.
    settled = turns.responses.count + turns.unanswered + turns.barge_ins_ignored
    assert settled <= turns.turns <= settled + turns.interruptions + 1
    assert turns.turns <= len(said)
    assert turns.responses.count <= len(uttered)
    assert turns.barge_ins.count + turns.barge_ins_ignored <= len(said)
    # A response time is one from the end of some talkspurt to the start of some talkspurt of the other side.
    possible = {(start - end) * 20 for start, _ in uttered for _, end in said if start > end}
    assert set(turns.responses._samples) <= possible
