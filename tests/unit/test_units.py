"""The systemd units that an operator copies fit the commands that they start."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from ari_app.cli.main import trunkbridge
from audiosocket.callspec import HEARTBEAT_SECONDS
from audiosocket.readiness import CLOSING_SECONDS
from audiosocket.runtime.stores import REDIS_TIMEOUT_SECONDS
from audiosocket.sources import HEARD_SECONDS

pytestmark = pytest.mark.unit

FOLDER = Path(__file__).parents[2] / "systemd"
SERVICES = sorted(FOLDER.glob("*.service"))


def settings(path: Path) -> dict[str, str]:
    lines = (line for line in path.read_text(encoding="utf-8").splitlines() if "=" in line and line[0] != "#")
    pairs = [line.partition("=") for line in lines]
    found = {key: value for key, _, value in pairs}
    assert len(found) == len(pairs), "a key is given twice"
    return found


@pytest.mark.parametrize("path", SERVICES, ids=lambda path: path.name)
def test_a_unit_starts_a_command_with_options_that_it_has(path: Path) -> None:
    program, name, *arguments = settings(path)["ExecStart"].replace("%i", "3").split()
    assert program == "/opt/trunkbridge/bin/trunkbridge"
    command = trunkbridge.get_command(click.Context(trunkbridge), name)
    assert command is not None
    context = command.make_context(name, arguments)
    assert str(context.params["config_path"]) == "/etc/trunkbridge/trunkbridge.yml"


@pytest.mark.parametrize("path", SERVICES, ids=lambda path: path.name)
def test_what_processes_tell_systemd_is_listened_to(path: Path) -> None:
    unit = settings(path)
    assert (unit["Type"], unit["Restart"], unit["TimeoutStartSec"]) == ("notify", "always", "infinity")


def test_a_worker_s_watchdog_outlasts_a_redis_that_does_not_answer() -> None:
    (path,) = (path for path in SERVICES if "gateway" in path.name)
    unit = settings(path)
    assert unit["ExecStart"].endswith("--worker %i")
    longest = HEARTBEAT_SECONDS + HEARD_SECONDS + 2 * REDIS_TIMEOUT_SECONDS
    assert float(unit["WatchdogSec"]) > 2 * longest
    # The first request for more time must come before this is over, each further one within CLOSING_SECONDS.
    assert float(unit["TimeoutStopSec"]) > longest + CLOSING_SECONDS
    assert 2 * longest < CLOSING_SECONDS
    assert unit["KillMode"] == "mixed"


def test_stopping_the_target_stops_the_workers_and_restarting_it_does_not() -> None:
    (path,) = (path for path in SERVICES if "gateway" in path.name)
    unit = settings(path)
    assert unit["WantedBy"] == unit["StopPropagatedFrom"] == "trunkbridge-gateway.target"
    assert (FOLDER / unit["WantedBy"]).is_file()
    assert "PartOf" not in unit
