"""AudioSocket framing: any split of the bytes yields the same frames, and nonsense is refused for good."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audiosocket import wire
from audiosocket.errors import WireError

pytestmark = pytest.mark.unit

frames = st.lists(
    st.one_of(
        st.tuples(st.just(wire.KIND_UUID), st.binary(min_size=16, max_size=16)),
        st.tuples(st.sampled_from([0x00, 0x03, 0x10, 0x12, 0xFF, 0x42]), st.binary(max_size=700)),
    ),
    max_size=12,
)


@given(frames, st.data())
def test_any_split_yields_the_same_frames(sent: list[tuple[int, bytes]], data: st.DataObject) -> None:
    stream = b"".join(wire.encode(kind, payload) for kind, payload in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=20)))
    decoder = wire.FrameDecoder()
    received = []
    for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        received += decoder.feed(stream[begin:end])
    assert received == sent


def test_byte_by_byte() -> None:
    stream = wire.encode(wire.KIND_UUID, bytes(range(16))) + wire.SILENCE_FRAME + wire.HANGUP_FRAME
    decoder = wire.FrameDecoder()
    received = [frame for byte in stream for frame in decoder.feed(bytes([byte]))]
    assert received == [(1, bytes(range(16))), (0x10, bytes(320)), (0, b"")]


@pytest.mark.parametrize(
    "stream",
    [
        b"\x10\xff\xff" + bytes(10),
        b"\x01\x00\x0f" + bytes(15),
        b"\x01\x00\x00",
        b"GET / HTTP/1.1\r\n\r\n",
    ],
    ids=["audio-too-long", "uuid-short", "uuid-empty", "http"],
)
def test_nonsense_is_refused_and_stays_refused(stream: bytes) -> None:
    decoder = wire.FrameDecoder()
    with pytest.raises(WireError, match="AudioSocket"):
        decoder.feed(stream)
    with pytest.raises(WireError):
        decoder.feed(wire.SILENCE_FRAME)


@given(st.binary(max_size=4000))
def test_garbage_raises_only_wire_errors_and_keeps_little(garbage: bytes) -> None:
    decoder = wire.FrameDecoder()
    try:
        decoder.feed(garbage)
    except WireError:
        return
    assert len(decoder.partial) < wire.HEADER_BYTES + wire.MAX_AUDIO_BYTES


def test_a_payload_that_does_not_fit_is_our_fault() -> None:
    with pytest.raises(ValueError, match="65535"):
        wire.encode(wire.KIND_AUDIO, bytes(65536))


def test_the_silence_frame_is_what_asterisk_understands() -> None:
    assert b"\x10\x01\x40" + bytes(320) == wire.SILENCE_FRAME == wire.LINEAR[8000].silence
    assert b"\x12\x02\x80" + bytes(640) == wire.LINEAR[16000].silence
    assert b"\x13\x03\xc0" + bytes(960) == wire.LINEAR[24000].silence
    for rate, linear in wire.LINEAR.items():
        assert linear.frame_bytes == rate // 50 * 2
        assert linear.silence.startswith(linear.header)
        assert linear.header[0] == linear.kind in wire.AUDIO_KINDS
    assert wire.HANGUP_FRAME == b"\x00\x00\x00"
