"""When a worker is gone, when its calls are given to another one, and when it is enough."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
from msgspec.structs import replace

from ari_app.applications import resumed_parameters
from ari_app.call import moving
from ari_app.call.machine import AWAY, TABLE, State, Trigger
from ari_app.call.moving import Moves, without_worker
from ari_app.fleet import pulse
from ari_app.fleet.pulse import Pulse
from audiosocket.errors import ConfigError
from tests.fake_call import WORKER, config

pytestmark = pytest.mark.unit


def moved(moves: Moves, now: float, *, ordered: bool = False) -> bool:
    """A whole move; whether there was one."""
    if not moves.wanted(now) or not moves.begin(now):
        return False
    moves.tried()
    moves.moved(now, ordered=ordered)
    return True


def test_a_call_is_moved_only_so_often_in_a_while() -> None:
    moves, now = Moves(5, resumes=True), 1000.0
    assert [moved(moves, now + at) for at in range(moving.MAX_MOVES + 1)] == [True] * moving.MAX_MOVES + [False]
    assert moved(moves, now + moving.WINDOW_SECONDS + 1)
    assert moves.moves == moving.MAX_MOVES + 1


def test_an_operators_moves_are_counted_and_do_not_use_the_others_up() -> None:
    moves = Moves(5, resumes=True)
    for _ in range(10):
        moves.moved(1000, ordered=True)
    assert moves.moves == 10
    assert moved(moves, 1000)


def test_room_is_looked_for_from_the_first_look_on_and_not_for_ever() -> None:
    moves = Moves(5, resumes=True)
    assert moves.wanted(0)
    assert moves.begin(100), "waiting for a turn does not count"
    assert moves.begin(104.9)
    assert not moves.begin(105)
    assert not moves.wanted(105), "it is over"


def test_only_so_many_workers_are_tried() -> None:
    moves = Moves(5, resumes=True)
    tried = 0
    while moves.begin(100):
        moves.tried()
        tried += 1
    assert tried == moving.MAX_TRIES


@pytest.mark.parametrize(("seconds", "resumes"), [(0, True), (5, False)])
def test_calls_that_are_not_to_be_moved(seconds: float, resumes: bool) -> None:
    moves = Moves(seconds, resumes=resumes)
    assert not moves.possible
    assert not moves.wanted(0)
    assert [moves.retry() for _ in range(moving.MAX_RETRIES + 1)] == [True] * moving.MAX_RETRIES + [False]


@pytest.mark.parametrize(("answered", "connected"), [(False, False), (True, False), (True, True)])
def test_what_another_worker_may_take_has_its_place_in_the_table(answered: bool, connected: bool) -> None:
    for state, trigger in product(set(State) - AWAY, Trigger):
        instead = without_worker(state, trigger, answered=answered, connected=connected)
        if instead is None:
            assert trigger is not Trigger.WORKER_GONE or state not in (State.ATTACHING, State.RINGING, State.REPORTING)
        elif instead is not Trigger.WORKER_GONE:
            assert (state, instead) in TABLE
            assert not connected or state in (State.ATTACHING, State.RINGING)
        else:
            assert connected


# Whether a worker lives

STATUS = replace(WORKER, status_url="http://127.0.0.1:1")


def watching(info: Any = STATUS, *, answers: bool = True) -> tuple[Pulse, float]:
    """A worker that has been there for a while; the time of its last heartbeat."""
    beats, now = Pulse(), 100.0
    for step in range(20):
        now = 100.0 + step * 0.25
        beats.heard(now, {info.worker_id: (info, 0.0)})
        for suspect in beats.suspects(now):
            assert not beats.answered(suspect, now, yes=answers)
    return beats, now


@pytest.mark.parametrize(
    ("answers", "limit"), [(True, pulse.LATE_SECONDS), (False, pulse.EXPIRED_SECONDS)], ids=["asked", "not reached"]
)
def test_a_worker_without_heartbeat_that_does_not_answer_is_gone(answers: bool, limit: float) -> None:
    beats, last = watching(answers=answers)
    now = last
    while True:
        now += 0.25
        beats.heard(now, {})
        suspects = [info for info in beats.suspects(now) if now - last >= pulse.LATE_SECONDS]
        if [info for info in suspects if beats.answered(info, now, yes=False)]:
            break
        assert now - last < 10
    assert limit <= now - last <= limit + 0.25
    assert not beats.suspects(now), "it is told once"


def test_a_worker_that_answers_lives_whatever_redis_says() -> None:
    beats, last = watching()
    for step in range(1, 60):
        now = last + step * 0.25
        beats.heard(now, {})
        for info in beats.suspects(now):
            assert not beats.answered(info, now, yes=True)


def test_a_redis_that_was_away_makes_no_worker_gone_that_cannot_be_asked() -> None:
    info = WORKER
    beats, last = watching(info)
    beats.unknown()
    back = last + 10
    for step in range(round(pulse.STEADY_SECONDS / 0.25)):
        now = back + step * 0.25
        beats.heard(now, {})
        assert not beats.suspects(now)
    beats.heard(back + pulse.STEADY_SECONDS + 0.1, {})
    assert beats.suspects(back + pulse.STEADY_SECONDS + 0.1)


def test_without_redis_a_worker_is_gone_only_where_another_one_answers() -> None:
    other = replace(STATUS, worker_id="gw/9")
    for answers in (True, False):
        beats, now = Pulse(), 100.0
        beats.heard(now, {info.worker_id: (info, 0.0) for info in (STATUS, other)})
        for info in beats.suspects(now):
            beats.answered(info, now, yes=True)
        beats.unknown()
        now += 5
        assert {info.worker_id for info in beats.suspects(now)} == {STATUS.worker_id, other.worker_id}
        beats.answered(other, now, yes=answers)
        assert beats.answered(STATUS, now, yes=False) == answers, "otherwise it is this node that is cut off"


def test_a_worker_that_is_back_is_told_and_one_that_was_started_again_too() -> None:
    beats, last = watching()
    beats.heard(last + 3, {})
    (info,) = beats.suspects(last + 3)
    assert beats.answered(info, last + 3, yes=False)
    assert beats.heard(last + 4, {STATUS.worker_id: (STATUS, 2.0)}) == ([], []), "an old heartbeat"
    assert beats.heard(last + 5, {STATUS.worker_id: (STATUS, 0.1)}) == ([], [STATUS.worker_id])
    again = replace(STATUS, started_at_ms=STATUS.started_at_ms + 7)
    assert beats.heard(last + 6, {STATUS.worker_id: (again, 0.1)}) == ([STATUS], [STATUS.worker_id])
    assert not beats.answered(STATUS, last + 60, yes=False), "of a run that is over nothing follows"


def test_workers_that_are_gone_are_forgotten_in_the_end() -> None:
    beats, last = watching()
    (info,) = beats.suspects(last + 3)
    assert beats.answered(info, last + 3, yes=False)
    beats.forget(last + 10, 60)
    assert STATUS.worker_id in beats._known
    beats.forget(last + 100, 60)
    assert not beats._known


# The parameter


@pytest.mark.parametrize(
    ("dialect", "extra"),
    [("exotel", {}), ("twilio", {"account_sid": "AC" + "0" * 32}), ("plivo", {"account_sid": "MA" + "0" * 18})],
)
def test_a_resumed_stream_says_so_in_every_dialect(dialect: str, extra: dict[str, str]) -> None:
    application = config(application={"dialect": dialect, "custom_parameters": {"one": "1"}} | extra).applications[
        "bot"
    ]
    assert resumed_parameters(application, {"one": "1"}) == {"one": "1", "trunkbridge_resumed": "1"}


def test_an_operators_own_parameter_that_does_not_fit_is_refused() -> None:
    three = {"one": "1", "two": "2", "three": "3"}
    assert config(application={"custom_parameters": three}).applications["bot"].resume.parameter
    with pytest.raises(ConfigError, match=r"resume.parameter: with again besides, .*Exotel allows 3"):
        config(application={"custom_parameters": three, "resume": {"parameter": "again"}})
    with pytest.raises(ConfigError, match=r"resume.parameter 'one' is a custom parameter already"):
        config(application={"custom_parameters": {"one": "1"}, "resume": {"parameter": "one"}})
    with pytest.raises(ConfigError, match=r"resume.parameter"):
        config(application={"resume": {"parameter": "no name"}})
    settings = config(application={"custom_parameters": {"one": "1"}, "resume": {"parameter": "again"}})
    route = settings.routes[0].model_copy(update={"custom_parameters": {"two": "2", "three": "3"}})
    with pytest.raises(ValueError, match=r"routes\[0\].*with again besides"):
        settings.model_copy(update={"routes": [route]})._whole()
