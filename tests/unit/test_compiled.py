"""The compiled steps of a frame and the rules in Python, side by side: the same bytes leave, and all state is the same.

Where nothing is compiled, both are Python, and these tests hold Python to itself.
"""

from __future__ import annotations

import asyncio
import os
import random
import resource
import subprocess
import sys
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audiosocket.callspec import MediaFormat
from audiosocket.compiled import FRAMES, SWITCH
from tests.both_sides import BOTH, LOUD, Line, Side, told
from tests.twin import slots, state

pytestmark = pytest.mark.unit

FORMATS = ("ulaw", "alaw", "slin", "slin16", "slin24")
SAMPLES = {"ulaw": 160, "alaw": 160, "slin": 160, "slin16": 320, "slin24": 480}
SPOKEN = {"exotel": ("media", "mark", "clear"), "twilio": ("media", "mark", "clear"), "plivo": ("playAudio",) * 3}


SIZES = st.sampled_from((0, 1, 2, 3, 40, 159, 160, 161, 320, 321, 640, 960, 1600, 3200, 5000))
AUDIO = st.one_of(
    st.builds(lambda size, seed: random.Random(seed).randbytes(size), SIZES, st.integers(0, 9)),
    st.builds(lambda size: (LOUD * size)[:size], SIZES),
    st.builds(lambda size, fill: bytes([fill]) * size, SIZES, st.sampled_from((0, 0x7F, 0xD5, 0xFF))),
)
CHANGES = st.fixed_dictionaries(
    {"dialect": st.sampled_from(("exotel", "twilio", "plivo"))},
    optional={
        "one_way": st.booleans(),
        "fade_ms": st.sampled_from((0.0, 5.0)),
        "playout_max_seconds": st.sampled_from((0.1, 1.0, 60.0)),
        "digits_to_caller": st.booleans(),
    },
)


@st.composite
def frames(draw: st.DrawFn, size: int, dialect: str) -> list[tuple[Any, ...]]:
    """Some ticks of a call that goes on as usual, loud or not, in a direction or in both."""
    media = SPOKEN[dialect][0]
    caller, app = (
        draw(st.sampled_from((LOUD, b"\xff", b"\xd5", b"\0", None))),
        draw(st.sampled_from((LOUD, b"\0", None))),
    )
    chunk = draw(st.sampled_from((1, 1, 5)))
    late = draw(st.sampled_from((0, 0, 0, 1, 2, 4)))
    made: list[tuple[Any, ...]] = []
    for at in range(draw(st.sampled_from((1, 6, 14, 60, 130)))):
        if caller is not None:
            made.append(("caller", (caller * size)[:size]))
        if app is not None and at % chunk == 0:
            audio = (app * size * 2)[: chunk * (160 if dialect == "twilio" else 320)]
            made.append(("app", told(dialect, media, media={"payload": b64encode(audio).decode()})))
        made.append(("tick", late if at == 3 else 0))
    return made


@st.composite
def calls(draw: st.DrawFn) -> tuple[dict[str, Any], list[tuple[Any, ...]]]:
    """How a call begins, and what happens in it."""
    changes = draw(CHANGES)
    dialect = changes["dialect"]
    changes["media_format"] = MediaFormat(draw(st.sampled_from(FORMATS if dialect == "exotel" else FORMATS[:3])))
    changes["held"] = draw(st.sampled_from((False, False, True)))
    if dialect == "exotel":
        changes["dialect_options"] = {"frame_ms": draw(st.sampled_from((20, 100)))}
    size = SAMPLES[changes["media_format"]] * (1 if changes["media_format"] in ("ulaw", "alaw") else 2)
    rate = changes["media_format"].sample_rate
    media, mark, clear = ("playAudio", "checkpoint", "clearAudio") if dialect == "plivo" else SPOKEN[dialect]
    named = {"name": "m"} if dialect == "plivo" else {"mark": {"name": "m"}}
    usual = frames(size, dialect)
    step = st.one_of(
        st.tuples(st.just("caller"), AUDIO),
        AUDIO.map(lambda audio: ("app", told(dialect, media, media={"payload": b64encode(audio).decode()}))),
        st.just(("app", told(dialect, mark, **named))),
        st.just(("app", told(dialect, clear))),
        st.just(("app", told(dialect, "dtmf", dtmf={"digits": "12"}))),
        st.just(("app", b'{"event":')),
        st.tuples(st.just("tick"), st.sampled_from((0, 0, 0, 1, 3, 20))),
        st.just(("digit",)),
        st.tuples(st.just("backlog"), st.sampled_from((1, 3, 4, 30))),
        st.tuples(st.just("blocked"), st.booleans()),
        st.just(("prompt", [bytes(rate // 25)] * 3)),
        st.just(("release",)),
        st.just(("lost",)),
        st.just(("open",)),
        st.just(("switch", {**changes, "held": False})),
        st.just(("stop",)),
        st.tuples(st.just("recorder"), st.sampled_from((0, rate))),
    )
    pieces = draw(st.lists(st.tuples(usual, st.lists(step, max_size=2)), max_size=8))
    return changes, [one for goes_on, odd in pieces for one in [*goes_on, *odd]]


@settings(deadline=None, max_examples=100)
@given(calls())
def test_a_call_is_the_same_on_both_sides(call: tuple[dict[str, Any], list[tuple[Any, ...]]]) -> None:
    changes, steps = call
    one, other = (Side(modules, changes) for modules in BOTH)
    for at, step in enumerate(steps):
        assert one.do(step) == other.do(step), (at, step)
        assert one.out == other.out, (at, step)
        one.out.clear()
        other.out.clear()
        assert one.state() == other.state(), (at, step)


@pytest.mark.parametrize(
    ("name", "module", "base", "methods"),
    [
        ("NoiseFloor", "loudness", "NoiseFloorState", set()),
        ("Turns", "turns", "TurnsState", {"tick"}),
        ("Playout", "playout", "PlayoutState", {"push", "tick", "note_stall"}),
        ("MediaMessages", "dialects.media_messages", "MediaMessagesState", {"media"}),
        ("Session", "carried", "SessionState", {"caller_audio", "caller_backlog", "app_text", "tick"}),
        ("AudioSocketLeg", "legs.audiosocket", "LegState", {"data_received", "_tick"}),
    ],
)
def test_what_is_compiled_holds_the_state_that_python_would(
    name: str, module: str, base: str, methods: set[str]
) -> None:
    plain = getattr(BOTH[1][module], base)
    assert plain.__module__ == f"audiosocket.{module}"
    if FRAMES is None:
        return
    kept = getattr(BOTH[0][module], base)
    assert kept is getattr(FRAMES, name)
    assert {attribute for attribute in vars(kept) if not attribute.startswith("__")} == {*slots(plain), *methods}


@pytest.mark.parametrize("size", [98_000, 98_304, 100_000, 100_002, 400_000])
def test_a_message_of_any_size_counts_the_same_on_both_sides(size: int) -> None:
    message = told("exotel", "media", media={"payload": b64encode(LOUD * (size // 6) + LOUD[: size % 6]).decode()})
    sides = [Side(modules, {}) for modules in BOTH]
    for side in sides:
        side.do(("app", message))
        assert side.session.figures().ignored == ({"big_payload": 1} if size > 100_000 else {})
        assert side.session.figures().app_bytes_received == size
    assert sides[0].state() == sides[1].state()


def test_a_million_usual_frames_leave_no_memory_behind() -> None:
    side = Side(BOTH[0], {"media_format": MediaFormat.ULAW})
    session = side.session
    session._send = len
    frame = LOUD * 26 + LOUD[:4]
    message = told("exotel", "media", media={"payload": b64encode(frame * 2).decode()})

    def carry(count: int) -> None:
        for _ in range(count):
            session.caller_audio(frame)
            session.app_text(message)
            session.tick(0)

    carry(20_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    carry(1_000_000 if FRAMES is not None else 50_000)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2000  # kB


RULES = "session session_streams playout turns fades frame_steps exotel twilio plivo"


def test_the_rules_hold_without_compiled_steps_as_well() -> None:
    tests = [str(Path(__file__).with_name(f"test_{name}.py")) for name in RULES.split()]
    run = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *tests]
    found = subprocess.run(run, env=os.environ | {SWITCH: "no"}, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout[-3000:] + found.stderr[-3000:]


@pytest.mark.parametrize("edited", [False, True])
def test_a_checkout_that_was_edited_does_not_run_what_was_compiled_before(edited: bool, tmp_path: Path) -> None:
    if FRAMES is None:
        return
    package = Path(FRAMES.__file__ or "").parent
    copied = tmp_path / "audiosocket"
    copied.mkdir()
    for name in (
        "__init__.py",
        "compiled.py",
        Path(FRAMES.__file__ or "").name,
        *(p.name for p in package.glob("_*.[ch]")),
    ):
        (copied / name).write_bytes((package / name).read_bytes())
    if edited:
        (copied / "_rules.c").write_text("/* another one */")
    run = "from audiosocket.compiled import STATE; print(STATE)"
    found = subprocess.run(
        [sys.executable, "-W", "always", "-c", run], cwd=tmp_path, env={}, capture_output=True, text=True
    )
    assert found.stdout.startswith("out of date" if edited else "in use"), found.stderr
    assert ("RuntimeWarning: compiled steps of a frame out of date" in found.stderr) is edited


READS = st.one_of(
    st.tuples(st.just("read"), st.sampled_from((0, 1, 2, 3, 100, 162, 163, 163, 163, 164, 326, 489, 652, 700))),
    st.tuples(st.just("tick"), st.sampled_from((0, 0, 0, 0, 2))),
    st.tuples(st.just("taken"), st.just(0)),
    st.tuples(st.just("flush"), st.just(0)),
    st.tuples(st.just("ticks"), st.sampled_from((30, 600))),
    st.tuples(st.just("coalesce"), st.sampled_from((0, 1, 1))),
)


@settings(deadline=None, max_examples=60)
@given(st.lists(READS, max_size=60))
def test_a_leg_is_the_same_on_both_sides(steps: list[tuple[str, int]]) -> None:
    """However its bytes are cut, and however little of what it sends is read: nothing is lost, split or swapped."""

    async def play() -> None:
        lines = [Line(modules) for modules in BOTH]
        sides = [Side(modules, {}) for modules in BOTH]
        for line, side in zip(lines, sides, strict=True):
            line.leg.session = side.session
        stream = b"".join(b"\x10\x00\xa0" + bytes([at & 0x7F]) * 160 for at in range(200)) * 2
        at = 0
        for step, size in steps:
            for line in lines:
                match step:
                    case "read":
                        line.leg.data_received(stream[at : at + size])
                    case "tick":
                        line.leg._tick(size)
                    case "ticks":
                        for _ in range(size):
                            line.leg._tick(0)
                    case "coalesce":
                        line.leg.coalesce(bool(size))
                    case "taken":
                        line.read()
                    case "flush":
                        line.flush()
            if step == "read":
                at += size
            one, other = lines
            assert sides[0].out == sides[1].out
            assert sides[0].state() == sides[1].state()
            assert one.told == other.told
            names = (
                "frames_unsent",
                "ignored_frames",
                "end_reason",
                "end_detail",
                "_blocked_ticks",
                "_closing",
                "_read_frames",
                "_whole",
            )
            assert state(one.leg, names) == state(other.leg, names)
        for line in lines:
            while line.buffer:
                line.flush()
                line.read()
            line.read()
        assert lines[0].got == lines[1].got
        for line in lines:
            line.end()

    asyncio.run(play())
