"""Other projects' packages, from their registries into a folder that can be thrown away. Nothing of theirs is kept."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from pathlib import Path

from tools.process import guarded

INSTALL_SECONDS = 300.0
NPM_PACKAGES = {"asterisk-audiosocket": "0.1.0", "@fonoster/streams": "0.15.20", "ws": "8"}
PYPI_PACKAGE = "asterisk-ai-voice-agent==0.1.6"
HERE = Path(__file__).parent
DONE = "installed"
"""The file that says so of a virtual environment."""


class NotInstalled(Exception):
    """A peer's packages cannot be had here; the text says why."""


async def node(folder: Path) -> tuple[Path, dict[str, str]]:
    """npm packages and our relays beside them; the folder, and the versions that are there. Raises `NotInstalled`."""
    program("node")
    if not _npm_folder(folder):
        # No script of a package runs here.
        await _run("npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", folder=folder)
    return folder, {name: _npm_version(folder, name) for name in NPM_PACKAGES}


async def python(folder: Path) -> tuple[Path, str]:
    """A virtual environment with PyPI's package; its interpreter, and the package's version. Raises `NotInstalled`."""
    interpreter = folder / "bin" / "python"
    if not _python_folder(folder):
        await _run(sys.executable, "-m", "venv", ".", folder=folder)
        await _run(str(interpreter), "-m", "pip", "install", "--only-binary=:all:", PYPI_PACKAGE, folder=folder)
        (folder / DONE).touch()
    return interpreter, PYPI_PACKAGE.partition("==")[2]


def _npm_folder(folder: Path) -> bool:
    """Whether everything is there already; the relays are copied in any case."""
    folder.mkdir(parents=True, exist_ok=True)
    for relay in HERE.glob("*.mjs"):
        shutil.copy(relay, folder)
    wanted = json.dumps({"private": True, "dependencies": NPM_PACKAGES})
    package = folder / "package.json"
    if package.exists() and package.read_text() == wanted:
        return all((folder / "node_modules" / name).is_dir() for name in NPM_PACKAGES)
    package.write_text(wanted)
    return False


def _python_folder(folder: Path) -> bool:
    """Whether everything is there already; what is half there is thrown away."""
    if (folder / DONE).exists():
        return True
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return False


def program(name: str) -> str:
    """Its absolute path. Raises `NotInstalled`."""
    path = shutil.which(name)
    if path is None:
        raise NotInstalled(f"{name} is not on this machine")
    return path


def _npm_version(folder: Path, name: str) -> str:
    return str(json.loads((folder / "node_modules" / name / "package.json").read_text())["version"])


async def _run(*argv: str, folder: Path) -> None:
    """Raises `NotInstalled` with the end of what the command said."""
    log = folder / "install.log"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    path = program(argv[0])
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            *guarded(path, *argv[1:]),
            cwd=folder,
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        async with asyncio.timeout(INSTALL_SECONDS):
            status = await process.wait()
    except TimeoutError:
        raise NotInstalled(f"{argv[0]} did not end within {INSTALL_SECONDS:g} s, see {log}") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if status:
        raise NotInstalled(
            f"{' '.join(argv[:3])} ended with {status}: {log.read_text(errors='replace')[-300:].strip()}"
        )
