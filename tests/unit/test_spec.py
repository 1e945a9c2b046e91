"""What the controller writes into a call spec from an application's settings."""

from __future__ import annotations

import os
from datetime import UTC, datetime

import pytest

from ari_app.applications import ApplicationSettings, ExotelApplication
from ari_app.call.routing import Admission
from ari_app.controller.spec import call_spec, replacing_spec
from ari_app.domain.ids import LegUuid
from ari_app.settings import RouteSettings
from ari_app.store.records import CallRow
from audiosocket.callspec import CallSpec, MediaFormat

pytestmark = pytest.mark.unit


def spec_of(application: ApplicationSettings) -> CallSpec:
    admission = Admission(
        RouteSettings(did="*", application="bot"), "bot", application, "+919000000001", "1000", MediaFormat.ULAW
    )
    row = CallRow(call_id="c", call_sid="s", node="pbx", direction="inbound", state="new", created_at=datetime.now(UTC))
    return call_spec(row, admission, LegUuid("l"), 5, 1.0, {}, os.urandom)


@pytest.mark.parametrize("one_way", [True, False])
def test_nobody_is_there_to_hear_the_tone_of_a_fork_that_failed(one_way: bool) -> None:
    settings = {"url": "ws://app.example/", "one_way": one_way, "after": {"extension": "ivr"}}
    spec = spec_of(ExotelApplication.model_validate(settings))
    assert (spec.one_way, spec.fallback_tone, spec.fallback_prompt) == (one_way, not one_way, "")
    alone = ExotelApplication.model_validate(settings | {"after": "hangup"})
    assert not alone.forks
    assert spec_of(alone).fallback_tone


@pytest.mark.parametrize("callback", [None, "https://crm.example/passthru?token=t"])
def test_a_dynamic_url_and_a_callback_reach_the_worker_as_they_are_written(callback: str | None) -> None:
    application = ExotelApplication(url="https://app.example/where?a=1", status_callback=callback)
    spec = spec_of(application)
    assert (spec.url, spec.callback_url) == (application.url, callback or "")


def test_the_spec_of_a_further_leg_says_whose_it_is_and_nothing_that_is_secret() -> None:
    row = CallRow(
        call_id="c", call_sid="s", node="pbx", direction="inbound", state="talking", created_at=datetime.now(UTC)
    )
    spec = replacing_spec(row, LegUuid("l2"), 3, MediaFormat.SLIN16, 5000, 1.5)
    assert (spec.call_id, spec.leg_uuid, spec.leg_number, spec.media_format) == ("c", "l2", 3, MediaFormat.SLIN16)
    assert (spec.created_at_ms, spec.expires_at_ms) == (5000, 6500)
    assert (spec.url, spec.credentials, spec.custom_parameters, spec.next) == ("", "", {}, None)
    assert spec.report_stream.endswith(":pbx")
