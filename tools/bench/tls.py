"""What TLS to the application costs a call: the same calls over ws:// and wss:// in turn, on one core."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import statistics
from pathlib import Path

from audiosocket.errors import Unavailable
from audiosocket.loadtest import machine
from audiosocket.loadtest.applications import Echo, serve
from audiosocket.loadtest.generator import Generator
from audiosocket.loadtest.standalone import StandaloneWorker
from tools.bench import stretch
from tools.bench.options import Options
from tools.bench.report import Outcome, Table, Value
from tools.bench.stretch import Stretch
from tools.bench.worker import OTHERS

CALLS = 100
SECONDS = 10.0
ROUNDS = 3
OPENSSL_SECONDS = 10.0


def limit_seconds(options: Options) -> float:
    """The longest that it may take."""
    return 2 * ROUNDS * ((options.seconds or SECONDS) + 45)


async def run(options: Options) -> Outcome:
    """ws and wss alternate, each time on a new worker, so that both see the same machine."""
    calls = (options.calls or (CALLS,))[0]
    seconds = options.seconds or SECONDS
    folder = options.folder / "tls"
    folder.mkdir(parents=True, exist_ok=True)
    server, trusted = await _certificate(folder)
    rows: list[tuple[Value, ...]] = []
    notes: list[str] = []
    seen: dict[str, list[Stretch]] = {"ws": [], "wss": []}
    for turn in range(1, ROUNDS + 1):
        for scheme, found in seen.items():
            tls = scheme == "wss"
            environment = {"SSL_CERT_FILE": str(trusted)} if tls else {}
            one = await _measure(folder, calls, seconds, server if tls else None, environment)
            found.append(one)
            rows.append((scheme, turn, *stretch.cells(one)))
            notes += [f"{scheme}, round {turn}: {doubt}" for doubt in one.doubts()]
    plain, secure = seen["ws"], seen["wss"]
    difference: list[tuple[Value, ...]] = [
        (name, *(statistics.median(getattr(one, field) or 0.0 for one in each) for each in (plain, secure)))
        for name, field in (
            ("% of a core per call", "percent_a_call"),
            ("RTT p50, ms", "rtt_p50"),
            ("RTT p99, ms", "rtt_p99"),
            ("memory, KiB a call", "kib_a_call"),
        )
    ]
    difference = [(*row, float(row[2]) - float(row[1])) for row in difference]  # type: ignore[arg-type]
    tables = [
        Table("rounds", ("scheme", "round", *stretch.COLUMNS), rows),
        Table("medians", ("what", "ws", "wss", "TLS adds"), difference),
    ]
    others = max(one.others for each in seen.values() for one in each)
    if others > OTHERS:
        notes.append(f"other processes took up to {others:.2f} cores: compare the two, not either with other machines")
    what = (
        f"{calls} echo calls for {seconds:g} s, {ROUNDS} times over ws and wss in turn; TLS 1.3, a certificate on P-256"
        " that the worker verifies"
    )
    return Outcome(what, tables, notes)


async def _measure(
    folder: Path, calls: int, seconds: float, tls: ssl.SSLContext | None, environment: dict[str, str]
) -> Stretch:
    cores = machine.two_cores()
    own_core = machine.pinned(cores[1]) if cores else contextlib.nullcontext()
    async with serve(Echo, tls=tls) as url:
        worker = StandaloneWorker(folder, url, calls, cores[0] if cores else None, environment=environment)
        await worker.start()
        generator = Generator(worker.port)
        try:
            with own_core, machine.no_garbage_collection():
                found = await stretch.echoed(generator, worker.pid, calls, seconds)
        finally:
            generator.stop()
            await worker.stop()
    if not found.lost < found.sent:
        raise Unavailable(f"no frame came back from {url}: see {folder}/worker.log")
    return found


async def _certificate(folder: Path) -> tuple[ssl.SSLContext, Path]:
    """For a server on 127.0.0.1, signed by itself, and the file that whoever trusts it needs. Raises `Unavailable`."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    try:
        process = await asyncio.create_subprocess_exec(
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-keyout", str(key), "-out", str(certificate), "-days", "2", "-subj", "/CN=bench"),
            *("-addext", "subjectAltName=IP:127.0.0.1"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(OPENSSL_SECONDS):
            _, said = await process.communicate()
    except (FileNotFoundError, TimeoutError) as error:
        raise Unavailable(f"openssl, which makes the certificate: {error or 'no answer'}") from None
    if process.returncode:
        raise Unavailable(f"openssl made no certificate: {said.decode(errors='replace')[-300:]}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context, certificate
