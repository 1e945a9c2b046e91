"""Load: many calls by one SIPp, judged by SIPp's own statistics.

SIPp plays and discards the audio itself (`rtp_stream`), so nothing of the calls' sound can be judged here; calls whose
audio matters are placed beside the load by a `sipp.Carrier`.
"""

from __future__ import annotations

import asyncio
import csv
import shutil
import signal
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.audio import g711
from tools.audio.pcm import Pcm
from tools.sip.sipp import SippError, free_udp_port

SCENARIO = Path(__file__).parent / "scenarios" / "load.xml"
SPARE_SECONDS = 40.0
"""What a run may take beyond its calls: SIPp gives an unanswered INVITE up after 32 s."""


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
    """INVITE to 200 of every answered call, by a clock of 4 ms. For exact times use `sipp.Carrier`."""


async def run_load(
    pbx: str,
    source: str,
    folder: Path,
    *,
    callee: str,
    calls: int,
    calls_per_second: float,
    hold_seconds: float,
    audio: Pcm,
    caller: str = "+919000000001",
    at_once: int | None = None,
) -> LoadResult:
    """Place `calls` calls from address `source`, hold each for `hold_seconds` with `audio` in a loop, and hang up.

    `at_once` bounds the simultaneous calls (default: none beyond rate and hold time). SIPp's files stay in `folder`.
    Cancelling ends SIPp. Raises SippError when SIPp cannot run or does not end in time, ValueError for figures that
    make no load.
    """
    if calls < 1 or calls_per_second <= 0 or hold_seconds <= 0 or len(audio) < 160:
        raise ValueError("a load needs at least one call, a rate and a hold time above 0, and 20 ms of audio")
    if shutil.which("sipp") is None:
        raise SippError("sipp is not installed (Debian: apt install sip-tester)")
    _prepare(folder, audio)
    # SIPp takes whole calls per period: a rate is given as one call every so many milliseconds where it is slow.
    rate = (
        ["-r", str(round(calls_per_second))]
        if calls_per_second >= 20
        else ["-r", "1", "-rp", str(round(1000 / calls_per_second))]
    )
    command = ["sipp", pbx, "-sf", str(SCENARIO), "-i", source, "-mi", source, "-bind_local", "-nostdin"]
    command += ["-p", str(free_udp_port(source)), "-ci", "127.0.0.1", "-timer_resol", "1", "-aa"]
    command += ["-s", callee, "-key", "caller", caller, "-m", str(calls), "-d", str(round(hold_seconds * 1000))]
    command += [*rate, "-l", str(at_once or calls), "-trace_stat", "-stf", "stat.csv", "-fd", "1"]
    command += ["-trace_rtt", "-rtt_freq", "1", "-trace_error_codes", "-trace_err", "-error_file", "errors.log"]
    rounds = -(-calls // at_once) if at_once else 1
    limit = calls / calls_per_second + rounds * hold_seconds + SPARE_SECONDS
    with (folder / "output.log").open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *command, cwd=folder, stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output
        )
    try:
        async with asyncio.timeout(limit):
            code = await process.wait()
    except TimeoutError as error:
        raise SippError(f"the load did not end within {limit:.0f} s, see {folder}/output.log") from error
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGKILL)
            await process.wait()
    if code not in (0, 1):  # 0: all successful, 1: some call failed
        raise SippError(f"sipp ended with {code}: {(folder / 'output.log').read_text(errors='replace')[-600:]}")
    return _result(folder)


def _prepare(folder: Path, audio: Pcm) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "audio.raw").write_bytes(g711.ulaw_encode(audio))
    for old in [*folder.glob("load_*_rtt.csv"), *folder.glob("load_*_error_codes.csv")]:
        old.unlink()


def _result(folder: Path) -> LoadResult:
    rows = _rows(folder / "stat.csv")
    if not rows:
        raise SippError(f"{folder}/stat.csv: SIPp wrote no statistics")
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
