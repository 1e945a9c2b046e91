"""Call specs that came without Redis: given out once, while they are good."""

from __future__ import annotations

import pytest

from audiosocket.errors import SpecRefused
from audiosocket.handed_specs import USED_UUIDS, HandedSpecs
from tests.media import call_spec

pytestmark = pytest.mark.unit


def spec(leg: str, **changes: object):
    return call_spec(leg_uuid=leg, call_id=f"call {leg}", **({"created_at_ms": 5, "expires_at_ms": 15_005} | changes))


def why(specs: HandedSpecs, leg: str, now: float) -> str:
    with pytest.raises(SpecRefused) as caught:
        specs.take(leg, now)
    return caught.value.why


def test_a_spec_is_given_out_once() -> None:
    specs = HandedSpecs(2)
    assert specs.put(spec("a"), 100.0) == ""
    assert specs.put(spec("a"), 100.0) == ""  # the answer to the first may have been lost
    assert specs.calls(100.0) == {"call a"}
    assert specs.take("a", 114.9) == spec("a")
    assert specs.calls(114.9) == set()
    assert why(specs, "a", 115.0) == "reused"
    assert specs.put(spec("a"), 115.0) == "reused"
    assert specs.take("b", 115.0) is None


def test_a_spec_expires_by_this_hosts_clock() -> None:
    specs = HandedSpecs(2)
    specs.put(spec("a"), 100.0)
    assert why(specs, "a", 115.1) == "expired"
    assert why(specs, "a", 115.1) == "expired"
    assert specs.put(spec("b", expires_at_ms=0), 100.0) == ""
    assert why(specs, "b", 100.1) == "expired"


def test_no_more_wait_than_may() -> None:
    specs = HandedSpecs(2)
    assert [specs.put(spec(leg), 0.0) for leg in "abc"] == ["", "", "full"]
    specs.take("a", 0.0)
    assert specs.put(spec("c"), 0.0) == ""
    assert specs.put(spec("d"), 20.0) == ""  # b and c have expired


def test_a_further_leg_is_no_further_call() -> None:
    specs = HandedSpecs(2)
    specs.put(spec("a", leg_number=1), 0.0)
    assert specs.calls(0.0) == set()


def test_what_is_remembered_is_bounded() -> None:
    specs = HandedSpecs(1)
    for number in range(USED_UUIDS + 1):
        specs.put(spec(str(number)), 0.0)
        specs.take(str(number), 0.0)
    assert specs.take("0", 0.0) is None
    assert why(specs, "1", 0.0) == "reused"
