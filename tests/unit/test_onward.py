"""Where a caller goes when the application is done with him, for every end that a worker may report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from ari_app.call.onward import Onward, after_going_on, onward
from ari_app.domain.termination import Result, Termination, from_media
from ari_app.settings import Config
from audiosocket.callspec import EndReason
from audiosocket.runtime.config import validate
from tests.unit.test_ending import report
from tests.unit.test_routing import config

pytestmark = pytest.mark.unit

BOT = {
    "url": "ws://bot/",
    "after": {"extension": "good"},
    "fallback": {"after": {"transfer": {"to": "1000", "trunk": "india", "timeout_seconds": 7}}},
}


def applications(**more: Any) -> Any:
    data = config().model_dump(mode="python", exclude_unset=True)
    data["trunks"]["india"]["contact"] = "10.0.0.1:5060"
    data["applications"] |= {"bot": BOT} | more
    return validate(Config, data, Path("trunkbridge.yml")).applications


def where(reason: EndReason, failed: bool = False, name: str = "bot", carried: str = "") -> str | None:
    told = msgspec.structs.replace(report(reason), failed=failed, application=carried)
    found = onward(told, name, applications(next={"url": "ws://next/", "after": {"extension": "further"}}))
    return None if found is None else found.extension if found.reason == "continued" else "transfer"


@pytest.mark.parametrize("reason", EndReason)
def test_every_end(reason: EndReason) -> None:
    ended = reason in (EndReason.APP_CLOSED, EndReason.STREAM_LIMIT)
    failed = from_media(reason).result is Result.UPSTREAM_ERROR
    assert where(reason) == ("good" if ended else "transfer" if failed else None)
    assert where(reason, failed=True) == where(reason), "what the fallback carried to a good end has ended"


def test_it_is_the_last_application_that_says_where() -> None:
    assert where(EndReason.APP_CLOSED, carried="next") == "further"
    assert where(EndReason.APP_LOST, carried="next") is None
    assert where(EndReason.APP_CLOSED, name="gone", carried="gone") is None, "taken out of the configuration meanwhile"


def test_the_place_of_a_transfer() -> None:
    found = onward(report(EndReason.APP_LOST), "bot", applications())
    assert found is not None
    assert (found.context, found.extension, found.where) == ("trunkbridge-transfer", "s", "1000 on india")
    assert found.variables == {"TRUNKBRIDGE_TO": "1000", "TRUNKBRIDGE_TRUNK": "india", "TRUNKBRIDGE_SECONDS": "7"}


def test_a_failure_is_no_success_because_the_caller_went_on() -> None:
    place = Onward("continued", "extension desk", "context", "desk", {})
    good = after_going_on(Termination(Result.SUCCESS, "application_ended", "close code 1000", 16), place)
    assert good == Termination(Result.SUCCESS, "continued", "to extension desk, after application_ended")
    bad = after_going_on(Termination(Result.UPSTREAM_ERROR, "application_lost", "reset", 38), place)
    detail = "reset; the caller went on to extension desk"
    assert bad == Termination(Result.UPSTREAM_ERROR, "application_lost", detail)
    silent = after_going_on(Termination(Result.UPSTREAM_ERROR, "application_lost"), place)
    assert silent.detail == "the caller went on to extension desk"
