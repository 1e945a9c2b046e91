"""Unpacks Debian's Asterisk, with every library that it needs, into a folder of the user's: no root, no chroot.

apt-get works on a state of its own, in which nothing is installed, so that it fetches the whole closure including the
C library. The result is started through its own dynamic loader, and so does not depend on this machine's libraries.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tools.asterisk.install import (
    AsteriskInstall,
    AsteriskUnavailable,
    ask_version,
    floors_text,
    missing_parts,
    new_enough,
    release,
)

SUITE = "sid"
PACKAGES = ("asterisk", "asterisk-modules", "asterisk-core-sounds-en")
DEFAULT_MIRROR = "http://deb.debian.org/debian"
KEYRINGS = tuple(Path("/usr/share/keyrings") / f"debian-archive-keyring.{suffix}" for suffix in ("gpg", "pgp"))

# machine (uname -m) -> Debian's architecture, folder of libraries, dynamic loader
_MACHINES = {
    "x86_64": ("amd64", "x86_64-linux-gnu", "ld-linux-x86-64.so.2"),
    "aarch64": ("arm64", "aarch64-linux-gnu", "ld-linux-aarch64.so.1"),
}
_STAMP = "stamp.json"
_PACKAGES_PER_LINE = 40

Progress = Callable[[str], None]


def unpacked(cache_dir: Path, progress: Progress) -> AsteriskInstall:
    """The Asterisk in `cache_dir`, unpacked there first when it is missing or damaged. Raises `AsteriskUnavailable`."""
    machine = os.uname().machine
    if machine not in _MACHINES:
        raise AsteriskUnavailable(
            f"no Asterisk for {machine} can be unpacked ({', '.join(_MACHINES)} can):"
            f" install Asterisk {floors_text()} or newer"
        )
    root = cache_dir / f"{SUITE}-{machine}"
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with _lock(cache_dir / "lock", progress):
            problem = _damage(root)
            if problem is not None:
                if root.exists():
                    progress(f"{root} is damaged ({problem}): unpacking it again")
                _make(root, progress)
            return _install(root)
    except OSError as error:
        raise AsteriskUnavailable(f"{error.filename or cache_dir}: {error.strerror or error}") from None


@contextlib.contextmanager
def _lock(path: Path, progress: Progress) -> Iterator[None]:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("another process is unpacking Asterisk: waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _describe(root: Path) -> AsteriskInstall:
    _, folder, loader = _MACHINES[os.uname().machine]
    libraries = root / "usr/lib" / folder
    path = f"{libraries}:{libraries / 'asterisk'}"
    argv = (str(libraries / loader), "--library-path", path, str(root / "usr/sbin/asterisk"))
    return AsteriskInstall(argv, libraries / "asterisk/modules", root / "usr/share/asterisk", "", "unpacked")


def _install(root: Path) -> AsteriskInstall:
    install = _describe(root)
    said = ask_version(install.argv).removeprefix("Asterisk ")
    return AsteriskInstall(install.argv, install.modules, install.data, said, "unpacked")


def _damage(root: Path) -> str | None:
    """What is wrong with the unpacked root; None when nothing is."""
    try:
        stamp = json.loads((root / _STAMP).read_text())
    except (OSError, ValueError) as error:
        return f"its stamp cannot be read: {error}"
    if not isinstance(stamp, dict) or stamp.get("size") != _size(root):
        return "files are missing or changed"
    try:
        ask_version(_describe(root).argv)
    except AsteriskUnavailable as error:
        return str(error)
    return None


def _size(root: Path) -> list[int]:
    """Number of files below `root` and the sum of their sizes in bytes, the stamp left out."""
    files = [
        os.lstat(os.path.join(folder, name)).st_size
        for folder, _, names in os.walk(root)
        for name in names
        if name != _STAMP
    ]
    return [len(files), sum(files)]


def _make(root: Path, progress: Progress) -> None:
    started = time.monotonic()
    # What an interrupted run left; nobody else is at work here, we hold the lock.
    for leftover in root.parent.glob(f"{root.name}.*.tmp"):
        shutil.rmtree(leftover)
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            raise AsteriskUnavailable(
                f"{program} is not installed, so no Asterisk can be unpacked here:"
                f" install Asterisk {floors_text()} or newer, with English core sounds"
            )
    work = Path(tempfile.mkdtemp(prefix=f"{root.name}.", suffix=".tmp", dir=root.parent))
    try:
        packages = _fetch(work / "apt", progress)
        progress(f"unpacking {len(packages)} packages")
        fresh = work / "root"
        fresh.mkdir()
        for package in packages:
            _run(["dpkg-deb", "-x", str(package), str(fresh)], f"unpacking {package.name}")
        _trim(fresh)
        _link_prompts(fresh)
        install = _install(fresh)
        found = release(f"Asterisk {install.version}")
        if found is None or not new_enough(found):
            raise AsteriskUnavailable(f"the packages hold Asterisk {install.version}, older than {floors_text()}")
        missing = missing_parts(install)
        if missing:
            raise AsteriskUnavailable(f"the packages lack {Path(missing[0]).relative_to(fresh)}")
        size = _size(fresh)
        stamp = {"size": size, "packages": sorted(package.stem for package in packages)}
        (fresh / _STAMP).write_text(json.dumps(stamp, indent=1))
        if root.exists():
            shutil.rmtree(root)
        fresh.rename(root)
        seconds = time.monotonic() - started
        progress(f"Asterisk {install.version} unpacked in {seconds:.0f} s, {size[1] / 1e6:.0f} MB in {root}")
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _fetch(work: Path, progress: Progress) -> list[Path]:
    """Downloads the packages and all that they depend on; the .deb files."""
    keyring = next((path for path in KEYRINGS if path.is_file()), None)
    if keyring is None:
        raise AsteriskUnavailable(
            f"{KEYRINGS[0]} is missing, so Debian's packages cannot be verified:"
            " install the package debian-archive-keyring"
        )
    for folder in ("lists/partial", "archives/partial", "state"):
        (work / folder).mkdir(parents=True)
    (work / "state/status").touch()
    environment = {**os.environ, "APT_CONFIG": str(work / "first.conf"), "LC_ALL": "C"}
    (work / "first.conf").write_text(f'Dir::Etc::main "{work}/apt.conf";\n')
    (work / "apt.conf").write_text(_apt_conf(work))
    mirrors = _mirrors()
    for mirror in mirrors:
        progress(f"reading the package list of Debian {SUITE} from {mirror}")
        (work / "sources.list").write_text(f"deb [signed-by={keyring}] {mirror} {SUITE} main\n")
        try:
            _run(["apt-get", "update", "--error-on=any"], f"reading {mirror}", environment)
            break
        except AsteriskUnavailable as error:
            if mirror == mirrors[-1]:
                raise
            progress(str(error))
    command = ["apt-get", "-y", "--no-install-recommends", "install", *PACKAGES]
    plan = _run([*command, "--print-uris"], "choosing the packages", environment)
    needed = re.search(r"Need to get (.+?) of archives", plan)
    wanted = len(re.findall(r"^\S+ \S+[.]deb ", plan, re.MULTILINE))
    progress(f"downloading {wanted} packages{', ' + needed[1] if needed else ''}")

    def count(line: str) -> None:
        found = re.match(r"Get:(\d+) ", line)
        if found and int(found[1]) % _PACKAGES_PER_LINE == 0:
            progress(f"downloaded {found[1]} of {wanted} packages")

    _run([*command, "--download-only"], "downloading the packages", environment, count)
    return sorted((work / "archives").glob("*.deb"))


def _apt_conf(work: Path) -> str:
    """apt's configuration for our own state; read last, after this machine's own (which may name a proxy)."""
    architecture = _MACHINES[os.uname().machine][0]
    own = "/etc/apt/apt.conf"
    lines = [f'#include "{own}";'] if Path(own).is_file() else []
    # Hooks of this machine are about this machine's packages.
    hooks = (
        "APT::Update::Pre-Invoke",
        "APT::Update::Post-Invoke",
        "APT::Update::Post-Invoke-Success",
        "DPkg::Pre-Invoke",
        "DPkg::Post-Invoke",
        "DPkg::Pre-Install-Pkgs",
        "APT::Architectures",
    )
    lines += [f"#clear {name};" for name in hooks]
    options = {
        "Dir::State": work / "state",
        "Dir::State::lists": work / "lists",
        "Dir::State::status": work / "state/status",
        "Dir::Cache": work,
        "Dir::Cache::archives": work / "archives",
        "Dir::Etc::sourcelist": work / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::Etc::preferences": "/dev/null",
        "Dir::Etc::preferencesparts": "/dev/null",
        "Dir::Log": work,
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
        "APT::Default-Release": "",
        # apt would hand the download to a user of its own, who cannot enter the caller's folders.
        "APT::Sandbox::User": "",
        "APT::Keep-Downloaded-Packages": "true",
        "Acquire::Languages": "none",
        "Acquire::Retries": "3",
        "Acquire::http::Timeout": "30",
        "Acquire::https::Timeout": "30",
    }
    return "".join(f"{line}\n" for line in lines) + "".join(f'{key} "{value}";\n' for key, value in options.items())


def _mirrors() -> list[str]:
    """Debian mirrors to try: those that this machine uses already, then Debian's public one."""
    try:
        listed = subprocess.run(
            ["apt-get", "indextargets", "--format", "$(ORIGIN) $(REPO_URI)", "Identifier: Packages"],
            capture_output=True,
            text=True,
            timeout=60,
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        listed = ""
    found = [line.split()[1].rstrip("/") for line in listed.splitlines() if re.match(r"Debian https?://\S+$", line)]
    # The security archive is Debian's too, but holds no sid.
    usable = [uri for uri in found if not uri.endswith("-security")]
    return list(dict.fromkeys((*usable, DEFAULT_MIRROR)))


def _run(
    command: list[str],
    doing: str,
    environment: dict[str, str] | None = None,
    on_line: Callable[[str], None] = lambda line: None,
) -> str:
    """What `command` said; `on_line` hears it as it comes. apt's own time limits hold, see `_apt_conf`."""
    lines = []
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment,
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                lines.append(line.rstrip())
                on_line(line)
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        # apt's complaints are marked; of other programs, the last lines tell most.
        said = [line for line in lines if line.startswith(("E:", "W:"))][:3] or lines[-3:]
        raise AsteriskUnavailable(f"{doing} failed: {' '.join(said) or f'status {process.returncode}'}")
    return "\n".join(lines)


def _trim(root: Path) -> None:
    """Drops what Asterisk does not open: three quarters of the packages are for administration and documentation."""
    _, folder, _ = _MACHINES[os.uname().machine]
    keep = {root / "usr/lib" / folder, root / "usr/sbin/asterisk", root / "usr/share/asterisk"}
    for path in [*root.iterdir(), *root.glob("usr/*"), *root.glob("usr/*/*")]:
        wanted = any(path == kept or path in kept.parents for kept in keep)
        if not wanted and (path.is_symlink() or path.exists()):
            _remove(path)
    for name in ("gconv", "perl", "perl-base"):
        _remove(root / "usr/lib" / folder / name)
    for path in (root / "usr/share/asterisk/sounds").iterdir():
        if path.is_symlink():
            path.unlink()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _link_prompts(root: Path) -> None:
    """Names the English voice `en`, as the package's installation script would."""
    sounds = root / "usr/share/asterisk/sounds"
    voices = sorted(path.name for path in sounds.glob("en_*") if path.is_dir())
    if not voices:
        raise AsteriskUnavailable("the packages hold no English prompts")
    (sounds / "en").symlink_to(voices[0])
