"""What happens to live calls when a process of the system is killed, frozen or restarted under them."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from audiosocket.runtime.stores import read_record
from tests.live import ECHO, SCRIPTED, Live, caller, live_system
from tests.worker_rig import until
from tools.asterisk.install import AsteriskInstall
from tools.audio.tones import dominant_frequency, tone
from tools.sip.sipp import Call, CallRefused, Ending

pytestmark = [pytest.mark.asterisk, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def system(asterisk_install: AsteriskInstall, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Live]:
    async with live_system(asterisk_install, tmp_path_factory.mktemp("faults")) as live:
        yield live


@pytest_asyncio.fixture(loop_scope="module")
async def live(system: Live) -> AsyncIterator[Live]:
    """The system, of which all processes run again after each test, and on which nothing is left."""
    async with system.fresh():
        yield system
    for process in (system.system.controller, *system.system.workers):
        if not process.running:
            await process.start()


async def echoing(live: Live, count: int = 1) -> list[Call]:
    calls = [live.ulaw.call(ECHO, caller()) for _ in range(count)]
    await asyncio.gather(*(call.answered() for call in calls))
    await asyncio.sleep(0.5)
    return calls


async def hears_itself(call: Call, hz: float, seconds: float = 1.0) -> bool:
    """Whether the echo of a tone comes back to the caller."""
    began = asyncio.get_running_loop().time()
    call.peer.play(tone(hz, seconds))
    await asyncio.sleep(seconds + 0.5)
    heard = call.peer.received_pcm(start=began + 0.2, seconds=seconds)
    return abs(dominant_frequency(heard) - hz) < 5


async def test_a_killed_controller_costs_no_call_and_no_record(live: Live) -> None:
    calls = await echoing(live, 5)
    await live.system.controller.kill()
    assert all(await asyncio.gather(*(hears_itself(call, 400 + 50 * n) for n, call in enumerate(calls))))
    # One caller leaves while nobody watches.
    await calls[0].hang_up()
    await live.system.controller.start()
    assert all(await asyncio.gather(*(hears_itself(call, 400 + 50 * n) for n, call in enumerate(calls[1:]))))
    gone = await live.record(calls[0])
    assert (gone.result, gone.reason) == ("indeterminate", "gone_unseen")
    await asyncio.gather(*(call.hang_up() for call in calls[1:]))
    rows = [await live.record(call) for call in calls]
    assert len({row.call_id for row in rows}) == 5
    assert [row.caller for row in await live.records()].count(gone.caller) == 1
    for row in rows[1:]:
        assert (row.result, row.reason) == ("success", "caller_hangup")
        assert row.media is not None
        assert row.media.frames_played > 100
        events = [event.event for event in await live.system.events(row.call_id)]
        assert "adopted" in events
    await live.nothing_left()
    # And the new controller answers new calls.
    (call,) = await echoing(live)
    await call.hang_up()


async def test_a_stopped_controller_leaves_calls_to_the_next(live: Live) -> None:
    (call,) = await echoing(live)
    await live.system.controller.stop()
    assert await hears_itself(call, 600)
    # A new caller is told by Asterisk itself that nobody answers.
    second = live.ulaw.call(SCRIPTED, caller())
    await second.answered()
    await asyncio.sleep(1.5)
    assert np.abs(second.peer.received_pcm().astype(int)).max() > 1000
    await second.hang_up()
    await live.system.controller.start()
    assert await hears_itself(call, 700)
    await call.hang_up()
    assert (await live.record(call)).reason == "caller_hangup"
    await live.nothing_left()


async def test_a_killed_worker_ends_its_calls_with_the_reason_when_there_is_no_other(live: Live) -> None:
    (call,) = await echoing(live)
    await live.system.workers[0].kill()
    assert await call.ended(20) is Ending.BY_THEM
    row = await live.record(call)
    assert (row.result, row.reason) == ("server_error", "media_lost")
    # Its registration ends with it: the next caller is refused rather than given to a dead worker.
    await asyncio.sleep(3.5)
    refused = live.ulaw.call(ECHO, caller())
    with pytest.raises(CallRefused) as why:
        await refused.answered()
    assert why.value.sip_code == 503
    assert (await live.record(refused)).reason == "no_workers"
    await live.system.workers[0].start()
    (call,) = await echoing(live)
    assert await hears_itself(call, 500)
    await call.hang_up()
    await live.nothing_left()


async def test_calls_are_spread_and_those_of_a_killed_worker_go_on(
    asterisk_install: AsteriskInstall, tmp_path: Path
) -> None:
    async with live_system(asterisk_install, tmp_path, changes={"gateway": {"workers": 2}}) as live:
        calls = await echoing(live, 6)
        rows = {row.caller: row.worker_id for row in await live.records()}
        on = {worker: [call for call in calls if rows[call.caller] == worker] for worker in set(rows.values())}
        assert sorted(len(found) for found in on.values()) == [3, 3]
        dead, alive = f"{live.system.config.node}/0", f"{live.system.config.node}/1"
        await live.system.workers[0].kill()
        heard = await asyncio.gather(*(hears_itself(call, 400 + 50 * n) for n, call in enumerate(on[alive])))
        assert all(heard)
        heard = await asyncio.gather(*(hears_itself(call, 400 + 50 * n) for n, call in enumerate(on[dead])))
        assert all(heard), "by the other worker"
        await asyncio.gather(*(call.hang_up() for call in calls))
        assert {(await live.record(call)).worker_id for call in calls} == {alive}
        await live.nothing_left()


async def test_a_stopped_worker_drains(live: Live) -> None:
    (call,) = await echoing(live)
    worker = live.system.workers[0]
    stopping = asyncio.create_task(worker.stop())
    await until(lambda: "worker_draining" in worker.text(), "draining")
    assert await hears_itself(call, 500)
    refused = live.ulaw.call(ECHO, caller())
    with pytest.raises(CallRefused):
        await refused.answered()
    assert (await live.record(refused)).reason == "all_draining"
    await call.hang_up()
    await stopping
    assert (await live.record(call)).reason == "caller_hangup"


async def test_asterisk_restarts(live: Live) -> None:
    calls = await echoing(live, 3)
    await live.system.asterisk.kill()
    await live.system.asterisk.start()
    rows = [await live.record(call) for call in calls]
    await live.nothing_left()
    callers = [row.caller for row in await live.records()]
    assert all(callers.count(call.caller) == 1 for call in calls)
    for row in rows:
        assert row.result == "server_error", row
        assert row.reason == "asterisk_restarted"
    (call,) = await echoing(live)
    assert await hears_itself(call, 500)
    await call.hang_up()
    await live.nothing_left()


async def test_postgresql_away_for_a_while_costs_no_record(live: Live) -> None:
    (first,) = await echoing(live)
    record = read_record(live.system.config.state_dir)
    assert record is not None
    os.kill(record.postgres_process.pid, signal.SIGSTOP)
    try:
        second = live.ulaw.call(ECHO, caller())
        await second.answered()
        await asyncio.sleep(0.5)
        assert await hears_itself(second, 500)
        await second.hang_up()
        await first.hang_up()
    finally:
        os.kill(record.postgres_process.pid, signal.SIGCONT)
    for call in (first, second):
        row = await live.record(call)
        assert (row.result, row.reason) == ("success", "caller_hangup")
    callers = [row.caller for row in await live.records()]
    assert [callers.count(call.caller) for call in (first, second)] == [1, 1]
    await live.nothing_left()
