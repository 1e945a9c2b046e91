"""`python -m tools.run`: starts everything, places one real call, shows and judges it, and stays up for more.

With --once it ends after the call. Exit status: 0 the call was good (or, without --once, the run was ended by
Ctrl-C), 1 it was not, or something did not start or ended by itself, 130 interrupted before that.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import Awaitable
from pathlib import Path
from typing import TypeVar

import structlog

from ari_app.errors import TrunkbridgeError
from audiosocket.callspec import masked_url
from audiosocket.errors import MediaError
from audiosocket.runtime.config import read_yaml
from tools.asterisk.install import AsteriskInstall, AsteriskUnavailable
from tools.asterisk.instance import AsteriskFailed
from tools.asterisk.provide import provide
from tools.audio.speech import SoundError
from tools.process import ProcessFailed
from tools.run import results
from tools.run.call import LiveCall
from tools.run.evidence import judge
from tools.run.preflight import APPLICATION, NotReady, find_line, only_run, require_embedded, require_ports
from tools.run.show import Show
from tools.sip.rtp_peer import RtpTicker
from tools.sip.sipp import Carrier, SippError
from tools.system import System

EXAMPLE = Path(__file__).resolve().parents[2] / "trunkbridge.example.yml"
INTERRUPTED = 130
CLEAR_ERRORS = (
    *(MediaError, TrunkbridgeError, AsteriskUnavailable, AsteriskFailed),
    *(ProcessFailed, SippError, SoundError, NotReady, OSError),
)

T = TypeVar("T")


class Run:
    """One run, from the first check to the last process's end."""

    def __init__(self, config_path: Path, once: bool, show: Show) -> None:
        self._config_path = config_path
        self._once = once
        self._show = show
        self._system: System | None = None
        self._carrier: Carrier | None = None
        self._stop = asyncio.Event()
        self._killing: asyncio.Task[None] | None = None
        self._up = False
        self._call_id = "CALL"

    async def run(self, install: AsteriskInstall) -> int:
        """Exit status. SIGINT, SIGTERM and SIGHUP end it in order, a second one at once."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._on_signal, number)
        work = asyncio.create_task(self._work(install), name="run")
        asked = asyncio.create_task(self._stop.wait(), name="stop-asked")
        await asyncio.wait((work, asked), return_when=asyncio.FIRST_COMPLETED)
        asked.cancel()
        if not work.done():
            work.cancel()
        await asyncio.wait((work,))
        if self._killing is not None:
            await self._killing
        if self._stop.is_set():
            self._show.say("stopped, nothing is left running")
            return 0 if self._up else INTERRUPTED
        return work.result()

    def _on_signal(self, number: signal.Signals) -> None:
        if number == signal.SIGHUP:
            self._show.lose()
        if not self._stop.is_set():
            self._stop.set()
            self._show.say("\nstopping; once more to stop at once")
        elif self._system is not None and self._killing is None:
            if self._carrier is not None:
                self._carrier.kill()
            self._killing = asyncio.create_task(self._system.kill(), name="kill")

    async def _work(self, install: AsteriskInstall) -> int:
        show = self._show
        try:
            self._system = system = System(self._config_path, install, lambda line: show.say(f"  {line}"))
            with only_run(system.config.state_dir):
                require_embedded(system.config, self._config_path)
                require_ports(system.config, self._config_path)
                show.say(f"starting {_short(self._config_path)}, state and logs in {_short(system.config.state_dir)}")
                for name, application in system.config.applications.items():
                    if name not in system.applications:
                        show.say(f"  {name} at {masked_url(application.url)} is not started here")
                async with system:
                    good = await self._unless_failed(system, self._call(system))
                    if self._once:
                        return 0 if good else 1
                    self._up = True
                    self._invite(system)
                    raise await system.wait_failed()
        except CLEAR_ERRORS as error:
            show.error(str(error))
            return 1

    async def _unless_failed(self, system: System, work: Awaitable[T]) -> T:
        """The result of `work`; raises at once when a process ends meanwhile."""
        task, watch = asyncio.ensure_future(work), asyncio.create_task(system.wait_failed(), name="watch")
        try:
            await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
            if watch.done() and not task.done():
                if self._carrier is not None:
                    self._carrier.kill()  # nobody may be there any more to answer its BYE
                raise watch.result()
            return await task
        finally:
            task.cancel()
            watch.cancel()
            await asyncio.gather(task, watch, return_exceptions=True)

    async def _call(self, system: System) -> bool:
        show, config = self._show, system.config
        folder = config.state_dir / "demo"
        folder.mkdir(parents=True, exist_ok=True)
        for name in results.FILES:
            (folder / name).unlink(missing_ok=True)
        line = find_line(config, self._config_path)
        record = system.logs / f"{APPLICATION}.jsonl"
        show.say(f"calling {line.number} over trunk {line.trunk} ({line.source}): about 25 s")
        async with (
            RtpTicker() as ticker,
            Carrier(config.asterisk.sip_listen, line.source, folder / "sipp", ticker, codec=line.codec) as carrier,
        ):
            self._carrier = carrier
            live = LiveCall(config, line, carrier, system.install.sounds, record)
            async with show.following(live), live.follow():
                await live.play()
        verdict = judge(live)
        logs = [system.logs, system.asterisk.log, folder / "sipp"]
        results.write(folder, live, verdict, logs)
        show.verdict(verdict, live)
        show.say()
        for name in results.FILES:
            if (folder / name).exists():
                show.say(f"  {_short(folder / name)}")
        if verdict.good:
            show.say("the call carried audio both ways", "bold green")
        else:
            missing = sum(not check.good for check in verdict.checks)
            show.say(f"the call was not good: {missing} of {len(verdict.checks)} missing", "bold red")
            if live.cut_short:
                show.say(f"  {live.cut_short}")
            if live.row is not None and live.row.result not in (None, "success"):
                show.say(f"  its record says: {live.row.result}, {live.row.reason}, {live.row.detail or 'no detail'}")
            show.say(f"  logs: {', '.join(_short(path) for path in logs)}")
        if live.row is not None:
            self._call_id = live.row.call_id[:8]
        return verdict.good

    def _invite(self, system: System) -> None:
        config, show = system.config, self._show
        show.say()
        show.say("everything stays up until Ctrl-C", "bold")
        show.say(f"\ncall it with a softphone on this machine: SIP over UDP, server {config.asterisk.sip_listen}")
        secrets = read_yaml(self._config_path).get("phones") or {}
        for name in config.phones:
            source = secrets[name]["password"]
            file = source.get("file")
            where = f"{_short(self._config_path.parent / file)}" if file else f"environment variable {source['env']}"
            show.say(f"  user {name}, password in {where}")
        for route in config.routes:
            show.say(f"  {route.did:<15} {route.application}")
        program = Path(sys.executable).parent / "trunkbridge"
        command = _short(program) if program.exists() else f"{_short(Path(sys.executable))} -m ari_app.cli.main"
        show.say(f"\nlook around, in another terminal in {Path.cwd()}:")
        show.say(f"  export TRUNKBRIDGE_CONFIG={_short(self._config_path)}")
        for words in (
            "calls list",
            f"calls show {self._call_id}",
            "calls watch",
            "channels list",
            "calls hangup CALL",
            "--help",
        ):
            show.say(f"  {command} {words}")
        show.say(f"  curl http://{config.gateway.status_listen}/metrics")
        show.say(f"logs: {_short(system.logs)}, {_short(system.asterisk.log)}")


def _short(path: Path) -> str:
    """The path as one would type it here."""
    path = Path(os.path.abspath(path))
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def main() -> int:
    """See the module's text."""
    parser = argparse.ArgumentParser(prog="python -m tools.run", description="Starts everything and places a call.")
    parser.add_argument("--once", action="store_true", help="end after the call; exit 0 only if it was good")
    parser.add_argument("--config", type=Path, default=EXAMPLE, metavar="FILE", help="default: %(default)s")
    options = parser.parse_args()
    show = Show()
    # What the libraries of trunkbridge would log here is told by `Show`.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    # Before there is an event loop, every one of them is an interruption.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        install = provide(progress=lambda line: show.say(f"asterisk: {line}"))
        return asyncio.run(_run(options.config, options.once, show, install))
    except KeyboardInterrupt:
        show.error("interrupted")
        return INTERRUPTED
    except AsteriskUnavailable as error:
        show.error(str(error))
        return 1


async def _run(config_path: Path, once: bool, show: Show, install: AsteriskInstall) -> int:
    return await Run(config_path, once, show).run(install)


if __name__ == "__main__":
    sys.exit(main())
