"""The ARI client and its event stream over a real socket, on Asterisk's bad days."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from ari_app.ari import stream as stream_module
from ari_app.ari import transport as transport_module
from ari_app.ari.client import AriClient
from ari_app.ari.errors import (
    AppReplaced,
    AriConflict,
    AriError,
    AriInvalid,
    AriMalformed,
    AriNotFound,
    AriRejected,
    AriUnauthorized,
    AriUnavailable,
)
from ari_app.ari.events import UNWANTED, ChannelDtmfReceived, Event
from ari_app.ari.models import Channel
from ari_app.ari.stream import BACKOFF_MAX_SECONDS, EventStream, backoff_limit
from ari_app.domain.ids import BridgeId, ChannelId, LegUuid
from ari_app.errors import Unavailable
from tests.fake_ari import (
    APP,
    PASSWORD,
    USER,
    Answer,
    Connection,
    FakeAri,
    Request,
    fake_ari,
    half_an_answer,
    hangs_up,
    never,
    says,
)
from tests.worker_rig import until

pytestmark = [pytest.mark.loop, pytest.mark.virtual_time]

GOLDEN = Path(__file__).parent.parent / "golden" / "ari"
LIMIT = 0.8
BRIDGE = {"id": "b", "bridge_type": "mixing", "channels": []}
CHANNEL = {"id": "m", "name": "AudioSocket/x", "state": "Up", "creationtime": "2026-11-21T02:08:00.364+0000"}
B, M, C = BridgeId("b"), ChannelId("m"), ChannelId("1795226880.12")


@pytest_asyncio.fixture
async def fake() -> AsyncIterator[FakeAri]:
    async with fake_ari() as running:
        yield running


@pytest_asyncio.fixture
async def ari(fake: FakeAri) -> AsyncIterator[AriClient]:
    async with AriClient(fake.url, USER, PASSWORD, APP, LIMIT) as client:
        yield client


def media(ari: AriClient) -> Awaitable[Any]:
    return ari.external_media(M, host="127.0.0.1:9092", leg_uuid=LegUuid("u"), media_format="ulaw")


# Requests


@pytest.mark.parametrize(
    ("call", "method", "path", "query", "body"),
    [
        (lambda ari: ari.answer(C), "POST", f"/channels/{C}/answer", {}, None),
        (lambda ari: ari.ring(C), "POST", f"/channels/{C}/ring", {}, None),
        (lambda ari: ari.hangup(C, 21), "DELETE", f"/channels/{C}", {"reason_code": "21"}, None),
        (lambda ari: ari.add_to_bridge(B, C, M), "POST", "/bridges/b/addChannel", {"channel": f"{C},m"}, None),
        (lambda ari: ari.destroy_bridge(B), "DELETE", "/bridges/b", {}, None),
        (
            lambda ari: ari.continue_in_dialplan(C, context="after", extension="s"),
            "POST",
            f"/channels/{C}/continue",
            {"context": "after", "extension": "s", "priority": "1"},
            None,
        ),
        (
            lambda ari: ari.subscribe(C),
            "POST",
            f"/applications/{APP}/subscription",
            {"eventSource": f"channel:{C}"},
            None,
        ),
        (
            lambda ari: ari.set_variables(C, {"A": "b c&d=+é"}),
            "POST",
            f"/channels/{C}/variables",
            {},
            {"variables": {"A": "b c&d=+é"}},
        ),
        (
            lambda ari: ari.send_dtmf(C, "12#"),
            "POST",
            f"/channels/{C}/dtmf",
            {"dtmf": "12#", "duration": "100", "between": "100"},
            None,
        ),
        (
            lambda ari: ari.set_event_filter(["Dial"]),
            "PUT",
            f"/applications/{APP}/eventFilter",
            {},
            {"disallowed": [{"type": "Dial"}]},
        ),
    ],
)
async def test_requests_as_asterisk_wants_them(
    fake: FakeAri,
    ari: AriClient,
    call: Callable[[AriClient], Awaitable[Any]],
    method: str,
    path: str,
    query: dict[str, str],
    body: Any,
) -> None:
    await call(ari)
    (request,) = fake.requests
    assert (request.method, request.path, request.query, request.body) == (method, "/ari" + path, query, body)
    assert ari.requests == {"ok": 1}


async def slow(request: Request, connection: Connection) -> None:
    """An answer that comes too late."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(2 * LIMIT):
            await connection.reader.read()  # or until the client has had enough
    await connection.respond(200, {})


@pytest.mark.parametrize("fault", [never, slow, hangs_up(), hangs_up(reset=True), half_an_answer])
async def test_an_asterisk_that_does_not_answer_opens_the_breaker(fake: FakeAri, ari: AriClient, fault: Answer) -> None:
    await asyncio.gather(*(ari.answer(C) for _ in range(10)))
    fake.script("POST", f"/channels/{C}/answer", fault)
    failed = await asyncio.gather(*(ari.answer(C) for _ in range(6)), return_exceptions=True)
    assert all(isinstance(error, AriUnavailable) for error in failed)
    assert (ari.breaker.open, ari.breaker.trips) == (True, 1)
    assert ari.timeouts == (6 if fault in (never, slow) else 0)
    # It is for its owner to act on that: requests are made all the same, and probes close it.
    await ari.ping(LIMIT)
    assert ari.breaker.open
    fake.script("GET", "/asterisk/ping", never)
    with pytest.raises(AriUnavailable, match="no answer within 0.1 s"):
        await ari.ping(0.1)


async def test_answers_that_say_no_open_no_breaker(fake: FakeAri, ari: AriClient) -> None:
    fake.script("POST", f"/channels/{C}/answer", says(404), says(500), says(409), says(422))
    for _ in range(20):
        with pytest.raises(AriError):
            await ari.answer(C)
    assert not ari.breaker.open


async def test_a_snoop_as_asterisk_wants_it(fake: FakeAri, ari: AriClient) -> None:
    fake.script("POST", "/channels/c/1/snoop", says(200, CHANNEL))
    await ari.snoop(ChannelId("c/1"), ChannelId("s"))
    assert fake.requests[0].raw_path == "/ari/channels/c%2F1/snoop"
    assert fake.requests[0].query == {"app": APP, "spy": "in", "whisper": "none", "snoopId": "s"}


async def test_external_media_as_asterisk_wants_it(fake: FakeAri, ari: AriClient) -> None:
    fake.script("POST", "/channels/externalMedia", says(200, CHANNEL))
    channel = await media(ari)
    assert (channel.id, channel.created_at_ms) == ("m", 1795226880364)
    assert fake.requests[0].query == {
        "channelId": "m",
        "app": APP,
        "external_host": "127.0.0.1:9092",
        "encapsulation": "audiosocket",
        "transport": "tcp",
        "format": "ulaw",
        "data": "u",
    }


def websocket(ari: AriClient) -> Awaitable[Channel]:
    return ari.external_websocket(M, host="[::1]:9392", leg_uuid=LegUuid("u"), media_format="slin16")


async def test_a_websocket_leg_as_asterisk_wants_it(fake: FakeAri, ari: AriClient) -> None:
    fake.script("POST", "/channels/externalMedia", says(200, CHANNEL))
    await websocket(ari)
    client, create = fake.requests
    assert client.path == "/ari/asterisk/config/dynamic/res_websocket_client/websocket_client/trunkbridge----1--9392"
    assert {field["attribute"]: field["value"] for field in client.body["fields"]} == {
        "uri": "ws://[::1]:9392/media",
        "protocols": "media",
        "connection_type": "per_call_config",
        "connection_timeout": "500",
        "reconnect_attempts": "1",
    }
    assert create.query == {
        "channelId": "m",
        "app": APP,
        "external_host": "trunkbridge----1--9392",
        "encapsulation": "none",
        "transport": "websocket",
        "connection_type": "client",
        "transport_data": "f(json)",
        "format": "slin16",
        "data": "u",
    }
    assert create.body == {"variables": {"TRUNKBRIDGE_LEG": "u"}}


@pytest.mark.parametrize(
    ("status", "error", "said"),
    [(403, AriRejected, "sorcery.conf"), (404, AriRejected, "sorcery.conf"), (401, AriUnauthorized, "ari.conf")],
)
async def test_a_websocket_leg_that_asterisk_is_not_set_up_for(
    fake: FakeAri, ari: AriClient, status: int, error: type[AriRejected], said: str
) -> None:
    path = "/asterisk/config/dynamic/res_websocket_client/websocket_client/trunkbridge----1--9392"
    fake.script("PUT", path, says(status, {"message": "Cannot create sorcery objects"}))
    with pytest.raises(error, match=f"Cannot create sorcery objects: .*{said}"):
        await websocket(ari)
    assert len(fake.requests) == 1


async def test_a_websocket_leg_is_never_asked_for_twice(fake: FakeAri, ari: AriClient) -> None:
    fake.script("POST", "/channels/externalMedia", hangs_up())
    with pytest.raises(AriUnavailable):
        await websocket(ari)
    assert [request.method for request in fake.requests] == ["PUT", "POST"]


@pytest.mark.parametrize("hostile", ["a/b", "../x", "a?b#c", "a b+c%2Fd", "é", "a&b=c", "a\r\nX: y"])
async def test_ids_cannot_leave_their_place_in_the_url(fake: FakeAri, ari: AriClient, hostile: str) -> None:
    await ari.hangup(ChannelId(hostile))
    await ari.add_to_bridge(B, ChannelId(hostile))
    assert fake.requests[0].path == f"/ari/channels/{hostile}"
    assert fake.requests[0].raw_path.count("/") == 3
    assert fake.requests[1].query == {"channel": hostile}


@pytest.mark.parametrize("empty", ["", ".", ".."])
async def test_an_id_that_would_change_the_path_is_refused(fake: FakeAri, ari: AriClient, empty: str) -> None:
    with pytest.raises(ValueError, match="empty or a dot"):
        await ari.hangup(ChannelId(empty))
    assert fake.requests == []


@pytest.mark.parametrize(
    ("status", "body", "kind", "reason", "message"),
    [
        (404, {"message": "Channel not found"}, AriNotFound, "ari_not_found", "Channel not found"),
        (409, {"message": "Channel not in Stasis application"}, AriConflict, "ari_conflict", "not in Stasis"),
        (400, {"message": "Channel not found"}, AriInvalid, "ari_invalid", "Channel not found"),
        (422, {"message": "Channel in wrong state"}, AriInvalid, "ari_invalid", "wrong state"),
        (401, {"message": "Authentication required"}, AriUnauthorized, "ari_unauthorized", "ari.conf"),
        (403, {"message": "Unsupported channel type"}, AriRejected, "ari_rejected", "Unsupported"),
        (500, {"error": "Allocation failed"}, AriRejected, "ari_rejected", "Allocation failed"),
        (503, None, AriRejected, "ari_rejected", "Word"),
        (302, ["odd"], AriRejected, "ari_rejected", "Word"),
    ],
)
async def test_refusals_say_what_and_why(
    fake: FakeAri, ari: AriClient, status: int, body: Any, kind: type[AriError], reason: str, message: str
) -> None:
    fake.script("POST", f"/channels/{C}/answer", says(status, body))
    with pytest.raises(kind, match=message) as caught:
        await ari.answer(C)
    error = caught.value
    assert type(error) is kind
    assert (error.method, error.path, error.status, error.reason) == (
        "POST",
        f"/channels/{C}/answer",
        status,
        reason,
    )
    assert not error.retryable
    assert ari.requests == {reason: 1}


async def test_a_wrong_password_is_named_and_not_shown(fake: FakeAri) -> None:
    async with AriClient(fake.url, USER, "secret-guess", APP, LIMIT) as client:
        with pytest.raises(AriUnauthorized, match=r"Authentication required.*password.*ari\.conf") as caught:
            await client.ring(C)
    assert "secret-guess" not in str(caught.value)


async def test_nobody_listens(unused_tcp_port: int) -> None:
    async with AriClient(f"http://127.0.0.1:{unused_tcp_port}", USER, PASSWORD, APP, LIMIT) as client:
        with pytest.raises(AriUnavailable, match=r"POST /channels/.*/ring.*Connect") as caught:
            await client.ring(C)
        assert isinstance(caught.value, Unavailable)
        assert caught.value.retryable
        assert client.repeats == 0


async def test_no_answer_is_not_waited_for_longer_than_the_limit(fake: FakeAri, ari: AriClient) -> None:
    fake.script("POST", f"/channels/{C}/answer", never)
    before = asyncio.get_running_loop().time()
    with pytest.raises(AriUnavailable, match=r"no answer within 0\.8 s"):
        await ari.answer(C)
    assert LIMIT * 0.9 < asyncio.get_running_loop().time() - before < LIMIT * 3
    assert len(fake.requests) == 1, "what timed out is not repeated"
    await ari.ring(C)
    assert fake.requests[0].connection != fake.requests[1].connection, "a late answer must not meet another request"


async def test_a_cancelled_request_leaves_no_answer_for_the_next(fake: FakeAri, ari: AriClient) -> None:
    fake.script("GET", f"/channels/{C}", never)
    task = asyncio.create_task(ari.get_channel(C))
    await until(lambda: fake.requests, "the request")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await ari.ring(C)
    assert fake.requests[0].connection != fake.requests[1].connection


async def test_connections_are_kept(fake: FakeAri, ari: AriClient) -> None:
    for _ in range(5):
        await ari.answer(C)
    assert len(fake.connections) == 1


@pytest.mark.parametrize("fault", [hangs_up(), hangs_up(reset=True), half_an_answer])
async def test_a_connection_lost_under_a_request_costs_one_repetition(
    fake: FakeAri, ari: AriClient, fault: Answer
) -> None:
    fake.script("GET", "/channels", fault, says(200, [CHANNEL]))
    fake.script("POST", f"/channels/{C}/answer", fault, says(204))
    assert [channel.id for channel in await ari.list_channels()] == ["m"]
    await ari.answer(C)
    assert len(fake.seen("GET", "/channels")) == len(fake.seen("POST", f"/channels/{C}/answer")) == 2
    assert ari.requests == {"ok": 2}


@pytest.mark.parametrize("fault", [hangs_up(), hangs_up(reset=True), half_an_answer])
async def test_a_connection_lost_again_is_told(fake: FakeAri, ari: AriClient, fault: Answer) -> None:
    fake.script("POST", f"/channels/{C}/answer", fault)
    with pytest.raises(AriUnavailable):
        await ari.answer(C)
    assert len(fake.requests) == 2
    assert ari.repeats == 1


@pytest.mark.parametrize(
    ("name", "request_once"),
    [
        ("continue", lambda ari: ari.continue_in_dialplan(C, context="after", extension="s")),
        ("dtmf", lambda ari: ari.send_dtmf(C, "1")),
    ],
)
async def test_what_would_be_another_thing_twice_is_not_repeated(
    fake: FakeAri, ari: AriClient, name: str, request_once: Callable[[AriClient], Awaitable[None]]
) -> None:
    fake.script("POST", f"/channels/{C}/{name}", hangs_up())
    with pytest.raises(AriUnavailable):
        await request_once(ari)
    assert len(fake.requests) == 1


@pytest.mark.parametrize("refusal", [says(409, {"message": "exists"}), says(500, {"message": "internal"})])
async def test_a_create_whose_answer_was_lost_is_found_out(fake: FakeAri, ari: AriClient, refusal: Answer) -> None:
    fake.script("POST", "/bridges", hangs_up(), refusal)
    fake.script("GET", "/bridges/b", says(200, BRIDGE))
    fake.script("POST", "/channels/externalMedia", hangs_up(), refusal)
    fake.script("GET", "/channels/m", says(200, CHANNEL))
    assert (await ari.create_bridge(B)).id == "b"
    assert (await media(ari)).id == "m"
    assert ari.repeats == 2


async def test_a_create_refused_both_ways_is_refused(fake: FakeAri, ari: AriClient) -> None:
    fake.script("POST", "/channels/externalMedia", hangs_up(), says(500, {"message": "internal"}))
    fake.script("GET", "/channels/m", says(404, {"message": "Channel not found"}))
    with pytest.raises(AriRejected, match="POST /channels/externalMedia: 500 internal"):
        await media(ari)


async def test_a_create_refused_at_once_asks_nothing_more(fake: FakeAri, ari: AriClient) -> None:
    fake.script("POST", "/bridges", says(409, {"message": "Bridge with id 'b' already exists"}))
    with pytest.raises(AriConflict, match="already exists"):
        await ari.create_bridge(B)
    assert len(fake.requests) == 1


async def test_gone_already_is_what_was_asked_for(fake: FakeAri, ari: AriClient) -> None:
    fake.script("DELETE", f"/channels/{C}", says(204), says(404, {"message": "Channel not found"}))
    fake.script("DELETE", "/bridges/b", says(404, {"message": "Bridge not found"}))
    assert await ari.hangup(C, missing_ok=True) is True
    assert await ari.hangup(C, missing_ok=True) is False
    assert await ari.destroy_bridge(B, missing_ok=True) is False
    with pytest.raises(AriNotFound):
        await ari.hangup(C)


@pytest.mark.parametrize("body", [None, {}, [{}], [{**CHANNEL, "creationtime": "never"}], "text"])
async def test_an_answer_that_is_none_is_told(fake: FakeAri, ari: AriClient, body: Any) -> None:
    fake.script("GET", "/channels", says(200, body))
    with pytest.raises(AriMalformed, match="GET /channels"):
        await ari.list_channels()


async def test_an_endless_answer_is_not_read(fake: FakeAri, ari: AriClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport_module, "MAX_ANSWER_BYTES", 1000)
    fake.script("GET", "/channels", says(200, ["x" * 2000]))
    with pytest.raises(AriMalformed, match="more than 1000 bytes"):
        await ari.list_channels()


# Events


def digit(number: int) -> str:
    said = json.loads((GOLDEN / "ChannelDtmfReceived.json").read_bytes())
    return json.dumps(said | {"duration_ms": number})


class Story:
    """What the stream told, in order: digits as numbers, the rest as words."""

    def __init__(self) -> None:
        self.told: list[int | str] = []
        self.reconcile: Callable[[], Awaitable[None]] = self._at_once
        self.pauses: list[float] = []
        self.reasons: list[str] = []

    async def _at_once(self) -> None:
        pass

    def event(self, event: Event) -> None:
        assert isinstance(event, ChannelDtmfReceived)
        self.told.append(event.duration_ms)

    async def connected(self) -> None:
        self.told.append("connected")
        await self.reconcile()
        self.told.append("reconciled")

    def lost(self, reason: str) -> None:
        self.told.append("lost")
        self.reasons.append(reason)

    def uniform(self, low: float, high: float) -> float:
        assert low == 0.0
        self.pauses.append(high)
        return 0.0

    def stream(self, ari: AriClient, heartbeat_seconds: float = 5.0) -> EventStream:
        return EventStream(
            ari,
            on_event=self.event,
            on_connected=self.connected,
            on_lost=self.lost,
            heartbeat_seconds=heartbeat_seconds,
            uniform=self.uniform,
        )


@pytest.fixture
def story() -> Story:
    return Story()


@contextlib.asynccontextmanager
async def running(stream: EventStream) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(stream.run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_events_are_delivered_and_the_filter_is_set_first(fake: FakeAri, ari: AriClient, story: Story) -> None:
    stream = story.stream(ari)
    async with running(stream):
        await until(lambda: stream.live, "live")
        fake.sockets[0].send_text(digit(1), digit(2))
        await until(lambda: story.told[-1] == 2, "two digits")
        assert story.told == ["connected", "reconciled", 1, 2]
    assert story.told[-1] == "lost"
    assert not stream.live
    (events,) = fake.seen("GET", "/events")
    assert events.query == {"app": APP, "subscribeAll": "false"}
    (filtered,) = fake.seen("PUT", f"/applications/{APP}/eventFilter")
    assert {entry["type"] for entry in filtered.body["disallowed"]} == set(UNWANTED)


async def test_what_comes_during_the_reconcile_comes_after_it_in_order(
    fake: FakeAri, ari: AriClient, story: Story
) -> None:
    stream = story.stream(ari)

    async def slow() -> None:
        for number in range(100):
            fake.sockets[0].send_text(digit(number))
            await asyncio.sleep(0)
        await until(lambda: stream.counters.events == 100, "all of them being held")
        fake.sockets[0].send_text(digit(100))

    story.reconcile = slow
    async with running(stream):
        await until(lambda: story.told[-1:] == [100], "the last digit")
        assert story.told == ["connected", "reconciled", *range(101)]


async def test_a_burst_loses_nothing(fake: FakeAri, ari: AriClient, story: Story) -> None:
    stream = story.stream(ari)
    async with running(stream):
        await until(lambda: stream.live, "live")
        fake.sockets[0].send_text(*map(digit, range(20_000)))
        await until(lambda: story.told[-1] == 19_999, "the burst", 20)
        assert story.told[2:] == list(range(20_000))
        assert stream.counters.losses == 0


async def test_what_cannot_be_read_is_counted_and_passed_over(fake: FakeAri, ari: AriClient, story: Story) -> None:
    stream = story.stream(ari)
    async with running(stream):
        await until(lambda: stream.live, "live")
        fake.sockets[0].send_text("{", digit(1), '{"type":"ChannelVarset"}', '{"type":"StasisEnd"}', digit(2))
        await until(lambda: story.told[-1] == 2, "the last digit")
        counters = stream.counters
        assert (counters.events, counters.unknown, counters.malformed) == (2, 1, 2)
        assert (counters.connects, counters.losses) == (1, 0)


@pytest.mark.parametrize("end", [Connection.close, Connection.reset])
async def test_a_lost_connection_is_made_anew_and_reconciled(
    fake: FakeAri, ari: AriClient, story: Story, end: Callable[[Connection], None]
) -> None:
    stream = story.stream(ari)
    async with running(stream):
        for number in range(3):
            await until(lambda number=number: stream.live and len(fake.sockets) > number, "live")
            fake.sockets[number].send_text(digit(number))
            await until(lambda number=number: story.told[-1] == number, "the digit")
            end(fake.sockets[number])
            await until(lambda number=number: stream.counters.losses > number, "the loss")
        await until(lambda: stream.live, "live again")
        once = ["connected", "reconciled"]
        assert story.told == [*once, 0, "lost", *once, 1, "lost", *once, 2, "lost", *once]
    assert len(fake.seen("PUT", f"/applications/{APP}/eventFilter")) == 4
    assert story.pauses == [backoff_limit(failures) for failures in (1, 2, 3)], "short connections are failures"


async def test_a_silent_connection_is_given_up(fake: FakeAri, ari: AriClient, story: Story) -> None:
    stream = story.stream(ari, heartbeat_seconds=0.5)
    async with running(stream):
        await until(lambda: fake.sockets and fake.sockets[0].pings >= 3, "pings that are answered")
        assert stream.counters.losses == 0
        fake.answers_pings = False
        await until(lambda: stream.counters.losses == 1, "the loss of a connection without pongs", 3)
        fake.answers_pings = True
        await until(lambda: stream.live and stream.counters.connects == 2, "another")
    assert story.reasons[0].startswith("connection failed: ")


async def test_a_connection_lost_during_the_reconcile_starts_it_over(
    fake: FakeAri, ari: AriClient, story: Story
) -> None:
    stream = story.stream(ari)
    cancelled = asyncio.Event()

    async def stuck_once() -> None:
        if stream.counters.connects > 1:
            return
        fake.sockets[0].send_text(digit(1), digit(2))
        await until(lambda: stream.counters.events == 2, "both held")
        fake.sockets[0].reset()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    story.reconcile = stuck_once
    async with running(stream):
        await until(lambda: stream.live, "live")
        assert cancelled.is_set()
        assert story.told == ["connected", 1, 2, "lost", "connected", "reconciled"]


async def test_a_reconcile_that_asterisk_does_not_answer_is_tried_again(
    fake: FakeAri, ari: AriClient, story: Story
) -> None:
    fake.script("GET", "/channels", never, says(500, {"message": "internal"}), says(200, []))
    stream = story.stream(ari)

    async def look() -> None:
        await ari.list_channels()

    story.reconcile = look
    async with running(stream):
        await until(lambda: stream.live, "live", 10)
        assert story.told == ["connected", "lost", "connected", "lost", "connected", "reconciled"]
        assert story.reasons == [
            "reconcile failed: GET /channels: no answer within 0.8 s",
            "reconcile failed: GET /channels: 500 internal",
        ]


async def test_more_events_than_can_be_held_start_over(
    fake: FakeAri, ari: AriClient, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "MAX_HELD", 10)
    stream = story.stream(ari)

    async def slow_once() -> None:
        if stream.counters.connects == 1:
            fake.sockets[0].send_text(*map(digit, range(12)))
            await asyncio.Event().wait()

    story.reconcile = slow_once
    async with running(stream):
        await until(lambda: stream.live, "live")
        assert story.told == ["connected", *range(11), "lost", "connected", "reconciled"]
        assert story.reasons == ["more than 10 events came before the reconcile was done"]


async def test_a_fault_of_ours_ends_the_stream(fake: FakeAri, ari: AriClient, story: Story) -> None:
    async def broken() -> None:
        raise KeyError("bug")

    story.reconcile = broken
    with pytest.raises(KeyError, match="bug"):
        await story.stream(ari).run()
    assert story.told == ["connected", "lost"]


async def test_a_fault_in_taking_an_event_ends_the_stream(fake: FakeAri, ari: AriClient, story: Story) -> None:
    stream = story.stream(ari)
    async with running(stream) as task:
        await until(lambda: stream.live, "live")
        fake.sockets[0].send_text((GOLDEN / "StasisEnd.json").read_text())
        with pytest.raises(AssertionError):
            await task


@pytest.mark.parametrize("refusal", [says(404, {}), says(503), hangs_up(), never])
async def test_an_asterisk_that_is_not_there_yet_is_waited_for(
    fake: FakeAri, ari: AriClient, story: Story, refusal: Answer
) -> None:
    async def opens(request: Request, connection: Connection) -> None:
        fake.script("GET", "/events")  # no script: the WebSocket opens
        await connection.respond(503, close=True)

    fake.script("GET", "/events", refusal, refusal, opens)
    stream = story.stream(ari)
    async with running(stream):
        await until(lambda: stream.live, "live", 10)
    assert story.told == ["connected", "reconciled", "lost"]
    # aiohttp itself asks a second time where a connection was closed without an answer.
    assert len(story.pauses) in (2, 3)
    assert story.pauses == [backoff_limit(failures + 1) for failures in range(len(story.pauses))]


async def test_another_controller_took_the_name(fake: FakeAri, ari: AriClient, story: Story) -> None:
    stream = story.stream(ari)
    async with running(stream) as task:
        await until(lambda: stream.live, "live")
        fake.sockets[0].send_text(digit(1), (GOLDEN / "ApplicationReplaced.json").read_text(), digit(2))
        with pytest.raises(AppReplaced, match="'trunkbridge'"):
            await task
    assert story.told == ["connected", "reconciled", 1, "lost"], "nothing after the name was lost"
    assert len(fake.sockets) == 1


async def test_a_wrong_password_ends_the_stream(fake: FakeAri, story: Story) -> None:
    async with AriClient(fake.url, USER, "wrong", APP, LIMIT) as client:
        with pytest.raises(AriUnauthorized):
            await story.stream(client).run()
    assert story.told == []


def test_pauses_grow_to_a_limit() -> None:
    limits = [backoff_limit(failures) for failures in range(0, 1000)]
    assert limits[:4] == [0.1, 0.2, 0.4, 0.8]
    assert limits == sorted(limits)
    assert limits[-1] == BACKOFF_MAX_SECONDS == 1.0
