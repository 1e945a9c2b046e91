"""Whether a host is gone, by what Linux says of its connection (struct tcp_info)."""

from __future__ import annotations

import pytest

from audiosocket.app_connection import said_gone

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("retransmitted", "probes", "last_ms", "gone"),
    [
        (0, 0, 20, False),
        (4, 0, 9999, False),
        (5, 0, 10_000, True),  # as seen 10 s after a cut
        (2, 0, 60_000, False),  # too seldom asked
        (0, 0, 15_000, False),  # no room for minutes: the next probe is far, and the last one was answered
        (0, 2, 45_000, False),
        (0, 3, 90_000, True),  # no room, and then gone
    ],
)
def test_a_host_is_gone_that_does_not_answer_though_it_is_asked(
    retransmitted: int, probes: int, last_ms: int, gone: bool
) -> None:
    # State, congestion state, retransmissions, probes, ...; the age of the last acknowledgement is the 13th number.
    head = bytes([1, 0, retransmitted, probes, 5, 0, 0, 0])
    numbers = [8_448_000, 0, 1448, 536, 17, 0, 0, 0, 0, 12, 0, 15, last_ms]
    info = head + b"".join(number.to_bytes(4, "little") for number in numbers)
    assert said_gone(info) is gone
