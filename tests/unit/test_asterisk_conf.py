"""Rendering of Asterisk's files: golden outputs, and that no value can be more than a value."""

from __future__ import annotations

import copy
import functools
import os
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from ari_app import asterisk_conf
from ari_app.asterisk_conf import MAX_VALUE_BYTES, SECRET_FILES, AsteriskLayout, render, write
from ari_app.settings import Config
from audiosocket.errors import ConfigError
from audiosocket.runtime.config import validate
from tools.asterisk.install import new_enough, release

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "trunkbridge.example.yml"
GOLDEN = ROOT / "tests" / "golden" / "asterisk"
LAYOUT = AsteriskLayout.production("x86_64")

# Every optional setting that reaches Asterisk, set.
FULL: dict[str, Any] = {
    "node": "pbx-1.mumbai",
    "store": "embedded",
    "asterisk": {
        "app": "voice",
        "ari": {"listen": "10.0.0.4:8088", "username": "ari-user", "password": {"env": "TEST_ARI"}},
        "ami": {"listen": "10.0.0.4:5038", "username": "ami-user", "password": {"env": "TEST_AMI"}},
        "sip_listen": "0.0.0.0:5060",
        "external_address": "203.0.113.7",
        "local_networks": ["10.0.0.0/8", "192.168.0.0/16"],
        "rtp": {"first": 20000, "last": 20999},
        "fallback_prompt": "all-circuits-busy-now",
        "fallback_extension": "front-desk",
        "music": {"calm": "/srv/music/calm"},
    },
    "trunks": {
        "carrier": {
            "identify": ["198.51.100.0/24", "203.0.113.9"],
            "codecs": ["alaw", "ulaw"],
            "contact": "198.51.100.20:5060",
            "qualify_seconds": 30,
            "rtp_timeout_seconds": 0,
        },
    },
    "applications": {
        "echo": {
            "url": "ws://127.0.0.1:1/",
            "after": {"extension": "survey"},
            "limit": {"calls": 2, "when_full": "queue", "queue": {"hold_audio": "sound:queue-thankyou"}},
        },
        "desk": {"url": "ws://127.0.0.1:1/", "fallback": {"after": {"transfer": {"to": "1000", "trunk": "carrier"}}}},
    },
    "routes": [{"did": "*", "application": "echo"}],
    "controller": {"max_calls": 1500},
}


@pytest.fixture(autouse=True)
def fixed_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ari", "ami", "softphone"):
        monkeypatch.setenv(f"TEST_{name.upper()}", f"secret-{name}")


def example() -> dict[str, Any]:
    data: dict[str, Any] = yaml.safe_load(EXAMPLE.read_text())
    data["asterisk"]["ari"]["password"] = {"env": "TEST_ARI"}
    data["asterisk"]["ami"]["password"] = {"env": "TEST_AMI"}
    data["phones"]["softphone"]["password"] = {"env": "TEST_SOFTPHONE"}
    del data["cluster_secret"]  # Asterisk has nothing to do with it
    return data


def config(data: dict[str, Any]) -> Config:
    return validate(Config, data, EXAMPLE)


@pytest.mark.parametrize(("name", "data"), [("example", None), ("full", FULL)])
def test_golden(name: str, data: dict[str, Any] | None) -> None:
    files = render(config(data or example()), LAYOUT)
    folder = GOLDEN / name
    if os.environ.get("UPDATE_GOLDEN") == "1":
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.iterdir():
            old.unlink()
        for file, text in files.items():
            (folder / file).write_text(text)
    expected = {path.name: path.read_text() for path in folder.iterdir()}
    assert files == expected, "set UPDATE_GOLDEN=1 to accept, then read the difference"


def lines(text: str) -> Iterator[tuple[str, str]]:
    """A file as Asterisk reads it: kind or key of each line that is not empty, and its value.

    Lines end at a line feed; fgets and strchr also make an end of NUL, and an editor of a carriage return.
    """
    for line in text.replace("\0", "\n").replace("\r", "\n").split("\n"):
        line = line.split(";", 1)[0].strip()
        if line.startswith(("[", "#")):
            yield line[0], line
        elif line:
            key, _, value = line.partition("=")
            yield key.strip(), value.removeprefix(">").strip()


def keys(files: dict[str, str]) -> dict[str, list[str]]:
    return {name: [key for key, _ in lines(text)] for name, text in files.items()}


def string_places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of every string of the settings, secrets and the operator's own names included."""
    if isinstance(value, dict) and set(value) == {"env"}:
        yield path
    elif isinstance(value, dict):
        for key, item in value.items():
            if path and path[-1] in ("trunks", "phones"):
                yield (*path, key, None)
            yield from string_places(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from string_places(item, (*path, index))
    elif isinstance(value, str):
        yield path


def replaced(data: dict[str, Any], path: tuple[Any, ...], text: str) -> dict[str, Any]:
    """`data` with the string at `path` replaced; a path that ends with None names a key."""
    data = copy.deepcopy(data)
    target: Any = data
    *parents, last = path
    if last is None:
        *parents, old = parents
        for part in parents:
            target = target[part]
        target[text] = target.pop(old)
        return data
    for part in parents:
        target = target[part]
    secret = isinstance(target[last], dict)
    target[last] = SecretStr(text) if secret else text
    return data


CASES = [
    (name, path)
    for name, data in (("example", example()), ("full", FULL))
    for path in string_places({key: data[key] for key in ("node", "asterisk", "trunks", "phones") if key in data})
]

# What ends lines, opens sections, includes files, starts comments, continues values or fills buffers.
NASTY = (
    "x\n[evil]\n",
    "x\r[evil]",
    "x\0y",
    "x;y",
    "x;--y",
    "[evil]",
    "#exec id",
    "> x",
    "=x",
    "\\",
    "x\u2028y",
    "x\u0085y",
    "${SHELL(id)}",
    "a,b",
    "general",
    " x",
    "x" * 9000,
    "\udc00",
)
TEXTS = st.one_of(
    st.sampled_from(NASTY),
    st.text(),
    st.builds("{}{}{}".format, st.text(), st.sampled_from(NASTY), st.text()),
    st.from_regex(r"[a-z][a-z0-9_-]{0,39}", fullmatch=True),
)


@functools.cache
def harmless_keys(name: str) -> dict[str, list[str]]:
    return keys(render(config(example() if name == "example" else FULL), LAYOUT))


def refused_or_a_value(case: tuple[str, tuple[Any, ...]], text: str) -> None:
    name, path = case
    with pytest.MonkeyPatch.context() as patch:
        for secret in ("ari", "ami", "softphone"):
            patch.setenv(f"TEST_{secret.upper()}", f"secret-{secret}")
        try:
            files = render(config(replaced(example() if name == "example" else FULL, path, text)), LAYOUT)
        except ConfigError:
            return
        assert keys(files) == harmless_keys(name)
    for file, content in files.items():
        content.encode()
        assert all(len(line.encode()) < 1024 for line in content.split("\n")), file


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, (case[0], *case[1]))))
def test_a_nasty_text_in_any_setting_is_refused_or_stays_a_value(case: tuple[str, tuple[Any, ...]]) -> None:
    for text in NASTY:
        refused_or_a_value(case, text)


@given(case=st.sampled_from(CASES), text=TEXTS)
def test_any_text_in_any_setting_is_refused_or_stays_a_value(case: tuple[str, tuple[Any, ...]], text: str) -> None:
    refused_or_a_value(case, text)


@given(text=TEXTS)
def test_a_password_that_is_not_refused_arrives_as_it_is(text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEST_ARI", "x")
        patch.setenv("TEST_AMI", "x")
        data = replaced(FULL, ("asterisk", "ari", "password"), text)
        data["phones"] = {"desk": {"password": SecretStr(text)}}
        try:
            files = render(config(data), LAYOUT)
        except ConfigError:
            return
    assert ("password", text) in lines(files["ari.conf"])
    assert ("password", text) in lines(files["pjsip.conf"])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "empty"),
        (" x", "blanks"),
        ("x ", "blanks"),
        ("a;b", "comment"),
        ("a\nb", "line break or a control character"),
        ("a\rb", "line break or a control character"),
        ("a\0b", "line break or a control character"),
        ("a\x1bb", "line break or a control character"),
        ("a\u2028b", "line break or a control character"),
        ("é" * (MAX_VALUE_BYTES // 2 + 1), "longer than 512 bytes"),
    ],
)
def test_a_bad_password_is_named_and_never_shown(text: str, problem: str) -> None:
    data = replaced(FULL, ("asterisk", "ari", "password"), text)
    with pytest.raises(ConfigError) as caught:
        render(config(data), LAYOUT)
    message = str(caught.value)
    assert message.startswith("asterisk.ari.password: ")
    assert problem in message
    assert not text or text not in message


@pytest.mark.parametrize("section", ["ari", "ami"])
def test_a_user_may_not_be_called_like_a_section_of_asterisks_own(section: str) -> None:
    data = replaced(FULL, ("asterisk", section, "username"), "general")
    with pytest.raises(ConfigError, match=f"asterisk.{section}.username: general names"):
        render(config(data), LAYOUT)


def test_a_folder_with_a_line_break_is_refused() -> None:
    layout = replace(LAYOUT, run=Path("/x\n[options]"))
    with pytest.raises(ConfigError, match="run of the layout"):
        render(config(FULL), layout)


def test_nobody_is_an_endpoint_without_an_address_or_a_password() -> None:
    pjsip = render(config(example()), LAYOUT)["pjsip.conf"]
    sections = [section for section in pjsip.split("\n[") if "(endpoint.common)" in section.splitlines()[0]]
    assert len(sections) == 3
    for section in sections:
        by_address = "identify_by = ip\n" in section and "auth =" not in section
        by_password = "identify_by = username\n" in section and "auth =" in section
        assert by_address != by_password


def test_write_replaces_and_keeps_secrets_from_others(tmp_path: Path) -> None:
    folder = tmp_path / "etc" / "asterisk"
    write({"ari.conf": "old"}, folder)
    files = render(config(example()), LAYOUT)
    write(files, folder)
    assert {path.name: path.read_text() for path in folder.iterdir()} == files
    for path in folder.iterdir():
        readable_by_others = bool(path.stat().st_mode & stat.S_IROTH)
        assert readable_by_others == (path.name not in SECRET_FILES), path
        assert ("secret-" in path.read_text()) == (path.name in SECRET_FILES), path


def test_write_says_which_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "etc").write_text("a file, not a folder")
    with pytest.raises(ConfigError, match="etc: cannot be written"):
        write({"ari.conf": "x"}, tmp_path / "etc")


def test_write_leaves_the_old_file_when_it_fails(tmp_path: Path) -> None:
    write({"rtp.conf": "old"}, tmp_path)
    with pytest.raises(UnicodeEncodeError):
        write({"rtp.conf": "\udc00"}, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["rtp.conf"]
    assert (tmp_path / "rtp.conf").read_text() == "old"


def test_missing_templates_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(asterisk_conf, "__file__", str(tmp_path / "ari_app" / "asterisk_conf.py"))
    monkeypatch.setattr("sys.prefix", str(tmp_path))
    with pytest.raises(ConfigError, match=r"share/trunkbridge/asterisk-conf: install trunkbridge again"):
        render(config(FULL), LAYOUT)


def test_installed_templates_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    installed = tmp_path / "share" / "trunkbridge" / "asterisk-conf"
    installed.mkdir(parents=True)
    for path in (ROOT / "asterisk-conf").glob("*.j2"):
        (installed / path.name).write_text(path.read_text())
    here = render(config(FULL), LAYOUT)
    monkeypatch.setattr(asterisk_conf, "__file__", str(tmp_path / "lib" / "ari_app" / "asterisk_conf.py"))
    monkeypatch.setattr("sys.prefix", str(tmp_path))
    assert render(config(FULL), LAYOUT) == here


@pytest.mark.parametrize(
    ("said", "usable"),
    [
        ("Asterisk 22.10.0", True),
        ("Asterisk 22.10.1~dfsg+~cs6.15.60671435-1", True),
        ("Asterisk 22.9.0", False),
        ("Asterisk 20.20.0", True),
        ("Asterisk 20.19.9", False),
        ("Asterisk certified/20.7-cert4", False),
        ("Asterisk 21.12.0", False),
        ("Asterisk 23.4.0", True),
        ("Asterisk 23.3.1", False),
        ("Asterisk 24.0.0", True),
        ("Asterisk 18.26.4", False),
    ],
)
def test_which_releases_will_do(said: str, usable: bool) -> None:
    found = release(said)
    assert found is not None
    assert new_enough(found) is usable


def test_a_development_build_has_no_release() -> None:
    assert release("Asterisk GIT-master-f0c1c1a7") is None
