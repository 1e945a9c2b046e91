"""Workers' reports of calls that have ended without waiting for them, or under another controller: their records get
what they lack. Whose record only PostgreSQL knows waits for PostgreSQL; nobody else's report waits with it."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import NoReturn

import structlog

from ari_app.call.ending import of_late_report
from ari_app.controller.live_calls import LiveCalls
from ari_app.controller.story import left_events, report_events
from ari_app.errors import StoreUnavailable
from ari_app.store.calls import CallStore
from ari_app.store.records import CallRow
from ari_app.store.writer import RecordWriter
from audiosocket.callspec import CallReport

ASK_SECONDS = 0.25
"""How long PostgreSQL is waited for by who brings a report."""
RETRY_SECONDS = 1.0
WAITING_MAX = 5000

log = structlog.get_logger(__name__)


class LateReports:
    """See the module's text."""

    def __init__(self, live: LiveCalls, calls: CallStore, writer: RecordWriter) -> None:
        self._live = live
        self._calls = calls
        self._writer = writer
        self._waiting: deque[CallReport] = deque()
        self._some = asyncio.Event()
        self._none = asyncio.Event()
        self._none.set()

    async def take(self, report: CallReport) -> None:
        """Puts a report into the record of its call, or leaves it to `run`; it may come twice."""
        for event in report_events(report):
            self._writer.event(event)
        row = self._live.unreported.get(report.call_id)
        if row is not None:
            self._complete(row, report)
        elif self._waiting:
            self._put_off(report)
        else:
            try:
                async with asyncio.timeout(ASK_SECONDS):
                    await self._find(report)
            except (StoreUnavailable, TimeoutError) as error:
                log.warning("late_reports_wait", call_id=report.call_id, why=str(error) or "PostgreSQL is slow")
                self._put_off(report)

    async def run(self) -> NoReturn:
        """Finds the records of the reports that wait, for ever."""
        while True:
            await self._some.wait()
            try:
                await self._find(self._waiting[0])
            except StoreUnavailable:
                await asyncio.sleep(RETRY_SECONDS)
                continue
            self._waiting.popleft()
            if not self._waiting:
                self._some.clear()
                self._none.set()

    async def settled(self) -> None:
        """Returns when none waits."""
        await self._none.wait()

    def _put_off(self, report: CallReport) -> None:
        if len(self._waiting) >= WAITING_MAX:
            log.error("late_report_without_record", call_id=report.call_id, why="too many wait for PostgreSQL")
            return
        self._waiting.append(report)
        self._some.set()
        self._none.clear()

    async def _find(self, report: CallReport) -> None:
        row = await self._calls.get_call(report.call_id)
        if row is not None:
            self._complete(row, report)

    def _complete(self, row: CallRow, report: CallReport) -> None:
        if row.leg_uuid not in (None, report.leg_uuid):
            self._leave(row, report)
        elif row.ended_at is not None and row.media is None:
            self._live.unreported.pop(report.call_id, None)
            story = self._live.story(row)
            story.reported(report)
            found = of_late_report(row.reason or "", report, answered=row.answered_at is not None)
            if found is not None:
                story.correct(found)

    def _leave(self, row: CallRow, report: CallReport) -> None:
        """The report of a worker that had the call before another one."""
        if row.ended_at is None:  # another controller has the call, and this is an old state of it
            for event in left_events(report):
                self._writer.event(event)
            return
        story = self._live.story(row)
        story.left(report)
        if report.call_id in self._live.unreported:
            self._live.unreported[report.call_id] = story.row
