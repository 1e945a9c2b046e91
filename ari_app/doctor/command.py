"""`trunkbridge doctor`: one node, end to end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from ari_app.asterisk_conf import AsteriskLayout
from ari_app.cli.options import config_option, emit_rows, output_option, run
from ari_app.doctor import asterisk, links, machine, stores
from ari_app.doctor.finding import Finding, bad, good, in_words, warning
from ari_app.errors import StoreUnavailable
from ari_app.fleet.overview import worker_state
from ari_app.settings import Config, load
from ari_app.store.present import Present
from audiosocket.callspec import WorkerInfo
from audiosocket.errors import ConfigError
from audiosocket.runtime.config import read_yaml
from audiosocket.runtime.stores import open_redis, resolve
from audiosocket.settings import NodeSettings, load_node

_COLUMNS: list[tuple[str, Callable[[Any], Any]]] = [
    ("CHECK", lambda finding: finding.check),
    ("", lambda finding: finding.level),
    ("FOUND", lambda finding: finding.found),
    ("REMEDY", lambda finding: finding.remedy),
]


@click.command()
@config_option
@output_option
@click.option(
    "--role",
    type=click.Choice(["auto", "pbx", "gateway", "both"]),
    default="auto",
    show_default=True,
    help="What this node is; auto: a PBX node when the file has an asterisk section, a gateway node when it has none or"
    " this node has workers.",
)
@click.option(
    "--asterisk-etc",
    type=click.Path(path_type=Path, file_okay=False),
    help="Asterisk's configuration folder, when it is not /etc/asterisk.",
)
def doctor(config_path: Path, form: str, role: str, asterisk_etc: Path | None) -> None:
    """Check this node end to end and say what to mend: machine, stores, Asterisk, links, applications.

    Nothing is changed, and no call is made. Exit code 1 when something is bad.
    """
    findings = run(_examine(config_path, role, asterisk_etc))
    emit_rows(findings, _COLUMNS, form, "")
    if form == "table":
        click.echo(in_words(findings))
    if any(finding.level == "bad" for finding in findings):
        raise click.exceptions.Exit(1)


async def _examine(config_path: Path, role: str, asterisk_etc: Path | None) -> list[Finding]:
    whole = load(config_path) if "asterisk" in read_yaml(config_path) else None
    settings: NodeSettings = load_node(config_path) if whole is None else whole
    findings = await machine.of_every_node(settings)
    registered: list[WorkerInfo] = []
    try:
        urls = resolve(settings)
    except ConfigError as error:
        findings.append(bad("stores", str(error), "start them"))
    else:
        for check in stores.CHECKS:
            findings += await check(urls)
        client = open_redis(urls)
        try:
            registered = await Present(client).workers()
        except StoreUnavailable:
            pass  # found above
        finally:
            await client.aclose()
    if whole is not None and role != "gateway":
        findings += await _pbx(whole, registered, asterisk_etc)
    elif role in ("pbx", "both"):
        findings.append(bad("configuration", "no asterisk section", "name the PBX node's file"))
    own = [info for info in registered if info.node == settings.node]
    if role in ("gateway", "both") or (role == "auto" and (whole is None or own)):
        findings += machine.of_gateway(settings)
        findings += _own_workers(settings, own)
        findings += await links.applications(whole.applications) if whole is not None else []
    return findings


async def _pbx(config: Config, registered: list[WorkerInfo], etc: Path | None) -> list[Finding]:
    layout = AsteriskLayout.production()
    if etc is not None:
        layout = replace(layout, etc=etc)
    pairs = [config.pair, *config.controller.spill_over]
    return [
        machine.descriptors(config.controller.max_calls),
        *await asterisk.check(config, layout),
        *await links.workers(registered, pairs),
    ]


def _own_workers(settings: NodeSettings, own: list[WorkerInfo]) -> list[Finding]:
    """Whether the workers that the file says are there, and take calls."""
    names = {info.worker_id for info in own}
    wanted = [f"{settings.node}/{index}" for index in range(settings.gateway.workers)]
    missing = [name for name in wanted if name not in names]
    found = []
    if missing:
        found.append(
            bad("own workers", f"not registered: {', '.join(missing)}", "start them: trunkbridge gateway --worker N")
        )
    for info in own:
        state = worker_state(info)
        load = f"{info.cpu_percent}% of a core, {info.lateness_ms} ms late"
        said = f"{state}, {info.active} of {info.capacity} calls, {load}"
        if state in ("ready", "full"):
            found.append(good(f"own worker {info.worker_id}", said))
        else:
            found.append(warning(f"own worker {info.worker_id}", said, "it is given no new calls"))
    return found
