"""python -m tools.fuzz [TARGET ...]: fuzz every parser for so many runs in all; exits 1 when something was found.

What is kept lies in .run/fuzz: for each target its corpus, which the next run begins with, and the log; and under
`finds` the inputs that broke a rule. `--again FILE` runs one of them with a plain traceback.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from hashlib import sha1
from importlib.util import find_spec
from pathlib import Path

import click

from tools.fuzz import figures
from tools.fuzz.targets import TARGETS

FOLDER = Path(__file__).parents[2] / ".run" / "fuzz"
FINDS = FOLDER / "finds"
TIME_LIMIT_SECONDS = 5
"""For one input: thousands of times what it takes, so that a busy machine is not taken for a hang."""
MEMORY_LIMIT_MB = 1024
MAX_INPUT_BYTES = 2048
SHOWN_LINES = 30


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(TARGETS)), metavar="[TARGET]...")
@click.option("--runs", type=click.IntRange(1), default=1_000_000, envvar="FUZZ_RUNS", help="Over all targets.")
@click.option("--again", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Run one saved input.")
def main(names: tuple[str, ...], runs: int, again: Path | None) -> None:
    """Fuzz the targets named, or all of them."""
    if again is not None:
        _run_again(again)
        return
    if find_spec("atheris") is None:
        raise click.ClickException("atheris is not installed: make fuzz does it, or pip install -e .[fuzz]")
    chosen = names or tuple(TARGETS)
    click.echo(f"{'TARGET':<12} {'RUNS':>9} {'RUNS/S':>8} {'EDGES':>6} {'FEATURES':>8} {'MEMORY':>7}")
    finds = [name for name in chosen if not _fuzz(name, -(-runs // len(chosen)))]
    if finds:
        raise click.ClickException(f"found something in {', '.join(finds)}")


def _fuzz(name: str, runs: int) -> bool:
    """Whether all was good."""
    folder, finds = FOLDER / name, FINDS / name
    corpus, seeds = folder / "corpus", folder / "seeds"
    shutil.rmtree(seeds, ignore_errors=True)
    for made in (corpus, seeds, finds):
        made.mkdir(parents=True, exist_ok=True)
    for seed in TARGETS[name].seeds:
        (seeds / sha1(seed, usedforsecurity=False).hexdigest()).write_bytes(seed)
    before = set(finds.iterdir())
    command = [
        *(sys.executable, "-m", "tools.fuzz.child", name, f"-runs={runs}", f"-timeout={TIME_LIMIT_SECONDS}"),
        *(f"-rss_limit_mb={MEMORY_LIMIT_MB}", f"-max_len={MAX_INPUT_BYTES}", f"-artifact_prefix={finds}/"),
        *("-print_final_stats=1", "-use_value_profile=1", str(corpus), str(seeds), str(finds)),
    ]
    log = folder / "log"
    with log.open("wb") as output:
        status = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False).returncode
    said = log.read_text(errors="replace")
    found = figures.read(said, time.time_ns() // 1_000_000)
    click.echo(
        f"{name:<12} {found.executions:>9,} {found.per_second:>8,} {found.edges:>6,} {found.features:>8,}"
        f" {found.growth_mb:>+4} MB"
    )
    problem = found.problem()
    if status == 0:
        if problem:
            click.echo(f"  {problem}")
        return not problem
    told = [line for line in said.splitlines() if not line.startswith("#")]
    click.echo("\n".join(f"  {line}" for line in told[-SHOWN_LINES:]))
    for saved in sorted(set(finds.iterdir()) - before):
        click.echo(f"  run it again: {sys.executable} -m tools.fuzz --again {saved}")
    return False


def _run_again(saved: Path) -> None:
    name = saved.absolute().parent.name
    if name not in TARGETS:
        raise click.ClickException(f"{saved}: lies in no folder of a target: move it to {FINDS}/TARGET/")
    began = time.monotonic()
    TARGETS[name].run(saved.read_bytes())
    click.echo(f"{name}: good, in {time.monotonic() - began:.3f} s")


if __name__ == "__main__":
    main()
