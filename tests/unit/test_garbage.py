"""When a full collection of garbage is due."""

from __future__ import annotations

import gc

import pytest

from audiosocket import garbage

pytestmark = pytest.mark.unit

MB = 1 << 20


def test_with_few_calls_a_collection_comes_every_minute() -> None:
    assert not garbage.due(59, 100, 80 * MB, 80 * MB)
    assert garbage.due(60, 100, 80 * MB, 80 * MB)
    assert garbage.due(60, 0, 80 * MB, 80 * MB)


def test_with_many_it_waits_for_an_hour() -> None:
    assert not garbage.due(3599, 101, 80 * MB, 80 * MB)
    assert garbage.due(3600, 101, 80 * MB, 80 * MB)


def test_a_thousand_calls_that_join_are_no_reason_and_what_grows_on_is() -> None:
    assert not garbage.due(1, 1000, 120 * MB, 75 * MB)
    assert not garbage.due(1, 1000, 176 * MB, 75 * MB)
    assert garbage.due(1, 1000, 177 * MB, 75 * MB)


def test_the_size_of_this_process_is_known() -> None:
    assert MB < garbage.resident_bytes() < 1 << 40


def test_long_lived_objects_are_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int, int]] = []
    monkeypatch.setattr(gc, "freeze", lambda: None)
    monkeypatch.setattr(gc, "set_threshold", lambda *values: told.append(values))
    youngest, middle, _ = gc.get_threshold()
    garbage.put_off()
    assert told == [(youngest, middle, 2**31 - 1)]
