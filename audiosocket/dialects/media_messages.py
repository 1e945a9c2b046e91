"""Media messages to the application: what numbers them, and their text."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING

from audiosocket.compiled import FRAMES, usual
from audiosocket.frame_steps import Parts, media_message

if TYPE_CHECKING or FRAMES is None:

    class MediaMessagesState:
        """What a message reads and writes, where nothing is compiled."""

        __slots__ = (
            "_chunk",
            "_end_1",
            "_end_2",
            "_end_3",
            "_end_4",
            "_frame_ms",
            "_text",
            "_time_second",
            "next_ms",
            "sequence",
        )

else:
    MediaMessagesState = FRAMES.MediaMessages


@usual("media")
class MediaMessages(MediaMessagesState):
    """The media messages of one stream, all of one length. A dialect whose `media` is this one's as it is runs no
    Python for a message, where the steps of a frame are compiled."""

    __slots__ = ("_parts",)

    def __init__(self, parts: Parts, frame_ms: int, first_ms: int = 0, time_second: bool = False) -> None:
        """`parts` is the text around the sequence number, the chunk's number, the time in ms and the audio in base64;
        with `time_second` the time stands before the chunk's number. `first_ms` is the first message's time."""
        self._parts = parts
        self._text = b"".join(parts)  # in one piece, and where each part ends
        self._end_1, self._end_2, self._end_3, self._end_4 = list(accumulate(map(len, parts)))[:4]
        self._frame_ms = frame_ms
        self._time_second = time_second
        self._chunk = 0
        self.next_ms = first_ms
        self.sequence = 0
        """The latest message's, whatever it was: others count with `count`."""

    def count(self) -> int:
        """The number of a message of another kind."""
        self.sequence += 1
        return self.sequence

    def media(self, audio: bytes) -> bytes:
        """The next message."""
        self.sequence = sequence = self.sequence + 1
        self._chunk = chunk = self._chunk + 1
        at = self.next_ms
        self.next_ms = at + self._frame_ms
        if self._time_second:
            return media_message(self._parts, sequence, at, chunk, audio)
        return media_message(self._parts, sequence, chunk, at, audio)

    def skip(self, frames: int) -> None:
        """So many messages were dropped: their place in time stays."""
        self.next_ms += frames * self._frame_ms
