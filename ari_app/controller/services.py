"""What all actors of a controller share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ari_app.applications import ApplicationSettings
from ari_app.ari.client import AriClient
from ari_app.domain.ids import ChannelId
from ari_app.fleet.leases import Leases
from ari_app.settings import ControllerSettings
from ari_app.store.present import Present

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
    register: Callable[[ChannelId, CallActor], None]
    """Makes events of a channel reach the actor, from before the channel is created."""
