"""Rules for every test: one rung per module, and nothing left running behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.repeating import Watch

RUNGS = ("unit", "loop", "store", "asterisk", "multihost")
LONGEST_FIRST = (
    *("every_leg", "moved", "fork", "demo", "faults", "playout_live", "outage", "lost_leg", "standby"),
    *("postgres_outage", "wideband", "pbx", "recording", "direct_way", "calls", "limits", "redis_servers"),
)
"""Modules (test_...) that take half a minute or more: begun last, one of them would be waited for by all others."""


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Watch())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        rungs = [rung for rung in RUNGS if item.get_closest_marker(rung)]
        if len(rungs) != 1:
            raise pytest.UsageError(
                f"{item.nodeid}: declares {rungs or 'no rung'}, must declare exactly one of {RUNGS}"
            )
        folder = item.path.parent.name
        if folder in RUNGS and folder != rungs[0]:
            raise pytest.UsageError(f"{item.nodeid}: is marked {rungs[0]} but lies in tests/{folder}")

    def place(item: pytest.Item) -> tuple[int, int]:
        name = item.path.stem.removeprefix("test_")
        length = LONGEST_FIRST.index(name) if name in LONGEST_FIRST else len(LONGEST_FIRST)
        rung = next(index for index, rung in enumerate(RUNGS) if item.get_closest_marker(rung))
        return (2 if RUNGS[rung] == "asterisk" else rung, length)  # store and asterisk go together

    items.sort(key=place)


@pytest_asyncio.fixture(autouse=True)
async def no_task_left(request: pytest.FixtureRequest) -> AsyncIterator[None]:
    """Fails a loop test that leaves a task of its own running."""
    if not request.node.get_closest_marker("loop"):
        yield
        return
    yield
    for _ in range(50):
        left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task() and not task.done()]
        if not left:
            return
        await asyncio.sleep(0.01)
    pytest.fail(f"tasks left running: {[task.get_name() for task in left]}")
