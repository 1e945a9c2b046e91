"""What `trunkbridge gateway` says to options that do not fit together, before anything is started."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from audiosocket.cli import _node_options, gateway
from audiosocket.errors import ConfigError
from audiosocket.settings import GatewaySettings, NodeSettings

pytestmark = pytest.mark.unit

LISTEN = ["--listen", "127.0.0.1:9092"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "give --config FILE, or --listen HOST:PORT and --app URL"),
        (LISTEN, "a standalone worker needs both --listen HOST:PORT and --app URL"),
        (["--config", "x.yml", *LISTEN], "--config belongs to a configured node"),
        ([*LISTEN, "--app", "ws://key:]hunter2@[::"], "expected ws://HOST[:PORT]/PATH"),
        ([*LISTEN, "--app", "ws://app/a b"], "--app ws://app/a b: expected ws://HOST[:PORT]/PATH"),
        ([*LISTEN, "--app", "ws://app/#a"], "--app ws://app/: expected ws://HOST[:PORT]/PATH"),
        ([*LISTEN, "--app", "http://app/"], "--app http://app/: expected ws://HOST[:PORT]/PATH"),
        (["--listen", "9092", "--app", "ws://app/"], "--listen 9092: expected HOST:PORT"),
        ([*LISTEN, "--app", "ws://app/", "--dialect", "morse"], "'morse' is not one of 'exotel', "),
        (
            [*LISTEN, "--app", "wss://app/media?token=hunter2", "--dialect", "twilio"],
            "--app wss://app/media: Twilio allows no query in a stream's URL: remove it",
        ),
        (
            [*LISTEN, "--app", "wss://key:hunter2@app/media", "--dialect", "twilio"],
            "--app wss://app/media: Twilio allows no credentials in a stream's URL: remove them",
        ),
        (
            [*LISTEN, "--app", "wss://app/media", "--auth-token-file", "hunter2"],
            "--auth-token-file belongs to --dialect plivo or twilio",
        ),
        (
            [*LISTEN, "--app", "wss://app/media", "--dialect", "twilio", "--format", "slin16"],
            "media format slin16: Twilio's streams have 8000 Hz: use slin, ulaw or alaw",
        ),
        (
            # To this platform it is a parameter like any other.
            [*LISTEN, "--app", "wss://app/media?sample-rate=16000", "--dialect", "plivo", "--format", "slin24"],
            "media format slin24: Plivo's streams have 8000 Hz: use slin, ulaw or alaw",
        ),
        (
            [*LISTEN, "--app", "wss://app/media?sample-rate=16000"],
            "--format slin has 8000 Hz and the URL of --app asks for 16000: make them agree",
        ),
        (
            [*LISTEN, "--app", "wss://app/media?sample-rate=44100&token=hunter2", "--format", "slin24"],
            "sample-rate in the URL is none of 8000, 16000, 24000",
        ),
    ],
)
def test_what_does_not_fit(arguments: list[str], expected: str) -> None:
    result = CliRunner().invoke(gateway, arguments)
    assert result.exit_code == 2
    assert expected in " ".join(result.output.split())
    assert "hunter2" not in result.output


@pytest.mark.parametrize(
    ("content", "expected"), [(None, "cannot be read: No such file"), (b"\n", "must hold exactly")]
)
def test_an_auth_token_that_cannot_be_had(tmp_path: Path, content: bytes | None, expected: str) -> None:
    path = tmp_path / "token"
    if content is not None:
        path.write_bytes(content)
    options = ["--app", "wss://app/media", "--dialect", "twilio", "--auth-token-file", str(path)]
    result = CliRunner().invoke(gateway, [*LISTEN, *options])
    assert isinstance(result.exception, ConfigError)
    assert f"secret file {path}" in str(result.exception)
    assert expected in str(result.exception)


def test_every_worker_has_its_own_ports() -> None:
    plain = GatewaySettings(workers=3)
    rtp = GatewaySettings(workers=3, rtp_listen="0.0.0.0:9292")
    websocket = GatewaySettings(workers=3, websocket_listen="0.0.0.0:9392")
    for found, by_rtp, by_websocket in (
        (plain, ("", 2), ("", 2)),
        (rtp, ("0.0.0.0", 9294), ("", 2)),
        (websocket, ("", 2), ("0.0.0.0", 9394)),
    ):
        options = _node_options(NodeSettings(node="gw", store="embedded", gateway=found), 2)
        assert (options.port, options.status_port) == (9094, 9194)
        assert (options.rtp_host, options.rtp_port) == by_rtp
        assert (options.websocket_host, options.websocket_port) == by_websocket
