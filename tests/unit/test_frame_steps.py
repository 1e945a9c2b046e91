"""The compiled steps of a frame give the bytes of their Python twins, and refuse what they were not made for."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audiosocket import frame_steps
from audiosocket.dialects import app_messages
from audiosocket.dialects.app_messages import AppMessages
from audiosocket.dialects.base import Ignored

pytestmark = pytest.mark.unit

SID = "b" * 32
PARTS = st.tuples(*[st.binary(max_size=40)] * 5)
COUNT = st.integers(0, 2**64 - 1)
AUDIO = st.binary(max_size=2000)


@given(AUDIO, st.binary(min_size=512, max_size=512))
def test_look_up(data: bytes, table: bytes) -> None:
    assert frame_steps.look_up(data, table) == frame_steps.python_look_up(data, table)


@given(PARTS, COUNT, COUNT, COUNT, AUDIO)
def test_media_message(parts: frame_steps.Parts, first: int, second: int, third: int, audio: bytes) -> None:
    made = frame_steps.media_message(parts, first, second, third, audio)
    assert made == frame_steps.python_media_message(parts, first, second, third, audio)


def fully(message: bytes) -> object:
    """What the full decoder makes of a message, and what it counts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app_messages, "media_payload", frame_steps.python_media_payload)
        return read(message)


def read(message: bytes) -> object:
    messages = AppMessages(SID)
    return messages.decode(message), messages.oddities


PLAIN = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x17F), max_size=8)
LEAF = st.one_of(PLAIN, st.integers(), st.floats(allow_nan=False), st.booleans(), st.none(), st.just(SID))
KEYS = st.sampled_from(("event", "media", "mark", "dtmf", "stream_sid", "streamSid", "payload", "chunk", "a\\", 'a"'))
PAYLOAD = st.one_of(AUDIO.map(lambda audio: b64encode(audio).decode()), PLAIN)
MEDIA = st.one_of(st.dictionaries(KEYS, LEAF, max_size=3), st.just({})).flatmap(
    lambda others: PAYLOAD.map(lambda payload: others | {"payload": payload})
)
USUAL = st.builds(
    lambda others, media, sid: others | {"event": "media", "media": media} | sid,
    st.dictionaries(KEYS, LEAF, max_size=3),
    MEDIA,
    st.sampled_from(({}, {"stream_sid": SID}, {"streamSid": SID}, {"stream_sid": "x"}, {"streamSid": None})),
)


def written(value: object, spaced: bool, order: list[int]) -> bytes:
    """JSON with its members in any order."""
    if isinstance(value, dict):
        colon, comma = (b": ", b", ") if spaced else (b":", b",")
        members = [msgspec.json.encode(key) + colon + written(inner, spaced, order) for key, inner in value.items()]
        members.sort(key=lambda member: hash((len(member), *order)) & 7)
        return b"{" + comma.join(members) + b"}"
    return msgspec.json.encode(value)


@given(USUAL, st.booleans(), st.lists(st.integers(0, 9), max_size=2))
def test_messages_are_read_as_the_full_decoder_reads_them(value: object, spaced: bool, order: list[int]) -> None:
    message = written(value, spaced, order)
    assert read(message) == fully(message)


@given(USUAL, st.booleans(), st.data())
def test_damaged_messages_too(value: object, spaced: bool, data: st.DataObject) -> None:
    message = bytearray(written(value, spaced, []))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, max(0, len(message) - 1)))
        piece = data.draw(st.one_of(st.binary(max_size=2), st.sampled_from((b'"', b"\\", b"=", b"}", b",", b"\x80"))))
        message[at : at + data.draw(st.integers(0, 3))] = piece
    assert read(bytes(message)) == fully(bytes(message))


@given(st.binary(max_size=60))
def test_anything_at_all_too(message: bytes) -> None:
    assert read(message) == fully(message)


@pytest.mark.parametrize(
    "payload", ["AA==", "AAA=", "AB==", "AAB=", "A===", "====", "AA=A", "A", "AAAAA", "AA\\/A", ""]
)
def test_the_edges_of_base64(payload: str) -> None:
    message = f'{{"event":"media","media":{{"payload":"{payload}"}}}}'.encode()
    assert read(message) == fully(message)


def test_a_member_twice_is_the_full_decoders_to_judge() -> None:
    message = b'{"event":"media","event":"mark","media":{"payload":"AAAA","payload":"////"}}'
    assert read(message) == fully(message)
    assert isinstance(AppMessages(SID).decode(message), Ignored)


BAD_CALLS: list[Callable[[], object]] = [
    lambda: frame_steps.look_up("text", bytes(512)),  # type: ignore[arg-type]
    lambda: frame_steps.look_up(b"ab", b"\0\1\2"),
    lambda: frame_steps.media_message((b"",) * 4, 1, 2, 3, b""),  # type: ignore[arg-type]
    lambda: frame_steps.media_message((b"",) * 4 + ("",), 1, 2, 3, b""),  # type: ignore[arg-type]
    lambda: frame_steps.media_message((b"",) * 5, 1, "2", 3, b""),  # type: ignore[arg-type]
]


@pytest.mark.parametrize("call", BAD_CALLS)
def test_what_no_step_takes_is_refused(call: Callable[[], object]) -> None:
    with pytest.raises((TypeError, ValueError, IndexError)):
        call()
