"""Workers that are killed or frozen under live calls: these go on with others, and whoever was there hears nothing."""

from __future__ import annotations

import asyncio
import itertools
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from ari_app.store.records import CallRow
from tests.live import Live, leg, live_system
from tests.tone_application import ToneApplication, hz_of, tone_application
from tests.worker_rig import until
from tools.asterisk.install import AsteriskInstall
from tools.asterisk.local import merge
from tools.audio.tones import dominant_frequency, tone
from tools.sip.sipp import Call

pytestmark = [pytest.mark.asterisk, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

WORKERS = 4
HEARD_AGAIN_SECONDS = {"audiosocket": 2.0, "websocket": 2.0, "rtp": 3.5}
"""From the kill. That the worker of an RTP leg is gone is told by nothing but its heartbeats."""
TONES = "+918000000020"
_numbers = itertools.count(1)


@dataclass
class System:
    """What a test works with."""

    live: Live
    application: ToneApplication
    kind: str

    def worker(self, index: int) -> str:
        return f"{self.live.system.config.node}/{index}"


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["audiosocket", "websocket", "rtp"])
async def system(
    request: pytest.FixtureRequest, asterisk_install: AsteriskInstall, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[System]:
    async with tone_application() as (application, url):
        own = {
            "gateway": {"workers": WORKERS},
            "applications": {"tones": {"url": url}},
            "routes": [{"did": TONES, "application": "tones"}],
        }
        folder = tmp_path_factory.mktemp("moved")
        async with live_system(asterisk_install, folder, calls=110, changes=merge(own, leg(request.param))) as live:
            yield System(live, application, request.param)


@pytest_asyncio.fixture(loop_scope="module")
async def fleet(system: System) -> AsyncIterator[System]:
    """The system; all its workers run, and nothing is left by a test."""
    system.application.starts.clear()
    yield system
    await system.live.nothing_left()
    for worker in system.live.system.workers:
        if not worker.running:
            await worker.start()


async def calls_up(fleet: System, count: int, pause: float = 0.05) -> list[Call]:
    """Calls that hear a tone of their own, and sound one."""
    calls = []
    for _ in range(count):
        call = fleet.live.ulaw.call(TONES, f"+9190004{next(_numbers):05d}")
        call.peer.play(np.tile(tone(300, 1), 40))
        calls.append(call)
        await asyncio.sleep(pause)
    await asyncio.gather(*(call.answered(20) for call in calls))
    return calls


async def by_worker(fleet: System, calls: Iterable[Call]) -> dict[str, list[int]]:
    """Which of the calls, by number, are on which worker, once their records, written a moment later, say so."""
    async with asyncio.timeout(10):
        while True:
            rows = {row.caller: row.worker_id for row in await fleet.live.records()}
            if all(rows.get(call.caller) for call in calls):
                break
            await asyncio.sleep(0.05)
    found: dict[str, list[int]] = {fleet.worker(index): [] for index in range(WORKERS)}
    for number, call in enumerate(calls):
        found[rows[call.caller] or ""].append(number)
    return found


def heard(call: Call, since: float, until: float) -> list[tuple[float, np.ndarray[Any, Any]]]:
    """What came between two times, by packet. To be asked when the calls are over: it takes time."""
    decode = call.peer.codec.decode
    return [(each.arrived_at, decode(each.payload)) for each in call.peer.audio() if since <= each.arrived_at < until]


def gap(call: Call, since: float, until: float) -> float:
    """The longest time in which nothing loud was heard, in seconds."""
    loud = [at for at, samples in heard(call, since, until) if np.abs(samples.astype(int)).max() > 1000]
    return round(max(after - before for before, after in itertools.pairwise([since, *loud, until])), 3)


def sounds(call: Call, until: float) -> bool:
    """Whether a call heard its own tone in the end."""
    pieces = [samples for _, samples in heard(call, until - 0.8, until)]
    return len(pieces) > 30 and abs(dominant_frequency(np.concatenate(pieces)) - hz_of(call.caller)) < 5


async def hung_up(live: Live, calls: list[Call]) -> list[CallRow]:
    """Hangs up, and returns the records: each has ended well, and there is one of each."""
    await asyncio.gather(*(call.hang_up() for call in calls))
    rows = [await live.record(call) for call in calls]
    assert {(row.result, row.reason) for row in rows} == {("success", "caller_hangup")}
    assert all(row.media is not None for row in rows)
    callers = [row.caller for row in await live.records()]
    assert all(callers.count(call.caller) == 1 for call in calls), "one record each"
    return rows


async def moves(live: Live, row: CallRow) -> list[dict[str, Any]]:
    return [event.detail for event in await live.system.events(row.call_id) if event.event == "moved"]


async def test_a_worker_is_killed_under_a_hundred_calls(fleet: System) -> None:
    count = 100 if fleet.kind == "audiosocket" else 24
    calls = await calls_up(fleet, count)
    await asyncio.sleep(1)
    on = await by_worker(fleet, calls)
    assert {len(numbers) for numbers in on.values()} == {count // WORKERS}
    dead = on[fleet.worker(1)]
    began = time.monotonic()
    await fleet.live.system.workers[1].kill()
    await asyncio.sleep(5)
    over = time.monotonic()
    rows = await hung_up(fleet.live, calls)
    silent = [gap(call, began - 0.2, over) for call in calls]
    lost = sorted(silent[number] for number in dead)
    others = max(silent[number] for number in range(count) if number not in dead)
    print(f"{fleet.kind}: silent for {lost} s; the others: {others} s at most")
    assert [call.caller for call in calls if not sounds(call, over)] == []
    for number, row in enumerate(rows):
        moved = await moves(fleet.live, row)
        assert len(moved) == (number in dead), row
        assert not moved or row.worker_id != fleet.worker(1)
    resumed = [start["start"]["from"] for start in fleet.application.starts if "trunkbridge_resumed" in str(start)]
    assert sorted(resumed) == sorted(calls[number].caller for number in dead)
    assert lost[-1] < HEARD_AGAIN_SECONDS[fleet.kind]
    assert others < 0.5


async def test_a_worker_is_frozen_and_thaws(fleet: System) -> None:
    live = fleet.live
    calls = await calls_up(fleet, 16)
    await asyncio.sleep(1)
    frozen = fleet.worker(2)
    on = await by_worker(fleet, calls)
    worker, log_before = live.system.workers[2], len(live.system.controller.text())
    slowest = 0.0

    async def asks_asterisk() -> None:
        nonlocal slowest
        while True:
            began = time.monotonic()
            await live.ari.list_channels()
            slowest = max(slowest, time.monotonic() - began)
            await asyncio.sleep(0.05)

    began = time.monotonic()
    worker.send_signal(signal.SIGSTOP)
    asking = asyncio.create_task(asks_asterisk())
    try:
        later = await calls_up(fleet, 8, pause=0.3)
        await until(lambda: "worker_gone" in live.system.controller.text()[log_before:], "the controller has noticed")
        noticed = time.monotonic() - began
        await asyncio.sleep(max(0.0, 7 - noticed))
        over = time.monotonic()
        calls += later
        assert [call.caller for call in calls if not sounds(call, over)] == []
    finally:
        asking.cancel()
        worker.send_signal(signal.SIGCONT)
    silent = sorted(gap(calls[number], began, over) for number in on[frozen])
    others = max(gap(calls[number], began, over) for name in on if name != frozen for number in on[name])
    print(f"{fleet.kind}: noticed within {noticed:.1f} s, ARI's slowest answer {slowest:.2f} s")
    print(f"silent for {silent} s; the others: {others} s at most")
    await until(lambda: "worker_back" in live.system.controller.text()[log_before:], "the worker is back")
    async with asyncio.timeout(8):
        while len(await live.sessions()) != len(calls):
            await asyncio.sleep(0.1)
    await asyncio.sleep(1)
    over = time.monotonic()
    assert [call.caller for call in calls if not sounds(call, over)] == [], "nobody is harmed by what thaws"
    calls += await calls_up(fleet, 4)
    assert len((await by_worker(fleet, calls))[frozen]) > 0, "it takes calls again"
    rows = await hung_up(live, calls)
    for number in on[frozen]:
        assert len(await moves(live, rows[number])) == 1
        left = [each for each in await live.system.events(rows[number].call_id) if each.event == "media_left"]
        assert [each.detail["worker"] for each in left] == [frozen]
    assert silent[-1] < 4.5
    assert others < 0.5


async def test_a_worker_that_has_just_died_costs_no_new_call(fleet: System) -> None:
    """It is registered for three seconds yet."""
    live = fleet.live
    await live.system.workers[3].kill()
    calls = await calls_up(fleet, 12)
    await asyncio.sleep(2.5)
    over = time.monotonic()
    assert [call.caller for call in calls if not sounds(call, over)] == []
    rows = await hung_up(live, calls)
    assert fleet.worker(3) not in {row.worker_id for row in rows}
    stories = [await live.system.events(row.call_id) for row in rows]
    assert any(each.event in ("worker_replaced", "moved") for story in stories for each in story)
    assert len(fleet.application.starts) == len(calls), "one stream each"


async def test_an_operator_moves_a_call(fleet: System) -> None:
    live = fleet.live
    (call,) = await calls_up(fleet, 1)
    await asyncio.sleep(1)
    row = await live.record(call, ended=False)
    to = fleet.worker(2) if row.worker_id != fleet.worker(2) else fleet.worker(0)
    began = time.monotonic()
    assert f"moved, to {to}" in await command(fleet, "calls", "move", row.call_id[:8], "--to", to)
    assert "stays where it is" in await command(fleet, "calls", "move", row.call_id, "--to", "nowhere/0")
    await asyncio.sleep(1)
    over = time.monotonic()
    assert "moved" in await command(fleet, "calls", "move", row.call_id)
    first, second, _ = fleet.application.starts
    assert first["start"]["call_sid"] == second["start"]["call_sid"]
    assert first["stream_sid"] != second["stream_sid"]
    (row,) = await hung_up(live, [call])
    assert sounds(call, over)
    print(f"{fleet.kind}: silent for {gap(call, began, over)} s")
    first_move, _ = await moves(live, row)
    assert first_move["worker"] == to
    left = [each.detail["worker"] for each in await live.system.events(row.call_id) if each.event == "media_left"]
    assert len(left) == 2


async def command(fleet: System, *arguments: str) -> str:
    """What `trunkbridge` says."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "ari_app.cli.main", *arguments, "-c", str(fleet.live.system.config_path)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(30):
        said, _ = await process.communicate()
    return said.decode()
