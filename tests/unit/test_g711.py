"""G.711 decoding against values of ITU-T G.711, and its shape."""

from __future__ import annotations

import numpy as np
import pytest

from audiosocket import g711

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
    assert set(g711.DECODERS) == {"slin", "ulaw", "alaw"}
