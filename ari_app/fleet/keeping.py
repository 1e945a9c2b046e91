"""Copies in Redis of what PostgreSQL knows are put right again and again, by every controller."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import NoReturn

import structlog

from ari_app.errors import StoreUnavailable

KEEP_SECONDS = 2.0

log = structlog.get_logger(__name__)


async def keep(renew: Callable[[], Awaitable[None]], failed: str) -> NoReturn:
    """Calls `renew` every `KEEP_SECONDS`, for ever. Of those in a row that raise `StoreUnavailable` the first is
    logged, as the event `failed`."""
    failing = False
    while True:
        try:
            await renew()
            failing = False
        except StoreUnavailable as error:
            if not failing:
                log.warning(failed, detail=str(error))
            failing = True
        await asyncio.sleep(KEEP_SECONDS)
