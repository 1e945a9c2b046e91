"""Configuration files: the example is good, and whatever else is in a file is one clear error and never another one."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ari_app.applications import ExotelApplication, PlivoApplication, TwilioApplication
from ari_app.settings import Config, load
from audiosocket.errors import ConfigError
from audiosocket.runtime.config import MAX_FILE_BYTES, MAX_PROBLEMS, validate
from audiosocket.settings import CONTROL_SECTIONS, NodeSettings, load_node, split_host_port

pytestmark = pytest.mark.unit

EXAMPLE = Path(__file__).parents[2] / "trunkbridge.example.yml"
TEXT = EXAMPLE.read_text(encoding="utf-8")
_EXAMPLE: dict[str, Any] = yaml.safe_load(TEXT)
SECRETS = {name: f"hunter2-{name}" for name in ("ari", "ami", "softphone")} | {"cluster": "hunter2-of-the-cluster"}

Write = Callable[[str | bytes], Path]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the secrets that the example names."""
    folder = tmp_path_factory.mktemp("config")
    (folder / ".run/secrets").mkdir(parents=True)
    for name, value in SECRETS.items():
        (folder / ".run/secrets" / name).write_text(value + "\n")
    return folder


@pytest.fixture
def write(folder: Path) -> Write:
    """Puts text into the folder's `trunkbridge.yml`."""

    def put(text: str | bytes) -> Path:
        path = folder / "trunkbridge.yml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
        return path

    return put


def example() -> dict[str, Any]:
    """The example file's data, to be changed."""
    return copy.deepcopy(_EXAMPLE)


def changed(*steps: tuple[tuple[str | int, ...], Any]) -> str:
    """The example as YAML, with values put at paths."""
    data = example()
    for path, value in steps:
        place: Any = data
        for part in path[:-1]:
            place = place[part]
        place[path[-1]] = value
    return yaml.safe_dump(data)


def complaint(work: Callable[[], Any]) -> str:
    """The `ConfigError` of `work`, fit for a terminal; empty when it was content."""
    try:
        work()
    except ConfigError as error:
        text = str(error)
    else:
        return ""
    assert all(line.isprintable() for line in text.split("\n"))
    return text


def refusal(path: Path, loader: Callable[[Path], Any] = load) -> str:
    """What is said about a file that is refused: whole lines, each of which begins with the file's name."""
    with pytest.raises(ConfigError) as caught:
        loader(path)
    text = str(caught.value)
    assert caught.value.__cause__ is None
    assert all(line.startswith(str(path)) and line.isprintable() for line in text.split("\n")), text
    assert not any(secret in text for secret in SECRETS.values())
    return text.replace(str(path), "FILE")


# The example


def test_the_example_is_good_and_relative_paths_are_relative_to_it(write: Write, folder: Path) -> None:
    config = load(write(TEXT))
    assert config.node == "local-1"
    assert config.state_dir == folder / ".run"
    assert config.asterisk.ari.password.get_secret_value() == SECRETS["ari"]
    assert {route.did for route in config.routes} == {"+918000000001", "+918000000002", "1000", "1001"}
    node = load_node(write(TEXT))
    assert (node.node, node.gateway) == (config.node, config.gateway)


def test_the_directory_of_recordings_is_relative_to_the_file(write: Write, folder: Path) -> None:
    text = changed((("gateway", "recordings"), {"directory": "rec"}))
    assert load(write(text)).gateway.recordings.directory == folder / "rec"
    assert load_node(write(text)).gateway.recordings.directory == folder / "rec"
    text = changed((("gateway", "recordings"), {"directory": "/srv/rec"}))
    assert load_node(write(text)).gateway.recordings.directory == Path("/srv/rec")
    assert load_node(write(TEXT)).gateway.recordings.directory is None


def test_a_gateway_needs_only_its_own_sections(write: Write) -> None:
    node = load_node(write("node: gw-1\nstore: {postgres: 'postgresql://db/x', redis: 'redis://cache/0'}\n"))
    assert node.gateway.capacity == 250
    # A gateway node need not have the controller's secrets, nor understand its sections.
    load_node(write(TEXT.replace("{file: .run/secrets/ari}", "{file: not/there}")))


def test_the_sections_that_a_gateway_skips_are_those_of_the_control_plane() -> None:
    assert set(Config.model_fields) == set(NodeSettings.model_fields) | CONTROL_SECTIONS


def test_loaded_settings_do_not_change(write: Write) -> None:
    config = load(write(TEXT))
    with pytest.raises(ValueError, match="frozen"):
        config.node = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("value", "expected"),
    [("127.0.0.1:9092", ("127.0.0.1", 9092)), ("[::1]:1", ("::1", 1)), ("0.0.0.0:65535", ("0.0.0.0", 65535))],
)
def test_addresses_are_split(value: str, expected: tuple[str, int]) -> None:
    assert split_host_port(value) == expected


# Files that cannot be read


def test_a_file_that_is_not_there(folder: Path) -> None:
    assert refusal(folder / "nowhere.yml") == "FILE: No such file or directory: check the path and its permissions"


def test_a_folder(folder: Path) -> None:
    assert "Is a directory" in refusal(folder)


def test_a_file_that_may_not_be_read(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(TEXT)

    def forbidden(*_args: Any, **_options: Any) -> None:
        raise PermissionError(13, "Permission denied")

    # Permissions do not bind root, as which tests may run.
    monkeypatch.setattr(Path, "open", forbidden)
    assert refusal(path) == "FILE: Permission denied: check the path and its permissions"


def test_a_device_without_end() -> None:
    assert "larger than" in refusal(Path("/dev/zero"))


def test_a_huge_file(write: Write) -> None:
    assert "is this the right file?" in refusal(write(b"a" * (MAX_FILE_BYTES + 1)))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "FILE: empty: start from trunkbridge.example.yml"),
        ("# nothing but a comment\n", "FILE: empty: start from trunkbridge.example.yml"),
        ("- node\n- store\n", "FILE: expected a mapping at the top, found list"),
        ("just words", "FILE: expected a mapping at the top, found str"),
        (b"\x7fELF\x02\x01\x01\x00\xff\xfe", "FILE: not UTF-8 text (byte 8): is this the right file?"),
        ("node: a\0b\n", "FILE: not valid YAML: unacceptable character #x0000: special characters are not allowed"),
        ("node:\n\tname: x\n", "FILE:2:1: not valid YAML: found character '\\t' that cannot start any token"),
        ("node: [1, 2\n", "FILE:2:1: not valid YAML: expected ',' or ']', but got '<stream end>'"),
        ("node: a\nnode: b\n", "FILE:2:1: not valid YAML: key 'node' given twice: remove one"),
        ("log: {level: info, format: json, level: debug}\n", "FILE:1:34: not valid YAML: key 'level' given twice"),
        ("1000: conversation\n", "FILE:1:1: not valid YAML: a key is text: put it in quotes"),
        ("on: x\n", "FILE:1:1: not valid YAML: a key is text: put it in quotes"),
        ("? [a]\n: x\n", "FILE:1:3: not valid YAML: a key is text: put it in quotes"),
        ("a: &a {x: 1}\nb: {<<: *a}\n", "FILE:2:5: not valid YAML: merge keys (<<) are not read: write the values out"),
        ("a: 1\n---\nb: 2\n", "FILE:2:1: not valid YAML: but found another document"),
        ("a: &a [*a]\n", "FILE:1:4: not valid YAML: found unconstructable recursive node"),
        ("a: *nowhere\n", "FILE:1:4: not valid YAML: found undefined alias 'nowhere'"),
        ("a: !!python/object/apply:os.system [x]\n", "FILE:1:4: not valid YAML: could not determine a constructor"),
        ("a: !!set {b, c}\n", "FILE:1:4: not valid YAML: could not determine a constructor"),
        ("a: 2026-13-45\n", "FILE: not valid YAML: month must be in 1..12"),
        ("a: !!int ''\n", "FILE: not valid YAML: a value is not what its tag says"),
        ("a: !!bool maybe\n", "FILE: not valid YAML: a value is not what its tag says"),
        ("a: !!timestamp x\n", "FILE: not valid YAML: a value is not what its tag says"),
        ("a: 1" + ":1" * 300 + ".5\n", "FILE: not valid YAML: a value is not what its tag says"),
        ("a: " + "[" * 1000 + "]" * 1000, "FILE: nested too deeply to be a configuration"),
        ("a: " + "{a: " * 1000 + "}" * 1000, "FILE: nested too deeply to be a configuration"),
    ],
)
@pytest.mark.parametrize("loader", [load, load_node])
def test_files_that_are_no_configuration(
    write: Write, content: str | bytes, expected: str, loader: Callable[[Path], Any]
) -> None:
    assert refusal(write(content), loader).startswith(expected)


def _laughs(opening: str, closing: str) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} {opening}[{', '.join([f'*a{n - 1}'] * 9)}]{closing}" for n in range(1, 30)]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("bomb", [_laughs("", ""), _laughs("{<<: ", "}"), _laughs("!!omap [b: ", "]")])
@pytest.mark.parametrize(
    ("at", "alias"),
    [("identify: [127.0.0.2/32]", "identify: *a29"), ("{campaign: demo}", "{campaign: *a29}"), ("node: local-1", "")],
)
def test_a_billion_laughs_are_refused_at_once(write: Write, bomb: str, at: str, alias: str) -> None:
    text = refusal(write(bomb + TEXT.replace(at, alias or "node: *a29")))
    assert len(text) < 10_000


def test_a_file_full_of_faults_is_not_told_in_full(write: Write) -> None:
    text = refusal(write(TEXT.replace("[127.0.0.2/32]", f"[{'1, ' * 2000}]")))
    assert text.count("\n") == MAX_PROBLEMS
    assert text.endswith(f"FILE: and {2000 - MAX_PROBLEMS} more problems")


# Keys and values


def test_unknown_keys_at_every_depth(write: Write) -> None:
    text = changed(
        (("asterix",), {}),
        (("asterisk", "port"), 1),
        (("asterisk", "ari", "passwords"), "hunter2-ari"),
        (("trunks", "carrier-ulaw", "codec"), "ulaw"),
        (("routes", 1, "app"), "echo"),
        (("gateway", "a\x1b[2Jb\nc"), 1),
    )
    lines = refusal(write(text)).split("\n")
    assert all(
        line.endswith("unknown key: remove it, or correct its spelling (see docs/configuration.md)") for line in lines
    )
    assert [line.split(": ")[1] for line in lines] == [
        "gateway.a\\x1b[2Jb c",
        "asterisk.ari.passwords",
        "asterisk.port",
        "trunks.carrier-ulaw.codec",
        "routes[1].app",
        "asterix",
    ]


def test_a_gateway_refuses_a_misspelt_section(write: Write) -> None:
    assert refusal(write(TEXT.replace("gateway:", "gateways:")), load_node) == (
        "FILE: gateways: unknown key: remove it, or correct its spelling (see docs/configuration.md)"
    )


@pytest.mark.parametrize(
    "path",
    [
        ("node",),
        ("store",),
        ("asterisk",),
        ("asterisk", "ari"),
        ("asterisk", "ari", "password"),
        ("trunks",),
        ("trunks", "carrier-ulaw", "identify"),
        ("phones", "softphone", "password"),
        ("applications",),
        ("applications", "echo", "url"),
        ("routes",),
        ("routes", 2, "did"),
    ],
)
def test_what_is_required(write: Write, path: tuple[str | int, ...]) -> None:
    data = example()
    place: Any = data
    for part in path[:-1]:
        place = place[part]
    del place[path[-1]]
    shown = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
    assert f"FILE: {shown}: required and not given: add it" in refusal(write(yaml.safe_dump(data)))


VALUES: list[tuple[tuple[str | int, ...], Any, str]] = [
    (("node",), 5, "node: found 5: expected text: put it in quotes"),
    (("node",), "PBX 1", "node: found 'PBX 1': String should match"),
    (("node",), "x" * 500, "node: found 'xxx"),
    (("node",), None, "node: found None: expected text"),
    (("store",), "sqlite", "store: found 'sqlite': expected 'embedded', or a mapping with postgres: and redis: URLs"),
    (("store",), 1, "store: found 1: expected 'embedded', or a mapping"),
    (("store",), {"postgres": "postgresql://h/d"}, "store.redis: required and not given"),
    (("log", "level"), "loud", "log.level: found 'loud': Input should be 'debug', 'info', 'warning' or 'error'"),
    (("log", "mask_numbers"), "perhaps", "log.mask_numbers: found 'perhaps': Input should be a valid boolean"),
    (("log",), "json", "log: found 'json': expected a mapping of keys to values"),
    (("gateway", "listen"), "9092", "gateway.listen: found '9092': expected HOST:PORT with a port from 1 to 65535"),
    (("gateway", "listen"), "127.0.0.1:0", "gateway.listen: found '127.0.0.1:0': expected HOST:PORT"),
    (("gateway", "listen"), "127.0.0.1:65536", "gateway.listen: found '127.0.0.1:65536': expected HOST:PORT"),
    (("gateway", "listen"), "127.0.0.1:²", "gateway.listen: found '127.0.0.1:²': expected HOST:PORT"),
    (("gateway", "listen"), "localhost:9092", "expected an IP address before the port"),
    (("gateway", "listen"), "::1:9092", "expected an IPv6 address in brackets, such as [::1]:9092"),
    (("gateway", "listen"), "[::1:9092", "expected an IPv6 address in brackets"),
    (("gateway", "listen"), "[127.0.0.1]:9092", "expected an IP address before the port"),
    (("gateway", "advertise"), "gateway.example", "gateway.advertise: found 'gateway.example'"),
    (("gateway", "allow"), ["10.0.0.1/8"], "gateway.allow[0]: found '10.0.0.1/8': 10.0.0.1/8 has host bits set"),
    (("gateway", "rtp_listen"), "0.0.0.0", "gateway.rtp_listen: found '0.0.0.0': expected HOST:PORT"),
    (("gateway", "rtp_listen"), "10.0.0.9:9292", "gateway: rtp_listen: Asterisk sends to the address of listen, "),
    (("gateway", "rtp_listen"), "[::1]:9292", "gateway: rtp_listen: Asterisk sends to the address of listen, "),
    (("gateway",), {"rtp_listen": "0.0.0.0:65535", "workers": 2}, "gateway: rtp_listen: 2 workers would need ports"),
    (("gateway", "websocket_listen"), "0.0.0.0", "gateway.websocket_listen: found '0.0.0.0': expected HOST:PORT"),
    (("gateway", "websocket_listen"), "10.0.0.9:9392", "gateway: websocket_listen: Asterisk sends to the address of "),
    (
        ("gateway",),
        {"websocket_listen": "127.0.0.1:9092"},
        "gateway: websocket_listen: port 9092 is a worker's AudioSocket",
    ),
    (
        ("gateway",),
        {"websocket_listen": "127.0.0.1:9192"},
        "gateway: status_listen: port 9192 is a worker's WebSocket port",
    ),
    (
        ("gateway",),
        {"rtp_listen": "0.0.0.0:9292", "websocket_listen": "0.0.0.0:9392"},
        "gateway: rtp_listen and websocket_listen: calls go by one kind of leg: remove one of the two",
    ),
    (("gateway", "workers"), 0, "gateway.workers: found 0: Input should be greater than or equal to 1"),
    (("gateway", "capacity"), 2.5, "gateway.capacity: found 2.5: Input should be a valid integer"),
    (("gateway", "capacity"), float("nan"), "gateway.capacity: found nan: Input should be a finite number"),
    (("gateway", "drain_seconds"), float("inf"), "gateway.drain_seconds: found inf"),
    (
        ("gateway", "recordings"),
        "/var/rec",
        "gateway.recordings: found '/var/rec': expected a mapping of keys to values",
    ),
    (("gateway", "recordings"), {"min_free_mb": -1}, "gateway.recordings.min_free_mb: found -1"),
    (("gateway", "recordings"), {"retain_days": 0.5}, "gateway.recordings.retain_days: found 0.5"),
    (
        ("gateway", "recordings"),
        {"url_base": "s3://bucket/"},
        "gateway.recordings.url_base: found 's3://...': expected an http:// or https:// URL with a host",
    ),
    (
        ("gateway", "recordings"),
        {"url_base": "https://me:secret@rec.example.com/"},
        "gateway.recordings.url_base: found 'https://...': credentials, query and fragment have no place in it",
    ),
    (("applications", "echo", "record"), "perhaps", "applications.echo.record: found 'perhaps'"),
    (("controller", "spec_seconds"), -1, "controller.spec_seconds: found -1: Input should be greater than 0"),
    (("controller", "lease_seconds"), 601, "controller.lease_seconds: found 601: Input should be less than or equal"),
    (("asterisk", "rtp"), {"first": 30000, "last": 30002}, "asterisk.rtp: the range 30000-30002 holds less than one"),
    (("asterisk", "rtp", "first"), 80, "asterisk.rtp.first: found 80: Input should be greater than or equal to 1024"),
    (("asterisk", "external_address"), "pbx", "asterisk.external_address: found 'pbx'"),
    (("trunks",), {}, "trunks: Dictionary should have at least 1 item"),
    (("trunks",), ["a"], "trunks: expected a mapping of keys to values"),
    (("trunks", "Carrier One"), {"identify": ["10.0.0.1"]}, "trunks.Carrier One"),
    (("trunks", "carrier-ulaw", "identify"), [], "trunks.carrier-ulaw.identify: List should have at least 1 item"),
    (
        ("trunks", "carrier-ulaw", "identify"),
        ["carrier.example"],
        "trunks.carrier-ulaw.identify[0]: found 'carrier.example'",
    ),
    (("trunks", "carrier-ulaw", "codecs"), ["g729"], "trunks.carrier-ulaw.codecs[0]: found 'g729'"),
    (("trunks", "carrier-ulaw", "country"), "India", "trunks.carrier-ulaw.country: found 'India'"),
    (("trunks", "carrier-ulaw", "qualify_seconds"), 60, "trunks.carrier-ulaw: qualify_seconds needs contact"),
    (
        ("trunks", "carrier-ulaw", "identify"),
        ["127.0.0.0/29"],
        "FILE: trunks.carrier-ulaw.identify: 127.0.0.0/29 is claimed by trunk 'carrier-alaw' too",
    ),
    (
        ("phones", "carrier-ulaw"),
        {"password": {"file": ".run/secrets/ari"}},
        "phones.carrier-ulaw: a trunk has this name too: rename one",
    ),
    (("phones", "softphone", "caller_id"), "9000000000", "phones.softphone.caller_id: found '9000000000'"),
    (
        ("applications", "echo", "url"),
        "ftp://127.0.0.1/",
        "applications.echo.url: found 'ftp://...': expected a ws:// or wss:// URL with a host, or an http:// or",
    ),
    (
        ("applications", "echo", "url"),
        "https://key@app.example/",
        "applications.echo.url: found 'https://...': the URL carries credentials: move them to credentials",
    ),
    (
        ("applications", "echo", "url"),
        "https://app.example/a b",
        "applications.echo.url: found 'https://...': only printable ASCII can be sent: write the rest as %XX",
    ),
    (
        ("applications", "echo", "status_callback"),
        "ws://app.example/",
        "applications.echo.status_callback: found 'ws://...': expected an http:// or https:// URL with a host",
    ),
    (
        ("applications", "echo", "status_callback"),
        "https://key:token@app.example/",
        "applications.echo.status_callback: found 'https://...': the URL carries credentials: remove them, a token may",
    ),
    (
        ("applications", "echo", "status_callback"),
        "https://app.example/#x",
        "applications.echo.status_callback: found 'https://...': a #fragment is never sent: remove it",
    ),
    (
        ("applications", "echo", "url"),
        "ws:///path",
        "applications.echo.url: found 'ws://...': expected a ws:// or wss://",
    ),
    (("applications", "echo", "url"), "127.0.0.1:80", "applications.echo.url: found '127.0.0.1:80': expected a ws://"),
    (
        ("applications", "echo", "url"),
        "ws://h:port/",
        "applications.echo.url: found 'ws://...': host or port of the URL",
    ),
    (("applications", "echo", "url"), "ws://h:0/", "applications.echo.url: found 'ws://...': host or port of the URL"),
    (("applications", "echo", "url"), "ws://a..b/", "applications.echo.url: found 'ws://...': host or port of the URL"),
    (
        ("applications", "echo", "url"),
        f"ws://{'a' * 64}.example/",
        "applications.echo.url: found 'ws://...': host or port of the URL",
    ),
    (("applications", "echo", "url"), "ws://[::1/", "applications.echo.url: found 'ws://...': host or port of the URL"),
    (
        ("applications", "echo", "url"),
        "ws://h/#x",
        "applications.echo.url: found 'ws://...': a WebSocket URL has no #fragment",
    ),
    (
        ("applications", "echo", "url"),
        "ws://h/" + "x" * 600,
        "applications.echo.url: found 'ws://...': String should have at most",
    ),
    (
        ("applications", "echo", "url"),
        "ws://h/a b",
        "applications.echo.url: found 'ws://...': only printable ASCII can be sent: write the rest as %XX",
    ),
    (
        ("applications", "echo", "url"),
        "ws://h/a\r\nX-Admin: 1",
        "applications.echo.url: found 'ws://...': only printable ASCII can be sent",
    ),
    (("applications", "echo", "dialect"), "sip", "echo.dialect: found 'sip': Input should be 'exotel', "),
    (
        ("applications", "echo", "dialect_options"),
        {"frame_ms": 30},
        "applications.echo.dialect_options.frame_ms: found 30",
    ),
    (("applications", "echo", "account_sid"), "ac" + "0" * 32, "looks like a Twilio account id"),
    (("applications", "echo", "account_sid"), "ACME1", "looks like a Twilio account id"),
    (("applications", "echo", "account_sid"), "-acme", "String should match pattern"),
    (("applications", "echo", "connect_attempts"), 9, "applications.echo.connect_attempts: found 9"),
    (
        ("applications", "echo", "custom_parameters"),
        {"a": 1},
        "applications.echo.custom_parameters.a: found 1: expected text: put it in quotes",
    ),
    (
        ("applications", "echo", "custom_parameters"),
        dict.fromkeys("abcd", "x"),
        "applications.echo: custom_parameters and the URL's query are 4 parameters together: Exotel allows 3",
    ),
    (
        ("applications", "echo", "custom_parameters"),
        {"a": "x" * 256},
        "applications.echo: custom_parameters and the URL's query are too long: Exotel allows 256",
    ),
    (("applications", "echo", "first_audio_seconds"), -1, "applications.echo.first_audio_seconds: found -1"),
    (("applications", "echo", "max_seconds"), 0, "applications.echo.max_seconds: found 0"),
    (("applications", "echo", "one_way"), "both", "applications.echo.one_way: found 'both'"),
    (
        ("applications", "echo", "circuit_breaker"),
        {"failures": -1},
        "applications.echo.circuit_breaker.failures: found -1",
    ),
    (
        ("applications", "echo", "fallback"),
        {"prompt": "sorry"},
        "applications.echo.fallback.prompt 'sorry' is not in prompts: none is defined",
    ),
    (
        ("applications", "echo", "fallback"),
        {"url": "wss://user:topsecret@bot.example/"},
        "applications.echo: fallback.url: the URL carries credentials: move them to credentials",
    ),
    (
        ("applications", "echo", "fallback"),
        {"url": "ftp://bot.example/"},
        "applications.echo: fallback.url: expected a ws:// or wss:// URL with a host",
    ),
    (
        ("applications", "echo", "fallback"),
        {"url": "wss://bot.example/?a=1&b=2&c=3&d=4"},
        "applications.echo: fallback.url: custom_parameters and the URL's query are 4 parameters",
    ),
    (
        ("applications", "echo", "fallback"),
        {"url": "wss://bot.example/voice 2"},
        "applications.echo: fallback.url: only printable ASCII can be sent",
    ),
    (("prompts",), {"Sorry!": "sorry.wav"}, "prompts.Sorry!: found 'sorry.wav': String should match"),
    (("prompts",), {"sorry": 5}, "prompts.sorry: found 5: expected a path"),
    (("routes",), [], "routes: List should have at least 1 item"),
    (
        ("routes", 0, "did"),
        "12-34",
        "routes[0].did: found '12-34': expected +E.164, a short number of 2 to 15 digits, or *",
    ),
    (("routes", 0, "did"), 918000000001, "routes[0].did: found 918000000001: expected text: put it in quotes"),
    (
        ("routes", 0, "application"),
        "nobody",
        "routes[0].application 'nobody' is not defined: one of conversation, echo",
    ),
    (
        ("routes", 1, "trunks"),
        ["nowhere"],
        "routes[1].trunks: 'nowhere' is not defined: one of carrier-alaw, carrier-ulaw",
    ),
    (
        ("routes", 3, "did"),
        "1000",
        "routes[3]: number 1000 is taken by routes[2] already: this route can never be reached",
    ),
    (("routes", 0, "max_seconds"), 0, "routes[0].max_seconds: found 0"),
    (("routes", 0, "answer"), "later", "routes[0].answer: found 'later': Input should be 'at_once', 'when_connected'"),
    (("routes", 0, "answer_within_seconds"), 0.4, "routes[0].answer_within_seconds: found 0.4"),
    (
        ("routes", 0, "custom_parameters"),
        {"a": "1", "b": "2", "c": "3"},
        "routes[0] with application 'conversation': custom_parameters and the URL's query are 4 parameters together",
    ),
    (
        ("applications", "echo", "after"),
        "transfer",
        "applications.echo.after: found 'transfer': expected hangup, or one of extension, transfer, application",
    ),
    (("applications", "echo", "after"), None, "applications.echo.after: found None: expected hangup, or one of"),
    (
        ("applications", "echo", "after"),
        {"extension": "a", "application": "conversation"},
        "applications.echo.after: expected only one of extension, transfer, application",
    ),
    (("applications", "echo", "after"), {"extension": "a,b"}, "applications.echo.after.extension: found 'a,b'"),
    (("applications", "echo", "after"), {"voicemail": "x"}, "applications.echo.after.voicemail: unknown key"),
    (
        ("applications", "echo", "after"),
        {"application": "nobody"},
        "applications.echo.after.application 'nobody' is not defined: one of conversation, echo",
    ),
    (
        ("applications", "echo", "after"),
        {"application": "echo"},
        "applications.echo.after.application 'echo' leads in a circle, echo -> echo: hang up somewhere",
    ),
    (
        ("applications", "echo", "after"),
        {"transfer": {"to": "1000&2000", "trunk": "carrier-ulaw"}},
        "applications.echo.after.transfer.to: found '1000&2000'",
    ),
    (
        ("applications", "echo", "after"),
        {"transfer": {"to": "1000", "trunk": "nowhere"}},
        "applications.echo.after.transfer.trunk 'nowhere' is not defined: one of carrier-alaw, carrier-ulaw",
    ),
    (
        ("applications", "echo", "fallback"),
        {"after": {"transfer": {"to": "1000", "trunk": "carrier-ulaw"}}},
        "applications.echo.fallback.after.transfer.trunk 'carrier-ulaw' has no contact to be called at",
    ),
    (
        ("applications", "echo", "fallback"),
        {"after": {"application": "conversation"}},
        "applications.echo.fallback.after: no application follows one that failed: fallback.url is dialled",
    ),
]


@pytest.mark.parametrize(("path", "value", "expected"), VALUES, ids=[expected[:50] for _, _, expected in VALUES])
def test_a_wrong_value_is_named_with_its_place(
    write: Write, path: Any, value: Any, expected: str, folder: Path
) -> None:
    text = refusal(write(changed((path, value))))
    assert expected in text
    assert len(text.split("\n")) == 1
    assert len(text) < 500


@pytest.mark.parametrize("userinfo", ["key:hunter2@", "key@", ":hunter2@", "@"])
def test_a_url_with_any_userinfo_is_refused(write: Write, userinfo: str) -> None:
    text = refusal(write(changed((("applications", "echo", "url"), f"ws://{userinfo}127.0.0.1/voice"))))
    assert "the URL carries credentials" in text
    assert "hunter2" not in text


ACCOUNT = "AC" + "5" * 32


def twilio(**changes: Any) -> dict[str, Any]:
    """An application that speaks Twilio's protocol; a value of None takes its key away."""
    data = {"url": "wss://app.example/media", "dialect": "twilio", "account_sid": ACCOUNT} | changes
    return {key: value for key, value in data.items() if value is not None}


def test_an_application_of_twilio_s(write: Write) -> None:
    application = twilio(
        auth_token={"file": ".run/secrets/ari"},
        custom_parameters={str(number): "x" * 100 for number in range(10)},
        dialect_options={"caller_parameter": "from_number"},
    )
    loaded = load(write(changed((("applications", "bot"), application)))).applications["bot"]
    assert isinstance(loaded, TwilioApplication)
    secret = loaded.handshake_secret()
    assert secret is not None
    assert secret.get_secret_value() == SECRETS["ari"]
    assert SECRETS["ari"] not in repr(loaded)
    assert loaded.dialect_options.model_dump(exclude_unset=True) == {"caller_parameter": "from_number"}
    echo = load(write(TEXT)).applications["echo"]
    assert isinstance(echo, ExotelApplication)
    assert echo.handshake_secret() is None


@pytest.mark.parametrize(
    ("application", "expected"),
    [
        (
            twilio(url="wss://app.example/media?token=hunter2"),
            "applications.bot.url: found 'wss://...': Twilio allows no query in a stream's URL: move its pairs to"
            " custom_parameters",
        ),
        (twilio(url="wss://app.example/media?"), "applications.bot.url: found 'wss://...': Twilio allows no query"),
        (
            twilio(url="wss://key:hunter2@app.example/"),
            "applications.bot.url: found 'wss://...': the URL carries credentials: remove them, Twilio signs instead",
        ),
        (twilio(url="https://app.example/"), "applications.bot.url: found 'https://...': expected a ws:// or wss://"),
        (twilio(account_sid=None), "applications.bot.account_sid: required and not given"),
        (twilio(account_sid="acme1"), "applications.bot.account_sid: found 'acme1': String should match pattern"),
        (twilio(account_sid="AC" + "X" * 32), "applications.bot.account_sid: found 'ACXX"),
        (twilio(dialect_options={"frame_ms": 20}), "applications.bot.dialect_options.frame_ms: unknown key"),
        (
            twilio(dialect_options={"caller_parameter": ""}),
            "applications.bot.dialect_options.caller_parameter: found '': String should have at least 1",
        ),
        (
            twilio(dialect_options={"caller_parameter": "n", "callee_parameter": "n"}),
            "applications.bot.dialect_options: caller_parameter and callee_parameter are the same",
        ),
        (
            twilio(dialect_options={"callee_parameter": "to"}, custom_parameters={"to": "x"}),
            "applications.bot: custom_parameters.to: dialect_options puts a number there: rename one",
        ),
        (twilio(auth_token="hunter2"), "applications.bot.auth_token: a secret is not written in this file"),
        (
            twilio(credentials={"env": "PATH"}),
            "applications.bot: credentials belongs to dialect exotel: remove it, or set dialect: exotel",
        ),
        (
            twilio(dialect=None, account_sid=None, auth_token="hunter2"),
            "applications.bot: auth_token belongs to dialect plivo or twilio: remove it, or set dialect: plivo or",
        ),
        (twilio(dialect="exotel"), "applications.bot.account_sid: found 'AC555"),
        (twilio(dialect=" twilio"), "applications.bot.dialect: found ' twilio': Input should be 'exotel', "),
        (twilio(dialect=["twilio"]), "applications.bot.dialect: Input should be 'exotel', "),
        ("wss://app.example/media", "applications.bot: found 'wss://...': expected a mapping of keys to values"),
    ],
)
def test_an_application_whose_dialect_does_not_fit(write: Write, application: Any, expected: str) -> None:
    text = refusal(write(changed((("applications", "bot"), application))))
    assert expected in text
    assert "hunter2" not in text


def plivo(**changes: Any) -> dict[str, Any]:
    """An application that speaks Plivo's protocol."""
    return {"url": "wss://app.example/ws?body=x", "dialect": "plivo", "account_sid": "MA" + "5" * 18} | changes


def test_an_application_of_plivo_s(write: Write) -> None:
    application = plivo(
        auth_token={"file": ".run/secrets/ari"}, dialect_options={"content_type": "audio/x-l16;rate=8000"}
    )
    loaded = load(write(changed((("applications", "bot"), application)))).applications["bot"]
    assert isinstance(loaded, PlivoApplication)
    secret = loaded.handshake_secret()
    assert secret is not None
    assert secret.get_secret_value() == SECRETS["ari"]


@pytest.mark.parametrize(
    ("application", "expected"),
    [
        (plivo(account_sid=ACCOUNT), "applications.bot.account_sid: found 'AC555"),
        (plivo(url="wss://key:hunter2@app.example/"), "the URL carries credentials: remove them, Plivo signs instead"),
        (plivo(custom_parameters={"a b": "c"}), "custom_parameters: 'a b' is no name for Plivo: use letters, digits"),
        (plivo(custom_parameters={"a": "é" * 300}), "custom_parameters are too long: Plivo allows 512 bytes in all"),
        (
            plivo(custom_parameters={"to": "x"}, dialect_options={"callee_parameter": "to"}),
            "custom_parameters.to: dialect_options puts a number there: rename one",
        ),
        (
            plivo(dialect_options={"content_type": "audio/x-l16;rate=11025"}),
            "applications.bot.dialect_options.content_type: found 'audio/x-l16;rate=11025': Input should be",
        ),
        (
            plivo(credentials={"env": "PATH"}),
            "credentials belongs to dialect exotel: remove it, or set dialect: exotel",
        ),
    ],
)
def test_an_application_that_is_not_plivo_s(write: Write, application: Any, expected: str) -> None:
    text = refusal(write(changed((("applications", "bot"), application))))
    assert expected in text
    assert "hunter2" not in text


def test_a_number_that_python_would_not_print(write: Write) -> None:
    text = refusal(write(TEXT.replace("node: local-1", f"node: 0x{'f' * 6000}")))
    assert text.startswith("FILE: node: found a number of thousands of digits: expected text")


@pytest.mark.parametrize(
    ("gateway", "expected"),
    [
        ({"listen": "127.0.0.1:65534", "workers": 3}, "listen: 3 workers would need ports 65534 to 65536: begin lower"),
        (
            {"status_listen": "127.0.0.1:65535", "workers": 2},
            "status_listen: 2 workers would need ports 65535 to 65536",
        ),
        ({"listen": "127.0.0.1:9092", "status_listen": "127.0.0.1:9094", "workers": 3}, "port 9094 is a worker's"),
    ],
)
def test_ports_of_the_last_worker(write: Write, gateway: dict[str, Any], expected: str) -> None:
    assert expected in refusal(write(changed((("gateway",), gateway))))


def test_what_may_follow_an_application(write: Write) -> None:
    transfer = {"transfer": {"to": "+918000000009", "trunk": "carrier-ulaw", "timeout_seconds": 5}}
    path = write(
        changed(
            (("trunks", "carrier-ulaw", "contact"), "127.0.0.2:5060"),
            (("applications", "conversation", "after"), {"application": "echo"}),
            (("applications", "conversation", "fallback"), {"after": {"extension": "desk"}}),
            (("applications", "echo", "after"), transfer),
            (("applications", "echo", "fallback"), {"after": "hangup"}),
        )
    )
    conversation, echo = load(path).applications.values()
    assert conversation.after.application == "echo"
    assert conversation.fallback.after.extension == "desk"
    assert echo.after.transfer is not None
    assert (echo.after.transfer.to, echo.after.transfer.timeout_seconds) == ("+918000000009", 5)
    assert (echo.fallback.after.extension, echo.fallback.after.transfer) == (None, None)
    # What has been read may be read again as part of another.
    values = {name: getattr(echo, name) for name in echo.model_fields_set}
    assert type(echo).model_validate(values) == echo


def test_a_circle_of_applications_is_named(write: Write) -> None:
    circle = changed(
        (("applications", "conversation", "after"), {"application": "echo"}),
        (("applications", "echo", "after"), {"application": "conversation"}),
    )
    assert "leads in a circle, conversation -> echo -> conversation" in refusal(write(circle))


@pytest.mark.parametrize(
    ("fallback", "key"), [({"prompt": "sorry"}, "prompt"), ({"after": {"extension": "desk"}}, "after")]
)
def test_a_fork_has_nobody_who_could_hear_its_fallback(write: Write, fallback: dict[str, Any], key: str) -> None:
    fork = {"url": "ws://127.0.0.1:19302/", "one_way": True, "after": {"extension": "ivr"}}
    prompts = (("prompts",), {"sorry": "sorry.wav"})
    said = refusal(write(changed((("applications", "echo"), fork | {"fallback": fallback}), prompts)))
    assert f"applications.echo: fallback.{key}: with one_way and after.extension or after.transfer" in said
    # Another URL of its own it may have, and without a place to go on at it is no fork.
    for fine in (fork | {"fallback": {"url": "ws://spare/", "after": "hangup"}}, fork | {"after": "hangup"}):
        found = load(write(changed((("applications", "echo"), fine), prompts))).applications["echo"]
        assert found.forks == (fine["after"] != "hangup")


def test_only_the_first_application_of_a_call_forks(write: Write) -> None:
    second = changed(
        (("applications", "conversation", "after"), {"application": "echo"}),
        (("applications", "echo", "one_way"), True),
        (("applications", "echo", "after"), {"extension": "ivr"}),
    )
    said = refusal(write(second))
    assert "applications.conversation.after.application 'echo' listens while the caller goes on elsewhere" in said


def test_a_route_s_parameters_replace_the_application_s(write: Write) -> None:
    of_twilio = twilio(dialect_options={"caller_parameter": "from"})
    steps = ((("applications", "echo"), of_twilio), (("routes", 1, "custom_parameters"), {"from": "x"}))
    text = refusal(write(changed(*steps)))
    assert "routes[1] with application 'echo': custom_parameters.from: dialect_options puts a number there" in text
    # The same name is no further parameter.
    steps = (
        (("applications", "echo", "custom_parameters"), {"a": "1", "b": "2", "c": "3"}),
        (("routes", 1, "custom_parameters"), {"c": "4"}),
    )
    assert load(write(changed(*steps))).routes[1].custom_parameters == {"c": "4"}


def test_routes_that_differ_by_trunk_are_all_reachable(write: Write) -> None:
    routes = [
        {"did": "1000", "application": "echo", "trunks": ["carrier-ulaw"]},
        {"did": "1000", "application": "conversation", "trunks": ["carrier-alaw"]},
        {"did": "1000", "application": "conversation"},
        {"did": "*", "application": "echo"},
    ]
    assert len(load(write(changed((("routes",), routes)))).routes) == 4
    # The other way round the general one takes everything.
    assert "routes[1]: number 1000 is taken by routes[0] already" in refusal(
        write(changed((("routes",), [routes[2], routes[0]])))
    )


# Secrets


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("hunter2-ari", "a secret is not written in this file: give {file: PATH} or {env: NAME}"),
        (12345678, "a secret is not written in this file"),
        (["hunter2-ari"], "a secret is not written in this file"),
        ({"value": "hunter2-ari"}, "a secret is not written in this file"),
        ({"hunter2-ari": "x"}, "a secret is not written in this file"),
        ({"file": ".run/secrets/ari", "env": "X"}, "a secret is not written in this file"),
        ({}, "a secret is not written in this file"),
        ({"file": ""}, "file: expects a non-empty string"),
        ({"file": ["a"]}, "file: expects a non-empty string"),
        ({"env": None}, "env: expects a non-empty string"),
        ({"env": "TRUNKBRIDGE_TEST_UNSET"}, "environment variable TRUNKBRIDGE_TEST_UNSET is not set: export it"),
        ({"env": "TRUNKBRIDGE_TEST_EMPTY"}, "environment variable TRUNKBRIDGE_TEST_EMPTY is not set"),
        ({"env": "TRUNKBRIDGE_TEST_LINES"}, "TRUNKBRIDGE_TEST_LINES must hold exactly one non-empty line"),
        ({"env": "a\0b"}, "environment variable a\\x00b is not set"),
        ({"file": "nowhere"}, "nowhere cannot be read: No such file or directory: check the path and its permissions"),
        ({"file": "."}, "cannot be read: Is a directory"),
        ({"file": "empty"}, "empty must hold exactly one non-empty line"),
        ({"file": "lines"}, "lines must hold exactly one non-empty line"),
        ({"file": "returns"}, "returns must hold exactly one non-empty line"),
        ({"file": "binary"}, "binary cannot be read: 'utf-8' codec"),
        ({"file": "a\0b"}, "cannot be read: embedded null byte"),
        ({"file": "~nobody-of-this-name/x"}, "cannot be read: Could not determine home directory"),
        ({"file": "\ud800"}, "cannot be read: 'utf-8' codec"),
        ({"file": "/dev/zero"}, "/dev/zero must hold exactly one non-empty line"),
    ],
)
def test_a_secret_that_cannot_be_had(
    write: Write, folder: Path, monkeypatch: pytest.MonkeyPatch, value: Any, expected: str
) -> None:
    (folder / "empty").write_text(" \n\n")
    (folder / "lines").write_text("hunter2-ari\nhunter2-ami\n")
    (folder / "returns").write_bytes(b"hunter2-ari\rhunter2-ami")
    (folder / "binary").write_bytes(b"\xff\xfe\x00")
    monkeypatch.setenv("TRUNKBRIDGE_TEST_EMPTY", "")
    monkeypatch.setenv("TRUNKBRIDGE_TEST_LINES", "hunter2-ari\nhunter2-ami")
    data = example()
    data["asterisk"]["ari"]["password"] = value
    path = write(b"")
    with pytest.raises(ConfigError) as caught:
        validate(Config, data, path)
    text = str(caught.value)
    assert text.startswith(f"{path}: asterisk.ari.password: ")
    assert expected in text.replace(str(path), "FILE")
    assert "hunter2" not in text
    assert "12345678" not in text
    assert text.isprintable()


def test_a_secret_of_the_environment(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUNKBRIDGE_TEST_SECRET", "  hunter2-env\n")
    config = load(write(TEXT.replace("{file: .run/secrets/ari}", "{env: TRUNKBRIDGE_TEST_SECRET}")))
    assert config.asterisk.ari.password.get_secret_value() == "hunter2-env"


def test_secrets_show_nowhere(write: Write) -> None:
    credentials = {"credentials": {"file": ".run/secrets/ari"}, "url": "wss://h/"}
    config = load(write(changed((("applications", "bot"), credentials))))
    assert config.applications["bot"].handshake_secret() is not None
    shown = [repr(config), str(config), str(config.model_dump()), config.model_dump_json()]
    shown += [repr(config.asterisk.ari), f"{config.asterisk.ari.password}", repr(config.phones)]
    assert not any("hunter2" in text for text in shown)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("store",), {"postgres": "postgresql://u:hunter2@h/d", "redis": "redis://h"}),
        (("store",), {"postgres": "postgresql://u:hunter2@[h/d", "redis": "redis://h"}),
        (("store",), {"postgres": "mysql://u:hunter2@h/d", "redis": "redis://h"}),
        (("store",), {"postgres": "postgresql://h/d?password=hunter2", "redis": "redis://h"}),
        (("store",), {"postgres": "postgresql://h/d", "redis": "redis://:hunter2@h"}),
        (("store",), "postgresql://u:hunter2@h/d"),
        (("applications", "echo", "url"), "ws://key:hunter2@h/"),
        (("applications", "echo", "url"), "http://key:hunter2@h/"),
        (("applications", "echo", "url"), "ws://key:hun/hunter2@h/"),
        (("applications", "echo", "url"), "ws://key:hunter2@h\u2100/"),
        (("applications", "echo", "url"), "ftp://h/?token=hunter2"),
        (("applications", "echo", "status_callback"), "ftp://h/?token=hunter2"),
        (("applications", "echo", "status_callback"), "http://key:hunter2@h/"),
        (("asterisk", "ari", "password"), "hunter2"),
        (("asterisk", "ami", "password"), {"file": {"hunter2": 1}}),
        (("phones", "softphone"), {"password": "hunter2"}),
    ],
)
def test_a_secret_in_the_wrong_place_is_refused_and_not_repeated(write: Write, path: Any, value: Any) -> None:
    assert "hunter2" not in refusal(write(changed((path, value))))


# Whatever there is


_scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(2**60, 2**70),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["*", "+918000000001", "127.0.0.1:1", "ws://h/", "ulaw", "echo", "carrier-ulaw", "::1", "~x/y"]),
    st.binary(max_size=8),
    st.dates(),
)
_keys = st.one_of(
    st.text(max_size=8),
    st.sampled_from(["file", "env", "url", "did", "identify", "postgres", "redis", "first", "last"]),
)
_data = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_keys, inner, max_size=3),
    max_leaves=8,
)


def _places(data: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    if isinstance(data, (dict, list)):
        for key, value in data.items() if isinstance(data, dict) else enumerate(data):
            yield (*path, key)
            yield from _places(value, (*path, key))


@given(st.sampled_from(sorted(_places(example()), key=str)), _data, st.none() | _keys)
@settings(max_examples=250, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_value_at_any_place_is_taken_or_a_clear_error(
    folder: Path, place: tuple[str | int, ...], value: Any, new_key: str | None
) -> None:
    data = example()
    target: Any = data
    for part in place[:-1]:
        target = target[part]
    if new_key is not None and isinstance(target, dict):
        target[new_key] = value
    else:
        target[place[-1]] = value
    path = folder / "trunkbridge.yml"
    text = complaint(lambda: validate(Config, data, path))
    assert not text or all(line.startswith(str(path)) for line in text.split("\n"))


@given(st.text(alphabet=st.sampled_from(list("ab:-[]{}&*!|>'\"%@#\n \t,?0123.~<")), max_size=60))
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_is_read_or_a_clear_error(write: Write, text: str) -> None:
    path = write(text)
    complaint(lambda: load(path))


@given(st.binary(max_size=200))
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_read_or_a_clear_error(write: Write, content: bytes) -> None:
    path = write(content)
    with pytest.raises(ConfigError):
        load_node(path)
    assert os.path.getsize(path) == len(content)


# Sample rates


@pytest.mark.parametrize(
    ("query", "sample_rate", "rate"),
    [
        ("", None, 8000),
        ("", 8000, 8000),
        ("", 24000, 24000),
        ("?sample-rate=8000", None, 8000),
        ("?sample_rate=24000&a=1", None, 24000),
        ("?sample-rate=16000&sample_rate=16000", None, 16000),
        ("?sample-rate=16000", 16000, 16000),
    ],
)
def test_the_sample_rate_is_the_applications_or_its_urls(query: str, sample_rate: int | None, rate: int) -> None:
    url = f"wss://bot.example/voice{query}"
    application = ExotelApplication.model_validate({"url": url, "sample_rate": sample_rate})
    assert (application.media_rate(), application.url) == (rate, url)


@pytest.mark.parametrize(
    ("query", "sample_rate", "complaint"),
    [
        ("?sample-rate=48000", None, "sample-rate in the URL is none of 8000, 16000, 24000"),
        ("?sample_rate=16k", None, "sample_rate in the URL is none of 8000"),
        ("?sample-rate=", None, "sample-rate in the URL is none of 8000"),
        ("?sample-rate=8000&sample_rate=16000", None, "rates 16000 and 8000: leave one"),
        ("?sample-rate=8000", 16000, "asks for a sample rate of 8000, and the stream has 16000: make them agree"),
        ("", 11025, "8000, 16000 or 24000"),
    ],
)
def test_a_sample_rate_that_is_not_carried_or_contradicts_is_refused(
    query: str, sample_rate: int | None, complaint: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(complaint)):
        ExotelApplication.model_validate({"url": f"wss://bot.example/voice{query}", "sample_rate": sample_rate})


@pytest.mark.parametrize(
    ("query", "fallback"), [("", "?sample-rate=16000"), ("?sample-rate=16000", "?sample-rate=8000")]
)
def test_a_fallback_url_asks_for_no_other_sample_rate(query: str, fallback: str) -> None:
    data = {"url": f"wss://bot.example/voice{query}", "fallback": {"url": f"wss://spare.example/{fallback}"}}
    with pytest.raises(
        ValueError, match=r"fallback.url: the URL asks for a sample rate of (16000|8000), and the stream"
    ):
        ExotelApplication.model_validate(data)
    data["fallback"] = {"url": "wss://spare.example/"}  # which takes what it gets
    assert ExotelApplication.model_validate(data).media_rate() == (16000 if query else 8000)


def test_nobody_waits_for_the_word_of_an_application_that_only_listens(write: Write) -> None:
    one_way = (("applications", "conversation", "one_way"), True)
    assert "routes[0].answer: application 'conversation' only listens (one_way) and never speaks" in refusal(
        write(changed(one_way, (("routes", 0, "answer"), "when_speaking")))
    )
    load(write(changed(one_way, (("routes", 0, "answer"), "when_connected"))))


def test_an_application_that_only_listens_sends_no_digits(write: Write) -> None:
    one_way = (("applications", "conversation", "one_way"), True)
    digits = (("applications", "conversation", "digits_to_caller"), True)
    assert "digits_to_caller: an application that only listens (one_way) cannot send any" in refusal(
        write(changed(one_way, digits))
    )
    assert "fallback.url" not in refusal(
        write(changed(one_way, digits, (("applications", "conversation", "fallback"), {"url": "wss://spare.example/"})))
    )
    load(write(changed(digits)))


def test_a_caller_who_is_answered_at_once_does_not_wait(write: Write) -> None:
    within = (("routes", 0, "answer_within_seconds"), 3)
    assert "routes[0]: answer_within_seconds: the caller is answered at once" in refusal(write(changed(within)))
    load(write(changed((("routes", 0, "answer"), "when_connected"), within)))


def test_twilio_has_one_sample_rate() -> None:
    data = {"dialect": "twilio", "url": "wss://bot.example/voice", "account_sid": "AC" + "0" * 32}
    assert TwilioApplication.model_validate(data).media_rate() == 8000
    with pytest.raises(ValueError, match="sample_rate belongs to dialect exotel"):
        TwilioApplication.model_validate(data | {"sample_rate": 8000})


@pytest.mark.parametrize("media_format", ["trunk", "slin", "ulaw", "alaw"])
def test_a_route_to_a_wideband_application_has_no_format_of_8_khz(write: Write, media_format: str) -> None:
    data = example()
    data["routes"][0]["media_format"] = media_format
    data["applications"][data["routes"][0]["application"]]["sample_rate"] = 16000
    path = write(yaml.safe_dump(data))
    if media_format == "trunk":
        load(path)
    else:
        with pytest.raises(ConfigError, match=rf"routes\[0\].media_format: {media_format} has 8000 Hz .* slin16"):
            load(path)


def test_a_dynamic_url_and_a_callback() -> None:
    application = ExotelApplication.model_validate(
        {
            # Its query is part of the question: the limits are for what the answer brings.
            "url": "HTTPS://app.example/where?a=1&b=2&c=3&d=4&sample-rate=16000",
            "custom_parameters": {"campaign": "demo"},
            "status_callback": "http://crm.example/passthru?token=t",
            "dialect_options": {"passthru": "json"},
        }
    )
    assert application.status_callback == "http://crm.example/passthru?token=t"
    assert application.media_rate() == 8000
    assert ExotelApplication.model_validate({"url": application.url, "sample_rate": 24000}).media_rate() == 24000
    with pytest.raises(ValueError, match="4 parameters together"):
        ExotelApplication.model_validate(
            {"url": "https://app.example/", "custom_parameters": dict.fromkeys(("a", "b", "c", "d"), "x")}
        )


def test_what_is_said_about_failures_and_what_holds_without_it(write: Write) -> None:
    application = {
        "url": "ws://127.0.0.1:19302/",
        "first_audio_seconds": 5,
        "max_silence_seconds": 0,
        "max_seconds": 600,
        "fallback": {"url": "wss://spare.example/?a=1", "prompt": "sorry"},
        "circuit_breaker": {"failures": 2, "seconds": 9},
        "one_way": True,
    }
    config = load(write(changed((("applications", "echo"), application), (("prompts",), {"sorry": "sorry.wav"}))))
    found = config.applications["echo"]
    assert (found.fallback.url, found.fallback.prompt) == ("wss://spare.example/?a=1", "sorry")
    assert (found.circuit_breaker.failures, found.circuit_breaker.seconds) == (2, 9)
    other = config.applications["conversation"]
    assert (other.first_audio_seconds, other.max_silence_seconds, other.max_seconds) == (30, 60, 3600)
    assert (other.circuit_breaker.failures, other.circuit_breaker.seconds) == (5, 30)


def test_applications_on_one_media_leg_have_one_sample_rate(write: Write) -> None:
    mixed = changed(
        (("applications", "conversation", "after"), {"application": "echo"}),
        (("applications", "conversation", "sample_rate"), 16000),
    )
    assert "applications.conversation.after.application 'echo' has another sample_rate" in refusal(write(mixed))
