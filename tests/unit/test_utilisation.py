"""The limit that follows a cluster's utilisation: bounded, monotone, and at rest in the end."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ari_app.fleet.utilisation import BAND, next_limit
from ari_app.limit import WebhookSettings

pytestmark = pytest.mark.unit

UTILISATIONS = st.floats(0, 5, allow_nan=False)
CALLS = st.integers(0, 300)
LIMITS = st.none() | st.integers(0, 300)


@st.composite
def settings(draw: st.DrawFn) -> WebhookSettings:
    smallest = draw(st.integers(1, 50))
    largest = draw(st.integers(max(1, smallest), 200))
    return WebhookSettings(target=draw(st.floats(0.05, 1)), min=smallest, max=largest)


@given(u=UTILISATIONS, calls=CALLS, limit=LIMITS, given=settings())
def test_it_is_bounded(u: float, calls: int, limit: int | None, given: WebhookSettings) -> None:
    assert given.min <= next_limit(u, calls=calls, limit=limit, settings=given) <= given.max


@given(u=st.tuples(UTILISATIONS, UTILISATIONS), calls=CALLS, limit=LIMITS, given=settings())
def test_a_larger_utilisation_never_gives_a_larger_limit(
    u: tuple[float, float], calls: int, limit: int | None, given: WebhookSettings
) -> None:
    low, high = sorted(u)
    assert next_limit(low, calls=calls, limit=limit, settings=given) >= next_limit(
        high, calls=calls, limit=limit, settings=given
    )


@given(u=UTILISATIONS, calls=st.tuples(CALLS, CALLS), limit=LIMITS, given=settings())
def test_more_calls_at_the_same_utilisation_never_give_a_smaller_limit(
    u: float, calls: tuple[int, int], limit: int | None, given: WebhookSettings
) -> None:
    few, many = sorted(calls)
    assert next_limit(u, calls=few, limit=limit, settings=given) <= next_limit(
        u, calls=many, limit=limit, settings=given
    )


@given(cost=st.floats(0.001, 2), limit=LIMITS, given=settings())
def test_it_settles_where_callers_never_run_out(cost: float, limit: int | None, given: WebhookSettings) -> None:
    seen = []
    for _ in range(500):
        calls = given.max if limit is None else min(limit, given.max)
        limit = next_limit(calls * cost, calls=calls, limit=limit, settings=given)
        seen.append(limit)
        if len(seen) > 1 and seen[-1] == seen[-2]:
            break
    else:
        pytest.fail(f"never at rest: {seen[-20:]}")
    directions = {later > earlier for earlier, later in itertools.pairwise(seen) if later != earlier}
    assert len(directions) <= 1, f"it swings: {seen}"
    rest = seen[-1]
    assert rest == given.min or rest * cost <= given.target * (1 + 1e-6)
    full = rest == given.max or (rest + 1) * cost > given.target * (1 - 1e-6)
    assert full or rest * cost > given.target * (1 - BAND) * (1 - 1e-6), "room is left that nobody may use"


@given(utilisation=UTILISATIONS, limit=st.integers(1, 200), given=settings())
def test_what_is_not_used_does_not_grow(utilisation: float, limit: int, given: WebhookSettings) -> None:
    assume(given.min <= limit <= given.max)
    assert next_limit(utilisation, calls=(limit - 1) // 2, limit=limit, settings=given) <= limit


@pytest.mark.parametrize(
    ("utilisation", "calls", "limit", "expected"),
    [
        (0.96, 60, 60, 50),  # down to what fits, at once
        (0.4, 40, 40, 50),  # up, by a quarter at most
        (0.7, 40, 40, 45),  # up, to what fits
        (0.75, 40, 40, 40),  # near enough
        (0.8, 40, 40, 40),
        (0.1, 5, 40, 40),  # nobody is there to need more
        (0.0, 0, 1, 1),
        (0.9, 0, 40, 2),  # others use the cluster
        (3.0, 40, 40, 10),
        (0.4, 3, 3, 4),  # by one at least
        (0.4, 100, 100, 100),  # the most there is
        (0.5, 0, None, 100),
    ],
)
def test_examples(utilisation: float, calls: int, limit: int | None, expected: int) -> None:
    given = WebhookSettings(target=0.8, min=2 if limit != 1 else 1, max=100)
    assert next_limit(utilisation, calls=calls, limit=limit, settings=given) == expected
