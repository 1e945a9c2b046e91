"""The private link from a PBX node to the workers that may carry its calls, and the way from a gateway node to the
applications."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from urllib.parse import SplitResult

from ari_app.applications import ApplicationSettings
from ari_app.doctor.finding import Finding, bad, good, warning
from audiosocket.callspec import WorkerInfo
from audiosocket.settings import split_url

CONNECT_SECONDS = 2.0
FAR_SECONDS = 0.05
"""A connection takes one round trip; more than this and the audio's delay is mostly the link's."""
CERTIFICATE_DAYS = 14
_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}


async def workers(infos: Iterable[WorkerInfo], pairs: list[str]) -> list[Finding]:
    """Whether each worker of these pairs is reached where Asterisk would dial it. A worker counts each as a connection
    without a UUID."""
    chosen = [info for info in infos if info.pair in pairs]
    if not chosen:
        return [
            bad(
                "workers",
                f"none is registered in {', '.join(pairs)}",
                "start a gateway with this pair and these stores",
            )
        ]
    return list(await asyncio.gather(*(_worker(info) for info in chosen)))


async def _worker(info: WorkerInfo) -> Finding:
    what = f"worker {info.worker_id}"
    began = time.monotonic()
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            _, writer = await asyncio.open_connection(info.host, info.port)
    except (OSError, TimeoutError) as error:
        remedy = "is the private link up, does a firewall let the port through, is gateway.advertise right?"
        return bad(what, f"{info.host}:{info.port}: {_why(error)}", remedy)
    took = time.monotonic() - began
    writer.close()
    said = f"{info.host}:{info.port} reached in {took * 1000:.1f} ms"
    if took > FAR_SECONDS:
        return warning(what, said, "pair this PBX node with a gateway that is nearer")
    return good(what, said)


async def applications(settings: dict[str, ApplicationSettings]) -> list[Finding]:
    """Whether each application's address answers, and whether its certificate is good, for some time yet."""
    urls: dict[str, str] = {}
    for name, application in settings.items():
        urls[f"application {name}"] = application.url
        if application.fallback.url is not None:
            urls[f"fallback of {name}"] = application.fallback.url
    return list(await asyncio.gather(*(_application(what, split_url(url)) for what, url in urls.items())))


async def _application(what: str, url: SplitResult) -> Finding:
    host, secure = url.hostname or "", url.scheme in ("wss", "https")
    port = url.port or _PORTS[url.scheme]
    where = f"{host}:{port}"
    began = time.monotonic()
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            context = ssl.create_default_context() if secure else None
            _, writer = await asyncio.open_connection(host, port, ssl=context, server_hostname=host if secure else None)
    except ssl.SSLCertVerificationError as error:
        return bad(
            what,
            f"{where}: {error.verify_message}",
            "no call gets through: renew the certificate, or name its host in url",
        )
    except (OSError, TimeoutError) as error:
        return bad(what, f"{where}: {_why(error)}", "is it running, and does this node reach the internet?")
    took = time.monotonic() - began
    certificate = writer.get_extra_info("peercert")
    writer.close()
    said = f"{where} reached in {took * 1000:.0f} ms"
    if not certificate:
        return good(what, said)
    ends = datetime.fromtimestamp(ssl.cert_time_to_seconds(certificate["notAfter"]), UTC)
    days = (ends - datetime.now(UTC)).days
    if days < CERTIFICATE_DAYS:
        return warning(what, f"{said}; its certificate ends in {days} days", "renew it")
    return good(what, f"{said}, certificate good for {days} days")


def _why(error: OSError | TimeoutError) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {CONNECT_SECONDS:g} s"
    if isinstance(error, socket.gaierror) or not error.errno:
        return error.strerror or str(error)
    return os.strerror(error.errno)
