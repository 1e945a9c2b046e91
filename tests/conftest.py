"""Rules for every test: one rung per module, and nothing left running behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.repeating import Watch

RUNGS = ("unit", "loop", "store", "asterisk", "multihost")


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
    items.sort(key=lambda item: next(index for index, rung in enumerate(RUNGS) if item.get_closest_marker(rung)))


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
