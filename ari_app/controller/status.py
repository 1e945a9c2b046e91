"""The controller's status port: liveness, readiness, metrics, and its live calls."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator

import structlog
from aiohttp import web
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from ari_app.controller.duty import Duty, Parts
from ari_app.store.writer import RecordWriter
from audiosocket import __version__
from audiosocket.runtime.metrics import counter, counters, gauge, gauges, json_response, metrics_response
from audiosocket.settings import split_host_port

RETRY_SECONDS = 1.0
"""How often an address is tried again that another controller of this host has."""

log = structlog.get_logger(__name__)


class ControllerCollector(Collector):
    """Reads the controller's plain counters when it is scraped."""

    def __init__(self, duty: Duty) -> None:
        self._duty = duty

    def collect(self) -> Iterator[Metric]:
        duty = self._duty
        yield gauge("trunkbridge_build_info", "Version of this process.", 1, version=__version__)
        roles = {role: float(duty.role == role) for role in ("active", "standby")}
        yield gauges("trunkbridge_controller_role", "1 for the role that this process has.", "role", roles)
        yield gauge("trunkbridge_controller_accepting", "1 while calls are begun here.", not duty.why_not_accepting)
        yield gauge(
            "trunkbridge_controller_loop_lateness_max_seconds",
            "Latest wake-up of the event loop since the last scrape.",
            duty.take_lateness(),
        )
        if duty.parts is not None:
            yield from _calls(duty.parts)
            yield from _asterisk(duty.parts)
            yield from _records(duty.parts.writer)


def _calls(parts: Parts) -> Iterator[Metric]:
    live, counts = parts.controller.live, parts.controller.live.counts
    states = Counter(actor.machine.state.value for actor in live.actors.values())
    yield gauges("trunkbridge_calls_live", "Live calls by state.", "state", dict(states))
    yield counters("trunkbridge_calls_ended", "Ended calls.", ("result", "reason"), live.ended)
    yield counter("trunkbridge_calls_adopted", "Calls of an earlier controller taken over.", counts["adopted"])
    yield counter("trunkbridge_leases_lost", "Live calls found without their lease.", counts["leases_lost"])
    yield gauge("trunkbridge_leftovers", "Channels and bridges of ended calls still in Asterisk.", len(live.leftovers))


def _asterisk(parts: Parts) -> Iterator[Metric]:
    client, stream = parts.client, parts.stream
    yield gauge("trunkbridge_ari_connected", "1 while Asterisk's events arrive.", stream.live)
    yield counter("trunkbridge_ari_connects", "Connections of the event stream.", stream.counters.connects)
    yield counter("trunkbridge_ari_events", "Events of Asterisk.", stream.counters.events)
    yield counter("trunkbridge_reconciliations", "Comparisons with Asterisk.", parts.controller.reconciliations)
    outcomes: dict[tuple[str, ...], float] = {(outcome,): count for outcome, count in client.requests.items()}
    yield counters("trunkbridge_ari_requests", "Requests to Asterisk.", ("outcome",), outcomes)
    yield counter("trunkbridge_ari_timeouts", "Requests that were not answered in time.", client.timeouts)
    yield gauge("trunkbridge_ari_breaker_open", "1 while Asterisk is left alone.", client.breaker.open)
    yield counter("trunkbridge_ari_breaker_trips", "Times that the breaker has opened.", client.breaker.trips)


def _records(writer: RecordWriter) -> Iterator[Metric]:
    """Of records on their way to PostgreSQL."""
    figures = writer.figures
    yield gauge("trunkbridge_records_waiting", "Records that are not written yet.", writer.depth)
    yield gauge("trunkbridge_records_age_seconds", "How long the oldest of them has waited.", writer.age_seconds)
    yield counter("trunkbridge_records_written", "Records written.", figures.written)
    yield counter("trunkbridge_records_refused", "Records that PostgreSQL will never take.", figures.refused)
    yield counter("trunkbridge_records_overflowed", "Records lost for want of room.", figures.overflowed)
    yield counter("trunkbridge_records_attempts_failed", "Writes that failed.", figures.attempts_failed)
    yield gauge("trunkbridge_spool_usable", "1 while waiting records survive this process.", writer.spool_usable)
    yield gauge("trunkbridge_spool_bytes", "What waiting records take of the disk.", writer.spool_bytes)
    yield counter("trunkbridge_spool_damaged", "Pieces of the spool that were no records.", writer.spool_damaged)


def status_app(duty: Duty) -> web.Application:
    """The HTTP application."""
    registry = CollectorRegistry()
    registry.register(ControllerCollector(duty))
    ProcessCollector(registry=registry)

    async def healthz(_request: web.Request) -> web.Response:
        why = duty.why_not_alive
        return web.Response(text=f"{why or 'ok'}\n", status=503 if why else 200)

    async def readyz(_request: web.Request) -> web.Response:
        why = duty.why_not_alive or duty.why_not_accepting
        return web.Response(text=f"{why or 'ready'}\n", status=503 if why else 200)

    async def metrics(_request: web.Request) -> web.Response:
        return metrics_response(registry)

    async def calls(_request: web.Request) -> web.Response:
        actors = [] if duty.parts is None else duty.parts.controller.live.actors.values()
        return json_response([actor.status() for actor in actors])

    app = web.Application()
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", metrics)
    app.router.add_get("/calls", calls)
    return app


async def serve_status(duty: Duty, listen: str) -> None:
    """Serves at `listen` (`IP:PORT`) until it is cancelled.

    Of several controllers with one configuration only one can; the others try again, and whoever takes over has it.
    """
    host, port = split_host_port(listen)
    runner = web.AppRunner(status_app(duty), access_log=None)
    await runner.setup()
    try:
        told = False
        while True:
            site = web.TCPSite(runner, host, port)
            try:
                await site.start()
                break
            except OSError as error:
                await site.stop()
                if not told:
                    log.warning("no_status_port", listen=listen, why=error.strerror, now="tried again until it is free")
                told = True
                await asyncio.sleep(RETRY_SECONDS)
        duty.status_at = listen
        log.info("status_port", listen=listen)
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()
