"""What a worker has to tell controllers: left in Redis, and told here to who cannot read there.

The worker may reach a Redis that the controller does not. So what Redis has taken a moment ago is told here too:
handling a report or a notice twice changes nothing. Digits are the exception: they are told once, here or there.

Reports are repeated until Redis has them, and once more when Redis has lost its memory. Notices keep their order; one
that is older than `NOTICE_SECONDS` is told no more.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import msgspec
import redis.asyncio
import structlog

from audiosocket.callspec import NOTICE_SECONDS, TOLD_SECONDS, CallNotice, CallReport
from audiosocket.errors import Unavailable
from audiosocket.keys import notice_stream
from audiosocket.runtime.stores import pause, redis_call

REPORTS_WAITING_MAX = 10_000
REPORTS_KEPT = 1000
"""Reports that are remembered after they were stored, to be stored again in a Redis that has lost its memory."""
KEPT_SECONDS = 60.0
"""How old such a report may be when Redis goes: a controller that runs has read it long before."""
RETOLD_SECONDS = 10.0
"""For how long a report that Redis has taken is told here too: within 2 s a controller knows that it has to ask."""
REPORT_STREAM_MAX = 20_000
"""About how many reports a stream keeps when no controller reads it."""
REPORT_FIELD = "report"
NOTICE_FIELD = "notice"
NOTICES_WAITING_MAX = 1000
NOTICE_STREAM_MAX = 5000
"""About how many notices a stream keeps; they are meaningless after `NOTICE_SECONDS`."""
NOTICE_STREAM_TTL_MS = 3_600_000
"""Nobody removes what was read: the stream of a node without calls goes by itself."""
TOLD_ITEMS = 200
"""What one answer to a controller holds of each kind."""
CLOSE_SECONDS = 5.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Said:
    number: int
    at: float
    """By the monotonic clock."""
    stream: str
    """The report stream of the controller that it is for."""
    payload: bytes
    again: bool = True
    """Whether it may be told twice."""


class _Answer(msgspec.Struct, kw_only=True):
    """`Told` with what is JSON already."""

    run: str
    last: int
    notices: list[msgspec.Raw]
    reports: list[msgspec.Raw]


class Outbox:
    """One worker's words. `redis_answers` and `redis_away` tell it what is known of Redis."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self._redis = client
        self._run = uuid.uuid4().hex
        self._last = 0
        self._reports: deque[_Said] = deque()
        self._stored: deque[_Said] = deque(maxlen=REPORTS_KEPT)
        self._notices: deque[_Said] = deque()
        self._untaken: deque[_Said] = deque(maxlen=NOTICES_WAITING_MAX)
        """Notices that Redis did not take."""
        self._told_here: deque[_Said] = deque(maxlen=NOTICES_WAITING_MAX)
        """Notices for those who ask here, whatever becomes of them in Redis."""
        self._heard: dict[str, int] = {}
        """By stream: up to which number a controller has asked for here."""
        self._asking: Counter[str] = Counter()
        """By stream: controllers that wait here for an answer."""
        self._sender: asyncio.Task[None] | None = None
        self._notifier: asyncio.Task[None] | None = None
        self._news = asyncio.Event()
        self._closing = False
        self._answered_at = 0.0
        self.away = False
        """Whether Redis did not answer when it was asked last."""
        self.reports_lost = 0

    def report(self, stream: str, report: CallReport) -> None:
        """See `Registry.report`."""
        if len(self._reports) >= REPORTS_WAITING_MAX:
            self._reports.popleft()
            self.reports_lost += 1
            log.error("report_lost", waiting=len(self._reports), lost=self.reports_lost)
        self._reports.append(self._say(stream, msgspec.json.encode(report)))
        self._send()

    def notify(self, stream: str, notice: CallNotice) -> None:
        """See `Registry.notify`."""
        if len(self._notices) >= NOTICES_WAITING_MAX:
            log.warning("notice_lost", notice=notice.event, call_id=notice.call_id, why="too many wait")
            return
        # Digits that a caller is sent twice are other digits.
        said = self._say(stream, msgspec.json.encode(notice), again=notice.event != "digits")
        if said.again or self.away or self._asking[stream]:
            self._told_here.append(said)
        if self.away:
            self._untaken.append(said)
            return
        if self._asking[stream] and not said.again:
            return
        self._notices.append(said)
        if self._notifier is None or self._notifier.done():
            self._notifier = asyncio.create_task(self._send_notices(), name="registry-notices")

    async def told(self, stream: str, run: str, after: int) -> bytes:
        """`Told` as JSON: what of `stream` has a higher number than `after`, which is one of `run`. Waits for it up to
        `TOLD_SECONDS`."""
        after = after if run == self._run else 0
        self._heard[stream] = after
        deadline = time.monotonic() + TOLD_SECONDS
        with self._asked(stream):
            while True:
                now = time.monotonic()
                notices = self._after(self._told_here, stream, after, now - NOTICE_SECONDS)
                reports = self._after(self._stored, stream, after, now - RETOLD_SECONDS)
                reports += self._after(self._reports, stream, after)
                if notices or reports or self._closing or now >= deadline:
                    break
                self._news.clear()
                try:
                    async with asyncio.timeout(deadline - now):
                        await self._news.wait()
                except TimeoutError:
                    continue
        # With more left than fits, what is left is asked for next.
        full = [kind[TOLD_ITEMS - 1].number for kind in (notices, reports) if len(kind) >= TOLD_ITEMS]
        last = min(full, default=self._last)
        answer = _Answer(
            run=self._run,
            last=last,
            notices=[msgspec.Raw(said.payload) for said in notices if said.number <= last],
            reports=[msgspec.Raw(said.payload) for said in reports if said.number <= last],
        )
        return msgspec.json.encode(answer)

    def redis_away(self) -> None:
        """Redis did not answer."""
        self.away = True

    def redis_answers(self, *, remembers: bool) -> None:
        """Redis has answered; whether what was stored there is known to be there still."""
        if (self.away or not remembers) and self._stored:
            since = self._answered_at - KEPT_SECONDS
            again = [said for said in self._stored if said.at >= since]
            log.info("reports_again", reports=len(again))
            self._stored.clear()
            self._reports.extend(again)
            self._send()
        if self.away:
            self.away = False
            # What nobody has asked for here, its controller hears through Redis.
            unheard = [said for said in self._untaken if said.number > self._heard.get(said.stream, 0)]
            self._untaken.clear()
            for said in unheard:
                if not said.again and said in self._told_here:
                    self._told_here.remove(said)
            self._notices.extend(unheard)
            if unheard and (self._notifier is None or self._notifier.done()):
                self._notifier = asyncio.create_task(self._send_notices(), name="registry-notices")
        self._answered_at = time.monotonic()

    async def close(self) -> None:
        """Stores what still waits, for at most `CLOSE_SECONDS` a kind."""
        for task in (self._sender, self._notifier):
            if task is not None:
                await asyncio.wait((task,), timeout=CLOSE_SECONDS)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        self._closing = True
        self._news.set()
        lost = sum(said.number > self._heard.get(said.stream, 0) for said in self._reports)
        if lost:
            self.reports_lost += lost
            log.error("report_lost", waiting=lost, lost=self.reports_lost)

    def _say(self, stream: str, payload: bytes, *, again: bool = True) -> _Said:
        return _Said(self._number(), time.monotonic(), stream, payload, again)

    def _number(self) -> int:
        self._last += 1
        self._news.set()
        return self._last

    @contextmanager
    def _asked(self, stream: str) -> Iterator[None]:
        self._asking[stream] += 1
        try:
            yield
        finally:
            self._asking[stream] -= 1

    def _after(self, said: Iterable[_Said], stream: str, after: int, since: float = 0.0) -> list[_Said]:
        """What of `stream` has a higher number and was said since a monotonic time, in order."""
        found = (each for each in said if each.number > after and each.stream == stream and each.at >= since)
        return sorted(found, key=lambda each: each.number)

    def _send(self) -> None:
        if self._sender is None or self._sender.done():
            self._sender = asyncio.create_task(self._send_reports(), name="registry-reports")

    async def _send_reports(self) -> None:
        failures = 0
        while self._reports:
            head = self._reports[0]
            try:
                async with redis_call(Unavailable):
                    await self._redis.xadd(
                        head.stream, {REPORT_FIELD: head.payload}, maxlen=REPORT_STREAM_MAX, approximate=True
                    )
            except Unavailable as error:
                self.redis_away()
                if failures == 0:
                    log.warning("reports_wait", waiting=len(self._reports), why=str(error))
                await pause(failures)
                failures += 1
                continue
            self._stored.append(head)
            if self._reports and self._reports[0] is head:  # it may have given way meanwhile
                self._reports.popleft()
            failures = 0

    async def _send_notices(self) -> None:
        while self._notices:
            said = self._notices.popleft()
            if time.monotonic() - said.at > NOTICE_SECONDS:
                log.warning("notice_lost", why="Redis was away for too long")
                continue
            if self.away:
                if not said.again:
                    said = replace(said, number=self._number())  # who asks here may be past the one that it had
                    self._told_here.append(said)
                self._untaken.append(said)
                continue
            try:
                async with redis_call(Unavailable), self._redis.pipeline(transaction=False) as pipeline:
                    stream = notice_stream(said.stream)
                    pipeline.xadd(stream, {NOTICE_FIELD: said.payload}, maxlen=NOTICE_STREAM_MAX, approximate=True)
                    pipeline.pexpire(stream, NOTICE_STREAM_TTL_MS)
                    await pipeline.execute()
            except Unavailable as error:
                self.redis_away()
                if said.again:
                    self._untaken.append(said)
                else:
                    log.warning("notice_lost", why=str(error))
