"""A process that queues call records without end, to be killed: `python -m tests.store.record_source URLS FOLDER RUN`.

It prints `kept N` when all records up to call N are said to be durable (`RecordWriter.barrier`).
"""

from __future__ import annotations

import asyncio
import sys
import uuid
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from ari_app.store.postgres import open_pool
from ari_app.store.records import CallEvent, CallRow
from ari_app.store.spool import Spool
from ari_app.store.writer import RecordWriter
from audiosocket.settings import StoreUrls

EVENTS = 4
T0 = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def call_id(run: int, number: int) -> str:
    """Of a call of a run."""
    return str(uuid.UUID(int=(run << 64) + number))


async def queue(urls: StoreUrls, folder: Path, run: int) -> None:
    """For ever: calls that ring, are connected, and end."""
    writer = RecordWriter(await open_pool(urls), Spool(folder, 100_000_000))
    writer.start()
    number = 0
    while True:
        for _ in range(5):
            first = CallRow(
                call_id=call_id(run, number),
                call_sid=f"{run}-{number}",
                node="n1",
                direction="inbound",
                state="new",
                created_at=T0,
            )
            states = (
                first,
                replace(first, state="talking", connected_at=T0),
                replace(first, state="ended", ended_at=T0),
            )
            for seq in range(EVENTS):
                writer.event(
                    CallEvent(call_id=first.call_id, source=f"run-{run}", seq=seq, at=T0, event="x", detail={"n": seq})
                )
                if seq < len(states):
                    writer.call(states[seq])
                    await asyncio.sleep(0.001)
            number += 1
        await writer.barrier()
        print(f"kept {number}", flush=True)


if __name__ == "__main__":
    asyncio.run(queue(StoreUrls.model_validate_json(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])))
