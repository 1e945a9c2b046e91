"""Targets that read text of people and processes: the contract's messages, URLs, the configuration file."""

from __future__ import annotations

import tempfile
from pathlib import Path
from urllib.parse import urlsplit

import click
import msgspec
from pydantic import ValidationError

from ari_app.applications import APPLICATIONS
from audiosocket.address import split_address
from audiosocket.callspec import (
    CallNotice,
    CallReport,
    CallSpec,
    EndReason,
    LegOrder,
    MediaFigures,
    WorkerInfo,
    masked_url,
)
from audiosocket.dialects import DIALECTS, URL_LOOKUPS, open_dialect
from audiosocket.dialects.base import StreamEnd
from audiosocket.errors import ConfigError
from audiosocket.runtime.config import read_yaml, validate
from audiosocket.settings import NodeSettings, query_parameters, split_url
from tools.fuzz.media_targets import TOKENS, call_spec
from tools.fuzz.supply import Supply

# The contract

KINDS: tuple[type[msgspec.Struct], ...] = (CallSpec, CallReport, WorkerInfo, LegOrder, CallNotice)
_SPEC = call_spec(credentials="k:t", custom_parameters={"a": "b"}, dialect_options={"frame_ms": 100})
_REPORT = CallReport(
    call_id="c", leg_uuid="l", worker_id="gw/0", reason=EndReason.APP_LOST, started_at_ms=1, ended_at_ms=2,
    figures=MediaFigures(caller_frames=7, frames_dropped={"clear": 2}),
)  # fmt: skip
CONTRACT_SEEDS = (
    *(b"\x00\x01" + msgspec.json.encode(spec) for spec in (_SPEC, call_spec("twilio"), call_spec("morse"))),
    b"\x01\x01" + msgspec.json.encode(_REPORT),
    b'\x03\x01{"leg_uuid":"l","order":"release"}',
    b'\x04\x01{"call_id":"c","leg_uuid":"l","event":"digits","digits":"5","at_ms":1}',
    b'\x00\x01{"x":' + b"[" * 3000,
    b'\x01\x01{"call_id":"\xff"}',
)


def contract(data: bytes) -> None:
    """What Redis may hold: an object, or an error that the readers know; what is read is written again the same."""
    supply = Supply(data)
    kind = supply.pick(KINDS)
    try:
        found = msgspec.json.decode(supply.json(TOKENS), type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return
    assert msgspec.json.decode(msgspec.json.encode(found), type=kind) == found
    if isinstance(found, CallSpec):
        try:
            dialect = open_dialect(found)
        except ConfigError:
            return
        for message in (*dialect.opening(), dialect.media(bytes(dialect.frame_bytes)), dialect.mark("m")):
            msgspec.json.decode(message)
        for end in (StreamEnd(True, "caller", 1.5), StreamEnd(False, "platform", 0.0, "app_refused: x")):
            for told in (dialect.stream_started(1), dialect.stream_ended(end, 2)):
                assert told is None or told.url.startswith(found.callback_url.partition("#")[0])
        assert all("\r" not in value and "\n" not in value for value in dialect.headers().values())
        assert not set("?#@") & set(masked_url(found.url))


# URLs

_SECRET = "S3CRET"
_QUERY_BEGINS = frozenset("?#")


def _seed(*texts: str) -> bytes:
    return b"\x01" + b"".join(bytes((len(text.encode()),)) + text.encode() for text in texts[:-1]) + texts[-1].encode()


MASKED_SEEDS = (
    _seed("key", "token", "bot.example:443", "v/1"),
    _seed("key", "to/ken", "bot.example", "v?mail=a@b#f"),
    _seed("a:b@c", "%41?", "[::1]:80", "//x@y"),
    _seed("", "", "", "bot.example?token=a/b"),
)
URL_SEEDS = (
    *(b"\x00" + _seed("key", "]]to%20ken[::", "h/"), b"\x00" + _seed("key", "]", "[::")),
    *(
        bytes((dialect,)) + _seed("key", "to%20ken", rest)
        for dialect in range(3)
        for rest in (
            "bot.example/voice?agent=a%207&sample-rate=8000",
            "[::1]:80/",
            "h:99999/",
            "h/#f",
            "@h/v",
            "[::1/",
            "h:0/",
        )
    ),
)


def masked(data: bytes) -> None:
    """`masked_url`: nothing of credentials, query or fragment; doing it twice changes nothing."""
    supply = Supply(data)
    scheme = supply.pick(("ws://", "wss://", "https://", ""))
    user, password, host = supply.text(), supply.text(), supply.text()
    rest = supply.rest().decode("utf-8", "replace")
    shown = masked_url(scheme + rest)
    assert not set("?#@") & set(shown)
    assert masked_url(shown) == shown
    if scheme:
        # Whatever stands in front of the @ that ends the credentials, and whatever comes behind the path.
        shown = masked_url(f"{scheme}{user}:{password}{_SECRET}@{host}/{rest}?{_SECRET}#{_SECRET}")
        assert _SECRET not in shown, shown
        if not _QUERY_BEGINS & set(user + password):
            assert _SECRET not in masked_url(f"{scheme}{_SECRET}{user}:{password}@bot.example/v?{rest}")


def urls(data: bytes) -> None:
    """An application's URL, on the command line, in the configuration, and in a call spec."""
    supply = Supply(data)
    dialect = supply.pick(sorted(DIALECTS))
    scheme = supply.pick(("ws://", "wss://", "https://", ""))
    user, password = supply.text(), supply.text()
    rest = supply.rest().decode("utf-8", "replace")
    given = f"{scheme}{user}:{password}{_SECRET}@{rest}"
    for url in (given, scheme + rest):
        said = []
        try:
            bare, credentials = split_address(url, dialect, "--app")
        except click.UsageError as error:
            said.append(error.format_message() if url is given else "")
        else:
            assert urlsplit(bare).username is None
            assert urlsplit(bare).hostname
            # What is dialled is the same host, with or without credentials in front of it.
            assert urlsplit(bare).hostname == urlsplit(url).hostname
            assert not (credentials and DIALECTS[dialect].signs)
        query_parameters(url)
        try:
            split_url(url)
        except ValueError as error:
            said.append(str(error))
        for name, model in APPLICATIONS.items():
            account = DIALECTS[name].account_sid
            try:
                accepted = model.model_validate({"url": url, "account_sid": account, "status_callback": url})
            except ValidationError as error:
                said.append(str(error))
            else:
                assert urlsplit(accepted.url).username is None
        assert not any(_SECRET in text for text in said), said


ANSWER_SEEDS = (
    b'\xc8\x01{"url":"wss://S3CRET:x@bot.example/voice?agent=1"}',
    b"\xc8\x01 wss://bot.example:443/v",
    b'\xc8\x01\xef\xbb\xbf{"url":"ws://[::1/S3CRET","more":[1e999]}',
    b'\xc8\x01{"url":"wss://:@//:@S3CRET/voice"}',
    b'\xc8\x01{"url":"wss://a..b/?sample-rate=16000"}',
    b'\xc8\x01{"url":' + b"[" * 1500,
    b"\x30\x01",
    bytes((200, 0, 0, 2, 5, 1, 4)),
)
_ANSWER_TOKENS = (
    b'{"url":"', b'"}', b"wss://", b"ws://", b"S3CRET:S3CRET@", b"bot.example", b"[::1]", b":", b"443", b"/", b"?",
    b"#", b"@", b"sample-rate=8000", b"&a=b", b"\\u0000", b"\\n", b"%", b" ", b"\xef\xbb\xbf", b"\xff", b"https://",
    b"null", b"[", b"x" * 300,
)  # fmt: skip


def url_answer(data: bytes) -> None:
    """What a dynamic URL answers: a URL that can be dialled, its credentials apart; or `ValueError`, without them."""
    supply = Supply(data)
    status = supply.byte()
    body = supply.json(_ANSWER_TOKENS)
    spec = call_spec(url="https://ask.example/?a=b", credentials="own:own")
    for lookup in URL_LOOKUPS.values():
        said = ""
        try:
            found = lookup.url_answer(spec, 200 if status & 0x80 else 200 + status, body)
        except ValueError as error:
            said = str(error)
        else:
            parts = urlsplit(found.url)
            assert parts.scheme in ("ws", "wss")
            assert parts.hostname
            assert parts.username is None
            assert parts.port is None or parts.port < 65536
            assert found.url.isascii()
            assert found.url.isprintable()
            assert found.credentials != spec.credentials or b"own" in body
            assert open_dialect(found).headers().keys() <= {"Authorization", "User-Agent"}
        assert _SECRET not in said, said


# The configuration file

_folder = tempfile.TemporaryDirectory(prefix="trunkbridge-fuzz-")
CONFIG_SEEDS = (
    b"node: gw-1\nstore: embedded\ngateway: {listen: 127.0.0.1:9092, workers: 2, allow: [10.0.0.0/8]}\n",
    b"node: gw-1\nstore:\n  postgres: postgresql://h/d\n  redis: redis://h:6379\nlog: {level: debug}\n",
    b"a: &a [1, 2]\nb: [*a, *a]\n",
    b"node: !!timestamp 2026-01-01\n? [1]\n: 2\n",
    b"a: 1\na: 2\n",
    b'node: "\\e[31m\\u200b"\nstore: embedded\n"\\a": 1\n',
    b"<<: {a: 1}\n",
)


def config(data: bytes) -> None:
    """The gateway's part of the configuration file: settings, or one `ConfigError` whose lines can be shown."""
    path = Path(_folder.name) / "trunkbridge.yml"
    path.write_bytes(data)
    said = ""
    try:
        found = read_yaml(path)
        # Secrets would be read from wherever the file says.
        validate(NodeSettings, {key: value for key, value in found.items() if b"password" not in data}, path)
    except ConfigError as error:
        said = str(error)
    assert all(line.isprintable() for line in said.splitlines()), said
