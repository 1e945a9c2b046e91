"""What comes after what on a media leg: the application, what stands in for it when it has failed, and what follows it.

An application that fails is followed by its `fallback_url`, dialled with the same dialect and options; that by a
prompt; that by the leg's end. One that ends the stream in order is followed by `next`, which has stages of its own.
docs/failures.md has it as a table.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from audiosocket.callspec import CallSpec, EndReason

FAILURES = frozenset(
    {
        EndReason.APP_REFUSED,
        EndReason.APP_TIMEOUT,
        EndReason.APP_URL_FAILED,
        EndReason.APP_SUSPENDED,
        EndReason.APP_LOST,
        EndReason.APP_SILENT,
        EndReason.APP_PROTOCOL_ERROR,
        EndReason.APP_MESSAGE_TOO_BIG,
    }
)
"""Endings of a stream that are the application's failure."""
GOOD_ENDS = frozenset({EndReason.APP_CLOSED, EndReason.STREAM_LIMIT})
"""Endings of a stream after which the call goes on with `next`."""
_DEAF = FAILURES - {EndReason.APP_SILENT} | {EndReason.APP_CLOSED}
"""Endings after which nobody reads at the other end of the stream."""
_STOPPED = frozenset({EndReason.APP_SILENT, EndReason.STREAM_LIMIT, EndReason.WORKER_STOPPED, EndReason.WORKER_ERROR})


@dataclass(frozen=True, slots=True)
class Ending:
    """Why something on the leg has ended."""

    reason: EndReason
    detail: str = ""

    @property
    def failure(self) -> bool:
        """Whether the application has failed."""
        return self.reason in FAILURES


@dataclass(frozen=True, slots=True)
class Dial:
    """An application is dialled and carries the call."""

    spec: CallSpec
    fallback: bool = False
    """Whether it stands in for one that has failed."""


@dataclass(frozen=True, slots=True)
class Play:
    """The caller hears a prompt; an empty name is the special information tone."""

    prompt: str


@dataclass(frozen=True, slots=True)
class Finish:
    """The leg ends, and this is what the report says."""

    ending: Ending


Step = Dial | Play | Finish


class Stages:
    """The stages of one media leg. `failed`: whether an application has failed, whatever came of it."""

    __slots__ = ("_failure", "_fallback", "_playing", "_spec", "failed")

    def __init__(self, spec: CallSpec) -> None:
        self._spec = spec
        self._failure: Ending | None = None
        self._fallback = False
        self._playing = False
        self.failed = False

    @property
    def application(self) -> str:
        """Name of the application that the leg is with."""
        return self._spec.application

    def first(self) -> Dial:
        """The application itself."""
        return Dial(self._spec)

    def after(self, ending: Ending | None, *, opened: bool = False, answered: bool = True) -> Step:
        """What comes after a stage that has ended so; None: a prompt was played to its end.

        `opened`: the stage's stream had been open. `answered`: the caller has been.
        """
        if ending is None or ending.failure:
            return self._after_failure(ending, answered)
        if ending.reason in GOOD_ENDS and self._spec.next is not None:
            self._spec = self._spec.next
            self._failure = None
            self._fallback = False
            return Dial(self._spec)
        if ending.reason is EndReason.LEG_CLOSED and self._failure is not None and not opened:
            # Whoever hangs up on a prompt, or while the fallback is dialled, has had nothing but the failure.
            return Finish(self._failure)
        return Finish(ending)

    def _after_failure(self, ending: Ending | None, answered: bool) -> Step:
        if ending is not None:
            self.failed = True
            self._failure = self._failure or ending
        assert self._failure is not None
        spec = self._spec
        if spec.fallback_url and not self._fallback:
            self._fallback = True
            return Dial(msgspec.structs.replace(spec, url=spec.fallback_url), fallback=True)
        silent = not (answered and spec.fallback_tone)
        if self._playing or (silent and not spec.fallback_prompt):
            # A caller who has not been answered is refused with a code of SIP's, which says more than a tone; one who
            # goes on elsewhere is not told that his call has failed.
            return Finish(self._failure)
        self._playing = True
        return Play(spec.fallback_prompt)


def of_stream(spec: CallSpec, reason: EndReason, detail: str, *, reset: bool) -> Ending:
    """The ending that the end of a stream's connection is. One without a close frame is a failure, unless the
    application is known to end its calls so (`close_without_frame`); a connection that was `reset` always is."""
    if reason is EndReason.APP_LOST and spec.close_without_frame == "end" and not reset:
        return Ending(EndReason.APP_CLOSED, detail)
    return Ending(reason, detail)


def stop_word(reason: EndReason) -> str:
    """What the application is told when its stream ends so, in Exotel's words: `callended` when the call is over,
    `stopped` when the platform ends the stream; empty: there is nobody left to tell."""
    if reason in _DEAF:
        return ""
    return "stopped" if reason in _STOPPED else "callended"
