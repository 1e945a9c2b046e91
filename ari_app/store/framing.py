"""Records as lines of a file: `checksum length at kind payload`, found again whatever has become of the rest.

A line is `%08x` CRC-32 (ISO 3309, as zlib's) of all that follows its blank, the payload's length in bytes, Unix time in
ms, `c` (call) or `e` (event), the payload (JSON, which holds no line feed), and a line feed. What is no such line is
damage, up to where the next one begins: the lines before and behind are read all the same. What has no line feed at the
end of a file is torn: the process, or the machine, ended while it was written.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["call", "event"]

MAX_PAYLOAD_BYTES = 256 * 1024
MAX_LINE_BYTES = MAX_PAYLOAD_BYTES + 64

_LETTERS: dict[Kind, bytes] = {"call": b"c", "event": b"e"}
_KINDS: dict[bytes, Kind] = {letter: kind for kind, letter in _LETTERS.items()}
_HEAD = re.compile(rb"([0-9a-f]{8}) ([0-9]{1,7}) ([0-9]{1,15}) ([ce]) ")
_CHECKSUM_BYTES = 9
"""With its blank."""


@dataclass(frozen=True, slots=True)
class Record:
    """One record. `payload` is JSON of a `CallRow` or a `CallEvent`."""

    kind: Kind
    at_ms: int
    """When it was queued, Unix time."""
    payload: bytes


@dataclass(slots=True)
class Taken:
    """What a piece of a file held."""

    records: list[Record] = field(default_factory=list)
    damaged: list[bytes] = field(default_factory=list)
    """Pieces that are no records; neighbouring ones are one."""
    torn: bytes = b""
    """The unfinished line at the file's end."""
    consumed: int = 0
    """Bytes from the piece's beginning that all of this stood in."""


def encode(record: Record) -> bytes:
    """The record's line. Raises `ValueError` for a payload that is no line of at most `MAX_PAYLOAD_BYTES`."""
    if len(record.payload) > MAX_PAYLOAD_BYTES or b"\n" in record.payload:
        raise ValueError(f"a payload is one line of at most {MAX_PAYLOAD_BYTES} bytes")
    body = b"%d %d %b %b" % (len(record.payload), record.at_ms, _LETTERS[record.kind], record.payload)
    return b"%08x %b\n" % (zlib.crc32(body), body)


def take(data: bytes, limit: int, *, at_end: bool) -> Taken:
    """Up to `limit` records from the beginning of `data`, which ends where the file does if `at_end`.

    Of a piece that is not the file's end, a last line that is not whole is left for the next piece: pieces have to be
    longer than `MAX_LINE_BYTES`.
    """
    found = Taken()
    # Behind this a line may be cut off by the piece's end.
    whole_to = len(data) if at_end else len(data) - MAX_LINE_BYTES
    while found.consumed < whole_to and len(found.records) < limit:
        begin = found.consumed
        following = _record_at(data, begin) or _next_record(data, begin, whole_to)
        if following is None:
            # Neither a record nor the way to one.
            end = data.rfind(b"\n", begin) + 1 if at_end else whole_to
            if end > begin:
                found.damaged.append(data[begin:end])
            found.torn = data[max(begin, end) :] if at_end else b""
            found.consumed = whole_to
            break
        record, start, end = following
        if start > begin:
            found.damaged.append(data[begin:start])
        found.records.append(record)
        found.consumed = end
    return found


def _next_record(data: bytes, begin: int, whole_to: int) -> tuple[Record, int, int] | None:
    """The first record behind damage; whatever its first bytes were is no matter, if it is whole itself."""
    for head in _HEAD.finditer(data, begin + 1):
        if head.start() >= whole_to:
            break
        found = _record_at(data, head.start())
        if found is not None:
            return found
    return None


def _record_at(data: bytes, position: int) -> tuple[Record, int, int] | None:
    """The record that begins here, here, and where the next one begins."""
    head = _HEAD.match(data, position)
    if head is None:
        return None
    end = head.end() + int(head[2])
    if end > len(data) or zlib.crc32(data[position + _CHECKSUM_BYTES : end]) != int(head[1], 16):
        return None
    # The byte at `end` is the line feed, what has become of it, or was not written any more.
    return Record(_KINDS[head[4]], int(head[3]), data[head.end() : end]), position, min(end + 1, len(data))
