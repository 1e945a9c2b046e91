"""What the steps between telephone and application cost by size of chunk: ours beside the other ways to do them.

Both ways, whole: G.711 to PCM16, base64 and JSON towards the application, and the same back. `ours` is what the worker
does, whatever it is made of; `numpy` a table in numpy; audioop is Python's own module up to 3.12, and the package
audioop-lts from 3.13 on.
"""

from __future__ import annotations

import base64
import importlib
import json
import statistics
import timeit
import warnings
from binascii import a2b_base64, b2a_base64
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, NamedTuple

import msgspec
import numpy as np

from audiosocket.callspec import WIDEBAND, CallSpec, MediaFormat
from audiosocket.dialects.exotel import ExotelDialect
from audiosocket.dialects.twilio import TwilioDialect
from audiosocket.g711 import pcm_to_ulaw, ulaw_to_pcm
from tools.bench.report import Table, Value

SIZES: tuple[tuple[int, int], ...] = (
    *((ms, 8000) for ms in (20, 40, 60, 100, 200)),
    *((20, rate) for rate in (16_000, 24_000)),
)
"""Milliseconds and rate (Hz) of a chunk."""
ROUNDS, REPEATS = 5, 3
SECONDS_EACH = 0.01
BUDGET_US = 10.0
"""What 20 ms may cost each way."""
ABSENT = ("pybase64", "orjson", "audioop")


class _Media(msgspec.Struct):
    payload: bytes


class _Message(msgspec.Struct):
    event: str
    media: _Media


class _Step(NamedTuple):
    what: str
    way: str
    run: Callable[[], object]


def measure() -> tuple[list[Table], list[str]]:
    """Times all of it: half a minute."""
    modules = {name: _optional(name) for name in ABSENT}
    times: dict[tuple[str, str], list[list[float]]] = {}
    for _ in range(ROUNDS):  # in turn: what disturbs a moment of it is not one way's bad luck
        for index, (ms, rate) in enumerate(SIZES):
            for what, way, run in _steps(ms, rate, modules):
                times.setdefault((what, way), [[] for _ in SIZES])[index] += _microseconds(run)
    best = {key: [min(size, default=None) for size in sizes] for key, sizes in times.items()}
    median = {key: [statistics.median(size) if size else None for size in sizes] for key, sizes in times.items()}
    columns = ("step", "way", *(f"{ms} ms, {rate // 1000} kHz" for ms, rate in SIZES))
    tables = [
        Table(f"{name} of {ROUNDS * REPEATS}, µs a chunk", columns, [(*key, *values) for key, values in found.items()])
        for name, found in (("best", best), ("median", median))
    ]
    verdict: list[tuple[Value, ...]] = [
        (what, way, best[what, way][0], median[what, way][0], bool((median[what, way][0] or 0.0) < BUDGET_US))
        for what, way in best
        if what.startswith("all of it")
    ]
    columns = ("way", "by", "best, µs", "median, µs", f"under {BUDGET_US:g} µs")
    tables.append(Table("20 ms at 8 kHz, all of it", columns, verdict))
    compiled = _optional("audiosocket._frames") is not None
    notes = [
        "ours is compiled here" if compiled else "ours is not compiled here: build audiosocket/_frames.c to see it so"
    ]
    missing = [name for name, module in modules.items() if module is None]
    if missing:
        notes.append(f"not installed here, and left out: {', '.join(missing)}")
    return tables, notes


def _steps(ms: int, rate: int, modules: dict[str, ModuleType | None]) -> Iterator[_Step]:
    samples = ms * rate // 1000
    pcm = (8000 * np.sin(2 * np.pi * 440 * np.arange(samples) / rate)).astype("<i2").tobytes()
    payload = b2a_base64(pcm, newline=False)
    sid = "0" * 32
    exotel = ExotelDialect(_spec(WIDEBAND.get(rate, MediaFormat.SLIN), sid))
    message = b'{"event":"media","stream_sid":"%b","media":{"payload":"%b"}}' % (sid.encode(), payload)
    decode = msgspec.json.Decoder(_Message).decode
    pybase64, orjson, audioop = (modules[name] for name in ABSENT)

    def written(dumps: Callable[[Any], object], encode: Callable[[bytes], bytes]) -> Callable[[], object]:
        return lambda: dumps(
            {
                "event": "media",
                "stream_sid": sid,
                "sequence_number": "7",
                "media": {"chunk": "6", "timestamp": "100", "payload": encode(pcm).decode()},
            }
        )

    def read(loads: Callable[[bytes], Any]) -> Callable[[], object]:
        return lambda: a2b_base64(loads(message)["media"]["payload"])

    yield _Step("base64 encode", "binascii", lambda: b2a_base64(pcm, newline=False))
    yield _Step("base64 encode", "base64", lambda: base64.b64encode(pcm))
    if pybase64 is not None:
        yield _Step("base64 encode", "pybase64", lambda: pybase64.b64encode(pcm))
    yield _Step("base64 decode", "binascii", lambda: a2b_base64(payload))
    yield _Step("base64 decode", "base64", lambda: base64.b64decode(payload))
    if pybase64 is not None:
        yield _Step("base64 decode", "pybase64", lambda: pybase64.b64decode(payload))
    yield _Step("write a media message", "ours", lambda: exotel.media(pcm))
    yield _Step("write a media message", "msgspec", written(msgspec.json.encode, base64.b64encode))
    if orjson is not None:
        yield _Step("write a media message", "orjson", written(orjson.dumps, base64.b64encode))
    yield _Step("write a media message", "json", written(json.dumps, base64.b64encode))
    yield _Step("read a media message", "ours", lambda: exotel.decode(message))
    yield _Step("read a media message", "msgspec", lambda: decode(message))
    if orjson is not None:
        yield _Step("read a media message", "orjson", read(orjson.loads))
    yield _Step("read a media message", "json", read(json.loads))
    if rate == 8000:  # G.711 is narrowband
        yield from _telephony(pcm, sid, audioop)


def _telephony(pcm: bytes, sid: str, audioop: ModuleType | None) -> Iterator[_Step]:
    ulaw = pcm_to_ulaw(pcm)
    samples_of = np.frombuffer(ulaw_to_pcm(bytes(range(256))), "<i2")
    codes_of = np.frombuffer(pcm_to_ulaw(np.arange(0x10000, dtype="<u2").tobytes()), np.uint8)
    exotel = ExotelDialect(_spec(MediaFormat.ULAW, sid))
    twilio = TwilioDialect(_spec(MediaFormat.SLIN, sid))
    message = b'{"event":"media","stream_sid":"%b","media":{"payload":"%b"}}' % (sid.encode(), b2a_base64(pcm).strip())
    of_ulaw = b'{"event":"media","streamSid":"%b","media":{"payload":"%b"}}' % (sid.encode(), b2a_base64(ulaw).strip())

    def to_pcm() -> bytes:
        return samples_of.take(np.frombuffer(ulaw, np.uint8)).tobytes()

    def to_ulaw() -> bytes:
        return codes_of.take(np.frombuffer(pcm, "<u2")).tobytes()

    def usual(linear: bytes) -> str:
        return json.dumps(
            {"event": "media", "stream_sid": sid, "media": {"payload": base64.b64encode(linear).decode()}}
        )

    def usual_back() -> bytes:
        return base64.b64decode(json.loads(message)["media"]["payload"])

    yield _Step("μ-law to PCM16", "ours", lambda: ulaw_to_pcm(ulaw))
    yield _Step("μ-law to PCM16", "numpy", to_pcm)
    if audioop is not None:
        yield _Step("μ-law to PCM16", "audioop", lambda: audioop.ulaw2lin(ulaw, 2))
    yield _Step("PCM16 to μ-law", "ours", lambda: pcm_to_ulaw(pcm))
    yield _Step("PCM16 to μ-law", "numpy", to_ulaw)
    if audioop is not None:
        yield _Step("PCM16 to μ-law", "audioop", lambda: audioop.lin2ulaw(pcm, 2))
    there, back = "all of it, to the application (μ-law to PCM16)", "all of it, from the application (PCM16)"
    yield _Step(there, "ours", lambda: exotel.media(ulaw_to_pcm(ulaw)))
    yield _Step(there, "numpy, base64, json", lambda: usual(to_pcm()))
    if audioop is not None:
        yield _Step(there, "audioop, base64, json", lambda: usual(audioop.ulaw2lin(ulaw, 2)))
    yield _Step(back, "ours", lambda: exotel.decode(message))
    yield _Step(back, "base64, json", usual_back)
    there, back = "all of it, to a μ-law application (from PCM16)", "all of it, from a μ-law application (to PCM16)"
    yield _Step(there, "ours", lambda: twilio.media(pcm_to_ulaw(pcm)))
    yield _Step(there, "numpy, base64, json", lambda: usual(to_ulaw()))
    yield _Step(back, "ours", lambda: ulaw_to_pcm(_audio(twilio.decode(of_ulaw))))


def _audio(decoded: object) -> bytes:
    assert isinstance(decoded, bytes)
    return decoded


def _spec(media_format: MediaFormat, sid: str) -> CallSpec:
    return CallSpec(
        call_id="",
        leg_uuid="",
        call_sid="",
        stream_sid=sid,
        account_sid="",
        application="",
        url="",
        caller="",
        callee="",
        report_stream="",
        created_at_ms=0,
        expires_at_ms=0,
        media_format=media_format,
    )


def _optional(name: str) -> ModuleType | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # audioop says so in 3.11 and 3.12
        try:
            return importlib.import_module(name)
        except ImportError:
            return None


def _microseconds(run: Callable[[], object]) -> list[float]:
    """The time of one call, `REPEATS` times; about 0.04 µs of it are the lambda's own call."""
    timer = timeit.Timer(run)
    count = 50
    count = max(10, round(count * SECONDS_EACH / timer.timeit(count)))
    return [1e6 * total / count for total in timer.repeat(REPEATS, count)]
