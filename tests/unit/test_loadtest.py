"""loadtest's statistics, its ramp, its judgement, its words, and what its command line refuses."""

from __future__ import annotations

import json
import random
import sys
from array import array
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ari_app.cli.main import trunkbridge
from audiosocket import wire
from audiosocket.g711 import pcm_to_ulaw, ulaw_to_pcm
from audiosocket.loadtest import generator, marked
from audiosocket.loadtest.figures import (
    Calls,
    Frames,
    Left,
    Limits,
    Measured,
    OwnUse,
    Point,
    WorkerUse,
    broken,
    growth_mib,
    left_behind,
    own_limit,
    remarks,
)
from audiosocket.loadtest.machine import listening
from audiosocket.loadtest.picture import draw, panels, ticks
from audiosocket.loadtest.plan import Mode, Plan, Result
from audiosocket.loadtest.ramp import Step, capacity, next_calls
from audiosocket.loadtest.report import as_json, capacity_in_words, nothing_left, verdict
from audiosocket.loadtest.statistics import BIN_SECONDS, Spread, Times

pytestmark = pytest.mark.unit

DELAY = Spread(1000, 20.0, 30.0, 40.0, 50.0, 60.0)
GOOD = Frames(sent=1000, returned=1000, altered=0, reordered=0, silence=0, delay=DELAY, gap=DELAY)
OWN = OwnUse(cores=0.3, late=Spread(100, 1, 1, 2, 3, 4), others_cores=0.0, stolen_cores=0.0)
POINTS = [Point(float(at), 10, 20.0, 40.0, 22.0, 0, 0, 0.1, 80.0, 30) for at in range(3)]
MEASURED = Measured(10, 3.0, GOOD, WorkerUse(0.1, 80.0, 79.0, 30, 30), OWN, POINTS, {20: 900, 21: 100})


def spread_of(*seconds: float) -> Spread:
    times = Times()
    times.add(array("d", seconds))
    found = times.spread()
    assert found is not None
    return found


# Statistics


@given(st.lists(st.floats(0, 4.9), min_size=1, max_size=300), st.integers(1, 5))
def test_quantiles_are_exact_to_a_bin_however_the_times_come(seconds: list[float], pieces: int) -> None:
    times = Times()
    for piece in range(pieces):
        times.add(array("d", seconds[piece::pieces]))
    found = times.spread()
    assert found is not None
    assert found.count == len(seconds)
    assert found.max == pytest.approx(max(seconds) * 1000)
    for ours, share in ((found.p50, 50), (found.p95, 95), (found.p99, 99), (found.p999, 99.9)):
        exact = np.percentile(seconds, share, method="inverted_cdf") * 1000
        assert exact - 1e-6 <= ours <= exact + BIN_SECONDS * 1000 + 1e-6


def test_no_times_have_no_spread() -> None:
    times = Times()
    times.add(array("d"))
    assert times.spread() is None
    assert times.by_ms() == {}


def test_what_is_longer_than_the_histogram_is_still_known_by_its_longest() -> None:
    found = spread_of(0.01, 60.0)
    assert (found.count, found.max) == (2, 60_000.0)
    assert found.p99 == pytest.approx(5000)


def test_negative_times_count_as_none() -> None:
    assert spread_of(-0.001).count == 1


def test_the_distribution_counts_each_ms() -> None:
    times = Times()
    times.add(array("d", [0.0201, 0.0209, 0.0221]))
    assert times.by_ms() == {20: 2, 21: 0, 22: 1}


# Marked frames


@pytest.mark.parametrize("number", [0, 1, 63, 64, 4095])
def test_a_tag_survives_both_codings(number: int) -> None:
    ulaw = marked.ulaw_whose(number) + marked.ULAW_WHICH[number]
    pcm = marked.pcm_whose(number) + marked.PCM_WHICH[number]
    assert len(ulaw) == 160
    assert ulaw_to_pcm(ulaw) == pcm
    assert pcm_to_ulaw(pcm) == ulaw
    assert marked.NUMBER_OF_PCM[pcm[6:10]] == number


# The ramp


def held(calls: int) -> Step:
    return Step(calls, ())


def failed(calls: int, own: str = "") -> Step:
    return Step(calls, ("2 % of the frames were lost, over 0.1 %",), own)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([], 50),
        ([held(50)], 100),
        ([held(50), held(100)], 120),
        ([held(120)], None),
        ([failed(50)], 50),
        ([failed(50), failed(50)], None),
        ([failed(50), held(50)], 100),
        ([held(50), failed(100)], 100),
    ],
)
def test_the_next_step(steps: list[Step], expected: int | None) -> None:
    assert next_calls(steps, 50, 120) == expected


def test_a_ramp_ends_whatever_breaks() -> None:
    for pattern in range(2**6):
        steps: list[Step] = []
        while (calls := next_calls(steps, 50, 300)) is not None:
            breaks = pattern >> (len(steps) % 6) & 1
            steps.append(failed(calls) if breaks else held(calls))
            assert len(steps) <= 12


def test_capacity_is_the_last_step_that_held() -> None:
    found = capacity([held(50), held(100), failed(150), failed(150)])
    assert (found.held, found.broke, found.own_limit) == (100, 150, "")
    assert capacity_in_words(found).startswith("Capacity: 100 calls. At 150: 2 %")


def test_one_bad_step_among_good_ones_is_no_capacity() -> None:
    found = capacity([held(50), failed(100), held(100)])
    assert (found.held, found.broke) == (100, None)
    assert capacity_in_words(found) == "Capacity: at least 100 calls; no limit was broken."


def test_a_generator_at_its_end_is_not_called_the_workers_capacity() -> None:
    found = capacity([held(50), failed(100, "it was late"), failed(100)])
    assert capacity_in_words(found) == (
        "Capacity: at least 50 calls. At 100 the measuring side was the limit: it was late."
    )


def test_a_first_step_that_breaks_fails_the_test() -> None:
    steps = [failed(50), failed(50)]
    plan = Plan(Mode.RAMP, 100, 10, 100)
    assert verdict(plan, Result(steps=steps, capacity=capacity(steps))) == ["2 % of the frames were lost, over 0.1 %"]


# Judgement


@pytest.mark.parametrize(
    ("frames", "unwell", "limits", "said"),
    [
        (GOOD, 0, Limits(0.0, 40.0), []),
        (replace(GOOD, returned=0), 5, Limits(), []),
        (replace(GOOD, returned=990), 0, Limits(max_loss_percent=0.5), ["1 % of the frames were lost, over 0.5 %"]),
        (replace(GOOD, returned=990, altered=10), 0, Limits(max_loss_percent=0.5), []),
        (GOOD, 0, Limits(max_p99_ms=39), ["round trip p99 40.0 ms, over 39 ms"]),
        (replace(GOOD, delay=None), 0, Limits(max_p99_ms=39), ["no frame came back as it was sent"]),
        (GOOD, 1, Limits(max_p99_ms=100), ["1 call failed or ended early"]),
        (replace(GOOD, returned=0, altered=1000), 0, Limits(5.0), ["no frame came back as it was sent"]),
    ],
)
def test_limits(frames: Frames, unwell: int, limits: Limits, said: list[str]) -> None:
    assert list(broken(frames, unwell, limits)) == said


def test_the_measuring_side_says_when_it_was_the_limit() -> None:
    assert own_limit(OWN) == ""
    assert "no time left" in own_limit(replace(OWN, cores=0.95))
    assert "late at p99" in own_limit(replace(OWN, late=Spread(100, 1, 1, 15, 20, 30)))
    assert list(remarks(MEASURED, "--format ulaw")) == []
    text = " ".join(remarks(replace(MEASURED, own=OwnUse(0.95, None, 0.5, 0.2)), "--format ulaw"))
    assert "not the worker's alone" in text
    assert "0.50 cores" in text
    assert "hypervisor" in text


def test_a_wrong_format_and_a_mute_application_are_told_apart() -> None:
    noise = replace(MEASURED, frames=replace(GOOD, returned=0, altered=900))
    assert "does the worker expect --format ulaw" in " ".join(remarks(noise, "--format ulaw"))
    mute = replace(MEASURED, frames=replace(GOOD, returned=0, delay=None))
    assert "nothing came back" in " ".join(remarks(mute, "--format ulaw"))


def test_what_a_churn_leaves_behind() -> None:
    good = Left(20, 22, 80.0, 85.0, 0)
    assert list(left_behind(good)) == []
    assert list(left_behind(Left(None, None, None, None, None))) == []
    assert "3 sessions" in next(left_behind(replace(good, sessions=3)))
    assert "60 descriptors" in next(left_behind(replace(good, descriptors_after=60)))
    assert "from 80 to 120 MiB" in next(left_behind(replace(good, rss_mib_end=120.0)))
    known = replace(good, tasks_before=5, tasks_after=6, timers_before=2, timers_after=2)
    assert list(left_behind(known)) == []
    assert next(left_behind(replace(known, tasks_after=300))) == "300 tasks are on the worker, 5 before the first call"
    assert next(left_behind(replace(known, timers_after=40))) == "40 timers are on the worker, 2 before the first call"
    calls = Calls(attempted=1000, failed={"Connection refused": 2})
    assert nothing_left(calls, known) == (
        "998 of 1,000 calls connected. Left behind: no session, no descriptor, no task, no timer; memory 80.0 MiB"
        " half-way, 85.0 at the end."
    )
    unknown = nothing_left(calls, Left(None, None, None, None, None))
    assert unknown == "998 of 1,000 calls connected. Left behind: not known."
    result = Result(measured=[MEASURED], left=replace(good, sessions=3))
    assert verdict(Plan(Mode.CHURN, 10, 10, 10), result) == ["3 sessions are still on the worker"]


def test_memory_that_grows_is_told_from_memory_that_wavers() -> None:
    def grown(mib: Callable[[int], float | None], count: int = 100) -> float | None:
        return growth_mib([Point(float(at), 1, None, None, None, 0, 0, None, mib(at), 1) for at in range(count)])

    assert grown(lambda at: 80.0 + at / 10) == pytest.approx(4.9)
    assert grown(lambda at: 80.0 + at % 2) == pytest.approx(0.0, abs=0.1)
    # What a worker takes in its first minutes and keeps is no growth.
    assert grown(lambda at: 80.0 + min(at, 50)) == pytest.approx(0.0, abs=0.1)
    assert grown(lambda at: 80.0, count=10) is None
    assert grown(lambda at: None) is None


def test_a_steady_run_in_which_something_grows_has_failed() -> None:
    points = [Point(float(at), 1, None, None, None, 0, 0, None, 80.0 + at, 1) for at in range(100)]
    plan = Plan(Mode.STEADY, 10, 100, 10)
    assert verdict(plan, Result(measured=[MEASURED])) == []
    assert verdict(plan, Result(measured=[replace(MEASURED, points=points)])) == [
        "the worker's memory grew by 49 MiB in the second half"
    ]
    leaking = replace(MEASURED, worker=WorkerUse(0.1, 80.0, 79.0, 300, 30))
    assert verdict(plan, Result(measured=[leaking])) == ["300 descriptors are open at the end, 30 at the beginning"]


@pytest.mark.parametrize(("error", "seconds"), [(0.0005, 60), (-0.0005, 60), (0.0, 60), (0.00002, 3600)])
def test_the_playing_rate_is_right_whatever_holds_frames_up(
    error: float, seconds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(generator, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    channel = generator.Channel(0, generator.Seen())
    noise = random.Random(7)
    found = []
    held_until = 0.0
    for frame in range(1, seconds * 50):
        due = 100 + frame * 0.02 / (1 + error)
        if noise.random() < 0.001:
            held_until = due + noise.random() * 0.3
        now[0] = max(now[0], due + noise.random() * 0.005, held_until)
        channel.data_received(wire.SILENCE_FRAME)
        if frame % 300 == 0:  # a look at every 6 s
            found.append(channel.take_earliest())
    assert channel.take_earliest() is not None
    assert channel.take_earliest() is None
    (first_at, first), (last_at, last) = found[0] or (0, 0), found[-1] or (0, 0)
    measured = (last - first) * 0.02 / (last_at - first_at) - 1
    assert measured == pytest.approx(error, abs=0.00005 if seconds < 100 else 0.000002)


# Showing


def test_the_report_is_json() -> None:
    plan = Plan(Mode.STEADY, 10, 3, 100)
    report = json.loads(as_json({"plan": plan}, Result(measured=[MEASURED]), ["too slow"]))
    assert report["good"] is False
    assert report["result"]["measured"][0]["frames"]["delay"]["p99"] == 40.0
    assert report["plan"]["mode"] == "steady"


def test_the_picture_has_a_panel_for_everything_that_is_known(tmp_path: Path) -> None:
    drawn = panels(POINTS, {20: 900, 21: 100})
    assert [panel.title.split(",")[0] for panel in drawn] == [
        "% of the frames by their round trip",
        "round trip",
        "frames missing so far",
        "worker: % of a core",
        "worker: memory",
        "worker: open descriptors",
    ]
    later = [replace(point, drift_ms=-0.5 * point.at, late_ms=1.0, others_cores=0.1) for point in POINTS]
    known = panels(later, {20: 900, 21: 100})
    assert [panel.title.split(",")[0] for panel in known if panel not in drawn] == [
        "behind 50 frames a second",
        "the machine: cores that others took",
        "the generator's own clock",
    ]
    draw(tmp_path / "all.png", "steady", known)
    unknown = [replace(point, cores=None, rss_mib=None, descriptors=None, missing=None) for point in POINTS]
    assert len(panels(unknown, {})) == 1
    path = tmp_path / "run.png"
    draw(path, "steady", drawn)
    with Image.open(path) as image:
        assert image.height > 6 * 230
        assert len(image.convert("RGB").getcolors(1 << 20) or []) > 5


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-30, 4), (0, 1080), (15, 44), (0, 3600), (0.0, 0.3)])
def test_ticks_are_few_and_inside(low: float, high: float) -> None:
    found = ticks(low, high, 5)
    assert 2 <= len(found) <= 11
    assert low <= found[0] <= found[-1] <= high * 1.001


# The machine


def test_listening_sockets_are_found_by_their_port() -> None:
    table = (
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
        "   0: 0100007F:2384 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 100 0\n"
        "   1: 0100007F:2384 0100007F:D431 01 00000000:00000000 00:00000000 00000000     0        0 4712 1 0 20 4\n"
        "   2: 0100007F:2385 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4713 1 0 100 0\n"
    )
    assert listening(table, 9092) == [4711]
    assert listening(table, 9999) == []


# Usage


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["steady"], "one of --start"),
        (["steady", "--start", "--worker", "127.0.0.1:9092"], "one of --start"),
        (["steady", "--worker", "192.0.2.1:9092"], "is not this machine"),
        (["steady", "--worker", "9092"], "expected HOST:PORT"),
        (["steady", "--sip", "192.0.2.1:5060", "--callee", "100"], "is not this machine"),
        (["steady", "--start", "--app", "wss://192.0.2.1/bot"], "is not this machine"),
        (["steady", "--worker", "127.0.0.1:9092", "--listen", "0.0.0.0:9300"], "is not this machine"),
        (["steady", "--start", "--app", "http://127.0.0.1/"], "expected ws://"),
        (["steady", "--start", "--seconds", "5", "--minutes", "1"], "say the same"),
        (["steady", "--start", "--hold", "3"], "--hold belongs to churn"),
        (["churn", "--start", "--step", "3"], "--step belongs to ramp"),
        (["steady", "--start", "--pid", "3"], "--pid belongs to --worker"),
        (["steady", "--start", "--callee", "3"], "--callee belongs to --sip"),
        (["ramp", "--sip", "127.0.0.1:5060", "--callee", "3"], "steady and churn"),
        (["steady", "--sip", "127.0.0.1:5060"], "needs --callee"),
        (["steady", "--sip", "127.0.0.1:5060", "--callee", "3", "--max-loss", "1"], "--max-loss belongs to"),
        (["burst", "--start", "--app", "ws://127.0.0.1/"], "plays the application itself"),
        (["burst", "--start", "--seconds", "5"], "take 11 s"),
        (["steady", "--worker", "127.0.0.1:9", "--app", "ws://127.0.0.1/", "--listen", "127.0.0.1:1"], "give one"),
        (["steady", "--start", "--json", "/nowhere/at/all.json"], "no such folder"),
        (["steady", "--start", "--calls", "100000"], "100000"),
        (["nothing", "--start"], "nothing"),
    ],
)
def test_wrong_usage_is_refused_before_anything_starts(arguments: list[str], said: str) -> None:
    found = CliRunner().invoke(trunkbridge, ["loadtest", *arguments])
    assert found.exit_code == 2, found.output
    assert said in " ".join(found.output.split())


def test_a_picture_without_pillow_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "audiosocket.loadtest.picture", None)
    found = CliRunner().invoke(trunkbridge, ["loadtest", "steady", "--start", "--picture", str(tmp_path / "a.png")])
    assert found.exit_code == 2
    assert "pip install" in found.output
