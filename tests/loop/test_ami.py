"""The operator's AMI connection against a server that is slow, rude or gone."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from ari_app import ami as ami_module
from ari_app.ami import AmiChannel, AmiClient, AmiError, AmiInvalid, AmiLoginRefused, AmiRejected, AmiUnavailable

pytestmark = [pytest.mark.loop, pytest.mark.virtual_time]

LIMIT = 0.8

Headers = dict[str, str]
Serve = Callable[["Peer"], Awaitable[None]]

CHANNEL = {
    "Event": "CoreShowChannel",
    "Channel": "PJSIP/carrier-ulaw-00000001",
    "ChannelStateDesc": "Up",
    "CallerIDNum": "+919811111111",
    "CallerIDName": "Zoë आशा",
    "Context": "trunk-carrier-ulaw",
    "Exten": "+918000000001",
    "Uniqueid": "1795226880.12",
    "Linkedid": "1795226880.12",
    "Application": "Stasis",
    "ApplicationData": "trunkbridge,inbound,carrier-ulaw,+918000000001",
    "Duration": "100:02:03",
    "BridgeId": "",
}


class Peer:
    """The server's side of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.actions: list[Headers] = []

    async def action(self) -> Headers:
        """The next action."""
        said = (await self.reader.readuntil(b"\r\n\r\n")).decode().rstrip()
        headers = dict(line.split(": ", 1) for line in said.split("\r\n"))
        self.actions.append(headers)
        return headers

    def answer(self, action: Headers, *messages: Headers) -> bytes:
        text = ""
        for message in messages:
            headers = {**message, "ActionID": action["ActionID"]}
            text += "".join(f"{name}: {value}\r\n" for name, value in headers.items()) + "\r\n"
        return text.encode()

    async def log_in(self) -> None:
        self.writer.write(b"Asterisk Call Manager/11.0.0\r\n")
        accepted = {"Response": "Success", "Message": "Authentication accepted"}
        self.writer.write(self.answer(await self.action(), accepted))
        # Sent to everybody, whatever was said about events.
        self.writer.write(b"Event: FullyBooted\r\nPrivilege: system,all\r\nStatus: Fully Booted\r\n\r\n")


@contextlib.asynccontextmanager
async def asterisk(serve: Serve) -> AsyncIterator[tuple[AmiClient, list[Peer]]]:
    peers: list[Peer] = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peers.append(peer := Peer(reader, writer))
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await serve(peer)
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield AmiClient("127.0.0.1", port, "operator", "secret", LIMIT), peers
    finally:
        server.close()
        for peer in peers:
            peer.writer.transport.abort()
        await server.wait_closed()


def channel_list(peer: Peer, action: Headers, count: int) -> bytes:
    return peer.answer(
        action,
        {"Response": "Success", "EventList": "start", "Message": "Channels will follow"},
        *[CHANNEL] * count,
        {"Event": "CoreShowChannelsComplete", "EventList": "Complete", "ListItems": str(count)},
    )


async def test_channels_are_read_however_they_are_cut() -> None:
    async def serve(peer: Peer) -> None:
        await peer.log_in()
        for byte in channel_list(peer, await peer.action(), 2):
            peer.writer.write(bytes([byte]))
            await peer.writer.drain()
            await asyncio.sleep(0)
        await peer.reader.read()

    async with asterisk(serve) as (client, peers):
        async with client as ami:
            channels = await ami.channels()
        assert peers[0].actions[0]["Events"] == "off"
    assert (
        channels
        == [
            AmiChannel(
                name="PJSIP/carrier-ulaw-00000001",
                channel_id="1795226880.12",
                linked_id="1795226880.12",
                state="Up",
                caller="+919811111111",
                caller_name="Zoë आशा",
                context="trunk-carrier-ulaw",
                exten="+918000000001",
                application="Stasis",
                application_data="trunkbridge,inbound,carrier-ulaw,+918000000001",
                duration_seconds=360123,
                bridge_id="",
            )
        ]
        * 2
    )


@pytest.mark.parametrize("count", [0, 3000])
async def test_lists_of_any_length(count: int) -> None:
    async def serve(peer: Peer) -> None:
        await peer.log_in()
        peer.writer.write(channel_list(peer, await peer.action(), count))
        await peer.reader.read()

    async with asterisk(serve) as (client, _), client as ami:
        assert len(await ami.channels()) == count


async def test_hanging_up_names_channel_and_cause() -> None:
    async def serve(peer: Peer) -> None:
        await peer.log_in()
        peer.writer.write(peer.answer(await peer.action(), {"Response": "Success", "Message": "Channel Hungup"}))
        peer.writer.write(peer.answer(await peer.action(), {"Response": "Error", "Message": "No such channel"}))
        await peer.reader.read()

    async with asterisk(serve) as (client, peers), client as ami:
        await ami.hangup("PJSIP/x-1", 21)
        with pytest.raises(AmiRejected, match="No such channel"):
            await ami.hangup("PJSIP/x-2")
        _, first, second = peers[0].actions
        assert (first["Action"], first["Channel"], first["Cause"]) == ("Hangup", "PJSIP/x-1", "21")
        assert second["Cause"] == "16"


@pytest.mark.parametrize(
    ("channel", "why"),
    [
        ("", "no channel"),
        ("/PJSIP.*/", "pattern"),
        ("x\r\nAction: Originate", "line break"),
        ("x\ny", "line break"),
        ("x\ry", "line break"),
    ],
)
async def test_a_name_that_would_be_more_than_a_name_is_not_sent(channel: str, why: str) -> None:
    async def serve(peer: Peer) -> None:
        await peer.log_in()
        await peer.action()

    async with asterisk(serve) as (client, peers), client as ami:
        with pytest.raises(AmiInvalid, match=why):
            await ami.hangup(channel)
        assert len(peers[0].actions) == 1


async def test_a_password_with_a_line_break_is_not_sent() -> None:
    async def serve(peer: Peer) -> None:
        await peer.action()

    async with asterisk(serve) as (client, peers):
        hostile = AmiClient("127.0.0.1", client._port, "operator", "x\r\nEvents: on", LIMIT)
        with pytest.raises(AmiInvalid, match="Secret holds a line break") as caught:
            async with hostile:
                pass
        assert "Events" not in str(caught.value)
        assert all(not peer.actions for peer in peers)


async def test_nobody_listens(unused_tcp_port: int) -> None:
    with pytest.raises(AmiUnavailable, match=rf"127\.0\.0\.1:{unused_tcp_port}: Connection refused") as caught:
        async with AmiClient("127.0.0.1", unused_tcp_port, "operator", "secret", LIMIT):
            pass
    assert caught.value.retryable


async def test_a_wrong_password_is_named_and_not_shown() -> None:
    async def serve(peer: Peer) -> None:
        refused = {"Response": "Error", "Message": "Authentication failed"}
        peer.writer.write(peer.answer(await peer.action(), refused))

    async with asterisk(serve) as (client, _):
        with pytest.raises(AmiLoginRefused, match=r"Authentication failed.*'operator'.*manager\.conf") as caught:
            async with client:
                pass
    assert "secret'" not in str(caught.value)
    assert not caught.value.retryable


async def silent(peer: Peer) -> None:
    await peer.reader.read()


async def silent_after_login(peer: Peer) -> None:
    await peer.log_in()
    await peer.reader.read()


async def closes_at_once(peer: Peer) -> None:
    pass


async def closes_on_login(peer: Peer) -> None:
    await peer.action()


async def closes_on_the_action(peer: Peer) -> None:
    await peer.log_in()
    await peer.action()


async def resets_in_the_list(peer: Peer) -> None:
    await peer.log_in()
    peer.writer.write(channel_list(peer, await peer.action(), 5)[:-100])
    await peer.writer.drain()
    peer.writer.transport.abort()


async def shuts_down(peer: Peer) -> None:
    await peer.log_in()
    await peer.action()
    peer.writer.write(b"Event: Shutdown\r\nShutdown: Cleanly\r\n\r\n")
    await peer.reader.read()


async def talks_nonsense(peer: Peer) -> None:
    await peer.log_in()
    await peer.action()
    peer.writer.write(b"Response: Success\r\nActionID: 1\r\nActionID: 2\r\n\r\n")
    await peer.reader.read()


async def talks_for_ever(peer: Peer) -> None:
    await peer.log_in()
    await peer.action()
    while True:
        peer.writer.write(b"x" * 1000)
        await peer.writer.drain()


@pytest.mark.parametrize(
    ("serve", "why"),
    [
        (silent, r"no answer to Login within 0\.8 s"),
        (silent_after_login, r"no answer to CoreShowChannels within 0\.8 s"),
        (closes_at_once, "closed the connection|reset by peer"),
        (closes_on_login, "closed the connection before it answered Login"),
        (closes_on_the_action, "closed the connection before it answered CoreShowChannels"),
        (resets_in_the_list, "before it answered CoreShowChannels"),
        (shuts_down, "closed the connection before it answered"),
        (talks_nonsense, "sent what cannot be read"),
        (talks_for_ever, "more than 20000 bytes"),
    ],
)
async def test_an_unanswered_action_is_told_and_never_sent_again(
    serve: Serve, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ami_module, "MAX_SESSION_BYTES", 20_000)
    async with asterisk(serve) as (client, peers):
        with pytest.raises(AmiUnavailable, match=why):
            async with client as ami:
                await ami.channels()
        # The library would connect again after 2 s, and ping after 10: nothing of it may be scheduled.
        assert not scheduled()
        assert len(peers) == 1


async def test_what_follows_a_lost_connection_fails_at_once() -> None:
    async with asterisk(closes_on_the_action) as (client, peers), client as ami:
        for _ in range(2):
            with pytest.raises(AmiError, match="closed the connection"):
                await ami.channels()
        assert [action["Action"] for action in peers[0].actions] == ["Login", "CoreShowChannels"]


def scheduled() -> list[asyncio.TimerHandle]:
    """Timers of the AMI library that are still to fire."""
    timers = asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]
    return [timer for timer in timers if not timer.cancelled() and "panoramisk" in repr(timer)]
