"""What a controller does for WebSocket media legs, which Asterisk connects after it has answered."""

from __future__ import annotations

import pytest

from tests.fake_call import CALLER, Neighbours, config
from tests.loop.test_actor import SET_UP, SET_UP_RINGING, nothing_left, up

pytestmark = [pytest.mark.loop, pytest.mark.virtual_time]


def instead(steps: list[str]) -> list[str]:
    return ["external_websocket" if step == "external_media" else step for step in steps]


async def over(pbx: Neighbours) -> None:
    await pbx.over()
    await pbx.stop()


@pytest.mark.parametrize(("answer", "steps"), [("at_once", SET_UP), ("when_connected", SET_UP_RINGING)])
async def test_a_call_from_beginning_to_end(answer: str, steps: list[str]) -> None:
    pbx = Neighbours(config(answer), websocket=True)
    await up(pbx)
    assert pbx.steps[2 : len(steps)] == instead(steps)[2:]
    pbx.destroy(CALLER, 16, requested=True)
    await over(pbx)
    row = nothing_left(pbx)
    assert (row.result, row.reason) == ("success", "caller_hangup")
    assert row.media is not None


@pytest.mark.parametrize("answer", ["at_once", "when_connected"])
async def test_a_leg_that_asterisk_cannot_connect_has_failed_and_nobody_waits_for_a_report(answer: str) -> None:
    pbx = Neighbours(config(answer), websocket=True, connects_websockets=False)
    pbx.arrive()
    await pbx.arrived()
    await over(pbx)
    row = nothing_left(pbx)
    assert (row.result, row.reason) == ("server_error", "media_failed")
    assert (row.detail or "").startswith("Asterisk could not connect a WebSocket to the worker; no other worker")
