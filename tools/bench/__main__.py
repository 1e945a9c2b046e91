"""python -m tools.bench [NAME ...]: measure, print, and leave the figures in .run/bench/NAME.json."""

from __future__ import annotations

import asyncio
import fcntl
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import click
import uvloop
from rich.console import Console

from audiosocket.errors import ConfigError, Unavailable
from audiosocket.loadtest import machine
from tools.asterisk.install import AsteriskUnavailable
from tools.asterisk.instance import AsteriskFailed
from tools.bench import (
    calls50,
    day,
    endings,
    freeze,
    legs,
    peers,
    placement,
    rate50,
    rate_accuracy,
    report,
    setup,
    tls,
    transcode,
    worker,
    workers,
)
from tools.bench.options import Options
from tools.process import ProcessFailed
from tools.sip.sipp import SippError

FOLDER = Path(__file__).parents[2] / ".run" / "bench"


class _Benchmark(NamedTuple):
    run: Callable[[Options], Awaitable[report.Outcome]]
    limit_seconds: Callable[[Options], float]


BENCHMARKS = {
    "transcode": _Benchmark(transcode.run, transcode.limit_seconds),
    "worker": _Benchmark(worker.run, worker.limit_seconds),
    "workers": _Benchmark(workers.run, workers.limit_seconds),
    "freeze": _Benchmark(freeze.run, freeze.limit_seconds),
    "setup": _Benchmark(setup.run, setup.limit_seconds),
    "calls50": _Benchmark(calls50.run, calls50.limit_seconds),
    "legs": _Benchmark(legs.run, legs.limit_seconds),
    "rate50": _Benchmark(rate50.run, rate50.limit_seconds),
    "rate_accuracy": _Benchmark(rate_accuracy.run, rate_accuracy.limit_seconds),
    "endings": _Benchmark(endings.run, endings.limit_seconds),
    "placement": _Benchmark(placement.run, placement.limit_seconds),
    "day": _Benchmark(day.run, day.limit_seconds),
    "tls": _Benchmark(tls.run, tls.limit_seconds),
    "peers": _Benchmark(peers.run, peers.limit_seconds),
}
BY_NAME = ("day", "legs", "peers")
"""Not among "all": `day` takes long, `legs` needs root, `peers` installs other projects' packages from registries."""
_FAILURES = (AsteriskFailed, AsteriskUnavailable, ConfigError, ProcessFailed, SippError, Unavailable, OSError)


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(BENCHMARKS)), metavar="[NAME]...")
@click.option(
    "--seconds", type=click.FloatRange(2, 600), help="calls50, legs, placement, rate50, worker(s), tls, peers."
)
@click.option("--rate", type=click.FloatRange(0.1, 200), help="rate50: calls a second.")
@click.option("--minutes", type=click.FloatRange(0.1, 120), help="rate_accuracy: how long.")
@click.option("--calls", type=click.IntRange(1, 2000), multiple=True, help="At once; worker(s), peers: also several.")
@click.option(
    "--profile", is_flag=True, help="worker: run it under cProfile; files for pstats stay in .run/bench/worker."
)
@click.option("--leg", type=click.Choice(list(legs.KINDS)), multiple=True, help="legs: this kind alone; repeat it.")
def main(
    names: tuple[str, ...],
    seconds: float | None,
    rate: float | None,
    minutes: float | None,
    calls: tuple[int, ...],
    profile: bool,
    leg: tuple[str, ...],
) -> None:
    """Measure by name: docs/performance.md says what each does; without a name, all but day, legs and peers."""
    options = Options(FOLDER, seconds, rate, minutes, calls, profile, leg)
    # Wide enough for every table when the output is a file.
    console = Console(width=None if sys.stdout.isatty() else 200)
    command = " ".join(("python -m tools.bench", *sys.argv[1:]))
    failed = []
    try:
        with _alone(FOLDER):
            described = machine.describe()
            console.print(", ".join(f"{key}: {value}" for key, value in described.items()), highlight=False)
            for name in names or [name for name in BENCHMARKS if name not in BY_NAME]:
                try:
                    outcome = uvloop.run(_limited(BENCHMARKS[name], options))
                except _FAILURES as error:
                    failed.append(name)
                    console.print(f"[bold]{name}[/bold] did not run: ", end="")
                    console.print(str(error) or type(error).__name__, markup=False)
                    continue
                report.show(console, name, outcome)
                path = report.write(FOLDER, name, outcome, described, command)
                console.print(f"figures: {path}", highlight=False)
    except BlockingIOError:
        raise click.ClickException(f"another benchmark holds {FOLDER}/lock: two would measure each other") from None
    if failed:
        raise SystemExit(1)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Holds the lock of `folder`: two benchmarks at once would measure each other. Raises BlockingIOError."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


async def _limited(benchmark: _Benchmark, options: Options) -> report.Outcome:
    limit = benchmark.limit_seconds(options)
    try:
        async with asyncio.timeout(limit):
            return await benchmark.run(options)
    except TimeoutError:
        raise ProcessFailed(f"it did not end within {limit:.0f} s, see the logs below {options.folder}") from None


if __name__ == "__main__":
    main()
