"""The setting `limit`: what it says, and what it may not say."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from ari_app.call.full import Elsewhere, elsewhere, line_max
from ari_app.call.onward import Onward
from ari_app.call.routing import Router
from ari_app.domain.hangup import Cause, sip_from_cause
from ari_app.limit import LimitSettings, hold_sounds
from ari_app.settings import Config
from audiosocket.callspec import MediaFormat
from audiosocket.errors import ConfigError
from audiosocket.runtime.config import validate

pytestmark = pytest.mark.unit

SECRET = {"env": "PATH"}
LINE: dict[str, Any] = {"calls": 1, "when_full": "queue"}
FORK = {"one_way": True, "after": {"extension": "ivr"}}


def config(
    limit: dict[str, Any] | None = None,
    spare: dict[str, Any] | None = None,
    *,
    bot: dict[str, Any] | None = None,
    route: dict[str, Any] | None = None,
    **top: Any,
) -> Config:
    data: dict[str, Any] = {
        "node": "pbx-1",
        "store": "embedded",
        "asterisk": {"ari": {"password": SECRET}, "ami": {"password": SECRET}, "music": {"calm": "/srv/music"}},
        "trunks": {
            "carrier": {"identify": ["10.0.0.1"], "contact": "10.0.0.1:5060"},
            "bare": {"identify": ["10.0.0.2"]},
        },
        "applications": {
            "bot": {"url": "ws://bot/", "limit": limit or {}} | (bot or {}),
            "spare": {"url": "ws://spare/"} | (spare or {}),
        },
        "routes": [{"did": "*", "application": "bot"} | (route or {})],
    }
    return validate(Config, data | top, Path("trunkbridge.yml"))


def limit(**keys: Any) -> LimitSettings:
    return config(keys).applications["bot"].limit


def to(application: str) -> dict[str, Any]:
    return {"calls": 1, "when_full": "redirect", "redirect": {"application": application}}


def test_without_a_word_there_is_no_limit() -> None:
    found = limit()
    assert (found.calls, found.when_full, found.webhook, line_max(found)) == (None, "reject", None, 0)


def test_who_may_wait_and_what_he_hears() -> None:
    assert line_max(limit(**LINE)) == 20
    heard = {"ring": None, "music:calm": "calm", "sound:digits/1": "trunkbridge/digits/1"}
    for audio, music in heard.items():
        found = limit(**LINE, queue={"max_waiting": 3, "hold_audio": audio})
        assert (line_max(found), found.queue.music_class) == (3, music)
    limits = [limit(**LINE, queue={"hold_audio": audio}) for audio in (*heard, "sound:digits/1", "sound:a")]
    assert hold_sounds(limits) == ["a", "digits/1"]


@pytest.mark.parametrize(("word", "status"), [("busy", 486), ("congestion", 503), ("unavailable", 480)])
def test_what_a_carrier_is_told(word: str, status: int) -> None:
    there = elsewhere(limit(calls=1, reject_with=word))
    assert there == Elsewhere(None, None, there.cause)
    assert sip_from_cause(there.cause) == status


def test_where_callers_go_on() -> None:
    there = elsewhere(limit(**LINE, redirect={"extension": "desk"}))
    place = Onward("continued", "extension desk", "trunkbridge-after-application", "desk", {})
    assert there == Elsewhere(None, place, Cause.USER_BUSY)
    assert elsewhere(config(to("spare")).applications["bot"].limit) == Elsewhere("spare", None, Cause.USER_BUSY)


def test_the_media_leg_has_the_rate_of_the_application_that_takes_the_call() -> None:
    found = config(to("spare"), {"sample_rate": 16000})
    admission = Router(found).admit("carrier", "1000", "1001", 0, 0)
    assert admission.media_format is MediaFormat.ALAW
    there = dataclasses.replace(admission, application_name="spare", application=found.applications["spare"])
    assert there.media_format is MediaFormat.SLIN16


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"calls": -1}, "applications.bot.limit.calls: found -1"),
        ({"calls": 1.5}, "applications.bot.limit.calls"),
        ({"call": 1}, "applications.bot.limit.call: unknown key"),
        ({"when_full": "drop"}, "applications.bot.limit.when_full: found 'drop'"),
        ({"reject_with": "503"}, "applications.bot.limit.reject_with: found '503'"),
        ({"when_full": "redirect"}, "when_full: redirect needs redirect: application, extension or transfer"),
        ({"redirect": {"extension": "desk"}}, "redirect: when_full is reject: make it redirect or queue"),
        ({"queue": {"max_waiting": 3}}, "queue: when_full is reject: make it queue, or remove queue"),
        (to("spare") | {"queue": {}}, "queue: when_full is redirect: make it queue"),
        (LINE | {"queue": {"max_waiting": 0}}, "applications.bot.limit.queue.max_waiting: found 0"),
        (LINE | {"queue": {"max_seconds": 0}}, "applications.bot.limit.queue.max_seconds: found 0"),
        (LINE | {"queue": {"hold_audio": "jazz"}}, "applications.bot.limit.queue.hold_audio: found 'jazz'"),
        (LINE | {"queue": {"hold_audio": "sound:a;b"}}, "applications.bot.limit.queue.hold_audio"),
        (LINE | {"queue": {"hold_audio": "music:jazz"}}, "hold_audio 'jazz' is not in asterisk.music: calm"),
        (LINE | {"redirect": {"extension": "a", "application": "spare"}}, "expected only one of"),
        (
            LINE | {"redirect": {"transfer": {"to": "1000", "trunk": "bare"}}},
            "limit.redirect.transfer.trunk 'bare' has no",
        ),
        (to("nobody"), "applications.bot.limit.redirect.application 'nobody' is not defined"),
        (to("bot"), "limit.redirect.application 'bot' leads in a circle, bot -> bot"),
        ({"webhook": {"target": 0.5}}, "applications.bot.limit.webhook.max: required"),
        ({"webhook": {"target": 0, "max": 5}}, "applications.bot.limit.webhook.target: found 0"),
        ({"webhook": {"target": 1.1, "max": 5}}, "applications.bot.limit.webhook.target: found 1.1"),
        ({"webhook": {"min": 6, "max": 5}}, "min 6 is above max 5: exchange them"),
    ],
)
def test_a_limit_that_cannot_be(given: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(given)
    assert expected in str(caught.value)


def test_a_circle_of_redirects_is_named() -> None:
    with pytest.raises(ConfigError, match="circle, bot -> spare -> bot"):
        config(to("spare"), {"limit": to("bot")})


def test_who_forks_keeps_nobody_waiting_and_follows_nobody() -> None:
    assert config({"calls": 3}, bot=FORK).applications["bot"].limit.calls == 3
    with pytest.raises(ConfigError, match="the caller goes on at once when the application is full"):
        config(LINE, bot=FORK)
    with pytest.raises(ConfigError, match="redirect.application 'spare' listens while the caller goes on"):
        config(to("spare"), FORK)


@pytest.mark.parametrize(
    ("route", "spare", "expected"),
    [
        ({"answer": "when_speaking"}, {"one_way": True}, "application 'spare' only listens"),
        ({"media_format": "ulaw"}, {"sample_rate": 16000}, "application 'spare' 16000"),
        (
            {"custom_parameters": {"a": "1"}},
            {"custom_parameters": {"b": "1", "c": "2", "d": "3"}},
            "application 'spare'",
        ),
    ],
)
def test_whoever_a_route_may_come_to_has_to_fit_it(route: dict[str, Any], spare: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(to("spare"), spare, route=route)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("top", "expected"),
    [
        ({"api": {"tokens": {"x": {"env": "SHORT"}}}}, "the token of x is too short: at least 16"),
        ({"api": {"listen": "here:80"}}, "api.listen"),
        (
            {"asterisk": {"ari": {"password": SECRET}, "ami": {"password": SECRET}, "music": {"general": "/x"}}},
            "general",
        ),
        (
            {"asterisk": {"ari": {"password": SECRET}, "ami": {"password": SECRET}, "music": {"calm": "x"}}},
            "music.calm",
        ),
    ],
)
def test_around_it(top: dict[str, Any], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHORT", "fifteen-letters")
    with pytest.raises(ConfigError) as caught:
        config(**top)
    assert expected in str(caught.value)
