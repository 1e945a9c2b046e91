"""The call spec of an admitted call: what the worker is told, from the record, the route and the application."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from ari_app.applications import ApplicationSettings, resumed_parameters
from ari_app.call.routing import Admission
from ari_app.domain.ids import LegUuid, RandomBytes, new_call_sid
from ari_app.store.records import CallRow
from audiosocket.callspec import CallSpec, MediaFormat
from audiosocket.keys import report_stream

JOINING_SECONDS = 1.0
"""A leg is joined some milliseconds after its worker has it, on a PBX with much to do some hundred."""


def call_spec(
    row: CallRow,
    admission: Admission,
    leg_uuid: LegUuid,
    created_ms: int,
    valid_seconds: float,
    applications: Mapping[str, ApplicationSettings],
    random_bytes: RandomBytes,
    *,
    resumed: bool = False,
) -> CallSpec:
    """The spec of one media leg, good for `valid_seconds` from `created_ms` (Unix time in ms), with those of the
    applications that follow (`after`) in it. Each has a stream of its own; the route's parameters are for the first,
    and so is the one that says that the call has had a stream before (`resumed`).
    """
    application = admission.application
    secret = application.handshake_secret()
    parameters = application.custom_parameters | admission.route.custom_parameters
    following = None
    if application.after.application is not None:
        following = call_spec(
            dataclasses.replace(row, stream_sid=new_call_sid(random_bytes)),
            dataclasses.replace(
                admission,
                route=admission.route.model_copy(update={"custom_parameters": {}}),
                application_name=application.after.application,
                application=applications[application.after.application],
            ),
            leg_uuid,
            created_ms,
            valid_seconds,
            applications,
            random_bytes,
        )
    held = admission.held and row.answered_at is None
    return CallSpec(
        call_id=row.call_id,
        leg_uuid=leg_uuid,
        call_sid=row.call_sid,
        stream_sid=row.stream_sid or "",
        account_sid=application.account_sid,
        application=admission.application_name,
        url=application.url,
        credentials="" if secret is None else secret.get_secret_value(),
        dialect=application.dialect,
        dialect_options=application.dialect_options.model_dump(exclude_unset=True),
        caller=admission.caller,
        callee=admission.callee,
        custom_parameters=resumed_parameters(application, parameters) if resumed else parameters,
        media_format=admission.media_format,
        connect_timeout_seconds=application.connect_timeout_seconds,
        connect_attempts=application.connect_attempts,
        playout_max_seconds=application.playout_max_seconds,
        fade_ms=application.fade_ms,
        message_max_bytes=application.message_max_bytes,
        close_without_frame=application.close_without_frame,
        held=held,
        joining_seconds=0 if held or application.one_way else JOINING_SECONDS,
        callback_url=application.status_callback or "",
        recording=application.record,
        one_way=application.one_way,
        first_audio_seconds=application.first_audio_seconds,
        max_silence_seconds=application.max_silence_seconds,
        stream_seconds=application.max_seconds,
        fallback_url=application.fallback.url or "",
        fallback_prompt=application.fallback.prompt or "",
        fallback_tone=application.fallback.after.hangs_up and not application.forks,
        breaker_failures=application.circuit_breaker.failures,
        breaker_seconds=application.circuit_breaker.seconds,
        digits_to_caller=application.digits_to_caller,
        next=following,
        arrived_at_ms=round(row.created_at.timestamp() * 1000),
        report_stream=report_stream(row.node),
        created_at_ms=created_ms,
        expires_at_ms=created_ms + round(valid_seconds * 1000),
    )


def replacing_spec(
    row: CallRow, leg_uuid: LegUuid, leg_number: int, media_format: MediaFormat, created_ms: int, valid_seconds: float
) -> CallSpec:
    """The spec of a leg that takes the place of a lost one: the worker has all that it needs of the call, and nothing
    that is secret goes through Redis again."""
    return CallSpec(
        call_id=row.call_id,
        leg_uuid=leg_uuid,
        call_sid=row.call_sid or "",
        stream_sid=row.stream_sid or "",
        account_sid="",
        application=row.application or "",
        url="",
        caller=row.caller or "",
        callee=row.callee or "",
        media_format=media_format,
        leg_number=leg_number,
        report_stream=report_stream(row.node),
        created_at_ms=created_ms,
        expires_at_ms=created_ms + round(valid_seconds * 1000),
    )
