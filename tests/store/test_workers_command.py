"""`trunkbridge workers` shows what the workers have announced."""

from __future__ import annotations

import asyncio
import json
import time

import msgspec
import pytest
from click.testing import CliRunner

from ari_app.cli.workers import workers
from audiosocket.callspec import WorkerInfo
from audiosocket.registry import Registry
from audiosocket.runtime.stores import open_redis

pytestmark = pytest.mark.store

WELL = WorkerInfo(
    worker_id="gw/0",
    node="gw",
    host="10.0.0.7",
    port=9092,
    status_url="",
    capacity=250,
    active=12,
    draining=False,
    version="1.2",
    started_at_ms=0,
    cpu_percent=31,
    lateness_ms=2,
)
OTHERS = [
    msgspec.structs.replace(WELL, worker_id="gw/1", port=9093, draining=True, active=250),
    msgspec.structs.replace(WELL, worker_id="gw/2", port=9094, overloaded=True, cpu_percent=97, lateness_ms=61),
    msgspec.structs.replace(WELL, worker_id="gw/3", port=9095, active=250),
]


def ask(path, *options: str) -> str:
    result = CliRunner().invoke(workers, ["-c", str(path), *options], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


@pytest.fixture
def config(tmp_path, empty_stores):
    path = tmp_path / "node.yml"
    path.write_text(
        f"node: gw\nstore: {{postgres: '{empty_stores.postgres}', redis: '{empty_stores.redis}'}}\n", encoding="utf-8"
    )
    return path


async def announce(urls, *infos: WorkerInfo) -> None:
    registry = Registry(open_redis(urls))
    for info in infos:
        await registry.heartbeat(info)
    await registry.close()


def test_workers_their_load_and_why_they_take_no_calls(config, empty_stores):
    assert "no worker is registered" in ask(config)
    began = int(time.time() * 1000) - (26 * 60 + 5) * 60_000 - 500
    infos = [msgspec.structs.replace(info, started_at_ms=began) for info in (WELL, *OTHERS)]
    asyncio.run(announce(empty_stores, *infos))
    header, *lines = (line.split() for line in ask(config).splitlines())
    assert header == ["WORKER", "PAIR", "STATE", "CALLS", "CORE", "LATE", "ADDRESS", "VERSION", "UP"]
    assert lines == [
        ["gw/0", "main", "ready", "12", "of", "250", "31%", "2", "ms", "10.0.0.7:9092", "1.2", "1d", "02:05"],
        ["gw/1", "main", "draining", "250", "of", "250", "31%", "2", "ms", "10.0.0.7:9093", "1.2", "1d", "02:05"],
        ["gw/2", "main", "overloaded", "12", "of", "250", "97%", "61", "ms", "10.0.0.7:9094", "1.2", "1d", "02:05"],
        ["gw/3", "main", "full", "250", "of", "250", "31%", "2", "ms", "10.0.0.7:9095", "1.2", "1d", "02:05"],
    ]


def test_everything_for_programs(config, empty_stores):
    asyncio.run(announce(empty_stores, WELL))
    (found,) = json.loads(ask(config, "-o", "json"))
    assert found == msgspec.to_builtins(WELL)
