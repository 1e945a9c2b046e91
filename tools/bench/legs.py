"""The kinds of media leg on the same work, over a link between Asterisk and worker that loses packets and stalls.

Callers speak marked frames without a pause, the application sends each back at once: a frame that is seen there and
at its caller is known, with its delays. Asterisk, controller and callers are on one side of the link, worker and
application behind it (`tools.bench.link`). PostgreSQL and Redis are reached past the link.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from base64 import b64decode
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import picows

from ari_app.ari.client import AriClient
from ari_app.ari.errors import AriError
from ari_app.domain.ids import Kind, parse
from audiosocket.errors import ConfigError
from audiosocket.loadtest import machine, marked
from audiosocket.loadtest.applications import Stream
from tools.asterisk.local import free_ports
from tools.audio import g711
from tools.audio.pcm import Pcm
from tools.bench import link as links
from tools.bench import live
from tools.bench.legs_seen import (
    AFTER_SECONDS,
    COST_COLUMNS,
    FRAME_SECONDS,
    LOSS_COLUMNS,
    STALL_COLUMNS,
    Arrivals,
    Seen,
    Spoken,
)
from tools.bench.options import Options
from tools.bench.report import Outcome, Table, Value
from tools.process import ProcessFailed
from tools.sip.rtp_peer import RtpTicker
from tools.sip.sipp import Call, CallAborted, CallRefused, Carrier
from tools.system import System

CALLS = 20
CALLS_MAX = 64
SECONDS = 12.0
"""Of each share of loss."""
SECONDS_MAX = 60.0
DELAY_SECONDS = 0.02
"""Of the link, each way."""
LOSSES = (0.0, 0.005, 0.01, 0.02, 0.05)
STALLS = (1.0, 3.0, 6.0)
BEFORE_SECONDS = 4.0
LATE_SECONDS = 1.5
"""What has not arrived so long after the end is lost."""
PROBE_SECONDS = 0.5
PROBE_LIMIT_SECONDS = 20.0
"""How long a new call is waited for."""
START_SECONDS = 0.05
SETTLE_SECONDS = 1.0
PIECE_FRAMES = 25
NUMBER, NOWHERE = "+918000000020", "+918000000999"
KINDS: dict[str, dict[str, Any]] = {"audiosocket": {}, "rtp": {"rtp_listen": 4}, "websocket": {"websocket_listen": 4}}
"""The kinds of leg, and what makes the gateway use them: settings whose port is so much above the AudioSocket port."""


def limit_seconds(options: Options) -> float:
    """The longest that it may take."""
    seconds = options.seconds or SECONDS
    stalls = sum(BEFORE_SECONDS + stall + AFTER_SECONDS for stall in STALLS)
    return len(options.legs or KINDS) * (120 + len(LOSSES) * (seconds + 15) + stalls + 15 * len(STALLS))


async def run(options: Options) -> Outcome:
    """Each kind of leg in turn, on a system of its own."""
    count = (options.calls or (CALLS,))[0]
    seconds = options.seconds or SECONDS
    if count > CALLS_MAX or seconds > SECONDS_MAX:
        raise ConfigError(f"legs: at most --calls {CALLS_MAX} and --seconds {SECONDS_MAX:g}")
    losses: list[tuple[Value, ...]] = []
    stalls: list[tuple[Value, ...]] = []
    costs: list[tuple[Value, ...]] = []
    notes = [
        "delays are of a frame from the caller's mouth back to his ear, the link's"
        f" {2 * DELAY_SECONDS * 1000:g} ms and the wait for two 20 ms clocks included",
        "lost up: not seen by the application; lost down: sent back by it and not heard by the caller, what was dropped"
        " or merged to work off a delay included; legs and calls lost: gone while nobody hung"
        " up; a call whose lost leg was replaced is not lost",
        "PostgreSQL and Redis are reached past the link, a stall does not cut the worker off from them",
        f"TCP's congestion control: {_congestion_control()}",
    ]
    for kind in options.legs or KINDS:
        async with _bench(kind, count, options.folder / "legs" / kind) as bench:
            lossy = {loss: await bench.lossy(loss, seconds) for loss in LOSSES}
            stalled = {stall: await bench.stalling(stall) for stall in STALLS}
        # Not before: a pause of this process, which is all callers, would be seen as one of the leg's.
        for seen in (*lossy.values(), *stalled.values()):
            seen.hear(bench.arrivals)
        losses += [(kind, loss * 100, *seen.losses()) for loss, seen in lossy.items()]
        stalls += [(kind, stall, *seen.stall(stall)) for stall, seen in stalled.items()]
        costs.append((kind, *lossy[0.0].costs(count)))
        notes += bench.notes
    what = (
        f"{count} echo calls over a link of {DELAY_SECONDS * 1000:g} ms each way; {seconds:g} s of each share of loss"
    )
    return Outcome(
        what,
        [
            Table("cost of a call, no loss", COST_COLUMNS, costs),
            Table("loss, each way", LOSS_COLUMNS, losses),
            Table("stalls", STALL_COLUMNS, stalls),
        ],
        notes,
    )


class _Ear(Stream):
    """An echo that notes which marked frames have come, and when."""

    def __init__(self, arrivals: Arrivals) -> None:
        super().__init__()
        self._arrivals = arrivals

    def media(self, payload: bytes) -> None:
        self.say(payload)
        tag = b64decode(payload[:16])
        which = marked.NUMBER_OF_PCM.get(tag[6:10])
        if which is not None:
            self._arrivals.setdefault((tag[:6], which), time.monotonic())


class _Bench:
    """A system with its callers, behind and before the link."""

    def __init__(
        self,
        system: System,
        link: links.Link,
        carrier: Carrier,
        ari: AriClient,
        arrivals: Arrivals,
        count: int,
    ) -> None:
        self._system, self._link, self._carrier, self._ari = system, link, carrier, ari
        self.arrivals = arrivals
        self._calls: list[Call] = []
        self._count = count
        self._whose = 0
        self.notes: list[str] = []

    async def start(self) -> None:
        """New calls, on a link that is whole: what an earlier scenario has left is none of this one's."""
        await self._hang_up()
        self._calls = []
        for _ in range(self._count):
            call = self._carrier.call(NUMBER)
            try:
                await call.answered()
            except (CallRefused, CallAborted, TimeoutError) as error:
                raise ProcessFailed(f"a call was not answered: {error or type(error).__name__}") from None
            self._calls.append(call)
            await asyncio.sleep(START_SECONDS)
        await asyncio.sleep(SETTLE_SECONDS)

    async def _hang_up(self) -> None:
        open_calls = [call for call in self._calls if call.ending is None]
        await asyncio.gather(*(call.hang_up() for call in open_calls), return_exceptions=True)

    async def finish(self, ticker: RtpTicker) -> list[str]:
        """Hangs up; what the records say of all calls, and how exact the callers were."""
        await self._hang_up()
        expected = sum(call.answered_at is not None for call in self._carrier.calls.values())
        await live.closed_records(self._system, expected)
        rows = [row for row in await self._system.calls() if row.callee == NUMBER]
        figures: Counter[str] = Counter()
        for media in (row.media for row in rows if row.media is not None):
            figures["stalls"] += media.stalls
            figures["late ticks"] += media.ticks_late
            figures["ms of delay worked off"] += media.delay_recovered_ms
            figures.update({f"from the caller {why}": n for why, n in media.caller_frames_dropped.items()})
            figures.update({f"to the caller {why}": n for why, n in media.frames_dropped.items()})
        said = ", ".join(f"{number} {what}" for what, number in figures.items() if number)
        notes = [f"calls: {live.endings(rows)}", f"the worker's own figures: {said}"]
        if ticker.late:
            notes.append(f"the callers' own clock was 10 ms late {ticker.late} times")
        return notes

    async def lossy(self, loss: float, seconds: float) -> Seen:
        """All speak while this share of packets is lost."""
        await self.start()
        return await self._watched(seconds, lambda: self._link.lose(loss), 0.0)

    async def stalling(self, stall: float) -> Seen:
        """All speak, and after a while nothing passes for so long."""
        await self.start()
        seconds = BEFORE_SECONDS + stall + AFTER_SECONDS
        return await self._watched(seconds, lambda: self._link.stall(stall), BEFORE_SECONDS)

    async def _watched(self, seconds: float, strike: Callable[[], None], after: float) -> Seen:
        seen = Seen()
        starts = [len(call.peer.packets) for call in self._calls]
        legs: set[str] = set()
        worker = self._system.workers[0].pid
        frames = round(seconds / FRAME_SECONDS)
        meter = machine.Meter({"worker": worker, "Asterisk": self._system.asterisk.pid})
        before, began = self._link.carried(worker), time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            speaking = [tasks.create_task(self._speak(call, frames)) for call in self._calls]
            probing = tasks.create_task(self._probe(seconds))
            looking = tasks.create_task(self._look(legs, seconds))
            await asyncio.sleep(after)
            strike()
            seen.began = time.monotonic()
            await asyncio.sleep(began + seconds - time.monotonic())
            carried, took = self._link.carried(worker), time.monotonic() - began
            seen.usage = meter.read()
            seen.calls_lost = sum(call.ending is not None for call in self._calls)
        self._link.lose(0.0)
        seen.probe_ms = probing.result() * 1000
        seen.legs_lost = len(legs - looking.result())
        await asyncio.sleep(LATE_SECONDS)
        seen.to_worker, seen.to_asterisk = ((now - then) / took for now, then in zip(carried, before, strict=True))
        for call, speech, start in zip(self._calls, speaking, starts, strict=True):
            number, began_at = speech.result()
            if began_at is not None:
                seen.spoken.append(Spoken(call, number, frames, start, began_at))
        return seen

    async def _speak(self, call: Call, frames: int) -> tuple[int, float | None]:
        """Says so many frames; the number that they are marked with, and when the first one left."""
        number = self._whose = self._whose + 1
        first = previous = None
        # One piece ahead: all at once would be a pause of this process.
        for at in range(0, frames, PIECE_FRAMES):
            playing = call.peer.play(_piece(number, at, min(PIECE_FRAMES, frames - at)))
            if previous is not None:
                with contextlib.suppress(TimeoutError):  # a call that has ended plays no more
                    async with asyncio.timeout(4 * PIECE_FRAMES * FRAME_SECONDS):
                        await previous.done.wait()
            first, previous = first or playing, playing
            if call.ending is not None:
                break
        return number, None if first is None else first.started_at

    async def _probe(self, seconds: float) -> float:
        """The longest that Asterisk took for a new call of another kind, which it is to refuse, in seconds."""
        deadline, longest = time.monotonic() + seconds, 0.0
        while time.monotonic() < deadline:
            began = time.monotonic()
            with contextlib.suppress(CallRefused, CallAborted, TimeoutError):
                await self._carrier.call(NOWHERE).answered(PROBE_LIMIT_SECONDS)
            longest = max(longest, time.monotonic() - began)
            await asyncio.sleep(PROBE_SECONDS)
        return longest

    async def _look(self, legs: set[str], seconds: float) -> set[str]:
        """Puts the media channels that are seen into `legs`; those that are there at last."""
        deadline = time.monotonic() + seconds
        now: set[str] = set()
        while time.monotonic() < deadline:
            with contextlib.suppress(AriError):
                now = {channel.id for channel in await self._ari.list_channels() if _is_media(channel.id)}
                legs |= now
            await asyncio.sleep(PROBE_SECONDS)
        return now


@asynccontextmanager
async def _bench(kind: str, count: int, folder: Path) -> AsyncIterator[_Bench]:
    arrivals: Arrivals = {}
    port = free_ports(20)[0]
    gateway: dict[str, Any] = {"listen": f"{links.FAR}:{port}", "workers": 1}
    gateway |= {key: f"{links.FAR}:{port + above}" for key, above in KINDS[kind].items()}
    async with links.link(DELAY_SECONDS, folder.with_name(f"{kind}-link.log")) as link:
        server = await picows.ws_create_server(
            lambda request: _Ear(arrivals), None, None, sock=links.listening_inside()
        )
        url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        changes = {
            "applications": {"marked": {"url": url}},
            "routes": [{"did": NUMBER, "application": "marked"}],
            "gateway": gateway,
        }
        try:
            async with live.live_system(folder, count + 20, changes, links.inside()) as system, RtpTicker() as ticker:
                asterisk = system.config.asterisk
                ari = AriClient(
                    f"http://{asterisk.ari.listen}",
                    asterisk.ari.username,
                    asterisk.ari.password.get_secret_value(),
                    "bench",
                )
                carrier = Carrier(asterisk.sip_listen, live.CARRIER, folder / "carrier", ticker)
                async with ari, carrier:
                    bench = _Bench(system, link, carrier, ari, arrivals, count)
                    with machine.no_garbage_collection():
                        yield bench
                    bench.notes += [f"{kind}: {note}" for note in await bench.finish(ticker)]
        finally:
            server.close()


def _piece(number: int, first: int, frames: int) -> Pcm:
    whose = marked.ulaw_whose(number)
    coded = b"".join(whose + marked.ULAW_WHICH[which] for which in range(first, first + frames))
    return g711.ulaw_decode(coded)


def _is_media(channel_id: str) -> bool:
    ours = parse(channel_id)
    return ours is not None and ours.kind is Kind.MEDIA


def _congestion_control() -> str:
    return Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text(encoding="utf-8").strip()
