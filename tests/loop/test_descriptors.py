"""The room for descriptors, as Linux shows it."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.loop

# The table of a process never shrinks: each case has a process of its own.
PROGRAM = """
import os, resource, sys
from pathlib import Path
from audiosocket.descriptors import make_room

count, allowed = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, allowed))
with open(os.devnull) as there:
    make_room(there.fileno(), count)
    print(Path("/proc/self/status").read_text())
    print("open:", len(os.listdir("/proc/self/fd")) - 1)
"""


@pytest.mark.parametrize(("count", "allowed", "room"), [(3000, 4000, 3000), (3000, 1000, 1000)])
def test_the_table_has_room_at_once(count: int, allowed: int, room: int) -> None:
    if allowed > resource.getrlimit(resource.RLIMIT_NOFILE)[1]:
        allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        room = min(room, allowed)
    shown = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(count), str(allowed)],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    ).stdout
    found = re.search(r"FDSize:\s+(\d+)", shown)
    assert found is not None
    assert int(found[1]) >= room
    assert "open: 4\n" in shown  # the three of every process, and that one
