"""The compiled steps of a worker that is late, beside the rules in Python: the same bytes leave, all state is the same.

See test_compiled.py, which has the calls that are in time.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from base64 import b64encode
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audiosocket.app_gate import Gate
from audiosocket.callspec import MediaFormat
from audiosocket.compiled import FRAMES
from tests.both_sides import BOTH, LOUD, Line, Side, told
from tests.twin import slots, state

pytestmark = pytest.mark.unit

RATES = (8000, 16000, 24000)
QUEUE = slots(BOTH[1]["playout"].Playout)


class Queues:
    """The queue of either, fed and played alike."""

    def __init__(self, rate: int, fade_ms: float, seconds: float = 60.0) -> None:
        self.both = [modules["playout"].Playout(seconds, rate, fade_ms) for modules in BOTH]
        self.frame_bytes = rate // 50 * 2

    def push(self, audio: bytes) -> None:
        for queue in self.both:
            queue.push(audio)

    def note_stall(self, frames: int) -> None:
        for queue in self.both:
            queue.note_stall(frames)

    def clear(self) -> None:
        for queue in self.both:
            queue.clear()

    def tick(self) -> bytes | None:
        one, other = self.both
        played: bytes | None = one.tick()
        assert played == other.tick()
        if played is None and one.cut_off:
            assert one.take_cut_off() == other.take_cut_off()
        return played

    def same(self) -> dict[str, Any]:
        found = [state(queue, QUEUE) for queue in self.both]
        assert found[0] == found[1]
        return found[0]


def sound(dice: random.Random, kind: str, size: int) -> bytes:
    match kind:
        case "noise":
            return dice.randbytes(size)
        case "edges":
            return (b"\xff\x7f\x00\x80" * size)[:size]
        case "quiet":
            return bytes(size)
        case _:
            return (LOUD * size)[:size]


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    rate=st.sampled_from(RATES),
    fade_ms=st.sampled_from((0.0, 0.1, 5.0, 20.0)),
    seconds=st.sampled_from((0.1, 60.0)),
    whole=st.booleans(),
    kinds=st.sampled_from((("loud",), ("noise",), ("edges", "noise"), ("loud", "quiet"), ("quiet",))),
)
def test_a_queue_is_the_same_on_both_sides(
    seed: int, rate: int, fade_ms: float, seconds: float, whole: bool, kinds: tuple[str, ...]
) -> None:
    """A live source behind stalls of every length: what stands too deep is dropped or merged, or runs dry."""
    dice = random.Random(seed)
    queues = Queues(rate, fade_ms, seconds)
    size = queues.frame_bytes
    late = 0
    for _ in range(300):
        if not dice.randrange(40):
            late = dice.choice((1, 2, 3, 8, 60))
            queues.note_stall(late)
        if not dice.randrange(150):
            queues.clear()
        if dice.randrange(30):
            for _ in range(1 + (late if not dice.randrange(3) else 0)):
                queues.push(
                    sound(dice, dice.choice(kinds), size if whole else dice.choice((1, 2, 7, size, 3 * size + 1)))
                )
            late = 0
        queues.tick()
        queues.same()


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize(
    ("stall", "kind", "recovered"), [(8, "noise", 7), (8, "quiet", 8), (2, "noise", 2), (2, "loud", 2)]
)
def test_what_a_stall_leaves_goes_alike(rate: int, stall: int, kind: str, recovered: int) -> None:
    """To the end of the time that silence is waited for, and of the one in which speech is merged after all."""
    dice = random.Random(rate)
    queues = Queues(rate, 5.0)
    for tick in range(1800):
        if tick == 100:
            queues.note_stall(stall)
            for _ in range(stall):
                queues.push(sound(dice, kind, queues.frame_bytes))
        queues.push(sound(dice, kind, queues.frame_bytes))
        assert queues.tick() is not None
        if not tick % 10:
            queues.same()
        if tick == 400 and stall > 2:
            assert queues.both[0].recovered_frames in (recovered, 7)
    assert queues.same()["recovered_frames"][1] >= recovered


def media(audio: bytes) -> tuple[str, bytes]:
    return "app", told("exotel", "media", media={"payload": b64encode(audio).decode()})


@st.composite
def late_calls(draw: st.DrawFn) -> tuple[dict[str, Any], list[tuple[Any, ...]]]:
    """A call whose frames come several at a time, whose ticks come late, and whose stream opens when it will."""
    dice = random.Random(draw(st.integers(0, 2**32)))
    kind = draw(st.sampled_from(("loud", "noise", "quiet")))
    lateness = draw(st.sampled_from(((0, 1), (0, 0, 2), (0, 3, 4), (1, 2, 3), (0, 0, 0, 25))))
    steps: list[tuple[Any, ...]] = []
    opens = draw(st.sampled_from((0, 0, 3, 30)))
    if opens:
        steps.append(("lost",))
    waiting = 0
    for at in range(draw(st.sampled_from((20, 120)))):
        if at == opens and at:
            steps.append(("open",))
        missed = dice.choice(lateness)
        waiting += 1 + missed
        if dice.randrange(3):
            steps.append(("backlog", waiting))
            steps += [("caller", sound(dice, kind, 160)) for _ in range(waiting)]
            steps += [media(sound(dice, kind, 320)) for _ in range(waiting)]
            waiting = 0
        steps.append(("tick", missed))
        if not dice.randrange(40):
            steps.append(
                dice.choice(
                    [("digit",), ("release",), ("blocked", True), ("blocked", False), ("prompt", [bytes(320)] * 2)]
                )
            )
    changes = {
        "media_format": MediaFormat.ULAW,
        "held": draw(st.booleans()),
        "fade_ms": draw(st.sampled_from((0.0, 5.0))),
        "dialect_options": {"frame_ms": draw(st.sampled_from((20, 100)))},
    }
    return changes, steps


@settings(deadline=None, max_examples=60)
@given(late_calls())
def test_a_late_call_is_the_same_on_both_sides(call: tuple[dict[str, Any], list[tuple[Any, ...]]]) -> None:
    changes, steps = call
    one, other = (Side(modules, changes) for modules in BOTH)
    for at, step in enumerate(steps):
        assert one.do(step) == other.do(step), (at, step)
        if step[0] in ("tick", "backlog"):
            assert one.state() == other.state(), (at, step)
            assert one.out == other.out, (at, step)
            one.out.clear()
            other.out.clear()


class Application:
    """What a `Gate` asks of picows and of the transport beneath; the other end of its socket is the application."""

    def __init__(self, room: int) -> None:
        self.here, self.there = socket.socketpair()
        for end in (self.here, self.there):
            end.setblocking(False)
        self.here.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, room)
        self.underlying_transport = self
        self.is_disconnected = self.is_close_frame_sent = False
        self.buffer = self.got = b""
        self.otherwise: list[bytes] = []

    def get_extra_info(self, name: str) -> Any:
        return self.here

    def get_protocol(self) -> Any:
        return self

    def set_protocol(self, protocol: object) -> None:
        pass

    def pause_reading(self) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return len(self.buffer)

    def write(self, data: bytes) -> None:
        self.buffer += data

    def send_frame(self, message: bytes) -> None:
        """What picows sends, masked with nothing."""
        self.write(b"\x81\xfe" + len(message).to_bytes(2, "big") + bytes(4) + message)

    def connection_lost(self, error: Exception | None) -> None:
        pass

    def failed(self, error: Exception) -> None:
        raise error

    def take(self) -> None:
        """The transport writes what it can, and the application reads it, to the end."""
        with contextlib.suppress(BlockingIOError):
            while True:
                if self.buffer:
                    with contextlib.suppress(BlockingIOError):
                        self.buffer = self.buffer[self.here.send(self.buffer) :]
                self.got += self.there.recv(65536)

    def messages(self) -> list[bytes]:
        """What has been read, without its frames."""
        found, at = [], 0
        while at < len(self.got):
            length, head = self.got[at + 1] & 0x7F, 2
            if length == 126:
                length, head = int.from_bytes(self.got[at + 2 : at + 4], "big"), 4
            key = self.got[at + head : at + head + 4]
            at += head + 4
            masked = self.got[at : at + length]
            assert len(masked) == length
            found.append(bytes(byte ^ key[index % 4] for index, byte in enumerate(masked)))
            at += length
        return found


PIECES = st.lists(
    st.tuples(
        st.integers(0, 12), st.sampled_from((b"", b"\x10\x00\x10" + b"\x31" * 16, b"\x03\x00\x015")), st.booleans()
    ),
    max_size=25,
)


@settings(deadline=None, max_examples=60)
@given(PIECES, st.sampled_from((1, 1 << 20)))
def test_the_frames_of_one_read_reach_the_application_in_order(reads: list[tuple[int, bytes, bool]], room: int) -> None:
    """Each read: so many frames as usual, then one of another length or a digit, or nothing; whether it is taken."""

    async def play() -> None:
        lines = [Line(modules) for modules in BOTH]
        sides = [Side(modules, {}) for modules in BOTH]
        for line, side in zip(lines, sides, strict=True):
            line.leg.session = side.session
        application = Application(room)
        gate = Gate(
            sides[0].session.app_text, application, sides[0].out.append, lambda: None, application.failed, 65536
        )  # type: ignore[arg-type]
        gate.take_over()
        gate.use(reads=True, sends=True)
        opened, sides[0].out[:] = list(sides[0].out), []
        gate._send_otherwise = application.send_frame
        sides[0].session._send = gate.send
        at = 0
        for count, odd, taken in reads:
            data = b"".join(b"\x10\x00\xa0" + bytes([at + index & 0x7F]) * 160 for index in range(count)) + odd
            at += count
            for line in lines:
                line.leg.data_received(data)
                line.leg._tick(0)
            if taken:
                application.take()
            assert sides[0].state() == sides[1].state()
        while application.buffer:
            application.take()
        application.take()
        assert opened + application.messages() == [piece for piece in sides[1].out if isinstance(piece, bytes)]
        gate.connection_lost(None)
        application.here.close()
        application.there.close()
        for line in lines:
            line.end()

    if FRAMES is not None:
        asyncio.run(play())
