"""Fifty callers at once, through a real Asterisk, to an application that echoes: what each of them gets back."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ari_app.store.records import CallRow
from audiosocket.errors import ConfigError
from audiosocket.loadtest import machine, marked
from tools.audio.pcm import Pcm
from tools.audio.tones import dominant_frequency, tone, tone_share
from tools.bench import live
from tools.bench.options import Options
from tools.bench.report import Outcome, Table, Value, spread
from tools.sip.rtp_peer import RtpTicker
from tools.sip.sipp import Call, CallAborted, CallRefused, Carrier
from tools.system import System

CALLS = 50
SECONDS = 30.0
ANSWER_SECONDS = 20.0
UNDER_WAY_SECONDS = 1.0
FRAME_SECONDS = 0.02
LOWEST_HZ = 300
PIECE_FRAMES = 25
PIECE_SECONDS = PIECE_FRAMES * FRAME_SECONDS
STEP_HZ = 50
"""A whole number of periods in every frame: all frames of a caller are alike but for their tags."""
CALLS_MAX = 64
SAME_HZ = 2.0


def limit_seconds(options: Options) -> float:
    """The longest that it may take."""
    return 180 + (options.seconds or SECONDS)


@dataclass(slots=True)
class _Heard:
    """What one caller got back."""

    sent: int
    returned: int
    lost_at_start: int
    """Frames that the caller sent before the first one that came back: the call was still being joined."""
    lost: int
    """Frames after that which never came back."""
    foreign: int
    """Frames with another caller's tag."""
    own_tone: bool
    tone_share: float
    round_trips: list[float]
    first_audio_after: float | None
    """Seconds from the INVITE to the first frame of its own."""


@dataclass(frozen=True, slots=True)
class _Talk:
    """What happened while the callers talked."""

    calls: list[Call]
    began_at: list[float | None]
    """When each caller's first marked frame left; None: not answered."""
    usage: machine.Usage
    worker_rss_mib: float
    ended: Counter[str]
    late: int
    """Ticks of the callers' clock."""


async def run(options: Options) -> Outcome:
    """Place the calls in one instant, let all speak, hang up, and look at every frame."""
    count = (options.calls or (CALLS,))[0]
    if not 1 <= count <= CALLS_MAX:
        raise ConfigError(f"--calls {count}: this benchmark tells 1 to {CALLS_MAX} callers apart by their tones")
    seconds = options.seconds or SECONDS
    folder = options.folder / "calls50"
    async with live.live_system(folder, count + 10) as system:
        talk = await _talk(system, [_speech(number, seconds) for number in range(count)], seconds, folder)
        rows = await live.closed_records(system, count)
        left = await live.leftovers(system)
    heard = [
        _listen(call, number, began_at, round(seconds / PIECE_SECONDS) * PIECE_FRAMES)
        for number, (call, began_at) in enumerate(zip(talk.calls, talk.began_at, strict=True))
        if began_at is not None
    ]
    tables = [
        _set_up(talk.calls, heard),
        _audio(talk.calls, heard, rows),
        _cpu(talk.usage, talk.worker_rss_mib, count),
        Table("left behind", ("what", "count"), list(left.items())),
    ]
    how = ", ".join(f"{number} {ending}" for ending, number in talk.ended.items())
    notes = [f"calls ended: {how}; records: {live.endings(rows)}"]
    if talk.late:
        notes.append(f"the callers' own clock was 10 ms late {talk.late} times: round trips hold that")
    what = f"{count} callers placed in one instant, {seconds:g} s of marked tones each, echoed by the application"
    return Outcome(what, tables, notes)


async def _talk(system: System, speeches: list[list[Pcm]], seconds: float, folder: Path) -> _Talk:
    async with (
        RtpTicker() as ticker,
        Carrier(system.config.asterisk.sip_listen, live.CARRIER, folder / "carrier", ticker) as carrier,
    ):
        with machine.no_garbage_collection():
            calls = [carrier.call(live.ECHO, f"+9190000{number:05}") for number in range(len(speeches))]
            async with asyncio.TaskGroup() as tasks:
                speaking = [
                    tasks.create_task(_speak(call, speech)) for call, speech in zip(calls, speeches, strict=True)
                ]
                # In the middle half of the time all of them talk.
                await asyncio.sleep(seconds / 4)
                meter = machine.Meter(live.pids(system))
                await asyncio.sleep(seconds / 2)
                usage = meter.read()
                rss = machine.rss_mib(system.workers[0].pid)
            await asyncio.sleep(UNDER_WAY_SECONDS)
        endings = await asyncio.gather(*(call.hang_up() for call in calls), return_exceptions=True)
        return _Talk(
            calls=calls,
            began_at=[task.result() for task in speaking],
            usage=usage,
            worker_rss_mib=rss,
            ended=Counter(str(ending) or type(ending).__name__ for ending in endings),
            late=ticker.late,
        )


def _speech(number: int, seconds: float) -> list[Pcm]:
    pieces = round(seconds / PIECE_SECONDS)
    whole = marked.marked(number, tone(LOWEST_HZ + STEP_HZ * number, pieces * PIECE_SECONDS))
    return np.split(whole, pieces)


async def _speak(call: Call, pieces: list[Pcm]) -> float | None:
    """Play the pieces in one go; when the first frame was sent, None for a call that was not answered."""
    try:
        await call.answered(ANSWER_SECONDS)
    except (CallAborted, CallRefused, TimeoutError):
        return None
    # One piece ahead: encoding all of fifty speeches now would stop this process for a second.
    playbacks = [call.peer.play(pieces[0])]
    for piece in pieces[1:]:
        playbacks.append(call.peer.play(piece))
        await playbacks[-2].done.wait()
    await playbacks[-1].done.wait()
    return playbacks[0].started_at


def _listen(call: Call, number: int, began: float, sent: int) -> _Heard:
    whose = marked.ulaw_whose(number)
    arrivals: dict[int, float] = {}
    foreign = 0
    for packet in call.peer.audio():
        which = marked.NUMBER_OF_ULAW.get(packet.payload[marked.WHOSE_SAMPLES : marked.TAG_SAMPLES])
        if which is not None and packet.payload.startswith(whose):
            arrivals.setdefault(which, packet.arrived_at)
        elif which is not None and packet.payload.startswith(whose[:1]):
            foreign += 1
    first = min(arrivals, default=sent)
    pcm = call.peer.received_pcm(arrivals.get(first), sent * FRAME_SECONDS)
    own_hz = LOWEST_HZ + STEP_HZ * number
    return _Heard(
        sent=sent,
        returned=len(arrivals),
        lost_at_start=first,
        lost=sent - first - len(arrivals),
        foreign=foreign,
        own_tone=bool(arrivals) and abs(dominant_frequency(pcm) - own_hz) <= SAME_HZ,
        tone_share=tone_share(pcm, own_hz) if arrivals else 0.0,
        round_trips=[at - began - which * FRAME_SECONDS for which, at in arrivals.items()],
        first_audio_after=arrivals[first] - call.invited_at if arrivals and call.invited_at else None,
    )


def _set_up(calls: list[Call], heard: list[_Heard]) -> Table:
    answers = [call.answered_at - call.invited_at for call in calls if call.answered_at and call.invited_at]
    first_audio = [each.first_audio_after for each in heard if each.first_audio_after is not None]
    rows: list[tuple[Value, ...]] = []
    for name, times in (
        ("INVITE to 200", answers),
        ("INVITE to first application audio", first_audio),
        ("a frame's round trip, mouth to ear", [trip for each in heard for trip in each.round_trips]),
    ):
        rows.append((name, len(times), *spread([time * 1000 for time in times], 50, 95, 100)))
    return Table("times", ("what", "seen", "p50 ms", "p95 ms", "max ms"), rows)


def _audio(calls: list[Call], heard: list[_Heard], rows: list[CallRow]) -> Table:
    media = [row.media for row in rows if row.media is not None]
    receptions = [call.peer.reception() for call in calls]
    dropped: Counter[str] = Counter()
    for figures in media:
        dropped.update({f"caller's, {reason}": number for reason, number in figures.caller_frames_dropped.items()})
        dropped.update({f"application's, {reason}": number for reason, number in figures.frames_dropped.items()})
    gaps = [reception.gap_p99_ms for reception in receptions if reception.packets]
    figures_of: list[tuple[Value, ...]] = [
        ("calls answered", len(heard)),
        ("calls that heard their own tone as the loudest", sum(each.own_tone for each in heard)),
        ("lowest share of the own tone in what a caller heard", min((each.tone_share for each in heard), default=None)),
        ("frames with another caller's tag", sum(each.foreign for each in heard)),
        ("marked frames sent by the callers", sum(each.sent for each in heard)),
        ("of these, back at their caller, unaltered", sum(each.returned for each in heard)),
        ("lost while the call was being joined", sum(each.lost_at_start for each in heard)),
        ("lost after that", sum(each.lost for each in heard)),
        ("RTP packets sent by the callers", sum(call.peer.sent for call in calls)),
        ("RTP packets received by the callers", sum(reception.packets for reception in receptions)),
        ("RTP packets lost on the way to the callers", sum(reception.lost for reception in receptions)),
        ("RTP gap p99, median caller, ms", float(np.median(gaps)) if gaps else None),
        ("RTP gap max, ms", max((reception.gap_max_ms for reception in receptions), default=None)),
        ("worker: frames from Asterisk", sum(figures.caller_frames for figures in media)),
        ("worker: messages to the application", sum(figures.app_messages_sent for figures in media)),
        ("worker: media messages from the application", sum(figures.app_media_received for figures in media)),
        ("worker: application frames played", sum(figures.frames_played for figures in media)),
        *((f"worker: dropped, {reason}", number) for reason, number in sorted(dropped.items())),
        ("worker: underruns, application late", sum(figures.underruns_app for figures in media)),
        ("worker: underruns of a stall", sum(figures.underruns_stall for figures in media)),
        ("worker: late ticks", sum(figures.ticks_late for figures in media)),
    ]
    return Table("audio", ("what", "value"), figures_of)


def _cpu(usage: machine.Usage, rss: float, calls: int) -> Table:
    rows: list[tuple[Value, ...]] = [(name, cores, cores * 100 / calls) for name, cores in usage.cores.items()]
    rows += [("whole machine, callers included", usage.busy, None), ("stolen by the hypervisor", usage.stolen, None)]
    rows.append((f"worker's memory: {rss:.0f} MiB", None, None))
    return Table("processor", ("process", "cores", "% of a core per call"), rows)
