"""RTP packets of the media leg: against the tools' own writing of RFC 3550, and against anything at all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audiosocket import rtp
from tools.sip import rtp_packet

pytestmark = pytest.mark.unit


@given(
    st.sampled_from([rtp.PT_ULAW, rtp.PT_ALAW]),
    st.integers(0, 2**17),
    st.integers(0, 2**33),
    st.integers(0, 2**32 - 1),
    st.binary(max_size=200),
    st.booleans(),
)
def test_a_packet_is_read_as_it_was_meant(
    payload_type: int, sequence: int, timestamp: int, ssrc: int, payload: bytes, marker: bool
) -> None:
    packet = rtp.encode(payload_type, sequence, timestamp, ssrc, payload, marker)
    read = rtp_packet.decode(packet, 0.0)
    assert read is not None
    assert (read.payload_type, read.sequence, read.timestamp) == (payload_type, sequence % 2**16, timestamp % 2**32)
    assert (read.ssrc, read.payload, read.marker) == (ssrc, payload, marker)
    assert packet[0] == rtp.PLAIN
    assert rtp.payload_of(packet) == payload


def test_sources_extension_and_padding_are_no_payload() -> None:
    head = bytes([0x80 | 0x20 | 0x10 | 2, 0]) + bytes(10)
    body = bytes(8) + b"\xbe\xde\x00\x01" + bytes(4)
    assert rtp.payload_of(head + body + b"sound" + b"\x00\x00\x03") == b"sound"


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        bytes(11),
        bytes(12),  # version 0
        bytes([0xC0]) + bytes(11),  # version 3
        bytes([0x81]) + bytes(11),  # a source announced, none there
        bytes([0x90]) + bytes(11),  # an extension announced, none there
        bytes([0x90]) + bytes(11) + b"\x00\x00\x00\x09",  # and one that is cut off
        bytes([0xA0]) + bytes(11) + b"\x05",  # more padding than packet
        bytes([0xA0]) + bytes(11) + b"\x00",  # padding that does not count itself
    ],
)
def test_what_is_no_packet(packet: bytes) -> None:
    assert rtp.payload_of(packet) is None


@given(st.binary(max_size=64))
def test_anything_is_read_or_refused(packet: bytes) -> None:
    payload = rtp.payload_of(packet)
    assert payload is None or payload in packet
