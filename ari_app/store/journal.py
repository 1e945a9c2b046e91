"""The spool as an event loop uses it: in threads of its own, and loud about a disk that fails."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import structlog

from ari_app.store.framing import Record
from ari_app.store.spool import Spool, SpoolBusy, SpoolUnavailable

SLOW_SECONDS = 5.0
LOG_EVERY_SECONDS = 30.0

ResultT = TypeVar("ResultT")

log = structlog.get_logger(__name__)


class Journal:
    """One spool. Methods are to be awaited by one task each; a disk that stands still holds them up, and no other."""

    def __init__(self, spool: Spool) -> None:
        self.spool = spool
        self.usable = False
        """What was appended last is in the spool."""
        self.appending = False
        self.known = False
        """It is open, and what an earlier process left is known."""
        self.busy = False
        """Another process has it, and writes what is in it."""
        self.found = 0
        """Where, in the spool's bytes, what an earlier process left ends."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="spool")
        # What is appended while the disk syncs is not to wait for that: the process may be killed.
        self._sync_thread = ThreadPoolExecutor(1, thread_name_prefix="spool-sync")
        self._logged = -LOG_EVERY_SECONDS

    @property
    def pending(self) -> int:
        """Bytes that are not done with."""
        return self.spool.appended - self.spool.released

    async def open(self) -> bool:
        """Take the spool, with what an earlier process left; whether it could be."""
        try:
            if not self.spool.is_open:
                await self._in_thread(self.spool.open)
        except SpoolUnavailable as error:
            self.busy = isinstance(error, SpoolBusy)
            return self._unusable(error)
        self.busy = False
        self.found = self.spool.appended
        self.known = self.usable = True
        return True

    async def append(self, records: Sequence[Record], *, sync: bool) -> bool:
        """Whether the records are in the spool, and, with `sync`, will survive a loss of power."""
        self.appending = True
        try:
            await self._in_thread(lambda: self.spool.append(records, sync=sync))
        except SpoolUnavailable as error:
            return self._unusable(error)
        finally:
            self.appending = False
        if not self.usable:
            self.usable = True
            log.info("spool_usable", directory=str(self.spool.directory))
        return True

    async def sync(self) -> None:
        """Have what was appended survive a loss of power."""
        if self.spool.synced == self.spool.appended:
            return
        try:
            await self._in_thread(self.spool.sync, self._sync_thread)
        except SpoolUnavailable as error:
            self._unusable(error)

    async def read(self, limit: int) -> list[Record]:
        """The first records, the same ones again until `release`."""
        return await self._in_thread(lambda: self.spool.read(limit)) if self.pending else []

    async def release(self) -> None:
        """What was read last is done with."""
        await self._in_thread(self.spool.release)

    async def close(self) -> None:
        """Give it up; what is in it stays."""
        if self.spool.is_open:
            await self._in_thread(self.spool.close)
        for thread in (self._thread, self._sync_thread):
            thread.shutdown(wait=False, cancel_futures=True)

    def _unusable(self, error: SpoolUnavailable) -> bool:
        self.usable = False
        if time.monotonic() - self._logged > LOG_EVERY_SECONDS:
            self._logged = time.monotonic()
            log.error("spool_unusable", why=str(error), effect="records wait in memory: a restart would lose them")
        return False

    async def _in_thread(self, work: Callable[[], ResultT], thread: ThreadPoolExecutor | None = None) -> ResultT:
        done = asyncio.get_running_loop().run_in_executor(thread or self._thread, work)
        if (await asyncio.wait((done,), timeout=SLOW_SECONDS))[0]:
            return done.result()
        log.error(
            "spool_slow", directory=str(self.spool.directory), seconds=SLOW_SECONDS, why="the disk does not answer"
        )
        return await done
