"""The controller's end of the way to workers that needs no Redis (`audiosocket.callspec.DIRECT_PATH`)."""

from __future__ import annotations

import asyncio
from types import TracebackType

import aiohttp
import msgspec

from ari_app.errors import NotTaken, Unavailable
from audiosocket.callspec import DIRECT_PATH, TOLD_SECONDS, CallSpec, LegOrder, Told, WorkerInfo

REQUEST_SECONDS = 1.0
"""Limit of a request that the worker answers at once."""
SILENT = "worker_silent"
"""The reason of a request that had no answer within its time, not even that there is nobody."""


class DirectWay:
    """An async context manager. Every method ends within a second, `told` within some more, and raises `Unavailable`
    when the worker does not answer as it should."""

    def __init__(self, secret: str) -> None:
        """`secret`: that of all nodes."""
        self._headers = {"Authorization": f"Bearer {secret}"}
        self._http: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> DirectWay:
        connector = aiohttp.TCPConnector(limit=0)
        self._http = aiohttp.ClientSession(headers=self._headers, connector=connector, trust_env=False)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._http is not None:
            await self._http.close()

    async def hand_over(self, worker: WorkerInfo, spec: CallSpec) -> None:
        """Gives the worker a call spec. Raises `NotTaken` when it will not carry the call."""
        status, text = await self._request("PUT", worker, "specs", body=msgspec.json.encode(spec))
        if status == 409:
            raise NotTaken(text.decode(errors="replace")[:40].strip(), f"worker {worker.worker_id}")
        self._expect(201, status, worker)

    async def send_order(self, worker: WorkerInfo, order: LegOrder) -> None:
        """Tells the worker what to do with a leg."""
        status, _ = await self._request("POST", worker, "orders", body=msgspec.json.encode(order))
        self._expect(204, status, worker)

    async def told(self, worker: WorkerInfo, stream: str, run: str, after: int) -> Told:
        """What the worker could not leave in Redis for the report stream `stream`, waited for up to `TOLD_SECONDS`."""
        query = {"stream": stream, "run": run, "after": str(after)}
        seconds = TOLD_SECONDS + REQUEST_SECONDS
        status, body = await self._request("GET", worker, "told", query=query, seconds=seconds)
        self._expect(200, status, worker)
        try:
            return msgspec.json.decode(body, type=Told)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise Unavailable("worker_unreadable", f"worker {worker.worker_id}: {error}") from error

    async def _request(
        self,
        method: str,
        worker: WorkerInfo,
        path: str,
        *,
        body: bytes | None = None,
        query: dict[str, str] | None = None,
        seconds: float = REQUEST_SECONDS,
    ) -> tuple[int, bytes]:
        if self._http is None or not worker.status_url:
            raise Unavailable("worker_unreachable", f"worker {worker.worker_id} has no status port")
        url = f"{worker.status_url}{DIRECT_PATH}/{path}"
        try:
            async with asyncio.timeout(seconds):
                async with self._http.request(method, url, data=body, params=query, allow_redirects=False) as answer:
                    return answer.status, await answer.read()
        except TimeoutError as error:
            raise Unavailable(SILENT, f"worker {worker.worker_id}: no answer within {seconds:g} s") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            why = str(error) or type(error).__name__
            raise Unavailable("worker_unreachable", f"worker {worker.worker_id}: {why}") from error

    @staticmethod
    def _expect(wanted: int, status: int, worker: WorkerInfo) -> None:
        if status == wanted:
            return
        why = {401: "it has another cluster_secret", 404: "it has no cluster_secret"}.get(status, f"HTTP {status}")
        raise Unavailable("worker_refuses", f"worker {worker.worker_id}: {why}")
