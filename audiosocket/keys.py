"""Names of what controllers, media workers and operators share in Redis."""

from __future__ import annotations

# One hash tag for all keys: Redis Cluster keeps them in one slot, so that scripts may touch several.
KEY_PREFIX = "{trunkbridge}:"

WORKERS_KEY = f"{KEY_PREFIX}workers"
"""Set of all worker ids ever registered; the registration's own key says who is alive."""

PAIRS_KEY = f"{KEY_PREFIX}pairs"
"""What placement has worked out about each pair (hash, by the pair's name), empty after each announcement in it."""


def spec_key(leg_uuid: str) -> str:
    """Key of the call spec of one media leg (string, `CallSpec` as JSON)."""
    return f"{KEY_PREFIX}spec:{leg_uuid}"


def taken_key(leg_uuid: str) -> str:
    """Key that remembers that a spec was taken (string, the worker's id)."""
    return f"{KEY_PREFIX}spec-taken:{leg_uuid}"


def worker_key(worker_id: str) -> str:
    """Key of a worker's registration (string with a lifetime, `WorkerInfo` as JSON)."""
    return f"{KEY_PREFIX}worker:{worker_id}"


def pair_key(pair: str) -> str:
    """Key of what placement reads of a pair's workers and controllers (hash, written by each announcement)."""
    return f"{KEY_PREFIX}pair:{pair}"


def mark_key(node: str) -> str:
    """Key of the administrative mark of a node (string, `cordoned` or `draining`): while it is there, no new call is
    placed on that node."""
    return f"{KEY_PREFIX}mark:{node}"


def leases_key(worker_id: str) -> str:
    """Key of the calls that controllers have given to a worker (sorted set, call id by the expiry of its lease). A
    draining worker waits for those of them that have not come yet."""
    return f"{KEY_PREFIX}leases:{worker_id}"


def lease_key(call_id: str) -> str:
    """Key of what is known of a call's lease (string: its token, the worker or nothing once it was given back, the PBX
    node, the pair and the application, each after a space)."""
    return f"{KEY_PREFIX}lease:{call_id}"


def orders_channel(worker_id: str) -> str:
    """Channel (PUBLISH) on which a worker hears `LegOrder`s as JSON. One that is lost costs a held caller a moment: the
    first frame of the caller's audio releases too."""
    return f"{KEY_PREFIX}orders:{worker_id}"


def report_stream(node: str) -> str:
    """Stream on which the controller of a PBX node reads the reports of its calls (field `report`)."""
    return f"{KEY_PREFIX}reports:{node}"


def notice_stream(reports: str) -> str:
    """Stream beside the report stream `reports` for what is to be known before a call's end (field `notice`): apart, so
    that no number of notices displaces a report."""
    return f"{reports}:notices"
