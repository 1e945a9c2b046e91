"""An application's host is gone from one moment to the next, or it is there and the application has stopped reading."""

from __future__ import annotations

import signal

import pytest

from audiosocket.app_connection import GONE_SECONDS
from tests.failure_cases import TONE, sounds
from tests.multihost.fleet import Fleet
from tests.multihost.hosts import PATIENCE_SECONDS
from tests.multihost.talking import hang_up, hear_themselves, talking
from tools.sip.sipp import Ending

pytestmark = [pytest.mark.multihost, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(300)]

FROZEN_SECONDS = 17.0
"""Its host has no room left after some 4 s; a limit of TCP's own (TCP_USER_TIMEOUT) would be over 10 s later."""


async def test_a_host_that_is_gone_has_failed_and_an_application_that_reads_nothing_has_not(fleet: Fleet) -> None:
    gone, alive = await talking(fleet, 1, 2), await talking(fleet, 2, 2)
    (application,) = fleet.network["app"].processes
    application.send_signal(signal.SIGSTOP)
    try:
        async with fleet.network.cut(("gw1", "app")) as cut:
            for call in gone:
                assert await call.ended(PATIENCE_SECONDS) is Ending.BY_THEM
            await cut.lasted(FROZEN_SECONDS)
    finally:
        application.send_signal(signal.SIGCONT)
    for call, row in zip(gone, await fleet.closed(gone), strict=True):
        assert (row.result, row.reason, row.hangup_cause) == ("upstream_error", "application_lost", 38)
        assert row.detail == "no packet of its host's for 10 s"
        heard = [sound for sound in sounds(call) if sound.hz]
        instead = heard[-len(TONE) :]
        assert tuple(sound.hz for sound in instead) == TONE
        print(f"from the cut to the tone: {instead[0].began - cut.began:.1f} s")
        assert instead[0].began - cut.began >= GONE_SECONDS - 0.5  # a packet may have been on its way
    await hear_themselves(alive)
    await hang_up(alive)
    for row in await fleet.closed(alive):
        assert (row.result, row.reason) == ("success", "caller_hangup")
        assert row.media is not None
        assert row.media.caller_frames_dropped["app_slow"] > 0
        print(f"frames that were not kept for it: {row.media.caller_frames_dropped}")
    await fleet.nothing_left()
