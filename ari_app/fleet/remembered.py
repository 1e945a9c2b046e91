"""The workers that a controller knew last, in a file: for one that is started while Redis is away."""

from __future__ import annotations

from pathlib import Path

import msgspec
import structlog

from audiosocket.callspec import WorkerInfo

MAX_BYTES = 4_194_304

log = structlog.get_logger(__name__)


class RememberedWorkers:
    """`workers-NODE.json` in `state_dir`. Written when workers come, go or change addresses; a file that cannot be
    read or written is told of in the log, and nothing rests on it but what this is for."""

    def __init__(self, state_dir: Path, node: str) -> None:
        self._path = state_dir / f"workers-{node}.json"
        self._written: list[WorkerInfo] | None = None

    def read(self) -> list[WorkerInfo]:
        """The workers as they were written last."""
        try:
            with self._path.open("rb") as file:
                return msgspec.json.decode(file.read(MAX_BYTES), type=list[WorkerInfo])
        except FileNotFoundError:
            return []
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            log.warning("workers_not_remembered", path=str(self._path), why=str(error))
            return []

    def write(self, workers: list[WorkerInfo]) -> None:
        """Remembers these workers: who they are, not what they carry."""
        lasting = [
            msgspec.structs.replace(
                info, active=0, draining=False, overloaded=False, cpu_percent=0, lateness_ms=0, started_at_ms=0
            )
            for info in workers
        ]
        if lasting == self._written:
            return
        self._written = lasting
        new = self._path.with_suffix(".new")
        try:
            new.write_bytes(msgspec.json.encode(lasting))
            new.replace(self._path)
        except OSError as error:
            log.warning("workers_not_remembered", path=str(self._path), why=str(error))
