"""The command line: help everywhere, exit code 2 for wrong usage, and one clear line for every error of ours."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from ari_app.ari.errors import AppReplaced
from ari_app.cli import main as main_module
from ari_app.cli.main import main, trunkbridge
from ari_app.errors import StoreUnavailable
from audiosocket import __version__
from audiosocket.errors import ConfigError

pytestmark = pytest.mark.loop

EXAMPLE = Path(__file__).parents[2] / "trunkbridge.example.yml"


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """A file that is right, with its secrets."""
    (tmp_path / ".run/secrets").mkdir(parents=True)
    for name in ("ari", "ami", "softphone", "cluster"):
        (tmp_path / ".run/secrets" / name).write_text("hunter2-hunter2-hunter2\n")
    path = tmp_path / "trunkbridge.yml"
    shutil.copy(EXAMPLE, path)
    return path


@pytest.fixture(autouse=True)
def no_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TRUNKBRIDGE_CONFIG", raising=False)
    monkeypatch.chdir(tmp_path)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(trunkbridge, list(arguments), prog_name="trunkbridge")


def script(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, str, str]:
    """The console script: exit code, standard output, standard error."""
    monkeypatch.setattr(sys, "argv", ["trunkbridge", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    shown = capsys.readouterr()
    code = ended.value.code
    return (code if isinstance(code, int) else 0), shown.out, shown.err


def commands(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command and group, with the words that lead to it."""
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from commands(found, (*path, name))


ALL = dict(commands(trunkbridge))


# Help


@pytest.mark.parametrize("path", list(ALL), ids=lambda path: " ".join(path) or "trunkbridge")
def test_every_command_has_help(path: tuple[str, ...]) -> None:
    result = run(*path, "--help")
    assert result.exit_code == 0
    assert result.output.startswith(f"Usage: {' '.join(('trunkbridge', *path))} ")
    assert ALL[path].help, "a sentence for whoever reads it"
    for parameter in ALL[path].params:
        if isinstance(parameter, click.Option):
            assert parameter.opts[0] in result.output


def test_the_list_of_commands_is_that_of_their_own_help() -> None:
    shown = " ".join(run("--help").output.split())
    for path, command in ALL.items():
        if len(path) == 1:
            assert path[0] in shown
            assert (command.help or "").split("\n")[0].rstrip(".").split()[0] in shown
    assert {"gateway", "controller", "config", "calls", "channels", "db", "stores"} <= {path[0] for path in ALL if path}


def test_the_version() -> None:
    assert run("--version").output == f"trunkbridge, version {__version__}\n"


def test_help_loads_no_control_plane() -> None:
    """A gateway node's command answers at once, and runs without what it does not need."""
    code = (
        "import sys; from ari_app.cli.main import trunkbridge;"
        "trunkbridge(['--help'], standalone_mode=False);"
        "heavy = {'asyncpg', 'aiohttp', 'panoramisk', 'rich', 'numpy', 'pydantic'} & set(sys.modules);"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=110, cwd=EXAMPLE.parent)
    assert done.returncode == 0, done.stderr


# Wrong usage


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["--nonsense"], "No such option"),
        (["calls", "nonsense"], "No such command 'nonsense'"),
        (["calls", "list", "--output", "xml"], "'xml' is not one of 'table', 'json', 'yaml'"),
        (["calls", "list", "--limit", "0"], "0 is not in the range 1<=x<=10000"),
        (["calls", "list", "--minutes", "soon"], "'soon' is not a valid integer"),
        (["calls", "show"], "Missing argument 'CALL'"),
        (["calls", "hangup"], "Missing argument 'CALL'"),
        (["channels", "hangup", "x", "--cause", "200"], "200 is not in the range 1<=x<=127"),
        (["config", "check"], "Missing argument 'FILE'"),
        (["config", "check", "a", "b"], "unexpected extra argument"),
        (["config", "render", "a"], "Missing argument 'DIRECTORY'"),
        (["completion", "tcsh"], "'tcsh' is not one of 'bash', 'zsh', 'fish'"),
        (["controller", "-c", "."], "is a directory"),
        (["gateway"], "give --config FILE, or --listen HOST:PORT and --app URL for a standalone worker"),
        (["gateway", "--listen", "127.0.0.1:9092"], "needs both --listen HOST:PORT and --app URL"),
        (["gateway", "--app", "ws://h/"], "needs both --listen HOST:PORT and --app URL"),
        (
            ["gateway", "-c", "x", "--listen", "127.0.0.1:9092", "--app", "ws://h/"],
            "--config belongs to a configured node",
        ),
        (["gateway", "--listen", "9092", "--app", "ws://h/"], "--listen 9092: expected HOST:PORT"),
        (["gateway", "--listen", ":9092", "--app", "ws://h/"], "--listen :9092: expected HOST:PORT"),
        (["gateway", "--listen", "127.0.0.1:0", "--app", "ws://h/"], "--listen 127.0.0.1:0: expected HOST:PORT"),
        (["gateway", "--listen", "127.0.0.1:65536", "--app", "ws://h/"], "the highest port is 65535"),
        (["gateway", "--listen", "127.0.0.1:²", "--app", "ws://h/"], "--listen 127.0.0.1:²: expected HOST:PORT"),
        (["gateway", "--listen", "[::1:9092", "--app", "ws://h/"], "--listen [::1:9092: expected HOST:PORT"),
        (["gateway", "--listen", "::1:9092", "--app", "ws://h/"], "--listen ::1:9092: expected HOST:PORT"),
        (["gateway", "--listen", "127.0.0.1:9092", "--app", "http://h/"], "--app http://h/: expected ws://"),
        (["gateway", "--listen", "127.0.0.1:9092", "--app", "h"], "--app h: expected ws://"),
        (["gateway", "--listen", "127.0.0.1:9092", "--app", "ws:///x"], "--app ws:///x: expected ws://"),
        (["gateway", "--listen", "127.0.0.1:9092", "--app", "ws://h:70000/"], "--app ws://h:70000/: expected ws://"),
        (["gateway", "--listen", "127.0.0.1:9092", "--app", "ws://[::1"], "expected ws://"),
        (["gateway", "--listen", "127.0.0.1:9092", "--app", "ws://h/", "--format", "g729"], "'g729' is not one of"),
        (["gateway", "--listen", "127.0.0.1:9092", "--app", "ws://h/", "--dialect", "sip"], "'sip' is not one of"),
        (["gateway", "--listen", "127.0.0.1:9092", "--app", "ws://h/", "--capacity", "0"], "0 is not in the range"),
        (["gateway", "-c", "x", "--worker", "64"], "64 is not in the range 0<=x<=63"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_is_exit_code_2_and_says_what_to_do(arguments: list[str], expected: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert isinstance(result.exception, SystemExit)
    assert expected in " ".join(result.output.split())
    assert result.output.startswith("Usage: trunkbridge")


def test_a_refused_url_does_not_show_its_secrets() -> None:
    result = run("gateway", "--listen", "127.0.0.1:9092", "--app", "http://key:hunter2@h/?token=hunter2")
    assert result.exit_code == 2
    assert "hunter2" not in result.output


# Configuration files


def test_a_good_file(good: Path) -> None:
    result = run("config", "check", str(good))
    assert (result.exit_code, result.output) == (
        0,
        f"{good}: good: node local-1, 2 trunks, 2 applications, 4 routes\n",
    )


def test_a_bad_file_is_one_line_for_each_problem(
    good: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good.write_text(good.read_text().replace("node: local-1", "node: PBX 1").replace("log:", "logg:"))
    code, out, err = script(monkeypatch, capsys, "config", "check", str(good))
    assert (code, out) == (1, "")
    first, second = err.splitlines()
    assert first.startswith(f"Error: {good}: node: found 'PBX 1': ")
    assert second == f"{good}: logg: unknown key: remove it, or correct its spelling (see docs/configuration.md)"


@pytest.mark.parametrize(
    "arguments",
    [
        ["config", "check", "nowhere.yml"],
        ["config", "render", "nowhere.yml", "out"],
        ["calls", "list", "-c", "nowhere.yml"],
        ["calls", "show", "1234", "-c", "nowhere.yml"],
        ["calls", "hangup", "1234", "-c", "nowhere.yml"],
        ["calls", "watch", "-c", "nowhere.yml"],
        ["channels", "list", "-c", "nowhere.yml"],
        ["db", "migrate", "-c", "nowhere.yml"],
        ["stores", "nowhere.yml"],
        ["controller", "-c", "nowhere.yml"],
        ["gateway", "-c", "nowhere.yml"],
    ],
    ids=" ".join,
)
def test_a_file_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    code, out, err = script(monkeypatch, capsys, *arguments)
    assert (code, out) == (1, "")
    assert err == "Error: nowhere.yml: No such file or directory: check the path and its permissions\n"


def test_the_file_may_be_named_by_the_environment(
    good: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRUNKBRIDGE_CONFIG", "elsewhere.yml")
    for command in (["calls", "list"], ["controller"], ["gateway"]):
        assert script(monkeypatch, capsys, *command)[2].startswith("Error: elsewhere.yml: ")


@pytest.mark.parametrize("arguments", [["calls", "list"], ["db", "migrate"], ["controller"]], ids=" ".join)
def test_stores_that_do_not_run(
    good: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    # In a process of its own: the controller sets the process' logging up.
    done = subprocess.run(
        [sys.executable, "-m", "ari_app.cli.main", *arguments, "-c", str(good)],
        capture_output=True,
        text=True,
        timeout=110,
        cwd=EXAMPLE.parent,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"Error: {good.parent}/.run: the embedded stores are not running: ")
    assert "Traceback" not in done.stderr


def test_asterisk_that_does_not_run(
    good: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        listen = f"127.0.0.1:{closed.getsockname()[1]}"
        good.write_text(good.read_text().replace("127.0.0.1:15038", listen))
        code, _, err = script(monkeypatch, capsys, "channels", "list", "-c", str(good))
    assert code == 1
    assert err.startswith(f"Error: AMI at {listen}: Connection refused")
    assert err.count("\n") == 1


def test_rendering(good: Path, tmp_path: Path) -> None:
    result = run("config", "render", str(good), str(tmp_path / "out"), "--dry-run")
    assert result.exit_code == 0
    assert f"would write {tmp_path}/out/pjsip.conf\n" in result.output
    assert not (tmp_path / "out").exists()
    result = run("config", "render", str(good), str(tmp_path / "out"))
    assert result.output.count("wrote ") == len(list((tmp_path / "out").iterdir()))
    assert "hunter2" not in result.output


def test_a_worker_beyond_the_last(
    good: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = script(monkeypatch, capsys, "gateway", "-c", str(good), "--worker", "5")
    assert code == 1
    assert err == (
        "Error: --worker 5: gateway.workers is 1, so the last worker is number 0:"
        " raise gateway.workers or choose another\n"
    )


def test_an_address_that_asterisk_cannot_dial(
    good: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good.write_text(good.read_text().replace("listen: 127.0.0.1:19092", "listen: 0.0.0.0:19092"))
    _, _, err = script(monkeypatch, capsys, "gateway", "-c", str(good))
    assert err == "Error: gateway.listen 0.0.0.0:19092: Asterisk cannot dial that: set gateway.advertise\n"


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-m", "ari_app.cli.main", "gateway", "--listen", f"127.0.0.1:{port}", "--app", "ws://h/"],
            capture_output=True,
            text=True,
            timeout=110,
            cwd=EXAMPLE.parent,
            env=os.environ | {"NOTIFY_SOCKET": ""},
        )
    assert done.returncode == 1
    assert f"127.0.0.1:{port}" in done.stderr
    assert "already in use: is another worker running there?" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1


# The console script and what goes wrong in it


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (ConfigError("x.yml: node: wrong"), "Error: x.yml: node: wrong\n"),
        (StoreUnavailable("redis", "Redis cannot be used"), "Error: Redis cannot be used\n"),
        (ExceptionGroup("tasks", [AppReplaced("trunkbridge")]), "Error: another process took the Stasis application"),
        (
            ExceptionGroup("tasks", [ExceptionGroup("inner", [ConfigError("first")]), ConfigError("second")]),
            "Error: first\n",
        ),
    ],
)
def test_our_errors_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, shown: str
) -> None:
    def fails(**_options: object) -> None:
        raise error

    monkeypatch.setattr(main_module, "trunkbridge", fails)
    code, out, err = script(monkeypatch, capsys)
    assert (code, out) == (1, "")
    assert err.startswith(shown)
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "error",
    [
        ZeroDivisionError("a fault of ours"),
        ExceptionGroup("tasks", [ZeroDivisionError("a fault of ours")]),
        ExceptionGroup("tasks", [ConfigError("x"), ZeroDivisionError("a fault of ours")]),
    ],
)
def test_a_fault_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fails(**_options: object) -> None:
        raise error

    monkeypatch.setattr(main_module, "trunkbridge", fails)
    with pytest.raises(type(error)):
        main()


# Completion


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str) -> None:
    result = run("completion", shell)
    assert result.exit_code == 0
    assert "_TRUNKBRIDGE_COMPLETE" in result.output


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("trunkbridge ", {"calls", "config", "gateway", "controller"}),
        ("trunkbridge ga", {"gateway"}),
        ("trunkbridge calls ", {"list", "show", "watch", "hangup", "move"}),
        ("trunkbridge calls list --output ", {"table", "json", "yaml"}),
    ],
)
def test_bash_completes(words: str, expected: set[str]) -> None:
    environment = os.environ | {
        "_TRUNKBRIDGE_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
    }
    code = "from ari_app.cli.main import trunkbridge; trunkbridge(prog_name='trunkbridge')"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=110, env=environment, cwd=EXAMPLE.parent
    )
    offered = {line.partition(",")[2] for line in done.stdout.splitlines()}
    assert expected <= offered
    if words.endswith("ga"):
        assert offered == expected


def test_the_script_for_bash_is_one_that_bash_accepts(tmp_path: Path) -> None:
    (tmp_path / "completion").write_text(run("completion", "bash").output)
    assert subprocess.run(["bash", "-n", str(tmp_path / "completion")], timeout=110).returncode == 0
