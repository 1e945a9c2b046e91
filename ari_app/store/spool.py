"""Call records on this machine's disk until PostgreSQL has them: a queue of files.

Under its folder (0700, files 0600: records hold phone numbers): segments `<number>.spool` of lines (see
`ari_app.store.framing`), `lock`, `damaged` (what was no record, for a person to look at) and `<number>.unreadable`
(segments that the disk does not give back).

Invariants: records come back in the order in which they were appended; one that was appended comes back, in this
process or a later one, until `release` was called after it was read; an append that fails leaves nothing behind that
later ones depend on; one process at a time has a spool open (flock, which ends with the process). A process never
appends to what an earlier one wrote, so a torn line is always a segment's last.

Everything here blocks: it belongs into a thread, and one call at a time, `sync` apart.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from ari_app.store.framing import MAX_LINE_BYTES, Record, encode, take

SPOOL_FOLDER = "spool"
"""In `state_dir`."""
SEGMENT_BYTES = 4 * 1024 * 1024
CHUNK_BYTES = 2 * MAX_LINE_BYTES
MAX_DAMAGED_BYTES = 16 * 1024 * 1024
"""What is kept of damage; beyond it damage is only logged."""

log = structlog.get_logger(__name__)


class SpoolUnavailable(Exception):
    """The disk does not take records now, or another process has the spool; the text says why."""


class SpoolBusy(SpoolUnavailable):
    """Another process has the spool, and writes what is in it."""


class SpoolFull(SpoolUnavailable):
    """The spool holds as much as it may."""


@dataclass(slots=True)
class _Segment:
    path: Path
    size: int
    """Bytes that hold records; the file may be longer by what a failed append left."""


@dataclass(slots=True)
class Survey:
    """What a spool's folder holds. Times are Unix time in ms; None: no record."""

    records: int = 0
    calls: int = 0
    """Records that are states of calls; the others are events."""
    bytes: int = 0
    damaged: int = 0
    torn: int = 0
    first_at_ms: int | None = None
    last_at_ms: int | None = None


def survey(directory: Path) -> Survey:
    """Looks, and touches nothing: also while a controller uses it. Raises `SpoolUnavailable`."""
    found = Survey()
    try:
        for path in sorted(directory.glob("*.spool")):
            with path.open("rb") as file:
                size, offset = os.fstat(file.fileno()).st_size, 0
                found.bytes += size
                while offset < size and (data := os.pread(file.fileno(), CHUNK_BYTES, offset)):
                    piece = take(data, MAX_LINE_BYTES, at_end=offset + len(data) >= size)
                    offset += piece.consumed
                    found.records += len(piece.records)
                    found.calls += sum(record.kind == "call" for record in piece.records)
                    found.damaged += len(piece.damaged)
                    found.torn += bool(piece.torn)
                    if piece.records:
                        found.first_at_ms = found.first_at_ms or piece.records[0].at_ms
                        found.last_at_ms = piece.records[-1].at_ms
    except OSError as error:
        raise SpoolUnavailable(f"{directory}: {error.strerror}") from error
    return found


class Spool:
    """See above. All bytes are counted from `open`, and include what an earlier process left."""

    def __init__(self, directory: Path, max_bytes: int) -> None:
        self.directory = directory
        self.max_bytes = max_bytes
        self.appended = 0
        """Bytes that came in."""
        self.synced = 0
        """Of these, from the beginning: so many will be there after the machine has lost its power."""
        self.released = 0
        """Bytes that are done with."""
        self.bytes = 0
        """What it takes of the disk."""
        self.records = 0
        """Records that are not done with, and damaged ones that were not found yet."""
        self.damaged = 0
        """Pieces that were no records."""
        self._lock: int | None = None
        self._segments: list[_Segment] = []
        self._number = 0
        self._file: int | None = None
        """The last segment, while it is appended to."""
        self._closing = threading.Lock()
        """Held while that is synced, and while it is closed."""
        self._offset = 0
        """In the first segment: what begins here is to be read next."""
        self._read_to = 0
        self._read_records = 0

    @property
    def is_open(self) -> bool:
        """Whether this process has it."""
        return self._lock is not None

    def open(self) -> None:
        """Take it, with what an earlier process left. Raises `SpoolUnavailable`, `SpoolBusy`."""
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise SpoolUnavailable(f"{self.directory}: {error.strerror}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(lock, 0)
            os.write(lock, b"%d\n" % os.getpid())
            found = self._find()
        except BlockingIOError:
            owner = os.pread(lock, 32, 0).decode(errors="replace").strip() or "?"
            os.close(lock)
            raise SpoolBusy(f"{self.directory}: process {owner} has it") from None
        except OSError as error:
            os.close(lock)
            raise SpoolUnavailable(f"{self.directory}: {error.strerror}") from error
        self._lock = lock
        self._segments, self.records = found
        self.appended = self.synced = self.bytes = sum(segment.size for segment in self._segments)
        if self._segments:
            log.info("spool_found", directory=str(self.directory), records=self.records, bytes=self.bytes)

    def close(self) -> None:
        """Give it up; records in it stay. An empty one leaves no segment."""
        if self._lock is not None:
            self._close_segment()
            if not self.records:
                for segment in self._segments:
                    self._remove(segment)
            os.close(self._lock)
            self._lock = None

    def append(self, records: Sequence[Record], *, sync: bool) -> None:
        """Put records behind the others; with `sync` they, and all before, will survive a loss of power.

        Raises `SpoolUnavailable`: none of them counts as appended, though some may come back.
        """
        data = b"".join(encode(record) for record in records)
        if self.bytes + len(data) > self.max_bytes:
            raise SpoolFull(f"{self.directory}: {self.bytes} of {self.max_bytes} bytes are taken")
        try:
            segment, file = self._segment_for(len(data))
            self._write(segment, file, data)
            if sync:
                os.fdatasync(file)
        except OSError as error:
            self._close_segment()
            raise SpoolUnavailable(f"{self.directory}: {error.strerror}") from error
        segment.size += len(data)
        self.bytes += len(data)
        self.appended += len(data)
        self.records += len(records)
        if sync:
            self.synced = self.appended

    def sync(self) -> None:
        """Have all that was appended survive a loss of power; other calls may be made meanwhile, from another thread.

        Raises `SpoolUnavailable`.
        """
        end = self.appended  # before the file is looked at: so much is in it, or in files that were synced at their end
        with self._closing:
            if self._file is not None:
                try:
                    os.fdatasync(self._file)
                except OSError as error:
                    raise SpoolUnavailable(f"{self.directory}: {error.strerror}") from error
        self.synced = max(self.synced, end)

    def read(self, limit: int) -> list[Record]:
        """The first records, at most `limit`; the same ones again until `release`. None left: an empty list."""
        while self._segments:
            segment = self._segments[0]
            if self._offset < segment.size:
                records = self._read_some(segment, limit)
                if records:
                    return records
            elif len(self._segments) > 1:
                self._next_segment()
            else:
                break
        self.records = 0  # damaged lines were counted as well, by their line feeds
        return []

    def release(self) -> None:
        """What was read last is done with."""
        self.released += self._read_to - self._offset
        self._offset = self._read_to
        self.records -= self._read_records
        self._read_records = 0
        if self._segments and self._offset >= self._segments[0].size:
            if len(self._segments) > 1 or self._file is None:
                self._next_segment()
            else:
                # Between calls the spool is empty: nothing is left that a restart would write once more.
                try:
                    os.ftruncate(self._file, 0)
                except OSError as error:
                    log.warning("spool_not_emptied", directory=str(self.directory), why=error.strerror)
                else:
                    self._segments[0].size = self._offset = self._read_to = self.bytes = self.records = 0

    def _find(self) -> tuple[list[_Segment], int]:
        segments, records = [], 0
        for path in sorted(self.directory.glob("*.spool")):
            with path.open("rb") as file:
                while chunk := file.read(1 << 20):
                    records += chunk.count(b"\n")
            segments.append(_Segment(path, path.stat().st_size))
            self._number = int(path.stem) if path.stem.isdigit() else self._number
        return segments, records

    def _segment_for(self, length: int) -> tuple[_Segment, int]:
        if self._file is not None:
            last = self._segments[-1]
            if last.size == 0 or last.size + length <= SEGMENT_BYTES:
                return last, self._file
            self._close_segment()
        self._number += 1
        path = self.directory / f"{self._number:016}.spool"
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        self._segments.append(_Segment(path, 0))
        folder = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)  # the file's name as well has to survive
        finally:
            os.close(folder)
        return self._segments[-1], self._file

    def _write(self, segment: _Segment, file: int, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(file, view) :]
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(file, segment.size)
            raise

    def _close_segment(self) -> None:
        """The next append begins a new one: what this one holds behind its size is never in its way."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.fdatasync(self._file)
            with self._closing, contextlib.suppress(OSError):
                file, self._file = self._file, None
                os.close(file)

    def _read_some(self, segment: _Segment, limit: int) -> list[Record]:
        try:
            with segment.path.open("rb") as file:
                length = min(CHUNK_BYTES, segment.size - self._offset)
                data = os.pread(file.fileno(), length, self._offset)
            if len(data) < length:
                raise OSError(0, f"ends after {self._offset + len(data)} bytes instead of {segment.size}")
        except OSError as error:
            log.error("spool_unreadable", segment=str(segment.path), why=error.strerror, kept_as=".unreadable")
            with contextlib.suppress(OSError):
                segment.path.rename(segment.path.with_suffix(".unreadable"))
            self.damaged += 1
            self.released += segment.size - self._offset
            self._drop_first()
            return []
        found = take(data, limit, at_end=self._offset + len(data) == segment.size)
        for piece in found.damaged:
            self._set_aside(segment, piece)
        if found.torn:
            log.warning("spool_torn", segment=str(segment.path), bytes=len(found.torn), why="cut off: it was not whole")
        self._read_to = self._offset + found.consumed
        self._read_records = len(found.records)
        if not found.records:
            self.released += found.consumed
            self._offset = self._read_to
        return found.records

    def _set_aside(self, segment: _Segment, piece: bytes) -> None:
        self.damaged += 1
        kept = self.directory / "damaged"
        log.error("spool_damaged", segment=str(segment.path), bytes=len(piece), kept_in=str(kept))
        with contextlib.suppress(OSError):
            file = os.open(kept, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                if os.fstat(file).st_size < MAX_DAMAGED_BYTES:
                    os.write(file, piece.rstrip(b"\n") + b"\n")
            finally:
                os.close(file)

    def _next_segment(self) -> None:
        self._remove(self._segments[0])
        self._drop_first()

    def _drop_first(self) -> None:
        last = len(self._segments) == 1
        self.bytes -= self._segments[0].size
        del self._segments[0]
        self._offset = self._read_to = self._read_records = 0
        if last:
            self._close_segment()

    def _remove(self, segment: _Segment) -> None:
        try:
            segment.path.unlink(missing_ok=True)
        except OSError as error:
            # It is written once more after the next start, which changes nothing.
            log.warning("spool_not_removed", segment=str(segment.path), why=error.strerror)
