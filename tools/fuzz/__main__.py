"""python -m tools.fuzz [TARGET ...]: fuzz every parser for so many runs in all; exits 1 when something was found.

A target in which compiled code takes part runs twice: in Python, where every branch leads to the next, and compiled,
with all inputs that were found in that way.

What is kept lies in .run/fuzz: for each target its corpus, which the next run begins with, and the log; and under
`finds` the inputs that broke a rule. `--again FILE` runs one of them with a plain traceback.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from hashlib import sha1
from importlib.util import find_spec
from pathlib import Path

import click

from audiosocket.compiled import FRAMES, STATE, SWITCH
from tools.fuzz import figures, sanitizing
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
@click.option("--sanitize", is_flag=True, help="Compiled code alone, watched by ASan and UBSan (needs gcc).")
@click.option("--again", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Run one saved input.")
def main(names: tuple[str, ...], runs: int, sanitize: bool, again: Path | None) -> None:
    """Fuzz the targets named, or all of them."""
    if again is not None:
        _run_again(again)
        return
    if sanitize:
        _sanitize(names or tuple(name for name, target in TARGETS.items() if target.compiled), runs)
        return
    if find_spec("atheris") is None:
        raise click.ClickException("atheris is not installed: make fuzz does it, or pip install -e .[fuzz]")
    chosen = names or tuple(TARGETS)
    click.echo(f"{'TARGET':<16} {'BY':<8} {'RUNS':>9} {'RUNS/S':>8} {'EDGES':>6} {'FEATURES':>8} {'MEMORY':>7}")
    finds = []
    for name in chosen:
        ways = ("python", "compiled") if TARGETS[name].compiled and FRAMES is not None else ("python",)
        finds += [name for way in ways if not _fuzz(name, way, -(-runs // len(chosen) // len(ways)))]
    if FRAMES is None:
        click.echo(f"nothing compiled was run ({STATE})")
    if finds:
        raise click.ClickException(f"found something in {', '.join(finds)}")


def _folders(name: str) -> tuple[Path, Path, Path, Path]:
    """Of a target: its own, its corpus, its seeds, its finds."""
    folder, finds = FOLDER / name, FINDS / name
    corpus, seeds = folder / "corpus", folder / "seeds"
    shutil.rmtree(seeds, ignore_errors=True)
    for made in (corpus, seeds, finds):
        made.mkdir(parents=True, exist_ok=True)
    for seed in TARGETS[name].seeds:
        (seeds / sha1(seed, usedforsecurity=False).hexdigest()).write_bytes(seed)
    return folder, corpus, seeds, finds


def _fuzz(name: str, way: str, runs: int) -> bool:
    """Whether all was good."""
    folder, corpus, seeds, finds = _folders(name)
    before = set(finds.iterdir())
    command = [
        *(sys.executable, "-m", "tools.fuzz.child", name, f"-runs={runs}", f"-timeout={TIME_LIMIT_SECONDS}"),
        *(f"-rss_limit_mb={MEMORY_LIMIT_MB}", f"-max_len={MAX_INPUT_BYTES}", f"-artifact_prefix={finds}/"),
        *("-print_final_stats=1", "-use_value_profile=1", str(corpus), str(seeds), str(finds)),
    ]
    log = folder / f"log-{way}"
    variables = os.environ | ({SWITCH: "no"} if way == "python" else {})
    with log.open("wb") as output:
        status = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, env=variables, check=False).returncode
    said = log.read_text(errors="replace")
    found = figures.read(said, time.time_ns() // 1_000_000)
    click.echo(
        f"{name:<16} {way:<8} {found.executions:>9,} {found.per_second:>8,} {found.edges:>6,} {found.features:>8,}"
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
        switched = f"{SWITCH}=no " if way == "python" else ""
        click.echo(f"  run it again: {switched}{sys.executable} -m tools.fuzz --again {saved}")
    return False


def _sanitize(names: tuple[str, ...], runs: int) -> None:
    here = FOLDER / "sanitized"
    try:
        variables = sanitizing.build(here)
    except (OSError, subprocess.CalledProcessError) as error:
        raise click.ClickException(f"the compiled steps cannot be built with sanitizers: {error}") from None
    click.echo(f"{'TARGET':<16} {'RUNS':>9} {'RUNS/S':>8}")
    each, bad = -(-runs // len(names)), []
    for name in names:
        folder, corpus, seeds, finds = _folders(name)
        last = finds / f"sanitized-{time.time_ns()}"
        command = (sys.executable, "-m", "tools.fuzz.blind", name, str(each), str(last), str(seeds), str(corpus))
        began = time.monotonic()
        with (folder / "log-sanitized").open("w+") as output:
            found = subprocess.run(
                command, cwd=here, env=os.environ | variables, stdout=output, stderr=subprocess.STDOUT, check=False
            )
            output.seek(0)
            said = output.read().splitlines()
        click.echo(f"{name:<16} {each:>9,} {each / (time.monotonic() - began):>8,.0f}")
        if found.returncode:
            bad.append(name)
            click.echo("\n".join(f"  {line}" for line in said[:SHOWN_LINES]))
            click.echo(f"  the input is in {last}")
    if bad:
        raise click.ClickException(f"found something in {', '.join(bad)}")


def _run_again(saved: Path) -> None:
    name = saved.absolute().parent.name
    if name not in TARGETS:
        raise click.ClickException(f"{saved}: lies in no folder of a target: move it to {FINDS}/TARGET/")
    began = time.monotonic()
    TARGETS[name].run(saved.read_bytes())
    click.echo(f"{name}: good, in {time.monotonic() - began:.3f} s")


if __name__ == "__main__":
    main()
