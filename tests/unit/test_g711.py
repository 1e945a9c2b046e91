"""G.711 against values of ITU-T G.711 and against its formula, and its shape."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audiosocket import g711
from audiosocket.callspec import MediaFormat
from tools.audio import g711 as formula

pytestmark = pytest.mark.unit


def pcm(data: bytes) -> list[int]:
    return np.frombuffer(data, "<i2").tolist()


def test_ulaw_known_values() -> None:
    # Table 2a/2b: largest negative, largest positive, the two zeros, and one of each middle segment.
    assert pcm(g711.ulaw_to_pcm(bytes([0x00, 0x80, 0x7F, 0xFF, 0x3F, 0xBF]))) == [-32124, 32124, 0, 0, -1980, 1980]


def test_alaw_known_values() -> None:
    assert pcm(g711.alaw_to_pcm(bytes([0x55, 0xD5, 0x2A, 0xAA]))) == [-8, 8, -32256, 32256]


@pytest.mark.parametrize("decode", [g711.ulaw_to_pcm, g711.alaw_to_pcm])
def test_every_code_is_symmetric_and_each_half_is_monotonic(decode: object) -> None:
    table = pcm(decode(bytes(range(256))))  # type: ignore[operator]
    assert sorted(table) == sorted(-value for value in table)
    if decode is g711.ulaw_to_pcm:
        assert table[:128] == sorted(table[:128])
        assert table[128:] == sorted(table[128:], reverse=True)


def test_silence_codes_are_quiet() -> None:
    assert abs(pcm(g711.ulaw_to_pcm(bytes([g711.ULAW_SILENCE])))[0]) <= 8
    assert abs(pcm(g711.alaw_to_pcm(bytes([g711.ALAW_SILENCE])))[0]) <= 8


def test_lengths() -> None:
    assert len(g711.ulaw_to_pcm(bytes(160))) == 320
    assert g711.ulaw_to_pcm(b"") == b""
    assert g711.pcm_to_pcm(b"\x01\x02\x03") == b"\x01\x02"
    assert len(g711.pcm_to_ulaw(bytes(320))) == 160
    assert g711.pcm_to_ulaw(b"\x00\x00\x03") == b"\xff"
    assert g711.pcm_to_ulaw(b"") == g711.alaw_to_ulaw(b"") == b""


def test_every_sample_as_mu_law_is_what_the_formula_says() -> None:
    samples = np.arange(-32768, 32768, dtype=np.int32).astype("<i2")
    assert g711.pcm_to_ulaw(samples.tobytes()) == formula.ulaw_encode(samples)


@given(st.binary(max_size=640))
def test_any_pcm_there_and_back_is_what_the_formula_says(data: bytes) -> None:
    samples = np.frombuffer(data[: len(data) & ~1], "<i2")
    code = g711.pcm_to_ulaw(data)
    assert code == formula.ulaw_encode(samples)
    assert pcm(g711.ulaw_to_pcm(code)) == formula.ulaw_decode(code).tolist()


def test_mu_law_survives_being_linear() -> None:
    # But for its second zero: 0x7F and 0xFF both stand for 0.
    codes = bytes(code for code in range(256) if code != 0x7F)
    assert g711.pcm_to_ulaw(g711.ulaw_to_pcm(codes)) == codes


def test_a_law_becomes_mu_law_as_by_way_of_the_formulas() -> None:
    codes = bytes(range(256))
    assert g711.alaw_to_ulaw(codes) == formula.ulaw_encode(formula.alaw_decode(codes))


def test_every_media_format_becomes_every_encoding() -> None:
    silence = {
        "slin": bytes(320),
        "ulaw": bytes([g711.ULAW_SILENCE]) * 160,
        "alaw": bytes([g711.ALAW_SILENCE]) * 160,
        "slin16": bytes(640),
        "slin24": bytes(960),
    }
    assert set(silence) == set(MediaFormat)
    assert set(g711.CONVERTERS) == set(g711.Encoding)
    for encoding, converters in g711.CONVERTERS.items():
        # μ-law is only spoken at 8 kHz.
        assert set(converters) == {
            form for form in MediaFormat if encoding is not g711.Encoding.ULAW or form.sample_rate == 8000
        }
        for media_format, converter in converters.items():
            rate = MediaFormat(media_format).sample_rate
            assert converter(silence[media_format]) == g711.silent_frame(encoding, rate) or media_format == "alaw"
            assert len(converter(silence[media_format])) == len(g711.silent_frame(encoding, rate))
    ulaw = silence["ulaw"]
    assert g711.CONVERTERS[g711.Encoding.ULAW]["ulaw"](ulaw) is ulaw
    assert g711.CONVERTERS[g711.Encoding.ULAW]["slin"](silence["slin"]) == g711.silent_frame(g711.Encoding.ULAW, 8000)


def test_every_sample_as_a_law_is_what_the_formula_says() -> None:
    samples = np.arange(-32768, 32768, dtype=np.int32).astype("<i2")
    assert g711.pcm_to_alaw(samples.tobytes()) == formula.alaw_encode(samples)
    assert g711.pcm_to_alaw(b"\x00\x00\x03") == bytes([g711.ALAW_SILENCE])


def test_a_law_survives_being_linear() -> None:
    codes = bytes(range(256))
    assert g711.pcm_to_alaw(g711.alaw_to_pcm(codes)) == codes
