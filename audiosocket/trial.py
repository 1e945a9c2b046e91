"""What a stream tells the circuit breaker of its application. Time is counted in ticks of 20 ms.

An application that accepts and then stays silent, or breaks before a word of it is heard, has failed as much as one
that refuses: a hung process behind a load balancer that lives looks like this, and costs every caller its time limit.
"""

from __future__ import annotations

from audiosocket.breaker import Outcome
from audiosocket.callspec import CallSpec
from audiosocket.session import Session
from audiosocket.stages import Ending

START_TICKS = 100
"""A failure within 2 s of the stream's start is one at the start, whatever has been heard."""


class Trial:
    """One stream, which has just been opened.

    It is good once its start is over and the application has sent audio: any, silent or not, played or still held back.
    Of one that need not speak (`one_way`, or without `first_audio_seconds`) the start is enough.
    """

    __slots__ = ("_heard", "_opened", "_speaks")

    def __init__(self, spec: CallSpec, session: Session, heard: int) -> None:
        """`heard`: `session.bytes_received` before it was dialled: its first word may have come with the handshake."""
        self._speaks = bool(spec.first_audio_seconds) and not spec.one_way
        self._opened = session.ticks
        self._heard = heard

    def passed(self, session: Session) -> bool:
        """Whether it is good, whatever comes."""
        return session.ticks - self._opened >= START_TICKS and (self._spoken(session) or not self._speaks)

    def ended(self, session: Session, ending: Ending | None) -> Outcome:
        """What is to be told when the stream is over; None: the call was over first."""
        if self.passed(session):
            return Outcome.GOOD
        if ending is None:
            return Outcome.GOOD if self._spoken(session) else Outcome.NONE
        return Outcome.BAD if ending.failure else Outcome.GOOD

    def _spoken(self, session: Session) -> bool:
        return session.bytes_received > self._heard
