"""AudioSocket frames: an incremental decoder and the encoder of what we send.

A frame is one byte of kind, two bytes of payload length (big-endian) and the payload; PCM in it is little-endian.
Asterisk connects, sends its UUID once and then audio; it understands only audio and hang-up from us, and ends the leg
at anything else (Asterisk's `res_audiosocket.c`; docs/media-leg.md tells what was measured).
"""

from __future__ import annotations

from dataclasses import dataclass

from audiosocket.errors import WireError

KIND_HANGUP = 0x00
KIND_UUID = 0x01
KIND_DTMF = 0x03
KIND_AUDIO = 0x10
"""Signed linear 8 kHz from us; from Asterisk also G.711, when the channel was created with `format=ulaw|alaw`."""
KIND_AUDIO_16, KIND_AUDIO_24 = 0x12, 0x13
"""Signed linear at 16 and 24 kHz, when the channel was created with `format=slin16|slin24`."""
AUDIO_KINDS = range(0x10, 0x19)
"""All that Asterisk knows: signed linear at 8, 12, 16, 24, 32, 44.1, 48, 96 and 192 kHz."""
KIND_ERROR = 0xFF

HEADER_BYTES = 3
UUID_BYTES = 16
MAX_AUDIO_BYTES = 11_520
"""240 ms of slin at 24 kHz; a longer audio frame than this is not one that a call here can have asked for."""

FRAME_MS = 20


@dataclass(frozen=True, slots=True)
class Linear:
    """How 20 ms of signed linear PCM at one sample rate go to Asterisk."""

    kind: int
    frame_bytes: int
    header: bytes
    """What stands before `frame_bytes` of audio."""
    silence: bytes
    """A whole frame, header included."""


def _linear(kind: int, sample_rate: int) -> Linear:
    size = sample_rate * FRAME_MS // 1000 * 2
    header = bytes((kind, size >> 8, size & 0xFF))
    return Linear(kind, size, header, header + bytes(size))


LINEAR = {
    8000: _linear(KIND_AUDIO, 8000),
    16000: _linear(KIND_AUDIO_16, 16000),
    24000: _linear(KIND_AUDIO_24, 24000),
}
"""By sample rate in Hz."""

AUDIO_HEADER = LINEAR[8000].header
SILENCE_FRAME = LINEAR[8000].silence
"""At 8 kHz, which every leg begins with: Asterisk takes any rate at any time, and the call's is not known yet."""
HANGUP_FRAME = bytes((KIND_HANGUP, 0, 0))


def encode(kind: int, payload: bytes) -> bytes:
    """One frame, header and payload in one piece: Asterisk waits 5 ms at most between the two."""
    if len(payload) > 0xFFFF:
        raise ValueError(f"an AudioSocket payload holds 65535 bytes at most, not {len(payload)}")
    return bytes((kind, len(payload) >> 8, len(payload) & 0xFF)) + payload


class FrameDecoder:
    """Turns any split of the byte stream into whole frames.

    It keeps at most one partial frame. After `WireError` the stream cannot be trusted any more, and `feed` keeps
    raising it.
    """

    __slots__ = ("_broken", "partial")

    def __init__(self) -> None:
        self.partial = b""  # the beginning of a frame whose rest has not come yet
        self._broken: WireError | None = None

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """The frames completed by `data`, as (kind, payload). Raises `WireError` at a frame that no call can send."""
        if self._broken is not None:
            raise self._broken
        if self.partial:
            data = self.partial + data
        size = len(data)
        frames: list[tuple[int, bytes]] = []
        at = 0
        while size - at >= HEADER_BYTES:
            kind = data[at]
            length = data[at + 1] << 8 | data[at + 2]
            if length > MAX_AUDIO_BYTES:
                raise self._break(f"frame of kind 0x{kind:02x} announces {length} bytes, over {MAX_AUDIO_BYTES}")
            if kind == KIND_UUID and length != UUID_BYTES:
                raise self._break(f"UUID frame with {length} bytes instead of {UUID_BYTES}")
            end = at + HEADER_BYTES + length
            if end > size:
                break
            frames.append((kind, data[at + HEADER_BYTES : end]))
            at = end
        self.partial = data[at:] if at < size else b""
        return frames

    def _break(self, what: str) -> WireError:
        self._broken = WireError(f"{what}: is the peer an Asterisk AudioSocket?")
        self.partial = b""
        return self._broken
