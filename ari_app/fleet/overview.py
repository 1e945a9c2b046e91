"""Nodes and pairs as an operator sees them, put together from what workers and controllers have announced."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from ari_app.store.controllers import ControllerInfo
from audiosocket.callspec import WorkerInfo


@dataclass(frozen=True, slots=True)
class NodeView:
    """One node in one of its roles."""

    node: str
    role: Literal["pbx", "gateway"]
    pair: str
    state: str
    """`ready`, or why no new call goes there: its mark, `draining`, `overloaded`, `full`, `not accepting`,
    `standby only`, `gone`."""
    calls: int
    capacity: int
    processes: int
    """Workers, or controllers."""
    versions: tuple[str, ...]
    """More than one: an upgrade is under way."""


@dataclass(frozen=True, slots=True)
class PairView:
    """What a pair has to give."""

    pair: str
    state: str
    """`ready`, or what is missing: `no worker`, `no PBX`."""
    calls: int
    """Leases on its workers."""
    capacity: int
    """Calls that its ready workers may have."""
    workers: int
    nodes: tuple[str, ...]


def worker_state(info: WorkerInfo, mark: str = "") -> str:
    """Why no new call goes to a worker, or `ready`."""
    if mark or info.draining:
        return mark or "draining"
    if info.overloaded:
        return "overloaded"
    return "full" if info.active >= info.capacity else "ready"


def controller_state(info: ControllerInfo, mark: str = "") -> str:
    """Why no new call comes in on the PBX node of a controller, or `ready`."""
    if mark:
        return mark
    if info.role == "standby":
        return "standby"
    if not info.accepting:
        return "not accepting"
    return "full" if info.calls >= info.capacity else "ready"


def nodes(
    workers: Iterable[WorkerInfo],
    controllers: Iterable[ControllerInfo],
    marks: Mapping[str, str],
    active: Mapping[str, int],
    gone: Iterable[tuple[str, Literal["pbx", "gateway"]]] = (),
) -> list[NodeView]:
    """One row per node and role. `marks`: by node; `active`: leases by worker; `gone`: nodes that have announced
    themselves once and do not any more."""
    by_node: dict[tuple[str, Literal["pbx", "gateway"]], list[WorkerInfo | ControllerInfo]] = {}
    for worker in workers:
        by_node.setdefault((worker.node, "gateway"), []).append(worker)
    for controller in controllers:
        by_node.setdefault((controller.node, "pbx"), []).append(controller)
    views = [_view(node, role, infos, marks.get(node, ""), active) for (node, role), infos in by_node.items()]
    views += [
        NodeView(node, role, "", "gone", 0, 0, 0, ()) for node, role in sorted(set(gone)) if (node, role) not in by_node
    ]
    return sorted(views, key=lambda view: (view.pair, view.node, view.role))


def _view(
    node: str,
    role: Literal["pbx", "gateway"],
    infos: list[WorkerInfo | ControllerInfo],
    mark: str,
    active: Mapping[str, int],
) -> NodeView:
    states, calls, capacity = [], 0, 0
    for info in infos:
        if isinstance(info, WorkerInfo):
            states.append(worker_state(info, mark))
            calls += active.get(info.worker_id, info.active)
            capacity += info.capacity
        else:
            states.append(controller_state(info, mark))
            if info.role == "active":
                calls, capacity = info.calls, info.capacity
    # One that takes calls is enough; a standby says nothing about its node unless there is nobody else.
    known = [state for state in states if state != "standby"]
    state = "ready" if "ready" in known else known[0] if known else "standby only"
    versions = tuple(sorted({info.version for info in infos}))
    return NodeView(node, role, infos[0].pair, state, calls, capacity, len(infos), versions)


def pairs(rows: Iterable[NodeView]) -> list[PairView]:
    """One row per pair, from those of its nodes."""
    by_pair: dict[str, list[NodeView]] = {}
    for row in rows:
        if row.pair:
            by_pair.setdefault(row.pair, []).append(row)
    found = []
    for pair, members in sorted(by_pair.items()):
        gateways = [row for row in members if row.role == "gateway"]
        usable = [row for row in gateways if row.state in ("ready", "full")]
        pbx = [row for row in members if row.role == "pbx" and row.state in ("ready", "full")]
        found.append(
            PairView(
                pair=pair,
                state="no worker" if not usable else "no PBX" if not pbx else "ready",
                calls=sum(row.calls for row in gateways),
                capacity=sum(row.capacity for row in usable),
                workers=sum(row.processes for row in gateways),
                nodes=tuple(sorted({row.node for row in members})),
            )
        )
    return found
