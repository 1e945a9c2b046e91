"""One running Asterisk with configuration rendered by trunkbridge, below a folder of its own."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import shutil
import signal
import socket
import tempfile
from pathlib import Path

import aiohttp

from ari_app.asterisk_conf import AsteriskLayout, render, write
from ari_app.settings import Config
from audiosocket.settings import split_host_port
from tools.asterisk.install import AsteriskInstall
from tools.namespace import Namespace
from tools.process import guarded, send_signal

START_SECONDS = 40.0
STOP_SECONDS = 10.0
COMMAND_SECONDS = 10.0

# sun_path holds 108 bytes with its end mark (unix(7)).
_SOCKET_PATH_BYTES = 107
_TAIL_LINES = 25
_POLL_SECONDS = 0.05


class AsteriskFailed(Exception):
    """Asterisk did not start, or did not do what it was asked; the text ends with the tail of its log."""


class AsteriskInstance:
    """An Asterisk below `folder`, which may be used again: configuration is rendered anew at every start.

    It dies with the thread that called `start`: call it from the event loop of the main thread.
    """

    def __init__(
        self, install: AsteriskInstall, config: Config, folder: Path, namespace: Namespace | None = None
    ) -> None:
        """`namespace`: where its network is, when it is not this process's."""
        self.install = install
        self.config = config
        self.folder = folder.absolute()
        self._namespace = namespace
        self._process: asyncio.subprocess.Process | None = None
        self._short_run: Path | None = None
        self.layout = self._layout(self.folder / "run")

    def _layout(self, run: Path) -> AsteriskLayout:
        folder = self.folder
        return AsteriskLayout(
            etc=folder / "etc",
            modules=self.install.modules,
            data=self.install.data,
            varlib=folder / "lib",
            db=folder / "lib",
            key=folder / "lib",
            spool=folder / "spool",
            run=run,
            log=folder / "log",
            agi=self.install.data / "agi-bin",
        )

    @property
    def pid(self) -> int:
        """Process id. Raises `AsteriskFailed` when it is not running."""
        if self._process is None or self._process.returncode is not None:
            raise AsteriskFailed(f"the Asterisk in {self.folder} is not running")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.returncode is None

    @property
    def log(self) -> Path:
        """Notices, warnings and errors."""
        return self.layout.log / "messages.log"

    @property
    def output(self) -> Path:
        """What the process wrote to its standard output and error: complaints from before the log is open."""
        return self.layout.log / "output.log"

    async def start(self) -> None:
        """Renders, starts and waits until every module is loaded and ARI answers.

        Raises `ConfigError` for settings that cannot be rendered, `AsteriskFailed` when Asterisk does not come up.
        """
        if self.running:
            raise AsteriskFailed(f"the Asterisk in {self.folder} is running already")
        self._require_prompt()
        with self._namespace.entered() if self._namespace else contextlib.nullcontext():
            self._require_ports()
        self._prepare_folders()
        write(render(self.config, self.layout), self.layout.etc)
        with self.output.open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                *guarded(*self._argv("-f", "-n")),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self.folder,
                # A Ctrl-C at the terminal is for whoever supervises us, who then stops us in order.
                start_new_session=True,
            )
        try:
            async with asyncio.timeout(START_SECONDS):
                await self._until_ready()
        except TimeoutError:
            tail = self.tail()
            await self.stop()
            raise AsteriskFailed(f"Asterisk was not ready within {START_SECONDS:.0f} s\n{tail}") from None
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Ends the process: SIGTERM, and SIGKILL for one that does not obey."""
        process = self._process
        if process is not None and process.returncode is None:
            send_signal(process, signal.SIGTERM)
            try:
                async with asyncio.timeout(STOP_SECONDS):
                    await process.wait()
            except TimeoutError:
                send_signal(process, signal.SIGKILL)
                await process.wait()
        if self._short_run is not None:
            shutil.rmtree(self._short_run, ignore_errors=True)
            self._short_run = None

    async def kill(self) -> None:
        """Ends the process at once, as a crash would."""
        process = self._process
        if process is not None and process.returncode is None:
            send_signal(process, signal.SIGKILL)
            await process.wait()

    async def rx(self, command: str) -> str:
        """What Asterisk's command line answers. Raises `AsteriskFailed` when it cannot be asked."""
        process = await asyncio.create_subprocess_exec(
            *self._argv("-rx", command),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            async with asyncio.timeout(COMMAND_SECONDS):
                said, _ = await process.communicate()
        except TimeoutError:
            raise AsteriskFailed(f"no answer to {command!r} within {COMMAND_SECONDS:.0f} s\n{self.tail()}") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        text = said.decode(errors="replace")
        if process.returncode:
            raise AsteriskFailed(f"{command!r} failed: {text.strip()}\n{self.tail()}")
        return text

    def tail(self) -> str:
        """The last lines of the log and of the process's output, for an error."""
        lines: list[str] = []
        for path in (self.output, self.log):
            if path.is_file():
                lines += path.read_text(errors="replace").splitlines()[-_TAIL_LINES:]
        return "\n".join(lines)

    def _argv(self, *options: str) -> tuple[str, ...]:
        argv = (*self.install.argv, "-C", str(self.layout.etc / "asterisk.conf"), *options)
        return self._namespace.command(*argv) if self._namespace else argv

    def _require_prompt(self) -> None:
        prompt = self.config.asterisk.fallback_prompt
        if not any(self.install.sounds.glob(f"{prompt}.*")):
            raise AsteriskFailed(
                f"asterisk.fallback_prompt: no sound {prompt!r} in {self.install.sounds}: name one that is there"
            )

    def _require_ports(self) -> None:
        # Asterisk would start without the listener and only say so in its log.
        settings = self.config.asterisk
        for place, listen, kind in (
            ("asterisk.ari.listen", settings.ari.listen, socket.SOCK_STREAM),
            ("asterisk.ami.listen", settings.ami.listen, socket.SOCK_STREAM),
            ("asterisk.sip_listen", settings.sip_listen, socket.SOCK_DGRAM),
        ):
            host, port = split_host_port(listen)
            with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, kind) as probe:
                if kind == socket.SOCK_STREAM:
                    # Connections of an earlier run that are only timing out are in nobody's way.
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((host, port))
                except OSError as error:
                    raise AsteriskFailed(
                        f"{place}: {listen} cannot be listened on: {error.strerror}: end what uses it or choose another"
                    ) from None

    def _prepare_folders(self) -> None:
        run = self.folder / "run"
        if len(os.fsencode(run / "asterisk.ctl")) > _SOCKET_PATH_BYTES:
            if self._short_run is None:
                self._short_run = Path(tempfile.mkdtemp(prefix="trunkbridge-"))
            run = self._short_run
        self.layout = layout = self._layout(run)
        for path in (layout.etc, layout.varlib, layout.spool, layout.run, layout.log):
            path.mkdir(mode=0o750, parents=True, exist_ok=True)

    async def _until_ready(self) -> None:
        ari = self.config.asterisk.ari
        headers = basic_authorization(ari.username, ari.password.get_secret_value())
        url = f"http://{ari.listen}/ari/asterisk/info?only=status"
        connector = self._namespace.connector() if self._namespace else None
        async with aiohttp.ClientSession(headers=headers, connector=connector) as session:
            while not await _answers(session, url):
                if not self.running:
                    assert self._process is not None
                    raise AsteriskFailed(f"Asterisk ended with status {self._process.returncode}\n{self.tail()}")
                await asyncio.sleep(_POLL_SECONDS)
        # ARI answers as soon as its own module is up; others may still be loading.
        await self.rx("core waitfullybooted")


def basic_authorization(username: str, password: str) -> dict[str, str]:
    """The header of HTTP Basic authorization (RFC 7617, UTF-8)."""
    return {"Authorization": "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()}


async def _answers(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(url) as response:
            return response.status == 200
    except aiohttp.ClientError:
        return False
