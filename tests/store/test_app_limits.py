"""Applications' limits: what holds after which change, in real stores, by the command line and over HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest
import pytest_asyncio
import redis.asyncio
import structlog
from aiohttp.test_utils import TestClient, TestServer
from click.testing import CliRunner

from ari_app.api.answers import MAX_BODY_BYTES
from ari_app.api.app import api_app
from ari_app.cli.apps import apps
from ari_app.errors import NoCapacity, StoreUnavailable
from ari_app.fleet.app_limits import AppLimits, UnknownApplication, WrongLimit
from ari_app.fleet.leases import LIMITS_KEY, Leases
from ari_app.limit import MAX_CALLS, LimitSettings
from ari_app.store.limits import LimitStore
from audiosocket.callspec import WorkerInfo
from audiosocket.registry import Registry

pytestmark = pytest.mark.store

TOKEN = "a-token-that-nobody-guesses"
WEBHOOK = {"target": 0.8, "min": 2, "max": 40}
SETTINGS = {
    "bot": LimitSettings.model_validate({"calls": 2}),
    "free": LimitSettings(),
    "gpu": LimitSettings.model_validate({"calls": 4, "webhook": WEBHOOK}),
}
WORKER = WorkerInfo(
    worker_id="gw/0",
    node="gw",
    pair="mumbai",
    host="127.0.0.1",
    port=9092,
    status_url="",
    capacity=1000,
    active=0,
    draining=False,
    version="1",
    started_at_ms=0,
)


class Rig:
    """The limits, and a controller's leases beside them."""

    def __init__(self, client: redis.asyncio.Redis, pool: asyncpg.Pool) -> None:
        self.redis = client
        self.store = LimitStore(pool)
        self.leases = Leases(client, 30, node="pbx", pair="mumbai")
        self.limits = AppLimits(client, self.leases, self.store, SETTINGS)

    async def acquire(self, call_id: str, application: str = "bot", line_max: int = 0) -> None:
        limit = SETTINGS[application].calls
        await self.leases.acquire(call_id, application=application, limit=limit, line_max=line_max)

    async def fits(self, application: str = "bot") -> int:
        """How many calls more are let in."""
        taken: list[str] = []
        with suppress(NoCapacity):
            while len(taken) < 50:
                await self.acquire(f"probe-{len(taken)}", application)
                taken.append(f"probe-{len(taken)}")
        for call_id in taken:
            await self.leases.release(call_id, 0)
        return len(taken)

    async def copy(self) -> dict[str, str]:
        found: Any = await self.redis.hgetall(LIMITS_KEY)
        return {name.decode(): calls.decode() for name, calls in found.items()}


@pytest_asyncio.fixture
async def rig(redis_client: redis.asyncio.Redis, pool: asyncpg.Pool) -> AsyncIterator[Rig]:
    registry = Registry(redis_client)
    await registry.heartbeat(WORKER)

    async def lives() -> None:
        while True:
            await asyncio.sleep(0.5)
            await registry.heartbeat(WORKER)

    beating = asyncio.create_task(lives())
    yield Rig(redis_client, pool)
    beating.cancel()
    await asyncio.gather(beating, return_exceptions=True)


@pytest.fixture(autouse=True)
def plain_logs() -> Iterator[None]:
    structlog.configure(processors=[structlog.processors.KeyValueRenderer()])
    yield
    structlog.reset_defaults()


async def test_what_is_set_holds_for_the_next_call_and_the_configuration_again_when_it_is_taken_back(rig: Rig) -> None:
    assert await rig.fits() == 2
    state = await rig.limits.put("bot", 5, "cli anna")
    assert (state.limit, state.source, state.configured, state.set_by) == (5, "operator", 2, "cli anna")
    assert await rig.fits() == 5
    state = await rig.limits.put("bot", 0, "api desk")
    assert await rig.fits() == 0
    assert (await rig.limits.state("bot")) == state
    state = await rig.limits.take_back("bot")
    assert (state.limit, state.source, state.set_by, state.set_at) == (2, "configuration", None, None)
    assert await rig.fits() == 2
    assert await rig.copy() == {}


async def test_an_application_without_a_limit_may_be_given_one(rig: Rig) -> None:
    assert (await rig.limits.state("free")).limit is None
    assert await rig.fits("free") == 50
    await rig.limits.put("free", 1, "x")
    assert await rig.fits("free") == 1
    await rig.limits.take_back("free")
    assert await rig.fits("free") == 50


async def test_calls_waiting_and_pairs_are_told(rig: Rig) -> None:
    for call_id in ("a", "b"):
        await rig.acquire(call_id)
    with pytest.raises(NoCapacity) as full:
        await rig.acquire("c", line_max=3)
    assert full.value.place == 1
    bot, free, gpu = await rig.limits.states()
    assert (bot.application, bot.calls, bot.waiting, bot.pairs) == ("bot", 2, 1, {"mumbai": 2})
    assert (free.calls, free.waiting, free.pairs) == (0, 0, {})
    assert (gpu.application, gpu.limit) == ("gpu", 4)
    await rig.limits.put("bot", 3, "x")
    await rig.acquire("c", line_max=3)
    assert (await rig.limits.state("bot")).waiting == 0


async def test_lowered_below_what_there_is_it_ends_nothing_and_lets_nobody_in(rig: Rig) -> None:
    await rig.limits.put("bot", 4, "x")
    for call_id in "abcd":
        await rig.acquire(call_id)
    await rig.limits.put("bot", 2, "x")
    for call_id in "ab":
        await rig.leases.release(call_id, 0)
        with pytest.raises(NoCapacity):
            await rig.acquire("late")
    assert (await rig.limits.state("bot")).calls == 2
    await rig.leases.release("c", 0)
    await rig.acquire("late")


async def test_two_controllers_and_one_last_slot(rig: Rig) -> None:
    other = Leases(rig.redis, 30, node="pbx-2", pair="mumbai")
    await rig.limits.put("bot", 7, "x")

    async def tries(leases: Leases, call_id: str) -> bool:
        try:
            await leases.acquire(call_id, application="bot", limit=2)
        except NoCapacity:
            return False
        return True

    got = await asyncio.gather(*(tries((rig.leases, other)[index % 2], f"call-{index}") for index in range(40)))
    assert sum(got) == 7


@pytest.mark.parametrize("calls", [-1, MAX_CALLS + 1, 10**30])
async def test_what_is_no_limit_changes_nothing(rig: Rig, calls: int) -> None:
    with pytest.raises(WrongLimit, match="from 0 to 100000"):
        await rig.limits.put("bot", calls, "x")
    assert await rig.store.all() == {}


async def test_an_unknown_application_is_named_with_those_that_there_are(rig: Rig) -> None:
    for wrong in (rig.limits.put("bto", 1, "x"), rig.limits.state("bto"), rig.limits.take_back("bto")):
        with pytest.raises(UnknownApplication, match="'bto': one of bot, free, gpu"):
            await wrong


# Utilisation


async def test_the_limit_follows_the_utilisation(rig: Rig) -> None:
    for call_id in "abcd":
        await rig.acquire(call_id, "gpu")
    state = await rig.limits.report("gpu", 0.4, "api cluster")
    assert (state.limit, state.source, state.set_by) == (5, "webhook", "api cluster")
    assert await rig.fits("gpu") == 1
    assert (await rig.limits.report("gpu", 1.6, "api cluster")).limit == 2
    assert (await rig.limits.report("gpu", 0.75, "api cluster")).limit == 2
    row = await rig.store.get("gpu")
    await rig.limits.report("gpu", 0.75, "api cluster")
    assert await rig.store.get("gpu") == row, "what does not change is not written"


async def test_an_operator_s_limit_is_not_moved_by_the_cluster(rig: Rig) -> None:
    await rig.limits.report("gpu", 3.0, "api cluster")
    await rig.limits.put("gpu", 17, "cli anna")
    state = await rig.limits.report("gpu", 3.0, "api cluster")
    assert (state.limit, state.source, state.set_by) == (17, "operator", "cli anna")
    # As of a report that was on its way when the operator came.
    held = await rig.store.put("gpu", 3, "webhook", "api cluster")
    assert (held.calls, held.source) == (17, "operator")
    await rig.limits.take_back("gpu")
    assert (await rig.limits.report("gpu", 3.0, "api cluster")).source == "webhook"


async def test_only_who_has_a_webhook_follows_one(rig: Rig) -> None:
    with pytest.raises(WrongLimit, match=r"'bot' follows no utilisation: give it limit\.webhook"):
        await rig.limits.report("bot", 0.5, "x")


# What is lost, and comes back


async def test_a_redis_that_lost_its_memory_gets_the_limits_back(rig: Rig) -> None:
    await rig.limits.put("bot", 5, "x")
    await rig.limits.put("free", 3, "x")
    await rig.redis.delete(LIMITS_KEY)
    await rig.redis.hset(LIMITS_KEY, "gone", "9")
    await rig.limits.compare()
    assert await rig.copy() == {"bot": "5", "free": "3"}


class Away(LimitStore):
    """A PostgreSQL that does not answer when it is told not to."""

    away = False

    async def all(self) -> Any:
        if self.away:
            raise StoreUnavailable("postgres", "scripted")
        return await super().all()


async def test_while_postgresql_is_away_what_is_known_stays(rig: Rig, pool: asyncpg.Pool) -> None:
    store = Away(pool)
    keeper = AppLimits(rig.redis, rig.leases, store, SETTINGS)
    await rig.limits.put("bot", 5, "x")
    await keeper.compare()
    store.away = True
    await rig.redis.flushall()
    with pytest.raises(StoreUnavailable):
        await keeper.compare()
    assert await rig.copy() == {"bot": "5"}
    fresh = AppLimits(rig.redis, rig.leases, store, SETTINGS)
    with pytest.raises(StoreUnavailable):
        await fresh.compare()
    assert await rig.copy() == {"bot": "5"}, "who knows nothing takes nothing away"


async def test_keeping_goes_on_after_a_failure(rig: Rig, pool: asyncpg.Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ari_app.fleet.keeping.KEEP_SECONDS", 0.02)
    store = Away(pool)
    store.away = True
    keeper = AppLimits(rig.redis, rig.leases, store, SETTINGS)
    await rig.limits.put("bot", 5, "x")
    await rig.redis.flushall()
    task = asyncio.create_task(keeper.keep())
    await asyncio.sleep(0.1)
    assert await rig.copy() == {}
    store.away = False
    async with asyncio.timeout(5):
        while await rig.copy() != {"bot": "5"}:
            await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_what_changed_while_it_was_compared_is_left(rig: Rig) -> None:
    """The truth that was read is older than the copy that another process has written since."""
    await rig.limits.put("bot", 5, "x")
    await rig.limits._put("bot", "4", "3")
    assert await rig.copy() == {"bot": "5"}


# Over HTTP


@pytest_asyncio.fixture
async def http(rig: Rig) -> AsyncIterator[TestClient[Any, Any]]:
    app = api_app(rig.limits, {"cluster": TOKEN, "desk": "another-token-of-length"})
    async with TestClient(TestServer(app), headers={"Authorization": f"Bearer {TOKEN}"}) as client:
        yield client


async def said(answer: Any) -> Any:
    assert answer.content_type == "application/json"
    return await answer.json()


async def test_limits_over_http(http: TestClient[Any, Any], rig: Rig) -> None:
    listed = await said(await http.get("/v1/applications"))
    assert [each["application"] for each in listed["applications"]] == ["bot", "free", "gpu"]
    state = await said(await http.put("/v1/applications/bot/limit", json={"limit": 9}))
    assert (state["limit"], state["source"], state["set_by"]) == (9, "operator", "api cluster")
    assert state == await said(await http.get("/v1/applications/bot/limit"))
    assert await rig.fits() == 9
    assert (await said(await http.delete("/v1/applications/bot/limit")))["limit"] == 2
    report = await said(await http.post("/v1/applications/gpu/utilisation", json={"utilisation": 2, "model": "x"}))
    assert report["limit"] == 2


async def test_who_has_no_token_learns_and_changes_nothing(http: TestClient[Any, Any], rig: Rig) -> None:
    wrong = ("", "Bearer", f"Bearer {TOKEN}x", f"Basic {TOKEN}", TOKEN, "Bearer ", f"Bearer  {TOKEN}", "Bearer \udcff")
    for header in wrong[:-1]:
        for method, path in (("GET", "/v1/applications"), ("PUT", "/v1/applications/bot/limit"), ("GET", "/nowhere")):
            answer = await http.request(method, path, json={"limit": 1}, headers={"Authorization": header})
            assert answer.status == 401
            assert answer.headers["WWW-Authenticate"] == "Bearer"
            assert (await said(answer))["error"] == "unauthorized"
    assert await rig.store.all() == {}
    answer = await http.get("/healthz", headers={"Authorization": ""})
    assert (answer.status, await answer.text()) == (200, "ok\n")


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "error"),
    [
        ("PUT", "/v1/applications/bot/limit", b"", 400, "bad_body"),
        ("PUT", "/v1/applications/bot/limit", b"[]", 400, "bad_body"),
        ("PUT", "/v1/applications/bot/limit", b"{}", 400, "bad_body"),
        ("PUT", "/v1/applications/bot/limit", b'{"limit": "5"}', 400, "bad_body"),
        ("PUT", "/v1/applications/bot/limit", b'{"limit": true}', 400, "bad_body"),
        ("PUT", "/v1/applications/bot/limit", b'{"limit": 1.5}', 400, "bad_body"),
        ("PUT", "/v1/applications/bot/limit", b'{"limit": -1}', 422, "wrong_limit"),
        ("PUT", "/v1/applications/bot/limit", b'{"limit": ' + b"9" * 400 + b"}", 422, "wrong_limit"),
        ("PUT", "/v1/applications/bot/limit", b"\xff\xfe", 400, "bad_body"),
        ("PUT", "/v1/applications/bot/limit", b"[" * 8000, 400, "bad_body"),
        ("PUT", "/v1/applications/bot/limit", b" " * (MAX_BODY_BYTES + 1), 413, "body_too_large"),
        ("PUT", "/v1/applications/nobody/limit", b'{"limit": 1}', 404, "unknown_application"),
        ("PUT", "/v1/applications/%00/limit", b'{"limit": 1}', 404, "unknown_application"),
        ("POST", "/v1/applications/bot/limit", b"{}", 405, "method_not_allowed"),
        ("GET", "/v2", b"", 404, "not_found"),
        ("POST", "/v1/applications/gpu/utilisation", b'{"utilisation": -0.1}', 400, "bad_body"),
        ("POST", "/v1/applications/gpu/utilisation", b'{"utilisation": NaN}', 400, "bad_body"),
        ("POST", "/v1/applications/gpu/utilisation", b'{"utilisation": 1e999}', 400, "bad_body"),
        ("POST", "/v1/applications/gpu/utilisation", b'{"load": 1}', 400, "bad_body"),
        ("POST", "/v1/applications/bot/utilisation", b'{"utilisation": 1}', 409, "no_webhook"),
    ],
)
async def test_what_is_wrong_is_told(
    http: TestClient[Any, Any], rig: Rig, method: str, path: str, body: bytes, status: int, error: str
) -> None:
    answer = await http.request(method, path, data=body)
    told = await said(answer)
    assert (answer.status, told["error"]) == (status, error), told
    assert told["where"].startswith(method)
    assert told["message"]
    assert await rig.store.all() == {}
    assert (await http.get("/v1/applications")).status == 200, "and it goes on"


async def test_a_fault_of_ours_is_told_without_its_insides(
    http: TestClient[Any, Any], rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def breaks(*_: Any) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(rig.limits, "states", breaks)
    answer = await http.get("/v1/applications")
    assert answer.status == 500
    assert "secret" not in json.dumps(await said(answer))


async def test_a_body_that_never_comes_does_not_hold_anybody_up(
    http: TestClient[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ari_app.api.answers.REQUEST_SECONDS", 0.2)
    reader, writer = await asyncio.open_connection(http.server.host, http.server.port)  # type: ignore[union-attr]
    head = f"PUT /v1/applications/bot/limit HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
    writer.write(f"{head}Content-Length: 100\r\n\r\n{{".encode())
    async with asyncio.timeout(10):
        assert b" 503 " in await reader.readline()
    writer.close()


async def test_stores_that_are_away_are_told(rig: Rig) -> None:
    closed = await asyncpg.create_pool(host="127.0.0.1", port=1, min_size=0, timeout=1, user="x", database="x")
    limits = AppLimits(rig.redis, rig.leases, LimitStore(closed), SETTINGS)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with TestClient(TestServer(api_app(limits, {"cluster": TOKEN})), headers=headers) as client:
        answer = await client.put("/v1/applications/bot/limit", json={"limit": 1})
        assert (answer.status, (await said(answer))["error"]) == (503, "postgres")
    await closed.close()


# By the command line


@pytest.fixture
def config(tmp_path: Path, stores: Any) -> Path:
    path = tmp_path / "trunkbridge.yml"
    secret = {"env": "PATH"}
    data = {
        "node": "pbx",
        "store": {"postgres": stores.postgres, "redis": stores.redis},
        "asterisk": {"ari": {"password": secret}, "ami": {"password": secret}},
        "trunks": {"carrier": {"identify": ["10.0.0.1"]}},
        "applications": {"bot": {"url": "ws://bot/", "limit": {"calls": 2}}, "free": {"url": "ws://free/"}},
        "routes": [{"did": "*", "application": "bot"}],
    }
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def run(config: Path, *arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(apps, [*arguments, "-c", str(config)])
    assert result.exit_code == code, result.output
    return result.output


def test_the_command_line_shows_and_changes_limits(config: Path) -> None:
    header, bot, free = (line.split() for line in run(config, "list").splitlines())
    assert header[:2] == ["APPLICATION", "LIMIT"]
    assert bot == ["bot", "2", "configuration", "2", "reject", "0", "0"]
    assert free == ["free", "none", "reject", "0", "0"]
    state = json.loads(run(config, "limit", "bot", "7", "-o", "json"))
    assert (state["limit"], state["source"]) == (7, "operator")
    assert state["set_by"].startswith("cli ")
    assert json.loads(run(config, "limit", "bot", "-o", "json")) == state
    assert "operator" in run(config, "list")
    assert run(config, "limit", "bot", "--default").splitlines()[1].split()[1:3] == ["2", "configuration"]
    run(config, "limit", "bot", "7", "--default", code=2)
    run(config, "limit", "bot", "-7", code=2)
    run(config, "limit", "nobody", code=1)


def test_a_limit_is_written_as_the_api_writes_it(config: Path) -> None:
    listed = json.loads(run(config, "list", "-o", "json"))
    assert [each["application"] for each in listed] == ["bot", "free"]
    assert msgspec.json.decode(msgspec.json.encode(listed)) == listed
