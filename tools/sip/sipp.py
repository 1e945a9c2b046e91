"""Calls placed by SIPp, each under control: place it, wait for the answer, hang up or cancel, learn who ended it.

One `Carrier` is one SIPp process at one source address, which is how a trunk is known. It runs
`scenarios/carrier.xml` and is told what to do over SIPp's twin connection (`-3pcc`), so that a hundred simultaneous
calls need one process, and each has its own caller, callee, media endpoint and ending. Audio is not SIPp's business:
an `RtpPeer` is named in the SDP and told the other side's address when the answer brings it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import shutil
import signal
import socket
import time
import uuid
from enum import StrEnum
from pathlib import Path
from types import TracebackType

from tools.namespace import Namespace
from tools.process import guarded, send_signal
from tools.sip.rtp_peer import Codec, RtpPeer, RtpTicker

SCENARIO = Path(__file__).parent / "scenarios" / "carrier.xml"
END_OF_COMMAND = b"\x1b"
START_SECONDS = 30.0
STOP_SECONDS = 5.0
EVENT_MAX_BYTES = 65536
ERRORS_EVERY_SECONDS = 0.1
SETTLE_SECONDS = 0.02
"""From an event to the next command for its call: SIPp has a step left to do then, see the scenario."""
CALLER_OR_CALLEE = re.compile(r"\+?[0-9A-Za-z._-]{1,40}")


class SippError(Exception):
    """SIPp could not be run, or ended when it should not have; the text carries what it wrote."""


class CallRefused(Exception):
    """The call was not answered but refused; `sip_code` says how (486 busy, 404 unknown number, ...)."""

    def __init__(self, sip_code: int, phrase: str) -> None:
        super().__init__(f"{sip_code} {phrase}")
        self.sip_code = sip_code


class CallAborted(Exception):
    """SIPp gave the call up: no answer to its messages, or a message that the scenario does not expect."""


class Ending(StrEnum):
    """Who ended a call, and how."""

    REFUSED = "refused"
    CANCELLED = "cancelled"
    BY_US = "by_us"
    """Our BYE was accepted."""
    BY_THEM = "by_them"
    """Asterisk sent BYE."""
    ABORTED = "aborted"


class Call:
    """One call. All times are monotonic seconds, taken by SIPp as it sent or received the message."""

    def __init__(self, carrier: Carrier, call_id: str, caller: str, callee: str, peer: RtpPeer) -> None:
        self._carrier = carrier
        self.call_id = call_id
        """SIP Call-ID."""
        self.caller = caller
        self.callee = callee
        self.peer = peer
        self.invited_at: float | None = None
        """Known once the call is answered or over, as is `ringing_at`."""
        self.ringing_at: float | None = None
        """The last 180 or 183."""
        self.answered_at: float | None = None
        self.ended_at: float | None = None
        self.ending: Ending | None = None
        self.sip_code: int | None = None
        """Final status of the INVITE: 200, or the refusal."""
        self.reason: str | None = None
        """The Reason header of their BYE or refusal, such as `Q.850;cause=16`."""
        self._answered = asyncio.Event()
        self._ended = asyncio.Event()
        self._phrase = ""
        self._settled_at = time.monotonic() + SETTLE_SECONDS

    async def answered(self, timeout_seconds: float = 10.0) -> None:
        """Wait for the 200. Raises CallRefused, CallAborted, or TimeoutError."""
        async with asyncio.timeout(timeout_seconds):
            await self._answered.wait()
        if self.answered_at is None:
            if self.ending is Ending.ABORTED:
                raise CallAborted(f"{self.caller} to {self.callee}: {self._phrase}")
            raise CallRefused(self.sip_code or 0, self._phrase)

    async def ended(self, timeout_seconds: float = 10.0) -> Ending:
        """Wait for the end, whoever brings it. Raises TimeoutError."""
        async with asyncio.timeout(timeout_seconds):
            await self._ended.wait()
        assert self.ending is not None
        return self.ending

    async def hang_up(self, timeout_seconds: float = 10.0) -> Ending:
        """BYE, or CANCEL while it is not answered; returns how the call ended (it may have been ended by them)."""
        await asyncio.sleep(max(0.0, self._settled_at - time.monotonic()))
        if self.ending is None:
            self._carrier.send_command(f"Call-ID: {self.call_id}\r\nHangup: now\r\n")
        return await self.ended(timeout_seconds)

    def apply(self, event: str, times: dict[str, float], message: str) -> None:
        """Take one event of the scenario, with its monotonic times. For `Carrier`."""
        status = re.match(r"SIP/2\.0 (\d{3}) ?([^\r\n]*)", message)
        reason = re.search(r"^Reason: *([^\r\n]+)", message, re.MULTILINE | re.IGNORECASE)
        now = time.monotonic()
        self._settled_at = now + SETTLE_SECONDS
        self.invited_at = times.get("Invited", self.invited_at)
        self.ringing_at = times.get("Rang", self.ringing_at)
        ended_at = times.get("Ended", now)
        match event:
            case "answered":
                self.answered_at, self.sip_code = times["Answered"], 200
                self._meet_media(message)
                self._answered.set()
            case "refused" | "cancelled":
                self.sip_code, self._phrase = (int(status[1]), status[2]) if status else (0, message)
                self._end(Ending.REFUSED if event == "refused" else Ending.CANCELLED, ended_at, reason)
            case "hung_up":
                self._end(Ending.BY_US, ended_at, None)
            case "bye":
                self._end(Ending.BY_THEM, ended_at, reason)
            case _:
                self._phrase = event
                self._end(Ending.ABORTED, ended_at, None)

    def _meet_media(self, message: str) -> None:
        address = re.search(r"^c=IN IP4 ([0-9.]+)", message, re.MULTILINE)
        port = re.search(r"^m=audio (\d+)", message, re.MULTILINE)
        if address and port:
            self.peer.send_to(address[1], int(port[1]))

    def _end(self, ending: Ending, at: float, reason: re.Match[str] | None) -> None:
        self.ending, self.ended_at = ending, at
        self.reason = reason[1].strip() if reason else None
        self.peer.close()
        self._answered.set()
        self._ended.set()


class Carrier:
    """A trunk's far end: `async with Carrier("127.0.0.1:5060", "127.0.0.2", folder, ticker) as carrier`."""

    def __init__(
        self,
        pbx: str,
        source: str,
        folder: Path,
        ticker: RtpTicker,
        *,
        codec: Codec = Codec.ULAW,
        namespace: Namespace | None = None,
    ) -> None:
        """`namespace`: where `source` is an address, when it is not in this process's."""
        self._namespace = namespace
        self._pbx = pbx
        self.source = source
        """IP address that calls and audio come from."""
        self._folder = folder
        """SIPp's logs go here: `messages.log`, `errors.log`, `output.log`."""
        self._ticker = ticker
        self._codec = codec
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._numbers = itertools.count(1)
        self._run = uuid.uuid4().hex[:8]
        self.calls: dict[str, Call] = {}
        """Every call placed, by Call-ID."""

    async def __aenter__(self) -> Carrier:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start SIPp and connect to it. Raises SippError."""
        sipp = shutil.which("sipp")
        if sipp is None:
            raise SippError("sipp is not installed (Debian: apt install sip-tester)")
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / "errors.log").unlink(missing_ok=True)
        with self._inside():
            twin_port, sip_port = _free_tcp_port(), free_udp_port(self.source)
        # -timer_resol 1: SIPp would otherwise look at what it has to do every 10 ms only.
        command = [sipp, self._pbx, "-sf", str(SCENARIO), "-i", self.source, "-bind_local", "-nostdin"]
        command += ["-3pcc", f"127.0.0.1:{twin_port}", "-ci", "127.0.0.1", "-timer_resol", "1", "-aa"]
        command += ["-p", str(sip_port), "-mi", self.source]
        command += ["-trace_msg", "-message_file", "messages.log", "-trace_err", "-error_file", "errors.log"]
        with (self._folder / "output.log").open("wb") as output:
            self._process = await asyncio.create_subprocess_exec(
                *guarded(*(self._namespace.command(*command) if self._namespace else command)),
                cwd=self._folder,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                # A Ctrl-C at the terminal is for our process, which then hangs the calls up.
                start_new_session=True,
            )
        try:
            reader, self._writer = await self._connect(twin_port)
        except BaseException:
            await self.stop()
            raise
        self._reading = asyncio.create_task(self._read(reader), name=f"carrier-{self.source}")
        self._watching = asyncio.create_task(self._watch_errors(), name=f"carrier-errors-{self.source}")

    async def stop(self) -> None:
        """Hang up what is still up, end SIPp. May be called twice."""
        open_calls = [call for call in self.calls.values() if call.ending is None]
        if self._writer is not None and self._reading is not None and not self._reading.done():
            await asyncio.gather(*(call.hang_up(STOP_SECONDS) for call in open_calls), return_exceptions=True)
        tasks = [task for task in (self._reading, self._watching) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._writer is not None:
            self._writer.close()
        for call in open_calls:
            call.peer.close()
        if self._process is None or self._process.returncode is not None:
            return
        send_signal(self._process, signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await self._process.wait()
        except TimeoutError:
            send_signal(self._process, signal.SIGKILL)
            await self._process.wait()

    def kill(self) -> None:
        """End SIPp at once, calls or not; they end as aborted. `stop` is still to be called."""
        if self._process is not None and self._process.returncode is None:
            send_signal(self._process, signal.SIGKILL)

    def call(self, callee: str, caller: str = "+919000000001") -> Call:
        """Place a call now; returns at once. Its audio endpoint is `call.peer`.

        Raises ValueError for what cannot stand in a SIP URI, SippError when SIPp is gone.
        """
        for number in (callee, caller):
            if not CALLER_OR_CALLEE.fullmatch(number):
                raise ValueError(f"{number!r} is no number or name for a SIP URI")
        call_id = f"{self._run}-{next(self._numbers)}@{self.source}"
        with self._inside():
            peer = RtpPeer.open(self._ticker, self.source, self._codec)
        call = Call(self, call_id, caller, callee, peer)
        host, port = peer.address
        try:
            self.send_command(
                f"Call-ID: {call_id}\r\nCaller: {caller}\r\nCallee: {callee}\r\n"
                f"Media: {host} {port} {self._codec.payload_type} {self._codec.sdp_name}\r\n"
            )
        except BaseException:
            peer.close()
            raise
        self.calls[call_id] = call
        return call

    def send_command(self, headers: str) -> None:
        """Tell SIPp. Raises SippError when it is gone."""
        if self._writer is None or self._reading is None or self._reading.done():
            raise SippError(f"SIPp at {self.source} is not running: {self._output()}")
        self._writer.write(headers.encode() + b"\r\n" + END_OF_COMMAND)

    def _inside(self) -> contextlib.AbstractContextManager[None]:
        return self._namespace.entered() if self._namespace else contextlib.nullcontext()

    async def _connect(self, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        assert self._process is not None
        deadline = time.monotonic() + START_SECONDS
        while self._process.returncode is None and time.monotonic() < deadline:
            with self._inside():
                connection = socket.socket()
            connection.setblocking(False)
            try:
                await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", port))
                return await asyncio.open_connection(sock=connection, limit=EVENT_MAX_BYTES)
            except OSError:
                connection.close()
                await asyncio.sleep(0.02)
            except BaseException:
                connection.close()
                raise
        raise SippError(f"SIPp at {self.source} did not start: {self._output()}")

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while True:
                self._take((await reader.readuntil(END_OF_COMMAND))[:-1].decode(errors="replace"))
        except (asyncio.IncompleteReadError, ConnectionError):
            for call in self.calls.values():
                if call.ending is None:
                    call.apply(f"SIPp ended: {self._output()}", {}, "")

    async def _watch_errors(self) -> None:
        # SIPp does not tell its twin when it gives a call up; it tells its error log, with the Call-ID.
        path, seen = self._folder / "errors.log", 0
        while True:
            await asyncio.sleep(ERRORS_EVERY_SECONDS)
            text = path.read_text(errors="replace") if path.exists() else ""
            for line in re.findall(r"Abort[^\n]*", text[seen:]):
                for call in self.calls.values():
                    if call.ending is None and call.call_id in line:
                        call.apply(line, {}, "")
            seen = len(text)

    def _take(self, text: str) -> None:
        headers, _, message = text.lstrip().partition("\r\n\r\n")
        fields = dict(line.split(": ", 1) for line in headers.split("\r\n") if ": " in line)
        call = self.calls.get(fields.pop("Call-ID", ""))
        if call is None:
            return
        event = fields.pop("Event", "SIPp gave the call up")
        to_monotonic = time.monotonic() - time.time()
        times = {}
        for name, value in fields.items():
            match value.split():
                case [seconds, microseconds] if name in ("Invited", "Rang", "Answered", "Ended"):
                    times[name] = float(seconds) + float(microseconds) / 1e6 + to_monotonic
        call.apply(event, times, message.lstrip())

    def _output(self) -> str:
        texts = [
            path.read_text(errors="replace").strip()
            for path in (self._folder / "errors.log", self._folder / "output.log")
            if path.exists()
        ]
        return " | ".join(text[-600:] for text in texts if text) or "no output"


def _free_tcp_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def free_udp_port(host: str) -> int:
    """A port that is free on `host` now. Raises OSError when the address is not this machine's."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
