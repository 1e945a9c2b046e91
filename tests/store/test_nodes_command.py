"""`trunkbridge nodes` and `pairs`: what they show, and what a mark does to placement, in real PostgreSQL and Redis."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from msgspec.structs import replace

from ari_app.cli import nodes as command
from ari_app.errors import NoCapacity
from ari_app.fleet import keeping
from ari_app.fleet.leases import Leases
from ari_app.fleet.marks import Marks
from ari_app.store.controllers import ControllerInfo, Controllers
from ari_app.store.postgres import open_pool
from audiosocket.callspec import WorkerInfo
from audiosocket.registry import Registry
from audiosocket.runtime.stores import open_redis
from audiosocket.settings import StoreUrls

pytestmark = pytest.mark.store

WORKER = WorkerInfo(
    worker_id="gw-1/0",
    node="gw-1",
    pair="north",
    host="10.0.0.7",
    port=9092,
    status_url="",
    capacity=100,
    active=0,
    draining=False,
    version="1.2",
    started_at_ms=0,
)
WORKERS = [
    WORKER,
    replace(WORKER, worker_id="gw-1/1", overloaded=True),
    replace(WORKER, worker_id="gw-2/0", node="gw-2", pair="south", version="1.3"),
]
CONTROLLER = ControllerInfo(
    node="pbx-1",
    instance="a",
    pair="north",
    role="active",
    accepting=True,
    calls=3,
    capacity=500,
    version="1.2",
    started_at_ms=0,
)
CONTROLLERS = [
    CONTROLLER,
    replace(CONTROLLER, instance="b", role="standby", calls=0),
    replace(CONTROLLER, node="pbx-2", pair="south", accepting=False),
]


@pytest.fixture
def config(tmp_path: Path, stores: StoreUrls) -> Path:
    path = tmp_path / "node.yml"
    path.write_text(
        f"node: gw-1\nstore: {{postgres: '{stores.postgres}', redis: '{stores.redis}'}}\n", encoding="utf-8"
    )
    return path


async def fleet(urls: StoreUrls) -> None:
    client = open_redis(urls)
    registry = Registry(client)
    for worker in WORKERS:
        await registry.heartbeat(worker)
    for controller in CONTROLLERS:
        await Controllers(client).announce_controller(controller)
    await registry.close()


def cli(config: Path, *arguments: str, code: int = 0) -> str:
    group = command.pairs if arguments[0] == "pairs" else command.nodes
    result = CliRunner().invoke(group, [*arguments[1:], "-c", str(config)])
    assert result.exit_code == code, result.output
    return re.sub(" +", " ", result.output)


def state(config: Path, node: str) -> dict[str, str]:
    """By role."""
    rows = json.loads(cli(config, "nodes", "list", "-o", "json"))
    return {row["role"]: row["state"] for row in rows if row["node"] == node}


def with_stores(urls: StoreUrls, work: Callable[[Marks, Leases], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        client, pool = open_redis(urls), await open_pool(urls)
        try:
            return await work(Marks(pool, client), Leases(client, 30, node="pbx-1", pair="north"))
        finally:
            await client.aclose()
            await pool.close()

    return asyncio.run(run())


def test_nodes_and_pairs_are_listed_with_what_they_have(config: Path, stores: StoreUrls) -> None:
    asyncio.run(fleet(stores))
    with_stores(stores, lambda _, leases: leases.acquire("a call"))
    shown = cli(config, "nodes", "list")
    assert "gw-1 gateway north ready 1 of 200 2 1.2" in shown
    assert "pbx-1 pbx north ready 3 of 500 2 1.2" in shown
    assert "gw-2 gateway south ready 0 of 100 1 1.3" in shown
    assert "pbx-2 pbx south not accepting 3 of 500 1 1.2" in shown
    shown = cli(config, "pairs", "list")
    assert "north ready 1 of 200 0% 2 gw-1, pbx-1" in shown
    assert "south no PBX 0 of 100 0% 1 gw-2, pbx-2" in shown
    shown = cli(config, "nodes", "show", "gw-1")
    assert "gateway: ready, 1 of 200 calls" in shown
    assert "gw-1/1 north overloaded" in shown
    shown = cli(config, "nodes", "show", "pbx-1")
    assert "pbx-1/b north standby" in shown


def test_a_cordoned_node_gets_no_calls_until_it_is_resumed(config: Path, stores: StoreUrls) -> None:
    asyncio.run(fleet(stores))
    assert cli(config, "nodes", "cordon", "gw-1").startswith("gw-1: cordoned")
    assert state(config, "gw-1") == {"gateway": "cordoned"}
    assert re.search(r"^cordoned by \S+ since 20", cli(config, "nodes", "show", "gw-1"))
    assert "north no worker" in cli(config, "pairs", "list")

    async def refused(_: Marks, leases: Leases) -> str:
        with pytest.raises(NoCapacity) as error:
            await leases.acquire("a call")
        return error.value.reason

    assert with_stores(stores, refused) == "all_draining"
    assert cli(config, "nodes", "resume", "gw-1") == "gw-1: takes calls\n"
    assert cli(config, "nodes", "resume", "gw-1") == "gw-1: was neither cordoned nor draining\n"
    lease = with_stores(stores, lambda _, leases: leases.acquire("a call"))
    assert lease.worker.worker_id == "gw-1/0"


def test_a_drain_waits_for_the_last_call(config: Path, stores: StoreUrls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "LOOK_SECONDS", 0.05)
    asyncio.run(fleet(stores))
    lease = with_stores(stores, lambda _, leases: leases.acquire("a call"))
    shown = cli(config, "nodes", "drain", "gw-1", "--seconds", "0.1", code=1)
    assert shown.startswith("gw-1: 1 calls left\nError: gw-1: 1 calls are left after 0.1 s")
    assert state(config, "gw-1") == {"gateway": "draining"}
    assert with_stores(stores, lambda _, leases: leases.release("a call", lease.token))
    assert cli(config, "nodes", "drain", "gw-1") == "gw-1: drained, no call is left\n"


def test_a_mark_outlives_a_redis_that_lost_its_memory(
    config: Path, stores: StoreUrls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "KEEP_SECONDS", 0.01)
    asyncio.run(fleet(stores))
    cli(config, "nodes", "cordon", "gw-1")

    async def forgetting(marks: Marks, leases: Leases) -> str:
        client = open_redis(stores)
        await client.flushall()
        await client.aclose()
        await fleet(stores)
        assert (await leases.acquire("early")).worker.worker_id == "gw-1/0"
        keeping = asyncio.create_task(marks.keep())
        try:
            async with asyncio.timeout(10):
                while True:
                    try:
                        await leases.acquire("late")
                    except NoCapacity as error:
                        return error.reason
                    await leases.release("late", 0)
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)

    assert with_stores(stores, forgetting) == "all_draining"


def test_a_node_that_died_is_shown_until_it_is_forgotten(config: Path, stores: StoreUrls) -> None:
    asyncio.run(fleet(stores))
    assert "is there: stop its controllers" in cli(config, "nodes", "forget", "gw-2", code=1)

    async def die() -> None:
        client = open_redis(stores)
        await client.delete("{trunkbridge}:worker:gw-2/0", "{trunkbridge}:controller:pbx-2/a")
        await client.aclose()

    asyncio.run(die())
    assert (state(config, "gw-2"), state(config, "pbx-2")) == ({"gateway": "gone"}, {"pbx": "gone"})
    cli(config, "nodes", "cordon", "gw-2")
    for node in ("gw-2", "pbx-2"):
        assert cli(config, "nodes", "forget", node) == f"{node}: forgotten\n"
        assert state(config, node) == {}


def test_an_unknown_node_is_named_with_those_that_are_known(config: Path, stores: StoreUrls) -> None:
    asyncio.run(fleet(stores))
    for verb in ("show", "cordon", "drain", "resume", "forget"):
        told = cli(config, "nodes", verb, "gw-9", code=1)
        assert "no node 'gw-9': one of gw-1, gw-2, pbx-1, pbx-2" in told


def test_without_postgresql_the_list_is_shown_without_marks(config: Path, stores: StoreUrls) -> None:
    asyncio.run(fleet(stores))
    text = config.read_text(encoding="utf-8")
    config.write_text(text.replace(stores.postgres, "postgresql://nobody@127.0.0.1:1/none"), encoding="utf-8")
    shown = cli(config, "nodes", "list")
    assert "gw-1 gateway north ready" in shown
    assert "Warning: cordoned and draining nodes are not known: PostgreSQL cannot be used" in shown
