"""Who talks when in a call, and how long the application takes: turns, response times, barge-ins, talk ratios.

Both sides are heard where the worker sits: the caller's frames as they come in, the application's as they are handed to
Asterisk. Time is counted in ticks of 20 ms and given as an argument; what is told is right to 20 ms there
(docs/response-time.md says what the way to the caller adds).

- The caller *speaks* from the first of at least 60 ms of loud frames to the last loud frame before 200 ms without one.
  What is loud follows the line's noise (see `audiosocket.loudness`). A sound that turns out to be steady and one that
  turns out to be a DTMF digit's are no speech.
- An application's *utterance* begins with the first audible frame that is played. It ends with its last audible frame:
  at a `clear`, after 200 ms of nothing to play, or after 1 s of silence being played.
- A *turn* is what the caller says until the application replies. A pause of up to 2 s without a reply is part of it;
  after a longer one the turn is *unanswered*, be it that the caller speaks again or that the call ends.
- *Response time*: from the end of the turn to the first utterance that begins after it. An utterance that begins while
  the caller is speaking is an *interruption* and has no response time; if it goes on at the end of the turn, the turn
  waits for nothing more.
- *Barge-in*: the caller starts to speak during an utterance. The reaction is the time from there to the utterance's
  end. An utterance that is still going on 2 s after the caller has finished has *ignored* it: the barge-in has no
  reaction, and the turn waits for no reply.
- *Talk* of a side is the time of its talkspurts, pauses of up to 200 ms included; *both* is when the two overlap.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from audiosocket.callspec import MediaFormat
from audiosocket.compiled import FRAMES, usual
from audiosocket.durations import Durations, TurnTimes
from audiosocket.loudness import LEVELS, SHARE, UPPER_QUIET, NoiseFloor

TICK_MS = 20
START_SAMPLES = 480
"""60 ms of loud frames: speech, and no click. Of wider bands so many samples are looked at as at 8 kHz."""
PAUSE_TICKS = 10
"""Without a loud frame for 200 ms a talkspurt is over."""
SILENCE_TICKS = 50
"""An application may pause for 1 s in what it plays; a longer pause is the end of its utterance."""
PATIENCE_TICKS = 100
"""2 s: the pause that a caller may make within a turn, and the time that an application has to give way."""
DIGIT_TICKS = 25
"""A talkspurt that began within the 500 ms before a digit was reported is the digit's own sound."""
AUDIBLE_SAMPLES = 6
"""Of every third sample of a frame of the application's (at 8 kHz, 54 in all), so many are loud when it is heard."""
LOOK_TICKS = 5
"""Every fifth frame of the caller is looked at for the noise floor."""

_NEVER = -1_000_000


if TYPE_CHECKING or FRAMES is None:

    class TurnsState:
        """What a tick reads and writes, where nothing is compiled."""

        __slots__ = (
            "_app_last",
            "_app_start",
            "_barge_in_start",
            "_caller_last",
            "_caller_start",
            "_earlier",
            "_floor",
            "_played_step",
            "_run",
            "_speaking",
            "_steady",
            "_upper_bytes",
            "_upper_step",
            "_uttering",
            "app_ticks",
            "both_ticks",
            "caller_ticks",
            "heard",
        )

else:
    TurnsState = FRAMES.Turns


@usual(
    "tick",
    AUDIBLE_SAMPLES=AUDIBLE_SAMPLES,
    LEVEL_COUNT=len(LEVELS),
    LOOK_TICKS=LOOK_TICKS,
    NEVER=_NEVER,
    PAUSE_TICKS=PAUSE_TICKS,
    SHARE=SHARE,
    SILENCE_TICKS=SILENCE_TICKS,
)
class Turns(TurnsState):
    """See the module's text. The session leaves each caller frame in `heard` (through `hear_more` if one lies there),
    then calls `tick`. Figures only grow."""

    __slots__ = (
        "_played_look",
        "_run_last",
        "_run_start",
        "_turn_end",
        "_utterance_start",
        "_waiting",
        "barge_ins",
        "barge_ins_ignored",
        "interruptions",
        "responses",
        "turns",
        "unanswered",
    )

    def __init__(self, media_format: str, times: TurnTimes) -> None:
        rate = MediaFormat(media_format).sample_rate
        linear = media_format == "slin" or rate != 8000
        self._floor = NoiseFloor("slin" if linear else media_format)
        # Upper bytes at 8000 a second, whatever the rate: how loud a frame is does not hang on how many there are.
        self._upper_step = rate // 4000 if linear else 0
        self._upper_bytes = slice(1, None, self._upper_step) if linear else None
        self._played_step = 3 * rate // 4000
        self._played_look = slice(1, None, self._played_step)
        self._earlier: deque[bytes] = deque(maxlen=PAUSE_TICKS)
        # Loud frames that may become a talkspurt: their samples, and the ticks of the first and the last.
        self._run = 0
        self._run_start = self._run_last = _NEVER
        # The caller's latest talkspurt.
        self._speaking = False
        self._steady = False
        self._caller_start = self._caller_last = _NEVER
        # The application's latest talkspurt, and its latest utterance, which may be made of several.
        self._app_start = self._app_last = _NEVER
        self._uttering = False
        self._utterance_start = _NEVER
        # Whether a turn has ended and waits for a reply; where it ended.
        self._waiting = False
        self._turn_end = _NEVER
        self._barge_in_start = _NEVER
        self.heard: bytes | None = None
        self.responses = Durations(times.response)
        self.barge_ins = Durations(times.barge_in)
        self.turns = 0
        self.unanswered = 0
        self.interruptions = 0
        self.barge_ins_ignored = 0
        self.caller_ticks = 0
        self.app_ticks = 0
        self.both_ticks = 0

    def is_audible(self, played: bytes) -> bool:
        """Whether something is heard of a frame of the application's (PCM16)."""
        return len(played[self._played_look].translate(None, UPPER_QUIET)) >= AUDIBLE_SAMPLES

    def hear_more(self, frame: bytes) -> None:
        """A further frame of the caller within one tick: those before it belong to the ticks before."""
        assert self.heard is not None
        self._earlier.append(self.heard)
        self.heard = frame

    def tick(self, now: int, played: bytes | None) -> None:
        """One tick: what has been heard since the last one, and the application's frame that is played (PCM16)."""
        heard = self.heard
        if heard is not None:
            self.heard = None
            if self._earlier:
                while self._earlier:
                    self._hear(now - len(self._earlier), self._earlier.popleft())
            self._hear(now, heard)
        elif self._speaking and now - self._caller_last >= PAUSE_TICKS:
            self._pause()
        if played is not None and self.is_audible(played):
            self._audible(now)
        elif self._uttering:
            quiet = now - self._app_last
            if quiet >= PAUSE_TICKS and (played is None or quiet >= SILENCE_TICKS):
                self._hush()

    def cleared(self) -> None:
        """The application has asked for what is left of its audio to be dropped."""
        if self._uttering:
            self._hush()

    def digit(self, now: int) -> None:
        """A DTMF digit of the caller has ended: what was heard of it was no speech."""
        self._run = 0
        if self._speaking and now - self._caller_start <= DIGIT_TICKS:
            self._retract()

    def end(self, now: int) -> None:
        """The call is over. A turn whose reply had less than 2 s to come is not called unanswered."""
        if self._speaking:
            self._pause()
        if self._waiting and now - self._turn_end > PATIENCE_TICKS:
            self.unanswered += 1
        self._waiting = False

    def switch(self, now: int, times: TurnTimes) -> None:
        """The application has gone: nothing is owed by the one that takes over, whose times go into `times`."""
        self.cleared()
        self.end(now)
        self._run = 0
        self.heard = None
        self._earlier.clear()
        self.responses.share(times.response)
        self.barge_ins.share(times.barge_in)

    # The caller

    def _hear(self, at: int, frame: bytes) -> None:
        if self._upper_bytes is not None:
            frame = frame[self._upper_bytes]
        samples = len(frame)
        if not samples:
            return
        floor = self._floor
        loud = len(frame.translate(None, floor.quiet_off if self._speaking else floor.quiet_on))
        if loud * SHARE >= samples:
            if not self._speaking:
                self._start(at, samples)
            elif at > self._caller_last:
                last, self._caller_last = self._caller_last, at
                self.caller_ticks += at - last
                if self._app_last > last:
                    self._overlap(last, at, self._app_start, self._app_last)
        elif self._speaking:
            floor.dip(frame)
            if at - self._caller_last >= PAUSE_TICKS:
                self._pause()
        else:
            self._run = 0
        if not at % LOOK_TICKS and floor.look(at, frame):
            self._steady = True

    def _start(self, at: int, samples: int) -> None:
        if not self._run or at - self._run_last >= PAUSE_TICKS:
            self._run, self._run_start = 0, at
        self._run += samples
        self._run_last = at
        if self._run < START_SAMPLES:
            return
        self._run = 0
        self._speaking = True
        self._steady = False
        self._caller_start, self._caller_last = self._run_start, at
        self.caller_ticks += at - self._run_start + 1
        self._overlap(self._run_start - 1, at, self._app_start, self._app_last)
        if self._uttering and self._utterance_start < self._caller_start and self._barge_in_start == _NEVER:
            self._barge_in_start = self._caller_start

    def _pause(self) -> None:
        if self._steady:
            self._retract()
            return
        self._speaking = False
        start, end = self._caller_start, self._caller_last
        if self._waiting and start - self._turn_end > PATIENCE_TICKS:
            self._waiting = False
            self.unanswered += 1
        if not self._waiting:
            self.turns += 1
        self._waiting = True
        self._turn_end = end
        if self._utterance_start > end:
            self._reply()  # it began within the time that it took to be sure of the pause
        elif self._utterance_start >= start:
            self.interruptions += 1
            self._waiting = not self._uttering

    def _retract(self) -> None:
        self._speaking = self._steady = False
        if self._barge_in_start >= self._caller_start:
            self._barge_in_start = _NEVER
        if self._waiting and self._utterance_start > self._turn_end:
            self._reply()

    # The application

    def _audible(self, at: int) -> None:
        last = self._app_last
        if at - last > PAUSE_TICKS:
            if self._uttering and not self._speaking and self._caller_start > last:
                self._hush()  # the caller had a say in the silence that was played
            self._app_start, last = at, at - 1
        self._app_last = at
        self.app_ticks += at - last
        if self._caller_last > last:
            if at - last > 1:
                self._overlap(last, at, self._caller_start, self._caller_last)
            else:
                self.both_ticks += 1
        if not self._uttering:
            self._uttering = True
            self._utterance_start = at
            if self._waiting and not self._speaking:
                self._reply()
        elif self._barge_in_start != _NEVER and not self._speaking and at - self._turn_end > PATIENCE_TICKS:
            self._barge_in_start = _NEVER
            self._waiting = False
            self.barge_ins_ignored += 1

    def _hush(self) -> None:
        self._uttering = False
        start, self._barge_in_start = self._barge_in_start, _NEVER
        if start != _NEVER and self._app_last >= start:
            self.barge_ins.add((self._app_last + 1 - start) * TICK_MS)

    def _reply(self) -> None:
        self._waiting = False
        self.responses.add((self._utterance_start - self._turn_end) * TICK_MS)

    # Both

    def _overlap(self, after: int, until: int, start: int, last: int) -> None:
        """Counts what of the ticks after `after` up to `until` lies within `start` to `last`."""
        overlap = min(until, last) - max(after, start - 1)
        if overlap > 0:
            self.both_ticks += overlap
