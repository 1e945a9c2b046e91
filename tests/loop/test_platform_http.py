"""A worker's HTTP requests against a real server: the URL that is asked for before the dial, and callbacks."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import structlog
from aiohttp import web

from audiosocket import platform_http
from audiosocket.dialects.base import HttpRequest
from audiosocket.errors import ApplicationError
from audiosocket.platform_http import PlatformHttp
from audiosocket.resolver import Resolver
from tests.loop.test_app_stream import certificate
from tests.media import call_spec
from tests.worker_rig import rig, until

pytestmark = [pytest.mark.loop, pytest.mark.virtual_time]

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]
ACCOUNT = "AC" + "5" * 32


class Server:
    """An application's HTTP server, which keeps what it is asked and answers as the test says."""

    def __init__(self) -> None:
        self.url = ""
        self.requests: list[web.Request] = []
        self.forms: list[dict[str, Any]] = []
        self.released = asyncio.Event()
        self.answer: Answer | None = None

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.forms.append(dict(await request.post()))
        self.requests.append(request)
        return web.Response() if self.answer is None else await self.answer(request)

    def says(self, *answers: Any, status: int = 200) -> None:
        """Answers in turn (the last one again and again): a text, or a status alone."""

        async def answer(_request: web.Request) -> web.StreamResponse:
            given = answers[min(len(self.requests), len(answers)) - 1]
            return web.Response(status=given) if isinstance(given, int) else web.Response(text=given, status=status)

        self.answer = answer

    async def hang(self, _request: web.Request) -> web.StreamResponse:
        await self.released.wait()
        return web.Response()


@asynccontextmanager
async def listening(tls: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    server = Server()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
    server.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{runner.addresses[0][1]}/hook?token=hunter2"
    try:
        yield server
    finally:
        server.released.set()
        await runner.cleanup()


@asynccontextmanager
async def client() -> AsyncIterator[PlatformHttp]:
    http = PlatformHttp(Resolver())
    try:
        yield http
    finally:
        await http.close()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries without the real pauses."""
    monkeypatch.setattr(platform_http, "CALLBACK_PAUSES_SECONDS", (0.01, 0.02))
    monkeypatch.setattr(platform_http, "LOOKUP_RETRY_SECONDS", 0.01)


# The URL to dial


async def test_a_call_to_a_url_that_was_asked_for() -> None:
    async with listening() as server, rig() as r:
        server.says(json.dumps({"url": r.app.url.replace("://", "://key:token@") + "?agent=a7"}))
        channel = await r.talking(
            url=server.url,
            credentials="asker:secret",
            custom_parameters={"campaign": "demo"},
            dialect_options={"number_format": "national0"},
        )
        await channel.talk(3)
        await r.app.say(b"\x01\x02" * 160)
        await until(channel.audio, "the application heard")
        await channel.hang_up()
        report = await r.report()
    (asked,) = server.requests
    assert asked.method == "GET"
    assert asked.headers["Authorization"] == "Basic " + base64.b64encode(b"asker:secret").decode()
    assert (asked.query["token"], asked.query["From"], asked.query["CallSid"]) == ("hunter2", "09000000001", "9a1b" * 8)
    handshake = r.app.requests[0]
    assert handshake.headers["Authorization"] == "Basic " + base64.b64encode(b"key:token").decode()
    assert handshake.query_string == "agent=a7"
    assert r.app.events("start")[0]["start"]["custom_parameters"] == {"agent": "a7", "campaign": "demo"}
    assert report.reason == "leg_closed"
    asking, connecting = report.milestones[:2]
    assert (asking.event, asking.detail) == ("app_url_asked", {"url": server.url.partition("?")[0]})
    assert (connecting.event, connecting.detail) == ("app_connecting", {"url": r.app.url})
    told = str(report).replace("lease_token", "")
    assert not any(secret in told for secret in ("hunter2", "token", "secret"))


@pytest.mark.parametrize(
    ("answers", "why", "times"),
    [
        (["{}"], "the answer is JSON without a text named url", 1),
        (["https://bot.example/"], "the answer is neither JSON nor a WebSocket URL", 1),
        (['{"url":"https://bot.example/"}'], "the answer's url is no ws:// or wss:// URL of printable ASCII", 1),
        ([404], "HTTP status 404 instead of 200", 1),
        ([302], "HTTP status 302 instead of 200: redirects are not followed", 1),
        ([500], "HTTP status 500 instead of 200", 2),
        (["x" * 16_385], "an answer of more than 16384 bytes", 1),
    ],
)
async def test_a_url_that_is_not_answered_as_it_should(answers: list[Any], why: str, times: int) -> None:
    async with listening() as server, rig() as r:
        server.says(*answers)
        channel = await r.call(url=server.url)
        await channel.ended()
        report = await r.report()
        assert (report.reason, report.detail) == ("app_url_failed", f"{server.url.partition('?')[0]}: {why}")
        assert len(server.requests) == times
        assert not r.app.requests


async def test_a_large_answer_is_not_read_to_its_end() -> None:
    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while not server.released.is_set():
            await response.write(b" " * 65_536)
        return response

    async with listening() as server, client() as http:
        server.answer = endless
        with pytest.raises(ApplicationError, match="more than 16384 bytes"):
            await http.resolve(call_spec(url=server.url))


async def test_a_compressed_answer_is_not_unpacked() -> None:
    async def packed(_request: web.Request) -> web.StreamResponse:
        response = web.Response(text="wss://bot.example/" + " " * 10_000)
        response.enable_compression(web.ContentCoding.gzip)
        # aiohttp's server would honour that the client does not want it.
        response._compression_force = web.ContentCoding.gzip
        return response

    async with listening() as server, client() as http:
        server.answer = packed
        with pytest.raises(ApplicationError, match="neither JSON nor a WebSocket URL"):
            await http.resolve(call_spec(url=server.url))
        assert server.requests[0].headers["Accept-Encoding"] == "identity"


async def test_one_failure_is_tried_again() -> None:
    async with listening() as server, client() as http:
        server.says(503, "wss://bot.example/")
        assert (await http.resolve(call_spec(url=server.url))).url == "wss://bot.example/"
        assert len(server.requests) == 2


async def test_a_slow_answer_ends_at_the_one_limit() -> None:
    async with listening() as server, client() as http:
        server.answer = server.hang
        began = time.monotonic()
        with pytest.raises(ApplicationError, match=r"no answer within 0\.2 s"):
            await http.resolve(call_spec(url=server.url, connect_timeout_seconds=0.2, connect_attempts=5))
        assert time.monotonic() - began < 5
        assert len(server.requests) == 1


async def test_nobody_answers() -> None:
    async with client() as http:
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{closed.getsockname()[1]}/hunter?token=hunter2"
            with pytest.raises(ApplicationError) as caught:
                await http.resolve(call_spec(url=url))
        assert caught.value.reason == "app_url_failed"
        assert caught.value.detail.startswith(url.partition("?")[0] + ": ")
        assert "refused" in caught.value.detail.lower()


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (b"", "the connection ended before the answer was whole"),
        (b"SSH-2.0-hunter2\r\n\r\n", "the answer is no HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nwss", "the connection ended before the answer was whole"),
    ],
)
async def test_what_answers_is_no_web_server(reply: bytes, why: str) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(reply)
        await writer.drain()
        writer.close()

    served = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with served, client() as http:
        port = served.sockets[0].getsockname()[1]
        with pytest.raises(ApplicationError) as caught:
            await http.resolve(call_spec(url=f"http://127.0.0.1:{port}/?token=hunter2"))
    assert caught.value.detail == f"http://127.0.0.1:{port}/: {why}"


async def test_a_certificate_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    async with listening(certificate(tmp_path, "unknown", "IP:127.0.0.1")) as server, client() as http:
        with pytest.raises(ApplicationError) as caught:
            await http.resolve(call_spec(url=server.url))
        assert not server.requests
    assert f"{server.url.partition('?')[0]}: TLS certificate refused: self-signed" in caught.value.detail


async def test_what_answers_does_not_speak_tls() -> None:
    async with listening() as server, client() as http:
        with pytest.raises(ApplicationError, match="TLS failed") as caught:
            await http.resolve(call_spec(url=server.url.replace("http:", "https:"), connect_attempts=1))
    assert "hunter2" not in caught.value.detail


@pytest.mark.parametrize("url", ["http://", "http://h:port/", "http://[::1/", "https://\N{SNOWMAN}:0/?a=hunter2"])
async def test_a_url_that_cannot_be_asked(url: str) -> None:
    async with client() as http:
        with pytest.raises(ApplicationError) as caught:
            await http.resolve(call_spec(url=url, connect_attempts=1))
    assert caught.value.reason == "app_url_failed"
    assert "hunter2" not in caught.value.detail


async def test_twilio_has_no_dynamic_urls() -> None:
    async with client() as http:
        with pytest.raises(ApplicationError, match="dialect twilio has no dynamic URLs"):
            await http.resolve(call_spec(url="https://app.example/", dialect="twilio", account_sid=ACCOUNT))


async def test_the_caller_hangs_up_while_the_url_is_asked_for() -> None:
    async with listening() as server, listening() as crm, rig() as r:
        server.answer = server.hang
        channel = await r.call(url=server.url, callback_url=crm.url)
        await until(lambda: server.requests, "the URL asked for")
        await channel.hang_up()
        assert (await r.report()).reason == "leg_closed"
        await until(lambda: crm.requests, "Passthru")
        assert crm.requests[0].query["Stream[Status]"] == "cancelled"
        assert crm.requests[0].query["Stream[StreamUrl]"] == server.url.partition("?")[0]


# Callbacks


@pytest.mark.parametrize("ending", ["caller", "application", "lost", "refused", "stopped", "no url"])
async def test_passthru_tells_how_the_stream_ended(ending: str) -> None:
    async def refuse(_request: web.Request) -> web.StreamResponse:
        return web.Response(status=401)

    async with listening() as crm, rig(drain_seconds=0.1) as r:
        if ending == "refused":
            r.app.before_upgrade = refuse
        if ending in ("refused", "no url"):
            changes = {"url": crm.url.replace("token", "sorry")} if ending == "no url" else {}
            channel = await r.call(callback_url=crm.url, connect_attempts=1, **changes)
            await channel.ended()
        else:
            channel = await r.talking(callback_url=crm.url)
            await channel.talk(3)
        if ending == "caller":
            await channel.hang_up()
        elif ending == "application":
            await r.app.sockets[0].close()
        elif ending == "lost":
            r.app.sockets[0]._req.transport.abort()  # type: ignore[union-attr]
        elif ending == "stopped":
            r.stop.requested.set()
        await r.report()
        passthrus = await until(lambda: [each for each in crm.requests if "token" in each.query], "Passthru")
        await until(lambda: r.worker.http.sent == 1, "counted")
        told = passthrus[0].query
    status, by, error = {
        "caller": ("completed", "user", None),
        "application": ("completed", "bot", None),
        "lost": ("failed", "bot", "app_lost: the connection ended without a close frame"),
        "refused": ("failed", "NA", "app_refused: HTTP status 401 instead of 101"),
        "stopped": ("completed", "NA", None),
        "no url": (
            "failed",
            "NA",
            f"app_url_failed: {crm.url.partition('?')[0]}: the answer is neither JSON nor a WebSocket URL",
        ),
    }[ending]
    assert len(passthrus) == 1
    assert passthrus[0].method == "GET"
    assert (told["Stream[Status]"], told["Stream[DisconnectedBy]"], told.get("Stream[Error]")) == (status, by, error)
    assert (told["CallSid"], told["token"], told["flow_id"]) == ("9a1b" * 8, "hunter2", "test")


async def test_twilio_is_told_of_start_and_end_with_signatures_that_hold() -> None:
    async with listening() as crm, rig() as r:
        channel = await r.talking(dialect="twilio", account_sid=ACCOUNT, credentials="key", callback_url=crm.url)
        await until(lambda: len(crm.forms) == 1, "the start told while the call goes on")
        await channel.hang_up()
        await r.report()
        await until(lambda: len(crm.forms) == 2, "the end told")
    assert [form["StreamEvent"] for form in crm.forms] == ["stream-started", "stream-stopped"]
    for form, request in zip(crm.forms, crm.requests, strict=True):
        assert request.method == "POST"
        assert (form["StreamSid"], form["CallSid"]) == ("MZ" + "0f3c" * 8, "CA" + "9a1b" * 8)
        signed = crm.url + "".join(key + str(form[key]) for key in sorted(form))
        assert str(request.url) == crm.url
        signature = base64.b64encode(hmac.new(b"key", signed.encode(), "sha1").digest()).decode()
        assert request.headers["X-Twilio-Signature"] == signature


def callback(url: str) -> HttpRequest:
    return HttpRequest("GET", url, {})


@pytest.mark.parametrize(
    ("answers", "sent", "times"),
    [([200], 1, 1), ([302], 1, 1), ([500, 503, 200], 1, 3), ([500], 0, 3), ([404], 0, 1), ([429], 0, 1)],
)
async def test_a_callback_is_repeated_where_that_may_help(answers: list[int], sent: int, times: int) -> None:
    async with listening() as crm, client() as http:
        crm.says(*answers)
        with structlog.testing.capture_logs() as logs:
            http.deliver(callback(crm.url), "call-7")
            await until(lambda: http.sent + http.failed, "an outcome")
        assert (http.sent, http.failed, http.dropped) == (sent, 1 - sent, 0)
        assert len(crm.requests) == times
        assert not http._lanes
    assert [entry["event"] for entry in logs] == ["callback_failed"] * (1 - sent)
    assert "hunter2" not in str(logs)
    assert all(entry["call_id"] == "call-7" and "/hook" in entry["url"] for entry in logs)


async def test_a_callback_that_is_not_answered_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform_http, "CALLBACK_SECONDS", 0.1)
    async with listening() as crm, client() as http:
        crm.answer = crm.hang
        http.deliver(callback(crm.url), "")
        await until(lambda: http.failed, "given up")
        assert len(crm.requests) == 3


async def test_an_answer_that_never_ends_is_an_answer_all_the_same() -> None:
    async def status_alone(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await crm.released.wait()
        return response

    async with listening() as crm, client() as http:
        crm.answer = status_alone
        http.deliver(callback(crm.url), "")
        await until(lambda: http.sent, "sent")
        assert len(crm.requests) == 1


async def test_a_dead_server_costs_nobody_else_s_callbacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform_http, "CALLBACKS_WAITING_MAX", 20)
    monkeypatch.setattr(platform_http, "CLOSE_SECONDS", 0.1)
    async with listening() as dead, listening() as alive, client() as http:
        dead.answer = dead.hang
        with structlog.testing.capture_logs() as logs:
            for _ in range(25):
                http.deliver(callback(dead.url), "")
            await until(lambda: len(dead.requests) == platform_http.CALLBACKS_AT_ONCE, "as many as are allowed at once")
            assert http.dropped == 5
            for _ in range(10):
                http.deliver(callback(alive.url), "")
            await until(lambda: http.sent == 10, "the others' callbacks")
            assert len(dead.requests) == platform_http.CALLBACKS_AT_ONCE
            await http.close()
        assert http.dropped == 25
        http.deliver(callback(alive.url), "")
        assert (http.sent, http.dropped) == (10, 26)
    assert [entry["event"] for entry in logs] == ["callback_dropped"] * 5 + ["callbacks_given_up"]


async def test_a_worker_stops_in_time_with_a_callback_server_that_hangs() -> None:
    async with listening() as crm:
        crm.answer = crm.hang
        async with rig() as r:
            channel = await r.talking(callback_url=crm.url)
            await channel.hang_up()
            report = await r.report()
            assert report.reason == "leg_closed"  # told before the callback was answered
            await until(lambda: crm.requests, "the callback under way")
            began = time.monotonic()
        stopped = time.monotonic() - began
        assert stopped < platform_http.CLOSE_SECONDS + 5
        assert (r.worker.http.sent, r.worker.http.failed, r.worker.http.dropped) == (0, 0, 1)


async def test_the_outcomes_are_metrics() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    async with listening() as crm, rig(status_host="127.0.0.1", status_port=port) as r:
        channel = await r.talking(callback_url=crm.url)
        await channel.hang_up()
        await until(lambda: r.worker.http.sent, "sent")
        async with aiohttp.ClientSession() as http, http.get(f"http://127.0.0.1:{port}/metrics") as response:
            metrics = await response.text()
    assert 'trunkbridge_callbacks_total{outcome="sent"} 1.0' in metrics
    assert 'trunkbridge_callbacks_total{outcome="failed"} 0.0' in metrics
    assert 'trunkbridge_callbacks_total{outcome="dropped"} 0.0' in metrics
