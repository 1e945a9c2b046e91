"""What a controller process says of itself: status port, announcement, watchdog."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import aiohttp
import pytest
import pytest_asyncio

from ari_app.controller import process as process_module
from ari_app.controller.announcing import announce, info_of
from ari_app.controller.duty import STUCK_SECONDS, Duty, Parts
from ari_app.controller.host_lock import HostLock
from ari_app.controller.status import serve_status
from ari_app.errors import StoreUnavailable
from ari_app.store.controllers import ControllerInfo
from ari_app.store.writer import WriterFigures
from tests.fake_call import Neighbours
from tests.live import EXAMPLE
from tests.loop.test_actor import up
from tests.worker_rig import until
from tools.asterisk.local import claims_released, free_ports, local_config

pytestmark = [pytest.mark.loop, pytest.mark.virtual_time]


@pytest.fixture
def listen() -> Any:
    with claims_released():
        yield f"127.0.0.1:{free_ports(1)[0]}"


@pytest_asyncio.fixture
async def pbx() -> Neighbours:
    return Neighbours()


def active(pbx: Neighbours, duty: Duty) -> Any:
    """Makes a process the active one; gives its event stream."""
    stream = SimpleNamespace(live=True, moved_at=time.monotonic(), counters=SimpleNamespace(connects=1, events=8))
    client = SimpleNamespace(requests={"ok": 7, "ari_unavailable": 2}, timeouts=2, breaker=pbx.breaker)
    spool = {"spool_bytes": 4096, "spool_usable": True, "spool_damaged": 0}
    writer = SimpleNamespace(depth=3, age_seconds=1.5, figures=WriterFigures(written=11, overflowed=1), **spool)
    duty.parts = Parts(pbx.controller, cast(Any, client), cast(Any, stream), cast(Any, writer))
    return stream


async def get(listen: str, path: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as http, http.get(f"http://{listen}/{path}") as answer:
        return answer.status, (await answer.text()).strip()


async def test_the_status_port_tells_role_calls_and_figures(pbx: Neighbours, listen: str) -> None:
    duty = Duty("pbx-1", max_calls=1)
    serving = asyncio.create_task(serve_status(duty, listen))
    try:
        await until(lambda: duty.status_at == listen, "listening")
        assert await get(listen, "readyz") == (503, "standing by")
        assert await get(listen, "healthz") == (200, "ok")
        assert await get(listen, "calls") == (200, "[]")
        _, text = await get(listen, "metrics")
        assert 'trunkbridge_controller_role{role="standby"} 1.0' in text
        assert "trunkbridge_ari_connected" not in text

        stream = active(pbx, duty)
        assert await get(listen, "readyz") == (503, "not connected to Asterisk's events")
        await pbx.controller.on_connected()
        assert await get(listen, "readyz") == (200, "ready")
        call_id = await up(pbx)
        assert await get(listen, "readyz") == (503, "full")
        _, shown = await get(listen, "calls")
        assert f'"call_id":"{call_id}","state":"talking","trunk":"carrier"' in shown
        assert "+9190" not in shown, "no numbers"
        await pbx.order_hangup()
        await pbx.over()
        _, text = await get(listen, "metrics")
        for line in (
            'trunkbridge_controller_role{role="active"} 1.0',
            "trunkbridge_controller_accepting 1.0",
            'trunkbridge_calls_ended_total{reason="operator_hangup",result="success"} 1.0',
            'trunkbridge_ari_requests_total{outcome="ari_unavailable"} 2.0',
            "trunkbridge_ari_timeouts_total 2.0",
            "trunkbridge_records_waiting 3.0",
            "trunkbridge_records_overflowed_total 1.0",
            "trunkbridge_spool_bytes 4096.0",
            "trunkbridge_reconciliations_total 1.0",
        ):
            assert line in text, line
        duty.stopping = True
        assert await get(listen, "readyz") == (503, "stopping")
        # A stream that is neither live nor being tried: its reader hangs.
        stream.live, stream.moved_at = False, time.monotonic() - STUCK_SECONDS - 1
        status, why = await get(listen, "healthz")
        assert (status, why[:34]) == (503, "Asterisk's events have not been tr")
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


async def test_a_status_port_that_is_taken_is_had_when_it_is_free(listen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ari_app.controller.status.RETRY_SECONDS", 0.05)
    first, second = Duty("pbx-1", 1), Duty("pbx-1", 1)
    serving = asyncio.create_task(serve_status(first, listen))
    await until(lambda: first.status_at, "the first")
    waiting = asyncio.create_task(serve_status(second, listen))
    await asyncio.sleep(0.2)
    assert not second.status_at
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)
    await until(lambda: second.status_at, "the second")
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)


class Announced:
    """In the place of `Controllers`."""

    def __init__(self) -> None:
        self.infos: list[ControllerInfo] = []
        self.withdrawn = 0
        self.away = False

    async def announce_controller(self, info: ControllerInfo) -> None:
        if self.away:
            raise StoreUnavailable("redis", "scripted")
        self.infos.append(info)

    async def withdraw_controller(self, _info: ControllerInfo) -> None:
        self.withdrawn += 1
        if self.away:
            raise StoreUnavailable("redis", "scripted")


async def test_what_changes_is_announced_at_once(pbx: Neighbours, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ari_app.controller.announcing.HEARTBEAT_SECONDS", 60)
    duty, announced = Duty("pbx-1", 1000, status_at="0.0.0.0:9191"), Announced()
    task = asyncio.create_task(announce(duty, pbx.config, cast(Any, announced)))
    await until(lambda: announced.infos, "the first")
    assert (announced.infos[0].role, announced.infos[0].accepting) == ("standby", False)
    assert announced.infos[0].status_url == ""
    active(pbx, duty)
    await pbx.controller.on_connected()
    await until(lambda: announced.infos[-1].accepting, "active")
    assert announced.infos[-1].role == "active"
    announced.away = True
    pbx.controller.on_lost("scripted")
    await asyncio.sleep(0.3)
    announced.away = False
    await until(lambda: not announced.infos[-1].accepting, "after Redis was away")
    duty.status_at = "127.0.0.1:9191"
    assert info_of(duty, pbx.config).status_url == "http://127.0.0.1:9191"
    announced.away = True
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert announced.withdrawn == 1


# The supervisor, and the command


async def test_the_supervisor_hears_of_standing_by_of_the_active_one_and_of_a_dead_reader(
    pbx: Neighbours, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(process_module, "notify", told.append)
    monkeypatch.setattr(process_module, "WATCHDOG_SECONDS", 0.05)
    duty, lock = Duty("pbx-1", 1000), HostLock(tmp_path, "pbx-1")
    task = asyncio.create_task(process_module._supervised(duty, lock))
    await until(lambda: "WATCHDOG=1" in told, "the first word")
    assert not any("READY" in state for state in told), "it is nothing yet"
    lock.standing_by = True
    await until(lambda: "READY=1\nSTATUS=standing by" in told, "standing by")
    stream = active(pbx, duty)
    await asyncio.sleep(0.2)
    assert "READY=1\nSTATUS=active" not in told
    await pbx.controller.on_connected()
    await until(lambda: "READY=1\nSTATUS=active" in told, "active")
    stream.live, stream.moved_at = False, time.monotonic() - STUCK_SECONDS - 1
    await asyncio.sleep(0.1)
    told.clear()
    await asyncio.sleep(0.3)
    assert told == [], "the supervisor is to notice"
    stream.live = True
    await until(lambda: "WATCHDOG=1" in told, "life")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    lock.release()


def test_what_cannot_be_is_said_in_one_line(tmp_path: Path) -> None:
    with claims_released():
        path = local_config(EXAMPLE, tmp_path, changes={"state_dir": str(tmp_path / "trunkbridge.yml" / "state")})

    def said(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "ari_app.cli.main", "controller", "-c", str(path), *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 1
        (line,) = done.stderr.strip().splitlines()
        return line

    assert "make it writable for the user that it runs as" in said()
    assert "--status-listen: status_listen: found 'nowhere'" in said("--status-listen", "nowhere")
