"""The compiled steps of a frame, built so that reads and writes out of bounds end the process (ASan, UBSan)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
_FLAGS = "-fsanitize=address,undefined"
_LIBRARIES = ("libasan.so", "libubsan.so")
_LINKED = ("ari_app", "tools", "tests", "setup.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")


def build(folder: Path) -> dict[str, str]:
    """Builds below `folder`, from where tools run with what has been built; returns the environment that they need.
    Raises `subprocess.CalledProcessError`, or `OSError` where gcc or its libraries are missing."""
    libraries = [_library(name) for name in _LIBRARIES]
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "audiosocket", folder / "audiosocket", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in _LINKED:
        (folder / name).symlink_to(ROOT / name)
    flags = {"CC": "gcc", "CFLAGS": f"-O1 -g -fno-sanitize-recover=all -fno-omit-frame-pointer {_FLAGS}"}
    subprocess.run(
        (sys.executable, "setup.py", "-q", "build_ext", "--inplace"),
        cwd=folder,
        env=os.environ | flags | {"LDFLAGS": _FLAGS},
        check=True,
    )
    return {
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",  # Python frees little when it ends
        "PYTHONMALLOC": "malloc",  # or objects lie in arenas, where nothing is out of bounds
        "PYTHONPATH": str(folder),
    }


def _library(name: str) -> str:
    found = subprocess.run(
        ("gcc", f"-print-file-name={name}"), capture_output=True, text=True, check=True
    ).stdout.strip()
    if not Path(found).is_absolute():
        raise FileNotFoundError(f"gcc has no {name}")
    return found
