"""`trunkbridge calls`: the records of calls, live and past, and the orders to end one or to move it."""

from __future__ import annotations

import asyncio
import getpass
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import click
import msgspec
from rich.live import Live

from ari_app.cli.conversation import FIELDS, conversation, half_and_most, talk_shares
from ari_app.cli.options import clock, config_option, console, emit, emit_rows, output_option, plain, run, table
from ari_app.domain.hangup import describe
from ari_app.settings import load
from ari_app.store.calls import CallStore
from ari_app.store.postgres import open_pool
from ari_app.store.present import Command, Present
from ari_app.store.records import CallEvent, CallRow
from audiosocket.callspec import MediaFigures
from audiosocket.runtime.stores import open_redis, resolve

HANGUP_SECONDS = 10.0
MOVE_SECONDS = 10.0
WORKER_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Stores:
    """What the commands read from and write to."""

    calls: CallStore
    present: Present


@asynccontextmanager
async def _stores(config_path: Path) -> AsyncIterator[Stores]:
    config = load(config_path)
    urls = resolve(config)
    pool = await open_pool(urls)
    client = open_redis(urls)
    try:
        yield Stores(CallStore(pool), Present(client))
    finally:
        await client.aclose()
        await pool.close()


def _seconds(row: CallRow) -> str:
    end = row.ended_at or datetime.now(UTC)
    return f"{(end - row.created_at).total_seconds():.1f}"


_COLUMNS: list[tuple[str, Callable[[Any], Any]]] = [
    ("CALL", lambda row: row.call_id),
    ("BEGAN", lambda row: clock(row.created_at)),
    ("SECONDS", _seconds),
    ("TRUNK", lambda row: row.trunk),
    ("CALLER", lambda row: row.caller),
    ("NUMBER", lambda row: row.callee),
    ("APPLICATION", lambda row: row.application),
    ("STATE", lambda row: row.state),
    ("RESULT", lambda row: row.result),
    ("REASON", lambda row: row.reason),
]


@click.group()
def calls() -> None:
    """List, show, watch, hang up and move calls."""


@calls.command("list")
@config_option
@output_option
@click.option("--active", is_flag=True, help="Only calls that have not ended.")
@click.option("--trunk", help="Only calls of this trunk.")
@click.option("--application", help="Only calls to this application.")
@click.option("--caller", help="Only calls from this number (E.164).")
@click.option("--minutes", type=click.IntRange(min=1), help="Only calls that began so recently.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=30, show_default=True)
def list_command(
    config_path: Path,
    form: str,
    active: bool,
    trunk: str | None,
    application: str | None,
    caller: str | None,
    minutes: int | None,
    limit: int,
) -> None:
    """List calls, newest first."""
    since = None if minutes is None else datetime.now(UTC) - timedelta(minutes=minutes)

    async def read() -> list[CallRow]:
        async with _stores(config_path) as stores:
            return await stores.calls.list_calls(
                limit=limit, active_only=active, trunk=trunk, application=application, caller=caller, since=since
            )

    emit_rows(run(read()), _COLUMNS, form, "no calls")


@calls.command()
@click.argument("call")
@config_option
@output_option
def show(call: str, config_path: Path, form: str) -> None:
    """Show CALL (its id, the beginning of it, or its call sid): its record, its figures and its whole story."""

    async def read() -> tuple[CallRow, list[CallEvent], MediaFigures | None]:
        async with _stores(config_path) as stores:
            row = await _find(stores, call)
            figures = row.media if row.media is not None else await _live_figures(stores, row)
            return row, await stores.calls.events(row.call_id), figures

    row, events, figures = run(read())
    if form != "table":
        emit({"call": row, "media": figures, "events": events}, form)
        return
    _show_record(row)
    if figures is not None:
        click.echo("media:")
        for name, value in plain(figures).items():
            if value not in (0, {}, [], -1) and name not in FIELDS:
                click.echo(f"  {name}: {value}")
        if told := conversation(figures):
            click.echo("conversation:")
            for line in told:
                click.echo(f"  {line}")
    click.echo("story:")
    for event in events:
        _show_event(event, row.created_at)


@calls.command()
@config_option
@click.option("--seconds", type=click.FloatRange(min=0.2), default=1.0, show_default=True, help="Between two looks.")
@click.option("--count", type=click.IntRange(min=1), help="Stop after so many looks.")
def watch(config_path: Path, seconds: float, count: int | None) -> None:
    """Watch the live calls, with their media figures, until Ctrl-C.

    Response times and barge-ins are p50/p95 in ms, talk is the caller's, the application's and both in % of the time.
    """

    async def follow() -> None:
        looks = 0
        async with _stores(config_path) as stores:
            with Live(console=console(), auto_refresh=False) as live:
                while True:
                    rows = await stores.calls.list_calls(active_only=True, limit=100)
                    figures = await asyncio.gather(*(_live_figures(stores, row) for row in rows))
                    live.update(table(list(zip(rows, figures, strict=True)), _WATCH_COLUMNS), refresh=True)
                    looks += 1
                    if count is not None and looks >= count:
                        return
                    await asyncio.sleep(seconds)

    run(follow())


@calls.command()
@click.argument("call")
@config_option
def hangup(call: str, config_path: Path) -> None:
    """Hang up CALL through its controller, and wait until its record is closed."""

    async def order() -> CallRow:
        async with _stores(config_path) as stores:
            row = await _find(stores, call)
            if row.ended_at is not None:
                raise click.ClickException(f"call {row.call_id} has ended already ({row.reason})")
            await stores.present.send_command(
                row.node, Command(verb="hangup", call_id=row.call_id, by=getpass.getuser())
            )
            try:
                async with asyncio.timeout(HANGUP_SECONDS):
                    while row.ended_at is None:
                        await asyncio.sleep(0.1)
                        row = await _find(stores, row.call_id)
            except TimeoutError:
                raise click.ClickException(
                    f"call {row.call_id} has not ended within {HANGUP_SECONDS:g} s: does the controller of"
                    f" {row.node} run? `trunkbridge channels hangup` ends its channel without it"
                ) from None
            return row

    row = run(order())
    click.echo(f"{row.call_id}: ended, {row.reason}")


@calls.command()
@click.argument("call")
@click.option("--to", "worker", default="", help="The worker that is to have it; otherwise any other.")
@config_option
def move(call: str, worker: str, config_path: Path) -> None:
    """Move live CALL to another media worker, and wait until that has it.

    Its application gets a `stop` on the stream that it has, and a `start` on another one.
    """

    async def order() -> CallRow:
        async with _stores(config_path) as stores:
            row = await _find(stores, call)
            if row.ended_at is not None:
                raise click.ClickException(f"call {row.call_id} has ended already ({row.reason})")
            if worker and worker == row.worker_id:
                raise click.ClickException(f"call {row.call_id} is on {worker} already")
            told = {(event.source, event.seq) for event in await stores.calls.events(row.call_id)}
            await stores.present.send_command(
                row.node, Command(verb="move", call_id=row.call_id, by=getpass.getuser(), worker=worker)
            )
            try:
                async with asyncio.timeout(MOVE_SECONDS):
                    return await _moved(stores, row.call_id, told)
            except TimeoutError:
                raise click.ClickException(
                    f"call {row.call_id} has not been moved within {MOVE_SECONDS:g} s: does the controller of"
                    f" {row.node} run?"
                ) from None

    row = run(order())
    click.echo(f"{row.call_id}: moved, to {row.worker_id}")


async def _moved(stores: Stores, call_id: str, told: set[tuple[str, int]]) -> CallRow:
    """The record of a call that is being moved, once it has been; `told`: events of its story before the order."""
    while True:
        await asyncio.sleep(0.1)
        for event in await stores.calls.events(call_id):
            if (event.source, event.seq) in told:
                continue
            if event.event == "moved":
                return await _find(stores, call_id)
            if event.event in ("not_moved", "stays"):
                raise click.ClickException(f"call {call_id} stays where it is: {event.detail.get('detail', '')}")
        row = await _find(stores, call_id)
        if row.ended_at is not None:
            raise click.ClickException(f"call {call_id} has ended meanwhile ({row.reason})")


_WATCH_COLUMNS: list[tuple[str, Callable[[Any], Any]]] = [
    ("CALL", lambda pair: pair[0].call_id[:8]),
    ("SECONDS", lambda pair: _seconds(pair[0])),
    ("CALLER", lambda pair: pair[0].caller),
    ("NUMBER", lambda pair: pair[0].callee),
    ("APPLICATION", lambda pair: pair[0].application),
    ("STATE", lambda pair: pair[0].state),
    ("WORKER", lambda pair: pair[0].worker_id),
    ("FROM CALLER", lambda pair: pair[1] and pair[1].caller_frames),
    ("PLAYED", lambda pair: pair[1] and pair[1].frames_played),
    ("MARKS", lambda pair: pair[1] and f"{pair[1].marks_sent}/{pair[1].marks_received}"),
    ("DROPPED", lambda pair: pair[1] and sum(pair[1].frames_dropped.values())),
    ("TURNS", lambda pair: pair[1] and pair[1].turns),
    ("RESPONSE", lambda pair: pair[1] and half_and_most(pair[1].response_ms)),
    ("BARGE-IN", lambda pair: pair[1] and half_and_most(pair[1].barge_in_ms)),
    ("TALK", lambda pair: pair[1] and talk_shares(pair[1])),
]


async def _find(stores: Stores, text: str) -> CallRow:
    row = await stores.calls.get_call(text)
    if row is None:
        raise click.ClickException(f"no call {text!r}: see `trunkbridge calls list`")
    return row


async def _live_figures(stores: Stores, row: CallRow) -> MediaFigures | None:
    """The figures of a live call, from its worker; None when it has none or cannot be asked."""
    if row.worker_id is None or row.ended_at is not None:
        return None
    worker = next((worker for worker in await stores.present.workers() if worker.worker_id == row.worker_id), None)
    if worker is None or not worker.status_url:
        return None
    limit = aiohttp.ClientTimeout(total=WORKER_SECONDS)
    try:
        url = f"{worker.status_url}/calls/{row.call_id}"
        async with aiohttp.ClientSession(timeout=limit) as http, http.get(url) as answer:
            if answer.status != 200:
                return None
            return msgspec.json.decode(await answer.read(), type=_LiveCall).figures
    except (aiohttp.ClientError, TimeoutError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


class _LiveCall(msgspec.Struct):
    figures: MediaFigures


def _show_record(row: CallRow) -> None:
    for name in ("call_id", "call_sid", "direction", "node", "trunk", "caller", "callee", "application", "worker_id"):
        value = getattr(row, name)
        if value:
            click.echo(f"{name}: {value}")
    click.echo(f"began: {clock(row.created_at)}, {_seconds(row)} s {'so far' if row.ended_at is None else 'in all'}")
    click.echo(f"state: {row.state}")
    if row.ended_at is not None:
        click.echo(f"result: {row.result}, {row.reason}{f' ({row.detail})' if row.detail else ''}")
    if row.hangup_cause is not None:
        click.echo(f"hangup cause: {describe(row.hangup_cause)}")
    parts = row.recordings or ()
    if len(parts) < 2 and row.recording:
        click.echo(f"recording: {row.recording}")
    for number, part in enumerate(parts if len(parts) > 1 else (), start=1):
        click.echo(f"recording {number}: {part.recording}, of {part.worker_id}, from {clock(part.began_at)} on")


def _show_event(event: CallEvent, began: datetime) -> None:
    after = (event.at - began).total_seconds()
    moved = f" {event.from_state} -> {event.to_state}" if event.to_state else ""
    detail = " ".join(
        f"{key}={value}" for key, value in event.detail.items() if key not in ("after_ms", "reason") and value != ""
    )
    cause = f" [{event.cause}]" if event.cause else ""
    click.echo(f"  {after:9.3f} s  {event.event}{moved}{cause}  {detail}".rstrip())
