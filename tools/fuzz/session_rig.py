"""One session and what it says, held to the rules of docs/media-leg.md and the dialects' pages after every step.

Held: sequence numbers and chunks have no gap; audio is sent whole, in order, and its timestamp is its place in the
call; a tick gives whole frames and not too many; a mark comes back once and in order; every frame of the caller is
sent, waiting, or counted as dropped.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from typing import Any

import msgspec

from audiosocket.callspec import CallSpec, MediaFormat
from audiosocket.dialects import DIALECTS, open_dialect
from audiosocket.g711 import silent_frame
from audiosocket.session import CATCH_UP_FRAMES, GAP_TICKS, LATE_TICKS, MAX_PENDING_MARKS, STALL_TICKS, Session

LEG_FRAME_BYTES = {
    MediaFormat.SLIN: 320,
    MediaFormat.ULAW: 160,
    MediaFormat.ALAW: 160,
    MediaFormat.SLIN16: 640,
    MediaFormat.SLIN24: 960,
}


class SessionRig:
    """A session of the call that `spec` describes; its stream is open."""

    def __init__(self, spec: CallSpec) -> None:
        self._spec = spec
        self._dialect = open_dialect(spec)
        self._platform = DIALECTS[spec.dialect]
        self._first_ms = -1
        rate = spec.media_format.sample_rate
        self._silence_bytes = len(silent_frame(self._dialect.encoding, rate))  # 20 ms
        self._samples = rate // 50
        self._sequence = self._chunk = 0
        self._returned: list[str] = []
        self._asked: list[str] = []
        self._marks = 0
        self._caller_frames = 0
        self._due_bytes = 0  # of caller audio, silence in its gaps included: where the stream must stand
        self._sent_bytes = 0
        self._slow_bytes = 0  # of them, what was dropped because the application is slow
        self._gap = 0
        self.session = Session(spec, self._dialect, self._sent, lambda event, detail: None)
        self.session.open()

    # The application

    def app_audio(self, audio: bytes) -> None:
        """One media message."""
        self._app(self._platform.media, media={"payload": b64encode(audio).decode()})

    def app_mark(self) -> None:
        """The next mark."""
        self._marks += 1
        ignored = self.session._ignored.get("too_many_marks", 0)
        name = f"m{self._marks}"
        wrapped = self._platform.mark_name == "mark.name"
        self._app(self._platform.mark, name, **({"mark": {"name": name}} if wrapped else {"name": name}))
        if self.session._ignored.get("too_many_marks", 0) > ignored:
            assert len(self._asked) > MAX_PENDING_MARKS
            self._asked.pop()

    def app_clear(self) -> None:
        """A clear."""
        dropped = self.session.playout.pending_marks
        self._app(self._platform.clear)
        assert self.session.playout.depth_bytes == self.session.playout.pending_marks == 0
        if dropped and not self._dialect.marks_on_clear:
            del self._asked[-dropped:]

    def app_garbage(self, message: bytes) -> None:
        """Anything. A mark in it is forbidden: its name would not be one of ours."""
        if b"mark" not in message and b"checkpoint" not in message and b"\\" not in message:
            clears = self.session.clears
            dropped = self.session.playout.pending_marks
            self.session.app_text(message)
            if self.session.clears > clears and dropped and not self._dialect.marks_on_clear:
                del self._asked[-dropped:]

    def block(self, blocked: bool) -> None:
        """The application's socket takes no more, or takes again."""
        self.session.app_blocked = blocked

    # The caller

    def caller_audio(self, size: int) -> None:
        """A frame of `size` bytes on the leg."""
        self._caller_frames += 1
        self._gap = 0
        samples = size if self._spec.media_format in (MediaFormat.ULAW, MediaFormat.ALAW) else size // 2
        self._due_bytes += samples * self._silence_bytes // self._samples
        self.session.caller_audio(b"\x55" * size)
        self._audio_is_whole()

    def caller_burst(self, frames: int) -> None:
        """So many frames of 20 ms arrive in one piece."""
        session = self.session
        since = session.ticks - session._filled_tick
        owed = session._owed if since <= LATE_TICKS else 0
        if session._caller_frames - session._filled_frames + frames - since <= STALL_TICKS:
            owed = 0  # he was silent: these are new
        stale = session.caller_backlog(frames)
        assert 0 <= stale < max(2, frames)
        self._caller_frames += stale
        skipped = stale - min(stale, owed)
        self._due_bytes += skipped * self._silence_bytes
        self._sent_bytes += skipped * self._silence_bytes
        for _ in range(frames - stale):
            self.caller_audio(LEG_FRAME_BYTES[self._spec.media_format])

    def digit(self, digit: str) -> None:
        """A key."""
        self.session.digit(digit)

    # Time

    def tick(self, missed: int = 0) -> None:
        """A tick, after so many that were missed."""
        out = self.session.tick(missed)
        silence, header = self.session.linear.silence, self.session.linear.header
        frames, rest = divmod(len(out), len(silence))
        assert rest == 0
        assert 1 <= frames <= 1 + min(missed, CATCH_UP_FRAMES)
        assert all(out.startswith(header, at) for at in range(0, len(out), len(silence)))
        if missed:
            self._gap = 0
        for _ in range(frames):
            self._gap += 1
            if self._gap >= GAP_TICKS:
                self._due_bytes += self._silence_bytes * (GAP_TICKS if self._gap == GAP_TICKS else 1)
        self._audio_is_whole()
        assert self.session.marks_sent == len(self._returned)

    def settle(self) -> None:
        """The application says no more: in the end no mark is missing."""
        for _ in range(self.session.playout.depth_bytes // self.session.linear.frame_bytes + 8):
            self.tick()
        assert self._returned == self._asked
        assert self.session.tick(0) == self.session.linear.silence
        figures = self.session.figures()
        assert figures.caller_frames == self._caller_frames
        assert (figures.marks_received, figures.marks_sent) == (self._marks, len(self._returned))

    # What the session says

    def _app(self, event: str, asked: str = "", **body: Any) -> None:
        if asked:
            self._asked.append(asked)
        self.session.app_text(msgspec.json.encode({"event": event} | body))

    def _sent(self, message: bytes) -> None:
        said = msgspec.json.decode(message)
        event = said["event"]
        if event == "connected":
            return
        self._sequence += 1
        assert int(said.get("sequence_number", said.get("sequenceNumber"))) == self._sequence
        if event == self._platform.returned:
            self._returned.append(said.get("mark", said)["name"])
            assert self._returned[-1] == self._asked[len(self._returned) - 1], "a mark out of order"
        elif event == "media":
            self._chunk += 1
            media = said["media"]
            assert int(media["chunk"]) == self._chunk
            payload = b64decode(media["payload"], validate=True)
            assert len(payload) == self._dialect.frame_bytes
            per_ms = self._silence_bytes // 20
            # Stale audio is dropped in frames of 20 ms, of which a longer message holds several.
            if self._first_ms < 0:
                self._first_ms = int(media["timestamp"]) - (self._sent_bytes + self._slow_bytes) // per_ms
            at_ms = int(media["timestamp"]) - self._first_ms
            place = self._sent_bytes + self._slow_bytes - at_ms * per_ms
            assert 0 <= place < self._dialect.frame_bytes
            self._sent_bytes += len(payload)

    def _audio_is_whole(self) -> None:
        dropped = self.session._dropped.get("app_slow", 0)
        self._slow_bytes = dropped * self._dialect.frame_bytes
        assert 0 <= self._due_bytes - self._sent_bytes - self._slow_bytes < self._dialect.frame_bytes
