"""The cost of each step that a frame takes through the worker, by itself and by size of chunk."""

from __future__ import annotations

import asyncio
import statistics
import timeit
from base64 import b64encode
from binascii import a2b_base64, b2a_base64
from collections.abc import Callable

from audiosocket.callspec import CallSpec
from audiosocket.dialects.exotel import ExotelDialect
from audiosocket.g711 import alaw_to_pcm, ulaw_to_pcm
from audiosocket.loadtest import marked
from audiosocket.playout import Playout
from audiosocket.wire import AUDIO_HEADER, FrameDecoder
from tools.bench import alternatives
from tools.bench.options import Options
from tools.bench.report import Outcome, Table, Value

REPEATS = 9
SECONDS_EACH = 0.1


def limit_seconds(options: Options) -> float:
    """The longest that it may take."""
    return 180


async def run(options: Options) -> Outcome:
    """Time every step in a thread, so that the loop stays free."""
    steps = await asyncio.to_thread(_measure)
    tables, notes = await asyncio.to_thread(alternatives.measure)
    return Outcome(
        "the steps of a 20 ms frame, and of larger chunks beside other ways to do them", [steps, *tables], notes
    )


def _measure() -> Table:
    ulaw = marked.ulaw_whose(1) + marked.ULAW_WHICH[1]
    pcm = ulaw_to_pcm(ulaw)
    payload = b64encode(pcm)
    stream_sid = "0" * 32
    spec = CallSpec(
        call_id="",
        leg_uuid="",
        call_sid="",
        stream_sid=stream_sid,
        account_sid="",
        application="",
        url="",
        caller="",
        callee="",
        report_stream="",
        created_at_ms=0,
        expires_at_ms=0,
    )
    dialect = ExotelDialect(spec)
    message = b'{"event":"media","stream_sid":"%b","media":{"payload":"%b"}}' % (stream_sid.encode(), payload)
    spaced = b'{"event": "media", "stream_sid": "%b", "media": {"payload": "%b"}}' % (stream_sid.encode(), payload)
    mark = b'{"event":"mark","stream_sid":"%b","mark":{"name":"end"}}' % stream_sid.encode()
    frame = AUDIO_HEADER + pcm
    wire_decoder, playout = FrameDecoder(), Playout(300)

    def play() -> None:
        playout.push(pcm)
        playout.tick()

    steps: list[tuple[str, Callable[[], object]]] = [
        ("AudioSocket frame decode", lambda: wire_decoder.feed(frame)),
        ("μ-law to PCM16", lambda: ulaw_to_pcm(ulaw)),
        ("A-law to PCM16", lambda: alaw_to_pcm(ulaw)),
        ("base64 encode", lambda: b2a_base64(pcm, newline=False)),
        ("media message encode, base64 included", lambda: dialect.media(pcm)),
        ("base64 decode", lambda: a2b_base64(payload)),
        ("media message decode, base64 included", lambda: dialect.decode(message)),
        ("the same, with spaces as json.dumps writes them", lambda: dialect.decode(spaced)),
        ("mark message decode", lambda: dialect.decode(mark)),
        ("playout: push and tick", play),
    ]
    rows: list[tuple[Value, ...]] = []
    for name, step in steps:
        times = _nanoseconds(step)
        rows.append((name, min(times), statistics.median(times)))
    return Table("steps of a 20 ms frame", ("step", "ns, best", "ns, median"), rows)


def _nanoseconds(step: Callable[[], object]) -> list[float]:
    """The time of one call, in each of `REPEATS` runs; the lambda's own call (about 40 ns) is part of it."""
    timer = timeit.Timer(step)
    count, seconds = timer.autorange()
    count = max(1, round(count * SECONDS_EACH / seconds))
    return [total / count * 1e9 for total in timer.repeat(REPEATS, count)]
