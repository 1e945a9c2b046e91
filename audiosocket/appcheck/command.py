"""`trunkbridge appcheck`: calls an application before any caller does."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import click
import uvloop
import yaml
from msgspec.structs import replace as replace_struct
from rich.console import Console

from audiosocket import __version__
from audiosocket.address import split_address
from audiosocket.appcheck.check import Outcome, check
from audiosocket.appcheck.findings import Severity
from audiosocket.appcheck.report import Screen, as_json, show
from audiosocket.appcheck.scenarios import SCENARIOS, Pace
from audiosocket.appcheck.voice import Samples, read_speech
from audiosocket.callspec import WIDEBAND, CallSpec, MediaFormat, masked_url
from audiosocket.dialects import DIALECTS, open_dialect
from audiosocket.errors import ConfigError
from audiosocket.runtime.config import secret_file
from audiosocket.settings import SAMPLE_RATES, query_rate

_PACE = Pace()


@click.command()
@click.argument("url")
@click.option("--dialect", type=click.Choice(sorted(DIALECTS)), default="exotel", show_default=True)
@click.option(
    "--sample-rate",
    type=click.Choice([str(rate) for rate in SAMPLE_RATES]),
    help="Of the calls, in Hz (exotel).  [default: what the URL's query asks for, otherwise 8000]",
)
@click.option(
    "--option",
    "options",
    multiple=True,
    metavar="KEY=VALUE",
    help="A switch of the dialect, as in an application's dialect_options. Repeatable.",
)
@click.option(
    "--parameter",
    "parameters",
    multiple=True,
    metavar="KEY=VALUE",
    help="A custom parameter of the call. Repeatable. With exotel the URL's query is taken for such, too.",
)
@click.option(
    "--credentials-file",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="File with one line: the token that signs the handshake where the platform signs it, otherwise KEY:TOKEN.",
)
@click.option(
    "--speech",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="WAV file (mono, 16 bits, 8000 Hz) that callers say instead of the synthetic voice, which has no words.",
)
@click.option("--caller", default="+919000000001", show_default=True, help="The application's `from`.")
@click.option("--callee", default="+918000000002", show_default=True, help="The application's `to`.")
@click.option("--only", multiple=True, type=click.Choice(list(SCENARIOS)), help="Play this alone. Repeatable.")
@click.option(
    "--seconds",
    type=click.FloatRange(0.5, 120),
    default=_PACE.wait,
    show_default=True,
    help="How long to wait for anything that the application has to do.",
)
@click.option("--calls", type=click.IntRange(2, 50), default=_PACE.calls, show_default=True, help="Calls at once.")
@click.option("--json", "json_path", type=click.Path(path_type=Path, dir_okay=False), help="Write the report here too.")
@click.option("--strict", is_flag=True, help="Exit with 1 for warnings too.")
def appcheck(
    url: str,
    dialect: str,
    sample_rate: str | None,
    options: tuple[str, ...],
    parameters: tuple[str, ...],
    credentials_file: Path | None,
    speech: Path | None,
    caller: str,
    callee: str,
    only: tuple[str, ...],
    seconds: float,
    calls: int,
    json_path: Path | None,
    strict: bool,
) -> None:
    """Call the application at URL (ws:// or wss://) before any caller does.

    Scripted calls are placed as the gateway places them, one scenario after the other: about two minutes. What the
    application did, how fast, and where it strays from the protocol is printed. The calls are real for the
    application: what it does and pays for a caller, it does and pays for these.

    Exit codes: 0 nothing is wrong, 1 something is, 2 wrong usage.
    """
    address, credentials = split_address(url, dialect)
    if credentials and credentials_file is not None:
        raise click.UsageError("the URL carries credentials and --credentials-file does too: give one of them")
    rate = _rate(address, dialect, sample_rate)
    spec = CallSpec(
        call_id="",
        leg_uuid="",
        call_sid="",
        stream_sid="",
        account_sid=DIALECTS[dialect].account_sid,
        application="appcheck",
        url=address,
        credentials=credentials,
        dialect=dialect,
        dialect_options={key: _typed(key, value) for key, value in _pairs("--option", options).items()},
        caller=caller,
        callee=callee,
        custom_parameters=_pairs("--parameter", parameters),
        media_format=WIDEBAND.get(rate, MediaFormat.ULAW),
        fade_ms=0,  # it is the application that is listened to
        report_stream="",
        created_at_ms=0,
        expires_at_ms=0,
    )
    try:
        open_dialect(spec)
        if credentials_file is not None:
            spec = replace_struct(spec, credentials=secret_file(credentials_file))
        recorded = None if speech is None else read_speech(speech)
    except ConfigError as error:
        raise click.UsageError(str(error)) from None
    if json_path is not None and not json_path.absolute().parent.is_dir():
        raise click.UsageError(f"--json {json_path}: there is no such folder")
    console = Console() if sys.stdout.isatty() else Console(width=100)
    names = [name for name in SCENARIOS if not only or name in only]
    about = {
        "url": masked_url(spec.url),
        "dialect": dialect,
        "scenarios": names,
        "began_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": __version__,
    }
    console.print(f"Calling {about['url']} as {dialect} does.\n", highlight=False)
    found = _play(console, spec, names, replace(_PACE, wait=seconds, calls=calls), recorded)
    show(console, found)
    if json_path is not None:
        try:
            json_path.write_bytes(as_json(found, about))
        except OSError as error:
            raise ConfigError(f"--json {json_path}: {error.strerror}") from None
    bad = {Severity.ERROR, Severity.WARNING} if strict else {Severity.ERROR}
    sys.exit(int(any(one.severity in bad for one in found.findings)))


def _play(console: Console, spec: CallSpec, names: list[str], pace: Pace, recorded: Samples | None) -> Outcome:
    screen = Screen(console)
    try:
        return uvloop.run(check(spec, names, pace, recorded, screen))
    except (KeyboardInterrupt, asyncio.CancelledError):
        raise click.exceptions.Exit(130) from None
    finally:
        screen.quiet()


def _rate(url: str, dialect: str, given: str | None) -> int:
    try:
        asked = query_rate(url) if DIALECTS[dialect].wideband else None
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    rate = asked or 8000 if given is None else int(given)
    if asked not in (None, rate):
        raise click.UsageError(f"--sample-rate is {rate} and the URL asks for {asked}: make them agree")
    return rate


def _pairs(option: str, given: tuple[str, ...]) -> dict[str, str]:
    pairs = {}
    for text in given:
        key, sep, value = text.partition("=")
        if not sep or not key:
            raise click.UsageError(f"{option} {key}: expected KEY=VALUE")
        pairs[key] = value
    return pairs


def _typed(key: str, value: str) -> object:
    """A value as it would be read from the configuration file."""
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        raise click.UsageError(f"--option {key}: the value is not readable as YAML") from None
