"""A fuzzer's bytes, read as numbers, choices and text. When they are used up every answer is 0 or empty."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")

_CUTS = (1, 3, 6, 19, 163, 323)
"""A header of AudioSocket's, two, a UUID frame, one of 20 ms of G.711 and one of PCM16."""


class Supply:
    """One input. Nothing here raises."""

    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        """Whether there is more."""
        return self._at < len(self._data)

    def byte(self) -> int:
        """0 to 255."""
        if self._at >= len(self._data):
            return 0
        self._at += 1
        return self._data[self._at - 1]

    def number(self, below: int) -> int:
        """0 to `below` - 1, from two bytes."""
        return (self.byte() << 8 | self.byte()) % below

    def pick(self, choices: Sequence[T]) -> T:
        """One of up to 256."""
        return choices[self.byte() % len(choices)]

    def take(self, size: int) -> bytes:
        """Up to `size` bytes."""
        found = self._data[self._at : self._at + size]
        self._at += len(found)
        return found

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(len(self._data))

    def text(self) -> str:
        """A short text, from a byte of length and so many of UTF-8, in which what is none is replaced."""
        return self.take(self.byte() % 64).decode("utf-8", "replace")

    def pieces(self, whole: bytes) -> Iterator[bytes]:
        """`whole`, cut anywhere, often where AudioSocket's frames end; in one piece when nothing says where."""
        at = 0
        while at < len(whole):
            code = self.byte() if self else -1
            size = len(whole) if code < 0 else _CUTS[code] if code < len(_CUTS) else code
            yield whole[at : at + size]
            at += size

    def json(self, tokens: Sequence[bytes]) -> bytes:
        """Text made of `tokens`, which is mostly JSON where raw bytes never are; or, every other time, raw bytes."""
        if self.byte() & 1:
            return self.rest()
        return b"".join(tokens[index % len(tokens)] for index in self.rest())
