"""What the controller writes into a call spec from an application's settings."""

from __future__ import annotations

import os
from datetime import UTC, datetime

import pytest

from ari_app.call.routing import Admission
from ari_app.controller.spec import call_spec
from ari_app.domain.ids import LegUuid
from ari_app.settings import ExotelApplication, RouteSettings
from ari_app.store.records import CallRow
from audiosocket.callspec import MediaFormat

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("callback", [None, "https://crm.example/passthru?token=t"])
def test_a_dynamic_url_and_a_callback_reach_the_worker_as_they_are_written(callback: str | None) -> None:
    application = ExotelApplication(url="https://app.example/where?a=1", status_callback=callback)
    admission = Admission(
        RouteSettings(did="*", application="bot"), "bot", application, "+919000000001", "1000", MediaFormat.ULAW
    )
    row = CallRow(call_id="c", call_sid="s", node="pbx", direction="inbound", state="new", created_at=datetime.now(UTC))
    spec = call_spec(row, admission, LegUuid("l"), 5, 1.0, {}, os.urandom)
    assert (spec.url, spec.callback_url) == (application.url, callback or "")
