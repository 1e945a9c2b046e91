"""Fixtures of the multihost rung."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.multihost.fleet import Fleet, running_fleet
from tests.pbx import asterisk_install
from tools.asterisk.install import AsteriskInstall

__all__ = ["asterisk_install"]


@pytest.fixture(scope="session", autouse=True)
def as_root() -> None:
    if os.geteuid() != 0:
        pytest.fail("hosts as network namespaces, and tunnels between them, need root: sudo make test RUNG=multihost")


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def fleet(asterisk_install: AsteriskInstall, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    """One fleet for all tests of the rung: each mends what it cut and starts what it ended."""
    async with running_fleet(asterisk_install, tmp_path_factory.mktemp("fleet")) as fleet:
        yield fleet
