"""`make run` and `make demo` as a user runs them: what they print, leave behind, and never leave running."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import sys
import time
import wave
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ari_app.settings import load
from tests.pbx import EXAMPLE
from tools.apps.conversation import GOODBYE, GREETING, REPLIES
from tools.asterisk.install import AsteriskInstall
from tools.asterisk.local import free_ports, local_config
from tools.audio.speech import prompt
from tools.audio.talkspurts import talkspurts
from tools.run.call import SENTENCES
from tools.run.evidence import MATCH_MIN, correlate
from tools.run.preflight import require_ports

pytestmark = pytest.mark.asterisk

CALL_SECONDS = 90
END_SECONDS = 15


class Demo:
    """One run, its output in a file."""

    def __init__(self, config: Path, output: Path, process: asyncio.subprocess.Process) -> None:
        self.config, self.output, self.process = config, output, process
        self.folder = load(config).state_dir / "demo"

    @property
    def text(self) -> str:
        return self.output.read_text()

    async def until(self, words: str, seconds: float = 40) -> None:
        deadline = time.monotonic() + seconds
        while words not in self.text:
            assert self.process.returncode is None, self.text
            assert time.monotonic() < deadline, f"{words!r} not within {seconds} s:\n{self.text}"
            await asyncio.sleep(0.05)

    async def status(self, seconds: float) -> int:
        async with asyncio.timeout(seconds):
            return await self.process.wait()

    def left(self) -> list[str]:
        """Processes that know the configuration, or anything below its folder."""
        found = []
        for process in Path("/proc").iterdir():
            if process.name.isdigit() and int(process.name) != os.getpid():
                with contextlib.suppress(OSError):
                    known = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
                    if str(self.config.parent).encode() in known:
                        found.append(known.replace(b"\0", b" ").decode(errors="replace")[:200])
        return found

    async def nothing_left(self) -> None:
        deadline = time.monotonic() + 2
        while self.left() and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        assert self.left() == []
        require_ports(load(self.config), self.config)


@contextlib.asynccontextmanager
async def demo(
    folder: Path, *options: str, changes: dict[str, Any] | None = None, config: Path | None = None
) -> AsyncIterator[Demo]:
    folder.mkdir(exist_ok=True)
    config = config or local_config(EXAMPLE, folder, changes=changes)
    output = folder / "output.log"
    with output.open("wb") as out:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tools.run", *options, "--config", str(config)),
            cwd=EXAMPLE.parent,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=out,
            stderr=asyncio.subprocess.STDOUT,
        )
    try:
        yield Demo(config, output, process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_once_carries_audio_both_ways_and_leaves_evidence(asterisk_install, tmp_path):
    async with demo(tmp_path / "run", "--once") as run:
        assert await run.status(CALL_SECONDS) == 0, run.text
        await run.nothing_left()
    assert "the call carried audio both ways" in run.text
    assert "\x1b" not in run.text
    assert "\r" not in run.text
    with wave.open(str(run.folder / "call.wav")) as recording:
        assert (recording.getnchannels(), recording.getframerate()) == (2, 8000)
        frames = recording.readframes(recording.getnframes())
    caller, application = np.frombuffer(frames, dtype="<i2").reshape(-1, 2).T
    assert len(talkspurts(caller)) == 3
    assert sum(spurt.seconds for spurt in talkspurts(application)) > 8
    with Image.open(run.folder / "call.png") as picture:
        assert picture.width >= 1000
        assert len(picture.getcolors(1 << 20)) > 5
    result = json.loads((run.folder / "result.json").read_text())
    assert result["good"] is True
    assert all(check["good"] for check in result["checks"])
    assert [turn["number"] for turn in result["turns"]] == [1, 2, 3, 4, 5]
    assert result["reception"]["lost"] == 0
    assert 0 < result["clear_ms"] < 200
    assert result["call_id"]


async def test_an_unreachable_application_is_named_and_fails_the_run(asterisk_install, tmp_path):
    nobody = f"wss://127.0.0.1:{free_ports(1)[0]}/"
    changes = {"applications": {"conversation": {"url": nobody, "connect_attempts": 1}}}
    async with demo(tmp_path / "run", "--once", changes=changes) as run:
        assert await run.status(CALL_SECONDS) == 1, run.text
        await run.nothing_left()
    assert "application_refused" in run.text
    assert "the call was not good" in run.text
    assert "MISSING" in run.text
    assert str(run.folder / "sipp") in run.text
    assert json.loads((run.folder / "result.json").read_text())["good"] is False


@pytest.mark.parametrize(
    "signals", [[signal.SIGINT], [signal.SIGTERM, signal.SIGTERM], [signal.SIGHUP]], ids=lambda each: each[0].name
)
async def test_a_signal_during_the_call_stops_every_process(asterisk_install, tmp_path, signals):
    async with demo(tmp_path / "run") as run:
        await run.until("200 OK")
        assert len(run.left()) > 5
        for number in signals:
            run.process.send_signal(number)
            await asyncio.sleep(0.1)
        assert await run.status(END_SECONDS) == 130, run.text
        await run.nothing_left()
    assert "Traceback" not in run.text


async def test_a_second_run_says_that_there_is_one(asterisk_install, tmp_path):
    async with demo(tmp_path / "first") as first:
        await first.until("controller is connected")
        async with demo(tmp_path / "second", "--once", config=first.config) as second:
            assert await second.status(END_SECONDS) == 1
        assert f"process {first.process.pid}" in second.text
        # The same ports, but a state of its own.
        other = tmp_path / "other.yml"
        other.write_text(first.config.read_text().replace(f"{tmp_path}/first/state", f"{tmp_path}/other"))
        async with demo(tmp_path / "third", "--once", config=other) as third:
            assert await third.status(END_SECONDS) == 1
        assert (
            f"UDP port {load(first.config).asterisk.sip_listen.rpartition(':')[2]} (asterisk.sip_listen" in third.text
        )
        assert "End what uses them" in third.text


async def test_a_process_that_dies_is_named_with_its_log(asterisk_install, tmp_path):
    async with demo(tmp_path / "run", "--once") as run:
        await run.until("200 OK")
        os.kill(application_of(run), signal.SIGKILL)
        assert await run.status(END_SECONDS) == 1
        await run.nothing_left()
    assert "conversation ended by itself" in run.text
    assert "listening on" in run.text


def application_of(run: Demo) -> int:
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with contextlib.suppress(OSError):
                words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
                if "tools.apps.conversation" in words and any(str(run.config.parent) in word for word in words):
                    return int(process.name)
    raise AssertionError("the application does not run")


def test_what_is_said_is_not_taken_for_another_recording(asterisk_install: AsteriskInstall):
    names = {*GREETING, *REPLIES, *GOODBYE, *SENTENCES}
    recordings = [np.array(prompt(asterisk_install.sounds, name)) for name in sorted(names)]
    pause = np.zeros(16000, dtype=np.int16)
    for piece, other in itertools.permutations(recordings, 2):
        assert correlate(piece, np.concatenate([pause, other, pause]))[1] < 0.35 < MATCH_MIN
    for piece in recordings:
        assert correlate(piece, np.concatenate([pause, piece, pause])) == (16000, pytest.approx(1))
