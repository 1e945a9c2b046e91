"""Many calls by one SIPp through a whole system, judged by SIPp's own statistics.

SIPp plays and discards the audio itself (`rtp_stream`), so nothing of the calls' sound is judged here: they come about,
stay up and end, or not. What frames are worth is measured at the worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import csv
import os
import shutil
import signal
import socket
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from audiosocket.errors import Unavailable
from audiosocket.g711 import pcm_to_ulaw
from audiosocket.loadtest.statistics import Spread, Times

SCENARIO = Path(__file__).parent / "scenarios" / "load.xml"
SPARE_SECONDS = 40.0
"""What a run may take beyond its calls: SIPp gives an unanswered INVITE up after 32 s."""


HANG_UP_SECONDS = 2.0
ALL_PLACED_SECONDS = 1.0
MAX_HOLD_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class LoadResult:
    """The end of one run."""

    successful: int
    failed: int
    failures: dict[str, int]
    """SIPp's reasons (`FailedUnexpectedMessage`, `FailedMaxUDPRetrans`, ...) with their counts, zeros left out."""
    sip_codes: dict[int, int]
    """Final SIP codes that were not expected, with their counts."""
    retransmissions: int
    seconds: float
    answer_ms: tuple[float, ...]
    """INVITE to 200 of every answered call, by a clock of 4 ms."""

    @property
    def answer(self) -> Spread | None:
        """How `answer_ms` lie."""
        times = Times()
        times.add(array("d", (ms / 1000 for ms in self.answer_ms)))
        return times.spread()


async def run_load(
    pbx: str,
    source: str,
    folder: Path,
    *,
    callee: str,
    calls: int,
    calls_per_second: float,
    hold_seconds: float,
    audio: NDArray[np.int16],
    caller: str = "+919000000001",
    at_once: int | None = None,
    stop: asyncio.Event | None = None,
) -> LoadResult:
    """Place `calls` calls from address `source`, hold each for `hold_seconds` with `audio` in a loop, and hang up.

    `at_once` bounds the simultaneous calls (default: none beyond rate and hold time). SIPp's files stay in `folder`.
    `stop` ends it early: the calls are hung up, and what was seen is returned. Cancelling ends SIPp.

    Raises `Unavailable` when SIPp cannot run or does not end in time, ValueError for figures that make no load.
    """
    if calls < 1 or calls_per_second <= 0 or hold_seconds <= 0 or len(audio) < 160:
        raise ValueError("a load needs at least one call, a rate and a hold time above 0, and 20 ms of audio")
    if shutil.which("sipp") is None:
        raise Unavailable("sipp is not installed (Debian: apt install sip-tester)")
    _prepare(folder, audio)
    # SIPp hangs calls up when it is told to only as long as it has more to place. Where all are up at once, one more
    # is announced, for which there is no room; `enough` then says that it is not wanted.
    spare = int(stop is not None and at_once == calls)
    # SIPp takes whole calls per period: a rate is given as one call every so many milliseconds where it is slow.
    rate = (
        ["-r", str(round(calls_per_second))]
        if calls_per_second >= 20
        else ["-r", "1", "-rp", str(round(1000 / calls_per_second))]
    )
    command = ["sipp", pbx, "-sf", str(SCENARIO), "-i", source, "-mi", source, "-bind_local", "-nostdin"]
    command += ["-p", str(_free_udp_port(source)), "-ci", "127.0.0.1", "-timer_resol", "1", "-aa"]
    command += ["-s", callee, "-key", "caller", caller, "-m", str(calls + spare), "-d", str(round(hold_seconds * 1000))]
    command += [*rate, "-l", str(at_once or calls), "-trace_stat", "-stf", "stat.csv", "-fd", "1"]
    command += ["-trace_rtt", "-rtt_freq", "1", "-trace_error_codes", "-trace_err", "-error_file", "errors.log"]
    rounds = -(-calls // at_once) if at_once else 1
    limit = calls / calls_per_second + rounds * hold_seconds + SPARE_SECONDS
    with (folder / "output.log").open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=folder,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            # A Ctrl-C at the terminal is for our process, which then hangs the calls up.
            start_new_session=True,
        )
    ending = asyncio.create_task(process.wait(), name="sipp")
    stopping = asyncio.create_task((stop or asyncio.Event()).wait(), name="sipp is stopped")
    enough = asyncio.get_running_loop().call_later(calls / calls_per_second + ALL_PLACED_SECONDS, _tell, process)
    if not spare:
        enough.cancel()
    try:
        async with asyncio.timeout(limit):
            await asyncio.wait((ending, stopping), return_when=asyncio.FIRST_COMPLETED)
    except TimeoutError as error:
        raise Unavailable(f"the load did not end within {limit:.0f} s, see {folder}/output.log") from error
    finally:
        enough.cancel()
        await _end(process, 0.0 if spare else min(hold_seconds, MAX_HOLD_SECONDS))
        stopping.cancel()
        await asyncio.gather(ending, stopping, return_exceptions=True)
    early = stop is not None and stop.is_set()
    if process.returncode not in (0, 1) and not early:  # 0: all successful, 1: some call failed
        text = (folder / "output.log").read_text(errors="replace")
        raise Unavailable(f"sipp ended with {process.returncode}: {text[-600:]}")
    return _result(folder)


async def _end(process: asyncio.subprocess.Process, patience: float) -> None:
    """Have all calls hung up. When SIPp has none left to place they must end by themselves: `patience` is for that."""
    waits = (0.2, 0.2, HANG_UP_SECONDS + patience)
    for seconds in waits:
        _tell(process)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await process.wait()
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
        await process.wait()


def _tell(process: asyncio.subprocess.Process) -> None:
    """The first SIGUSR1: no more calls; a further one: hang up."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGUSR1)


def _prepare(folder: Path, audio: NDArray[np.int16]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "audio.raw").write_bytes(pcm_to_ulaw(audio.astype("<i2").tobytes()))
    for old in [*folder.glob("load_*_rtt.csv"), *folder.glob("load_*_error_codes.csv")]:
        old.unlink()


def _result(folder: Path) -> LoadResult:
    rows = _rows(folder / "stat.csv")
    if not rows:
        raise Unavailable(f"{folder}/stat.csv: SIPp wrote no statistics")
    last = rows[-1]
    failures = {
        name.removesuffix("(C)"): int(value)
        for name, value in last.items()
        if name.startswith("Failed") and name.endswith("(C)") and name != "FailedCall(C)" and int(value)
    }
    hours, minutes, seconds = last["ElapsedTime(C)"].split(":")
    return LoadResult(
        successful=int(last["SuccessfulCall(C)"]),
        failed=int(last["FailedCall(C)"]),
        failures=failures,
        sip_codes=_sip_codes(folder),
        retransmissions=int(last["Retransmissions(C)"]),
        seconds=int(hours) * 3600 + int(minutes) * 60 + float(seconds),
        answer_ms=tuple(
            float(row["response_time_ms"]) for path in folder.glob("load_*_rtt.csv") for row in _rows(path)
        ),
    )


def _sip_codes(folder: Path) -> dict[int, int]:
    """How often each unexpected code came. SIPp writes a row a second: when; for how long; the codes since."""
    codes: Counter[int] = Counter()
    for path in folder.glob("load_*_error_codes.csv"):
        for line in path.read_text().splitlines():
            codes.update(int(code) for code in line.rpartition(";")[2].split(",") if code.strip())
    return dict(codes)


def _rows(path: Path) -> Sequence[dict[str, str]]:
    with path.open(newline="") as lines:
        return [{k: v for k, v in row.items() if k} for row in csv.DictReader(lines, delimiter=";")]


def _free_udp_port(host: str) -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
