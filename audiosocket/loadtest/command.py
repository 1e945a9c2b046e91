"""`trunkbridge loadtest`: what a media worker, or a whole system, carries."""

from __future__ import annotations

import ipaddress
import socket
import sys
import tempfile
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import numpy as np
import uvloop
from click.core import ParameterSource
from rich.console import Console

from audiosocket import __version__
from audiosocket.address import host_port, split_address
from audiosocket.callspec import masked_url
from audiosocket.dialects import DIALECTS
from audiosocket.errors import ConfigError, Unavailable
from audiosocket.loadtest import machine, marked
from audiosocket.loadtest.applications import PAUSE_SECONDS, serve
from audiosocket.loadtest.figures import Limits
from audiosocket.loadtest.modes import Run
from audiosocket.loadtest.plan import Mode, Plan, Result, Target
from audiosocket.loadtest.report import Screen, as_json, show, show_sip, verdict
from audiosocket.loadtest.sip import LoadResult, run_load
from audiosocket.loadtest.standalone import StandaloneWorker
from audiosocket.runtime.process import StopSignal

OUR_APPLICATION = "127.0.0.1:9300"
SPARE_CALLS = 50
"""Room on a started worker for calls that end while others begin."""
SPARE_FILES = 200
CHURN_SECONDS, STEP_SECONDS, SECONDS = 60.0, 10.0, 20.0
TONE_HZ = 440
_SIP_MODES = (Mode.STEADY, Mode.CHURN)
_BELONGS = {
    "hold": "churn",
    "step": "ramp",
    "utterance": "burst",
    "slow_percent": "slow",
    "stall": "slow",
}
"""Options that mean something in one mode alone."""


@click.command()
@click.argument("mode", type=click.Choice([mode.value for mode in Mode]))
@click.option("--start", is_flag=True, help="Start a worker for it, on a core of its own, and stop it at the end.")
@click.option("--worker", metavar="HOST:PORT", help="A standalone worker that runs already.")
@click.option("--sip", metavar="HOST:PORT", help="A whole system instead, called by SIPp. steady and churn only.")
@click.option("--app", "app_url", metavar="URL", help="An echo of yours is the application; none is played here.")
@click.option("--dialect", type=click.Choice(sorted(DIALECTS)), default="exotel", show_default=True, help="Of --app.")
@click.option(
    "--listen",
    metavar="HOST:PORT",
    help=f"Where the application is played, which the worker was given as its --app.  [default: {OUR_APPLICATION}]",
)
@click.option(
    "--format",
    "media_format",
    type=click.Choice(["slin", "ulaw"]),
    help="What the worker was told that Asterisk sends.  [default: ulaw with --start, otherwise slin]",
)
@click.option("--pid", type=click.IntRange(1), help="The worker's process.  [default: found by its port]")
@click.option("--status", metavar="HOST:PORT", help="The worker's status endpoint: what it dropped, its sessions.")
@click.option(
    "--calls", type=click.IntRange(1, marked.CALLS_MAX), help="At once; ramp: the most.  [default: 100; ramp: 1000]"
)
@click.option(
    "--seconds",
    type=click.FloatRange(1, 86_400),
    help=f"How long; ramp: each step.  [default: {SECONDS:g}; ramp: {STEP_SECONDS:g}; churn: {CHURN_SECONDS:g}]",
)
@click.option("--minutes", type=click.FloatRange(0.1, 1440), help="The same, for long ones.")
@click.option(
    "--rate", type=click.FloatRange(0.1, 500), help="Calls set up in a second.  [default: 100; churn, sip: 20]"
)
@click.option("--hold", type=click.FloatRange(0.2, 600), default=2.0, show_default=True, help="churn: seconds a call.")
@click.option("--step", type=click.IntRange(1, 1000), default=50, show_default=True, help="ramp: calls more each time.")
@click.option(
    "--utterance", type=click.IntRange(1, 60), default=10, show_default=True, help="burst: seconds sent at once."
)
@click.option(
    "--slow-percent",
    type=click.FloatRange(1, 100),
    default=20.0,
    show_default=True,
    help="slow: of the calls, those whose application stalls.",
)
@click.option(
    "--stall", type=click.FloatRange(0.2, 600), default=3.0, show_default=True, help="slow: seconds it reads nothing."
)
@click.option("--max-loss", type=click.FloatRange(0, 100), metavar="PERCENT", help="More lost frames fail the test.")
@click.option("--max-p99-ms", type=click.FloatRange(0.1), metavar="MS", help="A longer round trip p99 fails the test.")
@click.option("--callee", help="sip: the number to call.")
@click.option("--caller", default="+919000000001", show_default=True, help="sip: who calls.")
@click.option("--source", metavar="ADDRESS", default="127.0.0.1", show_default=True, help="sip: the trunk's address.")
@click.option("--json", "json_path", type=click.Path(path_type=Path, dir_okay=False), help="Write the figures here.")
@click.option("--picture", type=click.Path(path_type=Path, dir_okay=False), help="Draw them here, as PNG.")
@click.option("--yes", is_flag=True, help="The target is another machine, and I may load it.")
def loadtest(mode: str, json_path: Path | None, picture: Path | None, **given: Any) -> None:
    """Load a media worker with calls and say how well it carries them.

    Asterisk's side of N calls is played, and the application's, unless --app is given. Every frame is marked: loss,
    delay and order are counted frame by frame.

    \b
    steady  N calls for a while
    ramp    more and more calls, until a limit is broken: how many it carries
    burst   the application sends whole utterances at once
    slow    some applications stop reading: do the other calls notice
    churn   calls begin and end: is anything left behind

    Exit codes: 0 done and within the limits, 1 a limit was broken or it could not run, 2 wrong usage, 130 stopped.
    """
    plan = _plan(Mode(mode), given)
    _check(plan, given)
    for option, path in (("--json", json_path), ("--picture", picture)):
        if path is not None and not path.absolute().parent.is_dir():
            raise click.UsageError(f"{option} {path}: there is no such folder")
    if picture is not None:
        _need_pillow()
    console = Console() if sys.stdout.isatty() else Console(width=120)
    about = {
        "mode": mode,
        "plan": plan,
        "target": given["sip"] or given["worker"] or "started",
        "application": masked_url(given["app_url"]) if given["app_url"] else "played here",
        "began_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": __version__,
        "machine": machine.describe(),
    }
    result: Result | LoadResult
    if given["sip"]:
        result, interrupted = uvloop.run(_call_by_sip(plan, given, console))
        wrong = _sip_wrong(result)
        show_sip(console, result, wrong)
    else:
        result = _load(plan, given, console)
        interrupted, wrong = result.interrupted, verdict(plan, result)
    if json_path is not None:
        _write(json_path, as_json(about, result, wrong))
        console.print(f"figures: {json_path}", highlight=False, soft_wrap=True)
    if picture is not None and isinstance(result, Result) and _draw(picture, plan, result):
        console.print(f"picture: {picture}", highlight=False, soft_wrap=True)
    sys.exit(130 if interrupted else int(bool(wrong)))


def _plan(mode: Mode, given: dict[str, Any]) -> Plan:
    if given["seconds"] is not None and given["minutes"] is not None:
        raise click.UsageError("--seconds and --minutes say the same: give one of them")
    usual = {Mode.RAMP: STEP_SECONDS, Mode.CHURN: CHURN_SECONDS}.get(mode, SECONDS)
    seconds = given["minutes"] * 60 if given["minutes"] is not None else given["seconds"] or usual
    rate = given["rate"] or (20.0 if mode is Mode.CHURN or given["sip"] else 100.0)
    calls = {Mode.RAMP: 1000, Mode.CHURN: min(round(rate * given["hold"] * 2) + 10, marked.CALLS_MAX)}.get(mode, 100)
    return Plan(
        mode=mode,
        calls=given["calls"] or calls,
        seconds=seconds,
        rate=rate,
        hold=given["hold"],
        step=given["step"],
        utterance=given["utterance"],
        slow_percent=given["slow_percent"],
        stall=given["stall"],
        slin=(given["media_format"] or ("ulaw" if given["start"] else "slin")) == "slin",
        limits=Limits(given["max_loss"], given["max_p99_ms"]),
    )


def _check(plan: Plan, given: dict[str, Any]) -> None:
    """Raises `click.UsageError` for what does not go together, or is not ours to load."""
    targets = [name for name in ("start", "worker", "sip") if given[name]]
    if len(targets) != 1:
        raise click.UsageError("give one of --start, --worker HOST:PORT and --sip HOST:PORT")
    context = click.get_current_context()
    foreign = {name: mode for name, mode in _BELONGS.items() if mode != plan.mode}
    if targets == ["sip"]:
        if plan.mode not in _SIP_MODES:
            raise click.UsageError("--sip goes with steady and churn: SIPp does not look at frames")
        if not given["callee"]:
            raise click.UsageError("--sip needs --callee NUMBER, whose application answers and stays")
        worker_only = ("app_url", "listen", "media_format", "pid", "status", "max_p99_ms", "max_loss")
        foreign |= dict.fromkeys(worker_only, "--worker and --start")
    else:
        foreign |= dict.fromkeys(("callee", "caller", "source"), "--sip")
    if targets == ["start"]:
        foreign |= dict.fromkeys(("pid", "status", "listen"), "--worker")
    for name, owner in foreign.items():
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            shown = {"media_format": "format", "app_url": "app"}.get(name, name).replace("_", "-")
            raise click.UsageError(f"--{shown} belongs to {owner}")
    if given["app_url"] and plan.mode in (Mode.BURST, Mode.SLOW):
        raise click.UsageError(f"{plan.mode} plays the application itself: leave --app out")
    if given["app_url"] and given["listen"]:
        raise click.UsageError("--app is an application of yours, --listen is where one is played here: give one")
    if plan.mode is Mode.BURST and plan.seconds < plan.utterance + PAUSE_SECONDS:
        raise click.UsageError(f"burst: an utterance and its pause take {plan.utterance + PAUSE_SECONDS:g} s")
    if not given["yes"]:
        _only_here("--worker", given["worker"])
        _only_here("--sip", given["sip"])
        _only_here("--listen", given["listen"])
        if given["start"] and given["app_url"]:
            parts = urlsplit(split_address(given["app_url"], given["dialect"], "--app")[0])
            _only_here("--app", f"{parts.hostname}:{parts.port or 443}")


def _only_here(option: str, address: str | None) -> None:
    if not address:
        return
    host = host_port(option, address)[0]
    try:
        found = {str(info[4][0]) for info in socket.getaddrinfo(host, None)}
    except OSError as error:
        raise click.UsageError(f"{option} {address}: {error.strerror}") from None
    if not all(ipaddress.ip_address(one.partition("%")[0]).is_loopback for one in found):
        raise click.UsageError(
            f"{option} {address} is not this machine: a load test takes it to its limits. If it is yours and idle,"
            " add --yes"
        )


def _need_pillow() -> None:
    try:
        import audiosocket.loadtest.picture  # noqa: F401
    except ImportError:
        raise click.UsageError("--picture needs Pillow: pip install 'trunkbridge[run]', or pillow") from None


def _load(plan: Plan, given: dict[str, Any], console: Console) -> Result:
    screen = Screen(console)
    try:
        result = uvloop.run(_against_worker(plan, given, screen))
    finally:
        screen.quiet()
    show(console, plan, result, f"--format {'slin' if plan.slin else 'ulaw'}")
    return result


async def _against_worker(plan: Plan, given: dict[str, Any], screen: Screen) -> Result:
    stop = StopSignal()
    if not machine.allow_descriptors(2 * plan.calls + SPARE_FILES):
        raise ConfigError(f"--calls {plan.calls}: this process may not open so many files: raise `ulimit -n`")
    run = Run(plan, screen, stop.requested)
    cores = machine.two_cores() if given["start"] else None
    async with AsyncExitStack() as stack:
        url = given["app_url"]
        if not url:
            host, port = host_port("--listen", given["listen"] or OUR_APPLICATION)
            try:
                # The worker that is started here is told where to dial: any port does.
                url = await stack.enter_async_context(serve(run.stream, host, 0 if given["start"] else port))
            except OSError as error:
                raise ConfigError(f"--listen {host}:{port}: {error.strerror}: choose another") from None
        if given["start"]:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="loadtest-")))
            # Without fades frames can be compared bit by bit.
            options = ["--format", "slin" if plan.slin else "ulaw", "--dialect", given["dialect"], "--fade-ms", "0"]
            core = None if cores is None else cores[0]
            worker = StandaloneWorker(folder, url, plan.calls + SPARE_CALLS, core, more=options)
            stack.push_async_callback(worker.stop)
            await worker.start()
            target = Target("127.0.0.1", worker.port, worker.pid, worker.status)
            if cores is not None:
                stack.enter_context(machine.pinned(cores[1]))
        else:
            host, port = host_port("--worker", given["worker"])
            pid = given["pid"] or machine.listener(port)
            target = Target(host, port, pid, given["status"] or "")
        await run.run(target)
        if not given["app_url"] and run.result.measured and not run.streams:
            raise Unavailable(
                f"no call has reached the application that is played here: start the worker with --app {url}, or give"
                " --app when another application is to answer"
            )
    return run.result


async def _call_by_sip(plan: Plan, given: dict[str, Any], console: Console) -> tuple[LoadResult, bool]:
    host, port = host_port("--sip", given["sip"])
    stop = StopSignal()
    churn = plan.mode is Mode.CHURN
    calls = round(plan.rate * plan.seconds) if churn else plan.calls
    hold = plan.hold if churn else plan.seconds
    console.print(f"{calls:,} calls of {hold:g} s to {given['callee']}, {plan.rate:g} a second", highlight=False)
    tone = (8000 * np.sin(2 * np.pi * TONE_HZ * np.arange(8000) / 8000)).astype(np.int16)
    with tempfile.TemporaryDirectory(prefix="loadtest-") as folder:
        result = await run_load(
            f"{host}:{port}",
            given["source"],
            Path(folder),
            callee=given["callee"],
            caller=given["caller"],
            calls=calls,
            calls_per_second=plan.rate,
            hold_seconds=hold,
            at_once=plan.calls,
            audio=tone,
            stop=stop.requested,
        )
    return result, stop.requested.is_set()


def _sip_wrong(result: LoadResult) -> list[str]:
    return [f"{result.failed:,} of {result.failed + result.successful:,} calls failed"] if result.failed else []


def _write(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise ConfigError(f"--json {path}: {error.strerror}") from None


def _draw(path: Path, plan: Plan, result: Result) -> bool:
    """Whether there was anything to draw."""
    from audiosocket.loadtest.picture import draw, panels

    if not result.measured:
        return False
    # Of a ramp the last step within the limits, which is what was looked for.
    kept = [found for step, found in zip(result.steps, result.measured, strict=False) if not step.broken]
    shown = (kept or result.measured)[-1]
    try:
        title = f"loadtest {plan.mode}: {shown.calls:,} calls, {shown.seconds:,.0f} s"
        draw(path, title, panels(shown.points, shown.delays))
    except OSError as error:
        raise ConfigError(f"--picture {path}: {error.strerror}") from None
    return True
