"""The measuring tools: if these are wrong, every test of audio is."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from tools.audio import g711
from tools.audio.pcm import level_dbfs, silence, write_stereo_wav
from tools.audio.pictures import TRACK_COLOURS, Marker, waveforms_png
from tools.audio.speech import SoundError, prompt, speech
from tools.audio.talkspurts import talkspurts
from tools.audio.tones import dominant_frequency, tone, tone_share
from tools.sip import reception, rtp_packet
from tools.sip.rtp_packet import RtpPacket

pytestmark = pytest.mark.unit


def packets(*arrivals: tuple[float, int]) -> list[RtpPacket]:
    return [RtpPacket(at, sequence & 0xFFFF, 0, 7, 0, False, b"") for at, sequence in arrivals]


@pytest.mark.parametrize("hz", [300, 440.5, 1004, 3200])
@pytest.mark.parametrize("seconds", [0.1, 0.5, 3])
def test_a_tone_is_found_at_its_frequency(hz, seconds):
    samples = tone(hz, seconds)
    assert len(samples) == round(seconds * 8000)
    assert dominant_frequency(samples) == pytest.approx(hz, abs=0.5 / seconds)
    assert tone_share(samples, hz) > 0.999


def test_a_tone_has_the_level_asked_for():
    assert level_dbfs(tone(1000, 1, level_dbfs=-20)) == pytest.approx(-20, abs=0.01)
    assert level_dbfs(silence(1)) == float("-inf")


def test_share_tells_two_tones_apart_by_energy():
    both = (tone(500, 1, level_dbfs=-10) // 2 + tone(1500, 1, level_dbfs=-20) // 2).astype(np.int16)
    assert tone_share(both, 500) == pytest.approx(10 / 11, abs=0.01)
    assert tone_share(both, 1500) == pytest.approx(1 / 11, abs=0.01)
    assert tone_share(both, 1000) < 0.001


def test_silence_and_an_offset_are_no_tone():
    assert dominant_frequency(silence(1)) == 0.0
    assert tone_share(silence(1), 440) == 0.0
    offset = np.full(8000, 8, dtype=np.int16)  # what A-law makes of silence
    assert tone_share(offset, 440) == 0.0


def test_senseless_tones_and_scraps_are_refused():
    with pytest.raises(ValueError, match="does not fit a rate"):
        tone(4000, 1)
    with pytest.raises(ValueError, match="clips"):
        tone(440, 1, level_dbfs=0)
    with pytest.raises(ValueError, match="too few"):
        dominant_frequency(tone(440, 0.01))


@pytest.mark.parametrize(
    ("decode", "code", "value"),
    [
        (g711.ulaw_decode, 0xFF, 0),
        (g711.ulaw_decode, 0x7F, 0),
        (g711.ulaw_decode, 0x80, 32124),
        (g711.ulaw_decode, 0x00, -32124),
        (g711.ulaw_decode, 0xE0, 372),
        (g711.alaw_decode, 0xD5, 8),
        (g711.alaw_decode, 0x55, -8),
        (g711.alaw_decode, 0xAA, 32256),
        (g711.alaw_decode, 0x2A, -32256),
        (g711.alaw_decode, 0xC5, 264),
    ],
)
def test_g711_codes_have_the_values_of_the_standard(decode, code, value):
    assert decode(bytes([code])).tolist() == [value]


@pytest.mark.parametrize(
    ("encode", "decode"), [(g711.ulaw_encode, g711.ulaw_decode), (g711.alaw_encode, g711.alaw_decode)]
)
def test_g711_maps_every_sample_to_the_code_whose_value_is_near(encode, decode):
    every = np.arange(-32768, 32768).astype(np.int16)
    back = decode(encode(every)).astype(int)
    error = np.abs(back - every.astype(int))
    # Half a step: mu-law's is 1/32 of the biased magnitude at most, A-law's 8 near zero. The top is clipped.
    inside = np.abs(every.astype(int)) < 32256
    assert np.all(error[inside] <= np.maximum((np.abs(every[inside].astype(int)) + 132) / 32, 8))
    assert np.all(np.diff(back) >= 0)
    codes = bytes(range(256))
    assert np.array_equal(decode(encode(decode(codes))), decode(codes))


def test_talkspurts_are_where_the_sound_is():
    line = np.concatenate([silence(0.5), tone(400, 1), silence(0.8), tone(400, 0.3), silence(0.1), tone(400, 0.3)])
    first, second = talkspurts(line)
    assert (first.start_seconds, first.end_seconds) == pytest.approx((0.5, 1.5), abs=0.011)
    assert (second.start_seconds, second.end_seconds) == pytest.approx((2.3, 3.0), abs=0.011)
    assert len(talkspurts(line, pause_ms=50)) == 3


def test_a_click_a_murmur_and_nothing_are_no_talkspurt():
    assert talkspurts(np.concatenate([silence(0.5), tone(400, 0.02), silence(0.5)])) == []
    assert talkspurts(tone(400, 1, level_dbfs=-50)) == []
    assert talkspurts(silence(0)) == []


def test_a_stereo_wav_holds_both_channels(tmp_path: Path):
    write_stereo_wav(tmp_path / "call.wav", tone(400, 1), tone(900, 0.5))
    with wave.open(str(tmp_path / "call.wav")) as recorded:
        assert (recorded.getnchannels(), recorded.getsampwidth(), recorded.getframerate()) == (2, 2, 8000)
        frames = np.frombuffer(recorded.readframes(recorded.getnframes()), dtype="<i2").reshape(-1, 2)
    assert dominant_frequency(frames[:, 0]) == 400
    assert dominant_frequency(frames[:4000, 1]) == 900
    assert not frames[4000:, 1].any()


def test_a_picture_shows_each_channel_in_its_half_at_its_time(tmp_path: Path):
    loud_then_quiet = np.concatenate([tone(400, 1, level_dbfs=-6), silence(1)])
    quiet_then_loud = loud_then_quiet[::-1].copy()
    waveforms_png(tmp_path / "call.png", loud_then_quiet, quiet_then_loud, markers=[Marker(1.0, "turn")])
    image = Image.open(tmp_path / "call.png").convert("RGB")
    pixels = np.asarray(image)

    def columns_of(colour: str) -> np.ndarray:
        rgb = tuple(int(colour[at : at + 2], 16) for at in (1, 3, 5))
        rows, columns = np.nonzero(np.all(pixels == rgb, axis=2))
        return columns[np.isin(rows, rows[np.bincount(rows)[rows] > 50])]  # waveform rows, not the title's letters

    middle = image.width / 2
    assert columns_of(TRACK_COLOURS[0][1]).max() < middle + 2
    assert columns_of(TRACK_COLOURS[1][1]).min() > middle - 2


def test_a_picture_of_nothing_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="nothing to draw"):
        waveforms_png(tmp_path / "call.png", silence(0), silence(0))


def test_prompts_are_read_from_gsm_and_wav(tmp_path: Path):
    (tmp_path / "digits").mkdir()
    soundfile.write(tmp_path / "digits" / "5.gsm", tone(600, 1), 8000, format="RAW", subtype="GSM610")
    soundfile.write(tmp_path / "hello.wav", tone(700, 1), 8000, subtype="PCM_16")
    assert dominant_frequency(prompt(tmp_path, "digits/5")) == 600
    assert np.array_equal(prompt(tmp_path, "hello"), tone(700, 1))
    assert prompt(tmp_path, "hello") is prompt(tmp_path, "hello")
    joined = speech(tmp_path, "digits/5", "hello", pause_seconds=0.5)
    assert len(joined) == len(prompt(tmp_path, "digits/5")) + 4000 + 8000
    assert dominant_frequency(joined[-8000:]) == 700


def test_a_missing_or_unfit_prompt_says_which_and_what_was_wanted(tmp_path: Path):
    with pytest.raises(SoundError, match=r"nowhere: no \.wav or \.gsm"):
        prompt(tmp_path, "nowhere")
    soundfile.write(tmp_path / "wide.wav", tone(600, 1, rate=16000), 16000, subtype="PCM_16")
    with pytest.raises(SoundError, match="16000 Hz"):
        prompt(tmp_path, "wide")
    (tmp_path / "broken.wav").write_bytes(b"no sound")
    with pytest.raises(SoundError, match="not readable"):
        prompt(tmp_path, "broken")


def test_an_rtp_packet_is_read_as_it_was_written():
    # RFC 3550 5.1: V=2, M=1, PT=0, sequence 1, timestamp 2, SSRC 3.
    datagram = bytes.fromhex("80800001 00000002 00000003") + b"\xff" * 160
    assert rtp_packet.encode(0, 1, 2, 3, b"\xff" * 160, marker=True) == datagram
    assert rtp_packet.decode(datagram, 5.0) == RtpPacket(5.0, 1, 2, 3, 0, True, b"\xff" * 160)


def test_csrcs_an_extension_and_padding_are_no_payload():
    header = bytes.fromhex("b1000001 00000002 00000003") + b"CSRC" + bytes.fromhex("bede0001") + b"EXTN"
    packet = rtp_packet.decode(header + b"audio" + b"\0\0\x03", 0.0)
    assert packet is not None
    assert packet.payload == b"audio"


@pytest.mark.parametrize(
    "datagram",
    [b"", b"\x80" * 11, b"\x00" * 20, bytes.fromhex("80c80001 00000002 00000003"), b"\xa0" + b"\0" * 11 + b"\xff"],
    ids=["empty", "short", "version 0", "RTCP sender report", "more padding than packet"],
)
def test_what_is_no_rtp_is_told_apart(datagram):
    assert rtp_packet.decode(datagram, 0.0) is None


def test_loss_order_and_doubles_are_counted_across_the_wrap():
    figures = reception.measure(
        packets((0.0, 65534), (0.02, 65535), (0.04, 65537), (0.041, 65536), (0.06, 65537), (0.10, 65540))
    )
    assert (figures.lost, figures.reordered, figures.duplicated) == (2, 1, 1)
    assert figures.gap_max_ms == pytest.approx(40)
    assert figures.bunched == 1


def test_a_telephone_plays_packets_in_a_row_and_silence_where_they_come_too_late():
    pieces = [(at, tone(400, 0.02)) for at in (1.00, 1.025, 1.035, 1.30)]
    line = reception.by_arrival(pieces, start=0.9, seconds=0.5)
    assert len(line) == 4000
    spurts = talkspurts(line, pause_ms=20, shortest_ms=10)
    assert [round(spurt.start_seconds, 2) for spurt in spurts] == [0.1, 0.4]
    assert [round(spurt.end_seconds, 2) for spurt in spurts] == [0.16, 0.42]


def test_timestamps_lay_packets_out_across_the_wrap_and_out_of_order():
    ones, twos = np.full(160, 1, dtype=np.int16), np.full(160, 2, dtype=np.int16)
    line = reception.by_timestamp([(0xFFFFFF60, ones), (320, ones), (0, twos)])
    assert line.tolist() == [1] * 160 + [2] * 160 + [0] * 160 + [1] * 160
