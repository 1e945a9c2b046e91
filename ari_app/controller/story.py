"""A call's record as it grows: the row, and one event for every transition."""

from __future__ import annotations

import dataclasses
import time
from datetime import UTC, datetime
from typing import Any

import msgspec

from ari_app.call.machine import Transition
from ari_app.domain.termination import Termination
from ari_app.store.records import CallEvent, CallRow, RecordingPart
from ari_app.store.writer import RecordWriter
from audiosocket.callspec import CallNotice, CallReport


def now() -> datetime:
    """The present, aware."""
    return datetime.now(UTC)


def from_ms(at_ms: int) -> datetime:
    """Unix time in ms, aware."""
    return datetime.fromtimestamp(at_ms / 1000, UTC)


def report_events(report: CallReport) -> list[CallEvent]:
    """What the worker saw, as events of the call."""
    # One worker may carry two legs of a call one after the other: the leg is part of the source.
    source = f"{report.worker_id}:{report.leg_uuid[:8]}"
    return [
        CallEvent(
            call_id=report.call_id,
            source=source,
            seq=number,
            at=from_ms(milestone.at_ms),
            event=f"media_{milestone.event}",
            cause=str(milestone.detail["reason"]) if "reason" in milestone.detail else None,
            detail=milestone.detail,
        )
        for number, milestone in enumerate(report.milestones)
    ]


def left_events(report: CallReport) -> list[CallEvent]:
    """What a worker saw of a call that has been given to another one, with its figures, which are not the record's."""
    told = report_events(report)
    figures = {
        name: value for name, value in msgspec.to_builtins(report.figures).items() if value not in (0, -1, {}, [])
    }
    detail: dict[str, Any] = {"worker": report.worker_id, "figures": figures}
    if report.recording:
        detail["recording"] = report.recording
    told.append(
        CallEvent(
            call_id=report.call_id,
            source=f"{report.worker_id}:{report.leg_uuid[:8]}",
            seq=len(told),
            at=from_ms(report.ended_at_ms),
            event="media_left",
            cause=report.reason.value,
            detail=detail,
        )
    )
    return told


class Story:
    """Writes one call's row and events; `row` is what has been written last."""

    def __init__(self, row: CallRow, source: str, writer: RecordWriter) -> None:
        self.row = row
        self._source = source
        self._writer = writer
        self._seq = 0
        self._began = time.monotonic()

    def update(self, **changes: Any) -> None:
        """Changes columns of the row."""
        self.row = dataclasses.replace(self.row, **changes)
        self._writer.call(self.row)

    def transition(self, step: Transition, cause: str = "", **detail: Any) -> None:
        """One step of the state machine."""
        self.event(step.trigger.value, step.source.value, step.target.value, cause, **detail)

    def event(
        self, name: str, source: str | None = None, target: str | None = None, cause: str = "", **detail: Any
    ) -> None:
        """Something that happened to the call."""
        self._seq += 1
        detail = {key: value for key, value in detail.items() if value not in (None, "")}
        detail["after_ms"] = round((time.monotonic() - self._began) * 1000)
        self._writer.event(
            CallEvent(
                call_id=self.row.call_id,
                source=self._source,
                seq=self._seq,
                at=now(),
                event=name,
                from_state=source,
                to_state=target,
                cause=cause or None,
                detail=detail,
            )
        )

    def reported(self, report: CallReport) -> None:
        """The worker's report: its milestones and its figures."""
        for event in report_events(report):
            self._writer.event(event)
        # At once: the report is acknowledged when this is stored, and the controller may be gone before the call is.
        self.update(media=report.figures, **self._part(report))

    def left(self, report: CallReport) -> None:
        """The report of a worker that had the call before."""
        for event in left_events(report):
            self._writer.event(event)
        if part := self._part(report):
            self.update(**part)

    def recorded(self, notice: CallNotice) -> None:
        """The call's worker has begun a file."""
        worker_id, began_at = self.row.worker_id or "", from_ms(notice.at_ms)
        if part := self._with(RecordingPart(recording=notice.recording, worker_id=worker_id, began_at=began_at)):
            self.update(**part)

    def _part(self, report: CallReport) -> dict[str, Any]:
        if not report.recording:
            return {}
        began_at = from_ms(report.recorded_at_ms or report.started_at_ms)  # an older worker does not say
        return self._with(RecordingPart(recording=report.recording, worker_id=report.worker_id, began_at=began_at))

    def _with(self, part: RecordingPart) -> dict[str, Any]:
        """What a part changes of the row: nothing, if it is known. It may be told more than once, and late."""
        known = self.row.recordings or ()
        if any((each.worker_id, each.recording) == (part.worker_id, part.recording) for each in known):
            return {}
        parts = tuple(sorted((*known, part), key=lambda each: each.began_at))
        return {"recordings": parts, "recording": parts[-1].recording}

    def correct(self, termination: Termination) -> None:
        """The call was closed, and why it ended is known only now."""
        self.update(
            result=termination.result.value,
            reason=termination.reason,
            detail=termination.detail or None,
            hangup_cause=termination.hangup_cause,
        )

    def close(self, state: str, termination: Termination) -> None:
        """The call is over."""
        self.update(
            state=state,
            ended_at=now(),
            result=termination.result.value,
            reason=termination.reason,
            detail=termination.detail or None,
            hangup_cause=termination.hangup_cause,
        )
