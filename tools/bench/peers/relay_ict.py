"""AudioSocket to an Exotel-style application by PyPI's asterisk-ai-voice-agent: its transport, as its agent uses it.

python relay_ict.py PORT APPLICATION_URL, in an environment that has that package and not this project.
"""

from __future__ import annotations

import asyncio
import json
import sys
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator

from asterisk_ai_voice_agent.transport import AudioSocketTransport
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

URL = sys.argv[2]


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One call: what the caller says goes out as it comes, what the application says is played at its pace."""
    call = AudioSocketTransport(reader, writer)
    sid = (await call.handshake()).replace("-", "")
    talking: asyncio.Task[None] | None = None
    connecting = asyncio.create_task(_connected(sid))
    try:
        while (pcm := await call.read_audio()) is not None:
            if not connecting.done():
                continue  # said before the application is there: it would only make everything later
            application = connecting.result()
            if talking is None:
                talking = asyncio.create_task(call.play(_audio(application), lambda: False))
            message = {"event": "media", "stream_sid": sid, "media": {"payload": b64encode(pcm).decode()}}
            await application.send(_json(message))
    except (ConnectionClosed, OSError):
        pass
    finally:
        for task in (connecting, talking):
            if task is not None:
                task.cancel()
        ended = await asyncio.gather(connecting, *([] if talking is None else [talking]), return_exceptions=True)
        if isinstance(ended[0], ClientConnection):
            await ended[0].close()
        await call.close()


async def _connected(sid: str) -> ClientConnection:
    application = await connect(URL, compression=None, proxy=None)
    await application.send(_json({"event": "start", "stream_sid": sid, "start": {"call_sid": sid}}))
    return application


async def _audio(application: ClientConnection) -> AsyncIterator[bytes]:
    async for text in application:
        message = json.loads(text)
        if message["event"] == "media":
            yield b64decode(message["media"]["payload"])


def _json(message: object) -> str:
    return json.dumps(message, separators=(",", ":"))


async def main() -> None:
    """Listen until the process is ended."""
    server = await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[1]))
    print("listening", flush=True)
    await server.serve_forever()


asyncio.run(main())
