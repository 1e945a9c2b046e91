"""The clocks of this rung, and what all tests of calls between hand-written neighbours need."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
import pytest_asyncio
import structlog

from tests import fake_call
from tests.virtual_time import VirtualTimeLoop


def pytest_asyncio_loop_factories(item: pytest.Item) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    marker = item.get_closest_marker("virtual_time")
    if marker is not None and marker.args != (False,):
        return {"virtual": VirtualTimeLoop}
    return {"real": asyncio.new_event_loop}


@pytest.fixture(autouse=True)
def plain_logs(request: pytest.FixtureRequest) -> Iterator[None]:
    """Of neighbours that fail at every step hundreds of tracebacks are logged; to draw them takes a minute."""
    if not hasattr(request.module, "Neighbours"):
        yield
        return
    structlog.configure(processors=[structlog.processors.KeyValueRenderer()])
    yield
    structlog.reset_defaults()


@pytest_asyncio.fixture(autouse=True)
async def neighbours_stopped() -> AsyncIterator[None]:
    """Stops the controllers that a test has left running."""
    yield
    while fake_call.MADE:
        await fake_call.MADE.pop().stop()
