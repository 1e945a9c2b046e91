"""Whether Redis answers, known once for all who ask it: only the first of them waits for one that hangs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import structlog

from ari_app.errors import StoreUnavailable
from ari_app.store.present import redis_unavailable

T = TypeVar("T")

log = structlog.get_logger(__name__)


class Presence:
    """Redis as one controller knows it."""

    def __init__(self, calls: str, on_gone: Callable[[], None]) -> None:
        """`calls`: what becomes of new calls while it is away, for the log; `on_gone` is called when it goes."""
        self._calls = calls
        self._on_gone = on_gone
        self._gone = asyncio.Event()
        self._back_at = -float("inf")
        self._since = 0.0

    @property
    def away(self) -> bool:
        """Whether it did not answer when it was asked last."""
        return self._gone.is_set()

    def back_for(self) -> float:
        """How long it has answered again, in seconds; infinite: it was never away."""
        return time.monotonic() - self._back_at

    def failed(self, error: StoreUnavailable) -> None:
        """It did not answer."""
        if not self.away:
            self._since = time.monotonic()
            self._gone.set()
            log.error("redis_away", why=str(error), new_calls=self._calls)
            self._on_gone()

    def answered(self) -> bool:
        """It has answered; whether it was away until now."""
        if not self.away:
            return False
        self._gone.clear()
        self._back_at = time.monotonic()
        log.warning("redis_back", after_seconds=round(self._back_at - self._since, 1))
        return True

    async def asked(self, work: Coroutine[Any, Any, T]) -> T:
        """What `work`, which asks Redis, returns. Raises `StoreUnavailable` as it does, and without waiting while Redis
        is away, be it that others found out just now."""
        if self.away:
            work.close()
            raise redis_unavailable("Redis is away")
        working = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(self._gone.wait())
        try:
            await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise redis_unavailable("Redis is away")
            return working.result()
        except StoreUnavailable as error:
            self.failed(error)
            raise
        finally:
            gone.cancel()
            if not working.done():
                working.cancel()
            await asyncio.gather(working, gone, return_exceptions=True)
