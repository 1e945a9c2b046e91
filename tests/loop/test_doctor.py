"""What the doctor says of a node whose surroundings are not there, or not right."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from msgspec.structs import replace

from ari_app.applications import ExotelApplication
from ari_app.doctor import links, machine
from ari_app.doctor.command import doctor
from ari_app.doctor.finding import Finding, bad, good, in_words, warning
from audiosocket.callspec import WorkerInfo
from tests.loop.test_app_stream import certificate
from tools.asterisk.local import free_ports, local_config

pytestmark = pytest.mark.loop

EXAMPLE = Path(__file__).parent.parent.parent / "trunkbridge.example.yml"
WORKER = WorkerInfo(
    worker_id="gw/0",
    node="gw",
    host="127.0.0.1",
    port=1,
    status_url="",
    capacity=10,
    active=0,
    draining=False,
    version="1",
    started_at_ms=0,
)


def test_findings_are_counted() -> None:
    found = [good("a", "b"), warning("a", "b", "c"), bad("a", "b", "c"), bad("a", "b", "c")]
    assert in_words(found) == "1 good, 1 warnings, 2 bad"


def test_limits_of_the_machine(tmp_path: Path) -> None:
    assert machine.cores(10_000).level == "warning"
    assert machine.cores(1).level == "good"
    assert machine.descriptors(10**9).level == "bad"
    assert machine.disk("state", tmp_path / "not" / "there", 0).level == "good"
    told = machine.disk("state", tmp_path, 10**12)
    assert (told.level, told.check) == ("bad", "disk of state")
    assert machine.clock().level in ("good", "warning")


async def test_workers_are_reached_where_asterisk_would_dial_them() -> None:
    server = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    (dead,) = free_ports(1)
    async with server:
        infos = [replace(WORKER, port=port), replace(WORKER, worker_id="gw/1", port=dead), replace(WORKER, pair="far")]
        here, gone = await links.workers(infos, ["main"])
    assert (here.level, here.check) == ("good", "worker gw/0")
    assert (gone.level, gone.found) == ("bad", f"127.0.0.1:{dead}: Connection refused")
    (nobody,) = await links.workers(infos, ["north"])
    assert nobody.found == "none is registered in north"


async def application(port: int, scheme: str = "wss") -> Finding:
    (found,) = await links.applications({"bot": ExotelApplication(url=f"{scheme}://127.0.0.1:{port}/")})
    return found


@pytest.mark.parametrize(
    ("days", "trusted", "level", "said"),
    [
        (90, True, "good", r"127.0.0.1:\d+ reached in \d+ ms, certificate good for (90|89) days"),
        (5, True, "warning", r".*; its certificate ends in (5|4) days"),
        (90, False, "bad", r"127.0.0.1:\d+: self-signed certificate"),
    ],
    ids=["good", "ends soon", "of a stranger"],
)
async def test_an_applications_certificate(
    days: int, trusted: bool, level: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = certificate(tmp_path, "application", "IP:127.0.0.1", days)
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "application.pem"))
    server = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0, ssl=context)
    async with server:
        found = await application(server.sockets[0].getsockname()[1])
    assert found.level == level, found
    assert re.fullmatch(said, found.found), found


async def test_an_application_that_is_not_there() -> None:
    (dead,) = free_ports(1)
    found = await application(dead, "ws")
    assert found.level == "bad"
    assert f"127.0.0.1:{dead}" in found.found


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return local_config(EXAMPLE, tmp_path, calls=4)


def test_with_nothing_running_every_line_says_what_to_do(config: Path) -> None:
    nowhere = config.parent / "nowhere"
    result = CliRunner().invoke(doctor, ["-c", str(config), "-o", "json", "--asterisk-etc", str(nowhere)])
    assert result.exit_code == 1
    found = {finding["check"]: finding for finding in json.loads(result.output)}
    for check in ("stores", "ari", "ami", "workers"):
        assert found[check]["level"] == "bad", found[check]
    assert found["asterisk files"]["level"] == "warning"
    assert found["asterisk files"]["found"] == f"there is no folder {nowhere}"
    assert all(finding["remedy"] for finding in found.values() if finding["level"] != "good")


def test_a_gateway_nodes_file_is_enough_on_a_gateway_node(tmp_path: Path) -> None:
    path = tmp_path / "gateway.yml"
    path.write_text("node: gw-1\nstate_dir: .\nstore: embedded\n", encoding="utf-8")
    result = CliRunner().invoke(doctor, ["-c", str(path)])
    assert result.exit_code == 1
    assert "own workers" in result.output
    assert "ari" not in result.output.replace("start", "")
    result = CliRunner().invoke(doctor, ["-c", str(path), "--role", "pbx"])
    assert "name the PBX node's file" in result.output
