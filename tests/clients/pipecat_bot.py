"""A voice bot as a pipecat user writes it for Exotel, Plivo or Twilio: the package's own runner parsing, serializers
and transport.

    python -m tests.clients.pipecat_bot PORT

It listens, and once it has heard a second of sound it answers with two seconds of a 700 Hz tone. Each fact is a line of
JSON on standard output. Run in a process of its own, for the framework has its own loop, threads and log.
"""

from __future__ import annotations

import asyncio
import json
import sys

import numpy as np
import uvicorn
from fastapi import FastAPI, WebSocket
from pipecat.frames.frames import Frame, InputAudioRawFrame, InputDTMFFrame, OutputAudioRawFrame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.runner.utils import parse_telephony_websocket
from pipecat.serializers.base_serializer import FrameSerializer
from pipecat.serializers.exotel import ExotelFrameSerializer
from pipecat.serializers.plivo import PlivoFrameSerializer
from pipecat.serializers.twilio import TwilioFrameSerializer
from pipecat.transports.websocket.fastapi import FastAPIWebsocketParams, FastAPIWebsocketTransport
from pipecat.workers.runner import WorkerRunner

RATE = 8000
ANSWER_HZ = 700
app = FastAPI()


def tell(**fact: object) -> None:
    print(json.dumps(fact), flush=True)


class Bot(FrameProcessor):  # type: ignore[misc]
    """Hears, counts, and answers once."""

    def __init__(self, provider: str) -> None:
        super().__init__()
        self._provider = provider
        self._heard = np.zeros(0, dtype=np.int16)
        self._answered = False

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if isinstance(frame, InputAudioRawFrame):
            samples = np.frombuffer(frame.audio, "<i2")
            if not self._answered and np.abs(samples.astype(int)).max() > 1000:
                self._heard = np.concatenate((self._heard, samples))
                if len(self._heard) >= RATE:
                    self._answered = True
                    spectrum = np.abs(np.fft.rfft(self._heard * np.hanning(len(self._heard))))
                    tell(event="heard", provider=self._provider, hz=int(spectrum.argmax()) * RATE / len(self._heard))
                    await self._answer()
            return
        if isinstance(frame, InputDTMFFrame):
            tell(event="dtmf", provider=self._provider, digit=frame.button.value)
        await self.push_frame(frame, direction)

    async def _answer(self) -> None:
        tone = 8000 * np.sin(2 * np.pi * ANSWER_HZ * np.arange(2 * RATE) / RATE)
        await self.push_frame(OutputAudioRawFrame(tone.astype("<i2").tobytes(), RATE, 1))


def serializer(provider: str, stream_id: str, call_id: str) -> FrameSerializer:
    if provider == "exotel":
        return ExotelFrameSerializer(stream_id, call_id)
    # Hanging up by a platform's REST API would reach the platform; the end of the WebSocket ends the call just as well.
    kind = {"plivo": PlivoFrameSerializer, "twilio": TwilioFrameSerializer}[provider]
    return kind(stream_id, call_id, params=kind.InputParams(auto_hang_up=False))


@app.websocket("/ws")
async def serve(websocket: WebSocket) -> None:
    await websocket.accept()
    provider, call = await parse_telephony_websocket(websocket)
    tell(event="start", provider=provider, call_id=call["call_id"], **{"from": call.get("from"), "to": call.get("to")})
    transport = FastAPIWebsocketTransport(
        websocket=websocket,
        params=FastAPIWebsocketParams(
            audio_in_enabled=True,
            audio_out_enabled=True,
            serializer=serializer(provider, call["stream_id"], call["call_id"]),
        ),
    )
    worker = PipelineWorker(
        Pipeline([transport.input(), Bot(provider), transport.output()]),
        params=PipelineParams(audio_in_sample_rate=RATE, audio_out_sample_rate=RATE),
    )

    @transport.event_handler("on_client_disconnected")  # type: ignore[untyped-decorator]
    async def gone(_transport: object, _client: object) -> None:
        tell(event="disconnected", provider=provider)
        await worker.cancel()

    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    await runner.run()


async def main(port: int) -> None:
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning"))
    serving = asyncio.create_task(server.serve())
    while not server.started and not serving.done():
        await asyncio.sleep(0.02)
    tell(event="listening", port=port)
    await serving


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
