"""The ARI client, the event stream and the AMI connection against a real Asterisk with the rendered configuration."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import TypeVar

import pytest

from ari_app.ami import AmiClient, AmiLoginRefused, AmiRejected, AmiUnavailable
from ari_app.ari.client import AriClient
from ari_app.ari.errors import (
    AppReplaced,
    AriConflict,
    AriInvalid,
    AriNotFound,
    AriRejected,
    AriUnauthorized,
    AriUnavailable,
)
from ari_app.ari.events import (
    BridgeDestroyed,
    ChannelDestroyed,
    ChannelEnteredBridge,
    ChannelHangupRequest,
    ChannelHold,
    ChannelLeftBridge,
    ChannelStateChange,
    ChannelUnhold,
    Event,
    StasisEnd,
    StasisStart,
)
from ari_app.ari.stream import EventStream
from ari_app.domain import ids
from ari_app.domain.ids import BridgeId, CallId, ChannelId, LegUuid
from tests.pbx import ULAW_CARRIER, StartPbx, ears, sipp
from tests.worker_rig import until
from tools.asterisk.instance import AsteriskInstance
from tools.asterisk.local import free_ports

pytestmark = pytest.mark.asterisk

CALLER, NUMBER = "+919811111111", "+918000000001"
SILENCE = b"\x10" + (320).to_bytes(2, "big") + bytes(320)
EventT = TypeVar("EventT", bound=Event)


@contextlib.asynccontextmanager
async def media_server() -> AsyncIterator[str]:
    """A media server that says silence on the clock and hears nothing; its address."""
    over = asyncio.Event()
    legs: list[asyncio.Task[None] | None] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        legs.append(asyncio.current_task())
        hears = asyncio.create_task(reader.read())
        while not hears.done() and not over.is_set():
            writer.write(SILENCE)
            await asyncio.sleep(0.02)
        writer.transport.abort()
        await asyncio.gather(hears, return_exceptions=True)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        over.set()
        server.close()
        await asyncio.gather(*filter(None, legs))


@dataclass
class Wire:
    """A path to Asterisk that can be cut."""

    url: str = ""
    _ends: set[asyncio.StreamWriter] = field(default_factory=set)
    carrying: list[asyncio.Task[None] | None] = field(default_factory=list)
    whole: bool = True

    def cut(self) -> None:
        self.whole = False
        for end in list(self._ends):
            end.transport.abort()

    async def carry(self, host: str, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.carrying.append(asyncio.current_task())
        if not self.whole:
            writer.transport.abort()
            return
        far_reader, far_writer = await asyncio.open_connection(host, port)
        self._ends |= {writer, far_writer}

        async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            with contextlib.suppress(ConnectionError):
                while data := await source.read(65536):
                    target.write(data)
            target.close()

        await asyncio.gather(copy(reader, far_writer), copy(far_reader, writer))
        self._ends -= {writer, far_writer}


@contextlib.asynccontextmanager
async def wire_to(pbx: AsteriskInstance) -> AsyncIterator[Wire]:
    host, _, port = pbx.config.asterisk.ari.listen.rpartition(":")
    wire = Wire()
    server = await asyncio.start_server(lambda r, w: wire.carry(host, int(port), r, w), "127.0.0.1", 0)
    wire.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield wire
    finally:
        server.close()
        wire.cut()
        await asyncio.gather(*filter(None, wire.carrying), return_exceptions=True)


def client_of(pbx: AsteriskInstance, url: str = "", password: str = "") -> AriClient:
    ari = pbx.config.asterisk.ari
    secret = password or ari.password.get_secret_value()
    return AriClient(url or f"http://{ari.listen}", ari.username, secret, pbx.config.asterisk.app)


def ami_of(pbx: AsteriskInstance, password: str = "") -> AmiClient:
    ami = pbx.config.asterisk.ami
    host, _, port = ami.listen.rpartition(":")
    return AmiClient(host, int(port), ami.username, password or ami.password.get_secret_value())


class Desk:
    """A controller's view: the stream's callbacks, and a way to wait for an event."""

    def __init__(self, ari: AriClient) -> None:
        self.ari = ari
        self.events: list[Event] = []
        self.found: list[list[ChannelId]] = []
        """The channels that each reconcile saw."""
        self.losses: list[str] = []
        self.stream = EventStream(
            ari,
            on_event=self.events.append,
            on_connected=self._look,
            on_lost=self.losses.append,
            heartbeat_seconds=1.0,
        )

    async def _look(self) -> None:
        self.found.append([channel.id for channel in await self.ari.list_channels()])

    async def next(self, kind: type[EventT], about: Callable[[EventT], bool] = lambda event: True) -> EventT:
        """The first event of the kind, of those that have not been asked for."""

        def found() -> EventT | None:
            return next((event for event in self.events if isinstance(event, kind) and about(event)), None)

        event: EventT = await until(found, f"{kind.__name__} among {[type(e).__name__ for e in self.events]}", 10)
        self.events.remove(event)
        return event

    async def destroyed(self, channel: ChannelId) -> ChannelDestroyed:
        return await self.next(ChannelDestroyed, lambda event: event.channel.id == channel)


@contextlib.asynccontextmanager
async def desk_at(ari: AriClient) -> AsyncIterator[Desk]:
    desk = Desk(ari)
    task = asyncio.create_task(desk.stream.run())
    try:
        await until(lambda: desk.stream.live or task.done(), "live", 10)
        yield desk
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@contextlib.asynccontextmanager
async def calling(pbx: AsteriskInstance, scenario: str, status: int = 200) -> AsyncIterator[None]:
    """A caller who is there for the length of the block, and whose scenario must have gone as written."""
    async with ears(ULAW_CARRIER) as rtp:
        caller = asyncio.create_task(
            sipp(pbx, scenario, ULAW_CARRIER, status=status, caller=CALLER, number=NUMBER, rtp_port=str(rtp.port))
        )
        try:
            yield
            await caller
        finally:
            caller.cancel()
            await asyncio.gather(caller, return_exceptions=True)


@dataclass
class Call:
    """A caller and media in a bridge."""

    caller: ChannelId
    media: ChannelId
    bridge: BridgeId


def new_call() -> CallId:
    return ids.new_call_id(os.urandom)


def new_leg() -> LegUuid:
    return ids.new_leg_uuid(os.urandom)


async def connect(desk: Desk, host: str, node: str = "pbx-1") -> Call:
    """Answers the next caller and bridges media in, as a controller does."""
    call_id = new_call()
    start = await desk.next(StasisStart)
    call = Call(start.channel.id, ids.media_channel_id(node, call_id, 0), ids.bridge_id(node, call_id))
    await desk.ari.subscribe(call.caller)
    await desk.ari.answer(call.caller)
    leg = new_leg()
    await desk.ari.external_media(call.media, host=host, leg_uuid=leg, media_format="ulaw")
    ours = await desk.next(StasisStart)
    assert (ours.channel.id, ours.args) == (call.media, [leg])
    await desk.ari.create_bridge(call.bridge)
    await desk.ari.add_to_bridge(call.bridge, call.caller, call.media)
    entered = [(await desk.next(ChannelEnteredBridge)).channel for _ in range(2)]
    assert {channel.id for channel in entered if channel is not None} == {call.caller, call.media}
    return call


async def test_a_call_from_its_arrival_to_its_end(pbx: AsteriskInstance) -> None:
    async with media_server() as host, client_of(pbx) as ari, desk_at(ari) as desk:
        assert (await ari.info()).system.version.startswith(("20.", "22.", "23."))
        async with calling(pbx, "call_until_bye.xml"):
            start = await desk.next(StasisStart)
            caller = start.channel
            desk.events.insert(0, start)
            assert start.args == ["inbound", "carrier-ulaw", NUMBER]
            assert (caller.state, caller.caller.number, caller.dialplan.exten) == ("Ring", CALLER, NUMBER)
            assert 0 <= start.at_ms - caller.created_at_ms < 5000
            call = await connect(desk, host)

            (bridge,) = await ari.list_bridges()
            assert (bridge.id, set(bridge.channels)) == (call.bridge, {call.caller, call.media})
            assert bridge.technology == "simple_bridge"
            assert {channel.id for channel in await ari.list_channels()} == {call.caller, call.media}
            up = await ari.get_channel(call.caller)
            assert (up.state, up.name.split("-")[0]) == ("Up", "PJSIP/carrier")
            await until(lambda: any(isinstance(event, ChannelStateChange) for event in desk.events), "state change")

            await ari.set_variables(call.caller, {"TB_ONE": "a b&c=d+é", "TB_TWO": "2"})
            shown = await pbx.rx(f"core show channel {up.name}")
            assert "TB_ONE=a b&c=d+é\n" in shown
            assert "TB_TWO=2\n" in shown

            await asyncio.sleep(0.3)
            rtp = await ari.rtp_statistics(call.caller)
            assert rtp.txcount > 5, "the server's silence reaches the caller"
            with pytest.raises(AriRejected, match="403"):
                await ari.rtp_statistics(call.media)

            assert await ari.hangup(call.media)
            assert (await desk.destroyed(call.media)).cause == 16
            left = await desk.next(ChannelLeftBridge)
            assert (left.channel.id, left.bridge.channels) == (call.media, [call.caller])
            assert await ari.hangup(call.caller, 41)
            requested = await desk.next(ChannelHangupRequest, lambda event: event.channel.id == call.caller)
            assert (requested.soft, requested.hangup_cause) == (True, None)
            assert (await desk.destroyed(call.caller)).cause == 41
        assert await ari.destroy_bridge(call.bridge)
        await desk.next(BridgeDestroyed)
        assert await ari.hangup(call.caller, missing_ok=True) is False
        assert await ari.destroy_bridge(call.bridge, missing_ok=True) is False
        assert await ari.list_channels() == []
        assert await ari.list_bridges() == []
        counters = desk.stream.counters
        assert (counters.malformed, counters.losses, ari.repeats) == (0, 0, 0)


async def test_the_caller_holds_and_hangs_up(pbx: AsteriskInstance) -> None:
    async with media_server() as host, client_of(pbx) as ari, desk_at(ari) as desk:
        async with calling(pbx, "call_with_hold.xml"):
            call = await connect(desk, host)
            assert (await desk.next(ChannelHold)).channel.id == call.caller
            assert (await desk.next(ChannelUnhold)).channel.id == call.caller
            requested = await desk.next(ChannelHangupRequest)
            # PJSIP leaves the cause of a BYE to the channel's end.
            assert (requested.channel.id, requested.soft, requested.hangup_cause) == (call.caller, False, None)
            assert (await desk.destroyed(call.caller)).cause == 16
            assert await ari.hangup(call.media)
            await desk.destroyed(call.media)
        # The same without a subscription: the end of the application's part is the last that is heard.
        async with calling(pbx, "call_with_hold.xml"):
            start = await desk.next(StasisStart)
            await ari.answer(start.channel.id)
            await desk.next(StasisEnd)
        with pytest.raises(AriNotFound):
            await ari.get_channel(start.channel.id)
        assert not [event for event in desk.events if isinstance(event, ChannelDestroyed)]


async def test_a_caller_is_turned_away_with_a_cause(pbx: AsteriskInstance) -> None:
    async with client_of(pbx) as ari, desk_at(ari) as desk:
        async with calling(pbx, "call_refused.xml.in", status=486):
            await ari.hangup((await desk.next(StasisStart)).channel.id, 17)
        async with calling(pbx, "call_refused.xml.in", status=403):
            await ari.hangup((await desk.next(StasisStart)).channel.id, 21)
        # Back to the dialplan, whose end hangs up: nobody answered.
        async with calling(pbx, "call_refused.xml.in", status=484):
            channel = (await desk.next(StasisStart)).channel.id
            await ari.continue_in_dialplan(channel, context="trunkbridge-refuse", extension="s")
        with pytest.raises(AriNotFound):
            await ari.answer(channel)


async def test_what_asterisk_refuses(start_pbx: StartPbx) -> None:
    pbx = await start_pbx()
    dead = f"127.0.0.1:{free_ports(1)[0]}"
    async with media_server() as host, client_of(pbx) as ari, desk_at(ari) as desk:
        channel, bridge = ids.media_channel_id("pbx-1", new_call(), 0), ids.bridge_id("pbx-1", new_call())
        with pytest.raises(AriRejected, match="POST /channels/externalMedia: 500"):
            await ari.external_media(channel, host=dead, leg_uuid=new_leg(), media_format="ulaw")
        with pytest.raises(AriInvalid, match="data can not be empty"):
            await ari.external_media(channel, host=host, leg_uuid=LegUuid(""), media_format="ulaw")
        with pytest.raises(AriRejected):
            await ari.external_media(channel, host=host, leg_uuid=new_leg(), media_format="mp3")
        await ari.external_media(channel, host=host, leg_uuid=new_leg(), media_format="ulaw")
        await desk.next(StasisStart)
        # Asterisk reports an id that is in use as a fault of its own.
        with pytest.raises(AriRejected, match="500"):
            await ari.external_media(channel, host=host, leg_uuid=new_leg(), media_format="ulaw")
        assert [found.id for found in await ari.list_channels()] == [channel]
        await ari.create_bridge(bridge)
        with pytest.raises(AriConflict, match="already exists"):
            await ari.create_bridge(bridge)
        gone, no_bridge = ChannelId("gone"), BridgeId("gone")
        for request in (ari.answer(gone), ari.hangup(gone), ari.get_channel(gone), ari.destroy_bridge(no_bridge)):
            with pytest.raises(AriNotFound):
                await request
        with pytest.raises(AriNotFound, match="channel was not found"):
            await ari.set_variables(gone, {"X": "1"})
        with pytest.raises(AriInvalid, match="Channel not found"):
            await ari.add_to_bridge(bridge, gone)
        with pytest.raises(AriInvalid):
            await ari.subscribe(gone)
        await ari.hangup(channel)
        assert (await desk.destroyed(channel)).cause == 16
        await ari.destroy_bridge(bridge)
    async with client_of(pbx, password="wrong") as stranger:
        with pytest.raises(AriUnauthorized, match=r"ari\.conf"):
            await stranger.info()
        with pytest.raises(AriUnauthorized):
            await Desk(stranger).stream.run()
    await pbx.kill()  # of a channel that it has refused it keeps something, for which it would wait at a stop


async def test_a_cut_wire_costs_the_events_of_the_gap_and_no_other(pbx: AsteriskInstance) -> None:
    async with (
        media_server() as host,
        wire_to(pbx) as wire,
        client_of(pbx, wire.url) as ari,
        client_of(pbx) as direct,
        desk_at(ari) as desk,
        calling(pbx, "call_until_bye.xml"),
    ):
        call = await connect(desk, host)
        wire.cut()
        await until(lambda: desk.losses, "the loss")
        with pytest.raises(AriUnavailable):
            await ari.info()
        # In the gap: the call goes on, and what happens is not told.
        assert {channel.id for channel in await direct.list_channels()} == {call.caller, call.media}
        await direct.hangup(call.media)
        await until(lambda: len(desk.losses) == 1, "one loss only")
        desk.events.clear()
        wire.whole = True
        await until(lambda: desk.stream.live, "live again", 15)
        assert desk.found == [[], [call.caller]]
        assert desk.events == [], "what happened in the gap is found by looking, not told"
        # After it: events of everything that was subscribed before, and new channels.
        again = ids.media_channel_id("pbx-1", new_call(), 1)
        await ari.external_media(again, host=host, leg_uuid=new_leg(), media_format="ulaw")
        await desk.next(StasisStart)
        await ari.add_to_bridge(call.bridge, again)
        await desk.next(ChannelEnteredBridge)
        await ari.hangup(again)
        await ari.hangup(call.caller)
        assert (await desk.destroyed(call.caller)).cause == 16
        await ari.destroy_bridge(call.bridge)


async def test_the_name_is_taken_by_another(pbx: AsteriskInstance) -> None:
    async with client_of(pbx) as first, client_of(pbx) as second:
        desk = Desk(first)
        loser = asyncio.create_task(desk.stream.run())
        await until(lambda: desk.stream.live, "live", 10)
        async with desk_at(second) as winner:
            with pytest.raises(AppReplaced):
                async with asyncio.timeout(5):
                    await loser
            # The loser's leaving takes nothing from the winner.
            async with calling(pbx, "call_refused.xml.in", status=486):
                await second.hangup((await winner.next(StasisStart)).channel.id, 17)
            assert winner.losses == []
            assert desk.events == []


async def test_asterisk_dies_and_comes_back(start_pbx: StartPbx) -> None:
    pbx = await start_pbx()
    async with client_of(pbx) as ari, desk_at(ari) as desk:
        before = (await ari.info()).status.started_at_ms
        await pbx.kill()
        await until(lambda: desk.losses, "the loss", 5)
        with pytest.raises(AriUnavailable):
            await ari.info()
        await pbx.start()
        await until(lambda: desk.stream.live, "live again", 15)
        assert (await ari.info()).status.started_at_ms > before
        async with calling(pbx, "call_refused.xml.in", status=486):
            await ari.hangup((await desk.next(StasisStart)).channel.id, 17)


async def test_the_operator_looks_and_hangs_up(start_pbx: StartPbx) -> None:
    pbx = await start_pbx()
    async with media_server() as host, client_of(pbx) as ari, desk_at(ari) as desk:
        async with ami_of(pbx) as ami:
            assert await ami.channels() == []
            with pytest.raises(AmiRejected, match="No such channel"):
                await ami.hangup("PJSIP/nobody-1")
        async with calling(pbx, "call_until_bye.xml"):
            call = await connect(desk, host)
            async with ami_of(pbx) as ami:
                rows = {row.channel_id: row for row in await ami.channels()}
                caller = rows[call.caller]
                assert set(rows) == {call.caller, call.media}
                assert (caller.state, caller.caller, caller.exten) == ("Up", CALLER, NUMBER)
                assert (caller.application, caller.bridge_id) == ("Stasis", call.bridge)
                assert caller.application_data == f"{pbx.config.asterisk.app},inbound,carrier-ulaw,{NUMBER}"
                assert 0 <= caller.duration_seconds < 30
                # By name and by unique id.
                await ami.hangup(caller.name, 31)
                await ami.hangup(call.media)
            assert (await desk.destroyed(call.caller)).cause == 31
            await desk.destroyed(call.media)
        await ari.destroy_bridge(call.bridge)
    with pytest.raises(AmiLoginRefused, match="Authentication failed"):
        async with ami_of(pbx, "wrong"):
            pass
    await pbx.stop()
    with pytest.raises(AmiUnavailable, match="Connection refused"):
        async with ami_of(pbx):
            pass
