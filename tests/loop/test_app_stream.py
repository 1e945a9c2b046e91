"""The application's WebSocket frame by frame, with a server that does exactly what the test says (RFC 6455)."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import socket
import ssl
import struct
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from hashlib import sha1
from pathlib import Path
from typing import Any

import pytest

from audiosocket import __version__, app_stream
from audiosocket.app_stream import AppStream, Dialler
from audiosocket.dialects import open_dialect
from audiosocket.errors import ApplicationError
from audiosocket.resolver import Resolver
from tests.media import call_spec
from tests.worker_rig import until

pytestmark = [pytest.mark.loop, pytest.mark.virtual_time]

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
LIMIT = 4096
FIRST = b"first"


@pytest.fixture(autouse=True, params=["picows reads", "picows has read the first message"])
def behind_a_message(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind the first whole message picows is left aside, where the steps of a frame are compiled."""
    if request.param != "picows reads":
        upgrade = Peer.upgrade

        def and_a_message(peer: Peer, *, accept: str = "", more: str = "") -> None:
            upgrade(peer, accept=accept, more=more)
            peer.send(TEXT, FIRST)

        monkeypatch.setattr(Peer, "upgrade", and_a_message)


class Owner:
    """Takes what comes from the application."""

    def __init__(self) -> None:
        self.texts: list[bytes] = []
        self.binaries = 0
        self.blocked: list[bool] = []

    def app_text(self, message: bytes) -> None:
        if message != FIRST:
            self.texts.append(message)

    def app_binary(self) -> None:
        self.binaries += 1

    def app_blocked(self, blocked: bool) -> None:
        self.blocked.append(blocked)


class Peer:
    """The server's end of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.request = b""

    async def read_request(self) -> None:
        self.request = await self.reader.readuntil(b"\r\n\r\n")

    def upgrade(self, *, accept: str = "", more: str = "") -> None:
        key = next(
            line.partition(b":")[2].strip()
            for line in self.request.split(b"\r\n")
            if line.lower().startswith(b"sec-websocket-key:")
        )
        right = base64.b64encode(sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()).decode()
        self.writer.write(
            f"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Accept: {accept or right}\r\n{more}\r\n".encode()
        )

    def send(
        self, opcode: int, payload: bytes = b"", *, fin: bool = True, reserved: int = 0, masked: bool = False
    ) -> None:
        length = len(payload)
        header = bytes([(0x80 if fin else 0) | reserved | opcode])
        flag = 0x80 if masked else 0
        if length < 126:
            header += bytes([flag | length])
        else:
            header += bytes([flag | 126]) + struct.pack("!H", length)
        self.writer.write(header + (bytes(4) if masked else b"") + payload)

    async def receive(self) -> tuple[int, bytes]:
        """The next frame of the client: opcode and payload."""
        first, second = await self.reader.readexactly(2)
        length = second & 0x7F
        if length == 126:
            (length,) = struct.unpack("!H", await self.reader.readexactly(2))
        assert second & 0x80, "a client masks (section 5.1)"
        mask = await self.reader.readexactly(4)
        payload = await self.reader.readexactly(length)
        return first & 0x0F, bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))


Script = Callable[[Peer], Awaitable[None]]


@contextlib.asynccontextmanager
async def serving(script: Script, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """A server that plays `script` on every connection; its URL."""
    running: set[asyncio.Task[Any]] = set()
    failures: list[BaseException] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        running.add(task)
        try:
            await script(Peer(reader, writer))
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        except BaseException as error:
            failures.append(error)
        finally:
            writer.close()
            running.discard(task)

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    try:
        yield f"{'wss' if tls else 'ws'}://127.0.0.1:{server.sockets[0].getsockname()[1]}/bot"
    finally:
        server.close()
        for task in list(running):
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        assert not failures


async def dial(
    url: str, owner: Owner | None = None, *, seconds: float = 5, headers: dict[str, str] | None = None
) -> AppStream:
    return await Dialler(Resolver()).dial(url, headers or {}, seconds, LIMIT, owner or Owner())


async def test_an_address_is_dialled_without_the_resolver(monkeypatch: pytest.MonkeyPatch) -> None:
    async def asked(*_: Any) -> Any:
        raise AssertionError("the resolver was asked")

    async def closes(peer: Peer) -> None:
        assert (await peer.receive())[0] == CLOSE
        peer.send(CLOSE, struct.pack("!H", 1000))

    async with serving(opened(closes)) as url:
        monkeypatch.setattr(Resolver, "addresses", asked)
        stream = await dial(url)
        await stream.close()
        with pytest.raises(AssertionError, match="resolver"):
            await dial(url.replace("127.0.0.1", "localhost"))


async def refused(url: str, *, seconds: float = 5) -> tuple[str, str]:
    """Why a stream could not be opened: reason and detail."""
    with pytest.raises(ApplicationError) as caught:
        await dial(url, seconds=seconds)
    return caught.value.reason, caught.value.detail


def opened(then: Script) -> Script:
    """A script that begins once the WebSocket is open."""

    async def script(peer: Peer) -> None:
        await peer.read_request()
        peer.upgrade()
        await then(peer)

    return script


# Pings


async def test_a_ping_is_answered_with_its_own_payload() -> None:
    answers: list[tuple[int, bytes]] = []

    async def pings(peer: Peer) -> None:
        for payload in (b"", b"are you there", b"x" * 125):
            peer.send(PING, payload)
            answers.append(await peer.receive())

    async with serving(opened(pings)) as url:
        stream = await dial(url)
        await stream.wait_closed()
    assert answers == [(PONG, b""), (PONG, b"are you there"), (PONG, b"x" * 125)]


async def test_pongs_are_neither_asked_for_nor_missed() -> None:
    seen: list[tuple[int, bytes]] = []

    async def quiet(peer: Peer) -> None:
        peer.send(PONG, b"unasked")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.3):
                seen.append(await peer.receive())
        peer.send(TEXT, b"still here")
        seen.append(await peer.receive())

    owner = Owner()
    async with serving(opened(quiet)) as url:
        stream = await dial(url, owner)
        await until(lambda: owner.texts == [b"still here"], "text after the pause")
        stream.send(b"so am I")
        await stream.wait_closed()
    assert seen == [(TEXT, b"so am I")]


# The closing handshake


@pytest.mark.parametrize(
    ("payload", "detail"),
    [
        (struct.pack("!H", 1000), "close code 1000"),
        (struct.pack("!H", 1000) + b"done", "close code 1000 'done'"),
        (struct.pack("!H", 1011) + "müde".encode(), "close code 1011 'müde'"),
        (b"", "close code 1005"),
    ],
)
async def test_the_applications_close_is_answered_and_ends_the_connection(payload: bytes, detail: str) -> None:
    answer: list[tuple[int, bytes]] = []
    rest: list[bytes] = []

    async def closes(peer: Peer) -> None:
        peer.send(CLOSE, payload)
        answer.append(await peer.receive())
        rest.append(await peer.reader.read())

    async with serving(opened(closes)) as url:
        stream = await dial(url)
        assert await stream.wait_closed() == ("app_closed", detail)
        await until(lambda: rest, "end of the connection")
        stream.send(b"too late")
        await stream.close()
    assert answer == [(CLOSE, struct.pack("!H", 1000))]
    assert rest == [b""]


@pytest.mark.parametrize("waited_before", [True, False])
async def test_our_close_waits_for_the_applications(waited_before: bool) -> None:
    events: list[Any] = []

    async def slow_to_close(peer: Peer) -> None:
        events.append(await peer.receive())
        await asyncio.sleep(0.2)
        events.append("answers")
        peer.send(CLOSE, struct.pack("!H", 1000))
        events.append(await peer.reader.read())

    async with serving(opened(slow_to_close)) as url:
        stream = await dial(url)
        if waited_before:
            # As a call does, which then ends for another reason.
            waiting = asyncio.ensure_future(stream.wait_closed())
            await asyncio.sleep(0.01)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        began = asyncio.get_running_loop().time()
        await stream.close()
        assert 0.15 < asyncio.get_running_loop().time() - began < 1.5
        await until(lambda: len(events) == 3, "end of the connection")
        await stream.close()  # twice is harmless
    assert events == [(CLOSE, struct.pack("!H", 1000)), "answers", b""]


@pytest.mark.parametrize("reads", [True, False])
async def test_a_close_that_is_never_answered_is_waited_for_only_so_long(
    monkeypatch: pytest.MonkeyPatch, reads: bool
) -> None:
    assert app_stream.CLOSE_SECONDS == 2.0
    monkeypatch.setattr(app_stream, "CLOSE_SECONDS", 0.2)
    gone = asyncio.Event()

    async def never(peer: Peer) -> None:
        if reads:
            assert (await peer.receive())[0] == CLOSE
            with contextlib.suppress(ConnectionError):
                assert await peer.reader.read() == b""
        else:
            peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
            await gone.wait()
        gone.set()

    async with serving(opened(never)) as url:
        stream = await dial(url)
        if not reads:
            for _ in range(2000):
                stream.send(b"x" * 4000)
        transport = stream.transport
        began = asyncio.get_running_loop().time()
        await stream.close()
        assert 0.15 < asyncio.get_running_loop().time() - began < 1.5
        await until(lambda: transport.is_disconnected, "the connection's end")
        if reads:
            async with asyncio.timeout(5):
                await gone.wait()
        gone.set()


@pytest.mark.parametrize("asking", [TEXT, PING])
async def test_one_that_asks_and_asks_and_reads_no_answer(asking: int) -> None:
    async def asks(peer: Peer) -> None:
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
        while True:
            for _ in range(100):
                peer.send(asking, b"x" * 125)
            await peer.writer.drain()

    streams: list[AppStream] = []

    class Answering(Owner):
        def app_text(self, message: bytes) -> None:
            for stream in streams:
                stream.send(message)

    async with serving(opened(asks)) as url:
        stream = await dial(url, Answering())
        streams.append(stream)
        async with asyncio.timeout(20):
            reason, detail = await stream.wait_closed()
    assert (reason, detail) == ("app_protocol_error", "it reads nothing: more than 4194304 bytes wait for it")


@pytest.mark.parametrize("last", [(CLOSE, struct.pack("!H", 1000), True), (CONTINUATION, b"x", True)])
async def test_one_that_ends_without_having_read(last: tuple[int, bytes, bool]) -> None:
    full = asyncio.Event()

    async def ends_unread(peer: Peer) -> None:
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await full.wait()
        opcode, payload, fin = last
        peer.send(opcode, payload, fin=fin)
        await asyncio.Event().wait()

    owner = Owner()
    async with serving(opened(ends_unread)) as url:
        stream = await dial(url, owner)
        for _ in range(500):
            stream.send(b"x" * 4000)
        assert owner.blocked == [True]
        full.set()
        async with asyncio.timeout(5):
            reason, _ = await stream.wait_closed()
    assert reason == ("app_closed" if last[0] == CLOSE else "app_protocol_error")


async def test_one_whose_host_is_gone_is_told_from_one_that_reads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    gone: list[bool] = []

    async def reads_nothing(peer: Peer) -> None:
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.Event().wait()

    monkeypatch.setattr(app_stream, "gone", lambda _connection: bool(gone))
    owner = Owner()
    async with serving(opened(reads_nothing)) as url:
        stream = await dial(url, owner)
        ended = asyncio.ensure_future(stream.wait_closed())
        for _ in range(2000):  # more than the kernel will ever take
            stream.send(b"x" * 600)
        await asyncio.sleep(60)
        assert owner.blocked == [True]
        assert not ended.done()
        gone.append(True)
        assert await ended == ("app_lost", "no packet of its host's for 10 s")
        assert stream.reset  # whatever `close_without_frame` says: nobody has ended a call
        await stream.close()


async def test_a_connection_that_ends_without_a_close() -> None:
    async def leaves(_peer: Peer) -> None:
        return

    async with serving(opened(leaves)) as url:
        stream = await dial(url)
        assert await stream.wait_closed() == ("app_lost", "the connection ended without a close frame")
        assert not stream.reset
        await stream.close()


@pytest.mark.parametrize("unread", [True, False], ids=["with audio unread", "at once"])
async def test_a_connection_that_is_reset(unread: bool) -> None:
    come = asyncio.Event()

    async def resets(peer: Peer) -> None:
        connection = peer.writer.get_extra_info("socket")
        if unread:
            peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
        else:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await come.wait()
        peer.writer.transport.abort()

    async with serving(opened(resets)) as url:
        stream = await dial(url)
        stream.send(b"audio")
        await asyncio.sleep(0.05)
        come.set()
        reason, detail = await stream.wait_closed()
        assert (reason, stream.reset) == ("app_lost", True)
        assert detail == "the connection was reset, or timed out, without a close frame"


async def test_what_was_under_way_to_an_application_that_has_ended_is_not_how_it_ended() -> None:
    """It ends its connection; our next message, sent before we know, is answered with a reset."""
    come = asyncio.Event()
    stream: AppStream

    def sends_late() -> None:
        stream.send(b"audio")
        time.sleep(0.05)  # the loop stands still: the end and the reset are found together

    async def leaves(peer: Peer) -> None:
        await come.wait()
        peer.writer.transport.abort()  # the socket is closed in the loop's next turn, and this comes behind it
        asyncio.get_running_loop().call_soon(sends_late)

    async with serving(opened(leaves)) as url:
        stream = await dial(url)
        come.set()
        assert (await stream.wait_closed())[0] == "app_lost"
        assert not stream.reset


# Messages


async def ends(script: Script) -> tuple[tuple[str, str], tuple[int, bytes] | None, Owner]:
    """What a script's frames lead to: our reason, the close frame that we send, and what was taken before."""
    sent: list[tuple[int, bytes]] = []

    async def play(peer: Peer) -> None:
        await script(peer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            sent.append(await peer.receive())
            await peer.reader.read()
        played.set()

    played = asyncio.Event()
    owner = Owner()
    async with serving(opened(play)) as url:
        stream = await dial(url, owner)
        async with asyncio.timeout(5):
            reason = await stream.wait_closed()
        await stream.close()
        await until(played.is_set, "the close frame or the end")
    return reason, sent[0] if sent else None, owner


def frames(*parts: tuple[int, bytes, bool]) -> Script:
    async def script(peer: Peer) -> None:
        for opcode, payload, fin in parts:
            peer.send(opcode, payload, fin=fin)

    return script


async def test_messages_whole_and_in_pieces() -> None:
    owner = Owner()

    async def sends(peer: Peer) -> None:
        peer.send(TEXT, b"whole")
        peer.send(TEXT, b"in ", fin=False)
        peer.send(PING, b"between")
        peer.send(CONTINUATION, b"three ", fin=False)
        peer.send(CONTINUATION, b"pieces")
        peer.send(TEXT, b"", fin=False)
        peer.send(CONTINUATION, b"", fin=False)
        peer.send(CONTINUATION, b"after nothing")
        peer.send(TEXT, b"")
        peer.send(BINARY, b"\x00")
        peer.send(BINARY, b"\x00", fin=False)
        peer.send(CONTINUATION, b"\x00")
        peer.send(TEXT, b"x" * LIMIT)
        assert await peer.receive() == (PONG, b"between")
        await peer.receive()

    async with serving(opened(sends)) as url:
        stream = await dial(url, owner)
        await until(lambda: len(owner.texts) == 5, "all messages")
        assert owner.texts == [b"whole", b"in three pieces", b"after nothing", b"", b"x" * LIMIT]
        assert owner.binaries == 2
        stream.send(b"done")
        await stream.wait_closed()


async def test_more_pieces_than_a_message_can_have() -> None:
    pieces = LIMIT // 16
    many = [(TEXT, b"", False)] + [(CONTINUATION, b"", False)] * pieces
    reason, sent, owner = await ends(frames(*many))
    assert reason == ("app_protocol_error", f"message in more than {pieces} fragments")
    assert sent == (CLOSE, struct.pack("!H", 1008))
    assert not owner.texts


async def test_pieces_that_are_too_much_together() -> None:
    reason, sent, owner = await ends(frames((TEXT, b"x" * LIMIT, False), (CONTINUATION, b"x", True)))
    assert reason == ("app_message_too_big", f"message over {LIMIT} bytes")
    assert sent == (CLOSE, struct.pack("!H", 1009))
    assert not owner.texts


@pytest.mark.parametrize(
    "parts",
    [
        [(CONTINUATION, b"x", True)],
        [(CONTINUATION, b"x", False)],
        [(TEXT, b"x", False), (TEXT, b"y", True)],
        [(TEXT, b"x", False), (BINARY, b"y", False)],
    ],
)
async def test_pieces_out_of_order(parts: list[tuple[int, bytes, bool]]) -> None:
    reason, sent, owner = await ends(frames(*parts))
    assert reason == ("app_protocol_error", "continuation frame out of place (RFC 6455 section 5.4)")
    assert sent == (CLOSE, struct.pack("!H", 1002))
    assert not owner.texts


async def test_a_frame_that_announces_too_much_is_not_waited_for() -> None:
    async def announces(peer: Peer) -> None:
        peer.writer.write(b"\x81\x7f" + struct.pack("!Q", 2**62))

    reason, sent, _ = await ends(announces)
    assert reason[0] == "app_message_too_big"
    assert sent is not None
    assert (sent[0], sent[1][:2]) == (CLOSE, struct.pack("!H", 1009))


async def test_a_close_frame_that_is_itself_broken() -> None:
    reason, sent, _ = await ends(frames((CLOSE, struct.pack("!H", 4000) + b"\xff", True)))
    assert reason[0] == "app_protocol_error"
    assert sent is not None
    assert sent[0] == CLOSE


LONG_FORM = b"\x81\x7e\x00\x05hello"
"""A length of 5 in 16 bits: section 5.2 wants the shortest form."""


@pytest.mark.parametrize(
    "data", [b"\xc1\x00", b"\xa1\x00", b"\x91\x00", b"\x83\x00", b"\x8b\x00", b"\x09\x00", LONG_FORM]
)
async def test_frames_that_no_client_may_take(data: bytes) -> None:
    """A reserved bit, unknown kinds, a ping in pieces: none was agreed on."""

    async def breaks(peer: Peer) -> None:
        peer.writer.write(data + b"\x81\x01x")

    reason, _, owner = await ends(breaks)
    assert reason[0] == "app_protocol_error"
    assert not owner.texts


async def test_messages_behind_a_frame_that_is_too_big_are_not_taken() -> None:
    async def goes_on(peer: Peer) -> None:
        peer.send(TEXT, bytes(LIMIT + 1))
        await peer.writer.drain()
        await asyncio.sleep(0)
        for _ in range(3):
            peer.send(TEXT, b"late")

    reason, _, owner = await ends(goes_on)
    assert reason[0] == "app_message_too_big"
    assert not owner.texts


@pytest.mark.parametrize("behind", [b"\x88\x02\x03\xe8", b"\xff\xff", b"\x81\x01x"])
async def test_what_comes_in_one_read_with_the_close_frame_does_not_change_how_it_ended(behind: bytes) -> None:
    async def closes(peer: Peer) -> None:
        peer.writer.write(b"\x88\x02\x03\xe8" + behind)

    reason, _, owner = await ends(closes)
    assert reason == ("app_closed", "close code 1000")
    assert not owner.texts


async def test_nothing_is_delivered_after_the_end() -> None:
    reason, _, owner = await ends(frames((CLOSE, struct.pack("!H", 1000), True), (TEXT, b"late", True)))
    assert reason[0] == "app_closed"
    assert not owner.texts


# The handshake


@pytest.mark.parametrize(
    ("dialect", "user_agent"),
    [("exotel", "go-http-client/1.1"), ("plivo", f"trunkbridge/{__version__}"), ("twilio", "twilio.tmews/1.0")],
)
async def test_what_the_handshake_says(dialect: str, user_agent: str) -> None:
    requests: list[bytes] = []

    async def keeps(peer: Peer) -> None:
        requests.append(peer.request)

    headers = open_dialect(call_spec(dialect=dialect)).headers() | {"Authorization": "Basic xyz"}
    async with serving(opened(keeps)) as url:
        stream = await dial(url + "?a=1&b=%20", headers=headers)
        await stream.wait_closed()
    head = requests[0].decode().lower()
    assert head.startswith("get /bot?a=1&b=%20 http/1.1\r\n")
    assert "authorization: basic xyz\r\n" in head
    assert head.count("user-agent") == 1
    assert f"\r\nuser-agent: {user_agent}\r\n" in head
    assert "sec-websocket-version: 13\r\n" in head
    assert "sec-websocket-extensions" not in head
    assert "sec-websocket-protocol" not in head


def answers(data: bytes) -> Script:
    async def script(peer: Peer) -> None:
        await peer.read_request()
        peer.writer.write(data)
        await peer.writer.drain()

    return script


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", {"app_refused", "app_protocol_error"}),
        (b"garbage\r\n\r\n", {"app_protocol_error"}),
        (b"\x00" * 100, {"app_refused", "app_protocol_error"}),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", {"app_protocol_error"}),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", {"app_refused"}),
        (b"HTTP/1.1 301 Moved\r\nLocation: ws://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n", {"app_refused"}),
        (b"HTTP/1.1 999 ?\r\nContent-Length: 0\r\n\r\n", {"app_refused", "app_protocol_error"}),
        (b"HTTP/1.1 abc\r\n\r\n", {"app_protocol_error"}),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 50_000, {"app_refused", "app_protocol_error"}),
    ],
    ids=["nothing", "words", "zeros", "bare 101", "200", "301", "999", "no status", "no end"],
)
async def test_answers_that_are_no_websocket(data: bytes, reason: set[str]) -> None:
    async with serving(answers(data)) as url:
        found, detail = await refused(url)
    assert found in reason
    assert detail
    assert len(detail) < 500


async def test_a_wrong_accept_key_is_no_websocket() -> None:
    async def wrong(peer: Peer) -> None:
        await peer.read_request()
        peer.upgrade(accept="bm90IHRoZSBrZXk=")
        await peer.reader.read()

    async with serving(wrong) as url:
        assert (await refused(url))[0] == "app_protocol_error"


@pytest.mark.parametrize("host", ["a..b", "a" * 64, "h:99999", "[::1", "h:hunter2", ""])
async def test_what_cannot_be_dialled_is_refused_and_not_repeated(host: str) -> None:
    reason, detail = await refused(f"ws://{host}/voice?token=hunter2")
    assert reason == "app_refused"
    assert "hunter2" not in detail


async def test_an_answer_that_does_not_come() -> None:
    async def never(peer: Peer) -> None:
        await peer.reader.read()

    async with serving(never) as url:
        assert await refused(url, seconds=0.15) == ("app_timeout", "no WebSocket within 0.15 s")


async def test_messages_right_behind_the_handshake_are_not_lost() -> None:
    async def eager(peer: Peer) -> None:
        await peer.read_request()
        peer.upgrade()
        peer.send(TEXT, b"hello")
        await peer.receive()

    owner = Owner()
    async with serving(eager) as url:
        stream = await dial(url, owner)
        await until(lambda: owner.texts == [b"hello"], "the first message")
        stream.send(b"x")
        await stream.wait_closed()


# TLS


def certificate(folder: Path, name: str, alternative: str, days: int = 2) -> ssl.SSLContext:
    """A server context with a certificate that nobody but itself has signed; it is in `folder`/`name`.pem."""
    subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
            "-days", str(days), "-subj", f"/CN={name}", "-addext", f"subjectAltName={alternative}",
            "-keyout", str(folder / f"{name}.key"), "-out", str(folder / f"{name}.pem"),
        ],
        check=True,
        capture_output=True,
        timeout=110,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / f"{name}.pem", folder / f"{name}.key")
    return context


async def talks(peer: Peer) -> None:
    await peer.read_request()
    peer.upgrade()
    peer.send(TEXT, b"secure")
    assert (await peer.receive())[0] == CLOSE
    peer.send(CLOSE, struct.pack("!H", 1000))
    await peer.reader.read()


async def test_a_certificate_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    async with serving(talks, certificate(tmp_path, "unknown", "IP:127.0.0.1")) as url:
        reason, detail = await refused(url)
    assert reason == "app_refused"
    assert detail.startswith("TLS certificate refused: self-signed certificate")


async def test_a_certificate_for_another_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tls = certificate(tmp_path, "other", "DNS:bot.example")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "other.pem"))
    async with serving(talks, tls) as url:
        reason, detail = await refused(url)
    assert reason == "app_refused"
    assert detail.startswith("TLS certificate refused: IP address mismatch")


async def test_a_certificate_that_is_trusted_carries_the_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls = certificate(tmp_path, "trusted", "IP:127.0.0.1")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "trusted.pem"))
    owner = Owner()
    async with serving(talks, tls) as url:
        stream = await dial(url, owner)
        await until(lambda: owner.texts == [b"secure"], "a message")
        await stream.close()


async def test_no_call_waits_for_the_certificate_authorities(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tls = certificate(tmp_path, "trusted", "IP:127.0.0.1")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "trusted.pem"))
    dialler = Dialler(Resolver())
    monkeypatch.delenv("SSL_CERT_FILE")  # who reads them now does not find this one
    async with serving(talks, tls) as url:
        await (await dialler.dial(url, {}, 5, LIMIT, Owner())).close()


async def test_tls_towards_a_server_without_it() -> None:
    async def bad_request(peer: Peer) -> None:
        await peer.reader.read(1)
        peer.writer.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
        await peer.writer.drain()

    async with serving(bad_request) as url:
        reason, detail = await refused(url.replace("ws:", "wss:"))
    assert reason == "app_refused"
    assert detail.startswith("TLS failed: ")


async def test_no_tls_towards_a_server_with_it(tmp_path: Path) -> None:
    async with serving(talks, certificate(tmp_path, "plain", "IP:127.0.0.1")) as url:
        reason, _ = await refused(url.replace("wss:", "ws:"), seconds=2)
    assert reason in ("app_refused", "app_protocol_error")
