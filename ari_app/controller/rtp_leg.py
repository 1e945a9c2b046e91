"""A call's media leg where that is RTP: Asterisk and the worker hear of each other through the controller alone."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog

from ari_app.errors import StoreUnavailable
from audiosocket.callspec import LegOrder, MediaFormat, WorkerInfo

_CARRIED = frozenset({MediaFormat.ULAW, MediaFormat.ALAW})

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class CallerDigit:
    """A key that the caller pressed."""

    digit: str


class RtpLeg:
    """What is known of the leg, and what its worker is told."""

    def __init__(self, call_id: str, send: Callable[[LegOrder], Awaitable[bool]], leg_uuid: Callable[[], str]) -> None:
        """`send` gives an order to the call's worker and says whether that listens; it raises `StoreUnavailable`."""
        self._send = send
        self._leg_uuid = leg_uuid
        self._log = log.bind(call_id=call_id)
        self.used = False
        self.attached = False
        """The worker has opened it."""
        self.worker_started_ms = 0
        """Which run of the worker carries it; 0: not known."""

    def choose(self, worker: WorkerInfo, media_format: MediaFormat) -> bool:
        """Whether a leg in `media_format` to `worker` is RTP: where the worker takes it, and for G.711."""
        self.used = bool(worker.rtp_port) and media_format in _CARRIED
        self.worker_started_ms = worker.started_at_ms
        return self.used

    async def open(self, leg_uuid: str, remote: str, media_format: MediaFormat) -> bool:
        """Tells the worker where Asterisk's packets of leg `leg_uuid` come from; whether it hears. Raises
        `StoreUnavailable`."""
        order = LegOrder(leg_uuid=leg_uuid, order="open", remote=remote, media_format=media_format)
        return await self._send(order)

    async def pass_digit(self, digit: str) -> None:
        """Tells the worker which key the caller pressed: of digits Asterisk sends nothing."""
        try:
            await self._send(LegOrder(leg_uuid=self._leg_uuid(), order="digits", digits=digit))
        except StoreUnavailable as error:
            self._log.warning("digit_not_passed", detail=str(error))
