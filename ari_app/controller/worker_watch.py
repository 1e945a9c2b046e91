"""Watches the media workers for the calls of this PBX node: the calls of one that is dead or frozen go to others.

A frozen worker is worse than a dead one. Asterisk waits for its next AudioSocket frame with a lock held that every new
call needs, so that in the end the whole PBX stands still: neither can the noticing rest on Asterisk, nor would it get
those legs to end. Their connections are reset in the kernel instead, on this host (`ss -K`).
"""

from __future__ import annotations

import asyncio
import time

import aiohttp
import structlog

from ari_app.controller.live_calls import LiveCalls
from ari_app.controller.messages import WorkerGone
from ari_app.errors import StoreUnavailable
from ari_app.fleet.pulse import Pulse
from ari_app.store.present import Present
from audiosocket.callspec import WorkerInfo

POLL_SECONDS = 0.25
SLOW_SECONDS = 0.5
"""An answer of Redis that takes longer than this says nothing of the workers."""
ANSWER_SECONDS = 0.75
RESET_SECONDS = 1.0
"""How often the connections to a worker that is gone are reset: a leg may have been on its way to it."""
FORGET_SECONDS = 60.0
COMMAND_SECONDS = 5.0

log = structlog.get_logger(__name__)


class WorkerWatch:
    """See the module's text."""

    def __init__(self, live: LiveCalls, present: Present) -> None:
        self._live = live
        self._present = present
        self._pulse = Pulse()
        self._gone: dict[str, WorkerInfo] = {}
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._resets = True
        self._reset_at = 0.0

    async def run(self) -> None:
        """Watches, for ever."""
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=ANSWER_SECONDS)) as http:
            try:
                while True:
                    await asyncio.sleep(POLL_SECONDS)
                    await self._look(http)
            finally:
                for task in self._asking.values():
                    task.cancel()
                await asyncio.gather(*self._asking.values(), return_exceptions=True)

    async def _look(self, http: aiohttp.ClientSession) -> None:
        began = time.monotonic()
        try:
            beats = await self._present.heartbeats()
        except StoreUnavailable:
            self._pulse.unknown()
        else:
            now = time.monotonic()
            if now - began > SLOW_SECONDS:
                self._pulse.unknown()
            over, back = self._pulse.heard(now, beats)
            for worker in back:
                if self._gone.pop(worker, None) is not None:
                    log.info("worker_back", worker=worker)
                self._live.services.gone.pop(worker, None)
            for info in over:
                self._tell(info, "it was started again")
        now = time.monotonic()
        for info in self._pulse.suspects(now):
            if info.worker_id not in self._asking:
                task = asyncio.create_task(self._ask(http, info), name=f"ask {info.worker_id}")
                self._asking[info.worker_id] = task
        self._pulse.forget(now, FORGET_SECONDS)
        if self._gone and now - self._reset_at >= RESET_SECONDS:
            self._reset_at = now
            for info in list(self._gone.values()):
                await self._reset(info)

    async def _ask(self, http: aiohttp.ClientSession, info: WorkerInfo) -> None:
        try:
            why = await _silence(http, info)
            if self._pulse.answered(info, time.monotonic(), yes=not why):
                log.error("worker_gone", worker=info.worker_id, why=why)
                self._gone[info.worker_id] = info
                self._live.services.gone[info.worker_id] = info.started_at_ms
                self._tell(info, f"worker {info.worker_id} is gone: {why}")
                await self._reset(info)
        finally:
            del self._asking[info.worker_id]

    def _tell(self, info: WorkerInfo, why: str) -> None:
        gone = WorkerGone(info.worker_id, info.started_at_ms, why)
        for actor in list(self._live.actors.values()):
            actor.worker_gone(gone)

    async def _reset(self, info: WorkerInfo) -> None:
        """Ends this host's connections to the worker's media ports, whatever holds them."""
        for port in (info.port, info.websocket_port):
            if not port:
                continue
            where = ("state", "established", "dst", info.host, "and", "dport", "=", f":{port}")
            await _output("ss", "-K", "-H", "-t", "-n", *where)
            left = await _output("ss", "-H", "-t", "-n", *where)
            if left and self._resets:
                self._resets = False
                log.error(
                    "legs_not_reset",
                    worker=info.worker_id,
                    remedy="give the controller CAP_NET_ADMIN (see its systemd unit), and a kernel with"
                    " CONFIG_INET_DIAG_DESTROY: a frozen worker can freeze Asterisk",
                )


async def _silence(http: aiohttp.ClientSession, info: WorkerInfo) -> str:
    """Why the worker does not live, or nothing."""
    if not info.status_url:
        return "its heartbeat is late"
    try:
        async with http.get(f"{info.status_url}/healthz") as answer:
            await answer.read()
    except TimeoutError:
        return f"its heartbeat is late, and it does not answer within {ANSWER_SECONDS:g} s"
    except aiohttp.ClientError as error:
        return f"its heartbeat is late, and it cannot be reached: {error}"
    return ""


async def _output(*command: str) -> str:
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
    except OSError as error:
        return str(error)
    try:
        async with asyncio.timeout(COMMAND_SECONDS):
            said, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        return "no answer"
    return said.decode(errors="replace").strip()
