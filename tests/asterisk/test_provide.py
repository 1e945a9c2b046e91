"""Finding and keeping an Asterisk, without the network: what is too old, what is damaged, what is in use."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools.asterisk import unpack
from tools.asterisk.install import NEEDED_MODULES, AsteriskUnavailable
from tools.asterisk.local import free_ports
from tools.asterisk.provide import system_asterisk
from tools.asterisk.unpack import unpacked

pytestmark = pytest.mark.asterisk

ROOT = Path(__file__).parents[2]


def program(path: Path, says: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(0o755)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache as `unpacked` leaves it, with a script in the loader's place."""
    machine = os.uname().machine
    _, folder, loader = unpack._MACHINES[machine]
    root = tmp_path / f"sid-{machine}"
    program(root / "usr/lib" / folder / loader, "Asterisk 22.10.1")
    for name in NEEDED_MODULES:
        (root / "usr/lib" / folder / "asterisk/modules" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "usr/lib" / folder / "asterisk/modules" / name).write_text("x")
    (root / "stamp.json").write_text(json.dumps({"size": unpack._size(root)}))
    return tmp_path


@pytest.fixture
def no_apt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "nothing-here"))


@pytest.mark.usefixtures("no_apt")
def test_what_is_whole_is_used_as_it_is(cache: Path) -> None:
    said: list[str] = []
    install = unpacked(cache, said.append)
    assert (install.version, install.origin, said) == ("22.10.1", "unpacked", [])


@pytest.mark.usefixtures("no_apt")
@pytest.mark.parametrize("damage", ["missing file", "short file", "bad stamp", "no stamp", "does not run"])
def test_what_is_damaged_is_made_again(cache: Path, damage: str) -> None:
    root = next(cache.glob("sid-*"))
    module = next(root.rglob("chan_audiosocket.so"))
    match damage:
        case "missing file":
            module.unlink()
        case "short file":
            module.write_text("")
        case "bad stamp":
            (root / "stamp.json").write_text("[]")
        case "no stamp":
            (root / "stamp.json").unlink()
        case "does not run":
            next(root.rglob("ld-linux-*")).chmod(0o644)
    said: list[str] = []
    with pytest.raises(AsteriskUnavailable, match="apt-get is not installed"):
        unpacked(cache, said.append)
    assert len(said) == 1
    assert "is damaged" in said[0]


def test_a_failed_download_leaves_nothing_and_says_what_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Port 9 of loopback: refused at once, so nothing leaves the machine.
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(AsteriskUnavailable, match=r"reading http\S+ failed: E: Failed to fetch"):
        unpacked(tmp_path, print)
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_what_an_interrupted_run_left_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leftover = tmp_path / f"sid-{os.uname().machine}.abc.tmp" / "root"
    leftover.mkdir(parents=True)
    monkeypatch.setattr(unpack, "KEYRINGS", (tmp_path / "no-keyring.gpg",))
    with pytest.raises(AsteriskUnavailable, match="install the package debian-archive-keyring"):
        unpacked(tmp_path, print)
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


@pytest.mark.parametrize(
    ("says", "why"),
    [
        ("Asterisk 22.9.0", "older than 23.4.0, 22.10.0, 20.20.0"),
        ("Asterisk GIT-master-f0c1c1a7", "older than"),
        ("no such thing", "-V failed"),
    ],
)
def test_a_system_asterisk_that_will_not_do_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str, why: str
) -> None:
    program(tmp_path / "bin" / "asterisk", says)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    said: list[str] = []
    assert system_asterisk(said.append) is None
    assert len(said) == 1
    assert why in said[0]
    assert said[0].endswith("another one is used")


def test_ports_are_given_to_one_process_only() -> None:
    mine = [free_ports(30) for _ in range(5)]
    code = "from tools.asterisk.local import free_ports; print([list(free_ports(30)) for _ in range(5)])"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    every = [port for ports in [*mine, *json.loads(told)] for port in ports]
    assert len(every) == len(set(every)) == 300
