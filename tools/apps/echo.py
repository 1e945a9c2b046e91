"""An application that sends the caller's audio back, message by message, and answers nothing else.

python -m tools.apps.echo --listen 127.0.0.1:19302
"""

from __future__ import annotations

from tools.apps.service import CallSocket, arguments, main


async def echo(call: CallSocket) -> None:
    """Carry one call."""
    async for message in call.messages():
        match message["event"]:
            case "media":
                await call.send_media(message["media"]["payload"])
            case "stop":
                return


if __name__ == "__main__":
    main(echo, arguments("Sends callers their own voice.", "127.0.0.1:19302").parse_args())
