"""Lines of the spool: what was whole is read, whatever becomes of the rest."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ari_app.store.framing import MAX_LINE_BYTES, MAX_PAYLOAD_BYTES, Record, encode, take

pytestmark = pytest.mark.unit

payloads = st.binary(max_size=60).map(lambda text: b'{"a":"' + text.replace(b"\n", b" ") + b'"}')
records = st.builds(Record, st.sampled_from(["call", "event"]), st.integers(0, 10**14), payloads)


def test_a_line():
    line = encode(Record("event", 1_700_000_000_123, b'{"seq":1}'))
    assert line == b'1c3375f4 9 1700000000123 e {"seq":1}\n'


def test_what_is_no_line_is_refused():
    for payload in (b"a\nb", b"x" * (MAX_PAYLOAD_BYTES + 1)):
        with pytest.raises(ValueError, match="one line of at most"):
            encode(Record("call", 0, payload))
    longest = Record("call", 10**14, b"x" * MAX_PAYLOAD_BYTES)
    assert len(encode(longest)) <= MAX_LINE_BYTES
    assert take(encode(longest), 1, at_end=True).records == [longest]


@given(st.lists(records, max_size=8))
def test_comes_back_as_it_went(given_records):
    data = b"".join(map(encode, given_records))
    found = take(data, 100, at_end=True)
    assert (found.records, found.damaged, found.torn, found.consumed) == (given_records, [], b"", len(data))


def test_a_file_that_ends_at_any_byte_keeps_its_whole_lines():
    whole = [Record("call", number, b'{"n":%d}' % number) for number in range(4)]
    lines = [encode(record) for record in whole]
    data = b"".join(lines)
    ends = [sum(map(len, lines[:number])) for number in range(len(lines) + 1)]
    for length in range(len(data) + 1):
        found = take(data[:length], 100, at_end=True)
        # A line that lacks its line feed alone has its checksum, and is whole.
        expected = sum(end <= length + 1 for end in ends[1:])
        assert found.records == whole[:expected]
        assert found.damaged == []
        assert found.torn == data[ends[expected] : length]
        assert found.consumed == length


@given(st.lists(records, min_size=3, max_size=6), st.data())
def test_one_damaged_byte_costs_one_record(given_records, data):
    lines = [encode(record) for record in given_records]
    blob = bytearray(b"".join(lines))
    at = data.draw(st.integers(0, len(blob) - 1))
    blob[at] ^= data.draw(st.integers(1, 255))
    hit = next(number for number in range(len(lines)) if at < sum(map(len, lines[: number + 1])))
    found = take(bytes(blob), 100, at_end=True)
    rest = given_records[:hit] + given_records[hit + 1 :]
    # The line feed itself is not missed, and hexadecimal digits may have changed into what they were not to be read as.
    assert found.records in (rest, given_records)
    if found.records == rest != given_records:
        assert found.damaged or found.torn
    assert found.consumed == len(blob)


@given(st.lists(records, max_size=5), st.binary(max_size=80), st.lists(records, max_size=5))
def test_junk_between_records_is_told_from_them(before, junk, after):
    junk = junk.replace(b" ", b"-").replace(b"\n", b"-")  # no line is without a blank
    data = b"".join(map(encode, before)) + junk + b"\n" + b"".join(map(encode, after))
    found = take(data, 100, at_end=True)
    assert found.records == before + after
    assert b"".join(found.damaged) == junk + b"\n"


@given(st.lists(records, max_size=30), st.integers(1, 7))
def test_taken_in_pieces(given_records, limit):
    data = b"".join(map(encode, given_records))
    got: list[Record] = []
    while data:
        found = take(data, limit, at_end=True)
        assert len(found.records) <= limit
        got += found.records
        data = data[found.consumed :]
    assert got == given_records


def test_a_piece_of_a_long_file_leaves_its_last_lines_for_the_next():
    line = encode(Record("event", 1, b"x" * 1000))
    data = line * (3 * MAX_LINE_BYTES // len(line))
    found = take(data, 10_000, at_end=False)
    assert len(data) - MAX_LINE_BYTES < found.consumed < len(data)
    assert found.consumed == len(found.records) * len(line)
    without_end = b"z" * (3 * MAX_LINE_BYTES)
    found = take(without_end, 10, at_end=False)
    assert (len(b"".join(found.damaged)), found.torn, found.consumed) == (2 * MAX_LINE_BYTES, b"", 2 * MAX_LINE_BYTES)


def test_zeros_that_a_power_loss_leaves_are_torn():
    record = Record("call", 1, b"{}")
    found = take(encode(record) + bytes(4096), 10, at_end=True)
    assert (found.records, found.damaged, len(found.torn)) == ([record], [], 4096)
