"""Fixtures of the asterisk rung."""

from collections.abc import Iterator

import pytest

from tests.pbx import asterisk_install, pbx, start_pbx
from tools.asterisk.local import claims_released

__all__ = ["asterisk_install", "pbx", "start_pbx"]


@pytest.fixture(autouse=True, scope="module")
def ports_given_back_by_module() -> Iterator[None]:
    """The ports of the systems that a module's tests share are free again for the next module."""
    with claims_released():
        yield


@pytest.fixture(autouse=True)
def ports_given_back() -> Iterator[None]:
    """The ports of a test's own systems are free again for the next test."""
    with claims_released():
        yield
