"""A controller process tells in Redis that it is there: placement reads whether its PBX node takes calls, and operators
who is active."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import time
from typing import NoReturn

import structlog

from ari_app.controller.duty import Duty
from ari_app.errors import StoreUnavailable
from ari_app.settings import Config
from ari_app.store.controllers import ControllerInfo, Controllers
from audiosocket import __version__
from audiosocket.callspec import HEARTBEAT_SECONDS
from audiosocket.runtime.stores import pause
from audiosocket.settings import split_host_port

POLL_SECONDS = 0.1
"""How soon a change of role, or of whether calls are taken, is announced."""

log = structlog.get_logger(__name__)


def info_of(duty: Duty, config: Config) -> ControllerInfo:
    """What is to be announced now."""
    listens = duty.status_at
    if listens and ipaddress.ip_address(split_host_port(listens)[0]).is_unspecified:
        listens = ""  # nobody can ask at 0.0.0.0
    return ControllerInfo(
        node=config.node,
        instance=str(os.getpid()),
        pair=config.pair,
        role=duty.role,
        accepting=not duty.why_not_accepting,
        calls=duty.calls,
        capacity=config.controller.max_calls,
        version=__version__,
        started_at_ms=duty.started_at_ms,
        status_url=f"http://{listens}" if listens else "",
    )


async def announce(duty: Duty, config: Config, controllers: Controllers) -> NoReturn:
    """Announces this process, for ever, and takes that back when it is cancelled. While Redis is away nobody hears."""
    failures = 0
    try:
        while True:
            info = info_of(duty, config)
            try:
                await controllers.announce_controller(info)
                failures = 0
            except StoreUnavailable as error:
                if failures == 0:
                    log.warning("not_announced", why=str(error))
                failures += 1
                await pause(failures)
                continue
            due = time.monotonic() + HEARTBEAT_SECONDS
            while time.monotonic() < due:
                await asyncio.sleep(POLL_SECONDS)
                if (duty.role, not duty.why_not_accepting) != (info.role, info.accepting):
                    break
    finally:
        try:
            await controllers.withdraw_controller(info_of(duty, config))
        except StoreUnavailable as error:
            log.warning("announcement_left", why=f"{error}: it ends by itself")
