"""What all actors of a controller share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ari_app.applications import ApplicationSettings
from ari_app.ari.client import AriClient
from ari_app.call.routing import Admission
from ari_app.controller.leftovers import Leftovers
from ari_app.controller.turns import Turns
from ari_app.domain.hangup import Cause
from ari_app.domain.ids import ChannelId
from ari_app.fleet.leases import Leases
from ari_app.settings import ControllerSettings
from ari_app.store.present import Present
from ari_app.store.records import CallRow
from audiosocket.callspec import WorkerInfo

if TYPE_CHECKING:
    from ari_app.controller.actor import CallActor


@dataclass(frozen=True, slots=True)
class Services:
    """What actors work with; one for all of them."""

    node: str
    ari: AriClient
    leases: Leases
    present: Present
    settings: ControllerSettings
    applications: Mapping[str, ApplicationSettings]
    leftovers: Leftovers
    register: Callable[[ChannelId, CallActor], None]
    """Makes events of a channel reach the actor, from before the channel is created."""
    readmit: Callable[[CallRow], Admission | None]
    """The admission of a call, from its record."""
    gone: dict[str, int] = field(default_factory=dict)
    """Workers that are gone though they may be registered: by id, when they were started (Unix time in ms)."""
    turns: Turns = field(default_factory=Turns)
    """Of calls that are moved."""

    async def hang_up(self, channel: ChannelId, cause: int = Cause.NORMAL_CLEARING) -> bool:
        """Ends a channel; whether it may still be there. An Asterisk that does not answer is asked in good time.

        Raises `AriError`.
        """
        if self.ari.breaker.open:
            self.leftovers.hang_up(channel, cause)
            return True
        return await self.ari.hangup(channel, cause, missing_ok=True)

    def still_gone(self, registered: Iterable[WorkerInfo]) -> set[str]:
        """Those of `gone` that have not been started again since."""
        runs = {info.worker_id: info.started_at_ms for info in registered}
        return {worker for worker, run in self.gone.items() if runs.get(worker, run) == run}
