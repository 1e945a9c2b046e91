"""A call and its leg, driven through the compiled steps of a frame and through the rules in Python, side by side."""

from __future__ import annotations

import contextlib
import itertools
import socket
from types import ModuleType
from typing import Any

import msgspec

from tests.media import call_spec
from tests.twin import as_it_is, in_python, slots, state

BOTH = (as_it_is(), in_python())
"""The media path as it is, and in Python."""
LOUD = b"\x05\x91\x30\x7a\x2e\xb3"


def told(dialect: str, event: str, **fields: Any) -> bytes:
    """A message of the application."""
    return msgspec.json.encode({"event": event} | fields)


class Side:
    """A session of one of the two, and all that comes out of it."""

    def __init__(self, modules: dict[str, ModuleType], changes: dict[str, Any]) -> None:
        self._modules = modules
        self._now = itertools.count()
        self.out: list[object] = []
        spec, dialect = self._opened(changes)
        self.session = modules["session"].Session(
            spec,
            dialect,
            self.out.append,
            lambda *note: self.out.append(note),
            None,
            lambda *told: self.out.append(told),
        )
        self.session.open()

    def _opened(self, changes: dict[str, Any]) -> tuple[Any, Any]:
        kind = self._modules["callspec"].CallSpec
        spec = msgspec.convert(msgspec.to_builtins(call_spec(**changes)), kind)
        return spec, self._modules["dialects"].open_dialect(spec)

    def do(self, step: tuple[Any, ...]) -> object:
        session = self.session
        match step:
            case ("caller", payload):
                session.caller_audio(payload)
            case ("app", message):
                session.app_text(message)
            case ("tick", missed):
                return bytes(session.tick(missed))
            case ("digit",):
                session.digit("5")
            case ("backlog", frames):
                return session.caller_backlog(frames)
            case ("blocked", blocked):
                session.app_blocked = blocked
            case ("prompt", frames):
                session.play(iter(frames), lambda: self.out.append("over"))
            case ("release",):
                session.release()
            case ("lost",):
                session.lost()
            case ("open",):
                session.open(self.out.append)
            case ("switch", changes):
                session.switch(*self._opened(changes), self._modules["durations"].TurnTimes())
            case ("stop",):
                session.stop("callended")
            case ("recorder", rate):
                recorder = self._modules["recording.recorder"].Recorder
                put = lambda block: self.out.append((block.first_tick, block.sent, block.heard))  # noqa: E731
                session.recorder = recorder(rate, put, lambda: next(self._now)) if rate else None
        return None

    def state(self) -> list[dict[str, Any]]:
        session = self.session
        parts = [session, session.playout, session.turns, session.turns._floor, session._dialect._messages]
        return [state(part, names) for part, names in zip(parts, ATTRIBUTES, strict=True)] + [
            msgspec.to_builtins(session.figures()),
            list(session._dialect.oddities.items()),
        ]


def _attributes() -> tuple[tuple[str, ...], ...]:
    session = Side(BOTH[1], {}).session
    parts = [session, session.playout, session.turns, session.turns._floor, session._dialect._messages]
    return tuple(slots(type(part)) for part in parts)


ATTRIBUTES = _attributes()


class Line:
    """A leg of one of the two on a real socket, whose other end is Asterisk's; its transport writes what it can."""

    def __init__(self, modules: dict[str, ModuleType]) -> None:
        self.here, self.there = socket.socketpair()
        for end in (self.here, self.there):
            end.setblocking(False)
        self.here.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # the least that there is
        self.buffer = b""
        self.got = b""
        self.told: list[object] = []
        self.leg = modules["legs.audiosocket"].AudioSocketLeg(self, self)
        self.leg.connection_made(self)
        self.leg.data_received(b"\x01\x00\x10" + bytes(16))

    # What the leg asks of its transport, its clock and its owner

    def get_extra_info(self, name: str) -> Any:
        return self if name == "socket" else None

    def fileno(self) -> int:
        return self.here.fileno()

    def setsockopt(self, *option: int) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return len(self.buffer)

    def write(self, data: bytes) -> None:
        self.buffer += data
        self.flush()

    def flush(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self.buffer:
                self.buffer = self.buffer[self.here.send(self.buffer) :]

    def pause_reading(self) -> None:
        pass

    def close(self) -> None:
        self.told.append("closed")

    abort = close

    def add(self, tick: object) -> tuple[int, int]:
        return 0, 0

    def remove(self, ticking: tuple[int, int]) -> None:
        pass

    def leg_connected(self, leg: object) -> None:
        pass

    def leg_identified(self, leg: object, uuid: str) -> None:
        self.told.append(uuid)

    # The other end

    def read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                self.got += self.there.recv(65536)

    def end(self) -> None:
        self.leg.connection_lost(None)
        self.here.close()
        self.there.close()

    def leg_closed(self, leg: object) -> None:
        self.told.append("over")
