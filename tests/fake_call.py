"""The controller's neighbours, written by hand: Asterisk, worker, leases and records that fail when they are told to.

What is right is taken from the real ones: which status a request about a channel that is gone is answered with, which
events come for what, and in which order. Every request has a name (a step), and a test may put a fault on it.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, cast

from msgspec.structs import replace

from ari_app.ari.errors import AriInvalid, AriNotFound, AriUnavailable
from ari_app.ari.events import ChannelDestroyed, ChannelHangupRequest, Event, StasisEnd, StasisStart
from ari_app.ari.models import AsteriskInfo, Bridge, BuildStatus, BuildSystem, CallerId, Channel, DialplanPoint, EpochMs
from ari_app.call.machine import State
from ari_app.controller.controller import Controller
from ari_app.domain.ids import BridgeId, ChannelId, Kind, parse
from ari_app.domain.pbx_breaker import PbxBreaker
from ari_app.errors import NoCapacity
from ari_app.fleet.leases import Held, Lease, Renewal
from ari_app.settings import Config
from ari_app.store.present import Command
from ari_app.store.records import CallEvent, CallRow
from audiosocket.callspec import (
    CallNotice,
    CallReport,
    CallSpec,
    EndReason,
    LegOrder,
    MediaFigures,
    Milestone,
    NoticeEvent,
    WorkerInfo,
)
from audiosocket.runtime.config import validate
from tests.worker_rig import until

CALLER = ChannelId("1795226880.12")
NUMBER = "+918000000001"
MEDIA_ADDRESS = "127.0.0.1:14000"
"""Where Asterisk has its end of an RTP leg."""
WORKER = WorkerInfo(
    worker_id="gw/0",
    node="gw",
    host="127.0.0.1",
    port=9092,
    status_url="",
    capacity=10,
    active=0,
    draining=False,
    version="1",
    started_at_ms=1000,
)
TOKEN = 1_795_000_000_000_000
"""Of every lease."""

PATIENT_SECONDS = 120
"""Longer than any limit of a call that is set up or ended takes; tests against these neighbours run in virtual time."""

Hook = Callable[["Neighbours"], Awaitable[None]]
MADE: list[Neighbours] = []
"""Those whose controllers are to be stopped after the test."""


def kind_of(identifier: str) -> Kind | None:
    """What a channel is to us; None: the caller's, or a stranger's."""
    ours = parse(identifier)
    return None if ours is None else ours.kind


def config(
    answer: str = "at_once",
    application: dict[str, Any] | None = None,
    *,
    following: dict[str, Any] | None = None,
    **controller: Any,
) -> Config:
    """A configuration with one trunk, and one application (and one that may follow it, with `following`)."""
    secret = {"env": "PATH"}  # the one variable that is set everywhere
    data: dict[str, Any] = {
        "node": "pbx-1",
        "store": "embedded",
        "asterisk": {"ari": {"password": secret}, "ami": {"password": secret}, "music": {"calm": "/srv/music"}},
        "trunks": {"carrier": {"identify": ["10.0.0.1"], "max_calls": 5, "contact": "10.0.0.1:5060"}},
        "applications": {
            "bot": {"url": "ws://bot/"} | (application or {}),
            "next": {"url": "ws://next/", "after": {"extension": "next-done"}} | (following or {}),
        },
        "routes": [{"did": NUMBER, "application": "bot", "max_seconds": 600, "answer": answer}],
        "controller": controller,
    }
    return validate(Config, data, Path("trunkbridge.yml"))


@dataclass
class Fault:
    """What happens at a step: before the request has its effect, or after it."""

    before: Hook | None = None
    after: Hook | None = None
    times: int = 1


def channel(identifier: str, number: str = "+919000000001", app: str = "trunkbridge") -> Channel:
    """A channel in our application."""
    return Channel(
        id=ChannelId(identifier),
        name=f"PJSIP/carrier-{identifier}",
        state="Ring",
        caller=CallerId(number=number),
        dialplan=DialplanPoint(app_name="Stasis", app_data=f"{app},inbound,carrier,{NUMBER}"),
        created_at_ms=EpochMs(time.time_ns() // 1_000_000),
    )


class Records:
    """In the place of `RecordWriter` and `CallStore`."""

    def __init__(self) -> None:
        self.rows: list[CallRow] = []
        self.events: list[CallEvent] = []
        self.open: list[CallRow] = []
        self.error: Exception | None = None
        """Raised by every read."""

    def call(self, row: CallRow) -> None:
        self.rows.append(row)

    def event(self, event: CallEvent) -> None:
        self.events.append(event)

    async def open_calls(self, node: str) -> list[CallRow]:
        if self.error:
            raise self.error
        return [row for row in self.open if row.node == node]

    async def knows_caller(self, node: str, channel_id: str, since: datetime) -> bool:
        if self.error:
            raise self.error
        return any(
            row.node == node and row.caller_channel_id == channel_id and row.created_at >= since for row in self.rows
        )

    async def get_call(self, call_id: str) -> CallRow | None:
        if self.error:
            raise self.error
        return next((row for row in reversed(self.rows) if row.call_id == call_id), None)

    @property
    def closed(self) -> list[CallRow]:
        """Rows that say that a call has ended."""
        return [row for row in self.rows if row.ended_at is not None]


@dataclass(repr=False)
class Neighbours:
    """All of them, and the controller between them."""

    config: Config = field(default_factory=config)
    channels: dict[str, Channel] = field(default_factory=dict)
    bridges: dict[str, set[str]] = field(default_factory=dict)
    subscribed: set[str] = field(default_factory=set)
    specs: dict[str, CallSpec] = field(default_factory=dict)
    legs: dict[str, str] = field(default_factory=dict)
    """Media channel to the leg's UUID, for legs that the worker carries."""
    held: dict[str, str] = field(default_factory=dict)
    """Leases: call to worker."""
    steps: list[str] = field(default_factory=list)
    causes: dict[str, int] = field(default_factory=dict)
    """Channel to the cause that it was hung up with."""
    faults: dict[str, Fault] = field(default_factory=dict)
    released: Counter[str] = field(default_factory=Counter)
    granted: Counter[str] = field(default_factory=Counter)
    renewals: list[dict[str, str]] = field(default_factory=list)
    records: Records = field(default_factory=Records)
    started_at_ms: int = 1
    reports: bool = True
    """Whether the worker reports when a leg ends."""
    report_reason: EndReason = EndReason.LEG_CLOSED
    holds: bool = False
    """Whether the worker holds a call whose leg is lost."""
    lost: set[str] = field(default_factory=set)
    """Calls that are held, by the UUID of their first leg."""
    numbers: dict[str, int] = field(default_factory=dict)
    """Of the leg that each call has, or had last."""
    starts_media: bool = True
    """Whether a media channel enters the application."""
    starts_snoop: bool = True
    """Whether a snoop channel does."""
    listened: dict[str, str] = field(default_factory=dict)
    """Snoop channel to the channel that it listens to."""
    rtp: bool = False
    """Whether the worker takes RTP legs."""
    websocket: bool = False
    """Whether it takes WebSocket legs."""
    connects_websockets: bool = True
    """Whether Asterisk can connect them."""
    opens_legs: bool = True
    """Whether it opens those that it is told to."""
    alive: bool = True
    spare: int = 0
    """Further workers, `gw/1` and so on."""
    full: set[str] = field(default_factory=set)
    """Workers that are given no calls."""
    dead: set[str] = field(default_factory=set)
    """Workers that neither listen nor take legs, though they are registered."""
    deaf: set[str] = field(default_factory=set)
    """Workers that know nothing of a call that they are given: they end its leg."""
    hears_orders: bool = True
    first_word: str = "connected"
    """The worker's notice of a held leg; empty: it gives none."""
    sent_to: dict[str, str] = field(default_factory=dict)
    """By a call's first leg at its worker, that worker."""
    orders: list[tuple[str, LegOrder]] = field(default_factory=list)
    tokens: dict[str, int] = field(default_factory=dict)
    """Of the leases, by call."""
    silent_seconds: float = 3.0
    """Age of the heartbeat of a worker that is dead."""
    run: int = WORKER.started_at_ms
    """Which run of the workers is registered."""
    dialplan: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Channels that went on in the dialplan: context and extension."""
    variables: dict[str, dict[str, str]] = field(default_factory=dict)
    limits: dict[str, int] = field(default_factory=dict)
    """Applications' limits that were set at run time."""
    asked_for: dict[str, str] = field(default_factory=dict)
    """Call to application, of those that were granted a lease."""
    line: list[str] = field(default_factory=list)
    """Calls that wait, in their order."""
    music: dict[str, str] = field(default_factory=dict)
    """What callers hear who wait."""
    digits: list[str] = field(default_factory=list)
    """What was sent to callers."""
    tasks: deque[asyncio.Task[None]] = field(default_factory=deque)
    breaker: PbxBreaker = field(default_factory=PbxBreaker)

    def __post_init__(self) -> None:
        anything = cast(Any, self)
        MADE.append(self)
        self.controller = Controller(
            self.config, anything, anything, anything, cast(Any, self.records), cast(Any, self.records)
        )

    # What happens out there

    def arrive(self, identifier: str = CALLER, line: str = "carrier", dialled: str = NUMBER) -> None:
        """A call comes in."""
        self.channels[identifier] = channel(identifier)
        self.emit(StasisStart(**self._about(identifier), args=["inbound", line, dialled]))

    def emit(self, event: Event) -> None:
        """Hands an event to the controller, in order, but not at once."""
        asyncio.get_running_loop().call_soon(self.controller.on_event, event)

    def destroy(self, identifier: str, cause: int = 16, *, requested: bool = False, silent: bool = False) -> None:
        """A channel ends; `requested`: by its own side, `silent`: and nobody is told."""
        gone = self.channels.get(identifier)
        if gone is None:
            return
        about = self._about(identifier)
        del self.channels[identifier]
        for members in self.bridges.values():
            members.discard(identifier)
        if requested and not silent:
            self.emit(ChannelHangupRequest(**about, cause=cause))
        # A snoop goes with the channel that it listens to, and a moment earlier.
        for snoop in [snoop for snoop, listened in self.listened.items() if listened == identifier]:
            self.destroy(snoop, silent=silent)
        if not silent:
            self.emit(StasisEnd(**about))
            # A channel that came through the dialplan is silent from here on, unless it was subscribed to.
            if identifier in self.subscribed or kind_of(identifier) is Kind.MEDIA:
                self.emit(ChannelDestroyed(**about, cause=cause, cause_txt="x"))
        leg = None if self.rtp else self.legs.pop(identifier, None)
        if leg is not None and self.holds:
            self.lose(leg)
        elif leg is not None and self.reports:
            self.report(leg)

    def lose(self, leg: str) -> None:
        """The worker has lost a leg, and waits for another one."""
        first = self.first_leg(leg)
        if self.numbers.get(first, 0) == self.specs[leg].leg_number:
            self.lost.add(first)
            self.notice(first, "leg_lost")

    def first_leg(self, leg: str) -> str:
        """The call's name to its worker: the leg with which that got it."""
        call_id, first = self.specs[leg].call_id, ""
        for uuid, spec in self.specs.items():
            if spec.call_id == call_id and (spec.begins or not spec.leg_number):
                first = uuid
            if uuid == leg:
                break
        return first

    def worker_of(self, leg: str) -> str:
        """The worker that a leg was meant for."""
        return self.sent_to.get(self.first_leg(leg), WORKER.worker_id)

    def kill(self, worker_id: str = WORKER.worker_id) -> None:
        """A worker dies: Asterisk's connections to it are reset, and nobody reports."""
        self.dead.add(worker_id)
        for media, leg in [(media, leg) for media, leg in self.legs.items() if self.worker_of(leg) == worker_id]:
            self.lost.discard(self.first_leg(leg))
            del self.legs[media]
            if not self.rtp:
                self.destroy(media)

    def take(self, leg: str) -> None:
        """The worker has a leg."""
        number = self.specs[leg].leg_number
        if number and not self.specs[leg].begins:
            first = self.first_leg(leg)
            self.numbers[first] = number
            self.lost.discard(first)
        elif number:
            self.numbers[leg] = number

    def report(self, leg: str, reason: EndReason | None = None, **more: Any) -> None:
        """The worker reports the end of a leg."""
        spec = self.specs[self.first_leg(leg)]
        self._start(self.controller.on_report(self.report_of(spec, reason or self.report_reason, **more)))

    def end_media(self, reason: EndReason, **more: Any) -> None:
        """The worker ends the leg of the one call, and says why."""
        assert self.media is not None
        leg = self.legs.pop(self.media)
        self.destroy(self.media)
        self.report(leg, reason, **more)

    def notice(self, leg: str, event: NoticeEvent, digits: str = "", recording: str = "", at_ms: int = 0) -> None:
        """The worker tells something of a leg that goes on."""
        spec = self.specs[leg]
        first = self.first_leg(leg)
        told = CallNotice(
            call_id=spec.call_id,
            leg_uuid=first,
            event=event,
            digits=digits,
            leg_number=self.numbers.get(first, 0),
            media_format=spec.media_format,
            recording=recording,
            at_ms=at_ms,
        )
        asyncio.get_running_loop().call_soon(self.controller.on_notice, told)

    @staticmethod
    def report_of(spec: CallSpec, reason: EndReason, **more: Any) -> CallReport:
        values: dict[str, Any] = {"recording": "/recordings/2026-01-02/0123.wav"} | more
        return CallReport(
            call_id=spec.call_id,
            leg_uuid=spec.leg_uuid,
            worker_id=WORKER.worker_id,
            reason=reason,
            detail="as the worker saw it",
            started_at_ms=0,
            ended_at_ms=1,
            figures=MediaFigures(frames_played=7),
            milestones=[Milestone(1, "ended", {"reason": reason.value})],
            **values,
        )

    @property
    def media(self) -> str | None:
        """The media channel, while there is one."""
        return next((identifier for identifier in self.channels if kind_of(identifier) is Kind.MEDIA), None)

    @property
    def snooping(self) -> str | None:
        """The snoop channel, while there is one."""
        return next((identifier for identifier in self.channels if kind_of(identifier) is Kind.SNOOP), None)

    async def order_hangup(self) -> None:
        """An operator hangs all calls up."""
        for call_id in list(self.controller._live.actors):
            await self.controller.on_command(Command(verb="hangup", call_id=call_id, by="a test"))

    async def stop(self) -> None:
        """Stops the controller, and whatever goes on around it."""
        await self.controller.stop()
        while self.tasks:
            await self.tasks.popleft()

    # Waiting for it

    async def arrived(self) -> None:
        """Waits until the controller has a call, or had it: it may be over at once."""
        await until(lambda: self.controller._live.counts["calls"], "the call's arrival", PATIENT_SECONDS)

    async def talking(self) -> None:
        """Waits until a call is up, or over."""
        await self.reached(State.TALKING)

    async def reached(self, *states: State) -> None:
        """Waits until a call is in one of these states, or over."""
        actors = self.controller._live.actors
        await until(
            lambda: all(actor.machine.state in states for actor in actors.values()), f"{states}", PATIENT_SECONDS
        )

    async def over(self) -> None:
        """Waits until no call is left."""
        await until(lambda: not self.controller._live._tasks and not self.controller.active, "the end", PATIENT_SECONDS)
        while self.tasks:
            await self.tasks.popleft()
        await asyncio.sleep(0)

    # Steps

    async def _step(self, name: str, effect: Callable[[], Any] = lambda: None) -> Any:
        self.steps.append(name)
        fault = self.faults.get(name)
        if fault is not None:
            fault.times -= 1
            if not fault.times:
                del self.faults[name]
        await asyncio.sleep(0)
        if fault is not None and fault.before is not None:
            await fault.before(self)
        result = effect()
        if fault is not None and fault.after is not None:
            await fault.after(self)
        return result

    def _need(self, identifier: str, error: type[AriNotFound] | type[AriInvalid] = AriNotFound) -> None:
        if identifier not in self.channels:
            raise error("POST", f"/channels/{identifier}", 404 if error is AriNotFound else 400, "Channel not found")

    def _about(self, identifier: str) -> dict[str, Any]:
        return {"application": "trunkbridge", "at_ms": EpochMs(0), "channel": self.channels[identifier]}

    def _start(self, work: Any) -> None:
        self.tasks.append(asyncio.ensure_future(work))

    # AriClient

    async def subscribe(self, identifier: ChannelId) -> None:
        def effect() -> None:
            self._need(identifier, AriInvalid)
            self.subscribed.add(identifier)

        await self._step("subscribe", effect)

    async def answer(self, identifier: ChannelId) -> None:
        await self._step("answer", lambda: self._need(identifier))

    async def ring(self, identifier: ChannelId) -> None:
        await self._step("ring", lambda: self._need(identifier))

    async def start_music(self, identifier: ChannelId, music: str) -> None:
        def effect() -> None:
            self._need(identifier)
            self.music[identifier] = music

        await self._step("start_music", effect)

    async def stop_music(self, identifier: ChannelId) -> None:
        def effect() -> None:
            self._need(identifier)
            del self.music[identifier]

        await self._step("stop_music", effect)

    async def send_dtmf(self, identifier: ChannelId, digits: str) -> None:
        def effect() -> None:
            self._need(identifier)
            self.digits.append(digits)

        await self._step("send_dtmf", effect)

    async def set_variables(self, identifier: ChannelId, values: dict[str, str]) -> None:
        def effect() -> None:
            self._need(identifier)
            self.variables[identifier] = dict(values)

        await self._step("set_variables", effect)

    async def continue_in_dialplan(self, identifier: ChannelId, *, context: str, extension: str) -> None:
        def effect() -> None:
            self._need(identifier)
            self.dialplan[identifier] = (context, extension)
            self.emit(StasisEnd(**self._about(identifier)))
            self.channels[identifier] = channel(identifier, app="")
            for members in self.bridges.values():
                members.discard(identifier)

        await self._step("continue", effect)

    def _connect(self, host: str, leg_uuid: str, port: int) -> bool:
        """Asterisk connects to a worker; whether that takes the leg."""
        assert leg_uuid in self.specs, "the worker must find the spec when Asterisk dials it"
        address, _, at = host.rpartition(":")
        worker = f"gw/{int(at) - port}"
        assert address == "127.0.0.1"
        assert worker == WORKER.worker_id or self.spare, host
        if worker in self.dead and port != 9292:  # of an RTP leg nobody knows whether somebody is there
            raise AriUnavailable("POST", "/channels/externalMedia", 500, "Connection refused")
        if self.first_leg(leg_uuid) == leg_uuid:
            self.sent_to[leg_uuid] = worker
        return worker not in self.deaf

    async def external_media(self, identifier: ChannelId, *, host: str, leg_uuid: str, media_format: str) -> None:
        def effect() -> None:
            taken = self._connect(host, leg_uuid, 9092)
            self.channels[identifier] = channel(identifier)
            if not taken:
                self.emit(StasisStart(**self._about(identifier), args=[leg_uuid]))
                self.destroy(identifier)
                return
            self.legs[identifier] = leg_uuid
            self.take(leg_uuid)
            if self.starts_media:
                self.emit(StasisStart(**self._about(identifier), args=[leg_uuid]))
            if self.specs[leg_uuid].held and self.first_word:
                self.notice(leg_uuid, cast(Any, self.first_word))

        await self._step("external_media", effect)

    async def snoop(self, channel_id: ChannelId, snoop_id: ChannelId) -> None:
        def effect() -> None:
            self._need(channel_id)
            self.channels[snoop_id] = channel(snoop_id)
            self.listened[snoop_id] = channel_id
            if self.starts_snoop:
                self.emit(StasisStart(**self._about(snoop_id), args=[]))

        await self._step("snoop", effect)

    async def external_rtp(
        self, identifier: ChannelId, *, host: str, leg_uuid: str, media_format: str
    ) -> tuple[Channel, str]:
        def effect() -> None:
            assert media_format == "alaw"
            self._connect(host, leg_uuid, 9292)
            self.channels[identifier] = replace(channel(identifier), name="UnicastRTP/127.0.0.1:9292-0x1")
            self.legs[identifier] = leg_uuid
            if self.starts_media:
                self.emit(StasisStart(**self._about(identifier), args=[leg_uuid]))

        await self._step("external_rtp", effect)
        return channel(identifier), MEDIA_ADDRESS

    async def external_websocket(self, identifier: ChannelId, *, host: str, leg_uuid: str, media_format: str) -> None:
        def effect() -> None:
            self._connect(host, leg_uuid, 9392)
            self.channels[identifier] = channel(identifier)
            if not self.starts_media:
                return
            if self.connects_websockets:
                self.legs[identifier] = leg_uuid
                self.take(leg_uuid)
                self.emit(StasisStart(**self._about(identifier), args=[leg_uuid]))
                if self.specs[leg_uuid].held and self.first_word:
                    self.notice(leg_uuid, cast(Any, self.first_word))
            else:
                gone = ChannelDestroyed(**self._about(identifier), cause=3, cause_txt="No route to destination")
                del self.channels[identifier]
                self.emit(gone)

        await self._step("external_websocket", effect)

    async def create_bridge(self, identifier: BridgeId) -> None:
        def effect() -> None:
            self.bridges[identifier] = set()

        await self._step("create_bridge", effect)

    async def add_to_bridge(self, identifier: BridgeId, *channel_ids: ChannelId) -> None:
        def effect() -> None:
            for member in channel_ids:
                self._need(member, AriInvalid)
            self.bridges[identifier].update(channel_ids)

        await self._step("add_to_bridge", effect)

    async def hangup(self, identifier: ChannelId, cause: int = 16, *, missing_ok: bool = False) -> bool:
        def effect() -> bool:
            if identifier not in self.channels:
                assert missing_ok
                return False
            self.causes[identifier] = int(cause)
            self.destroy(identifier, int(cause))
            return True

        steps = {Kind.MEDIA: "hangup_media", Kind.SNOOP: "hangup_snoop"}
        kind = kind_of(identifier)
        return bool(await self._step("hangup_caller" if kind is None else steps[kind], effect))

    async def destroy_bridge(self, identifier: BridgeId, *, missing_ok: bool = False) -> bool:
        return bool(await self._step("destroy_bridge", lambda: self.bridges.pop(identifier, None) is not None))

    async def get_channel(self, identifier: ChannelId) -> Channel:
        await self._step("get_channel", lambda: self._need(identifier))
        return self.channels[identifier]

    async def list_channels(self) -> list[Channel]:
        return list(await self._step("list_channels", lambda: list(self.channels.values())))

    async def list_bridges(self) -> list[Bridge]:
        return [
            Bridge(id=BridgeId(identifier), bridge_type="mixing", channels=[ChannelId(member) for member in members])
            for identifier, members in self.bridges.items()
        ]

    async def ping(self, _seconds: float) -> None:
        await self._step("ping")

    async def info(self) -> AsteriskInfo:
        return AsteriskInfo(
            system=BuildSystem(version="22"), status=BuildStatus(started_at_ms=EpochMs(self.started_at_ms))
        )

    # Leases and Present

    async def leave_queue(self, call_id: str, application: str) -> None:
        await self._step("leave_queue", lambda: self.line.remove(call_id) if call_id in self.line else None)

    async def acquire(
        self,
        call_id: str,
        *,
        application: str = "",
        limit: int | None = None,
        line_max: int = 0,
        exclude: Collection[str] = (),
    ) -> Lease:
        def effect() -> Lease:
            most = self.limits.get(application, limit)
            ahead = self.line.index(call_id) if call_id in self.line else len(self.line)
            taken = sum(each == application for call, each in self.asked_for.items() if call in self.held)
            if most is not None and most - taken <= ahead and call_id not in self.held:
                if call_id not in self.line and ahead < line_max:
                    self.line.append(call_id)
                raise NoCapacity("app_full", "scripted", ahead + 1 if call_id in self.line else 0)
            if call_id in self.line:
                self.line.remove(call_id)
            for info in self._workers() if self.alive else []:
                if info.worker_id not in exclude and info.worker_id not in self.full:
                    self.asked_for[call_id] = application
                    if self.held.get(call_id) != info.worker_id:
                        self.granted[call_id] += 1
                        self.tokens[call_id] = TOKEN + sum(self.granted.values()) - 1
                    self.held[call_id] = info.worker_id
                    return Lease(info, self.tokens[call_id], self.config.node)
            if all(info.worker_id in exclude for info in self._workers()):
                raise NoCapacity("no_workers")
            raise NoCapacity("all_full", "every media worker is at its capacity")

        return cast(Lease, await self._step("acquire", effect))

    async def release(self, call_id: str, token: int) -> bool:
        def effect() -> bool:
            assert token in (0, self.tokens.get(call_id, TOKEN))
            self.released[call_id] += 1
            return self.held.pop(call_id, None) is not None

        return bool(await self._step("release", effect))

    async def renew(self, held: dict[str, Held]) -> Renewal:
        await self._step("renew")
        self.renewals.append({call_id: lease.worker_id for call_id, lease in held.items()})
        return Renewal(tokens={call_id: TOKEN for call_id, lease in held.items() if not lease.token})

    def _workers(self) -> list[WorkerInfo]:
        return [
            replace(
                WORKER,
                started_at_ms=self.run,
                worker_id=f"gw/{number}",
                port=9092 + number,
                rtp_port=9292 + number if self.rtp else 0,
                websocket_port=9392 + number if self.websocket else 0,
            )
            for number in range(1 + self.spare)
        ]

    async def send_order(self, worker_id: str, order: LegOrder) -> bool:
        def effect() -> bool:
            self.orders.append((worker_id, order))
            if worker_id in self.dead:
                return False
            leg = order.leg_uuid
            if order.order == "open" and self.opens_legs and self.hears_orders:
                assert order.remote == MEDIA_ADDRESS
                self.take(leg)
                self.notice(leg, "attached")
                if self.specs[leg].held and self.first_word:
                    self.notice(leg, cast(Any, self.first_word))
            if order.order == "lost" and self.holds and self.hears_orders and worker_id not in self.deaf:
                self.legs = {media: known for media, known in self.legs.items() if self.first_leg(known) != leg}
                if leg not in self.lost or self.numbers.get(leg, 0) <= order.leg_number:
                    self.lost.add(leg)
                    self.notice(leg, "leg_lost")
            if order.report_stream and worker_id in self.deaf:
                self.notice(leg, "not_here")
            carried = [media for media, known in self.legs.items() if self.first_leg(known) == leg]
            if order.order == "end" and (carried or leg in self.lost) and self.hears_orders:
                self.legs = {media: known for media, known in self.legs.items() if media not in carried}
                self.lost.discard(leg)
                if self.reports:
                    self.report(leg)
            return self.hears_orders

        return bool(await self._step("send_order", effect))

    async def workers(self) -> list[WorkerInfo]:
        await self._step("workers")
        return self._workers() if self.alive else []

    async def heartbeats(self) -> dict[str, tuple[WorkerInfo, float]]:
        await self._step("heartbeats")
        ages = {True: self.silent_seconds, False: 0.0}
        return {info.worker_id: (info, ages[info.worker_id in self.dead]) for info in self._workers() if self.alive}

    async def put_spec(self, spec: CallSpec) -> None:
        def effect() -> None:
            self.specs[spec.leg_uuid] = spec

        await self._step("put_spec", effect)
