"""The recordings of one worker: begun, counted and ended on the event loop, written by its one thread."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import structlog

from audiosocket.callspec import MediaFormat
from audiosocket.clock import now_ms
from audiosocket.recording import folder
from audiosocket.recording.recorder import BLOCK_TICKS, Recorder
from audiosocket.recording.timeline import TICKS_A_SECOND, Block
from audiosocket.recording.writer import Order, Track, Writer
from audiosocket.wire import FRAME_MS

WAITING_SECONDS = 10
"""What of each recording waits for a disk at most; further blocks become silence."""
MAX_WAITING_BLOCKS = WAITING_SECONDS * TICKS_A_SECOND // BLOCK_TICKS
BLOCK_MS = BLOCK_TICKS * FRAME_MS
CLOSE_SECONDS = 0.5
"""How long a call's report waits for its recording to be whole. A disk may take longer; a caller who goes on elsewhere
waits for the report."""
TIDY_SECONDS = 86_400.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class RecordingOptions:
    """Where recordings go, and what becomes of them."""

    directory: Path
    url_base: str = ""
    """Of the URLs that records and callbacks name; empty: they name the path."""
    min_free_mb: int = 1024
    retain_days: int = 30
    prepare: bool = False
    """Whether the directory was asked for by name, and has to be there at the start."""


class Recording:
    """One call's recording. `recorder` is for the session, until `over` is told."""

    def __init__(
        self,
        owner: Recordings,
        path: Path,
        media_format: MediaFormat,
        where: str,
        begun: Callable[[], None],
        over: Callable[[str, str], None],
        queue_ticks: int,
    ) -> None:
        self._owner = owner
        self._track = track = Track(path, media_format, self._begun_there, self._ended_there)
        self._where = where
        self._tell_begun = begun
        self._over = over
        self._loop = asyncio.get_running_loop()
        self._begun = self._loop.create_future()
        self._ended = self._loop.create_future()
        self.began_at_ms = now_ms()
        self.recorder = Recorder(track.timeline.rate_hz, self._put, time.monotonic, queue_ticks)
        self.reason = ""
        self.lost_blocks = 0
        owner.writer.put((track, Order.OPEN))

    @property
    def where(self) -> str:
        """Path or URL; empty when there is no file."""
        return "" if self.reason and self._track.descriptor < 0 else self._where

    @property
    def known(self) -> bool:
        """Whether it is known if there is a file."""
        return self._begun.done() or self._ended.done()

    def close(self) -> None:
        """The call has ended: what is in hand is written."""
        if not self.reason:
            self.recorder.flush()
            self._track.ticks = self.recorder.ticks
            self._owner.writer.put((self._track, Order.CLOSE))

    async def begun(self) -> None:
        """Waits until it is known if there is a file, `CLOSE_SECONDS` at most."""
        await asyncio.wait((self._begun, self._ended), timeout=CLOSE_SECONDS, return_when=asyncio.FIRST_COMPLETED)

    async def closed(self) -> None:
        """Waits for the file to be whole, `CLOSE_SECONDS` at most."""
        await asyncio.wait((self._ended,), timeout=CLOSE_SECONDS)

    def _begun_there(self) -> None:
        # On the writer's thread.
        self._loop.call_soon_threadsafe(self._begin)

    def _begin(self) -> None:
        self._begun.set_result(None)
        self._tell_begun()

    def _ended_there(self, reason: str, detail: str) -> None:
        # On the writer's thread.
        self._loop.call_soon_threadsafe(self._end, reason, detail)

    def _end(self, reason: str, detail: str) -> None:
        self.reason = reason
        self._owner.count_end(self)
        self._ended.set_result(None)
        if reason != "completed":
            self._over(reason, detail)

    def _put(self, block: Block) -> None:
        track = self._track
        if track.blocks_put - track.blocks_done >= MAX_WAITING_BLOCKS:
            self.lost_blocks += 1
            self._owner.lost_blocks += 1
            return
        track.blocks_put += 1
        self._owner.writer.put((track, block))


class Recordings:
    """See the module's text. The directory is made when the first call is recorded."""

    def __init__(self, options: RecordingOptions) -> None:
        self._options = options
        self._live: set[Recording] = set()
        self._tidying: asyncio.Task[None] | None = None
        self.writer = Writer(options.directory, options.min_free_mb << 20)
        self.lost_blocks = 0
        self.ended: dict[str, int] = {}

    @property
    def active(self) -> int:
        """Recordings that have not ended."""
        return len(self._live)

    def start(self) -> None:
        """Starts the writer, and looks after the directory: now, and every day."""
        options = self._options
        try:
            if options.prepare:
                options.directory.mkdir(mode=0o750, parents=True, exist_ok=True)
            if options.directory.exists() and not os.access(options.directory, os.W_OK | os.X_OK):
                raise PermissionError(13, "cannot be written")
        except OSError as error:
            # Whether any call will be recorded is not known here, and those that will not are none the worse.
            log.warning("recordings_unwritable", directory=str(options.directory), detail=error.strerror)
        self.writer.start()
        self._tidying = asyncio.create_task(self._tidy(), name="recordings")

    async def stop(self) -> None:
        """Writes what is left of all recordings, and ends the thread: within `WAITING_SECONDS`, or without it."""
        if self._tidying is not None:
            self._tidying.cancel()
            await asyncio.gather(self._tidying, return_exceptions=True)
        for recording in self._live:
            recording.close()
        self.writer.put(None)
        await asyncio.to_thread(self.writer.join, WAITING_SECONDS)
        if self.writer.is_alive():
            # The process ends without it: the next start finds what it has written.
            log.error("recordings_left", recordings=self.active)

    def begin(
        self,
        name: str,
        media_format: MediaFormat,
        begun: Callable[[], None],
        over: Callable[[str, str], None],
        queue_ticks: int,
    ) -> Recording:
        """A recording from now on. `begun` is told when its file is there; `over` (reason, detail) when it ends before
        its call does. `queue_ticks` is the media leg's."""
        relative = folder.relative_path(name, datetime.now(UTC))
        base = self._options.url_base
        where = f"{base.rstrip('/')}/{relative}" if base else str(self._options.directory / relative)
        recording = Recording(self, self._options.directory / relative, media_format, where, begun, over, queue_ticks)
        self._live.add(recording)
        return recording

    def count_end(self, recording: Recording) -> None:
        """One recording less."""
        self._live.discard(recording)
        self.ended[recording.reason] = self.ended.get(recording.reason, 0) + 1

    async def _tidy(self) -> None:
        options = self._options
        while True:
            try:
                done = await asyncio.to_thread(folder.tidy, options.directory, options.retain_days, folder.today())
            except OSError as error:
                log.error("recordings_untidy", directory=str(options.directory), detail=str(error))
            else:
                if any((done.repaired, done.removed, done.failed)):
                    log.info("recordings_tidied", repaired=done.repaired, removed=done.removed, failed=done.failed)
            await asyncio.sleep(TIDY_SECONDS)
