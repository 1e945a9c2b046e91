"""One call's media, without IO: caller audio becomes messages, messages become frames for the caller.

A session is as long as its media leg and may see several streams, one after the other, and a prompt at the end; the
caller's side keeps its 20 ms throughout.

The shell calls in (`caller_audio`, `digit`, `app_text`, `tick`), and what has to leave goes out through two callables
given at the start: `send` for messages to the application, `note` for the call's story. A tick is 20 ms on the
worker's clock; time is counted in ticks. Both ways have the sample rate of the call's media format (`linear`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from audiosocket.callspec import CallSpec, NoticeEvent
from audiosocket.carried import Carried
from audiosocket.compiled import usual
from audiosocket.dialects.base import Clear, Dialect, Digits, Ignored, Mark
from audiosocket.durations import TurnTimes
from audiosocket.g711 import CONVERTERS, SAMPLES, Encoding, silent_frame
from audiosocket.playout import Playout
from audiosocket.recording.recorder import Recorder
from audiosocket.turns import Turns
from audiosocket.wire import FRAME_MS, LINEAR

CATCH_UP_FRAMES = 2
"""Frames that a late tick may hand out besides its own: 40 ms, which every jitter buffer holds."""
STALE_FRAMES = 10
"""Of caller audio that arrives in one piece after a stall, what is kept: the latest 200 ms."""
STALL_TICKS = 3
"""From so many missed ticks, or more backlogged frames, on a stall is counted and its delay worked off at once."""
GAP_TICKS = 5
"""After 100 ms without a frame from the caller (RTP loss, hold, a digit being pressed) silence takes its place, from
the start of the gap on: applications expect a continuous stream."""
LATE_TICKS = 50
"""After a gap the frames that are missing may come yet, bit by bit (TCP behind a link that stood still). Where within a
second more come than time passes, what silence has taken the place of is late by that much, and all but the latest
200 ms of it is dropped."""
MAX_PENDING_MARKS = 10_000
MAX_MARK_CHARACTERS = 1_048_576
"""Of the names of all pending marks together."""
DIGIT_TICKS = 10
"""What Asterisk takes to send the caller a digit: 100 ms, and a pause of 100 ms."""
MAX_DIGITS = 64
"""Digits that may wait to be sent to the caller. Each message of them goes through the controller, and Asterisk sends
them to the end, whether the caller is still there or not."""

_NOT_HEARD = Ignored("one_way")


def _unheard(message: bytes) -> Ignored:
    return _NOT_HEARD


def _nothing() -> None:
    return None


def nowhere(message: bytes) -> None:
    """Where messages go while no stream is open."""


@usual(
    "caller_audio",
    "caller_backlog",
    "app_text",
    "tick",
    CATCH_UP_FRAMES=CATCH_UP_FRAMES,
    GAP_TICKS=GAP_TICKS,
    LATE_TICKS=LATE_TICKS,
    STALE_FRAMES=STALE_FRAMES,
    STALL_TICKS=STALL_TICKS,
)
class Session(Carried):
    """See the module's text. `app_blocked` is set by the shell while the application's socket takes no more."""

    __slots__ = (
        "_before",
        "_caller_heard",
        "_decode",
        "_digits_sent_at",
        "_digits_to_caller",
        "_instant_mark",
        "_joined_by",
        "_mark_characters",
        "_next_frame",
        "_not_spoken",
        "_note",
        "_notify",
        "_one_way",
        "_prompt_over",
        "_silence",
        "_spoken",
        "_stale_rest",
        "answered",
        "began",
        "media_format",
    )

    def __init__(
        self,
        spec: CallSpec,
        dialect: Dialect,
        send: Callable[[bytes], None],
        note: Callable[[str, dict[str, Any]], None],
        times: TurnTimes | None = None,
        notify: Callable[[NoticeEvent, str], None] | None = None,
    ) -> None:
        """`notify` is told what the controller is to know at once: (`speaking`, ""), (`digits`, the digits)."""
        rate = spec.media_format.sample_rate
        playout = Playout(spec.playout_max_seconds, rate, spec.fade_ms)
        super().__init__(dialect, playout, Turns(spec.media_format, times or TurnTimes()), LINEAR[rate])
        self._header = self.linear.header
        self._silence_frame = self.linear.silence
        self.media_format = spec.media_format
        self._send = send
        self._note = note
        self._notify = notify
        self._open = False
        self._flowing = False  # the caller's frames reach the application: open, and the first one has come
        self._before = "before_start"
        self._caller_heard = False
        self._spoken = False
        self._not_spoken = b""  # of the application's audio, what is no frame yet
        self._prompt: Iterator[bytes] | None = None
        self._prompt_over = _nothing
        self._gap_ticks = 0
        self._instant_mark = -1
        self._digits_sent_at = 0  # the tick at which the caller has been sent all of them
        self._held_marks: list[str] = []
        self._mark_characters = 0
        self._stall_tick = -GAP_TICKS - 1
        self._stall_frames = 0
        self._owed = 0  # of the caller's frames that silence has taken the place of, those that may come yet
        self._filled_tick = 0
        self._filled_frames = 0
        self.recorder: Recorder | None = None
        self.answered = not spec.held
        """Whether the caller is: he can be refused with a code of SIP's otherwise, and hears nothing."""
        self.held = spec.held or spec.joining_seconds > 0
        """Whether nothing is played, for nobody would hear it."""
        self._joined_by = round(spec.joining_seconds * 1000 / FRAME_MS)
        self._next_frame: Callable[[], bytes | None] = self.playout.tick
        if self.held:
            self._next_frame = _nothing if spec.held else self._join
        self.app_blocked = False
        self.began = 0
        """The tick from which the application's first audio is waited for."""
        self.first_audio = False
        self.ticks = 0
        self.adopt(spec, dialect)

    # Streams, one after the other

    def open(self, send: Callable[[bytes], None] | None = None) -> None:
        """The application's WebSocket is open: the stream starts. `send` takes its messages from now on."""
        if send is not None:
            self._send = send
        for message in self._dialect.opening():
            self._emit(message)
        self._open = True
        self._before = "between_streams"
        self._gap_ticks = 0
        self.began = self.ticks

    def lost(self) -> None:
        """The stream is over, and there is nobody to tell."""
        self._open = self._flowing = False

    def let_go(self) -> None:
        """The call is over: its last stream is not referred to any more, nor is this by itself."""
        self._send = nowhere
        self._next_frame = _nothing

    def switch(self, spec: CallSpec, dialect: Dialect, times: TurnTimes) -> None:
        """Another application takes over: what the one before has left is dropped. The stream starts at `open`."""
        self._drop_stream(times)
        self.playout.serve(spec.playout_max_seconds, spec.fade_ms)
        for reason, count in self._dialect.oddities.items():
            self.ignore(reason, count)
        self.adopt(spec, dialect)

    def play(self, frames: Iterator[bytes], over: Callable[[], None]) -> None:
        """A prompt takes the application's place; `over` is called at the tick after its last frame."""
        self._drop_stream(TurnTimes())
        self._prompt = frames
        self._prompt_over = over

    def release(self) -> None:
        """The caller has been answered and is bridged: what has been held back is played."""
        if self.held:
            self.held = False
            self._next_frame = self.playout.tick
            self.began = self.ticks
            if not self.answered:
                self.answered = True
                self._note("released", {})

    def adopt(self, spec: CallSpec, dialect: Dialect) -> None:
        """What the stream that is to be opened speaks."""
        self._dialect = dialect
        self._media = dialect.media
        self._decode: Callable[[bytes], object] = _unheard if spec.one_way else dialect.decode
        self._convert = CONVERTERS[dialect.encoding][self.media_format]
        self._samples = SAMPLES[dialect.encoding].get(self.media_format)
        self._app_samples = SAMPLES[Encoding.PCM16]["ulaw" if dialect.encoding is Encoding.ULAW else "slin"]
        self._usual_sid = None if spec.one_way else dialect.usual_sid
        self._silence = silent_frame(dialect.encoding, self.media_format.sample_rate)
        self._frame_bytes = dialect.frame_bytes
        self._one_way = spec.one_way
        self._digits_to_caller = spec.digits_to_caller
        self._rest = b""
        self._stale_rest = 0

    def _drop_stream(self, times: TurnTimes) -> None:
        self.lost()
        self._ended_bytes += self.playout.depth_bytes
        self.playout.clear()
        self._held_marks.clear()
        self._mark_characters = 0
        self.app_blocked = False
        self.turns.switch(self.ticks, times)

    # From the caller to the application

    def caller_backlog(self, frames: int) -> int:
        """Audio frames have arrived in one piece: how many of them, the oldest, are too old to be passed on."""
        since = self.ticks - self._filled_tick
        owed = self._owed if since <= LATE_TICKS else 0
        self._owed = max(0, owed - frames + 1)
        if self._caller_frames - self._filled_frames + frames - since <= STALL_TICKS:
            owed = 0  # he was silent, and speaks again: after a digit, on hold, at a pause
        if frames <= STALL_TICKS and not owed:
            if frames > 1 and self.ticks > GAP_TICKS:
                self.playout.note_stall(frames - 1)
            return 0
        if self.ticks > GAP_TICKS:
            self._note_stall(max(frames, owed))
        stale = max(0, frames - STALE_FRAMES, min(frames - 1, owed - STALE_FRAMES))
        if stale:
            self._drop("stale", stale)
            self._caller_frames += stale
            if self._open:
                # A message may hold several frames: what does not make one up counts with the next that are stale.
                # What silence has been sent for has had its time.
                skipped = stale - min(stale, owed)
                messages, self._stale_rest = divmod(self._stale_rest + skipped, self._frame_bytes // len(self._silence))
                self._dialect.skip(messages)
        return stale

    @property
    def caller_late(self) -> bool:
        """Nothing has come from the caller for so long that at the next tick silence takes its place."""
        return self._gap_ticks >= GAP_TICKS - 1

    @property
    def may_coalesce(self) -> bool:
        """Whether the caller's frames may be read two at a time: nobody asks when exactly each of them came."""
        return self._open and self._flowing and self.recorder is None and not self.caller_late

    def caller_audio(self, payload: bytes) -> None:
        """One audio frame from Asterisk, in the call's media format; any length."""
        self._caller_frames += 1
        self._gap_ticks = 0
        if self.recorder is not None:
            self.recorder.heard(payload)
        if not self._flowing and not self._flow():
            return
        turns = self.turns
        if turns.heard is None:
            turns.heard = payload
        else:
            turns.hear_more(payload)
        audio = self._convert(payload)
        if len(audio) == self._frame_bytes and not self._rest and not self.app_blocked:
            self._sent += 1
            self._send(self._media(audio))
            return
        # Another ptime than the application's: cut anew, nothing lost.
        self._cut(self._rest + audio)

    def _flow(self) -> bool:
        """A frame of the caller's, which may be the first: whether it reaches the application."""
        self.release()
        if not self._open:
            self._drop(self._before, 1)
            return False
        self._flowing = True
        if not self._caller_heard:
            self._caller_heard = True
            self._note("first_caller_audio", {})
        return True

    def digit(self, digit: str) -> None:
        """A DTMF digit of the caller."""
        self.digits += 1
        self.turns.digit(self.ticks)
        if self._open and not self._one_way:
            self._emit(self._dialect.dtmf(digit))
            self._note("dtmf", {})  # not which: it may be part of a card number
        elif not self._open:
            self._note("dtmf_unheard", {})  # like the audio around it: platforms have digits in streams only

    def stop(self, reason: str) -> None:
        """The stream ends from our side; `reason` in the platform's words (`callended`, `stopped`)."""
        if self._open:
            self._emit(self._dialect.stop(reason))
            self.lost()

    # From the application to the caller

    def app_text(self, message: bytes) -> None:
        """A text message of the application. What cannot be used is counted and ignored: the call goes on."""
        asked = self._decode(message)
        if type(asked) is bytes:
            self._media_received += 1
            self.bytes_received += len(asked)
            self.playout.push(asked)
            if not self.answered and not self._spoken and self._speaks(asked):
                self._spoken = True
                self._tell("speaking")
        elif type(asked) is Mark:
            self._mark(asked.name)
        elif type(asked) is Clear:
            self.clears += 1
            self._note("clear", {"dropped_ms": self.playout.depth_ms})
            dropped = self.playout.clear()
            self.turns.cleared()
            if self._dialect.marks_on_clear:
                if self._held_marks:
                    self._held_marks += dropped  # behind those that were asked for before them
                else:
                    for name in dropped:
                        self._send_mark(name)
            else:
                self._mark_characters -= sum(map(len, dropped))
            if self._open:
                self._emit(self._dialect.cleared())
        elif type(asked) is Ignored:
            self.ignore(asked.reason)
        elif type(asked) is Digits:
            self._digits(asked.digits)

    def _speaks(self, audio: bytes) -> bool:
        # In frames, as it would be played: many applications stream silence from their handshake on.
        audio, size = self._not_spoken + audio, self.linear.frame_bytes
        whole = len(audio) - len(audio) % size
        self._not_spoken = audio[whole:]
        return any(self.turns.is_audible(audio[at : at + size]) for at in range(0, whole, size))

    def _digits(self, digits: str) -> None:
        if not self._digits_to_caller:
            self.ignore("dtmf_off")
            return
        sent_at = max(self._digits_sent_at, self.ticks) + len(digits) * DIGIT_TICKS
        if sent_at - self.ticks > MAX_DIGITS * DIGIT_TICKS:
            self.ignore("too_many_digits")
            return
        self._digits_sent_at = sent_at
        self._note("digits_to_caller", {"count": len(digits)})  # not which
        self._tell("digits", digits)

    def _tell(self, event: NoticeEvent, digits: str = "") -> None:
        if self._notify is not None:
            self._notify(event, digits)

    def tick(self, missed: int) -> bytes:
        """What Asterisk gets now: one frame, or a few after `missed` ticks. Never nothing: that would freeze it."""
        self.ticks += 1
        frames = self._late_tick(missed) if missed else self._tick()
        if self.recorder is not None:
            self.recorder.tick(missed, frames)
        return frames

    def _tick(self) -> bytes:
        playout = self.playout
        if playout.marks or self._held_marks:
            self._due_marks()
        if self._open:
            self._gap_ticks = gap = self._gap_ticks + 1
            if gap >= GAP_TICKS:
                self._fill(GAP_TICKS if gap == GAP_TICKS else 1)
                self._owed = gap
                self._filled_tick = self.ticks
                self._filled_frames = self._caller_frames
        frame = self._next_frame()
        self.turns.tick(self.ticks, frame)
        if frame is None:
            return self._nothing_played()
        if not self.first_audio:
            self.first_audio = True
            self._note("first_app_audio", {})
        return self._header + frame

    def _join(self) -> bytes | None:
        # Nobody says that the leg is joined. A caller whose telephone sends nothing hears what there is even so.
        if self.ticks < self._joined_by:
            return None
        self.release()
        return self.playout.tick()

    def _nothing_played(self) -> bytes:
        playout = self.playout
        if self._prompt is not None and not self.held and not playout.cut_off:
            return self._prompt_frame(self._prompt)
        self.silence_played += 1
        if playout.cut_off:
            return self._header + playout.take_cut_off()
        return self._silence_frame

    def _prompt_frame(self, prompt: Iterator[bytes]) -> bytes:
        frame = next(prompt, None)
        if frame is None:
            self._prompt = None
            self.silence_played += 1
            self._prompt_over()
            return self._silence_frame
        self.prompt_played += 1
        return self._header + frame

    def _late_tick(self, missed: int) -> bytes:
        self.ticks += missed
        self.ticks_late += 1
        self._gap_ticks = 0  # what the caller has sent meanwhile may lie unread: that this process was late is no gap
        if missed >= STALL_TICKS:
            self._note_stall(missed)
        else:
            self.playout.note_stall(missed)
        frames = [self._tick()]
        for _ in range(min(missed, CATCH_UP_FRAMES)):
            # Only audio is worth catching up with; the caller hears silence soon enough.
            if self.playout.depth_bytes < self.linear.frame_bytes:
                break
            frames.append(self._tick())
        return b"".join(frames)

    def _note_stall(self, frames: int) -> None:
        # A freeze of ours shows twice: as missed ticks and, right after, as a backlog from Asterisk.
        if self.ticks - self._stall_tick <= GAP_TICKS:
            frames, self._stall_frames = max(0, frames - self._stall_frames), max(frames, self._stall_frames)
        else:
            self.stalls += 1
            self._stall_frames = frames
        self._stall_tick = self.ticks
        self.playout.note_stall(frames)

    def _fill(self, frames: int) -> None:
        self._cut(self._rest + self._silence * frames)

    def _cut(self, audio: bytes) -> None:
        size = self._frame_bytes
        whole = len(audio) - len(audio) % size
        for at in range(0, whole, size):
            self._send_frame(audio[at : at + size])
        self._rest = audio[whole:]

    def _send_frame(self, audio: bytes) -> None:
        if self.app_blocked:
            self._drop("app_slow", 1)
            self._dialect.skip(1)
            return
        self._sent += 1
        self._send(self._media(audio))

    def _emit(self, message: bytes) -> None:
        if message:  # some protocols have none for this
            self._sent += 1
            self._send(message)

    def _mark(self, name: str) -> None:
        self.marks_received += 1
        pending = self.playout.pending_marks + len(self._held_marks)
        if pending >= MAX_PENDING_MARKS or self._mark_characters + len(name) > MAX_MARK_CHARACTERS:
            self.ignore("too_many_marks")
            return
        self._mark_characters += len(name)
        if self.playout.mark(name):
            # Nothing is before it. One instant echo a tick: an application that answers every echo with a mark (one
            # of Exotel's own samples does) would spin for ever.
            if self.held or self._held_marks or self._instant_mark == self.ticks:
                self._held_marks.append(name)
            else:
                self._instant_mark = self.ticks
                self._send_mark(name)

    def _due_marks(self) -> None:
        if self.held:
            return
        held, self._held_marks = self._held_marks, []
        if held:
            self._instant_mark = self.ticks  # they are this tick's
        for name in held:
            self._send_mark(name)
        for name in self.playout.due_marks():
            self._send_mark(name)

    def _send_mark(self, name: str) -> None:
        self.marks_sent += 1
        self._mark_characters -= len(name)
        if self._open:
            self._emit(self._dialect.mark(name))
