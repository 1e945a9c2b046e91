"""Fifty new calls a second: do all succeed, is each recorded once, and is nothing left behind?"""

from __future__ import annotations

from collections import Counter

from audiosocket.errors import ConfigError
from audiosocket.loadtest import machine
from audiosocket.loadtest.sip import run_load
from tools.audio.tones import tone
from tools.bench import live
from tools.bench.options import Options
from tools.bench.report import Outcome, Table, Value, spread

RATE = 50.0
SECONDS = 20.0
HOLD_SECONDS = 2.0
MARGIN = 2
"""Calls that may be up at once, as a multiple of rate times hold time: set-up and hang-up take their time too."""
RECORDS_MAX = 5000


def limit_seconds(options: Options) -> float:
    """The longest that it may take."""
    return 180 + (options.seconds or SECONDS)


async def run(options: Options) -> Outcome:
    """Let SIPp place the calls, and take stock afterwards."""
    rate, seconds = options.rate or RATE, options.seconds or SECONDS
    count = round(rate * seconds)
    if not 1 <= count <= RECORDS_MAX:
        raise ConfigError(f"--rate {rate:g} --seconds {seconds:g}: {count} calls; 1 to {RECORDS_MAX} can be judged")
    folder = options.folder / "rate50"
    async with live.live_system(folder, round(rate * HOLD_SECONDS * MARGIN) + 50) as system:
        meter = machine.Meter(live.pids(system))
        load = await run_load(
            system.config.asterisk.sip_listen,
            live.CARRIER,
            folder / "load",
            callee=live.ECHO,
            calls=count,
            calls_per_second=rate,
            hold_seconds=HOLD_SECONDS,
            audio=tone(440, 1),
        )
        usage = meter.read()
        rss = {name: machine.rss_mib(pid) for name, pid in live.pids(system).items()}
        rows = await live.closed_records(system, count)
        left = await live.leftovers(system)
    p50, p95, p99, longest = spread(load.answer_ms, 50, 95, 99, 100)
    channels = Counter(row.caller_channel_id for row in rows)
    calls: list[tuple[Value, ...]] = [
        ("calls placed", count),
        ("successful", load.successful),
        ("failed", load.failed),
        *((f"failed: {why}", number) for why, number in load.failures.items()),
        *((f"unexpected SIP {code}", number) for code, number in load.sip_codes.items()),
        ("SIP messages sent again", load.retransmissions),
        ("INVITE to 200 p50, ms", p50),
        ("INVITE to 200 p95, ms", p95),
        ("INVITE to 200 p99, ms", p99),
        ("INVITE to 200 max, ms", longest),
        ("seconds from first to last", load.seconds),
        ("records", len(rows)),
        ("records of a channel that has another one", sum(number for number in channels.values() if number > 1)),
        ("records not closed", sum(row.ended_at is None for row in rows)),
        ("records without media figures", sum(row.media is None for row in rows)),
        *((f"left behind: {what}", number) for what, number in left.items()),
    ]
    processes: list[tuple[Value, ...]] = [
        (name, cores, cores * usage.seconds * 1000 / count, rss[name]) for name, cores in usage.cores.items()
    ]
    processes += [
        ("whole machine, SIPp included", usage.busy, None, None),
        ("stolen by the hypervisor", usage.stolen, None, None),
    ]
    columns = ("process", "cores", "processor ms per call", "RSS MiB")
    return Outcome(
        f"{rate:g} calls a second for {seconds:g} s, {HOLD_SECONDS:g} s each, echoed by the application",
        [Table("calls", ("what", "value"), calls), Table("processor", columns, processes)],
        [f"records: {live.endings(rows)}", "INVITE to 200 is by SIPp, to 4 ms"],
    )
