"""The thread that writes a worker's recordings. A disk that stands still holds up this thread and nothing else."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path
from queue import Empty, SimpleQueue

import structlog

from audiosocket.callspec import MediaFormat
from audiosocket.recording import wav
from audiosocket.recording.folder import create, finish, free_bytes
from audiosocket.recording.timeline import TICKS_A_SECOND, Block, Stretch, Timeline

SPACE_SECONDS = 1.0
"""How often the free space is looked at."""

log = structlog.get_logger(__name__)


class Order(Enum):
    """What is asked of the writer besides writing a block."""

    OPEN = auto()
    CLOSE = auto()


@dataclass(slots=True, eq=False)
class Track:
    """One recording as both sides of the queue know it. Each counter is written by one side only."""

    path: Path
    media_format: MediaFormat
    begun: Callable[[], None]
    """Told on the writer's thread: the file is there."""
    ended: Callable[[str, str], None]
    """Told once, on the writer's thread: reason and detail."""
    timeline: Timeline = field(init=False)
    descriptor: int = -1
    ticks: int = 0
    """How long the call was; told with `Order.CLOSE`."""
    blocks_put: int = 0
    blocks_done: int = 0

    def __post_init__(self) -> None:
        self.timeline = Timeline(self.media_format)


class Writer(threading.Thread):
    """See the module's text. `put` is for the event loop, all else happens on the thread."""

    def __init__(self, directory: Path, min_free_bytes: int) -> None:
        super().__init__(name="recordings", daemon=True)
        self._directory = directory
        self._min_free = min_free_bytes
        self._queue: SimpleQueue[tuple[Track, Block | Order] | None] = SimpleQueue()
        self._open: set[Track] = set()
        self._looked_at = -SPACE_SECONDS
        self.bytes_written = 0
        self.free_bytes = 0

    def put(self, item: tuple[Track, Block | Order] | None) -> None:
        """Queues a block or an order; None ends the thread once all before it is done."""
        self._queue.put(item)

    def run(self) -> None:
        while True:
            try:
                item = self._queue.get(timeout=SPACE_SECONDS)
            except Empty:
                self._look()
                continue
            if item is None:
                return
            self._look()
            track, what = item
            try:
                self._do(track, what)
            except Exception as error:  # one recording's fault is that recording's end
                self._close(track, "write_failed", _fault(track, error))
            if isinstance(what, Block):
                track.blocks_done += 1

    def _do(self, track: Track, what: Block | Order) -> None:
        if what is Order.OPEN:
            self._begin(track)
        elif track not in self._open:
            return  # it has ended before its call has
        elif what is Order.CLOSE:
            self._close(track, "completed")
        elif isinstance(what, Block):
            self._write(track, track.timeline.add(what))

    def _begin(self, track: Track) -> None:
        if self.free_bytes < self._min_free:
            track.ended("disk_full", self._space())
            return
        try:
            track.descriptor = create(track.path)
            os.pwrite(track.descriptor, wav.header(track.timeline.rate_hz, 0), 0)
        except Exception as error:
            if track.descriptor >= 0:
                os.close(track.descriptor)
                track.descriptor = -1
            track.ended("open_failed", _fault(track, error))
            return
        self._open.add(track)
        track.begun()

    def _write(self, track: Track, stretches: list[Stretch]) -> None:
        for start, audio in stretches:
            at = start * wav.SAMPLE_BYTES
            if at + len(audio) > wav.MAX_DATA_BYTES:
                self._close(track, "too_long", "a WAV file holds no more")
                return
            # Each stretch at its own place: what was lost in between is a hole, which reads as silence.
            self.bytes_written += _write_all(track.descriptor, audio, wav.HEADER_BYTES + at)

    def _close(self, track: Track, reason: str, detail: str = "") -> None:
        if track not in self._open:
            return
        self._open.discard(track)
        # Whatever goes wrong here, the file is closed and the call told.
        try:
            if reason != "write_failed":
                self._write_rest(track)
        except Exception as error:
            reason, detail = "write_failed", _fault(track, error)
        try:
            self._finish(track)
        except Exception as error:
            reason, detail = "write_failed", _fault(track, error)
        track.ended(reason, detail)

    def _write_rest(self, track: Track) -> None:
        for start, audio in track.timeline.finish():
            self.bytes_written += _write_all(track.descriptor, audio, wav.HEADER_BYTES + start * wav.SAMPLE_BYTES)

    def _finish(self, track: Track) -> None:
        try:
            data_bytes = self._data_bytes(track)
        except Exception:
            os.close(track.descriptor)
            raise
        finish(track.descriptor, track.path, track.timeline.rate_hz, data_bytes)

    def _data_bytes(self, track: Track) -> int:
        written = os.fstat(track.descriptor).st_size - wav.HEADER_BYTES
        # The last blocks may have been lost: the file is as long as the call all the same.
        whole = track.ticks * track.timeline.rate_hz // TICKS_A_SECOND * wav.SAMPLE_BYTES
        return min(max(written - written % wav.SAMPLE_BYTES, whole), wav.MAX_DATA_BYTES)

    def _look(self) -> None:
        now = time.monotonic()
        if now - self._looked_at < SPACE_SECONDS:
            return
        self._looked_at = now
        try:
            self.free_bytes = free_bytes(self._directory)
        except OSError as error:
            log.error("recordings_space_unknown", detail=_told(error))
            return
        if self.free_bytes < self._min_free:
            for track in list(self._open):
                self._close(track, "disk_full", self._space())

    def _space(self) -> str:
        return f"{self.free_bytes >> 20} MB free, less than min_free_mb"


def _write_all(descriptor: int, data: bytes, at: int) -> int:
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, memoryview(data)[done:], at + done)
    return done


def _fault(track: Track, error: Exception) -> str:
    """What is told of an error; one that is not the disk's is ours, and logged."""
    if isinstance(error, OSError):
        return _told(error)
    log.error("recording_failed", file=str(track.path), exc_info=error)
    return f"{type(error).__name__}: {error}"


def _told(error: OSError) -> str:
    return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error)
