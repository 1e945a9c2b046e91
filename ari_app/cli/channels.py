"""`trunkbridge channels`: what Asterisk has right now, ours or not (AMI), and ending one of them."""

from __future__ import annotations

import re
from pathlib import Path

import click

from ari_app.ami import AmiChannel, AmiClient
from ari_app.ari.client import AriClient
from ari_app.ari.errors import AriNotFound, AriRejected
from ari_app.ari.models import RtpStatistics
from ari_app.cli.options import config_option, emit, emit_rows, output_option, run
from ari_app.domain.ids import ChannelId, parse
from ari_app.settings import Config, load
from audiosocket.settings import split_host_port

_PLAIN_NAME = re.compile(r"^[A-Za-z0-9_./:@;=-]{1,160}$")


@click.group()
def channels() -> None:
    """List, show and hang up Asterisk's live channels."""


@channels.command("list")
@config_option
@output_option
def list_command(config_path: Path, form: str) -> None:
    """List the live channels."""
    found = run(_channels(load(config_path)))
    columns = [
        ("CHANNEL", lambda channel: channel.name),
        ("STATE", lambda channel: channel.state),
        ("SECONDS", lambda channel: channel.duration_seconds),
        ("CALLER", lambda channel: channel.caller),
        ("DIALLED", lambda channel: channel.exten),
        ("APPLICATION", lambda channel: channel.application),
        ("CALL", _call_of),
    ]
    emit_rows(found, columns, form, "no channels")


@channels.command()
@click.argument("channel")
@config_option
@output_option
def show(channel: str, config_path: Path, form: str) -> None:
    """Show CHANNEL (its name or unique id), with its RTP figures."""
    config = load(config_path)
    found = run(_show(config, channel))
    if form != "table":
        emit(found, form)
        return
    for part, values in found.items():
        click.echo(f"{part}:")
        for key, value in values.items():
            if value not in (None, ""):
                click.echo(f"  {key}: {value}")


@channels.command()
@click.argument("channel")
@config_option
@click.option("--cause", type=click.IntRange(1, 127), default=16, show_default=True, help="Q.850 hangup cause.")
def hangup(channel: str, config_path: Path, cause: int) -> None:
    """Hang up CHANNEL. To end a call with its record saying so, use `trunkbridge calls hangup`."""
    if not _PLAIN_NAME.match(channel):
        raise click.UsageError(f"{channel!r} is no channel name: see `trunkbridge channels list`")
    run(_hangup(load(config_path), channel, cause))
    click.echo(f"{channel}: hung up")


def _ami(config: Config) -> AmiClient:
    ami = config.asterisk.ami
    host, port = split_host_port(ami.listen)
    return AmiClient(host, port, ami.username, ami.password.get_secret_value())


async def _channels(config: Config) -> list[AmiChannel]:
    async with _ami(config) as ami:
        return await ami.channels()


async def _hangup(config: Config, channel: str, cause: int) -> None:
    async with _ami(config) as ami:
        await ami.hangup(channel, cause)


async def _show(config: Config, wanted: str) -> dict[str, dict[str, object]]:
    for channel in await _channels(config):
        if wanted in (channel.name, channel.channel_id):
            break
    else:
        raise click.ClickException(f"no channel {wanted!r}: see `trunkbridge channels list`")
    values: dict[str, object] = {name: getattr(channel, name) for name in AmiChannel.__slots__}
    values["call"] = _call_of(channel)
    shown = {"channel": values}
    statistics = await _statistics(config, channel.channel_id)
    if statistics is not None:
        shown["rtp"] = {name: getattr(statistics, name) for name in RtpStatistics.__struct_fields__}
    return shown


async def _statistics(config: Config, channel_id: str) -> RtpStatistics | None:
    ari = config.asterisk.ari
    async with AriClient(
        f"http://{ari.listen}", ari.username, ari.password.get_secret_value(), config.asterisk.app, ari.timeout_seconds
    ) as client:
        try:
            return await client.rtp_statistics(ChannelId(channel_id))
        except (AriRejected, AriNotFound):
            return None  # a media channel has no RTP, and a channel may have gone since it was listed


def _call_of(channel: AmiChannel) -> str:
    """The call that a channel belongs to: channels and bridges of ours carry it in their id."""
    for identifier in (channel.channel_id, channel.bridge_id):
        ours = parse(identifier)
        if ours is not None:
            return ours.call_id
    return ""
