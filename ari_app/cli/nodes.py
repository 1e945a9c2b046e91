"""`trunkbridge nodes` and `trunkbridge pairs`: who is there, and which of them get new calls."""

from __future__ import annotations

import asyncio
import getpass
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import click

from ari_app.cli.options import clock, config_option, emit, emit_rows, output_option, run
from ari_app.cli.workers import WORKER_COLUMNS, up
from ari_app.errors import StoreUnavailable
from ari_app.fleet import overview
from ari_app.fleet.leases import Leases
from ari_app.fleet.marks import Mark, MarkKind, Marks
from ari_app.store.controllers import ControllerInfo, Controllers
from ari_app.store.postgres import open_pool
from ari_app.store.present import Present
from audiosocket.callspec import WorkerInfo
from audiosocket.runtime.stores import open_redis, resolve
from audiosocket.settings import load_node

LOOK_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Fleet:
    """What is known of all nodes at one time."""

    workers: list[WorkerInfo]
    controllers: list[ControllerInfo]
    marks: dict[str, Mark]
    active: dict[str, int]
    """Leases by worker."""
    gone: list[tuple[str, Literal["pbx", "gateway"]]]
    """Nodes that have announced themselves and neither do so any more nor have taken it back."""

    def rows(self) -> list[overview.NodeView]:
        """One row per node and role."""
        marks = {node: mark.mark for node, mark in self.marks.items()}
        return overview.nodes(self.workers, self.controllers, marks, self.active, self.gone)

    def names(self) -> set[str]:
        """All nodes, those that are gone or only marked included."""
        return {row.node for row in self.rows()} | set(self.marks)


class Reader:
    """Reads the fleet from the stores that a configuration file names."""

    def __init__(self, marks: Marks, present: Present, controllers: Controllers, leases: Leases) -> None:
        self.marks = marks
        self.present = present
        self.controllers = controllers
        self.leases = leases

    async def read(self) -> Fleet:
        """The fleet as it is now; without PostgreSQL, without marks. Raises `StoreUnavailable`."""
        workers, controllers = await self.present.workers(), await self.controllers.controllers()
        alive = {info.worker_id for info in workers}
        gone: list[tuple[str, Literal["pbx", "gateway"]]] = [
            (_node_of(worker_id), "gateway") for worker_id in await self.present.worker_ids() if worker_id not in alive
        ]
        running = {info.controller_id for info in controllers}
        gone += [(_node_of(one), "pbx") for one in await self.controllers.ids() if one not in running]
        active = await self.leases.active(sorted(alive)) if alive else {}
        try:
            marks = await self.marks.read()
        except StoreUnavailable as error:  # the rest is worth having all the more
            click.echo(f"Warning: cordoned and draining nodes are not known: {error}", err=True)
            marks = {}
        return Fleet(workers, controllers, marks, active, gone)

    async def node(self, node: str) -> Fleet:
        """The fleet, in which a node of that name is. Raises `click.ClickException` where there is none."""
        fleet = await self.read()
        if node not in fleet.names():
            known = ", ".join(sorted(fleet.names())) or "none has announced itself"
            raise click.ClickException(f"no node {node!r}: one of {known}")
        return fleet


def _node_of(identity: str) -> str:
    return identity.rpartition("/")[0]


@asynccontextmanager
async def reading(config_path: Path) -> AsyncIterator[Reader]:
    """A `Reader` with its connections."""
    urls = resolve(load_node(config_path))
    pool = await open_pool(urls)
    client = open_redis(urls)
    try:
        yield Reader(Marks(pool, client), Present(client), Controllers(client), Leases(client, 30))
    finally:
        await client.aclose()
        await pool.close()


_NODE_COLUMNS: list[tuple[str, Callable[[Any], Any]]] = [
    ("NODE", lambda row: row.node),
    ("ROLE", lambda row: row.role),
    ("PAIR", lambda row: row.pair),
    ("STATE", lambda row: row.state),
    ("CALLS", lambda row: f"{row.calls} of {row.capacity}"),
    ("PROCESSES", lambda row: row.processes),
    ("VERSION", lambda row: ", ".join(row.versions)),
]
_PAIR_COLUMNS: list[tuple[str, Callable[[Any], Any]]] = [
    ("PAIR", lambda row: row.pair),
    ("STATE", lambda row: row.state),
    ("CALLS", lambda row: f"{row.calls} of {row.capacity}"),
    ("LOAD", lambda row: f"{100 * row.calls / row.capacity:.0f}%" if row.capacity else ""),
    ("WORKERS", lambda row: row.workers),
    ("NODES", lambda row: ", ".join(row.nodes)),
]
_CONTROLLER_COLUMNS: list[tuple[str, Callable[[Any], Any]]] = [
    ("CONTROLLER", lambda info: info.controller_id),
    ("PAIR", lambda info: info.pair),
    ("STATE", overview.controller_state),
    ("CALLS", lambda info: f"{info.calls} of {info.capacity}"),
    ("VERSION", lambda info: info.version),
    ("UP", up),
]


@click.group()
def nodes() -> None:
    """List the nodes, take them out of placement and let them back in.

    A PBX node is known by its controllers, a gateway node by its media workers; a machine may be both.
    """


@nodes.command("list")
@config_option
@output_option
def list_command(config_path: Path, form: str) -> None:
    """List all nodes: `gone` is one that has not said goodbye."""

    async def read() -> list[overview.NodeView]:
        async with reading(config_path) as reader:
            return (await reader.read()).rows()

    emit_rows(run(read()), _NODE_COLUMNS, form, "no node has announced itself: does a gateway or a controller run?")


@nodes.command()
@click.argument("node")
@config_option
@output_option
def show(node: str, config_path: Path, form: str) -> None:
    """Show NODE: its mark, its controllers and its workers."""

    async def read() -> Fleet:
        async with reading(config_path) as reader:
            return await reader.node(node)

    fleet = run(read())
    mark = fleet.marks.get(node)
    workers = [info for info in fleet.workers if info.node == node]
    controllers = [info for info in fleet.controllers if info.node == node]
    rows = [row for row in fleet.rows() if row.node == node]
    if form != "table":
        emit({"nodes": rows, "mark": mark, "controllers": controllers, "workers": workers}, form)
        return
    if mark is not None:
        click.echo(f"{mark.mark} by {mark.set_by} since {clock(mark.since)}")
    for row in rows:
        click.echo(f"{row.role}: {row.state}, {row.calls} of {row.capacity} calls")
    if controllers:
        emit_rows(controllers, _CONTROLLER_COLUMNS, form, "")
    if workers:
        emit_rows(workers, WORKER_COLUMNS, form, "")


@nodes.command()
@click.argument("node")
@config_option
def cordon(node: str, config_path: Path) -> None:
    """Give NODE no new calls; those that it has go on. `resume` takes it back."""
    run(_mark(config_path, node, "cordoned"))
    click.echo(f"{node}: cordoned; `trunkbridge nodes resume {node}` takes it back")


@nodes.command()
@click.argument("node")
@config_option
@click.option("--seconds", type=click.FloatRange(min=0), help="Wait so long at most; exit code 1 when calls are left.")
def drain(node: str, config_path: Path, seconds: float | None) -> None:
    """Give NODE no new calls, and wait until those that it has have ended.

    No call is moved or cut off. Ctrl-C stops the waiting, not the drain; `resume` takes it back.
    """

    async def work() -> int:
        await _mark(config_path, node, "draining")
        until = None if seconds is None else time.monotonic() + seconds
        told = -1
        async with reading(config_path) as reader:
            while True:
                calls = sum(row.calls for row in (await reader.read()).rows() if row.node == node)
                if calls != told:
                    click.echo(f"{node}: {calls} calls left" if calls else f"{node}: drained, no call is left")
                    told = calls
                if not calls or (until is not None and time.monotonic() >= until):
                    return calls
                await asyncio.sleep(LOOK_SECONDS)

    left = run(work())
    if left:
        raise click.ClickException(f"{node}: {left} calls are left after {seconds:g} s; it gets no new ones")


@nodes.command()
@click.argument("node")
@config_option
def resume(node: str, config_path: Path) -> None:
    """Let NODE take calls again."""

    async def work() -> bool:
        async with reading(config_path) as reader:
            await reader.node(node)
            return await reader.marks.clear(node)

    click.echo(f"{node}: takes calls" if run(work()) else f"{node}: was neither cordoned nor draining")


@nodes.command()
@click.argument("node")
@config_option
def forget(node: str, config_path: Path) -> None:
    """Strike NODE, which is gone for good, off the list, with its mark."""

    async def work() -> None:
        async with reading(config_path) as reader:
            fleet = await reader.node(node)
            if any(row.node == node and row.state != "gone" for row in fleet.rows()):
                raise click.ClickException(f"{node} is there: stop its controllers and workers first")
            workers = [one for one in await reader.present.worker_ids() if _node_of(one) == node]
            controllers = [one for one in await reader.controllers.ids() if _node_of(one) == node]
            if workers:
                await reader.present.forget_workers(workers)
            if controllers:
                await reader.controllers.forget(controllers)
            await reader.marks.clear(node)

    run(work())
    click.echo(f"{node}: forgotten")


@click.group()
def pairs() -> None:
    """List the node pairs and what they have to give."""


@pairs.command("list")
@config_option
@output_option
def pairs_list(config_path: Path, form: str) -> None:
    """List the pairs: calls are those on their workers."""

    async def read() -> list[overview.PairView]:
        async with reading(config_path) as reader:
            return overview.pairs((await reader.read()).rows())

    emit_rows(run(read()), _PAIR_COLUMNS, form, "no node has announced itself: does a gateway or a controller run?")


async def _mark(config_path: Path, node: str, mark: MarkKind) -> None:
    async with reading(config_path) as reader:
        await reader.node(node)
        await reader.marks.put(node, mark, getpass.getuser())
