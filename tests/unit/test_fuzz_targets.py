"""What `make fuzz` runs for minutes, for a moment: every target with its seeds and with what is not far from them."""

from __future__ import annotations

import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tools.fuzz import figures
from tools.fuzz.supply import Supply
from tools.fuzz.targets import TARGETS

pytestmark = pytest.mark.unit

SECONDS = 5.0


def timed(name: str, data: bytes) -> None:
    began = time.monotonic()
    TARGETS[name].run(data)
    assert time.monotonic() - began < SECONDS


@pytest.mark.parametrize("name", TARGETS)
def test_the_seeds_are_good(name: str) -> None:
    assert TARGETS[name].seeds
    for seed in TARGETS[name].seeds:
        timed(name, seed)


@st.composite
def varied(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """A seed with some bytes changed, left out, or put in between; or any bytes."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 3))] = draw(st.binary(max_size=4))
    return bytes(data)


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_anything_is_good(name: str, data: st.DataObject) -> None:
    timed(name, data.draw(varied(sorted(TARGETS[name].seeds)) | st.binary(max_size=200)))


def test_a_supply_that_is_used_up_answers_all_the_same() -> None:
    supply = Supply(b"\x01\x02")
    assert (supply.byte(), bool(supply), supply.byte(), bool(supply)) == (1, True, 2, False)
    assert (supply.byte(), supply.number(7), supply.pick("ab"), supply.take(3), supply.text()) == (0, 0, "a", b"", "")
    assert list(supply.pieces(b"abc")) == [b"abc"]
    assert b"".join(Supply(b"\x00\x01").pieces(b"abcdef")) == b"abcdef"


OUTPUT = """\
stat::began_unix_ms: 1000
#1\tpulse  cov: 1 ft: 1 corp: 1/1b exec/s: 0 rss: 50Mb
#25\tINITED cov: 18 ft: 52 corp: 20/415b exec/s: 0 rss: 60Mb
#117599\tREDUCE cov: 19 ft: 52 corp: 20/415b lim: 1110 exec/s: 117599 rss: 71Mb L: 24/96 MS: 4 InsertByte-
#200000\tDONE   cov: 20 ft: 57 corp: 22/842b lim: 1890 exec/s: 100000 rss: 72Mb
stat::number_of_executed_units: 200000
stat::average_exec_per_sec:     100000
"""


def test_what_the_fuzzer_prints_is_read() -> None:
    found = figures.read(OUTPUT, 5000)
    assert found == figures.Figures(executions=200_000, per_second=50_000, edges=20, features=57, growth_mb=12)
    assert found.problem() == ""
    assert "memory grew by 400 MB" in figures.read(OUTPUT.replace("72Mb", "460Mb"), 5000).problem()
    assert "instrumented" in figures.read("", 0).problem()
