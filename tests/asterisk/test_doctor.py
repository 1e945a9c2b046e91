"""The doctor on a node where everything runs, and on the same node when something has been broken."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.asterisk.test_calls import trunkbridge
from tests.live import Live, live_system
from tools.asterisk.install import AsteriskInstall

pytestmark = pytest.mark.asterisk


async def examine(live: Live) -> dict[str, Any]:
    """Findings by check."""
    etc = live.system.asterisk.layout.etc
    _, output = await trunkbridge(live, "doctor", "-o", "json", "--asterisk-etc", str(etc))
    return {finding["check"]: finding for finding in json.loads(output)}


async def test_a_good_node_and_what_is_broken_in_it(asterisk_install: AsteriskInstall, tmp_path) -> None:
    async with live_system(asterisk_install, tmp_path) as live:
        found = await examine(live)
        node = live.system.config.node
        for check in (
            *("postgresql", "clock of postgresql", "migrations", "redis", "clock of redis", "redis eviction"),
            *("ari", "ami", "asterisk version", "asterisk modules", "asterisk files"),
            *(f"worker {node}/0", f"own worker {node}/0", "application scripted"),
        ):
            assert found[check]["level"] == "good", found[check]
        assert found["application refused"]["level"] == "bad"
        module = "chan_audiosocket.so"
        assert "Unloaded" in await live.system.asterisk.rx(f"module unload {module}")
        (live.system.asterisk.layout.etc / "http.conf").write_text("[general]\n")
        await live.system.workers[0].kill()
        found = await examine(live)
        assert found["asterisk modules"]["found"] == f"not running: {module}"
        assert found["asterisk files"]["found"].endswith(": http.conf")
        assert found[f"worker {node}/0"]["level"] == "bad" if f"worker {node}/0" in found else found["own workers"]
