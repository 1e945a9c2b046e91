"""Asterisk's Manager Interface, for the operator: what is there, and hanging a channel up.

panoramisk speaks the protocol. It is used for one short connection per command, with what it lacks added here: every
action has a limit; a lost connection fails what waits for it, and nothing is ever sent a second time; header values
cannot carry a second header; text split anywhere between two TCP segments is read right.
"""

from __future__ import annotations

import asyncio
import codecs
import logging
import os
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from panoramisk.ami_protocol import AMIProtocol
from panoramisk.manager import Manager

from ari_app.domain.hangup import Cause
from ari_app.errors import TrunkbridgeError, Unavailable

MAX_SESSION_BYTES = 64 * 1024 * 1024
"""What one connection may answer. A channel takes 0.6 kB."""

_CLOSE_SECONDS = 1.0
_NO_PINGS = 86_400
_log = logging.getLogger(__name__)


class AmiError(TrunkbridgeError):
    """A command over AMI failed."""


class AmiUnavailable(AmiError, Unavailable):
    """Asterisk could not be reached, closed the connection, or did not answer in time."""


class AmiLoginRefused(AmiError):
    """Asterisk does not accept the user or the password."""


class AmiRejected(AmiError):
    """Asterisk understood an action and would not do it: `No such channel`, `Permission denied`."""


class AmiInvalid(AmiError, ValueError):
    """A value that cannot be sent as a header."""


@dataclass(frozen=True, slots=True)
class AmiChannel:
    """A row of CoreShowChannels. Texts are empty where Asterisk has none."""

    name: str
    """`PJSIP/carrier-00000012`."""
    channel_id: str
    """Asterisk's unique id; of our media channels the one that we chose."""
    linked_id: str
    """Unique id of the first channel of the call."""
    state: str
    """`Up`, `Ring`, `Ringing`, `Down`, ..."""
    caller: str
    caller_name: str
    context: str
    exten: str
    application: str
    application_data: str
    duration_seconds: int
    bridge_id: str


class _Protocol(AMIProtocol):  # type: ignore[misc]
    """One connection that fails loudly and in whole."""

    def __init__(self) -> None:
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._text = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._received = 0

    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        if self._received > MAX_SESSION_BYTES:
            self._fail(f"answered more than {MAX_SESSION_BYTES} bytes")
            return
        try:
            super().data_received(self._text.decode(data).encode())
        except Exception as error:  # whatever the library makes of what it cannot read, this connection is over
            self._fail(f"sent what cannot be read ({type(error).__name__}: {error})")

    def connection_lost(self, exc: object) -> None:
        # A Shutdown event comes here as a message, and so do an error and an orderly end.
        self._fail(str(exc) if isinstance(exc, Exception) else "closed the connection")
        if self.factory is not None:
            super().connection_lost(exc)

    def _fail(self, why: str) -> None:
        if not self.lost.done():
            self.lost.set_result(why)
        self.transport.abort()


class _Session(Manager):  # type: ignore[misc]
    """A manager that stays lost: the library's own would connect again and send what was not answered."""

    def connection_lost(self, exc: object) -> None:
        """Nothing: `_Protocol.lost` tells those who wait."""


class AmiClient:
    """One connection to AMI, logged in, as a context manager. Events are switched off.

    Entering and every method raise `AmiUnavailable`; entering also `AmiLoginRefused`, methods `AmiRejected`.
    """

    def __init__(self, host: str, port: int, username: str, password: str, timeout_seconds: float = 5.0) -> None:
        self._host = host
        self._port = port
        self._username = username
        self._password = password
        self._timeout_seconds = timeout_seconds
        self._session: _Session | None = None
        self._protocol: _Protocol | None = None

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._timeout_seconds):
                transport, protocol = await loop.create_connection(_Protocol, self._host, self._port)
        except TimeoutError:
            raise self._unavailable(f"no connection within {self._timeout_seconds:g} s") from None
        except OSError as error:
            why = os.strerror(error.errno) if error.errno else str(error)
            raise self._unavailable(f"{why}: is Asterisk up, and enabled=yes in its manager.conf?") from None
        session = _Session(loop=loop, log=_log, ping_delay=_NO_PINGS, ping_interval=_NO_PINGS)
        # The library's only callback sends unanswered actions again.
        session.callbacks.clear()
        session.patterns.clear()
        connected: asyncio.Future[Any] = loop.create_future()
        connected.set_result((transport, protocol))
        session.connection_made(connected)
        self._session, self._protocol = session, protocol
        try:
            await self._act("Login", Username=self._username, Secret=self._password, Events="off")
        except AmiRejected as error:
            await self._close()
            raise AmiLoginRefused(
                "ami_login_refused",
                f"{self._where()}: {error}: compare user {self._username!r} and its secret with manager.conf",
            ) from None
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    async def channels(self) -> list[AmiChannel]:
        """All channels of this Asterisk, not only ours."""
        messages = await self._act("CoreShowChannels")
        return [_channel(message) for message in messages if message.event == "CoreShowChannel"]

    async def hangup(self, channel: str, cause: int = Cause.NORMAL_CLEARING) -> None:
        """Hangs up the channel of this name or unique id, with a Q.850 cause.

        Raises `AmiRejected` when there is none, `AmiInvalid` for a name that Asterisk would take for a pattern.
        """
        if not channel or channel.startswith("/"):
            raise AmiInvalid("ami_invalid", f"{channel!r} is no channel: give one name or unique id, not a pattern")
        await self._act("Hangup", Channel=channel, Cause=str(int(cause)))

    async def _act(self, action: str, **headers: str) -> list[Any]:
        """The answer to one action: its response, and the list that follows it if one does."""
        for name, value in headers.items():
            if any(character in value for character in "\r\n\0"):
                raise AmiInvalid("ami_invalid", f"{name} holds a line break: it would be read as another header")
        session, protocol = self._session, self._protocol
        if session is None or protocol is None:
            raise RuntimeError("AmiClient is used outside of `async with`")
        if protocol.lost.done():
            raise self._unavailable(protocol.lost.result())
        answer = session.send_action({"Action": action, **headers})
        try:
            async with asyncio.timeout(self._timeout_seconds):
                await asyncio.wait((answer, protocol.lost), return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            raise self._unavailable(f"no answer to {action} within {self._timeout_seconds:g} s") from None
        if not answer.done():
            raise self._unavailable(f"{protocol.lost.result()} before it answered {action}")
        found = answer.result()
        messages = found if isinstance(found, list) else [found]
        if not messages[0].success:
            raise AmiRejected("ami_rejected", _text(messages[0], "Message") or f"{action} was refused")
        return messages

    async def _close(self) -> None:
        session, protocol = self._session, self._protocol
        self._session = self._protocol = None
        if session is None or protocol is None:
            return
        session.close()
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                await protocol.lost
        except TimeoutError:
            protocol.transport.abort()

    def _where(self) -> str:
        return f"AMI at {self._host}:{self._port}"

    def _unavailable(self, why: str) -> AmiUnavailable:
        return AmiUnavailable("ami_unavailable", f"{self._where()}: {why}")


def _text(message: Any, header: str) -> str:
    value = message.get(header, "")
    return value if isinstance(value, str) else ", ".join(map(str, value))


def _decimal(text: str) -> int:
    # Python reads no number of thousands of digits, and Asterisk has none over 64 bits.
    return int(text) if text.isdecimal() and len(text) < 20 else 0


def _channel(message: Any) -> AmiChannel:
    return AmiChannel(
        name=_text(message, "Channel"),
        channel_id=_text(message, "Uniqueid"),
        linked_id=_text(message, "Linkedid"),
        state=_text(message, "ChannelStateDesc"),
        caller=_text(message, "CallerIDNum"),
        caller_name=_text(message, "CallerIDName"),
        context=_text(message, "Context"),
        exten=_text(message, "Exten"),
        application=_text(message, "Application"),
        application_data=_text(message, "ApplicationData"),
        duration_seconds=_seconds(_text(message, "Duration")),
        bridge_id=_text(message, "BridgeId"),
    )


def _seconds(duration: str) -> int:
    """`01:02:03` in seconds; hours may have more than two digits."""
    seconds = 0
    for part in duration.split(":"):
        seconds = seconds * 60 + _decimal(part)
    return seconds
