"""Do two workers on two cores carry twice what one does on one?

The generator is on the same machine, so each worker shares its core with a generator of its own, alone or not: there is
one core with a worker, its calls and all that they need, or there are two. Nothing has to be subtracted then, and what
two workers have in common (memory, caches, the kernel's network) is all that can make the second core worth less.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import uvloop

from audiosocket.errors import ConfigError
from audiosocket.loadtest import machine
from tools.bench.options import Options
from tools.bench.report import Outcome, Table, Value
from tools.bench.worker import OTHERS, SATURATED, measure
from tools.process import ProcessFailed, guarded

CALLS = (100, 200, 300)
"""On each worker."""
SECONDS = 15.0

Row = dict[str, Value]

_SUMS = ("frames sent", "lost", "altered", "reordered", "late ticks", "channels closed")
_WORST = ("RTT p99 ms", "gap p99.9 ms", "stolen cores")
_MEANS = ("worker cores", "generator cores", "% of a core per call")
_COLUMNS = ("workers", "calls", "on core", *_MEANS, *_WORST, *_SUMS, "others' cores")
_RATIOS = ("calls on a worker", "% per call, one", "% per call, two", "two carry times one")


def limit_seconds(options: Options) -> float:
    """The longest that it may take."""
    return len(options.calls or CALLS) * 3 * ((options.seconds or SECONDS) + 60)


async def run(options: Options) -> Outcome:
    """For each number of calls: one worker on a core, two on two, one on the other core."""
    cores = machine.two_cores()
    if cores is None:
        raise ConfigError("two workers on two cores cannot be measured on a machine of one")
    seconds = options.seconds or SECONDS
    rows: list[tuple[Value, ...]] = []
    ratios: list[tuple[Value, ...]] = []
    notes = []
    for calls in options.calls or CALLS:
        runs = []
        for on in (cores[:1], cores, cores[1:]):
            units = await _together(options.folder / "workers", on, calls, seconds)
            runs.append(_joined(units, on, calls))
            rows.append(tuple(runs[-1][column] for column in _COLUMNS))
            notes += _disturbed(units, runs[-1])
        one = (_number(runs[0], "% of a core per call") + _number(runs[2], "% of a core per call")) / 2
        two = _number(runs[1], "% of a core per call")
        ratios.append((calls, one, two, 2 * one / two))
    notes.append(
        "'two carry times one': a core is good for as many calls as go into it by their processor time, so it is 2 when"
        " a call costs two workers what it costs one. It holds where no row has lost frames or late ticks"
    )
    what = f"{seconds:g} s of echoed calls, each worker on a core with the generator of its calls"
    return Outcome(what, [Table("two workers", _COLUMNS, rows), Table("two against one", _RATIOS, ratios)], notes)


async def _together(folder: Path, cores: tuple[int, ...], calls: int, seconds: float) -> list[Row]:
    """What was seen on each of the cores, all at the same time. Raises `ProcessFailed`."""
    processes = []
    try:
        for core in cores:
            arguments = ("-m", "tools.bench.workers", str(folder / str(core)), str(core), str(calls), str(seconds))
            processes.append(
                await asyncio.create_subprocess_exec(
                    *guarded(sys.executable, *arguments), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
                )
            )
        ended = await asyncio.gather(*(process.communicate() for process in processes))
    finally:
        for process in processes:
            if process.returncode is None:
                process.kill()
                await process.wait()
    for process, (_, errors) in zip(processes, ended, strict=True):
        if process.returncode:
            raise ProcessFailed(f"a generator ended with status {process.returncode}:\n{errors.decode()}")
    return [json.loads(output) for output, _ in ended]


def _joined(units: list[Row], cores: tuple[int, ...], calls: int) -> Row:
    row: Row = {"workers": len(units), "calls": calls * len(units), "on core": " and ".join(map(str, cores))}
    row |= {name: sum(_number(unit, name) for unit in units) / len(units) for name in _MEANS}
    row |= {name: max(_number(unit, name) for unit in units) for name in _WORST}
    row |= {name: int(sum(_number(unit, name) for unit in units)) for name in _SUMS}
    # To each of two, the other one's worker and generator are others.
    ours = sum(_number(unit, "worker cores") + _number(unit, "generator cores") for unit in units)
    others = sum(_number(unit, "others' cores") for unit in units) - ours * (len(units) - 1)
    return row | {"others' cores": max(0.0, others / len(units))}


def _disturbed(units: list[Row], row: Row) -> list[str]:
    what = f"{row['workers']} worker(s), {row['calls']} calls"
    notes = []
    others = _number(row, "others' cores")
    if others > OTHERS:
        notes.append(f"{what}: other processes took {others:.2f} cores")
    fullest = max(_number(unit, "worker cores") + _number(unit, "generator cores") for unit in units)
    if fullest > SATURATED:
        notes.append(f"{what}: a core was full ({fullest:.2f}): delay and loss are worker's and generator's together")
    return notes


def _number(row: Row, name: str) -> float:
    value = row[name]
    assert isinstance(value, int | float)
    return value


def main(folder: str, core: str, calls: str, seconds: str) -> None:
    """One worker and its generator, both on one core; the figures as JSON on standard output."""
    both = (int(core), int(core))
    print(json.dumps(uvloop.run(measure(int(calls), float(seconds), both, Path(folder)))))


if __name__ == "__main__":
    main(*sys.argv[1:])
