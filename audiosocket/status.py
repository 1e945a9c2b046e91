"""The worker's status endpoint: liveness, readiness, metrics, and the live figures of its calls."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec
from aiohttp import web
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from audiosocket import __version__
from audiosocket.direct_way import BODY_BYTES, DirectWay
from audiosocket.durations import Histogram

if TYPE_CHECKING:
    from audiosocket.callspec import MediaFigures
    from audiosocket.worker import Worker


class WorkerCollector(Collector):
    """Reads the worker's plain counters when it is scraped: nothing is spent on metrics per frame."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def collect(self) -> Iterator[Metric]:
        worker = self._worker
        totals = worker.totals()
        yield _gauge("trunkbridge_build_info", "Version of this worker.", 1, version=__version__)
        yield _gauge("trunkbridge_media_sessions_active", "Calls on this worker.", worker.active)
        yield _gauge("trunkbridge_media_sessions_capacity", "Calls that this worker may carry.", worker.capacity)
        yield _gauge("trunkbridge_worker_tasks", "asyncio tasks of this process.", len(asyncio.all_tasks()))
        yield _gauge("trunkbridge_media_draining", "1 while this worker takes no new calls.", int(worker.draining))
        yield _gauge(
            "trunkbridge_media_overloaded", "1 while this worker does not keep its 20 ms.", int(worker.load.overloaded)
        )
        yield _gauge(
            "trunkbridge_media_coalescing",
            "1 while two frames of a caller are read at a time, to save processor time.",
            int(worker.load.coalescing),
        )
        yield _gauge("trunkbridge_loop_cpu", "Share of a core that the event loop used.", worker.load.last.cpu)
        frames = CounterMetricFamily(
            "trunkbridge_media_frames", "20 ms frames by direction (rx: from the caller).", labels=["direction"]
        )
        frames.add_metric(["rx"], totals.caller_frames)
        frames.add_metric(["tx"], totals.frames_played)
        frames.add_metric(["tx_silence"], totals.silence_played)
        frames.add_metric(["tx_prompt"], totals.prompt_played)
        yield frames
        yield CounterMetricFamily(
            "trunkbridge_media_caller_frames_lost",
            "Frames from Asterisk that the network lost.",
            totals.caller_frames_lost,
        )
        yield CounterMetricFamily(
            "trunkbridge_media_legs_replaced", "Lost media legs whose place another took.", totals.legs_replaced
        )
        yield CounterMetricFamily(
            "trunkbridge_media_leg_gap_seconds", "Time of calls without a leg.", totals.leg_gap_ms / 1000
        )
        if worker.rtp is not None:
            yield CounterMetricFamily(
                "trunkbridge_media_rtp_strangers", "RTP packets from where no leg is.", worker.rtp.strangers
            )
        yield _by_reason(
            "trunkbridge_media_frames_dropped",
            "Frames that were not passed on.",
            {f"rx_{reason}": count for reason, count in totals.caller_frames_dropped.items()}
            | {f"tx_{reason}": count for reason, count in totals.frames_dropped.items()},
        )
        yield _by_reason(
            "trunkbridge_media_app_messages_ignored", "Application messages without effect.", totals.ignored
        )
        yield _by_reason("trunkbridge_media_sessions_ended", "Ended media sessions.", worker.ended)
        yield _by_reason("trunkbridge_media_legs_refused", "Connections that were no call of ours.", worker.refused)
        yield _by_application(
            "trunkbridge_breaker_trips", "Circuit breakers opened by a failure here.", worker.breakers.trips
        )
        yield _by_application(
            "trunkbridge_calls_suspended", "Applications not dialled: breaker open.", worker.breakers.suspended
        )
        yield _by_reason(
            "trunkbridge_playout_underruns",
            "Queue ran dry inside audio.",
            {"app_late": totals.underruns_app, "stall": totals.underruns_stall},
        )
        yield CounterMetricFamily("trunkbridge_playout_late_ticks", "Ticks a frame or more late.", totals.ticks_late)
        callbacks = CounterMetricFamily("trunkbridge_callbacks", "Callbacks of streams.", labels=["outcome"])
        for outcome in ("sent", "failed", "dropped"):
            callbacks.add_metric([outcome], getattr(worker.http, outcome))
        yield callbacks
        yield from self._turns(totals)
        yield from self._recordings()
        yield _gauge(
            "trunkbridge_clock_lateness_max_seconds",
            "Latest wake-up of the 20 ms clock since the last scrape.",
            worker.clock.take_max_lateness_seconds(),
        )

    def _recordings(self) -> Iterator[Metric]:
        recordings = self._worker.recordings
        if recordings is None:
            return
        writer = recordings.writer
        yield _gauge("trunkbridge_recordings_active", "Calls that are being recorded.", recordings.active)
        yield _by_reason("trunkbridge_recordings_ended", "Ended recordings.", recordings.ended)
        yield CounterMetricFamily(
            "trunkbridge_recordings_lost_blocks",
            "Half seconds of a call that became silence, since the disk did not keep up.",
            recordings.lost_blocks,
        )
        yield CounterMetricFamily("trunkbridge_recordings_bytes", "Bytes of audio written.", writer.bytes_written)
        yield _gauge("trunkbridge_recordings_free_bytes", "Free space for recordings.", writer.free_bytes)

    def _turns(self, totals: MediaFigures) -> Iterator[Metric]:
        """What is defined in docs/response-time.md."""
        yield CounterMetricFamily("trunkbridge_turns", "Times that a caller has said something.", totals.turns)
        yield CounterMetricFamily("trunkbridge_turns_unanswered", "Turns without a reply.", totals.unanswered_turns)
        yield CounterMetricFamily(
            "trunkbridge_interruptions", "Times that an application spoke into a caller's speech.", totals.interruptions
        )
        yield CounterMetricFamily(
            "trunkbridge_barge_ins_ignored", "Barge-ins that an application talked on over.", totals.barge_ins_ignored
        )
        talk = CounterMetricFamily("trunkbridge_talk_seconds", "Time in which a side talked.", labels=["side"])
        for side in ("caller", "app", "both"):
            talk.add_metric([side], getattr(totals, f"{side}_talk_ms") / 1000)
        yield talk
        times = self._worker.turn_times
        yield _histogram(
            "trunkbridge_response_seconds",
            "From the end of a caller's speech to the application's first audible frame.",
            {application: each.response for application, each in times.items()},
        )
        yield _histogram(
            "trunkbridge_barge_in_seconds",
            "From the start of a caller's speech during application audio to the end of that audio.",
            {application: each.barge_in for application, each in times.items()},
        )


def _histogram(name: str, text: str, histograms: dict[str, Histogram]) -> HistogramMetricFamily:
    family = HistogramMetricFamily(name, text, labels=["application"])
    for application, histogram in sorted(histograms.items()):
        family.add_metric([application], histogram.buckets(), histogram.sum_seconds)
    return family


def _gauge(name: str, text: str, value: float, **labels: str) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=list(labels))
    family.add_metric(list(labels.values()), value)
    return family


def _by_reason(name: str, text: str, counts: dict[str, int]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=["reason"])
    for reason, count in sorted(counts.items()):
        family.add_metric([reason], count)
    return family


def _by_application(name: str, text: str, counts: dict[str, int]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=["application"])
    for application, count in sorted(counts.items()):
        family.add_metric([application], count)
    return family


def held() -> dict[str, object]:
    """asyncio's tasks of this process by the first word of their names, and its timers that are still to come. Looks at
    every object there is: some 10 ms in which no frame is played."""
    tasks = Counter(task.get_name().partition(" ")[0].partition("-")[0] for task in asyncio.all_tasks())
    timers = sum(type(found).__name__ == "TimerHandle" and not found.cancelled() for found in gc.get_objects())
    return {"tasks": dict(tasks), "timers": timers}


def status_app(worker: Worker, direct: DirectWay | None) -> web.Application:
    """The HTTP application; with the way in for controllers, where there is one."""
    registry = CollectorRegistry()
    registry.register(WorkerCollector(worker))
    ProcessCollector(registry=registry)

    async def healthz(_request: web.Request) -> web.Response:
        why = worker.readiness.why_not_alive()
        return web.Response(text=f"{why or 'ok'}\n", status=503 if why else 200)

    async def readyz(_request: web.Request) -> web.Response:
        why = worker.readiness.why_not_alive() or worker.readiness.why_not_ready()
        return web.Response(text=f"{why or 'ready'}\n", status=503 if why else 200)

    async def metrics(_request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def calls(_request: web.Request) -> web.Response:
        return _json([call.status() for call in worker.calls.values()])

    async def call(request: web.Request) -> web.Response:
        found = worker.calls.get(request.match_info["call_id"])
        if found is None:
            return web.Response(text="no such call on this worker\n", status=404)
        return _json(found.status() | {"figures": found.figures()})

    async def held_now(_request: web.Request) -> web.Response:
        return _json(held())

    app = web.Application(client_max_size=BODY_BYTES)
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", metrics)
    app.router.add_get("/held", held_now)
    app.router.add_get("/calls", calls)
    app.router.add_get("/calls/{call_id}", call)
    if direct is not None:
        direct.add_routes(app, worker)
    return app


def _json(value: object) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")
