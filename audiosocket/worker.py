"""One media worker put together: one process, one event loop, one core, one port for each kind of leg.

It listens for AudioSocket, and for RTP or WebSockets where that is configured, asks its call source what each
connection stands for, carries the calls, and drains when it is told to stop; `audiosocket.readiness` announces it.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections import deque
from dataclasses import dataclass, field

import structlog
from aiohttp import web

from audiosocket import descriptors
from audiosocket.app_stage import CallServices
from audiosocket.app_stream import Dialler
from audiosocket.breakers import BreakerDesk
from audiosocket.callspec import CallSpec, EndReason, LegOrder, MediaFigures
from audiosocket.clock import Clock
from audiosocket.direct_way import DirectWay
from audiosocket.durations import TurnTimes
from audiosocket.errors import ConfigError, SpecRefused, Unavailable
from audiosocket.garbage import collect_when_quiet
from audiosocket.legs.audiosocket import AudioSocketLeg
from audiosocket.legs.base import MediaLeg
from audiosocket.legs.chan_websocket import WebSocketLeg
from audiosocket.legs.chan_websocket import listen as listen_websocket
from audiosocket.legs.rtp import RtpLeg, RtpPort, parse_address
from audiosocket.load import Load
from audiosocket.media_call import MediaCall
from audiosocket.platform_http import PlatformHttp
from audiosocket.prompts import Prompts
from audiosocket.readiness import CLOSING_SECONDS, Readiness
from audiosocket.recording.recordings import RecordingOptions, Recordings
from audiosocket.resolver import Resolver
from audiosocket.runtime.process import StopSignal, notify
from audiosocket.sources import CallSource
from audiosocket.status import status_app
from audiosocket.totals import add

SPARE_CONNECTIONS = 64
"""Connections beyond the capacity that may be open at once: legs that end, and strangers until they are refused."""
LISTEN_BACKLOG = 1024
STOPPED = "the worker was stopped"
GIVEN_AWAY = "the call has been given to another worker"
DRAIN_POLL_SECONDS = 0.2
"""How often a draining worker without calls asks whether one is still on its way to it."""
REMEMBERED_CALLS = 1000
"""Calls that were here: a controller gives their leases back a little after their end, or has died and does not."""
LEGS_AT_ONCE = 50
"""So many are looked at before the clock has its turn again: all thousand of a worker would make it 2.5 ms late."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """What one worker process needs to know."""

    worker_id: str
    node: str
    host: str
    port: int
    advertise: str
    pair: str = "main"
    status_host: str = ""
    """Address of the status endpoint; empty: none."""
    status_port: int = 0
    capacity: int = 250
    drain_seconds: float = 30
    allow: list[str] = field(default_factory=list)
    rtp_host: str = ""
    """Where RTP legs are taken; empty: nowhere."""
    rtp_port: int = 0
    websocket_host: str = ""
    """Where legs of `chan_websocket` are taken; empty: nowhere."""
    websocket_port: int = 0
    recordings: RecordingOptions | None = None
    """None: this worker records nothing, whatever a call asks for."""


class Worker:
    """See the module's text. `run` returns when the worker has ended in order."""

    def __init__(
        self,
        options: WorkerOptions,
        source: CallSource,
        prompts: Prompts | None = None,
        direct: DirectWay | None = None,
    ) -> None:
        self._options = options
        self._source = source
        self._direct = direct
        self._allowed = [ipaddress.ip_network(network) for network in options.allow]
        self._legs: set[MediaLeg] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._past = MediaFigures()
        self._carried: deque[str] = deque(maxlen=REMEMBERED_CALLS)
        self._stopping = False
        self.port = options.port
        self.rtp: RtpPort | None = None
        self.websocket_port = 0
        self.clock = Clock(asyncio.get_running_loop())
        self._resolver = Resolver()
        self.http = PlatformHttp(self._resolver)
        self.recordings = None if options.recordings is None else Recordings(options.recordings)
        self.calls: dict[str, MediaCall] = {}
        self._ordered: dict[str, MediaCall] = {}  # by the leg that orders name
        self.ended: dict[str, int] = {}
        self.turn_times: dict[str, TurnTimes] = {}
        """By application."""
        self.refused: dict[str, int] = {}
        self.capacity = options.capacity
        self.load = Load()
        self.draining = False
        self.readiness = Readiness(self, options, source, direct=direct is not None)
        self.breakers = BreakerDesk(source.breakers)
        self._services = CallServices(
            worker_id=options.worker_id,
            clock=self.clock,
            dialler=Dialler(self._resolver),
            http=self.http,
            recordings=self.recordings,
            prompts=prompts or Prompts(),
            breakers=self.breakers,
            turn_times=lambda application: self.turn_times.setdefault(application, TurnTimes()),
            notify=source.notify,
            reachable=lambda: self.readiness.reachable,
        )

    @property
    def active(self) -> int:
        """Calls being carried."""
        return len(self.calls)

    def totals(self) -> MediaFigures:
        """The counters of all calls since the start, live ones included; times and peaks are left out."""
        total = MediaFigures()
        add(total, self._past)
        for call in self.calls.values():
            add(total, call.counters())
        return total

    async def run(self, stop: StopSignal) -> None:
        """Serves until `stop`, then drains. Raises `ConfigError` when an address cannot be listened on."""
        options = self._options
        loop = asyncio.get_running_loop()
        try:
            server = await loop.create_server(
                lambda: AudioSocketLeg(self.clock, self),
                options.host,
                options.port,
                backlog=LISTEN_BACKLOG,
                reuse_address=True,
            )
        except OSError as error:
            raise ConfigError(
                f"gateway.listen {options.host}:{options.port}: {error.strerror}: is another worker running there?"
            ) from None
        self.port = server.sockets[0].getsockname()[1]
        descriptors.make_room(server.sockets[0].fileno(), (self.capacity + SPARE_CONNECTIONS) * descriptors.OF_A_CALL)
        try:
            self.rtp = RtpPort(options.rtp_host, options.rtp_port) if options.rtp_host else None
        except OSError as error:
            server.close()
            raise ConfigError(
                f"gateway.rtp_listen {options.rtp_host}:{options.rtp_port}: {error.strerror}: is it an address of this"
                " machine, and is nobody else there?"
            ) from None
        try:
            websockets = await self._serve_websockets()
        except ConfigError:
            server.close()
            raise
        status = await self._serve_status()
        if self.recordings is not None:
            self.recordings.start()
        orders = asyncio.create_task(self._source.orders(options.worker_id, self.order), name="orders")
        load = asyncio.create_task(self.load.watch(self._coalesce), name="load")
        heartbeat = asyncio.create_task(self.readiness.heartbeat(), name="heartbeat")
        garbage = asyncio.create_task(collect_when_quiet(lambda: self.active), name="garbage")
        try:
            await stop.requested.wait()
            await self._drain(stop)
        finally:
            load.cancel()
            heartbeat.cancel()
            garbage.cancel()
            await asyncio.gather(load, heartbeat, garbage, return_exceptions=True)
            notify(f"STATUS=ending\nEXTEND_TIMEOUT_USEC={CLOSING_SECONDS * 1_000_000}")
            server.close()
            if websockets is not None:
                websockets.close()
            self._stopping = True
            for call in list(self.calls.values()):
                call.stop(EndReason.WORKER_STOPPED, STOPPED)
            while self._tasks:  # a leg may say who it is just now
                await asyncio.wait(self._tasks)
            for leg in list(self._legs):
                leg.hangup()
            if self.rtp is not None:
                self.rtp.close()
            orders.cancel()
            await asyncio.gather(orders, return_exceptions=True)
            await self.http.close()
            await self._resolver.close()
            if self.recordings is not None:
                await self.recordings.stop()
            await self.breakers.close()
            await self._source.close(options.worker_id)
            if status is not None:
                await status.cleanup()
            log.info("worker_ended", worker=options.worker_id, ended=self.ended)

    def held(self) -> dict[str, int]:
        """The calls that are here, by id, with the tokens of their leases."""
        return {call_id: call.spec.lease_token for call_id, call in self.calls.items()}

    def give_up(self, call_ids: set[str]) -> None:
        """Ends the sessions of calls that another worker has by now: this one did not answer for a while. Their legs
        are gone, or nobody listens to them any more."""
        for call_id in call_ids:
            call = self.calls.get(call_id)
            if call is not None:
                log.warning("call_given_away", call_id=call_id)
                call.stop(EndReason.LEG_CLOSED, GIVEN_AWAY)

    # LegOwner

    def leg_connected(self, leg: MediaLeg) -> None:
        self._legs.add(leg)
        if self._allowed and not any(ipaddress.ip_address(leg.peer) in network for network in self._allowed):
            self._refuse(leg, "address")
        elif len(self._legs) > self.capacity + SPARE_CONNECTIONS:
            self._refuse(leg, "too_many_connections")

    def leg_identified(self, leg: MediaLeg, leg_uuid: str) -> None:
        task = asyncio.create_task(self._serve(leg, leg_uuid), name=f"call {leg_uuid}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def leg_closed(self, leg: MediaLeg) -> None:
        self._legs.discard(leg)
        if leg.end_reason != "refused" and not leg.leg_uuid:
            self._refuse_count("no_uuid")

    # Inside

    def _refuse(self, leg: MediaLeg, why: str) -> None:
        self._refuse_count(why)
        log.warning("leg_refused", why=why, peer=leg.peer, leg_uuid=leg.leg_uuid)
        leg.refuse(why)

    def _refuse_count(self, why: str) -> None:
        self.refused[why] = self.refused.get(why, 0) + 1

    async def _serve(self, leg: MediaLeg, leg_uuid: str) -> None:
        try:
            spec = await self._source.take(leg_uuid, leg.peer)
        except SpecRefused as refused:
            self._refuse(leg, refused.why)
            return
        except Unavailable as error:
            log.error("call_spec_unavailable", detail=str(error), leg_uuid=leg_uuid)
            self._refuse(leg, "store_unavailable")
            return
        if isinstance(leg, WebSocketLeg) and leg.media_format is not spec.media_format:
            self._refuse(leg, "format")
            return
        if spec.leg_number and not spec.begins:
            self._take_place(leg, spec)
            return
        before = self.calls.get(spec.call_id)
        if before is not None and before.spec.lease_token < spec.lease_token:
            # It went to another worker while this one did not answer, and has come back.
            before.stop(EndReason.LEG_CLOSED, GIVEN_AWAY)
            before = None
        if before is not None or len(self.calls) >= self.capacity:
            self._refuse(leg, "full" if before is None else "duplicate")
            return
        call = MediaCall(leg, spec, self._services)
        self.calls[spec.call_id] = self._ordered[spec.leg_uuid] = call
        if isinstance(leg, RtpLeg):
            call.attached()
        if self._stopping:
            # It was still asking for its spec when all calls were stopped; its controller is told like theirs.
            call.stop(EndReason.WORKER_STOPPED, STOPPED)
        try:
            await call.run(lambda report: self._source.report(spec, report))
        finally:
            add(self._past, call.counters())
            reason = call.end_reason.value
            self.ended[reason] = self.ended.get(reason, 0) + 1
            self._carried.append(spec.call_id)
            if self._ordered.get(spec.leg_uuid) is call:
                del self._ordered[spec.leg_uuid]
            if self.calls.get(spec.call_id) is call:
                del self.calls[spec.call_id]
            call.let_go()

    def _take_place(self, leg: MediaLeg, spec: CallSpec) -> None:
        """A leg for a call that has had one."""
        call = self.calls.get(spec.call_id)
        why = "not_held" if call is None else call.attach(leg, spec)
        if why:
            self._refuse(leg, why)
        elif call is not None and isinstance(leg, RtpLeg):
            call.attached()

    def order(self, order: LegOrder) -> None:
        """What a controller asks; of a leg that is not here, nothing."""
        if order.order == "open":
            self._open(order)
            return
        call = self._ordered.get(order.leg_uuid)
        if call is not None:
            call.order(order)
        elif order.report_stream and order.call_id not in self._carried:
            # Of one that was here the report has gone out.
            self._source.not_here(order)

    def _open(self, order: LegOrder) -> None:
        if self.rtp is None:
            log.error("leg_not_opened", why="this worker has no RTP port", leg_uuid=order.leg_uuid)
            self._refuse_count("no_rtp")
            return
        try:
            remote = parse_address(order.remote)
            leg = RtpLeg(self.clock, self, self.rtp, order.leg_uuid, remote, order.media_format)
        except (OSError, ValueError) as error:
            log.error("leg_not_opened", why=str(error), remote=order.remote, leg_uuid=order.leg_uuid)
            self._refuse_count("no_rtp")
            return
        self.leg_connected(leg)
        if not leg.closed.done():
            self.leg_identified(leg, order.leg_uuid)

    def _coalesce(self) -> None:
        """Once a second: legs have come, and what kept one from it may be over."""
        self._coalesce_some(list(self._legs))

    def _coalesce_some(self, legs: list[MediaLeg]) -> None:
        for leg in legs[:LEGS_AT_ONCE]:
            if isinstance(leg, AudioSocketLeg):
                leg.coalesce(self.load.coalescing)
        if rest := legs[LEGS_AT_ONCE:]:
            asyncio.get_running_loop().call_later(0.01, self._coalesce_some, rest)

    async def _drain(self, stop: StopSignal) -> None:
        """Returns when no call is here or on its way, when the time for that is over, or when it is to end at once."""
        self.draining = True
        seconds = self._options.drain_seconds
        self.readiness.drain_until = asyncio.get_running_loop().time() + seconds
        log.info("worker_draining", calls=self.active, seconds=seconds)
        notify("STOPPING=1")
        self.readiness.tell_supervisor()
        await self.readiness.announce()
        at_once = asyncio.create_task(stop.at_once.wait(), name="stop at once")
        try:
            async with asyncio.timeout_at(self.readiness.drain_until):
                while (self._tasks or self._on_their_way()) and not at_once.done():
                    await asyncio.wait(
                        (*self._tasks, at_once),
                        timeout=None if self._tasks else DRAIN_POLL_SECONDS,
                        return_when=asyncio.FIRST_COMPLETED,
                    )
                    if not self._tasks:
                        await self.readiness.announce()
        except TimeoutError:
            log.warning("drain_time_over", calls=self.active, on_their_way=len(self._on_their_way()))
        finally:
            at_once.cancel()

    def _on_their_way(self) -> set[str]:
        handed = set() if self._direct is None else self._direct.calls()
        return (self.readiness.given | handed).difference(self.calls, self._carried)

    async def _serve_websockets(self) -> asyncio.Server | None:
        options = self._options
        if not options.websocket_host:
            return None
        host, port = options.websocket_host, options.websocket_port
        try:
            server = await listen_websocket(host, port, self.clock, self, LISTEN_BACKLOG)
        except OSError as error:
            raise ConfigError(
                f"gateway.websocket_listen {host}:{port}: {error.strerror}: is another worker running there?"
            ) from None
        self.websocket_port = server.sockets[0].getsockname()[1]
        return server

    async def _serve_status(self) -> web.AppRunner | None:
        options = self._options
        if not options.status_host:
            return None
        runner = web.AppRunner(status_app(self, self._direct), access_log=None)
        await runner.setup()
        try:
            await web.TCPSite(runner, options.status_host, options.status_port).start()
        except OSError as error:
            await runner.cleanup()
            raise ConfigError(
                f"gateway.status_listen {options.status_host}:{options.status_port}: {error.strerror}:"
                " is another worker running there?"
            ) from None
        return runner
