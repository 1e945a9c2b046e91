"""The spool on disk: order, what is left by a process that was killed, damage, and a disk that refuses."""

from __future__ import annotations

import errno
import os
import random
import stat

import pytest

from ari_app.store import spool as module
from ari_app.store.framing import Record, encode
from ari_app.store.spool import Spool, SpoolFull, SpoolUnavailable

pytestmark = pytest.mark.store

MB = 1_000_000


def record(number: int, length: int = 20) -> Record:
    return Record("event", number, b'{"n":%0*d}' % (length, number))


def opened(folder, max_bytes: int = MB) -> Spool:
    spool = Spool(folder, max_bytes)
    spool.open()
    return spool


def drained(spool: Spool, limit: int = 7) -> list[int]:
    numbers: list[int] = []
    while found := spool.read(limit):
        assert spool.read(limit) == found  # until it is released
        numbers += [each.at_ms for each in found]
        spool.release()
    assert spool.appended == spool.released
    assert spool.records == 0
    return numbers


def files(folder, suffix: str = ".spool"):
    return sorted(folder.glob(f"*{suffix}"))


def test_records_come_back_in_order_and_only_once_released(tmp_path):
    folder = tmp_path / "spool"
    spool = opened(folder)
    for number in range(50):
        spool.append([record(number)], sync=number % 10 == 0)
    assert spool.records == 50
    assert [each.at_ms for each in spool.read(20)] == list(range(20))
    spool.release()
    assert spool.read(5) == [record(number) for number in range(20, 25)]
    spool.close()  # killed before the five were released
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}

    spool = opened(folder)
    assert spool.records == 50  # what was released is written once more, with what it is that came after
    spool.append([record(50)], sync=True)
    assert drained(spool) == list(range(51))
    assert spool.bytes == 0
    spool.close()
    assert files(folder) == []


def test_an_empty_spool_takes_no_room_while_it_is_used(tmp_path):
    spool = opened(tmp_path)
    for number in range(100):
        spool.append([record(number)], sync=False)
        assert drained(spool) == [number]
    assert (spool.bytes, len(files(tmp_path)), files(tmp_path)[0].stat().st_size) == (0, 1, 0)


def test_segments_end_and_go_when_they_are_done_with(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SEGMENT_BYTES", 1000)
    spool = opened(tmp_path)
    for number in range(100):
        spool.append([record(number)], sync=False)
    count = len(files(tmp_path))
    assert count > 4
    spool.read(60)
    spool.release()
    spool.read(1)
    assert len(files(tmp_path)) < count
    spool.close()
    spool = opened(tmp_path)
    left = drained(spool)
    assert left == list(range(left[0], 100))
    assert left[0] <= 60
    spool.close()
    assert files(tmp_path) == []


def test_a_process_killed_at_any_byte_of_its_last_append(tmp_path):
    spool = opened(tmp_path / "first")
    spool.append([record(number) for number in range(3)], sync=True)
    spool.close()
    data = files(tmp_path / "first")[0].read_bytes()
    line = len(data) // 3
    for length in range(len(data) + 1):
        folder = tmp_path / f"at-{length}"
        folder.mkdir()
        (folder / f"{7:016}.spool").write_bytes(data[:length])
        spool = opened(folder)
        spool.append([record(9)], sync=True)
        assert drained(spool) == [*range((length + 1) // line), 9]
        assert spool.damaged == 0
        spool.close()
        assert files(folder) == []


def test_damage_in_the_middle_is_set_aside_and_costs_no_neighbour(tmp_path):
    rng = random.Random(5)
    lines = [encode(record(number)) for number in range(10, 50)]
    for attempt in range(60):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        data = bytearray(b"".join(lines))
        begin = rng.randrange(len(data) - 60)
        end = begin + rng.randrange(1, 60)
        data[begin:end] = rng.randbytes(end - begin)
        (folder / f"{1:016}.spool").write_bytes(bytes(data))
        spool = opened(folder)
        got = drained(spool)
        hit = range(10 + begin // len(lines[0]), 10 + (end - 1) // len(lines[0]) + 1)
        assert set(range(10, 50)) - set(hit) <= set(got)
        assert got == sorted(set(got))
        if len(got) != 40:
            assert spool.damaged > 0
            assert (folder / "damaged").stat().st_size > 0
        spool.close()


def test_a_segment_that_cannot_be_read_is_set_aside(tmp_path):
    for number in (1, 2, 3):
        (tmp_path / f"{number:016}.spool").write_bytes(encode(record(number)))
    spool = opened(tmp_path)
    files(tmp_path)[1].write_bytes(b"")  # as a disk that gives less than it has
    assert drained(spool) == [1, 3]
    assert len(files(tmp_path, ".unreadable")) == spool.damaged == 1


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_an_append_that_fails_at_any_byte_leaves_nothing_in_the_way(tmp_path, monkeypatch, code):
    write = os.write
    for room in range(0, 2 * len(encode(record(0))) + 1, 3):
        folder = tmp_path / str(room)
        spool = opened(folder)
        spool.append([record(0)], sync=False)

        def refusing(file: int, data: bytes, left: list[int]) -> int:
            if left[0] == 0:
                raise OSError(code, os.strerror(code))
            taken = write(file, bytes(data)[: left[0]])
            left[0] -= taken
            return taken

        left = [room]
        monkeypatch.setattr(os, "write", lambda file, data, left=left, refusing=refusing: refusing(file, data, left))
        if room < 2 * len(encode(record(0))):
            with pytest.raises(SpoolUnavailable, match=os.strerror(code)):
                spool.append([record(1), record(2)], sync=False)
        monkeypatch.setattr(os, "write", write)
        spool.append([record(3)], sync=True)
        assert drained(spool)[0] == 0
        spool.append([record(4)], sync=True)
        spool.close()
        spool = opened(folder)
        got = drained(spool)
        # What failed may come back after a restart, in its place and whole.
        assert got == sorted(got)
        assert got[-1] == 4
        assert spool.damaged == 0


def test_a_file_that_was_cut_short_by_hand_or_a_sync_that_fails(tmp_path, monkeypatch):
    spool = opened(tmp_path)
    spool.append([record(0)], sync=False)

    def failing(_file: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", failing)
    with pytest.raises(SpoolUnavailable, match="Input/output error"):
        spool.append([record(1)], sync=True)
    monkeypatch.undo()
    spool.append([record(1)], sync=True)
    assert drained(spool) == [0, 1]


def test_a_full_spool_refuses_and_takes_again_when_there_is_room(tmp_path):
    spool = opened(tmp_path, max_bytes=1000)
    taken = 0
    while spool.bytes + len(encode(record(taken))) <= 1000:
        spool.append([record(taken)], sync=False)
        taken += 1
    with pytest.raises(SpoolFull, match="of 1000 bytes are taken"):
        spool.append([record(taken)], sync=False)
    assert drained(spool) == list(range(taken))
    spool.append([record(99)], sync=False)
    assert drained(spool) == [99]


def test_one_process_at_a_time(tmp_path):
    first = opened(tmp_path)
    first.append([record(1)], sync=False)
    second = Spool(tmp_path, MB)
    with pytest.raises(SpoolUnavailable, match=f"process {os.getpid()} has it"):
        second.open()
    assert not second.is_open
    first.close()
    second.open()
    assert drained(second) == [1]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SpoolUnavailable, match="Not a directory|File exists"):
        Spool(tmp_path / "file" / "spool", MB).open()
