"""The directory of recordings, which all workers of a node share: names, locks, repair, and what is too old.

A recording is `YYYY-MM-DD/<call_sid>.wav` (the day in UTC), or, of a call that was another worker's before,
`<call_sid>-<number>.wav`. While it is written it is called `.wav.part` and its writer holds a lock (flock) on it, which
ends with the process however that ends. So a `.part` whose lock is free belongs to nobody: whoever finds it puts its
header right and gives it its name. Nothing else in the directory is touched.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from audiosocket.recording import wav

PART = ".part"
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")
_FILE = re.compile(r"[0-9a-f]{32}(-\d{1,20})?\.wav(\.part)?")
_OPENINGS = 5


@dataclass(frozen=True, slots=True)
class Tidied:
    """What `tidy` has done."""

    repaired: int
    removed: int
    failed: int = 0
    """Files and folders that could not be dealt with."""


def relative_path(name: str, now: datetime) -> str:
    """Where a recording that begins now lies."""
    return f"{now.astimezone(UTC):%Y-%m-%d}/{name}.wav"


def create(path: Path) -> int:
    """A new, locked `.part` for the recording `path`, as a descriptor. Raises `OSError`, also when there is one."""
    if not _FILE.fullmatch(path.name) or not _DAY.fullmatch(path.parent.name):
        raise OSError(errno.EINVAL, "a call sid is 32 lower-case hex digits", str(path))
    path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    if path.exists():
        raise FileExistsError(errno.EEXIST, "there is a recording of this call", str(path))
    part = f"{path}{PART}"
    for _ in range(_OPENINGS):
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o640)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            # A worker that starts may have found it before it was locked, and taken it for one that was left behind.
            if os.fstat(descriptor).st_nlink:
                os.fchmod(descriptor, 0o640)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
    raise OSError(errno.EAGAIN, "is taken away as soon as it is there", part)


def finish(descriptor: int, path: Path, rate_hz: int, data_bytes: int) -> None:
    """Makes a locked `.part` with so much audio the recording `path`, and closes it. Raises `OSError`."""
    try:
        os.ftruncate(descriptor, wav.HEADER_BYTES + data_bytes)
        os.pwrite(descriptor, wav.header(rate_hz, data_bytes), 0)
        os.rename(f"{path}{PART}", path)
    finally:
        os.close(descriptor)


def tidy(directory: Path, retain_days: int, today: date) -> Tidied:
    """Repairs what dead workers left behind and removes recordings older than `retain_days` (0: none)."""
    repaired = removed = failed = 0
    oldest = today - timedelta(days=retain_days) if retain_days else date.min
    for day, folder in _days(directory):
        for path in _files(folder):
            try:
                if path.suffix == PART:
                    repaired += _repair(path)
                elif day < oldest:
                    removed += _remove(path)
            except OSError:
                failed += 1
        if day < oldest:
            try:
                folder.rmdir()
            except OSError:
                continue  # not empty: something in it is not ours
    return Tidied(repaired, removed, failed)


def free_bytes(directory: Path) -> int:
    """What may still be written there; of a directory that is not there yet, of the one that it will be in."""
    while not directory.exists() and directory != directory.parent:
        directory = directory.parent
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize


def _days(directory: Path) -> Iterator[tuple[date, Path]]:
    try:
        names = sorted(entry.name for entry in os.scandir(directory) if entry.is_dir(follow_symlinks=False))
    except FileNotFoundError:
        return
    for name in names:
        try:
            if _DAY.fullmatch(name):
                yield date.fromisoformat(name), directory / name
        except ValueError:
            continue  # such as 2026-13-01


def _files(folder: Path) -> list[Path]:
    try:
        entries = [e for e in os.scandir(folder) if _FILE.fullmatch(e.name) and e.is_file(follow_symlinks=False)]
        return [Path(entry.path) for entry in entries]
    except FileNotFoundError:
        return []  # another worker of this node was faster


def _remove(path: Path) -> bool:
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True


def _repair(part: Path) -> bool:
    try:
        descriptor = os.open(part, os.O_RDWR | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    closed = False
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False  # a live worker writes it
        path = Path(str(part).removesuffix(PART))
        size = os.fstat(descriptor).st_size
        if size < wav.HEADER_BYTES:
            _remove(part)  # its writer died before the first byte of audio
            return False
        rate = wav.rate_of(os.pread(descriptor, wav.HEADER_BYTES, 0))
        if rate is None or path.exists() or not part.exists():
            return False
        closed = True
        finish(descriptor, path, rate, (size - wav.HEADER_BYTES) // wav.SAMPLE_BYTES * wav.SAMPLE_BYTES)
        return True
    finally:
        if not closed:
            os.close(descriptor)


def today() -> date:
    """The day that folders are named after."""
    return datetime.now(UTC).date()
