"""`trunkbridge gateway`: a media worker of a configured node, or a standalone one for anybody's dialplan."""

from __future__ import annotations

import faulthandler
import ipaddress
from collections.abc import Callable
from pathlib import Path

import click
import uvloop
from click.core import ParameterSource

from audiosocket import garbage
from audiosocket.address import host_port, split_address
from audiosocket.callspec import CallSpec, MediaFormat
from audiosocket.dialects import DIALECTS, open_dialect
from audiosocket.direct_way import DirectWay
from audiosocket.errors import ConfigError
from audiosocket.handed_specs import HandedSpecs
from audiosocket.prompts import Prompts, load_prompts
from audiosocket.recording.recordings import RecordingOptions
from audiosocket.registry import open_registry
from audiosocket.runtime import logs
from audiosocket.runtime.config import secret_file
from audiosocket.runtime.process import StopSignal
from audiosocket.settings import NodeSettings, load_node, query_rate, split_host_port
from audiosocket.sources import CallSource, RegistrySource, StandaloneSource
from audiosocket.worker import Worker, WorkerOptions

_STANDALONE_DRAIN_SECONDS = 5.0
_SIGNING = " or ".join(sorted(name for name, platform in DIALECTS.items() if platform.signs))


@click.command()
@click.option(
    "-c",
    "--config",
    "config_path",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar="TRUNKBRIDGE_CONFIG",
    help="Configuration file of the node. Calls come from its controller, through Redis.",
)
@click.option("--worker", "index", type=click.IntRange(0, 63), default=0, show_default=True, help="Which worker.")
@click.option("--listen", metavar="HOST:PORT", help="Standalone: where Asterisk's AudioSocket connects to.")
@click.option("--app", "app_url", metavar="URL", help="Standalone: ws:// or wss:// URL of the application.")
@click.option("--dialect", type=click.Choice(sorted(DIALECTS)), default="exotel", show_default=True)
@click.option(
    "--auth-token-file",
    "token_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help=f"Standalone, {_SIGNING}: file with the auth token that signs the handshake; without it nothing is signed.",
)
@click.option(
    "--format",
    "media_format",
    type=click.Choice([form.value for form in MediaFormat]),
    default="slin",
    show_default=True,
    help="Standalone: what Asterisk sends: slin from the dialplan's AudioSocket(), ulaw from Dial(.../c(ulaw)). With"
    " slin16 and slin24, from Dial(.../c(slin16)), an exotel application is spoken to at 16 and 24 kHz.",
)
@click.option(
    "--accept-any",
    is_flag=True,
    help="Standalone: accept calls that nobody announced, from ANY address and with any UUID. Whoever reaches the port"
    " reaches the application and is billed to you: firewall it to your PBX. Without this flag only this machine may"
    " connect, and a UUID is good for one call.",
)
@click.option("--status", metavar="HOST:PORT", help="Standalone: where /metrics, /calls and /healthz are served.")
@click.option(
    "--fade-ms",
    type=click.FloatRange(0, 20),
    default=5.0,
    show_default=True,
    help="Standalone: how long audio that is cut off takes to fade out; 0: it is cut.",
)
@click.option("--capacity", type=click.IntRange(1, 5000), default=250, show_default=True, help="Standalone: calls.")
def gateway(
    config_path: Path | None,
    index: int,
    listen: str | None,
    app_url: str | None,
    dialect: str,
    token_path: Path | None,
    media_format: str,
    accept_any: bool,
    status: str | None,
    fade_ms: float,
    capacity: int,
) -> None:
    """Run one media worker.

    With --config it is worker N of the configured gateway node. With --listen and --app it stands alone: no Redis, no
    PostgreSQL and no controller are needed, and any AudioSocket(uuid,host:port) in any dialplan reaches the
    application.
    """
    if listen or app_url:
        given = click.get_current_context().get_parameter_source("config_path")
        if given is ParameterSource.COMMANDLINE:
            raise click.UsageError("--config belongs to a configured node, --listen and --app to a standalone one")
        if not (listen and app_url):
            raise click.UsageError("a standalone worker needs both --listen HOST:PORT and --app URL")
        template = _template(app_url, dialect, token_path, MediaFormat(media_format), fade_ms)
        options = _standalone_options(listen, status, capacity)
        logs.set_up("gateway", form="console")
        _run(options, lambda: (StandaloneSource(template, accept_any), None))
    elif config_path is None:
        raise click.UsageError("give --config FILE, or --listen HOST:PORT and --app URL for a standalone worker")
    else:
        settings = load_node(config_path)
        options = _node_options(settings, index)
        logs.set_up(f"gateway@{index}", settings.log.level, settings.log.format, settings.log.mask_numbers)
        prompts = load_prompts({name: config_path.parent / path for name, path in settings.prompts.items()})
        _run(options, lambda: _node_source(settings), prompts)


def _node_source(settings: NodeSettings) -> tuple[CallSource, DirectWay | None]:
    registry = open_registry(settings)
    if settings.cluster_secret is None:
        return RegistrySource(registry), None
    handed = HandedSpecs(settings.gateway.capacity)
    direct = DirectWay(settings.cluster_secret.get_secret_value(), handed, registry.outbox)
    return RegistrySource(registry, handed), direct


def _run(
    options: WorkerOptions,
    source: Callable[[], tuple[CallSource, DirectWay | None]],
    prompts: Prompts | None = None,
) -> None:
    garbage.put_off()

    async def main() -> None:
        calls, direct = source()
        await Worker(options, calls, prompts, direct).run(StopSignal())

    faulthandler.enable()  # a watchdog's SIGABRT then leaves in the log where the loop was stuck
    uvloop.run(main())


def _node_options(settings: NodeSettings, index: int) -> WorkerOptions:
    gateway = settings.gateway
    if index >= gateway.workers:
        raise ConfigError(
            f"--worker {index}: gateway.workers is {gateway.workers}, so the last worker is number"
            f" {gateway.workers - 1}: raise gateway.workers or choose another"
        )
    host, port = split_host_port(gateway.listen)
    status_host, status_port = split_host_port(gateway.status_listen)
    advertise = gateway.advertise or host
    if ipaddress.ip_address(advertise).is_unspecified:
        raise ConfigError(f"gateway.listen {gateway.listen}: Asterisk cannot dial that: set gateway.advertise")
    rtp_host, rtp_port = split_host_port(gateway.rtp_listen) if gateway.rtp_listen else ("", 0)
    websocket_host, websocket_port = split_host_port(gateway.websocket_listen) if gateway.websocket_listen else ("", 0)
    return WorkerOptions(
        worker_id=f"{settings.node}/{index}",
        node=settings.node,
        pair=settings.pair,
        host=host,
        port=port + index,
        advertise=advertise,
        status_host=status_host,
        status_port=status_port + index,
        capacity=gateway.capacity,
        drain_seconds=gateway.drain_seconds,
        allow=list(gateway.allow),
        rtp_host=rtp_host,
        rtp_port=rtp_port + index,
        websocket_host=websocket_host,
        websocket_port=websocket_port + index,
        recordings=_recordings(settings),
    )


def _recordings(settings: NodeSettings) -> RecordingOptions:
    found = settings.gateway.recordings
    return RecordingOptions(
        directory=found.directory or settings.state_dir / "recordings",
        url_base=found.url_base or "",
        min_free_mb=found.min_free_mb,
        retain_days=found.retain_days,
        prepare=found.directory is not None,
    )


def _standalone_options(listen: str, status: str | None, capacity: int) -> WorkerOptions:
    host, port = host_port("--listen", listen)
    status_host, status_port = host_port("--status", status) if status else ("", 0)
    return WorkerOptions(
        worker_id="standalone/0",
        node="standalone",
        host=host,
        port=port,
        advertise=f"[{host}]" if ":" in host else host,
        status_host=status_host,
        status_port=status_port,
        capacity=capacity,
        drain_seconds=_STANDALONE_DRAIN_SECONDS,
    )


def _template(url: str, dialect: str, token_path: Path | None, media_format: MediaFormat, fade_ms: float) -> CallSpec:
    token = _auth_token(dialect, token_path)
    address, credentials = split_address(url, dialect, "--app")
    spec = CallSpec(
        call_id="",
        leg_uuid="",
        call_sid="",
        stream_sid="",
        account_sid=DIALECTS[dialect].account_sid,
        application="standalone",
        url=address,
        credentials=token or credentials,
        dialect=dialect,
        caller="",
        callee="",
        media_format=media_format,
        fade_ms=fade_ms,
        report_stream="",
        created_at_ms=0,
        expires_at_ms=0,
    )
    _check_rate(spec)
    return spec


def _check_rate(spec: CallSpec) -> None:
    form, rate = spec.media_format, spec.media_format.sample_rate
    try:
        open_dialect(spec)
        asked = query_rate(spec.url) if DIALECTS[spec.dialect].wideband else None
    except (ConfigError, ValueError) as error:
        raise click.UsageError(str(error)) from None
    if asked not in (None, rate):
        raise click.UsageError(f"--format {form} has {rate} Hz and the URL of --app asks for {asked}: make them agree")


def _auth_token(dialect: str, path: Path | None) -> str:
    if path is None:
        return ""
    if not DIALECTS[dialect].signs:
        raise click.UsageError(f"--auth-token-file belongs to --dialect {_SIGNING}")
    return secret_file(path)
