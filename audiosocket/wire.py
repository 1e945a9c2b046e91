"""AudioSocket frames: an incremental decoder and the encoder of what we send.

A frame is one byte of kind, two bytes of payload length (big-endian) and the payload; PCM in it is little-endian.
Asterisk connects, sends its UUID once and then audio; it understands only audio and hang-up from us, and ends the leg
at anything else (Asterisk's `res_audiosocket.c`; docs/media-leg.md tells what was measured).
"""

from __future__ import annotations

from audiosocket.errors import WireError

KIND_HANGUP = 0x00
KIND_UUID = 0x01
KIND_DTMF = 0x03
KIND_AUDIO = 0x10
"""Signed linear 8 kHz from us; from Asterisk also G.711, when the channel was created with `format=ulaw|alaw`. 0x11 to
0x18 are signed linear at 12 to 192 kHz."""
KIND_ERROR = 0xFF

HEADER_BYTES = 3
UUID_BYTES = 16
MAX_AUDIO_BYTES = 3840
"""20 ms of slin at 96 kHz; a longer audio frame than this is not one that a call here can have asked for."""

FRAME_MS = 20
SLIN_FRAME_BYTES = 320
"""20 ms of signed linear PCM at 8 kHz."""

AUDIO_HEADER = bytes((KIND_AUDIO, SLIN_FRAME_BYTES >> 8, SLIN_FRAME_BYTES & 0xFF))
SILENCE_FRAME = AUDIO_HEADER + bytes(SLIN_FRAME_BYTES)
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
